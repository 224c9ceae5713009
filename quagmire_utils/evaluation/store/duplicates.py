"""Find answers that were drawn twice with one seed: identical texts where independent samples would differ.

If seeds are used again, equal answers stand at a fixed distance: sample i of a problem equals sample i + shift. Short
answers also agree by chance, but at any distance alike. Given how often each text occurs among a problem's samples,
independent samples are equally likely to stand in any order, which gives the expected number of pairs at each shift.
Shifts with more pairs than chance gives once in a million checks are reported.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from quagmire_utils.evaluation.store.counting import numbers, problem_numbers

if TYPE_CHECKING:
    import pyarrow as pa

DUPLICATES = ["benchmark", "shift", "identical", "expected", "p_value", "problems"]
_COMMON = 4  # texts shared by more than one in so many of a problem's samples say nothing about seeds
_ALPHA = 1e-6  # largest p-value that is reported
_LONG = 32  # tokens; independent answers of this length are not all the same


def find_duplicates(tables: Iterable[pa.Table]) -> pd.DataFrame:
    """Return the shifts at which samples have equal texts more often than by chance.

    tables: benchmark, problem, index, text and tokens of the samples. Columns: benchmark; shift (sample i equals sample
    i + shift; NaN: all samples of most problems are one long text); identical and expected (pairs at that shift);
    p_value (of as many pairs or more, times the number of shifts tested); problems (with such a pair).
    """
    owners: dict[tuple[str, str], int] = {}
    samples = _samples(tables, owners)
    rows = []
    for benchmark in sorted({benchmark for benchmark, _ in owners}):
        mine = samples[samples["owner"].isin([i for (name, _), i in owners.items() if name == benchmark])]
        found = [*_always_the_same(mine), *_beyond_chance(*_pairs(mine))]
        rows += [{"benchmark": benchmark, **row} for row in found]
    frame = pd.DataFrame(rows, columns=DUPLICATES)
    return frame.sort_values(["benchmark", "p_value"], kind="stable", ignore_index=True)


def _samples(tables: Iterable[pa.Table], owners: dict[tuple[str, str], int]) -> pd.DataFrame:
    """Return one row per sample: owner (number of its problem in `owners`), index, text (a 64-bit hash), tokens."""
    frames = [pd.DataFrame({"owner": [], "index": [], "text": [], "tokens": []}, dtype=np.int64)]
    for table in tables:
        texts = pd.util.hash_array(table.column("text").to_numpy().astype(object), categorize=False)
        columns = {"owner": problem_numbers(table, owners), "index": numbers(table, "index"), "text": texts}
        frames.append(pd.DataFrame({**columns, "tokens": numbers(table, "tokens")}))
    return pd.concat(frames[1:] or frames).drop_duplicates(["owner", "index"], ignore_index=True)


def _always_the_same(samples: pd.DataFrame) -> list[dict[str, object]]:
    """Return a row if most problems have one long text for all samples, as with an engine that ignores seeds."""
    by_problem = samples.groupby("owner").agg(n=("text", "size"), texts=("text", "nunique"), tokens=("tokens", "mean"))
    several = by_problem[by_problem["n"] > 1]
    same = several[(several["texts"] == 1) & (several["tokens"] >= _LONG)]
    if len(same) * 2 <= len(several) or same.empty:
        return []
    pairs = int((same["n"] * (same["n"] - 1) // 2).sum())
    row = {"shift": np.nan, "identical": pairs, "expected": 0.0, "p_value": 0.0, "problems": len(same)}
    return [row]


def _rare(samples: pd.DataFrame) -> pd.DataFrame:
    """Return the samples whose text is rare among those of their problem, sorted; adds `copies` of the text and `n`."""
    samples = samples.sort_values(["owner", "text", "index"], ignore_index=True)
    copies = samples.groupby(["owner", "text"])["index"].transform("size")
    n = samples.groupby("owner")["index"].transform("size")
    return samples.assign(copies=copies, n=n)[(copies * _COMMON <= n) | (copies <= 2)].reset_index(drop=True)


def _pairs(samples: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, dict[int, float]]:
    """Return shift and problem of each pair of identical texts of a problem, and the expected pairs by shift."""
    rare = _rare(samples)
    rare = rare[rare["copies"] > 1]
    group = (rare["owner"].diff().ne(0) | (rare["text"] != rare["text"].shift())).cumsum().to_numpy()
    index, owner = rare["index"].to_numpy(), rare["owner"].to_numpy()
    shifts, owners = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for step in range(1, int(rare["copies"].max()) if len(rare) else 1):
        same = group[step:] == group[:-step]
        shifts.append((index[step:] - index[:-step])[same])
        owners.append(owner[step:][same])
    texts = rare.drop_duplicates(["owner", "text"])
    pairs = (texts["copies"] * (texts["copies"] - 1) / 2).groupby(texts["owner"]).sum()
    alike: dict[bytes, list[int]] = {}  # problems by the indices of their samples; most have the same
    for problem, indices in samples[samples["owner"].isin(pairs.index)].groupby("owner")["index"]:
        alike.setdefault(np.sort(indices.to_numpy(dtype=np.int64)).tobytes(), []).append(problem)
    expected: dict[int, float] = {}
    for places, problems in alike.items():
        held = np.frombuffer(places, dtype=np.int64)
        distance, count = np.unique((held[None, :] - held[:, None]).ravel(), return_counts=True)
        mean = pairs[problems].sum() * count / (len(held) * (len(held) - 1) / 2)
        for shift, value in zip(distance.tolist(), mean.tolist(), strict=True):
            if shift > 0:
                expected[shift] = expected.get(shift, 0.0) + value
    return np.concatenate(shifts), np.concatenate(owners), expected


def _beyond_chance(shifts: np.ndarray, owners: np.ndarray, expected: dict[int, float]) -> list[dict[str, object]]:
    from scipy.stats import poisson

    rows = []
    for shift, identical in zip(*np.unique(shifts, return_counts=True), strict=True):
        mean = expected[int(shift)]
        # positions of rare texts are almost independent; dependence makes the number vary less than Poisson's
        p_value = min(1.0, float(poisson.sf(identical - 1, mean)) * len(expected))
        if identical > 1 and p_value < _ALPHA:
            problems = len(np.unique(owners[shifts == shift]))
            row = {"shift": int(shift), "identical": int(identical), "expected": mean, "p_value": p_value}
            rows.append(row | {"problems": problems})
    return rows
