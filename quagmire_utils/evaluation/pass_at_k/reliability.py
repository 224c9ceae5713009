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

    maj_at_k(5, [3, 2], 6, [1, 4, 16])           # 5 correct, two wrong answers given 3 and 2 times, 6 without an answer
    benchmark_maj_at_k(samples, ks=[1, 8, 64])   # samples: benchmark, problem, verdict, extracted (a store's columns)

Of a problem's n responses, k are drawn without replacement and vote with their extracted answers. Responses without an
answer abstain; if all k abstain, the vote is lost. Answers tied for first place win with equal chance: two right votes
against two equal wrong ones count one half. All correct answers are one candidate, however they are spelt. Wrong ones
are the same candidate if their texts are equal up to white space. So 1/2 and 0.5, both wrong, split their vote, which
makes maj@k slightly too high if a model spells one error in several ways.

Method: the right answer gets x votes; a wrong answer given b times gets y votes in C(b, y) ways. Take the product over
wrong answers of the polynomials sum over y < x of C(b, y) z^y, plus s C(b, x) z^x. Its coefficient of z^(k-x) counts
the ways in which the wrong votes stay below x, with a factor s per tie. A right answer tied with t others wins with
chance 1/(t+1), the integral of s^t from 0 to 1, which Gauss-Legendre nodes give exactly. All terms are positive, so
nothing cancels. Each C(b, y) is taken times p^y (1-p)^(b-y) with p = k/n, which cancels in the end, so that none leaves
the range of a double however large n is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.records import check_columns
from quagmire_utils.evaluation.pass_at_k.averages import MACRO, each_benchmark
from quagmire_utils.evaluation.pass_at_k.estimator import checked_counts, checked_ks, integers, pass_at_k
from quagmire_utils.evaluation.pass_at_k.intervals import UPPER, mean_and_error, wilson_rows

ALL, WORST = "all problems", "worst group"
_PROBLEM = ["benchmark", "problem"]


def maj_at_k(num_correct: int, wrong: Sequence[int], abstained: int, k: ArrayLike) -> NDArray[np.float64]:
    """Return the chance that k of a problem's answers elect the right one, () or (k,), NaN where k > n.

    num_correct: right answers; wrong: how often each distinct wrong answer was given; abstained: responses without an
    answer. n is the sum of all. Raise ParameterError for negative or fractional numbers and k < 1.
    """
    numbers = integers("num_correct, wrong and abstained", [num_correct, abstained, *wrong])
    votes = int(numbers[0]), tuple(np.sort(numbers[2:])[::-1].tolist()), int(numbers[1])
    values = [_chance(*votes, each) for each in checked_ks(k).tolist()]
    return np.reshape(values, np.shape(k))[()]


def benchmark_maj_at_k(samples: pd.DataFrame, ks: Sequence[int]) -> pd.DataFrame:
    """Return maj@k of each benchmark and their macro average, with Wilson's interval over problems: one row per k.

    samples: one row per response, columns benchmark, problem, verdict (rows without one are left out), extracted.
    Columns of the result: benchmark (in order of appearance, the macro average last), k, maj_at_k, low, high,
    standard_error, problems. NaN where k exceeds the answers to any problem.
    """
    each = problem_maj_at_k(samples, ks).groupby(level="benchmark", sort=False)
    parts = [(name, *mean_and_error(scores.to_numpy())) for name, scores in each]
    _, means, variances, sizes = zip(*parts, strict=True)
    parts.append((MACRO, np.mean(means, axis=0), np.sum(variances, axis=0) / len(parts) ** 2, sum(sizes)))
    return wilson_rows(parts, checked_ks(ks)).rename(columns={"value": "maj_at_k"})


def problem_maj_at_k(samples: pd.DataFrame, ks: Sequence[int]) -> pd.DataFrame:
    """Return maj@k of each problem: one row per (benchmark, problem), one column per k; see `benchmark_maj_at_k`."""
    check_columns(samples, [*_PROBLEM, "verdict", "extracted"], "samples")
    k = checked_ks(ks)
    graded = samples[samples["verdict"].notna()]
    if graded.empty:
        raise ParameterError("samples", reason="no row has a verdict, so there is nothing to vote on")
    votes = _votes(graded)
    index = pd.MultiIndex.from_tuples(votes, names=_PROBLEM)
    return pd.DataFrame([maj_at_k(*each, k) for each in votes.values()], index, k)


def _votes(graded: pd.DataFrame) -> dict[tuple[object, object], tuple[int, list[int], int]]:
    """Return right votes, votes for each wrong answer, and abstentions, by benchmark and problem."""
    codes, spelt = pd.factorize(graded["extracted"].fillna("").astype(str))  # most answers were given many times
    answer = pd.Series(spelt, dtype=object).map(lambda text: " ".join(text.split())).to_numpy()[codes]
    # the verdict separates a right 1/2 from a wrong one, if a problem's gold has changed in between
    right = graded["verdict"].eq("correct").to_numpy()
    abstains = ~right & (answer == "")
    keys = graded[_PROBLEM].assign(answer=answer)
    sums = graded[_PROBLEM].assign(right=right, abstains=abstains)
    sums = sums.groupby(_PROBLEM, sort=False, observed=True).sum()
    counted = keys[~right & ~abstains].groupby([*_PROBLEM, "answer"], sort=False, observed=True).size()
    wrong = counted.groupby(level=_PROBLEM, observed=True).agg(list).to_dict()
    return {
        key: (int(correct), wrong.get(key, []), int(abstained))
        for key, correct, abstained in sums.itertuples(name=None)
    }


@lru_cache(maxsize=16384)
def _chance(correct: int, wrong: tuple[int, ...], abstained: int, k: int) -> float:
    """Return maj@k for one k; NaN where k > n."""
    n = correct + sum(wrong) + abstained
    if k > n:
        return np.nan
    right = _ways(correct, k, n)
    most = max(wrong, default=0)
    won = 0.0
    for x in range(1, min(correct, most, k) + 1):
        rivals = [b for b in wrong if b >= x]  # the others can neither win nor tie
        nodes, weights = _nodes(min(len(rivals), (k - x) // x) // 2 + 1)
        ways = np.zeros((nodes.size, k - x + 1))  # by the votes that are not for the right answer
        others = _ways(n - correct - sum(rivals), k, n)[: k - x + 1]
        ways[:, : len(others)] = others
        for b in rivals:
            factor = np.tile(_ways(b, k, n)[: x + 1], (nodes.size, 1))
            factor[:, x:] *= nodes[:, None]
            longer = np.zeros_like(ways)
            for y in range(min(x, k - x) + 1):
                longer[:, y:] += factor[:, y, None] * ways[:, : k - x + 1 - y]
            ways = longer
        won += right[x] * (weights @ ways[:, k - x])
    rest = _ways(n - correct, k, n)
    alone = np.arange(max(most + 1, k - n + correct), min(correct, k) + 1)  # more than any wrong answer can get
    won += right[alone] @ rest[k - alone]
    return float(np.clip(won / _ways(n, k, n)[k], 0.0, 1.0))


@lru_cache(maxsize=4096)
def _ways(b: int, k: int, n: int) -> NDArray[np.float64]:
    """Return C(b, y) p^y (1-p)^(b-y) with p = k/n for y = 0 .. min(b, k)."""
    from scipy.stats import binom

    return binom.pmf(np.arange(min(b, k) + 1), b, k / n)


@lru_cache(maxsize=512)
def _nodes(count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Gauss-Legendre nodes and weights on [0, 1], exact for polynomials up to degree 2 * count - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, weights / 2


# --- how many of k answers are right ----------------------------------------------------------------------------------


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
