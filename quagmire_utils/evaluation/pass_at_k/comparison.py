"""Two models on the same problems: the difference of their Pass@k, with an interval and a p-value.

    compare(counts_after, counts_before, ks=[1, 64])

Both models answered the same problems, so the difference on each problem is what counts. Its spread is much smaller
than that of either score; overlapping intervals of the two scores decide nothing. Interval and p-value are those of the
paired t-test over problems: do the models differ on problems of this kind? The sampling of answers is included, because
it adds to the spread of the differences. In the macro average each benchmark weighs the same, with Satterthwaite's
degrees of freedom. The 95 % interval excludes 0 exactly where p < 0.05, with one exception: if the difference is the
same on all problems (20 of 20 against 0 of 20), a t-test has no spread, and the p-value is that of the sign test. The
tests measure the size and the power of the test by simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.evaluation.pass_at_k.averages import MACRO, each_benchmark
from quagmire_utils.evaluation.pass_at_k.bootstrap import UPPER, mean_of_independent
from quagmire_utils.evaluation.pass_at_k.estimator import Counts, checked_ks, pass_at_k

ROUNDING = 1e-12  # Pass@k is exact to about 1e-15


def compare(counts_a: pd.DataFrame, counts_b: pd.DataFrame, ks: Sequence[int] = (1,)) -> pd.DataFrame:
    """Return Pass@k of a minus that of b: one row per benchmark and k, then the macro average.

    counts_a, counts_b: as in `bootstrap_intervals`, of the same problems; their n may differ. Columns: benchmark, k, a,
    b, difference, low, high, p_value, standard_error, better, worse (problems on which a is ahead or behind), problems.
    NaN where k exceeds the n of any problem of either, and for the errors of a single problem. If the difference is the
    same on all problems (mostly 0), p_value is that of the sign test (1 for a difference of 0; NaN in a macro average
    of benchmarks that differ by constants of both signs), and half the interval
    is z^2 / (problems + z^2), the share of problems that may differ without having been seen. Raise ParameterError for
    bad counts, and if the two hold different problems.
    """
    from scipy.special import ndtri, stdtr, stdtrit

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
    seen = ndtri(UPPER) ** 2
    names = counts_a["benchmark"].unique().tolist()
    each = [_difference(both[both["benchmark"] == name], k, seen) for name in names]
    frames = []
    alone = [(name, one, [one]) for name, one in zip(names, each, strict=True)]
    for name, part, parts in [*alone, (MACRO, _mean(each), each)]:
        difference, error = part["a"] - part["b"], np.sqrt(part["variance"])
        tested = ~(error <= ROUNDING)  # no spread to test if all differences are equal
        with np.errstate(invalid="ignore", divide="ignore"):
            half = np.where(tested, stdtrit(part["freedom"], UPPER) * error, part["unseen"])
            p_value = 2 * stdtr(part["freedom"], -np.abs(difference / error))
        for column in np.flatnonzero(~tested):
            p_value[column] = _sign_test([(one["a"][column] - one["b"][column], one["problems"]) for one in parts])
        low, high = np.clip(difference - half, -1, 1), np.clip(difference + half, -1, 1)
        columns = {"benchmark": name, "k": k, "a": part["a"], "b": part["b"], "difference": difference}
        columns |= {"low": low, "high": high, "p_value": p_value, "standard_error": error}
        frames.append(pd.DataFrame(columns | {one: part[one] for one in ("better", "worse", "problems")}))
    return pd.concat(frames, ignore_index=True)


def _difference(rows: pd.DataFrame, ks: Counts, seen: float) -> dict[str, Any]:
    """Return two models' scores on one benchmark, and variance, degrees of freedom, ... of their difference: (k,)."""
    a, b = (pass_at_k(rows[f"n_{model}"], rows[f"correct_{model}"], ks) for model in "ab")
    d, m = a - b, len(rows)
    return {
        "a": a.mean(axis=0),
        "b": b.mean(axis=0),
        "variance": d.var(axis=0, ddof=1) / m if m > 1 else np.full(ks.size, np.nan),
        "freedom": np.full(ks.size, max(m - 1.0, 1.0)),
        "unseen": np.full(ks.size, seen / (m + seen)),  # half the interval where nothing differs
        "better": (d > ROUNDING).sum(axis=0),
        "worse": (d < -ROUNDING).sum(axis=0),
        "problems": m,
    }


def _mean(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the macro average of several benchmarks' `_difference`."""
    part = {name: np.array([one[name] for one in each]) for name in each[0]}
    mean = {name: part[name].mean(axis=0) for name in ("a", "b")}
    mean["variance"], mean["freedom"] = mean_of_independent(part["variance"], part["freedom"])
    mean["unseen"] = np.sqrt((part["unseen"] ** 2).sum(axis=0)) / len(each)
    return mean | {name: part[name].sum(axis=0) for name in ("better", "worse", "problems")}


def _sign_test(benchmarks: Sequence[tuple[float, int]]) -> float:
    """Return the two-sided p-value of a mean of benchmarks, each given as (difference on every problem, problems)."""
    differing = [(difference > 0, problems) for difference, problems in benchmarks if abs(difference) > ROUNDING]
    if len({sign for sign, _ in differing}) > 1:
        return np.nan
    return min(1.0, 2.0 ** (1 - sum(problems for _, problems in differing)))
