"""The numbers of the paper's Tables 1-10, ours beside the published."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quagmire_utils.analysis.fits import (
    MAX_SPLITS,
    bootstrap_interval,
    check_whole,
    fit_predict_r2,
    jackknife_standard_error,
    predict,
    r2_without_each,
    spearman,
)
from quagmire_utils.analysis.tables.layout import PREDICTORS, Line, supplement_lines, table_lines
from quagmire_utils.core import published as paper
from quagmire_utils.core.errors import ParameterError

NUMBERS = (
    *("value", "std", "standard_error", "n_splits", "all_value", "all_std", "all_median", "all_splits"),
    *("low", "high", "gain", "gain_low", "gain_high", "better_share"),
)
COLUMNS = (
    *("table", "row", "column", "statistic", "scenario", "model", "family", "k", "confidence", "basis", "status"),
    *("n_candidates", "sizes", "left_out", "n_ceiling", "n_fit", "n_validation", *NUMBERS, "verdict"),
    *("source", "paper", "paper_plus_minus", "paper_gain", "paper_note"),
)
VERDICTS = ("holds", "does not hold", "undecided")
OUTCOMES = ("outcome", "outcome_last")
MIN_CANDIDATES = 4  # two to fit a line, two to take an R2 on
CEILING = 0.99  # a Pass@large k from here on leaves nothing to tell candidates apart by
MIN_RESAMPLED = 5  # fewer candidates drawn again and again give a handful of rank correlations, mostly 1

Array = NDArray[np.float64]


def compute_table(
    frame: pd.DataFrame,
    number: int | str,
    *,
    family: str = "all",
    predictors: str | Sequence[str] = (),
    n_splits: int = 100,
    seed: int = 0,
    outcome: str = "outcome",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Numbers of one of the paper's tables, ours beside the published, one row per cell.

    frame: from `candidate_frame`. family, predictors: as in `table_lines`. outcome: "outcome" as in the paper, or
    "outcome_last". Candidates lacking a predictor of the table are left out of all its columns, so that a row rests on
    the same candidates.
    Returns table, row (the paper's), column (one of paper.COLUMNS), statistic, scenario, model (the paper's), family
    (ours), k, confidence, basis (all candidates, low, medium, high, mean of budgets), status (measured, not run, too
    few candidates, not chosen), n_candidates, sizes (of the budgets that are averaged), left_out, n_ceiling (candidates
    whose Pass@large k is CEILING or more), n_fit, n_validation;
      value, std, standard_error, n_splits     Spearman, or mean, standard deviation, standard error of R2 over splits
      all_value, all_std, all_median, all_splits   R2 over every split there is, without sampling noise; NaN where there
                                               are over a million
      low, high                                interval of the value over candidates: bootstrap for Spearman, jackknife
                                               for R2; NaN where there are too few for one
      gain, gain_low, gain_high                difference to Pass@1 and its interval: paired bootstrap or jackknife
      better_share                             share of the splits in which its R2 is above that of Pass@1
      verdict                                  of "better than Pass@1": holds, does not hold, undecided
      source, paper, paper_plus_minus, paper_gain, paper_note    where and as printed; NaN where the paper has no such
    """
    lines = table_lines(frame, number, family, predictors)
    return _tidy(frame, number, lines, n_splits, seed, outcome, confidence)


def compute_supplement(
    frame: pd.DataFrame,
    number: int | str,
    *,
    family: str = "all",
    predictors: str | Sequence[str] = (),
    n_splits: int = 100,
    seed: int = 0,
    outcome: str = "outcome",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """The rows that complete a table (see `supplement_lines`), as `compute_table` gives them; empty where none do."""
    lines = supplement_lines(frame, number, family, predictors)
    return _tidy(frame, number, lines, n_splits, seed, outcome, confidence)


def _tidy(
    frame: pd.DataFrame,
    number: int | str,
    lines: Sequence[Line],
    n_splits: int,
    seed: int,
    outcome: str,
    confidence: float,
) -> pd.DataFrame:
    check_options(n_splits, seed, outcome)
    if not 0 < confidence < 1:
        raise ParameterError(f"confidence must lie between 0 and 1, not {confidence!r}")
    general = {
        "table": int(paper.published(number)["table"].iloc[0]),
        "k": int(frame["k"].iloc[0]),
        "confidence": confidence,
    }
    rows = [{**general, **cell} for line in lines for cell in _row(line, n_splits, seed, outcome, confidence)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def check_options(n_splits: int, seed: int, outcome: str) -> None:
    """Raises ParameterError for what no table can be computed with, also where this one has no splits to draw."""
    check_whole("n_splits", n_splits, 1, MAX_SPLITS)
    check_whole("seed", seed, 0)
    if outcome not in OUTCOMES:
        raise ParameterError(f"outcome must be one of {', '.join(OUTCOMES)}, not {outcome!r}")


def _row(line: Line, n_splits: int, seed: int, outcome: str, confidence: float) -> list[dict[str, Any]]:
    """One row of a table: its cells with our numbers where the candidates suffice."""
    usable, status = usable_groups(line, outcome)
    sizes = [len(group) for group in usable]
    shared = {
        "row": line.row,
        "statistic": line.statistic,
        "scenario": line.scenario,
        "model": line.model,
        "family": line.family,
        "basis": line.basis,
        "status": status,
        "n_candidates": sum(sizes),
        "sizes": " + ".join(map(str, sizes)) if len(sizes) > 1 else "",
        "left_out": sum(len(group) for group in line.groups) - sum(sizes),
        "n_ceiling": sum(int((group["pass_k"] >= CEILING).sum()) for group in usable if "pass_k" in group),
        "n_fit": math.nan,
        "n_validation": math.nan,
        "source": line.source,
    }
    numbers: dict[str, dict[str, Any]] = {column: {} for column in line.printed}
    if status == "measured":
        series = [_series(group, line.printed) for group in usable]
        outcomes = [group[outcome].to_numpy(np.float64) for group in usable]
        if line.statistic == "spearman":
            numbers = _spearman_cells(series, outcomes, seed, confidence)
        else:
            fits = [fit_size(line, len(group)) for group in usable]
            if len(fits) == 1:
                shared |= {"n_fit": fits[0], "n_validation": sizes[0] - fits[0]}
            numbers = _r2_cells(series, outcomes, fits, n_splits, seed, confidence)
    cells = []
    for column, printed in line.printed.items():
        own = {name: float(numbers[column].get(name, math.nan)) for name in NUMBERS}
        compared = status == "measured" and column != paper.BASELINE
        verdict = _verdict(own["gain_low"], own["gain_high"]) if compared else ""
        published = {"paper": printed.mean, "paper_plus_minus": printed.plus_minus, "paper_gain": printed.printed_gain}
        cells.append({**shared, "column": column, **own, "verdict": verdict, **published, "paper_note": printed.note})
    return cells


def usable_groups(line: Line, outcome: str) -> tuple[list[pd.DataFrame], str]:
    """The candidates of a line that have all its predictors, and whether they suffice: the line's status."""
    needed = list(dict.fromkeys(name for column in line.printed for name in PREDICTORS[column]))
    usable = [group.dropna(subset=[*needed, outcome]) for group in line.groups]
    if not line.chosen:
        return usable, "not chosen"
    enough = all(len(group) >= MIN_CANDIDATES and fit_size(line, len(group)) <= len(group) - 2 for group in usable)
    return usable, "measured" if enough else "too few candidates" if any(map(len, usable)) else "not run"


def fit_size(line: Line, total: int) -> int:
    """How many of the candidates are fitted: the line's number, or half, rounded down."""
    return total // 2 if line.n_fit is None else line.n_fit


def _series(group: pd.DataFrame, columns: Sequence[str]) -> dict[str, tuple[Array, ...]]:
    return {column: tuple(group[name].to_numpy(np.float64) for name in PREDICTORS[column]) for column in columns}


def _spearman_cells(
    series: list[dict[str, tuple[Array, ...]]], outcomes: list[Array], seed: int, confidence: float
) -> dict[str, dict[str, Any]]:
    """Mean over the groups of the rank correlation in each; the groups are resampled apart."""
    tail = (1 - confidence) / 2
    cells: dict[str, dict[str, Any]] = {}
    replicates: dict[str, Array] = {}
    for column in series[0]:
        pairs = [(group[column], y) for group, y in zip(series, outcomes, strict=True)]
        value = float(np.mean([spearman(predict(x, y), y) for x, y in pairs]))
        intervals = [bootstrap_interval(x, y, confidence=confidence, seed=seed + i) for i, (x, y) in enumerate(pairs)]
        replicates[column] = np.mean([interval.replicates for interval in intervals], axis=0)
        if min(map(len, outcomes)) < MIN_RESAMPLED:
            replicates[column] = replicates[column][:0]
        cells[column] = {"value": value}
        cells[column]["low"], cells[column]["high"] = _quantiles(replicates[column], tail)
        if column != paper.BASELINE:
            differences = replicates[column] - replicates[paper.BASELINE]
            cells[column]["gain"] = value - cells[paper.BASELINE]["value"]
            cells[column]["gain_low"], cells[column]["gain_high"] = _quantiles(differences, tail)
    return cells


def _r2_cells(
    series: list[dict[str, tuple[Array, ...]]],
    outcomes: list[Array],
    fits: list[int],
    n_splits: int,
    seed: int,
    confidence: float,
) -> dict[str, dict[str, Any]]:
    """Mean over the groups of the mean R2 over splits of each; standard deviations only where there is one group."""
    from scipy.special import stdtrit  # quantiles of Student's t

    groups = len(outcomes)
    splits = [split_protocol(len(y), n_fit, n_splits) for y, n_fit in zip(outcomes, fits, strict=True)]
    every = all(protocol == "all" for protocol in splits)
    quantile = stdtrit(sum(len(y) - 1 for y in outcomes), (1 + confidence) / 2)
    cells: dict[str, dict[str, Any]] = {}
    paired: dict[str, Array] = {}  # R2 of the one group; all predictors have the same splits
    without: dict[str, list[Array]] = {}  # mean R2 of each group with each of its candidates left out
    for column in series[0]:
        pairs = [(group[column], y, n_fit) for group, y, n_fit in zip(series, outcomes, fits, strict=True)]
        drawn = [fit_predict_r2(x, y, n_fit, n_splits, seed) for x, y, n_fit in pairs]
        value = float(np.mean([result.mean for result in drawn]))
        cell: dict[str, Any] = {"value": value}
        cell["standard_error"] = math.sqrt(sum(result.standard_error**2 for result in drawn)) / groups
        cell["n_splits"] = sum(result.n_splits - result.n_undefined for result in drawn)
        full = [fit_predict_r2(x, y, n_fit, "all") for x, y, n_fit in pairs] if every else []
        if full:
            cell["all_value"] = float(np.mean([result.mean for result in full]))
            cell["all_splits"] = sum(result.n_splits - result.n_undefined for result in full)
        if groups == 1:
            cell["std"] = drawn[0].std
            paired[column] = (full or drawn)[0].r2
            if full and cell["all_splits"]:
                cell |= {"all_std": full[0].std, "all_median": np.nanmedian(full[0].r2)}
        without[column] = [
            r2_without_each(x, y, n_fit, protocol, seed) if n_fit <= len(y) - 3 else np.full(len(y), np.nan)
            for (x, y, n_fit), protocol in zip(pairs, splits, strict=True)
        ]
        width = quantile * _spread(without[column])
        cell["low"], cell["high"] = value - width, value + width
        if column != paper.BASELINE:
            cell["gain"] = value - cells[paper.BASELINE]["value"]
            gains = [mine - base for mine, base in zip(without[column], without[paper.BASELINE], strict=True)]
            width = quantile * _spread(gains)
            cell["gain_low"], cell["gain_high"] = cell["gain"] - width, cell["gain"] + width
            if groups == 1:
                mine, base = paired[column], paired[paper.BASELINE]
                defined = ~np.isnan(mine) & ~np.isnan(base)
                cell["better_share"] = (mine > base)[defined].mean() if defined.any() else math.nan
        cells[column] = cell
    return cells


def split_protocol(total: int, n_fit: int, n_splits: int) -> int | Literal["all"]:
    """Every split where that is feasible, else n_splits random ones."""
    return "all" if math.comb(total, n_fit) <= MAX_SPLITS else n_splits


def _spread(without: Sequence[Array]) -> float:
    """Jackknife standard error of a mean over groups whose candidates were drawn apart."""
    return math.sqrt(sum(jackknife_standard_error(values) ** 2 for values in without)) / len(without)


def _quantiles(values: Array, tail: float) -> tuple[float, float]:
    """NaN where there is no value, or but one: an interval without width (a perfect order) would look certain."""
    values = values[~np.isnan(values)]
    low, high = np.quantile(values, [tail, 1 - tail]) if values.size else (math.nan, math.nan)
    return (float(low), float(high)) if high > low else (math.nan, math.nan)


def _verdict(low: float, high: float) -> str:
    """Of a gain with this interval; NaN decides nothing."""
    return "holds" if low > 0 else "does not hold" if high < 0 else "undecided"
