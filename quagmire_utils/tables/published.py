"""The numbers of the paper's Tables 1-10, ours beside the published."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quagmire_utils import paper
from quagmire_utils.config import ParameterError
from quagmire_utils.prediction import MAX_SPLITS, SplitR2, bootstrap_interval, fit_predict_r2, predict, spearman
from quagmire_utils.records import select_candidates

PREDICTORS = {  # a column of the paper's tables -> the columns of the candidate frame whose predictions are averaged
    "pass1": ("pass1",),
    "gen_loss": ("gen_loss",),
    "pass64": ("pass64",),
    "avg_genloss_pass64": ("gen_loss", "pass64"),
}
NUMBERS = (
    *("value", "std", "standard_error", "n_splits", "all_value", "all_std", "all_median", "all_splits"),
    *("low", "high", "gain", "gain_low", "gain_high", "better_share"),
)
VERDICTS = ("holds", "does not hold", "undecided")
OUTCOMES = ("outcome", "outcome_last")
MIN_CANDIDATES = 4  # two to fit a line, two to take an R2 on
JACKKNIFE_SPLITS = 20_000  # up to here every split is taken when a candidate is left out

Array = NDArray[np.float64]


def compute_table(
    frame: pd.DataFrame,
    number: int,
    *,
    n_splits: int = 100,
    seed: int = 0,
    outcome: str = "outcome",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Numbers of one of the paper's tables, ours beside the published, one row per cell.

    frame: from `candidate_frame`. outcome: "outcome" as in the paper, or "outcome_last". Candidates lacking a predictor
    of the table are left out of all its columns, so that a row rests on the same candidates.
    Returns table, row (the paper's), column (one of paper.COLUMNS), statistic, scenario, model (the paper's), family
    (ours), k, status (measured, not run, too few candidates), n_candidates, left_out, n_fit, n_validation; then
      value, std, standard_error, n_splits     Spearman, or mean, standard deviation, standard error of R2 over splits
      all_value, all_std, all_median, all_splits   R2 over every split there is, without sampling noise; NaN where there
                                               are over a million
      low, high                                interval of a Spearman correlation (bootstrap over candidates)
      gain, gain_low, gain_high                difference to Pass@1 and its interval: paired bootstrap over candidates
                                               for Spearman, jackknife over candidates for R2
      better_share                             share of the splits in which its R2 is above that of Pass@1
      verdict                                  of "better than Pass@1": holds, does not hold, undecided
      paper, paper_plus_minus, paper_gain      as printed
    """
    if outcome not in OUTCOMES:
        raise ParameterError(f"outcome must be one of {', '.join(OUTCOMES)}, not {outcome!r}")
    parts = []
    for row, cells in paper.published(number).groupby("row", sort=False):
        first = cells.iloc[0]
        mine = frame[frame["stands_for"] == first["family"]]
        for family in mine["family"].unique().tolist() or [""]:
            chosen = select_candidates(frame, family, first["scenario"]) if family else mine
            if row not in paper.FAMILIES and pd.isna(first["n_fit"]):  # the rows are SFT budgets
                budget = chosen.get("budget", pd.Series(index=chosen.index, dtype=object))
                chosen = chosen[budget.eq(row.split()[0].lower())] if row != "Average" else chosen.iloc[:0]
            part = _row(chosen, cells, n_splits, seed, outcome, confidence)
            part.insert(4, "family", family)
            parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    table.insert(6, "k", int(frame["k"].iloc[0]))
    table.insert(7, "confidence", confidence)
    return _with_averages(table)


def _row(
    chosen: pd.DataFrame, cells: pd.DataFrame, n_splits: int, seed: int, outcome: str, confidence: float
) -> pd.DataFrame:
    """One row of a table: its cells with our numbers where the candidates suffice."""
    columns = cells["column"].tolist()
    needed = list(dict.fromkeys(name for column in columns for name in PREDICTORS[column]))
    usable = chosen.dropna(subset=[*needed, outcome])
    total = len(usable)
    statistic, fit = cells["statistic"].iloc[0], cells["n_fit"].iloc[0]
    n_fit = total // 2 if pd.isna(fit) else int(fit)
    enough = total >= MIN_CANDIDATES and n_fit <= total - 2
    part = cells.rename(columns={"family": "model", "mean": "paper", "plus_minus": "paper_plus_minus"})
    part = part.rename(columns={"printed_gain": "paper_gain", "note": "paper_note"}).drop(
        columns=["n_fit", "n_validation"]
    )
    part = part.assign(
        status="measured" if enough else "too few candidates" if total else "not run",
        n_candidates=total,
        left_out=len(chosen) - total,
        n_fit=n_fit if enough and statistic == "r2" else np.nan,
        n_validation=total - n_fit if enough and statistic == "r2" else np.nan,
    )
    numbers: list[dict[str, Any]] = [{} for _ in columns]
    if enough:
        y = usable[outcome].to_numpy(np.float64)
        series = [tuple(usable[name].to_numpy(np.float64) for name in PREDICTORS[column]) for column in columns]
        if statistic == "spearman":
            numbers = _spearman_cells(series, y, seed, confidence)
        else:
            numbers = _r2_cells(series, y, n_fit, n_splits, seed, confidence)
    for name in NUMBERS:
        part[name] = [float(cell.get(name, math.nan)) for cell in numbers]
    part["verdict"] = [
        "" if column == paper.BASELINE or not enough else _verdict(cell.get("gain_low"), cell.get("gain_high"))
        for column, cell in zip(columns, numbers, strict=True)
    ]
    return part


def _spearman_cells(series: list[tuple], y: Array, seed: int, confidence: float) -> list[dict[str, Any]]:
    intervals = [bootstrap_interval(x, y, "spearman", confidence=confidence, seed=seed) for x in series]
    tail = (1 - confidence) / 2
    cells = []
    for x, interval in zip(series, intervals, strict=True):
        value = spearman(predict(x, y), y)
        cell = {"value": value, "low": interval.low, "high": interval.high}
        if x is not series[0]:  # the first column is the baseline
            differences = interval.replicates - intervals[0].replicates
            differences = differences[~np.isnan(differences)]
            cell["gain"] = value - cells[0]["value"]
            if differences.size:
                cell["gain_low"], cell["gain_high"] = np.quantile(differences, [tail, 1 - tail])
        cells.append(cell)
    return cells


def _r2_cells(
    series: list[tuple], y: Array, n_fit: int, n_splits: int, seed: int, confidence: float
) -> list[dict[str, Any]]:
    from scipy.special import stdtrit  # quantiles of Student's t

    every = math.comb(len(y), n_fit) <= MAX_SPLITS
    cells: list[dict[str, Any]] = []
    baseline = None
    means_without = [_means_without_one(x, y, n_fit, n_splits, seed) for x in series]
    for x, without in zip(series, means_without, strict=True):
        drawn = fit_predict_r2(x, y, n_fit, n_splits, seed)
        cell = {"value": drawn.mean, "std": drawn.std, "standard_error": drawn.standard_error}
        cell["n_splits"] = drawn.n_splits - drawn.n_undefined
        if every:
            full: SplitR2 = fit_predict_r2(x, y, n_fit, "all")
            cell |= {"all_value": full.mean, "all_std": full.std, "all_splits": full.n_splits - full.n_undefined}
            cell["all_median"] = np.nanmedian(full.r2) if cell["all_splits"] else math.nan
        r2 = full.r2 if every else drawn.r2  # two predictors have the same splits, so their R2 are paired
        if baseline is None:
            baseline = r2
        else:
            defined = ~np.isnan(r2) & ~np.isnan(baseline)
            cell["better_share"] = (r2 > baseline)[defined].mean() if defined.any() else math.nan
            cell["gain"] = drawn.mean - cells[0]["value"]
            gains = without - means_without[0]
            width = stdtrit(len(y) - 1, (1 + confidence) / 2) * math.sqrt((len(y) - 1) * np.var(gains))
            cell["gain_low"], cell["gain_high"] = cell["gain"] - width, cell["gain"] + width
        cells.append(cell)
    return cells


def _means_without_one(x: tuple, y: Array, n_fit: int, n_splits: int, seed: int) -> Array:
    """Mean R2 over splits with each candidate left out in turn; NaN where that leaves too few to predict."""
    total = len(y)
    if n_fit > total - 3:
        return np.full(total, np.nan)
    splits = "all" if math.comb(total - 1, n_fit) <= JACKKNIFE_SPLITS else n_splits
    kept = [np.delete(np.arange(total), one) for one in range(total)]
    return np.array([fit_predict_r2(tuple(v[rows] for v in x), y[rows], n_fit, splits, seed).mean for rows in kept])


def _verdict(low: float | None, high: float | None) -> str:
    if low is not None and low > 0:
        return "holds"
    return "does not hold" if high is not None and high < 0 else "undecided"


def _with_averages(table: pd.DataFrame) -> pd.DataFrame:
    """Rows called Average are the means of the rows above, where all of them were measured (Tables 8 and 10)."""
    for place in table.index[table["row"] == "Average"]:
        same = ["family", "column"]
        above = table[(table[same] == table.loc[place, same]).all(axis=1) & (table["row"] != "Average")]
        statuses = set(above["status"])
        table.loc[place, "n_candidates"] = above["n_candidates"].sum()
        table.loc[place, "status"] = statuses.pop() if len(statuses) == 1 else "too few candidates"
        if table.loc[place, "status"] == "measured":
            table.loc[place, ["value", "gain"]] = above[["value", "gain"]].mean(skipna=False)
    return table


# --- showing ----------------------------------------------------------------------------------------------------------
