"""How reliable a model is: how many of k answers are right, exactly, for the mean problem and the worst group.

    group_reliability(counts, ks=[4, 16], threshold=0.75)       # counts: benchmark, problem, n, correct

Of a problem's n answers c are right, and k of them are drawn without replacement. With j of the k right, which has the
chance C(c, j) C(n-c, k-j) / C(n, k):

| measure | counts if | also known as |
| --- | --- | --- |
| Pass@k | j >= 1 | `pass_at_k`, the paper's Eq. 1 |
| G-Pass@k at threshold t | j >= t k | `g_pass_at_k` (2412.13147); t = 1/k is Pass@k, t = 1 is pass^k |
| pass^k | j = k | `pass_hat_k`, all k right (tau-bench, 2406.12045) |
| maj@k | the right answer gets most votes | `maj_at_k`, which needs the wrong answers too |

For one problem pass^k <= G-Pass@k <= Pass@k. All are unbiased for k <= n, and NaN for k > n.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.records import check_columns
from quagmire_utils.evaluation.pass_at_k.averages import each_benchmark
from quagmire_utils.evaluation.pass_at_k.bootstrap import UPPER, mean_and_error, wilson_rows
from quagmire_utils.evaluation.pass_at_k.estimator import checked_counts, checked_ks, pass_at_k
from quagmire_utils.evaluation.pass_at_k.majority import problem_maj_at_k

ALL, WORST = "all problems", "worst group"


def pass_hat_k(num_samples: ArrayLike, num_correct: ArrayLike, k: ArrayLike) -> NDArray[np.float64]:
    """Return pass^k, the chance that k answers are all right: arguments, shapes and errors as `pass_at_k`."""
    samples, correct = checked_counts(num_samples, num_correct)
    return 1 - pass_at_k(samples, samples - correct, k)


def g_pass_at_k(num_samples: ArrayLike, num_correct: ArrayLike, k: ArrayLike, threshold: float) -> NDArray[np.float64]:
    """Return G-Pass@k, the chance that at least threshold * k of k answers are right; shapes as `pass_at_k`.

    threshold: above 0, at most 1. Raise ParameterError as `pass_at_k` does, and for another threshold.
    """
    from scipy.stats import hypergeom

    if not 0 < threshold <= 1:
        raise ParameterError("threshold", threshold, "above 0 and at most 1")
    samples, correct = checked_counts(num_samples, num_correct)
    ks = checked_ks(k)
    needed = np.ceil(threshold * ks - 1e-9)  # 0.7 * 10 is 7 right answers, not 8
    n, c = samples[..., None], correct[..., None]
    values = np.where(ks <= n, hypergeom.sf(needed - 1, n, c, np.minimum(ks, n)), np.nan)
    return values.reshape(samples.shape + np.shape(k))[()]


def group_reliability(
    counts: pd.DataFrame,
    ks: Sequence[int],
    threshold: float = 0.75,
    group: str = "benchmark",
    samples: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return Pass@k, G-Pass@k and pass^k of each group, of all problems and of the worst group, with 95 % intervals.

    counts: as in `benchmark_pass_at_k`; group: the column that divides the problems; samples: as in
    `benchmark_maj_at_k`, to add maj@k. One row per group, measure and k: group, measure, k, value, low, high,
    standard_error, problems. The worst group has the lowest value; its interval is that of the lowest of all groups,
    wider because any of them may be it (Bonferroni).
    """
    check_columns(counts, [group], "counts")
    list(each_benchmark(counts))  # checks it
    k = checked_ks(ks)
    measures = {
        "Pass@k": pass_at_k(counts["n"], counts["correct"], k),
        f"G-Pass@k at {threshold:g}": g_pass_at_k(counts["n"], counts["correct"], k, threshold),
        "pass^k": pass_hat_k(counts["n"], counts["correct"], k),
    }
    if samples is not None:
        votes = problem_maj_at_k(samples, k)
        measures["maj@k"] = votes.reindex(pd.MultiIndex.from_frame(counts[["benchmark", "problem"]])).to_numpy()
    members = counts.groupby(group, sort=False, observed=True).indices
    frames = []
    for measure, scores in measures.items():
        parts = [(name, *mean_and_error(scores[rows])) for name, rows in members.items()]
        table = wilson_rows([*parts, (ALL, *mean_and_error(scores))], k, "group")
        each = wilson_rows(parts, k, "group", 1 - (1 - UPPER) / len(parts))  # one or more of them misses in 5 %
        low, high = (each[end].to_numpy().reshape(-1, k.size).min(axis=0) for end in ("low", "high"))
        lowest = np.array([mean for _, mean, _, _ in parts]).argmin(axis=0) * k.size + np.arange(k.size)
        worst = table.iloc[lowest].assign(group=WORST, low=low, high=high)
        frames.append(pd.concat([table, worst]).assign(measure=measure))
    columns = ["group", "measure", "k", "value", "low", "high", "standard_error", "problems"]
    return pd.concat(frames, ignore_index=True)[columns]
