"""What the definitions matter: other kinds of R2, and other lines behind the rank correlations. Paper: Sec. 4.1.

The paper calls its R2 a coefficient of determination; second-hand accounts call it a squared correlation; and a
published mean over splits may have been taken with values below zero or without. Its rank correlations compare
"predicted" and actual performance without saying what the prediction was fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from quagmire_utils.analysis.fits import fit_predict_r2, predict, spearman
from quagmire_utils.analysis.tables.layout import PREDICTORS, Line, table_lines
from quagmire_utils.analysis.tables.published import check_options, fit_size, split_protocol, usable_groups
from quagmire_utils.core import published as paper

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


def compute_sensitivity(
    frame: pd.DataFrame,
    number: int | str,
    *,
    family: str = "all",
    predictors: str | Sequence[str] = (),
    n_splits: int = 100,
    seed: int = 0,
    outcome: str = "outcome",
) -> pd.DataFrame:
    """The measured rows of a table under each definition: one row per cell and definition.

    Arguments as in `compute_table`. Every split is taken where that is feasible, else n_splits random ones.
    Returns row, model, family, column, statistic, k, kind (of R2_KINDS or SPEARMAN_KINDS), value, std (over splits;
    NaN for rank correlations), gain (over Pass@1 under the same definition), below_zero (share of the splits), splits.
    """
    check_options(n_splits, seed, outcome)
    rows = []
    for line in table_lines(frame, number, family, predictors):
        usable, status = usable_groups(line, outcome)
        if status != "measured":
            continue
        for kind in R2_KINDS if line.statistic == "r2" else SPEARMAN_KINDS:
            baseline = math.nan
            for column in line.printed:
                cell = _cell(line, usable, column, kind, outcome, n_splits, seed)
                baseline = cell["value"] if column == paper.BASELINE else baseline
                gain = math.nan if column == paper.BASELINE else cell["value"] - baseline
                names = {"row": line.row, "model": line.model, "family": line.family, "column": column}
                rows.append({**names, "statistic": line.statistic, "kind": kind, **cell, "gain": gain})
    columns = ["row", "model", "family", "column", "statistic", "kind", "value", "std", "below_zero", "splits", "gain"]
    table = pd.DataFrame(rows, columns=columns)
    table.insert(5, "k", int(frame["k"].iloc[0]))
    return table


def _cell(
    line: Line, groups: Sequence[pd.DataFrame], column: str, kind: str, outcome: str, n_splits: int, seed: int
) -> dict[str, float]:
    values, stds, below, splits = [], [], [], 0
    for group in groups:
        x = tuple(group[name].to_numpy(np.float64) for name in PREDICTORS[column])
        y = group[outcome].to_numpy(np.float64)
        if line.statistic == "spearman":
            protocol = split_protocol(len(y), len(y) // 2, n_splits)
            values.append(spearman(predict(x, y, kind, protocol, seed), y))
            stds.append(math.nan)
            continue
        n_fit = fit_size(line, len(y))
        result = fit_predict_r2(x, y, n_fit, split_protocol(len(y), n_fit, n_splits), seed, kind)
        values.append(result.mean)
        stds.append(result.std)
        defined = result.r2[~np.isnan(result.r2)]
        below.append((defined < 0).mean() if defined.size else math.nan)
        splits += defined.size
    std = stds[0] if len(groups) == 1 else math.nan
    share = float(np.mean(below)) if below else math.nan
    return {"value": float(np.mean(values)), "std": std, "below_zero": share, "splits": splits}
