"""The append-only store of sampled answers and their verdicts.

The paper rests on millions of sampled answers (Sec. 4.1: 256 answers to each problem of seven benchmarks, for hundreds
of models). They are drawn over hours and days, so a store survives a kill at any moment, takes more samples later
without redrawing the first ones, and refuses to mix the answers of two models.

    store = SampleStore("results/smoke/samples/base")
    store.append(frame)                                   # one more part file, complete or absent, never half
    store.read(["benchmark", "problem", "verdict"])       # one frame of all parts, in a fixed order
    store.counts()                                        # verdicts per problem: 10^7 samples in seconds

A store is a folder: `part-*.parquet` (samples, never rewritten), `verdicts-*.parquet` (the verdicts on the samples of
the part of that name), `store.json` (what the samples were drawn with), `prompts.parquet` (the rendered prompts with
their digests), and locks.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from filelock import FileLock, Timeout

from quagmire_utils.core import files
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.provenance import package_versions
from quagmire_utils.evaluation.store_files import (
    COLUMNS,
    GOLDS,
    GRADED,
    KEYS,
    LIGHT,
    ORIGIN,
    PART,
    PROMPTS,
    SAMPLED,
    TEXTS,
    by_problem,
    count,
    footer_digest,
    holds_another,
    read_intact,
    text_digest,
    to_metadata,
    typed,
    verdict_file,
)

if TYPE_CHECKING:
    import pyarrow as pa

PROMPT_COLUMNS = ["benchmark", "problem", "prompt", "prompt_tokens", "digest"]
_DICTIONARIES = ["benchmark", "problem", "finish_reason", "verdict"]  # columns of few distinct values
_LONG = 32  # tokens; independent answers of this length are not all the same
LOCK_SECONDS = 5.0  # that children of a killed run may still hold its lock


class SampleStore:
    """An append-only folder of samples, one row per (benchmark, problem, index).

    Columns: benchmark, problem (str), index (number of the sample of its problem, from 0), text, tokens (generated,
    end-of-sequence token included; of imported answers -1 if unknown), finish_reason ("stop", "length" or "unknown");
    and extracted, verdict and grader (name and version), which are null until the sample is graded. All samples have
    one `origin` (model digest, engine, template, parameters) and one rendered prompt per problem. Every file names the
    origin and prompts it belongs to, so a part copied from another store is refused.

    A file that cannot be read (truncated, empty, a flipped bit: pages carry checksums) is renamed to `*.damaged` with a
    warning. The samples of such a part count as not drawn, those of such a file of verdicts as not graded. Half-written
    temporary files are never read. One process at a time draws into a store (`drawing`).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._origin_digest = ""  # cached: a store's origin never changes
        self._prompts: dict[tuple[str, str], str] | None = None  # digests by (benchmark, problem), once they are known
        if self.path.exists() and not self.path.is_dir():
            raise ParameterError("store", self.path, reason=f"{self.path} is a file; name a folder")

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Keep other processes from drawing into this store; raise ParameterError if one does.

        Where a file system has no locks work may be done twice, but no data is lost: of two samples the first counts.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".drawing.lock", LOCK_SECONDS, thread_local=False):
                yield
        except Timeout:
            reason = f"another process draws into {self.path}; wait for it, or stop it"
            raise ParameterError("store", self.path, reason=reason) from None

    # --- what the samples were drawn with ---

    @property
    def origin(self) -> dict[str, Any]:
        """What the samples were drawn with; empty for a new store."""
        file = self.path / "store.json"
        if not file.exists():
            return {}
        try:
            origin = files.read_json(file)["origin"]
            if not isinstance(origin, dict):
                raise TypeError(f"origin is {origin!r}")
        except (ValueError, KeyError, TypeError) as error:
            reason = f"{file} is damaged ({type(error).__name__}: {error}); restore it, or use another folder"
            raise ParameterError("store", self.path, reason=reason) from error
        return origin

    @property
    def day(self) -> date:
        """The day that prompts with a date name: that of the first run; today for a new store."""
        noted = self.origin and files.read_json(self.path / "store.json").get("notes", {}).get("day")
        return date.fromisoformat(noted) if noted else date.today()

    def bind(self, origin: Mapping[str, Any], *, notes: Mapping[str, Any] | None = None) -> None:
        """Record what the coming samples are drawn with, or compare it with what is recorded.

        `notes` are recorded but not compared (the model's path, say). Raise ParameterError naming every entry that
        differs: samples of different models, engines, templates or sampling parameters never share a store.
        """
        wanted = json.loads(json.dumps(dict(origin), default=files.to_plain))
        if not self.origin:
            if self.parts():
                reason = f"{self.path} holds samples but no store.json; restore it, or use another folder"
                raise ParameterError("store", self.path, reason=reason)
            description = {"origin": wanted, "notes": dict(notes or {}), "packages": package_versions()}
            files.write_json(description, self.path / "store.json")
            return
        self.check_origin(wanted, complete=True)

    def check_origin(self, wanted: Mapping[str, Any], *, complete: bool = False) -> None:
        """Raise ParameterError if the samples were drawn differently; without `complete`, compare only `wanted`."""
        held = self.origin
        names = {*held, *wanted} if complete else {*held} & {*wanted}
        differing = [name for name in sorted(names) if held.get(name) != wanted.get(name)]
        if differing:
            differing = [f"{name} is {held.get(name)!r} there and {wanted.get(name)!r} here" for name in differing]
            reason = f"{self.path} holds samples drawn differently ({'; '.join(differing)}); use another folder"
            raise ParameterError("store", self.path, reason=reason)

    def prompts(self) -> pd.DataFrame:
        """Return the rendered prompts: benchmark, problem, prompt, prompt_tokens, digest."""
        file = self.path / "prompts.parquet"
        if not file.exists():
            return pd.DataFrame(columns=PROMPT_COLUMNS, dtype="str").astype({"prompt_tokens": "int64"})
        try:
            return files.read_parquet(file)[PROMPT_COLUMNS]
        except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors, OSErrors and KeyErrors
            if getattr(error, "errno", None) is not None:
                raise  # the system's error, not the file's
            reason = f"{file} is damaged ({str(error).splitlines()[0]}); delete it, and sampling writes it again"
            raise ParameterError("store", self.path, reason=reason) from error

    def add_prompts(self, prompts: pd.DataFrame) -> None:
        """Record rendered prompts (columns of `PROMPT_COLUMNS` without digest).

        Raise ParameterError if a problem is recorded, or has samples that were drawn, with another prompt.
        """
        digests = [hashlib.sha256(p.encode("utf-8", "surrogatepass")).hexdigest()[:16] for p in prompts["prompt"]]
        prompts = prompts.assign(digest=digests)
        held = self.prompts()
        keys = list(zip(prompts["benchmark"], prompts["problem"], strict=True))
        self.check_prompts(dict(zip(keys, prompts["prompt"], strict=True)))
        known = {*zip(held["benchmark"], held["problem"], strict=True)}
        if new := {key: mark for key, mark in zip(keys, digests, strict=True) if key not in known}:
            for part in self.parts():  # prompts.parquet may be lost; the parts know the digests of their prompts
                self._check_digests(part, self._table(part, KEYS[:1]), new)
            joined = pd.concat([held, prompts[PROMPT_COLUMNS]])
            files.write_parquet(joined.drop_duplicates(["benchmark", "problem"]), self.path / "prompts.parquet")
        self._prompts = None

    def check_prompts(self, prompts: Mapping[tuple[str, str], str]) -> None:
        """Raise ParameterError if the store holds samples of a (benchmark, problem) drawn with another prompt."""
        held = self.prompts().set_index(["benchmark", "problem"])["prompt"].to_dict()
        changed = [key for key, prompt in prompts.items() if held.get(key, prompt) != prompt]
        if changed:
            some = f"{len(changed)} problems drawn with another prompt (such as {' '.join(changed[0])})"
            reason = f"{self.path} holds samples of {some}; use another folder"
            raise ParameterError("store", self.path, reason=reason)

    def _check_digests(self, file: Path, table: pa.Table | None, known: dict[tuple[str, str], str]) -> None:
        """Raise ParameterError if a file names another prompt digest of a problem; add those that are not known."""
        for key, prompt in by_problem(table, PROMPTS).items() if table is not None else ():
            if known.setdefault(key, prompt) != prompt:
                reason = f"{file} answers another prompt of {' '.join(key)} than the other samples"
                raise ParameterError("store", self.path, reason=f"{reason}; move it to another folder")

    # --- samples ---

    def parts(self) -> list[Path]:
        """Return the part files, in name order."""
        return sorted(self.path.glob("part-*.parquet"))

    def append(self, frame: pd.DataFrame, *, golds: Mapping[tuple[str, str], Any] | None = None) -> Path:
        """Add samples as one new part file, and their verdicts if `frame` has any (`golds` as in `write_verdicts`).

        The file is named after the samples' keys. The caller leaves out samples that the store already has (see
        `existing`). Raise ParameterError for missing columns and for keys that occur twice in `frame`, OSError if the
        disk is full (what was stored before is safe).
        """
        missing = [name for name in SAMPLED if name not in frame.columns]
        if missing:
            raise ParameterError("samples", missing, reason=f"the columns {', '.join(missing)} are missing")
        if frame.duplicated(KEYS).any():
            row = frame[frame.duplicated(KEYS)].iloc[0]
            reason = f"{row['benchmark']} problem {row['problem']} index {row['index']} occurs twice"
            raise ParameterError("samples", tuple(row[KEYS]), reason=reason)
        frame = typed(frame.sort_values(KEYS, kind="stable", ignore_index=True), COLUMNS)
        keys = list(frame[KEYS].itertuples(index=False, name=None))
        name = hashlib.sha256("\n".join(map(repr, keys)).encode()).hexdigest()[:16]
        part = self.path / f"part-{name}.parquet"
        known, mark = self._known_prompts(), self._mark()
        metadata = {TEXTS: text_digest(frame).encode()} | ({ORIGIN: mark.encode()} if mark else {})
        if prompts := {key[:2]: known[key[:2]] for key in keys if key[:2] in known}:
            metadata[PROMPTS] = to_metadata(prompts)
        files.write_parquet(frame[SAMPLED], part, metadata=metadata)
        if frame["verdict"].notna().any():
            self.write_verdicts(part, frame, golds or {})
        return part

    def read(self, columns: Sequence[str] | None = None, *, benchmark: str | None = None) -> pd.DataFrame:
        """Return all samples, or a benchmark's, sorted by benchmark, problem and index.

        `columns` (of `COLUMNS`): reading few of them is faster; the texts are most of the data.
        """
        wanted = COLUMNS if columns is None else list(columns)
        unknown = [name for name in wanted if name not in COLUMNS]
        if unknown:
            raise ParameterError("columns", unknown, f"some of {', '.join(COLUMNS)}")
        parts = [part for part in self.parts() if benchmark is None or not holds_another(part, benchmark)]
        frame = self._read(parts, list(dict.fromkeys([*KEYS, *wanted])))
        if frame is None:
            return typed(pd.DataFrame({name: [] for name in COLUMNS}), wanted)
        if benchmark is not None:
            frame = frame[frame["benchmark"] == benchmark]
        doubled = frame.duplicated(KEYS)
        if doubled.any():
            self._warn_of_doubled(doubled.sum())
            frame = frame[~doubled]
        return frame.sort_values(KEYS, kind="stable", ignore_index=True)[wanted]

    def read_part(self, part: Path, columns: Sequence[str] | None = None) -> pd.DataFrame | None:
        """Return one part's samples, in the file's order; None if it cannot be read (it is then set aside)."""
        return self._read([part], COLUMNS if columns is None else list(columns))

    def _read(self, parts: Iterable[Path], columns: list[str]) -> pd.DataFrame | None:
        import pyarrow as pa

        own = [name for name in columns if name in SAMPLED]
        graded = [name for name in columns if name in GRADED]
        samples, verdicts = [], []
        for part in parts:
            table = self._table(part, own or KEYS[:1])
            if table is None:
                continue
            judged = self._verdicts(part, graded) if graded else None
            if graded and judged is None:
                judged = pa.table({name: pa.nulls(len(table), pa.string()) for name in graded})
            samples.append(table)
            verdicts.append(judged)
        if not samples:
            return None
        frame = files.to_frame(samples)
        return (pd.concat([frame, files.to_frame(verdicts)], axis=1) if graded else frame)[columns]

    def existing(self, benchmark: str | None = None) -> pd.DataFrame:
        """Return the keys (benchmark, problem, index) of all samples, or a benchmark's, after reading all of them.

        A part with any damaged column counts as missing here, so that sampling replaces it before it is graded.
        """
        parts = [part for part in self.parts() if benchmark is None or not holds_another(part, benchmark)]
        tables = [table.select(KEYS) for part in parts if (table := self._table(part, SAMPLED)) is not None]
        frame = files.to_frame(tables) if tables else typed(pd.DataFrame(columns=KEYS), KEYS)
        if benchmark is not None:
            frame = frame[frame["benchmark"] == benchmark]
        return frame.drop_duplicates().sort_values(KEYS, ignore_index=True)

    # --- verdicts ---

    def write_verdicts(self, part: Path, frame: pd.DataFrame, golds: Mapping[tuple[str, str], Any]) -> None:
        """Write the verdicts on a part's samples, atomically; the part itself stays as it is.

        `frame`: `extracted`, `verdict` and `grader` in the part's order. `golds`: what the verdicts on a (benchmark,
        problem) rest on, a list of gold answer, tolerance and, except for math, grader.
        """
        table = self._table(part, LIGHT)
        if table is None:
            return  # set aside meanwhile: its samples will be drawn and graded again
        held = table.schema.metadata or {}
        metadata = {name: held[name] for name in (ORIGIN, PROMPTS) if name in held}
        metadata |= {PART: footer_digest(part).encode(), GOLDS: to_metadata(golds)}
        graded = typed(frame.reset_index(drop=True), GRADED)
        files.write_parquet(pd.concat([files.to_frame([table]), graded], axis=1), verdict_file(part), metadata=metadata)

    def golds(self, part: Path | None = None) -> dict[tuple[str, str], Any]:
        """Return what the verdicts of the store, or of one part, rest on: see `write_verdicts`."""
        golds: dict[tuple[str, str], Any] = {}
        for one in self.parts() if part is None else [part]:
            table = self._verdicts(one, ["verdict"])
            golds |= {} if table is None else by_problem(table, GOLDS)
        return golds

    def counts(self) -> pd.DataFrame:
        """Return one row per benchmark and problem, with the columns `COUNTS`.

        All columns count graded samples alone, so that an answer without a verdict is never taken for a wrong one: n is
        the sum of correct, wrong, no_answer, timeout and error. truncated counts the samples that reached the token
        limit, whatever their verdict; it is NaN where that is unknown. mean_tokens is NaN where n is 0. No text is
        read.
        """
        tables = (
            self._verdicts(part, [*LIGHT, "verdict"], _DICTIONARIES) or self._table(part, LIGHT, _DICTIONARIES[:3])
            for part in self.parts()
        )
        frame, doubled = count([table for table in tables if table is not None])
        if doubled:
            self._warn_of_doubled(doubled)
        return frame

    def always_the_same(self) -> list[str]:
        """Return the benchmarks in which most problems got one long text again and again, as if seeds were ignored.

        At temperature 0 all samples are equal by design, and nothing is reported.
        """
        parts = [] if self.origin.get("temperature") == 0 else self.parts()
        frames = (self.read_part(part, [*KEYS[:2], "text", "tokens"]) for part in parts)
        facts = {"n": ("text", "size"), "texts": ("text", "nunique"), "tokens": ("tokens", "mean")}
        by_problem = [frame.groupby(KEYS[:2]).agg(**facts) for frame in frames if frame is not None]
        if not by_problem:
            return []
        several = pd.concat(by_problem).query("n > 1")
        shares = ((several["texts"] == 1) & (several["tokens"] >= _LONG)).groupby("benchmark").mean()
        return shares[shares > 0.5].index.tolist()

    # --- files ---

    def _warn_of_doubled(self, samples: int) -> None:
        warnings.warn(f"{self.path}: {samples} samples are there twice; the second copies are ignored", stacklevel=3)

    def _verdicts(self, part: Path, columns: Sequence[str], names: Sequence[str] = ()) -> pa.Table | None:
        """Return columns of the verdicts on a part; None if there are none, or they belong to another file."""
        file = verdict_file(part)
        table = self._table(file, columns, names) if file.exists() else None
        if table is None:
            return None
        try:
            wanted = footer_digest(part).encode()
        except OSError:
            return None  # the part is gone or damaged; reading it reports that
        return table if (table.schema.metadata or {}).get(PART) == wanted else None

    def _table(self, file: Path, columns: Sequence[str], names: Sequence[str] = ()) -> pa.Table | None:
        """Return columns of a file of this store; None if the file is missing or damaged.

        Raise ParameterError if the file names another origin or prompt than this store.
        """
        table = read_intact(file, columns, names)
        if table is None:
            return None
        mark = (table.schema.metadata or {}).get(ORIGIN, b"").decode()
        if mark and mark != self._mark():
            reason = f"{file} was drawn with another model, template, engine or parameters than store.json says"
            raise ParameterError("store", self.path, reason=f"{reason}; move it to another folder")
        self._check_digests(file, table, self._known_prompts())
        return table

    def _known_prompts(self) -> dict[tuple[str, str], str]:
        """Return prompt digests by (benchmark, problem), of prompts.parquet and of the parts read so far."""
        if self._prompts is None:
            held = self.prompts()
            self._prompts = dict(zip(zip(held["benchmark"], held["problem"], strict=True), held["digest"], strict=True))
        return self._prompts

    def _mark(self) -> str:
        """Return the digest of the origin; empty for a store without one."""
        if not self._origin_digest and (origin := self.origin):
            self._origin_digest = files.digest(origin)
        return self._origin_digest
