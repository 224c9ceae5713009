"""How noisy measured scores are, and which true values agree with them.

Scores vary because other answers could have been sampled and because other problems could have been asked. With counts
per problem both parts are estimated. The variance between problems is the total of the two. The sampling part has an
unbiased estimate: (1-p)^a by C(n-c, a) / C(n, a), and the variance of Pass@k from n' answers is a weighted sum of these
for a = k..2k, over the overlaps of two sets of k answers. The rest is the choice of problems, which is correlated
between candidates, as all answer the same problems. Means over problems are taken as normal. Without counts the
standard errors of the table are used, independent between candidates.

The first of many noisy estimates is first in part by luck. `Shrinkage` corrects for this with a hierarchical normal
model (Gelman 2006, Bayesian Analysis 1, 515-534): true values differ from their mean as N(0, tau^2), and tau is learned
from how much more the estimates differ than their noise explains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quagmire_utils.analysis.measurements import comparable_loss
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.evaluation.pass_at_k import pass_at_k

Array = NDArray[np.float64]

GRID = 200  # values of tau
REACH = 100.0  # the grid spans a typical error / REACH to REACH * the spread of the estimates
DECIMALS = 12  # draws are rounded, so that equal estimates stay equal


@dataclass(frozen=True, eq=False)
class ScoreNoise:
    """Estimates of C candidates and the covariance of their errors; in arrays of 2C, pass1 comes before pass_k."""

    scores: Array  # (2, C)
    loss: Array  # (C,), NaN where losses do not compare
    loss_error: Array  # (C,)
    problems: Array  # (2C, 2C), from the choice of problems; without counts, all of the error
    k: int
    answers: Array | None = None  # (C,), answers to a problem; None without counts
    parts: Array | None = None  # (C, k + 3), see `sampling_parts`

    @property
    def fewest(self) -> int | None:
        """Fewest answers to a problem of any candidate; None without counts."""
        return None if self.answers is None else int(self.answers.min())

    def sampling(self, answers: float | None = None) -> Array:
        """Return the covariance of (pass1, pass_k) from sampling, (C, 2, 2), with at least `answers` to each problem.

        answers: None for the present number, infinity for no sampling noise.
        """
        covariance = np.zeros((self.scores.shape[1], 2, 2))
        if self.parts is None or answers == math.inf:
            return covariance
        sizes = self.answers if answers is None else np.maximum(self.answers, answers)
        for n in np.unique(sizes):
            mine = sizes == n
            simple, mixed, tails = self.parts[mine, 0], self.parts[mine, 1], self.parts[mine, 2:]
            covariance[mine, 0, 0] = simple / n
            covariance[mine, 0, 1] = covariance[mine, 1, 0] = mixed * self.k / n
            covariance[mine, 1, 1] = np.maximum(tails @ _overlaps(n, self.k), 0.0)
        return covariance

    def answers_alone(self) -> ScoreNoise:
        """Return the noise of sampling alone: exactly these problems, exact losses."""
        return replace(self, problems=np.zeros_like(self.problems), loss_error=np.zeros_like(self.loss_error))

    def errors(self) -> tuple[Array, Array, Array]:
        """Return standard errors, (C,) each: of pass1, of pass_k, and of pass_k from sampling alone."""
        diagonal, sampling = np.diag(self.problems).reshape(2, -1), self.sampling()
        own = np.sqrt(sampling[:, 1, 1]) if self.fewest else np.full(len(sampling), np.nan)
        return np.sqrt(diagonal[0] + sampling[:, 0, 0]), np.sqrt(diagonal[1] + sampling[:, 1, 1]), own


def score_noise(table: pd.DataFrame, counts: pd.DataFrame | None, k: int) -> ScoreNoise | None:
    """Return the noise of the candidates in `table` from counts, else from its standard errors; None without both.

    With counts, a loss without a standard error is taken as exact.
    """
    names, size = table["candidate"].tolist(), len(table)
    scores, loss = table[["pass1", "pass_k"]].to_numpy(np.float64).T, comparable_loss(table)
    errors = table.reindex(columns=["pass1_se", "pass_k_se", "gen_loss_se"]).to_numpy(np.float64).T
    traces = np.where(np.isnan(loss), 0.0, errors[2])
    if counts is None:
        if np.isnan(errors[:2]).any() or np.isnan(traces).any():
            return None
        return ScoreNoise(scores, loss, traces, np.diag(errors[:2].ravel() ** 2), k)
    total, parts, answers = _counted(counts, names, k)
    noise = ScoreNoise(scores, loss, np.nan_to_num(traces), total, k, answers, parts)
    for one, now in enumerate(noise.sampling()):  # the rest is due to the choice of problems
        total[np.ix_([one, size + one], [one, size + one])] -= now
    values, vectors = np.linalg.eigh((total + total.T) / 2)  # noise alone can make a variance negative
    return replace(noise, problems=(vectors * np.maximum(values, 0.0)) @ vectors.T)


def _counted(counts: pd.DataFrame, names: list[str], k: int) -> tuple[Array, Array, Array]:
    """Return the covariance of all scores (2C, 2C), the sampling parts (C, k + 3) and the answers to a problem (C,)."""
    size, benchmarks = len(names), counts["benchmark"].unique()
    total, parts = np.zeros((2 * size, 2 * size)), np.zeros((size, k + 3))
    answers = counts.groupby("candidate")["n"].min().loc[names].to_numpy(np.float64)
    for benchmark in benchmarks:
        rows = counts[counts["benchmark"] == benchmark].sort_values(["problem", "candidate"])
        table = rows.pivot_table(index="problem", columns="candidate", values=["n", "correct"], aggfunc="sum")
        n, correct = table["n"][names], table["correct"][names]
        if n.isna().any(axis=None):
            lacking = n.columns[n.isna().any()][0]
            raise ParameterError("counts", reason=f"{lacking} lacks problems of {benchmark} that others answered")
        if len(n) < 2:
            raise ParameterError("counts", reason=f"{benchmark} has one problem; errors need at least two")
        n, correct = n.to_numpy(np.int64), correct.to_numpy(np.int64)
        values = pass_at_k(n.ravel(), correct.ravel(), [1, k]).reshape(len(n), size, 2)
        values = np.concatenate([values[..., 0], values[..., 1]], axis=1)
        weight = 1 / (len(benchmarks) * len(n))
        total += np.cov(values.T, ddof=1) * len(n) * weight**2
        for one in range(size):
            parts[one] += weight**2 * sampling_parts(n[:, one], correct[:, one], k)
    return total, parts, answers


def sampling_parts(n: NDArray[np.int64], correct: NDArray[np.int64], k: int) -> Array:
    """Return sums over problems of p(1-p), p(1-p)^k and (1-p)^a for a = k..2k: (k + 3,).

    p is the chance of a correct answer. Unbiased where every problem has 2k answers; otherwise c/n stands for p, which
    makes the noise somewhat too small.
    """
    sizes = np.arange(k, 2 * k + 1)
    if n.min() >= 2 * k:
        fail = 1 - pass_at_k(n, correct, sizes)
        simple = correct * (n - correct) / (n * (n - 1.0))
        mixed = fail[:, 0] - fail[:, 1]
    else:
        p = correct / n
        fail = (1 - p)[:, None] ** sizes
        simple, mixed = p * (1 - p), p * fail[:, 0]
    return np.concatenate([[np.sum(simple), np.sum(mixed)], fail.sum(axis=0)])


def _overlaps(n: float, k: int) -> Array:
    """Return the weight of (1-p)^a, a = k..2k, in the variance of Pass@k from n answers.

    It is the chance that two sets of k of n answers share 2k - a of them, minus one for a = 2k.
    """
    from scipy.stats import hypergeom

    common = hypergeom.pmf(np.arange(k, -1, -1), int(n), k, k)
    common[-1] -= 1.0
    return common


class Shrinkage:
    """Posterior of the true values of one measure. Candidates without an estimate stay NaN.

    tau has a half-Cauchy prior whose scale is the typical standard error of the estimates, and is integrated over:
    candidates that hardly differ are drawn together, those that differ by many errors stay where they are.
    """

    def __init__(self, values: Array, covariance: Array, standard: Array, uniform: Array) -> None:
        """Fit the model to the estimates `values`, (C,), whose noise has this covariance, (C, C).

        standard, uniform: random numbers (draws, C) and (draws,). The same ones give draws that change smoothly with
        the covariance.
        """
        from scipy.linalg import helmert

        self.values, self.known = values, ~np.isnan(values)
        kept = values[self.known]
        self._contrasts = helmert(len(kept)) if len(kept) > 1 else np.zeros((0, len(kept)))  # rows sum to zero
        variance, axes = self._axes(covariance)
        centred = axes @ kept
        self._spread = _spreads(centred, variance, uniform)[:, None]
        self.means = kept.mean() + (self._kept(variance) * centred) @ axes if len(kept) else np.zeros((len(uniform), 0))
        self._prior = self._spread * standard[:, self.known]

    def draws(self, covariance: Array, noise: Array) -> Array:
        """Return draws of the true values, (draws, C), for estimates with this covariance of noise.

        noise: draws of the noise, (draws, C). With less noise than at present the posterior means stay, as what is
        known now is also the best guess of what more data will say, and only their uncertainty shrinks.
        """
        variance, axes = self._axes(covariance)
        true, noise = self._prior @ axes.T, noise[:, self.known] @ axes.T
        drawn = np.full((len(noise), len(self.values)), np.nan)
        drawn[:, self.known] = self.means + (true - self._kept(variance) * (true + noise)) @ axes
        return drawn.round(DECIMALS)

    def _axes(self, covariance: Array) -> tuple[Array, Array]:
        """Return variances and uncorrelated directions, (C - 1, C), of the noise of differences."""
        covariance = covariance[np.ix_(self.known, self.known)]
        variance, vectors = np.linalg.eigh(self._contrasts @ covariance @ self._contrasts.T)
        return np.maximum(variance, 0.0), vectors.T @ self._contrasts

    def _kept(self, variance: Array) -> Array:
        """Return the share of an estimated difference that remains, (draws, C - 1)."""
        return self._spread**2 / (self._spread**2 + variance)


def _spreads(centred: Array, variance: Array, uniform: Array) -> Array:
    """Return draws of tau from its posterior on a grid; centred: independent estimates about zero, (C - 1,)."""
    typical = np.sqrt(variance.mean()) if len(variance) else 0.0
    if typical == 0.0:  # exact values are not drawn together
        return np.ones(len(uniform))
    largest = max(typical, np.sqrt((centred**2).mean()))
    tau = np.geomspace(typical / REACH, largest * REACH, GRID)
    total = tau[:, None] ** 2 + variance
    density = -0.5 * (np.log(total) + centred**2 / total).sum(axis=1)
    density += np.log(tau) - np.log1p((tau / typical) ** 2)  # the grid is even in log tau; half-Cauchy
    cumulative = np.cumsum(np.exp(density - density.max()))
    return tau[np.searchsorted(cumulative, uniform * cumulative[-1])]
