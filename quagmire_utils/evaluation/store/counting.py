"""What the samples of a store hold in sum: verdicts per problem, and answers that were drawn twice with one seed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import pyarrow as pa

VERDICTS = ["correct", "wrong", "no_answer", "timeout", "error"]
COUNTS = ["benchmark", "problem", "n", "correct", "wrong", "no_answer", "truncated", "timeout", "error", "mean_tokens"]
DUPLICATES = ["benchmark", "shift", "identical", "expected"]
_PROBLEM = ["benchmark", "problem"]
_INDEX_BITS = 40
_COMMON = 4  # texts that more than one in so many of a problem's samples have say nothing about seeds
_ALPHA = 1e-6  # largest p-value that is reported
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
    facts["mean_tokens"] = frame["tokens"].where(judged)
    grouped = frame[_PROBLEM].assign(**facts).groupby(_PROBLEM, observed=True)
    counts = grouped.agg(dict.fromkeys(facts, "sum") | {"mean_tokens": "mean"}).reset_index()
    counts = counts.astype(dict.fromkeys(_PROBLEM, "str") | dict.fromkeys(COUNTS[2:-1], "int64"))
    return counts.sort_values(_PROBLEM, ignore_index=True)[COUNTS], doubled


def find_duplicates(tables: Iterable[pa.Table]) -> pd.DataFrame:
    """Return the shifts at which samples have equal texts more often than by chance: benchmark, shift, identical, ...

    tables: benchmark, problem, index, text and tokens of the samples. If seeds are used again, sample i of a problem
    equals sample i + shift. Short answers also agree by chance, but at any distance alike, which gives the expected
    number of pairs; shifts with more of them than chance gives once in a million checks are returned. Shift 0 stands
    for samples of most problems that are all one long text, as with an engine that ignores seeds.
    """
    frame = _categories(tables, _PROBLEM, ["index", "tokens"], texts=True)
    rows = []
    for benchmark, own in frame.groupby("benchmark", observed=True):
        found = [*_always_the_same(own), *_shifted(own)]
        rows += [(benchmark, *row) for row in found]
    return pd.DataFrame(rows, columns=DUPLICATES)


def _always_the_same(samples: pd.DataFrame) -> list[tuple[int, int, float]]:
    by_problem = samples.groupby("problem", observed=True)
    several = by_problem.agg(n=("text", "size"), texts=("text", "nunique"), tokens=("tokens", "mean")).query("n > 1")
    same = several[(several["texts"] == 1) & (several["tokens"] >= _LONG)]
    pairs = int((same["n"] * (same["n"] - 1) // 2).sum())
    return [(0, pairs, 0.0)] if len(same) * 2 > len(several) else []


def _shifted(samples: pd.DataFrame) -> list[tuple[int, int, float]]:
    from scipy.stats import poisson

    by_text = samples.groupby(["problem", "text"], observed=True)["index"]
    n = samples.groupby("problem", observed=True)["index"].transform("size")
    copies = by_text.transform("size")
    rare = (copies > 1) & ((copies * _COMMON <= n) | (copies == 2))
    samples = samples[samples["problem"].isin(samples.loc[rare, "problem"])]
    if samples.empty:
        return []
    rows, columns = samples["problem"].factorize()[0], samples["index"].to_numpy()
    shape = rows.max() + 1, columns.max() + 1
    there, texts = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=np.uint64)  # 0: no sample, or a common text
    there[rows, columns] = True
    texts[rows, columns] = np.where(rare[samples.index], samples["text"], 0)
    shifts = range(1, shape[1])
    pairs = np.array([(there[:, d:] & there[:, :-d]).sum(axis=1) for d in shifts])
    equal = np.array([((texts[:, d:] == texts[:, :-d]) & (texts[:, d:] > 0)).sum(axis=1) for d in shifts])
    expected = (pairs * equal.sum(axis=0) / np.maximum(pairs.sum(axis=0), 1)).sum(axis=1)
    identical = equal.sum(axis=1)
    # positions of rare texts are almost independent; dependence makes the number vary less than Poisson's
    p_value = poisson.sf(identical - 1, expected) * (pairs.sum(axis=1) > 0).sum()
    found = np.flatnonzero((identical > 1) & (p_value < _ALPHA))
    return [(int(d) + 1, int(identical[d]), float(expected[d])) for d in found]


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
