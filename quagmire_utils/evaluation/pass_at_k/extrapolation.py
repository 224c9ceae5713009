"""Pass@k for k beyond the number of answers, with an interval: a forecast, not a measurement.

    extrapolate([32, 32, 32], [0, 1, 9], 256)              # value, low, high of the mean over these problems
    benchmark_extrapolation(counts, ks=[256])              # counts: benchmark, problem, n, correct

The paper ends with the wish for Pass@k at large k from fewer than k answers. Each problem has a chance p of a correct
answer, and Pass@k = 1 - E[(1 - p)^k]. How p is distributed over problems decides what larger k find, and n answers say
little about chances far below 1/n. So the value is the mean of three estimates with different assumptions:

- power law: log(-log Pass@k) is linear in log k (2502.17578);
- smoothed NPMLE: any distribution of p; expectation maximization from a flat start, stopped early;
- posterior: p has a beta distribution (the beta-binomial model, 2510.05197) or normal log-odds, each alone, with a
  share of problems that the model never solves, or with a share of problems of any p. Bayes' rule averages over the
  parameters.

The interval is the union of the 95 % posterior intervals of these six families, so it covers if one of them is right.
Likelihoods do not choose between them: they fit the n answers about equally well and differ in what they say beyond.
Measured on counts of real and micro models, it covers 90 % or more up to k = 16 n, and larger k are refused
(`notebooks/pass_at_k_from_few_samples.ipynb`). In a macro average the ends of the benchmarks' intervals are averaged,
because what a family gets wrong, it gets wrong on every benchmark. The interval can fail where no family is near: if
half of the problems are easy and all others have the same small chance, larger k find more than it says.

Method: p is binned evenly in its log-odds, with a constant density in each bin, so likelihoods are differences of
incomplete beta functions and exact for every n. No constant here was fitted to data.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.evaluation.pass_at_k.averages import MACRO, each_benchmark
from quagmire_utils.evaluation.pass_at_k.estimator import (
    Counts,
    checked_counts,
    checked_ks,
    distinct_pairs,
    mean_pass_at_k,
)

MAX_RATIO = 16  # largest k / n at which the interval's coverage was measured
STEPS = 30  # of expectation maximization; hundreds would give the rough, unsmoothed NPMLE
DIGITS = 1000  # ends are rounded outwards to 0.1 points, so that 0 or 1 is inside where nothing speaks against it

Array = NDArray[np.float64]


class Extrapolation(NamedTuple):
    """Mean Pass@k over the problems and its interval, in [0, 1]: () for a single k, else (k,)."""

    value: Array
    low: Array
    high: Array


def extrapolate(
    num_samples: ArrayLike, num_correct: ArrayLike, k: ArrayLike, confidence: float = 0.95
) -> Extrapolation:
    """Return the mean Pass@k over the given problems, with an interval, for k up to 16 times the smallest n.

    num_samples, num_correct: integers, (problems,); the former may differ between problems. k: an integer or (k,).
    While k is at most the smallest n, the value is the unbiased estimate. Raise ParameterError for bad counts, for a
    confidence outside (0, 1), and for k beyond 16 times the smallest n (or beyond n = 1), naming the n it would take.
    """
    samples, correct = map(np.ravel, checked_counts(num_samples, num_correct))
    if not samples.size:
        raise ParameterError("num_samples", reason="it is empty, so there is no problem to average over")
    methods, low, high = _forecast(samples, correct, checked_ks(k), confidence)
    return Extrapolation(*(np.reshape(each, np.shape(k))[()] for each in (methods["combined"], low, high)))


def benchmark_extrapolation(counts: pd.DataFrame, ks: Sequence[int]) -> pd.DataFrame:
    """Return `extrapolate` of each benchmark and their macro average (last): one row per benchmark and k.

    counts: as in `benchmark_pass_at_k`. Columns: benchmark, k, value, low, high, problems, min_n.
    """
    rows = []
    for benchmark, samples, correct in each_benchmark(counts):
        columns = extrapolate(samples, correct, checked_ks(ks))._asdict()
        frame = pd.DataFrame({"benchmark": benchmark, "k": checked_ks(ks), **columns})
        rows.append(frame.assign(problems=len(samples), min_n=int(samples.min())))
    average = sum(frame[["k", "value", "low", "high"]] for frame in rows) / len(rows)
    average = average.assign(benchmark=MACRO, problems=len(counts), min_n=int(counts["n"].min()))
    return pd.concat([*rows, average.astype({"k": int})], ignore_index=True)


def rehearse(counts: pd.DataFrame, n: int, ks: Sequence[int], draws: int, rng: np.random.Generator) -> pd.DataFrame:
    """Forecast Pass@k from n of the recorded answers, drawn without replacement, beside Pass@k of all of them.

    counts: as in `benchmark_pass_at_k`, with at least n and k answers to each problem. One row per benchmark (and the
    macro average), draw and k: benchmark, draw, n, k, truth, low, high, "combined", and other methods: "hold" keeps
    Pass@n, "Bayes@N" gives each problem a uniform prior of its own.
    """
    k, frames = checked_ks(ks), []
    for benchmark, samples, correct in each_benchmark(counts):
        truth = mean_pass_at_k(samples, correct, k)
        for draw in range(draws):
            few = rng.hypergeometric(correct, samples - correct, n)
            methods, low, high = _forecast(np.full(samples.shape, n), few, k, 0.95)
            keys = {"benchmark": benchmark, "draw": draw, "n": n, "k": k}
            frames.append(pd.DataFrame({**keys, "truth": truth, "low": low, "high": high, **methods}))
    table = pd.concat(frames, ignore_index=True)
    average = table.groupby(["draw", "n", "k"], as_index=False).mean(numeric_only=True)
    return pd.concat([table, average.assign(benchmark=MACRO)], ignore_index=True)


def _forecast(samples: Counts, correct: Counts, ks: Counts, confidence: float) -> tuple[dict[str, Array], Array, Array]:
    """Return mean Pass@k by method, and both ends of the interval of "combined": (k,) each."""
    if not 0 < confidence < 1:
        raise ParameterError("confidence", confidence, "between 0 and 1")
    check_reach(samples, ks)
    pairs, least = _Pairs(samples, correct, ks), samples.min()
    flat = np.diff(_edges())
    never = np.eye(1, flat.size)[0]  # the lowest bin: p below 1.5e-8
    points = [_posterior(pairs, ks, family, other) for family in _families() for other in (None, never, flat)]
    methods = {
        "hold": mean_pass_at_k(samples, correct, np.minimum(ks, least)),
        "Bayes@N": pairs.mean(flat, ks),
        "power law": _power_law(samples, correct, ks),
        "smoothed NPMLE": pairs.mean(_npmle(pairs), ks),
        "beta-binomial": points[0][0] @ points[0][1],
    }
    posterior = np.mean([weight @ mean for weight, mean, _ in points], axis=0)
    value = (methods["power law"] + methods["smoothed NPMLE"] + posterior) / 3
    value = np.where(ks <= least, methods["hold"], np.maximum(value, methods["hold"]))
    low = np.min([_quantile(*branch, (1 - confidence) / 2) for branch in points], axis=0)
    high = np.max([_quantile(*branch, (1 + confidence) / 2) for branch in points], axis=0)
    low = np.minimum(np.floor(low * DIGITS) / DIGITS, value)
    high = np.maximum(np.ceil(high * DIGITS) / DIGITS, value)
    return methods | {"combined": value}, low, high


def check_reach(samples: ArrayLike, k: ArrayLike, parameter: str = "k") -> None:
    """Raise ParameterError, naming the n it would take, if the smallest n is too small to say anything about Pass@k."""
    n, largest = int(np.min(samples)), int(np.max(k))
    reach = MAX_RATIO * n if n > 1 else n  # one answer each does not show how much the chances of problems differ
    if largest > reach:
        needed = max(2, -(-largest // MAX_RATIO))
        allowed = f"at most {reach} with {n} answers to a problem ({largest} takes {needed} answers to each problem)"
        raise ParameterError(parameter, largest, allowed)


class _Pairs:
    """The distinct (n, c), how many problems have each, and the chance to see them and then fail, by bins of p."""

    def __init__(self, samples: Counts, correct: Counts, ks: Counts) -> None:
        self.n, self.correct, _, weight = distinct_pairs(samples, correct)
        self.problems = samples.size
        self.share = weight / self.problems
        self.fail = {int(k): self._fail(int(k)) for k in {0, *ks.tolist(), *(2 * ks).tolist()}}

    def _fail(self, k: int) -> Array:
        """Return the chance of c correct of n and then none of k more, (pairs, bins): a mean over each bin of p."""
        from scipy.special import betainc, betaln, gammaln

        n, c = self.n[:, None].astype(float), self.correct[:, None].astype(float)
        wrong = n - c + k
        log_scale = gammaln(n + 1) - gammaln(c + 1) - gammaln(n - c + 1) + betaln(c + 1, wrong + 1)
        inside = np.diff(betainc(c + 1, wrong + 1, _edges()), axis=1)
        return np.exp(log_scale) * np.maximum(inside, 0) / np.diff(_edges())

    def mean(self, mixing: Array, ks: Counts) -> Array:
        """Return the mean Pass@k of the problems given their counts, (k,), if p has the distribution `mixing`."""
        seen = self.fail[0] @ mixing
        return np.array([1 - self.share @ (self.fail[k] @ mixing / seen) for k in ks.tolist()])


@lru_cache(maxsize=1)
def _edges() -> Array:
    """Return the edges of the bins of p: steps of 0.25 in log-odds, from 1.5e-8 to 1 - 4.5e-5, and 0 and 1."""
    from scipy.special import expit

    return np.concatenate([[0.0], expit(np.arange(-18, 10.01, 0.25)), [1.0]])


@lru_cache(maxsize=1)
def _families() -> tuple[Array, Array]:
    """Return many beta distributions and many normal log-odds, each (parameters, bins); wide, even grids as priors."""
    from scipy.special import betainc, logit, ndtr

    a, b = np.meshgrid(np.geomspace(0.05, 10, 20), np.geomspace(0.05, 3e4, 34))
    middle, spread = np.meshgrid(np.linspace(-14, 8, 34), np.geomspace(0.4, 6, 20))
    beta = betainc(a.reshape(-1, 1), b.reshape(-1, 1), _edges())
    with np.errstate(divide="ignore"):
        normal = ndtr((logit(_edges()) - middle.reshape(-1, 1)) / spread.reshape(-1, 1))
    return np.diff(beta, axis=1), np.diff(normal, axis=1)


def _posterior(pairs: _Pairs, ks: Counts, family: Array, other: Array | None) -> tuple[Array, Array, Array]:
    """Return weight (points,), mean and standard error of Pass@k (points, k).

    A point is a distribution of the family, and a share, a tenth to nine tenths, of problems with the distribution
    `other` instead (bins,); without `other`, the share is 0.
    """
    shares = np.zeros(1) if other is None else np.arange(1, 10) / 10
    other = np.zeros(family.shape[1]) if other is None else other
    seen, aside = pairs.fail[0] @ family.T, pairs.fail[0] @ other
    chances = ((1 - share) * seen + share * aside[:, None] for share in shares)
    log_weight = pairs.problems * np.array([pairs.share @ np.log(np.maximum(chance, 1e-300)) for chance in chances])
    log_weight -= log_weight.max()
    kept = np.argwhere(log_weight > np.log(1e-6))
    weight, share = np.exp(log_weight[tuple(kept.T)]), shares[kept[:, 0], None]
    mixing = ((1 - share) * family[kept[:, 1]] + share * other).T
    seen = pairs.fail[0] @ mixing
    mean, error = np.empty((2, len(kept), ks.size))
    for column, k in enumerate(ks.tolist()):
        fail, twice = pairs.fail[k] @ mixing / seen, pairs.fail[2 * k] @ mixing / seen
        mean[:, column] = 1 - pairs.share @ fail
        error[:, column] = np.sqrt(pairs.share @ np.maximum(twice - fail**2, 0) / pairs.problems)
    return weight / weight.sum(), mean, error


def _npmle(pairs: _Pairs) -> Array:
    """Return the smoothed nonparametric maximum-likelihood distribution of p, (bins,)."""
    likelihood = pairs.fail[0]
    mixing = np.full(likelihood.shape[1], 1 / likelihood.shape[1])
    for _ in range(STEPS):
        mixing = mixing * ((pairs.share / (likelihood @ mixing)) @ likelihood)
    return mixing


def _power_law(samples: Counts, correct: Counts, ks: Counts) -> Array:
    """Return Pass@k by a straight line through log(-log Pass@k) over log k; Pass@n where no line can be drawn."""
    n = int(samples.min())
    known = np.unique(np.linspace(1, n, min(n, 128)).astype(int))
    curve = mean_pass_at_k(samples, correct, known)
    usable = (curve > 0) & (curve < 1)
    if usable.sum() < 2:
        return np.full(ks.size, curve[-1])
    slope, start = np.polyfit(np.log(known[usable]), np.log(-np.log(curve[usable])), 1)
    return np.exp(-np.exp(start + slope * np.log(ks)))


def _quantile(weight: Array, mean: Array, error: Array, level: float) -> Array:
    """Return the quantile of mixtures of normal distributions, (k,), by bisection of [0, 1]."""
    from scipy.special import ndtr

    low, high = np.zeros(mean.shape[1]), np.ones(mean.shape[1])
    for _ in range(20):  # to 1e-6
        middle = (low + high) / 2
        below = weight @ ndtr((middle - mean) / np.maximum(error, 1e-12)) < level
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2
