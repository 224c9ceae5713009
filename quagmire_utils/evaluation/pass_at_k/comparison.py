"""Two models on the same problems: the difference of their Pass@k, with an interval and a p-value.

    compare(counts_after, counts_before, ks=[1, 64])

Both models answered the same problems, so the difference on each problem is what counts. Its spread is much smaller
than that of either score; overlapping intervals of the two scores decide nothing. Interval and p-value are those of the
paired t-test over problems: do the models differ on problems of this kind? The sampling of answers is included, because
it adds to the spread of the differences. In the macro average each benchmark weighs the same, with Satterthwaite's
degrees of freedom. The 95 % interval excludes 0 exactly where p < 0.05, with one exception: if the difference is the
same on all problems (20 of 20 against 0 of 20), a t-test has no spread, and the p-value is that of the permutation test
that flips the signs of the differences. The tests measure the size and the power of the test by simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.evaluation.pass_at_k.averages import MACRO, each_benchmark
from quagmire_utils.evaluation.pass_at_k.bootstrap import Array, check_confidence, mean_of_independent
from quagmire_utils.evaluation.pass_at_k.estimator import Counts, checked_ks, pass_at_k

ROUNDING = 1e-12  # Pass@k is exact to about 1e-15
FLIPS = 100_000  # random sign flips, where the permutation test has no closed form


def compare(
    counts_a: pd.DataFrame, counts_b: pd.DataFrame, ks: Sequence[int] = (1,), *, confidence: float = 0.95
) -> pd.DataFrame:
    """Return Pass@k of a minus that of b: one row per benchmark and k, then the macro average.

    counts_a, counts_b: as in `bootstrap_intervals`, of the same problems; their n may differ. Columns: benchmark, k, a,
    b, difference, low, high, p_value, standard_error, better, worse (problems on which a is ahead or behind), problems.
    NaN where k exceeds the n of any problem of either, and for the errors of a single problem. If the difference is the
    same on all problems (mostly 0), p_value is that of flipped signs (1 for a difference of 0), and half the interval
    is z^2 / (problems + z^2), the share of problems that may differ without having been seen. Raise ParameterError for
    bad counts, and if the two hold different problems.
    """
    from scipy.special import ndtri, stdtr, stdtrit

    check_confidence(confidence)
    k = checked_ks(ks)
    for counts in (counts_a, counts_b):
        list(each_benchmark(counts))  # checks it
    keys, columns = ["benchmark", "problem"], ["benchmark", "problem", "n", "correct"]
    both = counts_a[columns].merge(counts_b[columns], on=keys, how="outer", suffixes=("_a", "_b"), indicator=True)
    alone = both[both["_merge"] != "both"]
    if len(alone):
        example = " ".join(map(str, alone.iloc[0][keys]))
        reason = f"it must hold the problems of counts_a; {len(alone)} are in only one of them (such as {example})"
        raise ParameterError("counts_b", reason=reason)
    seen = ndtri((1 + confidence) / 2) ** 2
    parts = [_Difference.of(name, rows, k, seen) for name, rows in both.groupby("benchmark", sort=False)]
    names = counts_a["benchmark"].unique().tolist()
    parts.sort(key=lambda part: names.index(part.name))
    frames = []
    for part in [*parts, _Difference.average(parts)]:
        difference, error = part.a - part.b, np.sqrt(part.variance)
        tested = ~(error <= ROUNDING)  # no spread to test if all differences are equal
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
    unseen: Array  # half the interval where nothing differs
    better: Counts
    worse: Counts
    problems: int
    averaged: tuple[_Difference, ...] = ()

    @property
    def parts(self) -> tuple[_Difference, ...]:
        """The benchmarks that it averages."""
        return self.averaged or (self,)

    @classmethod
    def of(cls, name: str, rows: pd.DataFrame, ks: Counts, seen: float) -> _Difference:
        a, b = (pass_at_k(rows[f"n_{model}"], rows[f"correct_{model}"], ks) for model in "ab")
        d, m = a - b, len(rows)
        variance = d.var(axis=0, ddof=1) / m if m > 1 else np.full(ks.size, np.nan)
        freedom, unseen = np.full(ks.size, max(m - 1.0, 1.0)), np.full(ks.size, seen / (m + seen))
        counts = (d > ROUNDING).sum(axis=0), (d < -ROUNDING).sum(axis=0)
        return cls(name, a.mean(axis=0), b.mean(axis=0), variance, freedom, unseen, *counts, m)

    @classmethod
    def average(cls, parts: Sequence[_Difference]) -> _Difference:
        freedoms = np.array([part.freedom for part in parts])
        variance, freedom = mean_of_independent(np.array([part.variance for part in parts]), freedoms)
        return cls(
            MACRO,
            np.mean([part.a for part in parts], axis=0),
            np.mean([part.b for part in parts], axis=0),
            variance,
            freedom,
            np.sqrt(np.sum([part.unseen**2 for part in parts], axis=0)) / len(parts),
            np.sum([part.better for part in parts], axis=0),
            np.sum([part.worse for part in parts], axis=0),
            sum(part.problems for part in parts),
            tuple(parts),
        )


def _flipped(benchmarks: Sequence[tuple[float, int]]) -> float:
    """Return the two-sided p-value of a mean of benchmarks, each given as (difference on every problem, problems).

    If the models were equal, each problem's difference could as well have the other sign.
    """
    differing = [(difference, problems) for difference, problems in benchmarks if abs(difference) > ROUNDING]
    if len({difference > 0 for difference, _ in differing}) < 2:  # only all flips or none reach it
        return min(1.0, 2.0 ** (1 - sum(problems for _, problems in differing)))
    observed = abs(sum(difference for difference, _ in differing))
    rng = np.random.default_rng(0)
    flips = sum(d * (2 * rng.binomial(problems, 0.5, FLIPS) / problems - 1) for d, problems in differing)
    return float((1 + (np.abs(flips) >= observed - ROUNDING).sum()) / (1 + FLIPS))
