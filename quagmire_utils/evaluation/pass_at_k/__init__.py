"""Pass@k and maj@k for every k at once, their intervals, and the comparison of two models.

Section 3.2, Eq. 1 of the paper: of n answers to a problem, c are correct. The chance that k of them, drawn without
replacement, contain at least one correct answer is 1 - C(n-c, k) / C(n, k). Section 4.1 averages it over the problems
of a benchmark and then over the seven benchmarks (Pass@1 from 64 answers, Pass@64 from 256).

    pass_at_k([256, 256], [0, 3], [1, 64])        # (problems, k)
    mean_pass_at_k(num_samples, num_correct)      # mean over problems, every k up to the smallest n
    benchmark_average(counts, ks=[1, 64])         # counts: benchmark, problem, n, correct
    bootstrap_intervals(counts, ks=[1, 64])       # the same with 95 % intervals, and for each benchmark
    compare(counts_a, counts_b, ks=[1, 64])       # difference of two models on the same problems
    benchmark_maj_at_k(samples, ks=[1, 8])        # samples: benchmark, problem, verdict, extracted
    group_reliability(counts, ks=[1, 8])          # Pass@k, G-Pass@k, pass^k: all problems and the worst group
    extrapolate(num_samples, num_correct, 256)    # value, low, high of the mean for k beyond n: a forecast

For k > n all but `extrapolate` give NaN: n answers give no unbiased estimate for more than n of them. Needs numpy,
pandas and scipy.
"""

from quagmire_utils.evaluation.pass_at_k.averages import (
    MACRO,
    benchmark_average,
    benchmark_pass_at_k,
    checkpoint_scores,
)  # fmt: skip
from quagmire_utils.evaluation.pass_at_k.estimator import mean_pass_at_k, pass_at_k
from quagmire_utils.evaluation.pass_at_k.extrapolation import (
    Extrapolation,
    benchmark_extrapolation,
    check_reach,
    extrapolate,
)  # fmt: skip
from quagmire_utils.evaluation.pass_at_k.intervals import bootstrap_intervals, compare
from quagmire_utils.evaluation.pass_at_k.reliability import (
    benchmark_maj_at_k,
    g_pass_at_k,
    group_reliability,
    maj_at_k,
    pass_hat_k,
)  # fmt: skip

__all__ = [
    "MACRO", "Extrapolation", "benchmark_average", "benchmark_extrapolation", "benchmark_maj_at_k",
    "benchmark_pass_at_k", "bootstrap_intervals", "check_reach", "checkpoint_scores", "compare", "extrapolate",
    "g_pass_at_k", "group_reliability", "maj_at_k", "mean_pass_at_k", "pass_at_k", "pass_hat_k",
]  # fmt: skip
