"""The files of a sample store: their columns, their metadata, how they are read, and what they hold in sum."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from quagmire_utils.core import files

if TYPE_CHECKING:
    import pyarrow as pa

KEYS = ["benchmark", "problem", "index"]
SAMPLED = [*KEYS, "text", "tokens", "finish_reason"]  # columns of a part: written once
GRADED = ["extracted", "verdict", "grader"]  # what a file of verdicts adds
COLUMNS = [*SAMPLED, *GRADED]
LIGHT = [*KEYS, "tokens", "finish_reason"]  # repeated in a file of verdicts, so that counting opens one file per part
PROBLEMS = "problems"  # folder of an imported store, with the golds of each benchmark in a .jsonl file

VERDICTS = ["correct", "wrong", "no_answer", "timeout", "error"]
COUNTS = ["benchmark", "problem", "n", "correct", "wrong", "no_answer", "truncated", "timeout", "error", "mean_tokens"]
_PROBLEM = ["benchmark", "problem"]
_INDEX_BITS = 40
UNKNOWN = "unknown"  # finish reason of an answer from a log without it; its length is -1 then

# keys of a file's metadata
ORIGIN = b"quagmire_utils.origin"  # digest of what the samples were drawn with
PROMPTS = b"quagmire_utils.prompts"  # {benchmark: {problem: digest of its prompt}}
TEXTS = b"quagmire_utils.texts"  # digest of a part's texts
PART = b"quagmire_utils.part"  # of a file of verdicts: `footer_digest` of the part that it belongs to
GOLDS = b"quagmire_utils.golds"  # of a file of verdicts: {benchmark: {problem: what its verdicts rest on}}


def verdict_file(part: Path) -> Path:
    """Return the path of the verdicts on a part's samples."""
    return part.with_name(part.name.replace("part-", "verdicts-", 1))


def footer_digest(part: Path) -> str:
    """Return a digest of a parquet file's footer, which holds its metadata and so the digest of its texts."""
    with part.open("rb") as file:
        file.seek(-8, 2)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, 2)
        return hashlib.sha256(file.read(length)).hexdigest()[:16]


def text_digest(frame: pd.DataFrame) -> str:
    """Return a digest of the texts of a frame."""
    digest = hashlib.sha256()
    for text in frame["text"]:
        digest.update(f"{text}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def by_problem(table: pa.Table, key: bytes) -> dict[tuple[str, str], Any]:
    """Return {(benchmark, problem): value} from a metadata entry of a table; empty if it has none."""
    nested = json.loads((table.schema.metadata or {}).get(key, b"{}"))
    return {(benchmark, problem): value for benchmark, values in nested.items() for problem, value in values.items()}


def to_metadata(values: Mapping[tuple[str, str], Any]) -> bytes:
    """Return the metadata entry that `by_problem` reads."""
    nested: dict[str, dict[str, Any]] = {}
    for (benchmark, problem), value in values.items():
        nested.setdefault(benchmark, {})[problem] = value
    return json.dumps(nested).encode()


def holds_another(part: Path, benchmark: str) -> bool:
    """Return whether a part's statistics prove that it holds nothing of a benchmark."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        facts = pq.read_metadata(part)
        column = facts.schema.names.index("benchmark")
        ranges = [facts.row_group(i).column(column).statistics for i in range(facts.num_row_groups)]
        return all(r is not None and r.has_min_max and not r.min <= benchmark <= r.max for r in ranges)
    except (pa.ArrowException, OSError, ValueError, TypeError):
        return False  # reading the part will report the error


def typed(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Return `columns` in their types; texts stay objects, because no string type holds a lone surrogate."""
    result = {}
    for name in columns:
        values = frame[name] if name in frame else pd.Series([None] * len(frame), index=frame.index, dtype=object)
        if name in ("index", "tokens"):
            result[name] = values.astype("int64")
        elif name in ("text", "extracted"):
            result[name] = values.astype(object).where(values.notna(), None)
        else:
            result[name] = values.astype("str")
    return pd.DataFrame(result)


def read_intact(file: Path, columns: Sequence[str], names: Sequence[str] = ()) -> pa.Table | None:
    """Return columns of a file, those in `names` as codes; None if it is missing or damaged (then set aside)."""
    import pyarrow as pa

    for _ in range(2):
        try:
            facts = file.stat()
            table = files.read_arrow(file, columns, names)
        except FileNotFoundError:
            return None  # not there, or set aside by another reader
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # the system's error (too many open files, no permission), not the file's
            reason = str(error).splitlines()[0]
        else:
            lacking = [name for name in columns if name not in table.column_names]
            if not lacking:
                return table
            reason = f"it has no column {', '.join(lacking)}"
        with suppress(OSError):
            if file.stat().st_ino == facts.st_ino:  # else another process has just replaced it
                break
    aside = file.with_name(file.name + ".damaged")
    warnings.warn(f"{file} cannot be read and is set aside as {aside.name}: {reason}", stacklevel=4)
    with suppress(OSError):  # a read-only store
        os.replace(file, aside)
    return None


def count(tables: Sequence[pa.Table]) -> tuple[pd.DataFrame, int]:
    """Return the frame of `SampleStore.counts` and the number of samples that are there twice; the first copy counts.

    The tables have the columns benchmark, problem, index, tokens, finish_reason, and verdict where anything is graded;
    names are dictionary-encoded.
    """
    import pyarrow as pa

    if not tables:
        kinds = dict.fromkeys(COUNTS, "int64") | dict.fromkeys(_PROBLEM, "str") | {"mean_tokens": "float64"}
        return pd.DataFrame(columns=COUNTS).astype(kinds), 0
    table = pa.concat_tables(tables, promote_options="permissive").unify_dictionaries()
    names = [*_PROBLEM, "finish_reason", "verdict"]
    (benchmark, benchmarks), (problem, problems), (reason, reasons), (verdict, verdicts) = (
        _codes(table, name) for name in names
    )
    problem = benchmark * np.int32(len(problems)) + problem
    tokens = table["tokens"].to_numpy()
    key = problem.astype(np.int64) << _INDEX_BITS | table["index"].to_numpy()
    ordered = np.sort(key, kind="stable")  # fast, because parts are sorted
    doubled = int((ordered[1:] == ordered[:-1]).sum())
    if doubled:
        first = np.unique(key, return_index=True)[1]
        problem, tokens, reason, verdict = problem[first], tokens[first], reason[first], verdict[first]
    pairs, kinds = len(benchmarks) * len(problems), 1 + len(verdicts)  # the first kind: not graded
    samples = np.bincount(problem.astype(np.int64) * kinds + verdict + 1, minlength=pairs * kinds).reshape(pairs, kinds)
    index = pd.MultiIndex.from_product([benchmarks, problems], names=_PROBLEM)
    counts = pd.DataFrame(samples[:, 1:], index, verdicts).reindex(columns=VERDICTS, fill_value=0)
    counts["n"] = samples[:, 1:].sum(axis=1)
    cut, unknown = (
        np.bincount(problem[(verdict >= 0) & (reason == reasons.get_indexer([name]))], minlength=pairs)
        for name in ("length", UNKNOWN)
    )
    # imported answers: a share that is not known is not zero
    counts["truncated"] = np.where(unknown > 0, np.nan, cut) if unknown.any() else cut
    known = (verdict >= 0) & (tokens >= 0)
    with np.errstate(invalid="ignore"):
        means = np.bincount(problem[known], tokens[known], pairs) / np.bincount(problem[known], minlength=pairs)
    counts = counts.assign(mean_tokens=means)[samples.any(axis=1)].reset_index()
    return counts.sort_values(_PROBLEM, ignore_index=True)[COUNTS], doubled


def _codes(table: pa.Table, name: str) -> tuple[np.ndarray, pd.Index]:
    """Return the codes of a dictionary-encoded column (-1 for null, or if it is missing), and its distinct names."""
    if name not in table.column_names:
        return np.full(len(table), -1, np.int32), pd.Index([], dtype="str")
    column = table[name].combine_chunks()
    codes = column.indices.fill_null(-1).to_numpy()
    return codes, pd.Index(column.dictionary.to_pandas().astype("str"))
