"""Claims that a measurement before RL foretells the outcome better than Pass@1 does: Tables 1 to 10.

Gains in Spearman's correlation, with a paired bootstrap over candidates, are those of the tables: over all candidates
in Table 1, the mean within SFT budgets in Tables 3, 8 and 10. Gains in R2 are not:
R2 on few predicted candidates has no lower bound, and its mean over splits, which the paper and our tables print, can
hang on one split through two candidates of almost equal score. The claims rest on the median over splits, with a
jackknife over candidates.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy import stats

from quagmire_utils.analysis import tables
from quagmire_utils.analysis.claims.claim import (
    MIN_CANDIDATES,
    Estimate,
    Interval,
    percentiles,
    student,
    too_few,
    unknown,
)
from quagmire_utils.analysis.claims.evidence import Evidence
from quagmire_utils.analysis.claims.over_candidates import BOOTSTRAP
from quagmire_utils.analysis.fits import bootstrap_interval, fit_predict_r2
from quagmire_utils.analysis.records import select_candidates
from quagmire_utils.core import published as paper

JACKKNIFE = "choice of candidates (jackknife)"
SPLITS = 500  # random splits behind a median


def rank_gain(evidence: Evidence, number: int, column: str) -> Estimate:
    """Spearman's correlation of predicted and actual outcome from `column`, minus that from Pass@1 (Table 1)."""
    cells = paper.published(number)
    known = _known(evidence, cells["scenario"].iloc[0], cells["column"].unique())
    statistic = f"gain in rank correlation, {_title(evidence, column)}"
    if len(known) < MIN_CANDIDATES:
        return too_few(statistic, len(known))
    value, replicates = _rank_gain(known, column, evidence.outcome, seed=0)
    return Estimate(value, statistic, len(known), percentiles(replicates), BOOTSTRAP)


def rank_gain_within_budgets(evidence: Evidence, number: int, column: str) -> Estimate:
    """The gain in rank correlation within each SFT budget, averaged (Tables 3, 8, 10); bootstrap within budgets.

    Value and interval are those of the table: none where a budget has fewer candidates than can be resampled.
    """
    cells = paper.published(number)
    known = _known(evidence, cells["scenario"].iloc[0], cells["column"].unique())
    groups = [known[known["budget"] == name] for name in tables.BUDGETS]
    statistic = f"gain in rank correlation within SFT budgets, averaged, {_title(evidence, column)}"
    fewest = min(map(len, groups))
    if fewest < tables.MIN_CANDIDATES:
        return too_few(statistic, fewest, "candidates in the smallest budget")
    found = [_rank_gain(part, column, evidence.outcome, seed) for seed, part in enumerate(groups)]
    value = float(np.mean([gain for gain, _ in found]))
    replicates = np.mean([replicates for _, replicates in found], axis=0)
    statistic += f" ({' + '.join(str(len(part)) for part in groups)})"
    n = sum(map(len, groups))
    if fewest < tables.MIN_RESAMPLED:
        return Estimate(value, f"{statistic}; too few for an interval", n, unknown, BOOTSTRAP)
    return Estimate(value, statistic, n, percentiles(replicates), BOOTSTRAP)


def fit_gain(evidence: Evidence, number: int, column: str) -> Estimate:
    """Median R2 on predicted candidates from `column` minus that from Pass@1, half of them fitted (Tables 2, 4)."""
    cells = paper.published(number)
    known = _known(evidence, cells["scenario"].iloc[0], cells["column"].unique())
    statistic = f"gain in median R² over splits, {_title(evidence, column)}"
    if len(known) < MIN_CANDIDATES:
        return too_few(statistic, len(known))
    value, error = _fit_gain(known, column, evidence.outcome, len(known) // 2)
    return Estimate(value, statistic, len(known), student(value, error, len(known) - 1), JACKKNIFE)


def smallest_fit_gain(evidence: Evidence, number: int, column: str) -> Estimate:
    """The smallest gain in median R2 over all ratios of fitted and predicted candidates (Tables 5, 6, 7, 9).

    The lower end is the lowest of the ratios' single lower ends; the upper end allows for their number (Bonferroni), so
    that the claim fails only where one ratio's gain is below zero when all are looked at together.
    """
    cells = paper.published(number)
    known = _known(evidence, cells["scenario"].iloc[0], cells["column"].unique())
    statistic = f"smallest gain in median R² over the ratios, {_title(evidence, column)}"
    sizes = [size for size in dict.fromkeys(cells["n_fit"].astype(int)) if size <= len(known) - 3]
    if len(known) < MIN_CANDIDATES or not sizes:
        return too_few(statistic, len(known))
    gains, errors = np.array([_fit_gain(known, column, evidence.outcome, size) for size in sizes]).T
    least = sizes[int(gains.argmin())]
    statistic += f" ({least}:{len(known) - least} of {len(sizes)} ratios)"
    interval = _smallest(gains, errors, len(known) - 1)
    return Estimate(float(gains.min()), statistic, len(known), interval, JACKKNIFE)


def published_gain(number: int, model: str, column: str) -> float:
    """What the paper prints: the gain of one row, of the averages (Tables 8, 10), or the smallest of all ratios."""
    cells = paper.published(number)
    cells = cells[cells["family"] == model]
    wide = cells.pivot_table(index="row", columns="column", values="mean")
    gains = wide[column] - wide[paper.BASELINE]
    return float(gains["Average"] if "Average" in gains else gains.min())


def _known(evidence: Evidence, scenario: str, columns: np.ndarray) -> pd.DataFrame:
    chosen = select_candidates(evidence.frame, evidence.family, scenario)
    needed = {name for column in columns for name in tables.PREDICTORS[column]}
    return chosen.dropna(subset=[*sorted(needed), evidence.outcome])


def _rank_gain(known: pd.DataFrame, column: str, outcome: str, seed: int) -> tuple[float, np.ndarray]:
    after = known[outcome].to_numpy(np.float64)
    mine, theirs = (
        bootstrap_interval([known[name].to_numpy(np.float64) for name in tables.PREDICTORS[one]], after, seed=seed)
        for one in (column, paper.BASELINE)
    )
    return mine.estimate - theirs.estimate, mine.replicates - theirs.replicates


def _fit_gain(known: pd.DataFrame, column: str, outcome: str, n_fit: int) -> tuple[float, float]:
    """Gain in median R2 and its delete-one jackknife error; both predictors on the same splits."""
    after = known[outcome].to_numpy(np.float64)
    series = [
        np.array([known[name].to_numpy(np.float64) for name in tables.PREDICTORS[one]]).T
        for one in (column, paper.BASELINE)
    ]
    everyone = np.arange(len(known))
    gains = []
    for kept in (everyone, *(np.delete(everyone, one) for one in everyone)):
        medians = [np.nanmedian(fit_predict_r2(x[kept], after[kept], n_fit, SPLITS).r2) for x in series]
        gains.append(medians[0] - medians[1])
    return float(gains[0]), math.sqrt((len(known) - 1) * np.var(gains[1:]))


def _title(evidence: Evidence, column: str) -> str:
    return tables.predictor_title(column, int(evidence.frame["k"].iloc[0]))


def _smallest(gains: np.ndarray, errors: np.ndarray, degrees: int) -> Interval:
    def interval(confidence: float) -> tuple[float, float]:
        tail = (1 - confidence) / 2
        single, several = (float(stats.t.ppf(1 - tail / share, degrees)) for share in (1, len(gains)))
        low, high = (gains - single * errors).min(), (gains + several * errors).min()
        return (math.nan, math.nan) if math.isnan(low) else (float(low), float(high))

    return interval
