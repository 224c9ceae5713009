"""Which kinds of R2 can have a printed mean and ±, and whether a ± can be a standard error."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from quagmire_utils.core import published as paper

KINDS = {  # what "R2" may be on the predicted candidates
    "r2": "1 - SS_res / SS_tot",
    "clipped": "1 - SS_res / SS_tot, clipped at 0",
    "squared": "squared Pearson correlation of prediction and outcome",
}
SPLITS = 100  # of the paper
HALF_UNIT = 0.005
RATIO_TABLES = (5, 6, 7, 9)  # those that vary how many candidates are fitted

Array = NDArray[np.float64]


def r2_values(actual: Array, predicted: Array) -> dict[str, Array]:
    """Return each kind of R2 over the last axis, the predicted candidates; NaN where it is undefined.

    The squared correlation of two points is 1 for any prediction, if both sides vary.
    """
    centred = actual - actual.mean(axis=-1, keepdims=True)
    aside = predicted - predicted.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = (centred**2).sum(axis=-1)
        r2 = 1 - ((actual - predicted) ** 2).sum(axis=-1) / spread
        squared = (centred * aside).sum(axis=-1) ** 2 / ((aside**2).sum(axis=-1) * spread)
    return {"r2": r2, "clipped": np.maximum(r2, 0.0), "squared": squared}


def largest_deviation(mean: float, floor: float, n: int = SPLITS) -> float:
    """Return the largest standard deviation of n values from `floor` to 1 with this mean (Bhatia and Davis)."""
    return math.sqrt(max(0.0, (1 - mean) * (mean - floor)) * n / (n - 1))


def feasibility() -> pd.DataFrame:
    """Check which kinds of R2 allow each printed R2 with its ± over 100 splits: one row per cell of Tables 5-7 and 9.

    Columns table, row, column, n_validation, mean, plus_minus; r2, clipped, squared: possible if the ± is a standard
    deviation over splits, and with _se if it is a standard error of their mean; floor: the highest lower limit of the
    values that leaves the ± possible. Printed numbers may be half a unit of the last digit off.
    """
    rows = []
    for cell in pd.concat([paper.published(number) for number in RATIO_TABLES]).itertuples():
        row = {"table": cell.table, "row": cell.row, "column": cell.column, "n_validation": int(cell.n_validation)}
        row |= {"mean": cell.mean, "plus_minus": cell.plus_minus}
        for suffix, scale in (("", 1.0), ("_se", math.sqrt(SPLITS))):
            bounded = _possible(cell.mean, (cell.plus_minus - HALF_UNIT) * scale)
            row |= {f"r2{suffix}": True, f"clipped{suffix}": bounded}
            row[f"squared{suffix}"] = bounded and cell.n_validation > 2
        row["floor"] = _highest_floor(cell.mean, cell.plus_minus)
        rows.append(row)
    return pd.DataFrame(rows)


def _possible(mean: float, deviation: float) -> bool:
    near = np.linspace(mean - HALF_UNIT, mean + HALF_UNIT, 11)
    return bool(max(largest_deviation(min(one, 1.0), 0.0) for one in near) >= deviation)


def _highest_floor(mean: float, plus_minus: float) -> float:
    """Find the floor at which `largest_deviation` is the printed ±, over all numbers that round to those printed."""
    variance = (plus_minus - HALF_UNIT) ** 2 * (SPLITS - 1) / SPLITS
    means = np.minimum(np.linspace(mean - HALF_UNIT, mean + HALF_UNIT, 101), 1 - 1e-6)
    return float((means - variance / (1 - means)).max())


def smoothness() -> tuple[float, int, float]:
    """Compare how much the means of a column's rows differ with how much they would if the ± were standard errors.

    If each row's splits are drawn anew, its mean is off by its standard error, and the true means may differ besides;
    rows that share their splits differ less. Returns chi2 of the means about their columns' weighted means, its degrees
    of freedom, and the chance of as small a chi2.
    """
    chi2, degrees = 0.0, 0
    for number in RATIO_TABLES:
        for _, cells in paper.published(number).groupby("column", sort=False):
            means, errors = cells["mean"].to_numpy(), cells["plus_minus"].to_numpy()
            chi2 += float((((means - np.average(means, weights=errors**-2)) / errors) ** 2).sum())
            degrees += len(cells) - 1
    return chi2, degrees, float(stats.chi2.cdf(chi2, degrees))
