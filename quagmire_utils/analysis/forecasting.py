"""Forecast RL outcomes from RL runs on a few candidates: the second workflow of "How to use them in practice" (Sec. 4).

found = forecast_rl(table)                # candidates with an outcome calibrate, the others are forecast
found.table, found.check                  # forecasts with intervals; the leave-one-out check
found.next_run, found.next, found.trust   # which candidate to run next, and how far to trust this
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quagmire_utils.analysis.candidates import select_candidates
from quagmire_utils.analysis.fits import Array, r2_score, spearman
from quagmire_utils.analysis.lines import FEWEST, Fit, Task
from quagmire_utils.analysis.predictors import regret
from quagmire_utils.analysis.ranking import SENTENCES, listed, percent
from quagmire_utils.analysis.tables import number_text
from quagmire_utils.core.errors import ParameterError

FEW_CHECKS = 5  # fewer leave-one-out checks say little
ENOUGH_R2 = 0.5  # of leave-one-out; below it forecasts are called weak
ASSUMED = 0.01  # standard deviation between RL runs of one candidate; 0.004 to 0.02 in results/mini
DISMISSED = 0.05  # chance of ending best that the candidates ignored by the choice of the next run have together
PAPER_PREDICTORS = {"dataset": ("gen_loss", "pass_k"), "instance": ("pass_k",)}  # Sec. 4.2, 4.3
SETS = {  # what `compare_predictors` compares
    "Pass@1": ("pass1",),
    "loss": ("gen_loss",),
    "Pass@k": ("pass_k",),
    "loss and Pass@k": ("gen_loss", "pass_k"),
}
NEXT, BEST, CHECK, VERDICTS, UNCHECKED, WARNINGS = SENTENCES["forecasting"].values()


@dataclass(frozen=True, eq=False)
class RLForecast:
    """Forecasts of all candidates, how well such forecasts do on the runs at hand, and what to run next."""

    table: pd.DataFrame  # of `Task.frame`, with outcome, chance_best and gain (see forecast_rl)
    check: pd.DataFrame  # leave-one-out: candidate, outcome, predicted, low, high, covered, extrapolated
    r2: float  # of leave-one-out predictions, 1 - SS_res / SS_tot; NaN if there are too few runs
    rank_correlation: float  # Spearman's, of leave-one-out predictions and outcomes
    coverage: float  # share of runs whose outcome lies in the interval from the other runs
    next_run: str | None  # candidate; None if all were run or no other is expected to end best
    predictors: tuple[str, ...]
    confidence: float
    warnings: tuple[str, ...]

    @property
    def ahead(self) -> str:
        """The best run so far and, unless the forecasts are worthless, the highest forecast."""
        runs, rest = self.table[self.table["calibrated"]], self.table[~self.table["calibrated"]]
        best = runs.loc[runs["outcome"].idxmax()]
        said = BEST["run"].format(best=best["candidate"], outcome=100 * best["outcome"])
        if self.r2 < 0 or rest.empty:
            return said
        top = rest.iloc[0]
        shares = {name: 100 * min(max(top[name], 0.0), 1.0) for name in ("predicted", "low", "high")}
        return f"{said} {BEST['forecast'].format(top=top['candidate'], chance=percent(top['chance_best']), **shares)}"

    @property
    def next(self) -> str:
        """Which candidate to run next by the forecasts."""
        if self.next_run is None:
            return NEXT["all" if self.table["calibrated"].all() else "enough"]
        gain = self.table.set_index("candidate").loc[self.next_run, "gain"]
        return NEXT["run"].format(next_run=self.next_run, gain=percent(gain))

    @property
    def trust(self) -> str:
        """How far to trust the forecasts."""
        if math.isnan(self.r2):
            return UNCHECKED
        checks, verdict = len(self.check), "good"
        if self.r2 < ENOUGH_R2 or checks < FEW_CHECKS:
            verdict = "worse" if self.r2 < 0 else "few" if checks < FEW_CHECKS else "weak"
        covered = int(self.check["covered"].sum())
        return CHECK.format(checks=checks, r2=number_text(self.r2), covered=covered, verdict=VERDICTS[verdict])


def forecast_rl(
    records: pd.DataFrame,
    calibrated: Sequence[str] | None = None,
    predictors: Sequence[str] | None = None,
    *,
    confidence: float = 0.95,
    n_draws: int = 4000,
    seed: int = 0,
    rl_noise: float | None = None,
) -> RLForecast:
    """Forecast every outcome with an interval, check this on the runs at hand, and choose the next run.

    records: as in `Task.check`. calibrated: candidates whose outcomes may be used; None: all that have one. predictors:
    None for the paper's, gen_loss and pass_k, or pass_k alone if the column scenario says instance. Candidates without
    a value of a predictor are left out, with a warning. rl_noise: standard deviation of the outcome between RL runs of
    one candidate; None for the mean of the column outcome_se, or ASSUMED without it.

    Further columns of the table: outcome (of calibrated candidates); chance_best, the share of joint draws from the
    forecasts in which the candidate has the highest outcome; and gain, by which next_run is chosen: the share of the
    summed variance of the contenders' forecasts that a run of this candidate removes. Contenders are all candidates not
    run yet, except the least likely winners that have less than 5 % together.
    """
    if predictors is None:
        instance = "scenario" in records and (records["scenario"] == "instance").all()
        predictors = PAPER_PREDICTORS["instance" if instance else "dataset"]
    warnings = []
    if not isinstance(predictors, str) and set(predictors) <= set(records):
        blank = records[list(predictors)].isna().any(axis=1)
        if blank.any() and not blank.all():
            names = records.loc[blank, "candidate"].tolist()
            warnings.append(WARNINGS["left_out"].format(predictors=" or ".join(predictors), names=listed(names)))
            if calibrated is not None and not isinstance(calibrated, str):
                calibrated = [name for name in calibrated if name not in names]
            records = records[~blank]
    if calibrated is None:
        whole = records["outcome"].notna() if "outcome" in records else np.zeros(len(records), dtype=bool)
        calibrated = records.loc[whole, "candidate"].tolist()
        _check_enough(len(calibrated), len(records))
    if rl_noise is None:
        given = records.loc[records["candidate"].isin(calibrated), "outcome_se"] if "outcome_se" in records else []
        rl_noise = float(np.nanmean(given)) if pd.notna(given).any() else ASSUMED
        if rl_noise is ASSUMED:
            warnings.append(WARNINGS["assumed"].format(noise=100 * ASSUMED))
    task = Task.check(records, calibrated, predictors, confidence, rl_noise)
    known, names = task.known, task.table["candidate"]
    fit = task.fit(known)
    result = task.frame(known, fit)
    result["outcome"] = np.where(known, task.y, np.nan)
    result["chance_best"] = chance = _chance_best(fit, task.y, known, n_draws, seed)
    contenders = _contenders(chance, known)
    result["gain"] = gain = task.gains(contenders)
    check = task.leave_one_out()
    whole = len(check) > 1
    return RLForecast(
        table=result.sort_values("predicted", ascending=False, ignore_index=True),
        check=check,
        r2=r2_score(check["outcome"], check["predicted"]) if whole else math.nan,
        rank_correlation=spearman(check["predicted"], check["outcome"]) if whole else math.nan,
        coverage=float(check["covered"].mean()) if whole else math.nan,
        next_run=str(names.iloc[np.nanargmax(gain)]) if contenders.any() else None,
        predictors=tuple(predictors),
        confidence=confidence,
        warnings=(*warnings, *_warnings(result, task)),
    )


def compare_predictors(records: pd.DataFrame, calibrated: Sequence[str] | None = None) -> pd.DataFrame:
    """Check each of SETS by leaving out: one row each with predictors, runs, r2, rank_correlation, rmse, coverage.

    NaN if a predictor is missing or does not vary, or with fewer than four runs. The best of several on a handful of
    runs looks better than it is.
    """
    table = pd.DataFrame({"runs": 0}, index=pd.Index(list(SETS), name="predictors"))
    table[["r2", "rank_correlation", "rmse", "coverage"]] = math.nan
    for title, predictors in SETS.items():
        with contextlib.suppress(ParameterError):
            found = forecast_rl(records, calibrated, predictors, n_draws=100)
            error = _rms(found.check["predicted"] - found.check["outcome"])
            runs = found.table["calibrated"].sum()
            table.loc[title] = [runs, found.r2, found.rank_correlation, error, found.coverage]
    return table.reset_index().astype({"runs": int})


def choose_runs(records: pd.DataFrame, n_runs: int, predictors: Sequence[str] | None = None) -> list[str]:
    """Replay the advice on candidates whose outcomes are all known: the first `n_runs` candidates to run, in order.

    It starts with the lowest, the middle and the highest Pass@k and continues with `next_run`, or with the highest
    forecast where that is None.
    """
    if not FEWEST <= n_runs <= len(records):
        raise ParameterError("n_runs", n_runs, f"from {FEWEST} to {len(records)}, the number of candidates")
    order = records.sort_values("pass_k", kind="stable")["candidate"].tolist()
    runs = [order[0], order[len(order) // 2], order[-1]]
    while len(runs) < n_runs:
        found = forecast_rl(records, runs, predictors, n_draws=1000)
        rest = found.table[~found.table["calibrated"]]
        runs.append(found.next_run or str(rest["candidate"].iloc[0]))
    return runs


def known_runs(records: pd.DataFrame, n_runs: int, predictors: Sequence[str] | None = None) -> list[str]:
    """Return the candidates whose outcomes a forecast may use.

    These are all known ones. If every outcome is known (records of a finished study), they are the first n_runs that
    the advice would have chosen, so that the other outcomes can check the forecast.
    """
    known = records["outcome"].notna() if "outcome" in records else pd.Series(False, index=records.index)
    _check_enough(int(known.sum()), len(records))
    if not known.all():
        return records.loc[known, "candidate"].tolist()
    return choose_runs(records, min(n_runs, len(records)), predictors)


def check_forecasts(frame: pd.DataFrame, n_runs: int = 5, confidence: float = 0.95) -> pd.DataFrame:
    """Forecast from n_runs RL runs, chosen as advised, and compare with the known outcomes of all other candidates.

    frame: from `candidate_frame`, or `Measurements.frame`. One row per family, scenario and set of predictors (Pass@1,
    and the paper's) with at least n_runs + 3 candidates. spread: the error of forecasting the mean of the outcomes;
    regret: best outcome minus the best of the runs and one more at the highest forecast.
    """
    rows = []
    for family in frame["family"].unique():
        for scenario, paper in PAPER_PREDICTORS.items():
            part = select_candidates(frame, family, scenario).assign(scenario=scenario)
            part["outcome_se"] = part.get("outcome_last_std", math.nan)
            for predictors in (("pass1",), paper) if len(part) >= n_runs + 3 else ():
                row = {"family": family, "scenario": scenario, "predictors": " and ".join(predictors)}
                row |= {"candidates": len(part), "runs": n_runs}
                rows.append(row)
                try:
                    runs = choose_runs(part, n_runs, predictors)
                    found = forecast_rl(part, runs, predictors, confidence=confidence)
                except ParameterError:  # a predictor that does not vary
                    continue
                rest = found.table[~found.table["calibrated"]]
                truth = part.set_index("candidate").loc[rest["candidate"], "outcome"].to_numpy()
                row["rmse"], row["spread"] = _rms(rest["predicted"] - truth), float(truth.std())
                row["coverage"] = float(((rest["low"] <= truth) & (truth <= rest["high"])).mean())
                tried = part["candidate"].isin([*runs, rest["candidate"].iloc[0]])
                row["regret"] = float(regret(part["outcome"].where(tried, -1.0), part["outcome"]))
    return pd.DataFrame(rows)


def _warnings(result: pd.DataFrame, task: Task) -> list[str]:
    said, rest = [], result[~result["calibrated"]]
    beyond = rest[rest["extrapolated"]]
    if len(beyond):
        names = listed(f"{row.candidate} ({row.outside})" for row in beyond.itertuples())
        said.append(WARNINGS["beyond"].format(count=len(beyond), total=len(rest), names=names))
        top = rest.loc[rest["predicted"].idxmax()]
        if top["extrapolated"]:
            said.append(WARNINGS["top_beyond"].format(top=top["candidate"]))
    outcome = task.y[task.known]
    for name, values in zip(task.predictors, task.x[:, task.known], strict=True):
        slope = float((values - values.mean()) @ outcome)
        if slope * (-1 if name == "gen_loss" else 1) < 0:
            said.append(WARNINGS["loss" if name == "gen_loss" else "score"].format(name=name))
    impossible = result.loc[(result["predicted"] > 1) | (result["predicted"] < 0), "candidate"]
    if len(impossible):
        said.append(WARNINGS["impossible"].format(names=listed(impossible)))
    if len(outcome) < FEW_CHECKS:
        said.append(WARNINGS["few"].format(count=len(outcome)))
    return said


def _chance_best(fit: Fit, y: Array, known: NDArray[np.bool_], n_draws: int, seed: int) -> Array:
    """Return the share of joint draws in which each candidate is best, (C,): a multivariate t about the forecasts."""
    random = np.random.default_rng(seed)
    outcome = np.tile(np.where(known, y, 0.0), (n_draws, 1))
    weights = fit.weights[~known]
    if len(weights):
        eye = np.eye(len(weights))
        spread = np.linalg.cholesky(fit.noise * (weights @ weights.T + eye) + 1e-30 * eye)
        width = np.sqrt(fit.free / random.chisquare(fit.free, n_draws))[:, None]
        normal = random.standard_normal((n_draws, len(weights)))
        bend = fit.beyond[~known] * random.standard_normal((n_draws, len(weights)))
        outcome[:, ~known] = fit.predicted[~known] + width * (normal @ spread.T) + bend
    best = outcome == outcome.max(axis=1, keepdims=True)
    return (best / best.sum(axis=1, keepdims=True)).mean(axis=0)


def _contenders(chance: Array, known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which candidates not run yet may end best; many small chances together count."""
    chance = np.where(known, 0.0, chance)
    order = np.argsort(chance, kind="stable")
    chosen = np.empty(len(known), dtype=bool)
    chosen[order] = np.cumsum(chance[order]) >= DISMISSED
    return chosen & ~known


def _check_enough(known: int, total: int) -> None:
    if known < FEWEST:
        reason = f"at least {FEWEST} candidates need an RL outcome, and {known} of {total} have one"
        raise ParameterError("outcome", reason=reason)


def _rms(errors: pd.Series) -> float:
    return float(np.sqrt((errors**2).mean()))
