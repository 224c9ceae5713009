"""The append-only store of sampled answers."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from quagmire_utils.config import ParameterError
from quagmire_utils.store.files import (
    _plain,
    _read_table,
    _to_frame,
    read_json,
    read_parquet,
    write_json,
    write_parquet,
)
from quagmire_utils.store.provenance import package_versions

if TYPE_CHECKING:
    import pyarrow as pa


KEYS = ["benchmark", "problem", "index"]
COLUMNS = [*KEYS, "text", "tokens", "finish_reason", "extracted", "verdict"]
COUNTS = ["benchmark", "problem", "n", "correct", "wrong", "no_answer", "truncated", "timeout", "error", "mean_tokens"]
PROMPT_COLUMNS = ["benchmark", "problem", "prompt", "prompt_tokens", "digest"]


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
