"""True values of candidates that were measured with noise: a hierarchical normal model, so that chances come true.

Taken as they are, the estimates of many candidates spread more than the truth, and the first of them is first in part
by luck. Here the true values differ from their mean as N(0, tau^2), and tau, their spread, is learned from how much
more the estimates differ than their noise explains. It has a half-Cauchy prior whose scale is the typical standard
error of the estimates, and is integrated over: candidates that hardly differ are drawn together, such that differ by
many errors stay where they are. (Gelman 2006, Bayesian Analysis 1, 515-534, for prior and model.)

    model = Shrinkage(values, covariance, standard, uniform)
    model.draws(covariance, noise)             # true values, given the estimates
    model.draws(less, noise)                   # and if they had less noise: about the same means, with less spread

The second line is a repeat in its median: what is known of the truth now is also the best guess of what more answers
will say of it, so the posterior means stay where they are, on average, and only their uncertainty shrinks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

GRID = 200  # values of tau
DECIMALS = 12  # equal estimates stay equal: no rounding error makes one of them the better
REACH = 100.0  # the grid goes from a typical error over this to this many times the spread of the estimates


class Shrinkage:
    """Posterior of the true values of one measure; of those that have an estimate, the others stay NaN."""

    def __init__(self, values: Array, covariance: Array, standard: Array, uniform: Array) -> None:
        """values: estimates (C,), NaN where there is none; covariance: of their noise (C, C). standard, uniform: random
        numbers (draws, C) and (draws,); the same ones give draws that change smoothly with the covariance."""
        from scipy.linalg import helmert

        self.values, self.known = values, ~np.isnan(values)
        kept = values[self.known]
        self._contrasts = helmert(len(kept)) if len(kept) > 1 else np.zeros((0, len(kept)))  # rows sum to zero
        variance, axes = self._axes(covariance)
        centred = axes @ kept
        self._spread = _spreads(centred, variance, uniform)[:, None]
        self.means = kept.mean() + (self._kept(variance) * centred) @ axes if len(kept) else np.zeros((len(uniform), 0))
        self._prior = self._spread * standard[:, self.known]

    def _axes(self, covariance: Array) -> tuple[Array, Array]:
        """Uncorrelated directions of the noise of differences, (C - 1, C), and their variances."""
        covariance = covariance[np.ix_(self.known, self.known)]
        variance, vectors = np.linalg.eigh(self._contrasts @ covariance @ self._contrasts.T)
        return np.maximum(variance, 0.0), vectors.T @ self._contrasts

    def _kept(self, variance: Array) -> Array:
        """The share of an estimated difference that is kept, (draws, C - 1)."""
        return self._spread**2 / (self._spread**2 + variance)

    def draws(self, covariance: Array, noise: Array) -> Array:
        """True values (draws, C), were the estimates' noise of this covariance; noise: draws of it, (draws, C).

        From a draw of prior and noise, what its own posterior mean leaves of it is the posterior's deviation.
        """
        variance, axes = self._axes(covariance)
        true, noise = self._prior @ axes.T, noise[:, self.known] @ axes.T
        drawn = np.full((len(noise), len(self.values)), np.nan)
        drawn[:, self.known] = self.means + (true - self._kept(variance) * (true + noise)) @ axes
        return drawn.round(DECIMALS)


def _spreads(centred: Array, variance: Array, uniform: Array) -> Array:
    """Draws of tau by its posterior on a grid; centred: independent estimates about zero (C - 1,)."""
    typical = np.sqrt(variance.mean()) if len(variance) else 0.0
    if typical == 0.0:  # exact values: nothing is drawn together
        return np.ones(len(uniform))
    largest = max(typical, np.sqrt((centred**2).mean()))
    tau = np.geomspace(typical / REACH, largest * REACH, GRID)
    total = tau[:, None] ** 2 + variance
    density = -0.5 * (np.log(total) + centred**2 / total).sum(axis=1)
    density += np.log(tau) - np.log1p((tau / typical) ** 2)  # the grid is even in log tau; half-Cauchy
    cumulative = np.cumsum(np.exp(density - density.max()))
    return tau[np.searchsorted(cumulative, uniform * cumulative[-1])]
