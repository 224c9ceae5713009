"""What RL will make of each candidate, from RL runs on a few of them: second workflow of Sec. 4.

    found = forecast_rl(table)                # candidates with an outcome calibrate, the others are forecast
    found.table, found.check                  # forecasts with intervals; the leave-one-out check
    found.next_run, found.advice              # which candidate to run next, and why

One line per predictor is fitted on the candidates that were put through RL, and their predictions are averaged.
`forecast` is that alone; `forecast_rl` adds how well it does on the runs at hand, whom to run next, and warnings.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quagmire_utils.analysis.advice import forecast_advice, forecast_warnings
from quagmire_utils.analysis.fits import _constant, spearman
from quagmire_utils.analysis.measurements import checked_candidates
from quagmire_utils.analysis.ranking import regret
from quagmire_utils.analysis.records import select_candidates
from quagmire_utils.core.errors import ParameterError

FEWEST = 3  # RL runs for a line and an interval around it
DISMISSED = 0.05  # chance of ending best that the candidates left out of the choice of the next run have together
PAPER_PREDICTORS = {"dataset": ("gen_loss", "pass_k"), "instance": ("pass_k",)}  # Sec. 4.2, 4.3
SETS = {  # what `compare_predictors` compares
    "Pass@1": ("pass1",),
    "loss": ("gen_loss",),
    "Pass@k": ("pass_k",),
    "loss and Pass@k": ("gen_loss", "pass_k"),
}

Array = NDArray[np.float64]


def forecast(
    records: pd.DataFrame,
    calibrated: Sequence[str],
    predictors: Sequence[str] = ("gen_loss", "pass_k"),
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Outcome of every candidate from RL runs on a few of them: second workflow of Sec. 4.

    records: one row per candidate of one family, columns candidate, outcome (read for the calibrated candidates only)
    and the predictors. calibrated: names of at least three candidates on which RL was run. One line per predictor is
    fitted on those, and their predictions are averaged. Returns candidate, calibrated, predicted, low, high,
    extrapolated, highest prediction first. low and high bound the outcome of one candidate with the given confidence
    (Student's t). For one predictor that is the textbook prediction interval; for several, the averaged prediction is
    as linear in the outcomes, so its variance follows from theirs, with tr((I-H)'(I-H)) degrees of freedom in
    place of n - 2, an approximation. extrapolated marks candidates outside the calibrated range of some predictor,
    where no interval protects against a bent relation.
    """
    table, known = _inputs(records, calibrated, predictors, confidence)
    x, y = table[list(predictors)].to_numpy(np.float64).T, table["outcome"].to_numpy(np.float64)
    result = _frame(table, x, known, _fit(x, y, known, predictors), confidence)
    return result.sort_values("predicted", ascending=False, ignore_index=True)


@dataclass(frozen=True, eq=False)
class RLForecast:
    """Forecasts of all candidates, how well such forecasts do on the runs at hand, and what to run next."""

    table: pd.DataFrame  # of `forecast`, with outcome, outside, chance_best and gain (see forecast_rl)
    check: pd.DataFrame  # leave-one-out: candidate, outcome, predicted, low, high, covered, extrapolated
    r2: float  # of leave-one-out predictions, 1 - SS_res / SS_tot; NaN where there are too few runs
    rank_correlation: float  # Spearman's, of leave-one-out predictions and outcomes
    coverage: float  # share of the runs whose outcome lies in the interval that the other runs give
    next_run: str | None  # candidate; None where all were run, or no other can still be expected to end best
    predictors: tuple[str, ...]
    confidence: float
    warnings: tuple[str, ...]
    better: RLForecast | None  # by the predictors that do best in the same check, where these do worse than the mean
    advice: str

    @property
    def advised_run(self) -> str | None:
        """next_run, of the better predictors where these are worthless."""
        return self.next_run if self.better is None else self.better.next_run


def forecast_rl(
    records: pd.DataFrame,
    calibrated: Sequence[str] | None = None,
    predictors: Sequence[str] | None = None,
    *,
    confidence: float = 0.95,
    n_draws: int = 4000,
    seed: int = 0,
) -> RLForecast:
    """Forecast of every candidate's outcome with a prediction interval, checked on the runs at hand; whom to run next.

    records: as in `forecast`. calibrated: the candidates whose outcomes may be used; None: all that have one.
    predictors: columns; None: the paper's, gen_loss and pass_k at dataset level, pass_k where the column scenario says
    instance. Candidates without a value of a predictor are left out, with a warning.

    The table's further columns: outcome (of the calibrated), outside (which predictor leaves the range of the runs, and
    on which side), chance_best (share of joint draws from the forecasts, all sharing the lines' errors, in which the
    candidate has the highest outcome; the calibrated have the outcome they had), and gain, by which next_run is chosen:
    how much of the variance of the forecasts, summed over the contenders (not run yet, without those at the end of the
    order of chance_best that have less than 5 % together), goes away when this candidate is run. For lines this is
    known before the run: its outcome is not needed. It has two parts, the lines are better known for all, and the
    candidate itself needs no forecast any more.

    Raises ParameterError for fewer than three calibrated candidates and as `forecast` does.
    """
    found = _forecast_rl(records, calibrated, predictors, confidence, n_draws, seed)
    if found.r2 < 0:  # worse than the mean of the runs: does any other predictor do better?
        others = []
        for some in SETS.values():
            with contextlib.suppress(ParameterError):  # these cannot be used with these candidates
                others.append(_forecast_rl(records, calibrated, some, confidence, n_draws, seed))
        # the same check: of the same runs
        others = [one for one in others if one.r2 > 0 and one.check["candidate"].equals(found.check["candidate"])]
        found = replace(found, better=max(others, key=lambda one: one.r2, default=None))
    return replace(found, advice=forecast_advice(found))


def _forecast_rl(
    records: pd.DataFrame,
    calibrated: Sequence[str] | None,
    predictors: Sequence[str] | None,
    confidence: float = 0.95,
    n_draws: int = 4000,
    seed: int = 0,
) -> RLForecast:
    """`forecast_rl` of one set of predictors, without advice."""
    if predictors is None:
        instance = "scenario" in records and (records["scenario"] == "instance").all()
        predictors = PAPER_PREDICTORS["instance" if instance else "dataset"]
    warnings = []
    if not isinstance(predictors, str) and set(predictors) <= set(records):
        blank = records[list(predictors)].isna().any(axis=1)
        if blank.any() and not blank.all():
            warnings.append(
                f"Left out, without {' or '.join(predictors)}: {', '.join(records.loc[blank, 'candidate'])}."
            )
            if calibrated is not None and not isinstance(calibrated, str):
                calibrated = [name for name in calibrated if name not in set(records.loc[blank, "candidate"])]
            records = records[~blank]
    if calibrated is None:
        whole = records["outcome"].notna() if "outcome" in records else np.zeros(len(records), dtype=bool)
        calibrated = records.loc[whole, "candidate"].tolist()
        if len(calibrated) < FEWEST:
            raise ParameterError(
                f"column outcome: at least three candidates{' with these predictors' if warnings else ''} need an RL "
                f"outcome, and {len(calibrated)} of {len(records)} have one"
            )
    table, known = _inputs(records, calibrated, predictors, confidence)
    x, y = table[list(predictors)].to_numpy(np.float64).T, table["outcome"].to_numpy(np.float64)
    fit = _fit(x, y, known, predictors)
    result = _frame(table, x, known, fit, confidence)
    result["outcome"] = np.where(known, y, np.nan)
    result["outside"] = [_outside(x[:, i], x[:, known], predictors) for i in range(len(table))]
    chance = _chance_best(fit, y, known, n_draws, seed)
    result["chance_best"] = chance
    contenders = _contenders(chance, known)
    gain = _gains(x, known, contenders, predictors)
    result["gain"] = gain
    next_run = str(table["candidate"].iloc[np.nanargmax(gain)]) if contenders.any() else None
    check = _leave_one_out(table, x, y, known, predictors, confidence)
    whole = len(check) > 1
    return RLForecast(
        table=result.sort_values("predicted", ascending=False, ignore_index=True),
        check=check,
        r2=_r2(check["outcome"], check["predicted"]) if whole else math.nan,
        rank_correlation=spearman(check["predicted"], check["outcome"]) if whole else math.nan,
        coverage=float(check["covered"].mean()) if whole else math.nan,
        next_run=next_run,
        predictors=tuple(predictors),
        confidence=confidence,
        warnings=(*warnings, *forecast_warnings(result, x[:, known], y[known], predictors)),
        better=None,
        advice="",
    )


def compare_predictors(records: pd.DataFrame, calibrated: Sequence[str] | None = None) -> pd.DataFrame:
    """Leave-one-out check of each of SETS on the same runs: predictors, runs, r2, rank_correlation, rmse, coverage.

    NaN where a predictor is missing or does not vary, or with fewer than four runs. Choosing the best of several on a
    handful of runs flatters it.
    """
    rows = []
    for title, predictors in SETS.items():
        row = {"predictors": title, "runs": 0, "r2": math.nan, "rank_correlation": math.nan}
        row |= {"rmse": math.nan, "coverage": math.nan}
        try:
            found = _forecast_rl(records, calibrated, predictors, n_draws=100)
        except ParameterError:  # this set cannot be used with these candidates: the row says so
            rows.append(row)
            continue
        row["runs"] = int(found.table["calibrated"].sum())
        if len(found.check):
            error = found.check["predicted"] - found.check["outcome"]
            row |= {"r2": found.r2, "rank_correlation": found.rank_correlation, "coverage": found.coverage}
            row["rmse"] = float(np.sqrt((error**2).mean()))
        rows.append(row)
    return pd.DataFrame(rows)


def choose_runs(records: pd.DataFrame, n_runs: int, predictors: Sequence[str] | None = None) -> list[str]:
    """Replays the advice on candidates whose outcomes are all known: who would have been run, in order.

    It starts with the lowest, the middle and the highest Pass@k and then runs `next_run` each time; where that is None,
    the candidate of the highest forecast that was not run. Raises ParameterError for n_runs below 3 or above the
    candidates.
    """
    if not FEWEST <= n_runs <= len(records):
        raise ParameterError(f"n_runs must lie between {FEWEST} and the {len(records)} candidates, not {n_runs!r}")
    order = records.sort_values("pass_k", kind="stable")["candidate"].tolist()
    runs = [order[0], order[len(order) // 2], order[-1]]
    while len(runs) < n_runs:
        found = _forecast_rl(records, runs, predictors, n_draws=1000)
        rest = found.table[~found.table["calibrated"]]
        runs.append(found.next_run or str(rest["candidate"].iloc[0]))
    return runs


def known_runs(records: pd.DataFrame, n_runs: int, predictors: Sequence[str] | None = None) -> list[str]:
    """Whose outcomes a forecast may use: all that are known while some are not. Where all are known (records of a
    finished study), n_runs that the advice would have chosen, so that the others' outcomes can check the forecast."""
    known = records["outcome"].notna() if "outcome" in records else pd.Series(False, index=records.index)
    if known.sum() < FEWEST:
        raise ParameterError(
            f"column outcome: at least three candidates need an RL outcome, and {known.sum()} of {len(records)} have "
            "one; rank_candidates chooses without"
        )
    if not known.all():
        return records.loc[known, "candidate"].tolist()
    return choose_runs(records, min(n_runs, len(records)), predictors)


def withheld_outcomes(records: pd.DataFrame, calibrated: Sequence[str]) -> dict[str, float]:
    """Known outcomes of candidates that do not calibrate: what a forecast can be compared with."""
    rest = records[~records["candidate"].isin(list(calibrated)) & records["outcome"].notna()]
    return dict(zip(rest["candidate"], rest["outcome"].astype(float), strict=True))


def check_forecasts(frame: pd.DataFrame, n_runs: int = 5, confidence: float = 0.95) -> pd.DataFrame:
    """Forecasts from n_runs RL runs, chosen as advised, against the outcomes of all other candidates, which are known.

    frame: from `records.candidate_frame`. One row per family, scenario and set of predictors (Pass@1, and the paper's)
    with at least n_runs + 3 candidates: candidates, runs, rmse (of the forecasts, in shares), spread (standard
    deviation of the same outcomes: what a forecast of their mean would miss by), coverage, regret (outcome of the best
    candidate minus that of the best of the runs and the highest forecast, one further run).
    """
    rows = []
    if not {"family", "stands_for", "outcome"} <= set(frame):  # a table of one's own: its check is leave-one-out
        return pd.DataFrame()
    for family in dict.fromkeys(frame["family"]):
        for scenario, paper in PAPER_PREDICTORS.items():
            part = select_candidates(frame, family, scenario).assign(scenario=scenario)
            if len(part) < n_runs + 3:
                continue
            for predictors in (("pass1",), paper):
                row = {"family": family, "scenario": scenario, "predictors": " and ".join(predictors)}
                row |= {"candidates": len(part), "runs": n_runs}
                try:
                    runs = choose_runs(part, n_runs, predictors)
                    found = _forecast_rl(part, runs, predictors, confidence)
                except ParameterError:  # a predictor at its ceiling does not vary
                    rows.append(row)
                    continue
                rest = found.table[~found.table["calibrated"]]
                truth = part.set_index("candidate").loc[rest["candidate"], "outcome"].to_numpy()
                row["rmse"] = float(np.sqrt(((rest["predicted"] - truth) ** 2).mean()))
                row["spread"] = float(truth.std())
                row["coverage"] = float(((rest["low"] <= truth) & (truth <= rest["high"])).mean())
                tried = part[part["candidate"].isin([*runs, rest["candidate"].iloc[0]])]
                row["regret"] = regret(part, [tried.loc[tried["outcome"].idxmax(), "candidate"]])
                rows.append(row)
    return pd.DataFrame(rows)


# --- lines ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Fit:
    """Averaged lines: every prediction is a weighted sum of the calibrated outcomes."""

    weights: Array  # (C, n): how much the outcome of calibrated candidate j counts in the prediction of candidate i
    predicted: Array  # (C,)
    noise: float  # variance of an outcome about its prediction
    free: float  # degrees of freedom that this variance is known with


def _weights(x: Array, known: NDArray[np.bool_], predictors: Sequence[str]) -> Array:
    weights = np.zeros((x.shape[1], known.sum()))
    for name, values in zip(predictors, x, strict=True):
        fitted = values[known]
        if _constant(fitted[:, None])[0]:
            raise ParameterError(f"predictor {name!r} does not vary among the calibrated candidates.")
        centred = fitted - fitted.mean()
        weights += 1 / known.sum() + np.outer(values - fitted.mean(), centred) / (centred @ centred)
    return weights / len(predictors)


def _fit(x: Array, y: Array, known: NDArray[np.bool_], predictors: Sequence[str]) -> _Fit:
    """x: (predictors, C); y: (C,), read where known."""
    weights = _weights(x, known, predictors)
    leftover = np.eye(known.sum()) - weights[known]
    free = float((leftover**2).sum())
    return _Fit(weights, weights @ y[known], float(((leftover @ y[known]) ** 2).sum()) / free, free)


def _half_width(fit: _Fit, confidence: float) -> Array:
    from scipy.special import stdtrit  # quantiles of Student's t

    return stdtrit(fit.free, (1 + confidence) / 2) * np.sqrt(fit.noise * (1 + (fit.weights**2).sum(axis=1)))


def _frame(table: pd.DataFrame, x: Array, known: NDArray[np.bool_], fit: _Fit, confidence: float) -> pd.DataFrame:
    half = _half_width(fit, confidence)
    fitted = x[:, known]
    outside = (x < fitted.min(axis=1)[:, None]) | (x > fitted.max(axis=1)[:, None])
    result = {
        "candidate": table["candidate"],
        "calibrated": known,
        "predicted": fit.predicted,
        "low": fit.predicted - half,
        "high": fit.predicted + half,
        "extrapolated": outside.any(axis=0),
    }
    return pd.DataFrame(result)


def _outside(values: Array, fitted: Array, predictors: Sequence[str]) -> str:
    """Which predictors of a candidate (predictors,) leave the range of the runs (predictors, n), and on which side."""
    said = [
        f"{name} {'above' if value > some.max() else 'below'} the runs'"
        for name, value, some in zip(predictors, values, fitted, strict=True)
        if not some.min() <= value <= some.max()
    ]
    return ", ".join(said)


def _chance_best(fit: _Fit, y: Array, known: NDArray[np.bool_], n_draws: int, seed: int) -> Array:
    """Share of joint draws of all outcomes in which a candidate has the highest, (C,): a multivariate t about the
    forecasts, for the calibrated the outcome that they had."""
    random = np.random.default_rng(seed)
    outcome = np.tile(np.where(known, y, 0.0), (n_draws, 1))
    weights = fit.weights[~known]
    if len(weights):
        spread = np.linalg.cholesky(
            fit.noise * (weights @ weights.T + np.eye(len(weights))) + 1e-30 * np.eye(len(weights))
        )
        width = np.sqrt(fit.free / random.chisquare(fit.free, n_draws))[:, None]
        outcome[:, ~known] = fit.predicted[~known] + width * (
            random.standard_normal((n_draws, len(weights))) @ spread.T
        )
    best = outcome == outcome.max(axis=1, keepdims=True)
    return (best / best.sum(axis=1, keepdims=True)).mean(axis=0)


def _contenders(chance: Array, known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Those not run of which one may well end best; many with a small chance each are many contenders, not none."""
    order = np.argsort(np.where(known, 0.0, chance), kind="stable")
    chosen = np.empty(len(known), dtype=bool)
    chosen[order] = np.cumsum(np.where(known, 0.0, chance)[order]) >= DISMISSED
    return chosen & ~known


def _gains(x: Array, known: NDArray[np.bool_], contenders: NDArray[np.bool_], predictors: Sequence[str]) -> Array:
    """Share of the contenders' summed forecast variance that a run of each candidate takes away; NaN where it ran.

    The variance of an outcome about the line scales all sums alike, so the share does not depend on it.
    """

    def variances(ran: NDArray[np.bool_]) -> Array:
        return np.where(ran, 0.0, 1 + (_weights(x, ran, predictors) ** 2).sum(axis=1))[contenders]

    gains = np.full(len(known), np.nan)
    before = variances(known).sum()
    for one in np.flatnonzero(~known):
        ran = known.copy()
        ran[one] = True
        gains[one] = 1 - variances(ran).sum() / before if contenders.any() else 0.0
    return gains


def _leave_one_out(
    table: pd.DataFrame, x: Array, y: Array, known: NDArray[np.bool_], predictors: Sequence[str], confidence: float
) -> pd.DataFrame:
    """Each calibrated candidate forecast from the others; empty below four, without those whose lines do not exist."""
    columns = ["candidate", "outcome", "predicted", "low", "high", "covered", "extrapolated"]
    rows = []
    for one in np.flatnonzero(known) if known.sum() > FEWEST else ():
        others = known.copy()
        others[one] = False
        try:
            fit = _fit(x, y, others, predictors)
        except ParameterError:
            continue
        row = _frame(table, x, others, fit, confidence).iloc[one]
        inside = bool(row["low"] <= y[one] <= row["high"])
        values = (row["candidate"], y[one], row["predicted"], row["low"], row["high"], inside, row["extrapolated"])
        rows.append(values)
    return pd.DataFrame(rows, columns=columns)


def _r2(actual: pd.Series, predicted: pd.Series) -> float:
    total = float(((actual - actual.mean()) ** 2).sum())
    return 1 - float(((actual - predicted) ** 2).sum()) / total if total > 0 else math.nan


def _inputs(
    records: pd.DataFrame, calibrated: Sequence[str], predictors: Sequence[str], confidence: float
) -> tuple[pd.DataFrame, NDArray[np.bool_]]:
    """The checked table, and which of its rows are calibrated."""
    if isinstance(predictors, str) or not len(predictors):
        raise ParameterError(f"predictors must be a list of column names, not {predictors!r}.")
    if "outcome" in predictors or len(set(predictors)) < len(predictors):
        raise ParameterError(f"predictors must be different columns, the outcome not among them, not {predictors!r}.")
    if not 0 < confidence < 1:
        raise ParameterError(f"confidence must lie between 0 and 1, not {confidence!r}.")
    table = checked_candidates(records, ["candidate", *predictors, "outcome"], may_miss=("outcome",))
    unknown = [name for name in calibrated if name not in set(table["candidate"])]
    if isinstance(calibrated, str) or unknown:
        raise ParameterError(f"calibrated must list candidates of the records; unknown: {unknown or calibrated!r}.")
    known = table["candidate"].isin(list(calibrated)).to_numpy()
    if known.sum() < FEWEST:
        raise ParameterError(
            f"calibrated must name at least three candidates, not {known.sum()}: a line and an interval take the "
            "outcomes of three RL runs."
        )
    if table.loc[known, "outcome"].isna().any():
        missing = table.loc[known & table["outcome"].isna().to_numpy(), "candidate"].tolist()
        raise ParameterError(f"outcome is missing for the calibrated candidate(s) {missing}.")
    if _constant(table.loc[known, ["outcome"]].to_numpy(np.float64))[0]:
        raise ParameterError("outcome is the same for all calibrated candidates: nothing can be learned from them.")
    return table, known
