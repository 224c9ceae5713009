"""Stop sampling as soon as the answers decide which model is better, at a guaranteed error rate.

    design = Design(most=64, within=0.02)                       # looks after 2, 4, 8, ..., 64 answers to a problem
    for look in looks(["a", "b"], draw, benchmarks, design):    # draw(name, first, last): correct, tokens
        if look.verdict("a", "b") or look.hopeless:
            break

After each round of answers every pair of models gets a repeated confidence interval (Jennison and Turnbull 1989). All
of a pair's intervals hold the true difference together in 95 % of runs, so a run may stop at any look and for any
reason. Each look spends an equal share of the 5 %. What earlier looks have already spent is computed from the
information that they had (Lan and DeMets 1983). With several candidates the error is shared by the comparisons with the
truly best.

By default a difference is that of problems of this kind, with the paired t-interval of `compare`; every problem gets
equally many answers. With `these_problems` only the noise of sampling counts, and problems and models whose answers
vary most get most of them. A mean over answers is then biased, because the luck of a problem's first answers decides
how many follow. So each round has its own mean, unbiased whatever came before, and rounds weigh as planned. Answers
drawn with the same seeds count as independent, which is on the safe side. The intervals are normal approximations; the
tests measure their error in simulated worlds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.validation import Count, Flag, Integer, Positive, Settings, Share
from quagmire_utils.evaluation.pass_at_k.estimator import Counts, pass_at_k
from quagmire_utils.evaluation.pass_at_k.intervals import ROUNDING, mean_of_independent

Array = NDArray[np.float64]
Draw = Callable[[str, Counts, Counts], tuple[Counts, Counts]]

NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)
LEAST = 2  # answers to a problem at the first look: fewer have no spread
SPREAD = 4  # a problem gets at most so many times the mean number of answers of a round, and at least the mean over it


class Design(Settings):
    """When to look and what to conclude."""

    most: Integer = 64  # answers to a problem, a mean over problems
    k: Count = 1
    within: Share = 0.02  # differences up to this one do not matter
    these_problems: Flag = False  # the guarantee is for exactly these problems, not for problems of this kind
    error: Positive = 0.05

    def _check(self) -> None:
        if self.k > 1 and self.these_problems:
            raise ParameterError("k", self.k, reason="for these problems alone only Pass@1 has a guarantee")
        if self.most < max(LEAST, self.k):
            raise ParameterError("num_samples", self.most, f"at least {max(LEAST, self.k)}")

    @property
    def sizes(self) -> list[int]:
        """Answers to a problem in each round; together they double until they reach `most`."""
        sums = [max(LEAST, self.k)]
        while sums[-1] < self.most:
            sums.append(min(2 * sums[-1], self.most))
        return np.diff(sums, prepend=0).tolist()


@dataclass(frozen=True)
class Difference:
    """A model's Pass@k minus another's, with an interval that holds the truth at all looks together."""

    value: float
    low: float
    high: float
    hopeless: bool  # even the last look would hardly decide

    def __neg__(self) -> Difference:
        return Difference(-self.value, -self.high, -self.low, self.hopeless)


@dataclass(frozen=True)
class Look:
    """What is known after a round."""

    answers: int  # planned to a problem until now
    scores: dict[str, float]  # of the candidates that were still in this round
    left: list[str]  # without those that another one clearly beats, best first
    pairs: dict[tuple[str, str], Difference]
    drawn: dict[str, int]  # answers of each candidate until now
    tokens: dict[str, int]
    within: float

    def lead(self, first: str, second: str) -> Difference:
        """Return the score of the first candidate minus that of the second."""
        return self.pairs[first, second] if (first, second) in self.pairs else -self.pairs[second, first]

    def verdict(self, first: str, second: str) -> str:
        """Return the name of the better one, "equal" for no difference above `within`, or "" while undecided."""
        found = self.lead(first, second)
        if found.low > 0 or found.high < 0:
            return first if found.low > 0 else second
        return "equal" if max(-found.low, found.high) <= self.within else ""

    @property
    def settled(self) -> bool:
        """Whether no other candidate can be better than the first by more than `within`."""
        return all(self.lead(other, self.left[0]).high <= self.within for other in self.left[1:])

    @property
    def hopeless(self) -> bool:
        """Whether more answers to these problems would hardly settle anything."""
        rivals = [self.lead(other, self.left[0]) for other in self.left[1:]]
        unsettled = [found for found in rivals if found.high > self.within] or rivals
        return bool(rivals) and all(found.hopeless for found in unsettled)


class Boundary:
    """Bounds for a Brownian motion that is seen at some times: it leaves them with chance `error` at each look."""

    def __init__(self, error: float) -> None:
        self.error = error
        self._time, self._at, self._mass = 0.0, np.zeros(1), np.ones(1)  # where it is, if it has not left

    def level(self, time: float) -> float:
        """Return the two-sided level at which a fixed-size interval at this look spends `error`."""
        from scipy.optimize import brentq
        from scipy.special import ndtr

        time = max(time, 1.01 * self._time)  # an estimate of information may fall
        root = np.sqrt(time - self._time)

        def leaves(z: float) -> float:
            edge = z * np.sqrt(time)
            return self._mass @ (ndtr((-edge - self._at) / root) + ndtr((self._at - edge) / root)) - self.error

        z = brentq(leaves, 0.0, 40.0)
        edge = z * np.sqrt(time)
        density = np.exp(-(((edge * NODES[:, None] - self._at) / root) ** 2) / 2) / (root * np.sqrt(2 * np.pi))
        self._time, self._at, self._mass = time, edge * NODES, (density @ self._mass) * edge * WEIGHTS
        return float(2 * ndtr(-z))


def looks(names: Sequence[str], draw: Draw, benchmarks: Sequence[str], design: Design) -> Iterator[Look]:
    """Yield what is known after each round, until one candidate is left or all rounds are drawn.

    benchmarks: that of each problem; each weighs the same. draw(name, first, last): how many of the answers first ..
    last - 1 to each problem are correct, and their tokens, (problems,) each; answers count from 0 and are asked in
    order. Candidates that another one clearly beats are not drawn any more. Raise ParameterError for fewer than two
    candidates, and for benchmarks of a single problem without `these_problems`.
    """
    if len(names) < 2:
        raise ParameterError("candidates", list(names), "at least two")
    _, codes = np.unique(np.asarray(benchmarks), return_inverse=True)
    groups = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
    if not design.these_problems and min(map(len, groups)) < 2:
        raise ParameterError("benchmarks", reason="a single problem says nothing about others; use --these-problems")
    weight = 1 / (np.bincount(codes)[codes] * len(groups))
    share = design.error / (len(names) - 1) / len(design.sizes)
    boundaries = {pair: Boundary(share) for pair in combinations(names, 2)}
    n, correct, tokens = (dict.fromkeys(names, np.zeros((0, len(codes)), np.int64)) for _ in range(3))  # (rounds, m)
    left = list(names)
    for number, size in enumerate(design.sizes, 1):
        wanted = dict.fromkeys(left, np.full(len(codes), size))
        if design.these_problems and number > 1:
            wanted = _allot(size, {name: (n[name], correct[name], tokens[name]) for name in left}, weight)
        for name in left:
            first = n[name].sum(axis=0)
            right, length = draw(name, first, first + wanted[name])
            for held, new in ((n, wanted[name]), (correct, right), (tokens, length)):
                held[name] = np.vstack([held[name], new])
        planned = np.array(design.sizes[:number])
        scored = {name: _scores(n[name], correct[name], planned, design.k) for name in left}
        pairs = {}
        for pair in combinations(left, 2):
            pairs[pair] = _difference(*(scored[name] for name in pair), groups, planned, boundaries[pair], design)
        beaten = {b for (a, b), found in pairs.items() if found.low > 0}
        beaten |= {a for (a, b), found in pairs.items() if found.high < 0}
        scores = {name: float(weight @ scored[name][0]) for name in left}
        left = [name for name in left if name not in beaten]
        sums = [{name: int(held[name].sum()) for name in names} for held in (n, tokens)]
        yield Look(int(planned.sum()), scores, sorted(left, key=scores.get, reverse=True), pairs, *sums, design.within)
        if len(left) < 2:
            return


def _scores(n: Counts, correct: Counts, planned: Counts, k: int) -> tuple[Array, Array, int]:
    """Return Pass@k (problems,), its variance by sampling (rounds, problems; NaN for k > 1), and the number of answers.

    n, correct: (rounds, problems). The variance of a problem's score is the sum over the rounds.
    """
    weight = (planned / planned.sum())[:, None]
    score = pass_at_k(n, correct, k)
    noise = score * (1 - score) / (n - 1) if k == 1 else np.full(n.shape, np.nan)
    return (weight * score).sum(axis=0), weight**2 * noise, int(n.sum())


def _difference(
    a: tuple[Array, Array, int],
    b: tuple[Array, Array, int],
    groups: Sequence[Counts],
    planned: Counts,
    boundary: Boundary,
    design: Design,
) -> Difference:
    """Return the difference of two `_scores`; groups: the problems of each benchmark."""
    from scipy.special import ndtri, stdtrit

    d, answers = a[0] - b[0], int(planned.sum())
    sizes = np.array([len(own) for own in groups])
    value = float(np.mean([d[own].mean() for own in groups]))
    noise = [np.vstack([a[1], b[1]])[:, own] / (len(own) * len(groups)) ** 2 for own in groups]
    sampling = sum(float(part.sum()) for part in noise)
    if design.these_problems:
        variance, trials = sampling, np.full(len(groups), min(a[2], b[2]) / len(groups))
        freedom = variance**2 / max(sum(float((part**2).sum()) for part in noise), ROUNDING**4)  # terms that count
        time = answers**2 * variance  # of the sum of all rounds
    else:
        variances = np.array([d[own].var(ddof=1) for own in groups])[:, None] / sizes[:, None]
        variance, freedom = (float(part[0]) for part in mean_of_independent(variances, sizes[:, None] - 1.0))
        trials, time = sizes, 1 / max(variance, ROUNDING**2)
    if variance <= ROUNDING**2:  # nothing differs: as in `compare`, what may differ without having been seen
        seen = ndtri(1 - boundary.error / 2) ** 2
        half = float(np.sqrt(np.sum((seen / (trials + seen)) ** 2))) / len(groups)
    else:
        half = float(stdtrit(freedom, 1 - boundary.level(time) / 2) * np.sqrt(variance))
    hopeless = False
    if design.k == 1:  # what the last look would show, with luck and without any loss for looking before
        last = sampling * answers / design.most
        least = ndtri(1 - design.error / 2) * np.sqrt(max(variance - sampling, 0.0) + last)
        luck = 2 * np.sqrt(max(sampling - last, 0.0))
        hopeless = bool(abs(value) + luck < least and max(abs(value) - luck, 0.0) + least > design.within)
    return Difference(value, max(value - half, -1.0), min(value + half, 1.0), hopeless)


def _allot(size: int, held: dict[str, tuple[Counts, Counts, Counts]], weight: Array) -> dict[str, Counts]:
    """Return how many answers each problem gets in a round of `size` on average.

    A number proportional to the spread of a problem's answers, over the root of their cost, gives the least noise for
    the tokens (Neyman 1934). Powers of two, so that few calls of the engine draw them.
    """
    value = {}
    for name, (n, correct, tokens) in held.items():
        count = n.sum(axis=0)
        share = (correct.sum(axis=0) + 0.5) / (count + 1)  # no problem is taken for certain
        value[name] = weight * np.sqrt(share * (1 - share) * count / np.maximum(tokens.sum(axis=0), 1))
    mean = np.mean(list(value.values()))
    limit = np.log2(SPREAD)
    levels = {name: np.clip(np.round(np.log2(one / mean)), -limit, limit) for name, one in value.items()}
    return {name: np.maximum(size * 2.0**level, LEAST).astype(np.int64) for name, level in levels.items()}
