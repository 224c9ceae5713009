"""Averaged lines on a few calibrated candidates, with the interval of each forecast (Sec. 4).

task = Task.check(table, calibrated=["a", "b", "c"])
task.frame(task.known, task.fit(task.known))     # candidate, predicted, low, high, ... of every candidate
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quagmire_utils.analysis.fits import Array, is_constant
from quagmire_utils.analysis.measurements import checked_candidates
from quagmire_utils.core.errors import ParameterError

FEWEST = 3  # RL runs for a line and an interval around it


@dataclass(frozen=True, eq=False)
class Fit:
    """Averaged lines: every prediction is a weighted sum of the calibrated outcomes."""

    weights: Array  # (C, n): weight of the outcome of calibrated candidate j in the prediction of candidate i
    predicted: Array  # (C,)
    noise: float  # variance of an outcome about its prediction, at least that of RL
    free: float  # degrees of freedom of this variance
    beyond: Array  # (C,): change of the prediction beyond the calibrated range, which a bend may take back or double


@dataclass(frozen=True, eq=False)
class Task:
    """Checked input of a forecast."""

    table: pd.DataFrame
    predictors: Sequence[str]
    x: Array  # (predictors, C)
    y: Array  # (C,), read where known
    known: NDArray[np.bool_]  # (C,), calibrated
    confidence: float
    rl_noise: float = 0.0  # standard deviation of the outcome over RL runs of one candidate

    @classmethod
    def check(
        cls,
        records: pd.DataFrame,
        calibrated: Sequence[str],
        predictors: Sequence[str] = ("gen_loss", "pass_k"),
        confidence: float = 0.95,
        rl_noise: float = 0.0,
    ) -> Task:
        """Return the checked input. Raise ParameterError for input that allows no forecast.

        records: one row per candidate of one family, columns candidate, outcome (read for calibrated candidates only)
        and the predictors. calibrated: names of at least three candidates that went through RL.
        """
        if isinstance(predictors, str) or not len(predictors):
            raise ParameterError("predictors", predictors, "a list of column names")
        if "outcome" in predictors or len(set(predictors)) < len(predictors):
            raise ParameterError("predictors", predictors, "different columns, without the outcome")
        if not 0 < confidence < 1:
            raise ParameterError("confidence", confidence, "between 0 and 1")
        table = checked_candidates(records, ["candidate", *predictors, "outcome"], may_miss=("outcome",))
        unknown = [name for name in calibrated if name not in set(table["candidate"])]
        if isinstance(calibrated, str) or unknown:
            raise ParameterError("calibrated", unknown or calibrated, "a list of candidates of the records")
        known = table["candidate"].isin(list(calibrated)).to_numpy()
        if known.sum() < FEWEST:
            raise ParameterError("calibrated", list(calibrated), f"at least {FEWEST} candidates that went through RL")
        missing = known & table["outcome"].isna().to_numpy()
        if missing.any():
            raise ParameterError("outcome", reason=f"missing for {', '.join(table.loc[missing, 'candidate'])}")
        x, y = table[list(predictors)].to_numpy(np.float64).T, table["outcome"].to_numpy(np.float64)
        if is_constant(y[known]):
            raise ParameterError("outcome", reason="all calibrated candidates have the same, so no line can be fitted")
        return cls(table, predictors, x, y, known, confidence, rl_noise)

    def weights(self, known: NDArray[np.bool_]) -> Array:
        """Return the weights of averaged lines on these candidates."""
        weights = np.zeros((self.x.shape[1], known.sum()))
        for name, values in zip(self.predictors, self.x, strict=True):
            fitted = values[known]
            if is_constant(fitted):
                raise ParameterError(name, reason="it does not vary among the calibrated candidates")
            centred = fitted - fitted.mean()
            weights += 1 / known.sum() + np.outer(values - fitted.mean(), centred) / (centred @ centred)
        return weights / len(self.predictors)

    def fit(self, known: NDArray[np.bool_]) -> Fit:
        """Fit averaged lines to these candidates."""
        weights = self.weights(known)
        leftover = np.eye(known.sum()) - weights[known]
        free, y = float((leftover**2).sum()), self.y[known]
        noise = max(float(((leftover @ y) ** 2).sum()) / free, self.rl_noise**2)
        beyond = np.zeros(len(known))
        for values in self.x:
            fitted = values[known]
            slope = (fitted - fitted.mean()) @ y / ((fitted - fitted.mean()) ** 2).sum()
            beyond += abs(slope) * np.abs(values - values.clip(fitted.min(), fitted.max())) / len(self.x)
        return Fit(weights, weights @ y, noise, free, beyond)

    def frame(self, known: NDArray[np.bool_], fit: Fit) -> pd.DataFrame:
        """Return the forecast of every candidate with its interval, in the order of the table.

        low and high bound the outcome of one candidate (Student's t). For one predictor this is the textbook prediction
        interval. For several, the averaged prediction is still linear in the outcomes, so its variance follows from
        theirs, with tr((I-H)'(I-H)) degrees of freedom in place of n - 2, an approximation. A few runs may lie on a
        line by luck, so the variance is at least that of RL. extrapolated marks candidates outside the calibrated range
        of a predictor; what the lines add there has a standard error as large as itself, as the relation may bend.
        """
        from scipy.special import ndtri, stdtrit  # quantiles of the normal and Student's t distributions

        tail = (1 + self.confidence) / 2
        scatter = stdtrit(fit.free, tail) ** 2 * fit.noise * (1 + (fit.weights**2).sum(axis=1))
        half = np.sqrt(scatter + (ndtri(tail) * fit.beyond) ** 2)
        low, high = self.x[:, known].min(axis=1)[:, None], self.x[:, known].max(axis=1)[:, None]
        sides = np.where(self.x < low, "below", np.where(self.x > high, "above", ""))
        outside = [
            ", ".join(f"{name} {side} the runs'" for name, side in zip(self.predictors, one, strict=True) if side)
            for one in sides.T
        ]
        result = {"candidate": self.table["candidate"], "calibrated": known, "predicted": fit.predicted}
        result |= {"low": fit.predicted - half, "high": fit.predicted + half}
        return pd.DataFrame(result | {"extrapolated": (sides != "").any(axis=0), "outside": outside})

    def gains(self, contenders: NDArray[np.bool_]) -> Array:
        """Return the share of the contenders' summed variance that a run of each candidate removes; NaN if it ran.

        The variance about the line scales all sums alike, so the shares do not depend on it.
        """

        def variance(ran: NDArray[np.bool_]) -> float:
            return np.where(ran, 0.0, 1 + (self.weights(ran) ** 2).sum(axis=1))[contenders].sum()

        gains, before = np.full(len(self.known), np.nan), variance(self.known)
        for one in np.flatnonzero(~self.known):
            ran = self.known.copy()
            ran[one] = True
            gains[one] = 1 - variance(ran) / before if contenders.any() else 0.0
        return gains

    def leave_one_out(self) -> pd.DataFrame:
        """Forecast each calibrated candidate from the others; none below four, none where a line does not exist."""
        rows = []
        for one in np.flatnonzero(self.known) if self.known.sum() > FEWEST else ():
            others = self.known.copy()
            others[one] = False
            try:
                row = self.frame(others, self.fit(others)).iloc[one]
            except ParameterError:
                continue
            outcome = self.y[one]
            rows.append(row.to_dict() | {"outcome": outcome, "covered": bool(row["low"] <= outcome <= row["high"])})
        columns = ["candidate", "outcome", "predicted", "low", "high", "covered", "extrapolated"]
        return pd.DataFrame(rows, columns=columns)
