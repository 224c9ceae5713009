"""Counts of verdicts per problem, file by file: ten million samples in seconds and a few hundred megabytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import pyarrow as pa

VERDICTS = ("correct", "wrong", "no_answer", "timeout", "error")
COUNTS = ["benchmark", "problem", "n", "correct", "wrong", "no_answer", "truncated", "timeout", "error", "mean_tokens"]
_INDEX_BITS = 40


def count(tables: Iterable[pa.Table]) -> tuple[pd.DataFrame, int]:
    """Return the frame of `SampleStore.counts` and the number of samples that are there twice; the first copy counts.

    The tables have the columns benchmark, problem, index, tokens, finish_reason, and verdict where anything is graded.
    Needs 13 bytes per sample.
    """
    owners: dict[tuple[str, str], int] = {}
    keys, facts, tokens = [np.zeros(0, np.int64)], [np.zeros(0, np.int8)], [np.zeros(0, np.int32)]
    for table in tables:
        keys.append(problem_numbers(table, owners) << _INDEX_BITS | numbers(table, "index"))
        ended, reasons = codes(table, "finish_reason")
        judged, verdicts = codes(table, "verdict") if "verdict" in table.column_names else (np.full(len(ended), -1), [])
        kind = np.array([1 + VERDICTS.index(name) for name in verdicts] + [0], dtype=np.int8)[judged]  # 0: not graded
        cut = np.array([name == "length" for name in reasons] + [False])[ended]
        facts.append(kind | cut.astype(np.int8) << 4)
        tokens.append(numbers(table, "tokens").astype(np.int32))
    key, fact, length = np.concatenate(keys), np.concatenate(facts), np.concatenate(tokens)
    keys.clear(), facts.clear(), tokens.clear()
    doubled = _doubled(key)
    if len(doubled):
        keep = np.ones(len(key), dtype=bool)
        keep[doubled] = False
        key, fact, length = key[keep], fact[keep], length[keep]
    problem = key >> _INDEX_BITS
    kind = fact & 15
    by_verdict = np.bincount(problem * 6 + kind, minlength=6 * len(owners)).reshape(-1, 6)[:, 1:]
    total = np.bincount(problem, weights=np.where(kind > 0, length, 0), minlength=len(owners))
    frame = pd.DataFrame(list(owners), columns=["benchmark", "problem"]).astype("str")
    frame["n"] = n = by_verdict.sum(axis=1)
    frame[list(VERDICTS)] = by_verdict
    frame["truncated"] = np.bincount(problem[(kind > 0) & (fact >= 16)], minlength=len(owners))
    frame["mean_tokens"] = np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)
    return frame.sort_values(["benchmark", "problem"], ignore_index=True)[COUNTS], len(doubled)


def _doubled(key: np.ndarray) -> np.ndarray:
    """Return the positions of all but the first of equal keys."""
    ordered = np.sort(key)
    if not (ordered[1:] == ordered[:-1]).any():
        return np.zeros(0, dtype=np.int64)
    order = np.argsort(key, kind="stable")
    return order[1:][key[order[1:]] == key[order[:-1]]]


def codes(table: pa.Table, name: str) -> tuple[np.ndarray, list[str]]:
    """Return a column of names as codes (-1 for null), and the distinct names."""
    import pyarrow as pa

    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # a column without rows
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], pa.string())
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    return column.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64), column.dictionary.to_pylist()


def numbers(table: pa.Table, name: str) -> np.ndarray:
    """Return a column of integers."""
    return table.column(name).to_numpy().astype(np.int64, copy=False)


def problem_numbers(table: pa.Table, owners: dict[tuple[str, str], int]) -> np.ndarray:
    """Return the number of each row's (benchmark, problem) in `owners`; new ones are added."""
    benchmark, benchmarks = codes(table, "benchmark")
    problem, problems = codes(table, "problem")
    pairs, rows = np.unique(benchmark * max(1, len(problems)) + problem, return_inverse=True)
    found = [
        owners.setdefault((benchmarks[pair // len(problems)], problems[pair % len(problems)]), len(owners))
        for pair in pairs.tolist()
    ]
    return np.array(found, dtype=np.int64)[rows]
