"""maj@k: the chance that a vote of k answers is right. Exact.

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
from quagmire_utils.evaluation.pass_at_k.averages import MACRO
from quagmire_utils.evaluation.pass_at_k.bootstrap import mean_and_error, wilson_rows
from quagmire_utils.evaluation.pass_at_k.estimator import checked_ks, integers

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
