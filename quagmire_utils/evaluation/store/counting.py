"""What the samples of a store hold in sum: verdicts per problem, and whether all answers to a problem are the same."""

from __future__ import annotations

from collections.abc import Iterable
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
_LONG = 32  # tokens; independent answers of this length are not all the same


def count(tables: Iterable[pa.Table]) -> tuple[pd.DataFrame, int]:
    """Return the frame of `SampleStore.counts` and the number of samples that are there twice; the first copy counts.

    The tables have the columns benchmark, problem, index, tokens, finish_reason, and verdict where anything is graded.
    """
    frame = _categories(tables, [*_PROBLEM, "finish_reason", "verdict"], ["index", "tokens"])
    problem = frame.groupby(_PROBLEM, observed=True).ngroup()
    key = problem.to_numpy(np.int64) << _INDEX_BITS | frame["index"].to_numpy()
    ordered = np.sort(key)
    doubled = int((ordered[1:] == ordered[:-1]).sum())
    if doubled:
        frame = frame[~pd.Series(key).duplicated()]
    judged = frame["verdict"].notna()
    facts = {name: (frame["verdict"] == name) for name in VERDICTS}
    facts |= {"n": judged, "truncated": judged & (frame["finish_reason"] == "length")}
    facts["mean_tokens"] = frame["tokens"].where(judged & (frame["tokens"] >= 0))
    unknown = judged & (frame["finish_reason"] == UNKNOWN)
    grouped = frame[_PROBLEM].assign(**facts, unknown=unknown).groupby(_PROBLEM, observed=True)
    counts = grouped.agg(dict.fromkeys([*facts, "unknown"], "sum") | {"mean_tokens": "mean"}).reset_index()
    counts = counts.astype(dict.fromkeys(_PROBLEM, "str") | dict.fromkeys(COUNTS[2:-1], "int64"))
    if unknown.any():  # imported answers: a share that is not known is not zero
        counts["truncated"] = counts["truncated"].astype(float).mask(counts["unknown"] > 0)
    return counts.sort_values(_PROBLEM, ignore_index=True)[COUNTS], doubled


def always_the_same(tables: Iterable[pa.Table]) -> list[str]:
    """Return the benchmarks in which the samples of most problems are all one long text.

    tables: benchmark, problem, text and tokens of the samples.
    """
    frame = _categories(tables, _PROBLEM, ["tokens"], texts=True)
    by_problem = frame.groupby(_PROBLEM, observed=True)
    several = by_problem.agg(n=("text", "size"), texts=("text", "nunique"), tokens=("tokens", "mean")).query("n > 1")
    same = (several["texts"] == 1) & (several["tokens"] >= _LONG)
    shares = same.groupby("benchmark", observed=True).mean()
    return shares[shares > 0.5].index.astype(str).tolist()


def _categories(
    tables: Iterable[pa.Table], names: list[str], numbers: list[str], *, texts: bool = False
) -> pd.DataFrame:
    """Return a frame of the tables' names as categories, of numbers, and of a 64-bit hash of each text."""
    import pyarrow as pa

    kinds = dict.fromkeys(names, pa.dictionary(pa.int32(), pa.string())) | dict.fromkeys(numbers, pa.int32())
    schema = pa.schema(kinds | ({"text": pa.uint64()} if texts else {}))
    plain = []
    for table in tables:
        arrays = [table[name] if name in table.column_names else pa.nulls(len(table)) for name in [*names, *numbers]]
        if texts:
            arrays.append(pa.array(pd.util.hash_array(table["text"].to_numpy().astype(object), categorize=False)))
        plain.append(pa.table(arrays, [*names, *numbers, *(["text"] if texts else [])]).cast(schema))
    joined = pa.concat_tables(plain or [schema.empty_table()]).unify_dictionaries()
    return joined.to_pandas(split_blocks=True, self_destruct=True)
