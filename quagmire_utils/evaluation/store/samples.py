"""The append-only store of sampled answers."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

import quagmire_utils.evaluation.store.duplicates as duplicate_texts
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import (
    _plain,
    _read_table,
    _to_frame,
    digest,
    read_json,
    read_parquet,
    write_json,
    write_parquet,
)
from quagmire_utils.core.locks import exclusive
from quagmire_utils.core.provenance import package_versions
from quagmire_utils.evaluation.store.counting import COUNTED, count
from quagmire_utils.evaluation.store.parts import (
    COLUMNS,
    KEYS,
    PROMPTS,
    _is_of_another,
    _keys,
    _of,
    _prompts_of,
    _typed,
)

if TYPE_CHECKING:
    import pyarrow as pa


PROMPT_COLUMNS = ["benchmark", "problem", "prompt", "prompt_tokens", "digest"]
ORIGIN = b"quagmire_utils.origin"  # in a part's metadata: digest of what its samples were drawn with

_NAMES = ["benchmark", "problem", "finish_reason", "verdict"]  # columns of few different values
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LEFT_BEHIND = 3600.0  # seconds after which a temporary file is taken for that of a killed process


class SampleStore:
    """An append-only folder of samples, one row per (benchmark, problem, index).

    Columns: benchmark, problem (str), index (which of the problem's samples, from 0), text, tokens (generated, the
    end-of-sequence token included), finish_reason ("stop" or "length"), extracted and verdict (null until graded).

    A sample's key is what it was drawn with (`origin`: model digest, engine, template, parameters), its rendered
    prompt (`prompts`), its problem and its index; the first two are the same for the whole store. Every part says
    which origin and prompts it belongs to, so one that was copied here from elsewhere is refused, not counted.

    A part file that can't be read (truncated, zero bytes, a flipped bit: pages carry checksums) is moved aside as
    `*.damaged` with a warning; its samples count as not drawn. Half-written temporary files are never looked at.
    Several processes may use a store at the same time.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._mark: str | None = None  # digest of the origin, once it is known
        self._digests: dict[tuple[str, str], str] | None = None  # of the prompts, once they are known
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
            origin = read_json(file)["origin"]
            if not isinstance(origin, dict):
                raise TypeError(f"origin is {origin!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise ParameterError(
                f"store: {file} does not say what its samples were drawn with ({type(error).__name__}: {error}); "
                "restore it, or use another folder"
            ) from error
        return origin

    def bind(self, origin: Mapping[str, Any], *, notes: Mapping[str, Any] | None = None) -> None:
        """Say what the samples to come are drawn with; the first call writes it down, later ones compare.

        `notes` are written down but not compared (the model's path, say). Raises ParameterError naming every entry that
        differs: samples of different models, engines, templates or sampling parameters never share a store.
        """
        wanted = json.loads(json.dumps(dict(origin), default=_plain))
        if not self.origin:
            with self.writing(), exclusive(self.path):
                if not self.origin:  # no other process was faster
                    if self.parts():
                        raise ParameterError(
                            f"store: {self.path} holds samples but no store.json that says where they come from"
                        )
                    description = {"origin": wanted, "notes": dict(notes or {}), "packages": package_versions()}
                    write_json(description, self.path / "store.json")
                    return
        differing = origins_differ(self.origin, wanted)
        if differing:
            raise ParameterError(
                f"store: {self.path} holds samples drawn differently ({differing}); use another folder"
            )

    def add_prompts(self, prompts: pd.DataFrame) -> None:
        """Keep rendered prompts (columns of `PROMPT_COLUMNS` without digest).

        Raises ParameterError if a problem is already there with another prompt, or has samples of which nothing says
        what their prompt was.
        """
        prompts = prompts.assign(
            digest=[hashlib.sha256(p.encode("utf-8", "surrogatepass")).hexdigest()[:16] for p in prompts["prompt"]]
        )
        with self.writing(), exclusive(self.path):  # others may be adding theirs
            self._add_prompts(prompts)

    def _add_prompts(self, prompts: pd.DataFrame) -> None:
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
            self._check_samples_have(prompts, {*zip(held["benchmark"], held["problem"], strict=True)})
            joined = pd.concat([held, prompts[PROMPT_COLUMNS]]).drop_duplicates(
                ["benchmark", "problem"], ignore_index=True
            )
            write_parquet(joined, self.path / "prompts.parquet")
        self._digests = None

    def _check_samples_have(self, prompts: pd.DataFrame, held: set[tuple[str, str]]) -> None:
        """Raise ParameterError for samples of a problem that is not in `held`, unless their part names its prompt."""
        keys = zip(prompts["benchmark"], prompts["problem"], strict=True)
        new = {key: mark for key, mark in zip(keys, prompts["digest"], strict=True) if key not in held}
        for part in self.parts():
            table = self._table(part, KEYS[:2])
            if table is None:
                continue
            said = _prompts_of(table)
            for key in table.to_pandas().drop_duplicates().itertuples(index=False, name=None):
                if key in new and said.get(key) != new[key]:
                    what = "were drawn with another prompt" if key in said else "have no prompt in prompts.parquet"
                    raise ParameterError(
                        f"store: samples of {key[0]} problem {key[1]} in {part} {what}, so it can't be told whether "
                        "they answer this question; restore prompts.parquet, or use another folder"
                    )

    def prompts(self) -> pd.DataFrame:
        """The rendered prompts: benchmark, problem, prompt, prompt_tokens, digest."""
        file = self.path / "prompts.parquet"
        if not file.exists():
            return pd.DataFrame(
                {name: pd.Series(dtype="int64" if name == "prompt_tokens" else "str") for name in PROMPT_COLUMNS}
            )
        try:
            return read_parquet(file)[PROMPT_COLUMNS]
        except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors, OSErrors and KeyErrors
            if getattr(error, "errno", None) is not None:
                raise  # the system complains, not the file
            raise ParameterError(
                f"store: {file} can't be read ({str(error).splitlines()[0]}); delete it, and sampling writes it again"
            ) from error

    # samples

    def parts(self) -> list[Path]:
        """The part files, in name order."""
        return sorted(self.path.glob("part-*.parquet"))

    def append(self, frame: pd.DataFrame) -> Path:
        """Add samples as one new part file; extracted and verdict may be missing (not graded yet).

        The file is named by the samples' keys, so two processes that draw the same chunk leave it once: what is there
        stays, with its verdicts; a file of that name that holds other samples stays too, and theirs gets another.
        Samples that the store already has are for the caller to leave out (see `existing`).
        Raises ParameterError for missing columns, or keys that occur twice in `frame`; OSError, in a sentence, where
        no space is left (the store then holds what it held before).
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
        name = f"part-{keys.hexdigest()[:16]}"
        frame = _typed(frame)
        with self.writing(), exclusive(self.path):
            for again in itertools.count():
                part = self.path / (f"{name}-{again}.parquet" if again else f"{name}.parquet")
                held = self._table(part, None)
                if held is None:
                    write_parquet(frame, part, metadata=self._part_metadata(frame))
                    return part
                if _keys(_to_frame([held.select(KEYS)])) == _keys(frame):
                    return part

    def read_part(self, part: Path, columns: Sequence[str] | None = None) -> pd.DataFrame | None:
        """One part's samples; None, and the file moved aside with a warning, if it can't be read."""
        table = self._table(part, columns)
        return None if table is None else _to_frame([table])

    def replace_part(self, part: Path, frame: pd.DataFrame) -> None:
        """Rewrite one part atomically with the same samples, graded."""
        with self.writing():
            write_parquet(_typed(frame), part, metadata=self._part_metadata(frame))

    def clear_temporaries(self, older_than: float = _LEFT_BEHIND) -> None:
        """Remove the temporary files of killed processes: those that nobody has touched for so many seconds."""
        for file in self.path.glob(".*.tmp"):
            with suppress(OSError):
                if time.time() - file.stat().st_mtime > older_than:
                    file.unlink()

    def read(self, columns: Sequence[str] | None = None, *, benchmark: str | None = None) -> pd.DataFrame:
        """All samples, or a benchmark's, sorted by benchmark, problem and index.

        `columns` (of `COLUMNS`) saves reading the texts.
        """
        wanted = COLUMNS if columns is None else list(columns)
        unknown = [name for name in wanted if name not in COLUMNS]
        if unknown:
            raise ParameterError(
                f"columns: a store of samples has no {', '.join(unknown)}; it has {', '.join(COLUMNS)}"
            )
        needed = list(dict.fromkeys([*KEYS, *wanted]))
        parts = [part for part in self.parts() if benchmark is None or not _is_of_another(part, benchmark)]
        tables = [_of(table, benchmark) for part in parts if (table := self._table(part, needed)) is not None]
        if not tables:
            return _typed(pd.DataFrame({name: [] for name in COLUMNS}))[wanted]
        frame = _to_frame(tables)
        doubled = frame.duplicated(KEYS)
        if doubled.any():
            self._warn_of_doubled(doubled.sum())
            frame = frame[~doubled]
        return frame.sort_values(KEYS, kind="stable", ignore_index=True)[wanted]

    def existing(self, benchmark: str | None = None) -> pd.DataFrame:
        """The keys (benchmark, problem, index) of all samples, or a benchmark's, that are safely there."""
        tables = [table.select(KEYS) for _, table in self.verified(benchmark)]
        if not tables:
            return _typed(pd.DataFrame({name: [] for name in COLUMNS}))[KEYS]
        return _to_frame(tables).drop_duplicates().sort_values(KEYS, ignore_index=True)

    def verified(self, benchmark: str | None = None, *, without: Iterable[str] = ()) -> Iterator[tuple[Path, pa.Table]]:
        """Each part with its keys and tokens, after all of it was read and found whole; `benchmark`: only its rows.

        `without`: names of parts to leave out.
        """
        # Whole parts are read, one at a time: a part with a damaged column must count as missing now, before sampling
        # resumes, not when it is graded.
        left_out = set(without)
        for part in self.parts():
            if part.name in left_out or (benchmark is not None and _is_of_another(part, benchmark)):
                continue
            table = self._table(part, None)
            if table is None:
                continue
            yield part, _of(table.select([*KEYS, "tokens"]), benchmark)

    def counts(self) -> pd.DataFrame:
        """One row per benchmark and problem, with the columns `COUNTS`.

        n and all the other columns count graded samples alone, so that an answer nobody has judged is never taken for
        a wrong one: n is the sum of correct, wrong, no_answer, timeout and error. truncated counts those that met the
        token limit, whatever their verdict. mean_tokens is NaN where n is 0. No text is read: ten million samples take
        seconds and little more than half a GiB.
        """
        frame, doubled = count(self._tables(COUNTED, _NAMES))
        if doubled:
            self._warn_of_doubled(doubled)
        return frame

    def duplicates(self, other: SampleStore | None = None, *, alpha: float = 1e-6) -> pd.DataFrame:
        """Samples that were drawn with one seed although they pass for independent; empty where there are none.

        Looks for texts of this store that are the same at a fixed distance of their indices, beyond what chance does,
        or (`other`) that are the same in another store, say of another seed or another machine. See `duplicates` for
        what is compared. One row per benchmark and shift: benchmark; shift (sample i equals sample i + shift; NaN: all
        samples of most problems are one long text); identical and expected pairs; p_value, at most `alpha`; problems.
        At temperature 0 all samples are the same by design, and nothing is reported. Holds 28 bytes per sample.
        """
        if not 0 < alpha < 1:
            raise ParameterError(f"alpha must be between 0 and 1, not {alpha}")
        owners: dict[tuple[str, str], int] = {}
        if self.origin.get("temperature") == 0:
            return duplicate_texts.find(duplicate_texts.text_table([], owners), None, owners, alpha)
        columns = [*KEYS, "text", "tokens"]
        first = duplicate_texts.text_table(self._tables(columns, _NAMES[:2]), owners)
        second = None
        if other is not None:
            second = duplicate_texts.text_table(other._tables(columns, _NAMES[:2]), owners)
        return duplicate_texts.find(first, second, owners, alpha)

    def _tables(self, columns: Sequence[str], names: Sequence[str]) -> Iterator[pa.Table]:
        """The parts one after the other; the columns in `names` as numbers into their different values."""
        for part in self.parts():
            table = self._table(part, columns, names)
            if table is not None:
                yield table

    def _warn_of_doubled(self, samples: int) -> None:
        warnings.warn(f"{self.path}: {samples} samples are there twice; the second copies are left out", stacklevel=3)

    def _table(self, part: Path, columns: Sequence[str] | None, names: Sequence[str] = ()) -> pa.Table | None:
        import pyarrow as pa

        columns = COLUMNS if columns is None else columns
        for _ in range(2):
            try:
                facts = part.stat()
                table = _read_table(part, columns, names)
            except FileNotFoundError:
                return None  # not there, or moved aside by another reader
            except (pa.ArrowException, OSError) as error:
                if getattr(error, "errno", None) is not None:
                    raise  # the system complains (too many open files, no permission), not the part
                reason = str(error).splitlines()[0]
            else:
                lacking = [name for name in columns if name not in table.column_names]
                if not lacking:
                    return self._checked_origin(part, table)
                reason = f"it has no column {', '.join(lacking)}"
            with suppress(OSError):
                if part.stat().st_ino == facts.st_ino:  # else somebody has just written it anew
                    break
        aside = part.with_name(part.name + ".damaged")
        warnings.warn(f"{part} can't be read and is set aside as {aside.name}: {reason}", stacklevel=3)
        with suppress(OSError):  # a read-only store
            os.replace(part, aside)
        return None

    def _checked_origin(self, part: Path, table: pa.Table) -> pa.Table:
        """The table, if its part belongs to this store: same origin, same prompts."""
        mark = (table.schema.metadata or {}).get(ORIGIN, b"").decode()
        if mark and mark != self._origin_mark():
            raise ParameterError(
                f"store: {part} was drawn with another model, template, engine or parameters than store.json in its "
                "folder says; move it out of there"
            )
        said = _prompts_of(table)
        known = self._prompt_digests() if said else {}
        for key, mark in said.items():
            if known.setdefault(key, mark) != mark:
                raise ParameterError(
                    f"store: {part} answers another prompt of {key[0]} problem {key[1]} than the other samples in its "
                    "folder do; move it out of there"
                )
        return table

    def _prompt_digests(self) -> dict[tuple[str, str], str]:
        """(benchmark, problem) -> digest, of prompts.parquet and, where they know more, of the parts read so far."""
        if self._digests is None:
            held = self.prompts()
            keys = zip(held["benchmark"], held["problem"], strict=True)
            self._digests = dict(zip(keys, held["digest"], strict=True))
        return self._digests

    def _origin_mark(self) -> str:
        if self._mark is None:
            origin = self.origin
            if not origin:
                return ""
            self._mark = digest(origin)  # a store's origin never changes
        return self._mark

    def _part_metadata(self, frame: pd.DataFrame) -> dict[bytes, bytes]:
        metadata = {ORIGIN: self._origin_mark().encode()} if self._origin_mark() else {}
        known = self._prompt_digests()
        prompts: dict[str, dict[str, str]] = {}
        for key in frame[KEYS[:2]].drop_duplicates().itertuples(index=False, name=None):
            if key in known:
                prompts.setdefault(key[0], {})[key[1]] = known[key]
        return metadata | ({PROMPTS: json.dumps(prompts).encode()} if prompts else {})

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around writes to the store's folder: a full disk becomes an OSError that says in a sentence what it means."""
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise OSError(
                error.errno,
                f"no space is left for {self.path}; what was stored before is safe: free some space and start again",
            ) from error


def origins_differ(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What differs between two origins, in words; empty if nothing does."""
    return "; ".join(
        f"{name} is {held.get(name)!r} there and {wanted.get(name)!r} here"
        for name in sorted({*held, *wanted})
        if held.get(name) != wanted.get(name)
    )
