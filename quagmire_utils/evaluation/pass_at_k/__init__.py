"""What many answers to a problem say: Pass@k for every k at once, maj@k, their intervals, and two models compared.

Section 3.2, Eq. 1 of the paper: of n responses to a problem, c are correct, and the chance that k of them, drawn
without replacement, hold at least one correct one is 1 - C(n-c, k) / C(n, k). Section 4.1 averages it over the problems
of a benchmark and then over the seven benchmarks (Pass@1 from 64 responses, Pass@64 from 256).

    from quagmire_utils.pass_at_k import benchmark_average, bootstrap_intervals, compare, mean_pass_at_k, pass_at_k
    pass_at_k([256, 256], [0, 3], [1, 64])        # (problems, k)
    mean_pass_at_k(num_samples, num_correct)      # every k up to the smallest n
    benchmark_average(counts, ks=[1, 64])         # counts: benchmark, problem, n, correct
    bootstrap_intervals(counts, ks=[1, 64])       # the same with 95 % intervals, and for each benchmark
    compare(counts_a, counts_b, ks=[1, 64])       # difference of two models on the same problems
    benchmark_maj_at_k(samples, ks=[1, 8])        # samples: benchmark, problem, verdict, extracted

Where k > n the value is NaN, never 0 or 1: n responses say nothing unbiased about more than n of them.
"""

from quagmire_utils.evaluation.pass_at_k.bootstrap import MACRO, bootstrap_intervals, score_bounds
from quagmire_utils.evaluation.pass_at_k.comparison import compare
from quagmire_utils.evaluation.pass_at_k.estimator import (
    COUNT_COLUMNS,
    benchmark_average,
    benchmark_pass_at_k,
    mean_pass_at_k,
    pass_at_k,
)
from quagmire_utils.evaluation.pass_at_k.majority import benchmark_maj_at_k, maj_at_k

__all__ = [
    "COUNT_COLUMNS",
    "MACRO",
    "benchmark_average",
    "benchmark_maj_at_k",
    "benchmark_pass_at_k",
    "bootstrap_intervals",
    "compare",
    "maj_at_k",
    "mean_pass_at_k",
    "pass_at_k",
    "score_bounds",
]
