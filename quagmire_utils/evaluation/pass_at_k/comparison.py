"""Two models on the same problems: the difference of their Pass@k, with an interval and a p-value.

    compare(counts_after, counts_before, ks=[1, 64])

Both have met the same easy and hard problems, so what counts is the difference on each problem; its spread is much
smaller than that of either score, and overlapping intervals of the two scores decide nothing. The interval and the
p-value are those of the paired t-test over problems: they answer whether the models differ on problems of this kind,
with the sampling of answers included (it is in the spread of the differences). In the macro average each benchmark
weighs the same, with Satterthwaite's degrees of freedom. Interval and p-value agree: 0 lies outside the 95 % interval
just where p < 0.05; but where all problems differ by the same (20 of 20 against 0 of 20) there is no spread for a
t-test, and the p-value is that of the permutation test that flips the signs of the problems' differences. The tests
measure the size and the power of the test by simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.evaluation.pass_at_k.bootstrap import MACRO, Array
from quagmire_utils.evaluation.pass_at_k.estimator import COUNT_COLUMNS, _checked_ks, _each_benchmark, pass_at_k

ROUNDING = 1e-12  # Pass@k is exact to about 1e-15
FLIPS = 100_000  # of signs, where the permutation test is not known in closed form


def compare(
    counts_a: pd.DataFrame, counts_b: pd.DataFrame, ks: Sequence[int] = (1,), *, confidence: float = 0.95
) -> pd.DataFrame:
    """Pass@k of a minus that of b: one row per benchmark and k, then the macro average.

    counts_a, counts_b: as in `bootstrap_intervals`, of the same problems; their n may differ. Returns benchmark, k, a,
    b, difference, low, high, p_value, standard_error, better, worse (problems on which a is ahead or behind), problems.
    NaN where k exceeds the n of any problem of either, and for the errors of a single problem. Where no two problems
    differ in their difference (all zero, mostly) there is no spread to test: p_value is that of flipped signs (1 for a
    difference of 0), and the interval allows for the share of problems, z^2 / (problems + z^2), that may still go
    unseen.
    Raises ParameterError for bad counts, and where the two hold different problems.
    """
    from scipy.special import ndtri, stdtr, stdtrit

    if not 0 < confidence < 1:
        raise ParameterError(f"confidence must be between 0 and 1, not {confidence}")
    k = _checked_ks(ks)
    for counts in (counts_a, counts_b):
        list(_each_benchmark(counts))  # checks it
    both = counts_a[list(COUNT_COLUMNS)].merge(
        counts_b[list(COUNT_COLUMNS)], on=["benchmark", "problem"], how="outer", suffixes=("_a", "_b"), indicator=True
    )
    alone = both[both["_merge"] != "both"]
    if len(alone):
        row = alone.iloc[0]
        raise ParameterError(
            f"counts_a and counts_b must hold the same problems, and {len(alone)} are in one alone (such as "
            f"{row['problem']!r} of {row['benchmark']!r})."
        )
    seen = ndtri((1 + confidence) / 2) ** 2
    parts = [_Difference.of(name, rows, k, seen) for name, rows in both.groupby("benchmark", sort=False)]
    names = counts_a["benchmark"].unique().tolist()
    parts.sort(key=lambda part: names.index(part.name))
    frames = []
    for part in [*parts, _Difference.average(parts)]:
        difference, error = part.a - part.b, np.sqrt(part.variance)
        tested = ~(error <= ROUNDING)  # equal differences, up to rounding, have no spread to test
        with np.errstate(invalid="ignore", divide="ignore"):
            half = np.where(tested, stdtrit(part.freedom, (1 + confidence) / 2) * error, part.unseen)
            p_value = 2 * stdtr(part.freedom, -np.abs(difference / error))
        for column in np.flatnonzero(~tested):
            p_value[column] = _flipped([(each.a[column] - each.b[column], each.problems) for each in part.parts])
        columns = {
            "benchmark": part.name,
            "k": k,
            "a": part.a,
            "b": part.b,
            "difference": difference,
            "low": np.clip(difference - half, -1, 1),
            "high": np.clip(difference + half, -1, 1),
            "p_value": p_value,
            "standard_error": error,
            "better": part.better,
            "worse": part.worse,
            "problems": part.problems,
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


@dataclass(frozen=True)
class _Difference:
    """Two models on one benchmark, or on the average of several; arrays are (k,)."""

    name: str
    a: Array
    b: Array
    variance: Array  # of the mean difference
    freedom: Array
    unseen: Array  # half an interval where nothing differs
    better: NDArray[np.int64]
    worse: NDArray[np.int64]
    problems: int
    averaged: tuple[_Difference, ...] = ()

    @property
    def parts(self) -> tuple[_Difference, ...]:
        """The benchmarks that it is about."""
        return self.averaged or (self,)

    @classmethod
    def of(cls, name: str, rows: pd.DataFrame, ks: NDArray[np.int64], seen: float) -> _Difference:
        a, b = (pass_at_k(rows[f"n_{model}"], rows[f"correct_{model}"], ks) for model in "ab")
        d, m = a - b, len(rows)
        variance = d.var(axis=0, ddof=1) / m if m > 1 else np.full(ks.size, np.nan)
        freedom, unseen = np.full(ks.size, max(m - 1.0, 1.0)), np.full(ks.size, seen / (m + seen))
        counts = (d > ROUNDING).sum(axis=0), (d < -ROUNDING).sum(axis=0)
        return cls(name, a.mean(axis=0), b.mean(axis=0), variance, freedom, unseen, *counts, m)

    @classmethod
    def average(cls, parts: Sequence[_Difference]) -> _Difference:
        count = len(parts)
        variances = np.array([part.variance for part in parts]) / count**2
        variance = variances.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            freedom = variance**2 / (variances**2 / np.array([part.freedom for part in parts])).sum(axis=0)
        return cls(
            MACRO,
            np.mean([part.a for part in parts], axis=0),
            np.mean([part.b for part in parts], axis=0),
            variance,
            freedom,
            np.sqrt(np.sum([part.unseen**2 for part in parts], axis=0)) / count,
            np.sum([part.better for part in parts], axis=0),
            np.sum([part.worse for part in parts], axis=0),
            sum(part.problems for part in parts),
            tuple(parts),
        )


def _flipped(benchmarks: Sequence[tuple[float, int]]) -> float:
    """Two-sided p-value of a mean of benchmarks, each (the difference on all of its problems, problems).

    If the models were alike, each problem's difference could as well have had the other sign.
    """
    differing = [(difference, problems) for difference, problems in benchmarks if abs(difference) > ROUNDING]
    if len({difference > 0 for difference, _ in differing}) < 2:  # only all signs, or none, flipped come so far
        return min(1.0, 2.0 ** (1 - sum(problems for _, problems in differing)))
    observed = abs(sum(difference for difference, _ in differing))
    rng = np.random.default_rng(0)
    flips = sum(d * (2 * rng.binomial(problems, 0.5, FLIPS) / problems - 1) for d, problems in differing)
    return float((1 + (np.abs(flips) >= observed - ROUNDING).sum()) / (1 + FLIPS))
