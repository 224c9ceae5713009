"""Find answers that were drawn twice with one seed: identical texts where independent samples would differ.

If seeds are used again, equal answers stand at a fixed distance: sample i of one run equals sample i + shift of another
(shift 0 for the same seed, another shift for overlapping seeds), or of the same run. Short answers also agree by
chance, but at any distance alike. Given how often each text occurs among a problem's samples, independent samples are
equally likely to stand in any order, which gives the expected number of pairs at each shift. Shifts with more pairs
than chance gives once in a million checks are reported.
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
_LONG = 32  # tokens; independent answers of this length are not all the same


def text_table(tables: Iterable[pa.Table], owners: dict[tuple[str, str], int]) -> pd.DataFrame:
    """Return one row per sample: owner (number of its problem in `owners`), index, text (a 64-bit hash), tokens."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("owner", "index", "text", "tokens")}
    for table in tables:
        columns["owner"].append(problem_numbers(table, owners))
        columns["index"].append(numbers(table, "index"))
        texts = table.column("text").to_numpy()
        columns["text"].append(pd.util.hash_array(texts.astype(object), categorize=False))
        columns["tokens"].append(numbers(table, "tokens"))
    joined = {name: np.concatenate(arrays) if arrays else np.zeros(0, np.int64) for name, arrays in columns.items()}
    return pd.DataFrame(joined).drop_duplicates(["owner", "index"], ignore_index=True)


def find_duplicates(
    first: pd.DataFrame, second: pd.DataFrame | None, owners: dict[tuple[str, str], int], alpha: float
) -> pd.DataFrame:
    """Return the shifts at which samples of `first` equal those of `second` more often than by chance.

    If `second` is None, `first` is compared with itself. Both are tables of `text_table` with the same `owners`.
    Columns: benchmark; shift (sample i equals sample i + shift; NaN: all samples of a problem are one text); identical
    and expected (pairs at that shift); p_value (of as many pairs or more, times the number of shifts tested); problems
    (with such a pair).
    """
    names = list(owners)
    benchmarks = sorted({benchmark for benchmark, _ in names})
    rows = []
    for benchmark in benchmarks:
        mine = np.array([i for i, (name, _) in enumerate(names) if name == benchmark])
        one = first[first["owner"].isin(mine)]
        if second is None:
            rows += _always_the_same(one, benchmark)
            pairs = _pairs_within(one)
        else:
            pairs = _pairs_between(one, second[second["owner"].isin(mine)])
        rows += [{"benchmark": benchmark, **row} for row in _beyond_chance(*pairs, alpha)]
    frame = pd.DataFrame(rows, columns=DUPLICATES)
    return frame.sort_values(["benchmark", "p_value"], kind="stable", ignore_index=True)


def _always_the_same(samples: pd.DataFrame, benchmark: str) -> list[dict[str, object]]:
    """Return a row if most problems have one long text for all samples, as with an engine that ignores seeds."""
    by_problem = samples.groupby("owner").agg(n=("text", "size"), texts=("text", "nunique"), tokens=("tokens", "mean"))
    several = by_problem[by_problem["n"] > 1]
    same = several[(several["texts"] == 1) & (several["tokens"] >= _LONG)]
    if len(same) * 2 <= len(several) or same.empty:
        return []
    pairs = int((same["n"] * (same["n"] - 1) // 2).sum())
    row = {"shift": np.nan, "identical": pairs, "expected": 0.0, "p_value": 0.0, "problems": len(same)}
    return [{"benchmark": benchmark, **row}]


def _rare(samples: pd.DataFrame) -> pd.DataFrame:
    """Return the samples whose text is rare among those of their problem, sorted; adds `copies` of the text and `n`."""
    samples = samples.sort_values(["owner", "text", "index"], ignore_index=True)
    copies = samples.groupby(["owner", "text"])["index"].transform("size")
    n = samples.groupby("owner")["index"].transform("size")
    return samples.assign(copies=copies, n=n)[(copies * _COMMON <= n) | (copies <= 2)].reset_index(drop=True)


_Found = tuple[np.ndarray, np.ndarray, dict[int, float]]


def _pairs_within(samples: pd.DataFrame) -> _Found:
    """Return shift and problem of each pair of identical texts within a problem, and the expected pairs by shift."""
    rare = _rare(samples)
    rare = rare[rare["copies"] > 1]
    group = (rare["owner"].diff().ne(0) | (rare["text"] != rare["text"].shift())).cumsum().to_numpy()
    index, owner = rare["index"].to_numpy(), rare["owner"].to_numpy()
    shifts, owners = [], []
    for step in range(1, int(rare["copies"].max()) if len(rare) else 1):
        same = group[step:] == group[:-step]
        shifts.append((index[step:] - index[:-step])[same])
        owners.append(owner[step:][same])
    expected: dict[int, float] = {}
    pairs = (
        rare.drop_duplicates(["owner", "text"])
        .assign(pairs=lambda f: f["copies"] * (f["copies"] - 1) / 2)
        .groupby("owner")["pairs"]
        .sum()
    )
    for places, problems in _by_places(samples[samples["owner"].isin(pairs.index)]).items():
        held = np.frombuffer(places, dtype=np.int64)
        distance, there = _differences(held, held)
        there, distance = there[distance > 0], distance[distance > 0]
        mean = pairs[problems].sum() * there / (len(held) * (len(held) - 1) / 2)
        for shift, value in zip(distance.tolist(), mean.tolist(), strict=True):
            expected[shift] = expected.get(shift, 0.0) + value
    return _joined(shifts), _joined(owners), expected


def _pairs_between(first: pd.DataFrame, second: pd.DataFrame) -> _Found:
    """Return the same for pairs of a sample of `first` and one of `second`; shift: second index minus first."""
    both = _rare(first).merge(_rare(second), on=["owner", "text"], suffixes=("", "_2"))
    expected: dict[int, float] = {}
    pairs = both.groupby("owner").size()
    places = _by_places(first[first["owner"].isin(pairs.index)])
    places_2 = {problem: key for key, some in _by_places(second).items() for problem in some}
    for key, problems in places.items():
        by_second: dict[bytes, list[int]] = {}
        for problem in problems:
            by_second.setdefault(places_2[problem], []).append(problem)
        held = np.frombuffer(key, dtype=np.int64)
        for key_2, some in by_second.items():
            held_2 = np.frombuffer(key_2, dtype=np.int64)
            distance, there = _differences(held, held_2)
            mean = pairs[some].sum() * there / (len(held) * len(held_2))
            for shift, value in zip(distance.tolist(), mean.tolist(), strict=True):
                expected[shift] = expected.get(shift, 0.0) + value
    return (both["index_2"] - both["index"]).to_numpy(), both["owner"].to_numpy(), expected


def _by_places(samples: pd.DataFrame) -> dict[bytes, list[int]]:
    """Return the problems by the indices of their samples; most have the same."""
    found: dict[bytes, list[int]] = {}
    for problem, indices in samples.groupby("owner")["index"]:
        found.setdefault(np.sort(indices.to_numpy(dtype=np.int64)).tobytes(), []).append(problem)
    return found


def _differences(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct differences second - first of two sets of indices, and how often each occurs."""
    return np.unique((second[None, :] - first[:, None]).ravel(), return_counts=True)


def _beyond_chance(
    shifts: np.ndarray, owners: np.ndarray, expected: dict[int, float], alpha: float
) -> list[dict[str, object]]:
    from scipy.stats import poisson

    rows = []
    for shift, identical in zip(*np.unique(shifts, return_counts=True), strict=True):
        mean = expected[int(shift)]
        # positions of rare texts are almost independent; dependence makes the number vary less than Poisson's
        p_value = min(1.0, float(poisson.sf(identical - 1, mean)) * len(expected))
        if identical > 1 and p_value < alpha:
            problems = len(np.unique(owners[shifts == shift]))
            row = {"shift": int(shift), "identical": int(identical), "expected": mean, "p_value": p_value}
            rows.append(row | {"problems": problems})
    return rows


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64)
