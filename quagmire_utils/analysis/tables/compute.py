"""The numbers of the paper's tables on our candidates, beside the published ones. Paper: Sec. 4, App. C."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quagmire_utils.analysis.candidates import check_outcome
from quagmire_utils.analysis.fits import (
    MAX_SPLITS,
    bootstrap,
    fit_predict_r2,
    jackknife_standard_error,
    predict,
    r2_without_each,
    spearman,
)
from quagmire_utils.analysis.tables.spec import PREDICTORS, Line, table_lines, table_spec
from quagmire_utils.core import published as paper
from quagmire_utils.core.errors import check_whole

NUMBERS = (
    *("value", "std", "standard_error", "n_splits", "all_value", "all_std", "all_median", "all_splits"),
    *("low", "high", "gain", "gain_low", "gain_high", "better_share"),
)
COLUMNS = (
    *("table", "row", "column", "statistic", "scenario", "model", "family", "k", "basis", "status"),
    *("n_candidates", "sizes", "left_out", "n_ceiling", "n_fit", "n_validation", *NUMBERS, "verdict"),
    *("source", "paper", "paper_plus_minus", "paper_gain", "paper_note"),
)
MIN_CANDIDATES = 4  # two to fit a line, two to take an R2 on
MIN_RESAMPLED = 5  # resamples of fewer candidates have only a few different rank correlations, mostly 1
TAIL = (1 - 0.95) / 2  # of the intervals
CEILING = 0.99  # a higher Pass@k does not distinguish candidates
R2_KINDS = {
    "r2": "R² = 1 - SS_res/SS_tot",
    "squared_correlation": "squared Pearson correlation",
    "clipped_r2": "R², below zero taken as zero",
}
SPEARMAN_KINDS = {
    "in_sample": "line fitted on all candidates",
    "leave_one_out": "on all but the predicted one",
    "leave_half_out": "on halves without it",
}

Array = NDArray[np.float64]
Series = dict[str, tuple[Array, ...]]  # by column of the table: the predictors, (candidates,) each


@dataclass(frozen=True)
class Options:
    """How a table is computed; a parameter that cannot work raises ParameterError."""

    family: str = "all"  # all, a model of the paper, or one of our families
    predictors: str | Sequence[str] = ()  # to compare with Pass@1; empty: those of the paper's table
    n_splits: int = 100  # random splits into fitted and predicted candidates (Sec. 4.2)
    seed: int = 0
    outcome: str = "outcome"  # outcome: best checkpoint, as in the paper; outcome_last: mean of the last ones

    def __post_init__(self) -> None:
        check_whole("n_splits", self.n_splits, 1, MAX_SPLITS)
        check_whole("seed", self.seed, 0)
        check_outcome(self.outcome)


def compute_table(
    frame: pd.DataFrame, number: int | str, options: Options | None = None, *, supplement: bool = False
) -> pd.DataFrame:
    """Compute one of the paper's tables from a `candidate_frame`, one row per cell; supplement: the rows we add to it.

    A candidate that lacks one predictor of the table is left out of all its columns, so the columns of a row share
    their candidates. Returns COLUMNS, of which
      status                            measured, not run, too few candidates, or not chosen
      n_ceiling                         candidates whose Pass@k is CEILING or more
      value, std, standard_error        Spearman; or mean R2, its standard deviation and error over n_splits splits
      all_value, all_std, all_median    R2 over every split; NaN if there are over a million
      low, high                         interval over candidates: bootstrap (Spearman) or jackknife (R2)
      gain, gain_low, gain_high         difference to Pass@1, paired; better_share: of the splits
      verdict                           of "better than Pass@1": holds, fails, undecided
      source, paper, ...                as printed; NaN where the paper prints none
    """
    options = options or Options()
    lines = table_lines(frame, number, options.family, options.predictors, supplement)
    spec = table_spec(number)
    shared = {"table": spec.number, "statistic": spec.statistic, "scenario": spec.scenario, "k": frame["k"].iloc[0]}
    rows = [{**shared, **cell} for line in lines for cell in _row(line, spec.statistic, options)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def compute_sensitivity(frame: pd.DataFrame, number: int | str, options: Options | None = None) -> pd.DataFrame:
    """Compute the measured rows of a table under other definitions, one row per cell and definition.

    The paper leaves open which R2 it means, and what the predictions that it ranks were fitted on. Every split is taken
    where that is feasible. kind is one of R2_KINDS or SPEARMAN_KINDS; std is over splits, below_zero a share of them;
    gain is over Pass@1 under the same definition.
    """
    options = options or Options()
    statistic, rows = table_spec(number).statistic, []
    for line in table_lines(frame, number, options.family, options.predictors):
        groups, status = usable_groups(line, options.outcome)
        for kind in (R2_KINDS if statistic == "r2" else SPEARMAN_KINDS) if status == "measured" else ():
            cells = {column: _cell(line, groups, column, kind, options) for column in line.printed.index}
            for column, cell in cells.items():
                gain = math.nan if column == paper.BASELINE else cell["value"] - cells[paper.BASELINE]["value"]
                row = {"row": line.spec.row, "model": line.spec.model, "family": line.family, "column": column}
                row |= {"statistic": statistic, "k": frame["k"].iloc[0], "kind": kind}
                rows.append(row | cell | {"gain": gain})
    columns = ["row", "model", "family", "column", "statistic", "k", "kind"]
    return pd.DataFrame(rows, columns=[*columns, "value", "std", "below_zero", "splits", "gain"])


def usable_groups(line: Line, outcome: str) -> tuple[list[pd.DataFrame], str]:
    """Return the candidates of a line that have all its predictors, and the line's status."""
    usable = [group.dropna(subset=[*line.needed, outcome]) for group in line.groups]
    if not line.chosen:
        return usable, "not chosen"
    sizes = [len(group) for group in usable]
    if all(size >= MIN_CANDIDATES and line.fit_size(size) <= size - 2 for size in sizes):
        return usable, "measured"
    return usable, "too few candidates" if any(sizes) else "not run"


def verdict(low: float, high: float, bound: float = 0.0, *, below: bool = False) -> str:
    """Return `holds` if the interval lies above (or below) `bound`, `fails` if on the other side, else `undecided`."""
    if low > bound or high < bound:
        return "holds" if (high < bound) == below else "fails"
    return "undecided"


def _protocol(total: int, n_fit: int, n_splits: int) -> int | Literal["all"]:
    """Return "all" where every split is feasible, else the number of random splits."""
    return "all" if math.comb(total, n_fit) <= MAX_SPLITS else n_splits


# --- one row ----------------------------------------------------------------------------------------------------------


def _row(line: Line, statistic: str, options: Options) -> list[dict[str, Any]]:
    usable, status = usable_groups(line, options.outcome)
    sizes = [len(group) for group in usable]
    shared = {
        **line.spec.model_dump(include={"row", "model", "basis"}),
        **{"family": line.family, "status": status, "source": line.source, "n_candidates": sum(sizes)},
        "sizes": " + ".join(map(str, sizes)) if len(sizes) > 1 else "",
        "left_out": sum(map(len, line.groups)) - sum(sizes),
        "n_ceiling": sum(int((group["pass_k"] >= CEILING).sum()) for group in usable if "pass_k" in group),
    }
    columns = line.printed.index
    numbers: dict[str, dict[str, Any]] = {column: {} for column in columns}
    if status == "measured":
        series = [_series(group, columns) for group in usable]
        outcomes = [group[options.outcome].to_numpy(np.float64) for group in usable]
        if statistic == "spearman":
            numbers = _spearman_cells(series, outcomes, options)
        else:
            fits = [line.fit_size(size) for size in sizes]
            if len(fits) == 1:
                shared |= {"n_fit": fits[0], "n_validation": sizes[0] - fits[0]}
            numbers = _r2_cells(series, outcomes, fits, options)
    cells = []
    for column, printed in line.printed.iterrows():
        own = {name: float(numbers[column].get(name, math.nan)) for name in NUMBERS}
        compared = status == "measured" and column != paper.BASELINE
        better = verdict(own["gain_low"], own["gain_high"]) if compared else ""
        published = {"paper": printed["mean"], "paper_plus_minus": printed["plus_minus"]}
        published |= {"paper_gain": printed["printed_gain"], "paper_note": printed["note"]}
        cells.append({**shared, "column": column, **own, "verdict": better, **published})
    return cells


def _series(group: pd.DataFrame, columns: Sequence[str]) -> Series:
    return {column: tuple(group[name].to_numpy(np.float64) for name in PREDICTORS[column]) for column in columns}


def _spearman_cells(series: list[Series], outcomes: list[Array], options: Options) -> dict[str, dict[str, Any]]:
    """Mean over the groups of the rank correlation in each; the groups are resampled separately."""
    few = min(map(len, outcomes)) < MIN_RESAMPLED
    cells: dict[str, dict[str, Any]] = {}
    replicates: dict[str, Array] = {}
    for column in series[0]:
        pairs = enumerate(zip(series, outcomes, strict=True))
        found = [bootstrap(group[column], y, seed=options.seed + i) for i, (group, y) in pairs]
        value = float(np.mean([estimate for estimate, _ in found]))
        replicates[column] = np.mean([values[:0] if few else values for _, values in found], 0)
        cells[column] = {"value": value}
        cells[column]["low"], cells[column]["high"] = _quantiles(replicates[column])
        if column != paper.BASELINE:
            differences = replicates[column] - replicates[paper.BASELINE]
            cells[column]["gain"] = value - cells[paper.BASELINE]["value"]
            cells[column]["gain_low"], cells[column]["gain_high"] = _quantiles(differences)
    return cells


def _r2_cells(
    series: list[Series], outcomes: list[Array], fits: list[int], options: Options
) -> dict[str, dict[str, Any]]:
    """Mean over the groups of the mean R2 over splits of each; standard deviations only for one group."""
    from scipy.special import stdtrit  # quantiles of Student's t

    n_splits, seed, groups = options.n_splits, options.seed, len(outcomes)
    splits = [_protocol(len(y), n_fit, n_splits) for y, n_fit in zip(outcomes, fits, strict=True)]
    every = all(protocol == "all" for protocol in splits)
    quantile = stdtrit(sum(len(y) - 1 for y in outcomes), 1 - TAIL)
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


def _cell(line: Line, groups: Sequence[pd.DataFrame], column: str, kind: str, options: Options) -> dict[str, float]:
    """One cell under another definition: the mean over the groups."""
    values, stds, below, splits = [], [], [], 0
    for group in groups:
        x = _series(group, [column])[column]
        y = group[options.outcome].to_numpy(np.float64)
        if kind in SPEARMAN_KINDS:
            protocol = _protocol(len(y), len(y) // 2, options.n_splits)
            values.append(spearman(predict(x, y, kind, protocol, options.seed), y))
            continue
        n_fit = line.fit_size(len(y))
        protocol = _protocol(len(y), n_fit, options.n_splits)
        result = fit_predict_r2(x, y, n_fit, protocol, options.seed, kind)
        values.append(result.mean)
        stds.append(result.std)
        defined = result.r2[~np.isnan(result.r2)]
        below.append((defined < 0).mean() if defined.size else math.nan)
        splits += defined.size
    std = stds[0] if len(stds) == 1 else math.nan
    share = float(np.mean(below)) if below else math.nan
    return {"value": float(np.mean(values)), "std": std, "below_zero": share, "splits": splits}


def _spread(without: Sequence[Array]) -> float:
    """Jackknife standard error of a mean over groups whose candidates were drawn separately."""
    return math.sqrt(sum(jackknife_standard_error(values) ** 2 for values in without)) / len(without)


def _quantiles(values: Array) -> tuple[float, float]:
    """Return a 95 % interval; NaN for no value or only one, as an interval without width would look certain."""
    values = values[~np.isnan(values)]
    low, high = np.quantile(values, [TAIL, 1 - TAIL]) if values.size else (math.nan, math.nan)
    return (float(low), float(high)) if high > low else (math.nan, math.nan)
