"""maj@k: how often the most frequent of k answers is right. Exact, for every k at once.

    maj_at_k(5, [3, 2], 6, [1, 4, 16])           # 5 correct, two wrong answers given 3 and 2 times, 6 without an answer
    benchmark_maj_at_k(samples, ks=[1, 8, 64])   # samples: benchmark, problem, verdict, extracted (a store's columns)

Of a problem's n responses, k are drawn without replacement and vote with their extracted answers. Responses without
one abstain; if all k abstain, nobody wins and the vote is lost. Answers that share the first place win with equal
chance, so two right votes against two equal wrong ones count one half. All correct answers are one candidate, however
they are spelt. Wrong ones are the same candidate where the extracted texts are equal but for white space: 1/2 and 0.5,
both wrong, split their vote, which makes maj@k a little too high where a model spells the same error in several ways.

How it is computed. The right answer gets x votes; a wrong one that was given b times gets y, in C(b, y) ways. The
product over wrong answers of the polynomials sum over y < x of C(b, y) z^y, plus s C(b, x) z^x, holds in front of z^j
the ways in which j wrong votes stay below x, with a factor s for each tie. A right answer in a tie with t others wins
with chance 1/(t+1), the integral of s^t from 0 to 1, which Gauss-Legendre nodes give exactly. All terms are positive,
so nothing cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.evaluation.pass_at_k.bootstrap import MACRO, wilson
from quagmire_utils.evaluation.pass_at_k.estimator import _checked_ks, _integers, _ks

MAX_VOTES = 1000  # beyond, 2^-n leaves the range of a double
VOTE_COLUMNS = ("benchmark", "problem", "verdict", "extracted")


def maj_at_k(num_correct: int, wrong: Sequence[int], abstained: int, k: ArrayLike) -> NDArray[np.float64]:
    """Chance that k of a problem's answers elect the right one, for one k or several: () or (k,), NaN where k > n.

    num_correct: right answers; wrong: how often each distinct wrong answer was given; abstained: responses without an
    answer. n is the sum of all. Raises ParameterError for negative or broken numbers, k < 1, and n above 1000.
    """
    numbers = _integers("num_correct, wrong and abstained", [num_correct, abstained, *wrong])
    if (numbers < 0).any():
        raise ParameterError(f"num_correct, wrong and abstained must not be negative, but hold {numbers.min()}.")
    n = int(numbers.sum())
    if n > MAX_VOTES:
        raise ParameterError(f"maj@k is computed for at most {MAX_VOTES} answers a problem, and there are {n}.")
    ks = _ks(k)
    every = _every_k(int(numbers[0]), tuple(np.sort(numbers[2:])[::-1].tolist()), int(numbers[1]))
    return np.where(ks <= n, every[np.minimum(ks, n)], np.nan)[()]


def benchmark_maj_at_k(samples: pd.DataFrame, ks: Sequence[int], *, confidence: float = 0.95) -> pd.DataFrame:
    """maj@k of each benchmark and their macro average, with Wilson's interval over problems: one row per k.

    samples: one row per response, columns benchmark, problem, verdict (rows without one are left out), extracted.
    Returns benchmark (in order of appearance, "macro average" last), k, maj_at_k, low, high, standard_error, problems.
    NaN where k exceeds the answers to any problem.
    """
    from scipy.special import stdtrit

    missing = [column for column in VOTE_COLUMNS if column not in samples.columns]
    if missing:
        raise ParameterError(f"samples lacks the column(s) {', '.join(missing)}.")
    k = _checked_ks(ks)
    graded = samples[samples["verdict"].notna()]
    if graded.empty:
        raise ParameterError("samples has no graded rows, so there is nothing to vote on.")
    codes, spelt = pd.factorize(graded["extracted"].fillna("").astype(str))  # most answers were given many times
    answer = pd.Series(spelt, dtype=object).map(lambda text: " ".join(text.split())).to_numpy()[codes]
    # The verdict tells a right 1/2 from a wrong one, should a problem have changed its gold in between.
    right = graded["verdict"].eq("correct").to_numpy()
    silent = ~right & (answer == "")
    keys = graded[["benchmark", "problem"]].assign(answer=answer)
    sums = keys[["benchmark", "problem"]].assign(right=right, silent=silent)
    sums = sums.groupby(["benchmark", "problem"], sort=False, observed=True).sum()
    wrong = keys[~right & ~silent].groupby(["benchmark", "problem", "answer"], sort=False, observed=True).size()
    votes: dict[tuple[object, object], list[int]] = {}
    for (benchmark, problem, _), count in wrong.items():
        votes.setdefault((benchmark, problem), []).append(int(count))
    values: dict[object, list[NDArray[np.float64]]] = {}
    for (benchmark, problem), correct, quiet in sums.itertuples(name=None):
        mine = votes.get((benchmark, problem), [])
        values.setdefault(benchmark, []).append(maj_at_k(int(correct), mine, int(quiet), k))
    parts = []
    for name, each in values.items():
        table = np.array(each)
        variance = table.var(axis=0, ddof=1) / len(table) if len(table) > 1 else np.full(k.size, np.nan)
        parts.append((name, table.mean(axis=0), variance, len(table)))
    means, variances = np.array([part[1] for part in parts]), np.array([part[2] for part in parts])
    problems = sum(part[3] for part in parts)
    parts.append((MACRO, means.mean(axis=0), variances.sum(axis=0) / len(parts) ** 2, problems))
    frames = []
    for name, mean, variance, count in parts:
        low, high = wilson(mean, variance, count, stdtrit(max(count - 1, 1), (1 + confidence) / 2), most=count)
        unknown = np.isnan(variance)
        low[unknown], high[unknown] = np.nan, np.nan
        frames.append(
            pd.DataFrame(
                {
                    "benchmark": name,
                    "k": k,
                    "maj_at_k": mean,
                    "low": low,
                    "high": high,
                    "standard_error": np.sqrt(variance),
                    "problems": count,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


@lru_cache(maxsize=4096)
def _every_k(correct: int, wrong: tuple[int, ...], abstained: int) -> NDArray[np.float64]:
    """maj@k for k = 0 .. n. Every factor C(b, y) is divided by 2^b, so that no product overflows."""
    n = correct + sum(wrong) + abstained
    won = np.zeros(n + 1)
    most = min(correct, max(wrong, default=0))
    for x in range(1, most + 1):
        rivals = [b for b in wrong if b >= x]  # the others can neither win nor tie: any number of their votes will do
        nodes, weights = _nodes(min(len(rivals), (n - x) // x) // 2 + 1)
        ways = np.tile(_half_binomial(n - correct - sum(rivals)), (nodes.size, 1))
        for b in rivals:
            factor = np.tile(_half_binomial(b)[: x + 1], (nodes.size, 1))
            factor[:, x] *= nodes
            longer = np.zeros((nodes.size, ways.shape[1] + x))
            for y in range(x + 1):
                longer[:, y : y + ways.shape[1]] += factor[:, y, None] * ways
            ways = longer
        won[x : x + ways.shape[1]] += _half_binomial(correct)[x] * (weights @ ways)
    unrivalled = _half_binomial(correct)[most + 1 :]  # more votes than any wrong answer was ever given
    if unrivalled.size:
        won[most + 1 :] += np.convolve(unrivalled, _half_binomial(n - correct))
    return np.clip(won / _half_binomial(n), 0.0, 1.0)


@lru_cache(maxsize=1024)
def _half_binomial(b: int) -> NDArray[np.float64]:
    """C(b, y) / 2^b for y = 0 .. b."""
    from scipy.stats import binom

    return binom.pmf(np.arange(b + 1), b, 0.5)


@lru_cache(maxsize=512)
def _nodes(count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gauss-Legendre nodes and weights on [0, 1]: exact for polynomials up to degree 2 * count - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, weights / 2
