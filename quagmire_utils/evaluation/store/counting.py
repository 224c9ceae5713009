"""What the samples of a store hold in sum: verdicts per problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import pyarrow as pa

VERDICTS = ["correct", "wrong", "no_answer", "timeout", "error"]
COUNTS = ["benchmark", "problem", "n", "correct", "wrong", "no_answer", "truncated", "timeout", "error", "mean_tokens"]
_PROBLEM = ["benchmark", "problem"]
_INDEX_BITS = 40
UNKNOWN = "unknown"  # finish reason of an answer from a log without it; its length is -1 then


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
