"""Estimates with their intervals, and comparisons between the candidates of one family.

A claim that some candidates do better than others compares given models on given problems. Its interval covers the
sampling of answers and, after RL, the noise between RL runs, pooled over all candidates of a family, or of the others
if none of it has two runs. It does not cover other problems, or other SFT runs of the same candidate, of which there is
only one. Comparisons are linear in the scores, so what two pairs share, such as the base model, is counted once.
Candidates with another number of RL runs than most of their family are left out: the best of four runs is expected
above the best of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from quagmire_utils.analysis.candidates import RunNoise, base_models, in_scenario, run_noise, select_candidates
from quagmire_utils.core.records import Records

SIMULATED = 20_000  # draws for the quantile of the largest of several deviations
MEASURED = {"pass1": "Pass@1 after SFT", "outcome": "Pass@1 after RL", "gain": "gain from RL"}

Array = NDArray[np.float64]
Interval = Callable[[float], tuple[float, float]]  # confidence -> (low, high)
Pair = tuple[int, int]  # rows of Evidence.rows: the first minus the second


@dataclass(frozen=True, eq=False)
class Estimate:
    """The value of a statistic on our records, with an interval at any confidence."""

    value: float  # NaN if it could not be computed
    statistic: str  # what was computed, and from what
    n: int
    interval: Interval = lambda _: (math.nan, math.nan)
    noise: str = ""  # what the interval covers
    counted: str = "candidates"  # what n counts


def student(value: float, standard_error: float, degrees: float = math.inf) -> Interval:
    """Return Student's t interval; infinite degrees of freedom give the normal distribution's."""

    def interval(confidence: float) -> tuple[float, float]:
        half = float(stats.t.ppf((1 + confidence) / 2, degrees)) * standard_error
        return value - half, value + half

    return interval


def percentiles(replicates: Array) -> Interval:
    """Return the percentile interval of bootstrap replicates; undefined replicates are left out."""
    defined = replicates[~np.isnan(replicates)]

    def interval(confidence: float) -> tuple[float, float]:
        if not defined.size:
            return math.nan, math.nan
        tail = (1 - confidence) / 2
        low, high = np.quantile(defined, [tail, 1 - tail])
        return float(low), float(high)

    return interval


# --- the measurements of one family -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Evidence:
    """The candidates of one family: all rows of its candidate frame, and those that comparisons may use."""

    family: str
    model: str  # the paper's
    outcome: str  # column of the frame
    frame: pd.DataFrame  # the family's rows of the candidate frame
    rows: pd.DataFrame  # measured before and after RL with the same number of runs; the base, if any, first
    noise: RunNoise
    own_loss: pd.Series | None = None  # by candidate: loss on held-out traces selected like its training examples

    @property
    def base(self) -> int | None:
        """Row of the model without SFT."""
        found = np.flatnonzero(self.rows["selection"] == "none")
        return int(found[0]) if found.size else None

    def candidates(self, scenario: str, needed: Sequence[str] = ()) -> pd.DataFrame:
        """Return the SFT candidates of a scenario that have an outcome and the `needed` columns."""
        return select_candidates(self.frame, self.family, scenario).dropna(subset=[*needed, self.outcome])

    def select(self, selection: str | None = None, scenario: str | None = None, *, main: bool = True) -> pd.DataFrame:
        """Return trained candidates among `rows` by the selection of their examples.

        main: only those with the source and learning rate of the base, or without a base the most frequent ones.
        """
        trained = self.rows[self.rows["selection"] != "none"]
        if main and len(trained):
            reference = trained if self.base is None else self.rows.iloc[[self.base]]
            for column in ("source", "learning_rate"):
                trained = trained[trained[column] == reference[column].mode().iloc[0]]
        if selection is not None:
            trained = trained[trained["selection"] == selection]
        if scenario is not None:
            trained = trained[in_scenario(trained["scenario"], scenario)]
        return trained


def gather(
    frame: pd.DataFrame, family: str, records: Records | None = None, outcome: str = "outcome"
) -> Evidence | None:
    """Return the evidence of a family in a candidate frame, or None if no candidate of it has an outcome.

    Without records, the noise between runs comes from `outcome_last_std`, even if the outcome is the best checkpoint.
    """
    mine = frame[frame["family"] == family].reset_index(drop=True)
    rows = mine.dropna(subset=["pass1", outcome])
    if not (rows["selection"] != "none").any():
        return None
    rows = rows[rows["n_runs"] == rows["n_runs"].mode().iloc[0]]
    rows = pd.concat([base_models(rows, family), rows[rows["selection"] != "none"]], ignore_index=True)
    own = None
    if records is not None and len(records.generalization_loss):
        loss = records.generalization_loss
        loss = loss[(loss["family"] == family) & (loss["validation_set"] == "own")]
        own = loss.set_index("candidate")["nll"] if len(loss) else None
    noise = run_noise(mine, records, outcome)
    return Evidence(family, str(mine["stands_for"].iloc[0]), outcome, mine, rows, noise, own)


# --- comparisons ------------------------------------------------------------------------------------------------------


def contrast(evidence: Evidence, pairs: Sequence[Pair], what: str, counted: str = "pairs") -> Estimate:
    """Return the mean over pairs of first minus second, of "pass1", "outcome" or "gain" (outcome minus pass1).

    The interval is Student's t, with Satterthwaite's degrees of freedom where the noise of RL runs and that of answers
    before RL come together.
    """
    if not pairs:
        return Estimate(math.nan, MEASURED[what], 0, counted=counted)
    values = _values(evidence, what)
    differences = [values @ _weights(evidence, [pair]) for pair in pairs]
    value = float(np.mean(differences))
    error, degrees = _error(evidence, _weights(evidence, pairs), what)
    text = f"{MEASURED[what]}, {_named(evidence, pairs)}"
    if len(pairs) > 1:
        text += f" ({sum(one > 0 for one in differences)} of {len(pairs)} positive)"
    return Estimate(value, text, len(pairs), student(value, error, degrees), _covered(evidence, what), counted)


def smallest_contrast(
    evidence: Evidence,
    alternatives: Sequence[Sequence[Pair]],
    what: str,
    label: str,
    n: int,
    counted: str = "candidates",
) -> Estimate:
    """Return the smallest of several mean differences, such as one candidate minus the best of the n - 1 others.

    The estimate is an extreme and therefore biased, but the interval covers the true smallest difference at least as
    often as it says. Its lower end is the lowest of the single lower ends. Its upper end is the lowest of the upper
    ends, which allow for the largest deviation among all (as Dunnett's and Hsu's comparisons do).
    """
    if not alternatives:
        return Estimate(math.nan, label, 0, counted=counted)
    weights = np.array([_weights(evidence, pairs) for pairs in alternatives])
    differences = weights @ _values(evidence, what)
    errors, degrees = np.array([_error(evidence, one, what) for one in weights]).T
    scale = np.hypot(*_errors(evidence, what))
    text = f"{label} ({_named(evidence, alternatives[int(differences.argmin())])})"
    interval = _smallest_interval(differences, errors, degrees, weights * scale)
    return Estimate(float(differences.min()), text, n, interval, _covered(evidence, what), counted)


def _smallest_interval(differences: Array, errors: Array, degrees: Array, loadings: Array) -> Interval:
    """Return the interval; loadings, (differences, rows): how the noise of each row moves each difference."""
    rng = np.random.default_rng(0)
    free = float(degrees.min())
    moved = rng.standard_normal((SIMULATED, loadings.shape[1])) @ loadings.T
    common = np.ones(SIMULATED) if math.isinf(free) else np.sqrt(rng.chisquare(free, SIMULATED) / free)
    with np.errstate(invalid="ignore", divide="ignore"):
        largest = np.nanmax(np.where(errors > 0, moved / errors, 0.0), axis=1) / common

    def interval(confidence: float) -> tuple[float, float]:
        single = stats.t.ppf((1 + confidence) / 2, degrees)
        several = float(np.quantile(largest, (1 + confidence) / 2))
        return float((differences - single * errors).min()), float((differences + several * errors).min())

    return interval


def _weights(evidence: Evidence, pairs: Sequence[Pair]) -> Array:
    weights = np.zeros(len(evidence.rows))
    for first, second in pairs:
        weights[first] += 1 / len(pairs)
        weights[second] -= 1 / len(pairs)
    return weights


def _values(evidence: Evidence, what: str) -> Array:
    before = evidence.rows["pass1"].to_numpy(np.float64)
    after = evidence.rows[evidence.outcome].to_numpy(np.float64)
    return {"pass1": before, "outcome": after, "gain": after - before}[what]


def _errors(evidence: Evidence, what: str) -> tuple[Array, Array]:
    """Return the standard errors that `what` has in each row from before and from after RL."""
    rows = evidence.rows
    before = rows["pass1_sampling_se"].to_numpy(np.float64)
    sampling = rows["outcome_sampling_se"].to_numpy(np.float64)
    after = evidence.noise.standard_errors(rows["n_runs"].to_numpy(), sampling)
    nothing = np.zeros(len(rows))
    return nothing if what == "outcome" else before, nothing if what == "pass1" else after


def _error(evidence: Evidence, weights: Array, what: str) -> tuple[float, float]:
    """Return standard error and degrees of freedom of a weighted sum of rows."""
    before, after = ((weights * errors) ** 2 for errors in _errors(evidence, what))
    variance = (before + after).sum()
    if not evidence.noise.degrees or not after.sum():
        return math.sqrt(variance), math.inf
    return math.sqrt(variance), evidence.noise.degrees * (variance / after.sum()) ** 2


def _named(evidence: Evidence, pairs: Sequence[Pair]) -> str:
    names = evidence.rows["candidate"].to_numpy()
    shown = [f"{names[first]} minus {names[second]}" for first, second in pairs[:4]]
    if len(pairs) > len(shown):
        shown.append(f"and {len(pairs) - len(shown)} more")
    return ("mean of " if len(pairs) > 1 else "") + ", ".join(shown)


def _covered(evidence: Evidence, what: str) -> str:
    return "sampling of answers" if what == "pass1" else evidence.noise.text


STATISTICS: dict[str, Callable[..., Estimate]] = {}


def statistic(function: Callable[..., Estimate]) -> Callable[..., Estimate]:
    """Register a statistic under its name."""
    STATISTICS[function.__name__] = function
    return function


def missing(statistic: str, n: int, counted: str = "candidates") -> Estimate:
    """Return an estimate without a value, for want of candidates."""
    return Estimate(math.nan, statistic, n, counted=counted)
