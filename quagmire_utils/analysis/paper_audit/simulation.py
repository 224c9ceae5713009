"""The paper's protocol on random candidates: how much of a ± is the split, and what so few candidates can show.

Candidates are drawn so that predictor and outcome have exactly a given sample correlation (Pearson's), otherwise as
normal variables. What then varies over splits is due to the split alone, and what varies between draws is due to how
the same correlation is spread over the candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from quagmire_utils.analysis.paper_audit.kinds import KINDS, RATIO_TABLES, SPLITS, r2_values
from quagmire_utils.core import published as paper
from quagmire_utils.core.errors import ParameterError

CORRELATIONS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995)
DRAWS = 100  # of candidates
SHOWN = (0.025, 0.975)
SETTLED = 4  # candidates on either side of a split, for a mean R2 that does not depend on single splits

Array = NDArray[np.float64]


def draw_candidates(draws: int, total: int, rng: np.random.Generator, *, even: bool) -> tuple[Array, Array]:
    """Draw one side x and independent parts e, (draws, total): r x + sqrt(1 - r^2) e has sample correlation r with x.

    even: x is evenly spaced, else normal.
    """
    x, e = rng.standard_normal((2, draws, total))
    if even:
        x = np.tile(np.arange(total, dtype=np.float64), (draws, 1))
    x -= x.mean(axis=1, keepdims=True)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    e -= e.mean(axis=1, keepdims=True)
    e -= (e * x).sum(axis=1, keepdims=True) * x
    return x, e / np.linalg.norm(e, axis=1, keepdims=True)


def protocol(
    total: int,
    fits: Sequence[int],
    correlations: Sequence[float] = CORRELATIONS,
    draws: int = DRAWS,
    splits: int = SPLITS,
    seed: int = 0,
    outcomes: Literal["normal", "even"] = "normal",
) -> pd.DataFrame:
    """Compute mean and standard deviation of R2 over random splits: one row per kind, n_fit, correlation and draw.

    total: candidates; fits: how many of them are fitted. The same candidates and splits serve every correlation.
    outcomes: "even" spaces the outcomes evenly, which favours R2 because no two are close; then the predictor is the
    noisy side. Columns kind, n_fit, correlation, draw, mean, std.
    """
    rng = np.random.default_rng(seed)
    x, e = draw_candidates(draws, total, rng, even=outcomes == "even")
    which = np.arange(draws)[:, None, None]
    parts = []
    for n_fit in fits:
        order = rng.random((draws, splits, total)).argsort(axis=2)
        sides = [(x[which, rows], e[which, rows]) for rows in (order[..., :n_fit], order[..., n_fit:])]
        for r in correlations:
            mixed = [r * one + math.sqrt(1 - r * r) * noise for one, noise in sides]
            (x_fit, x_held), (y_fit, y_held) = [one for one, _ in sides], mixed
            if outcomes == "even":
                (x_fit, x_held), (y_fit, y_held) = (y_fit, y_held), (x_fit, x_held)
            mean_x, mean_y = x_fit.mean(axis=2, keepdims=True), y_fit.mean(axis=2, keepdims=True)
            slope = ((x_fit - mean_x) * (y_fit - mean_y)).sum(axis=2) / ((x_fit - mean_x) ** 2).sum(axis=2)
            predicted = mean_y + slope[..., None] * (x_held - mean_x)
            for kind, values in r2_values(y_held, predicted).items():
                summary = {"mean": values.mean(axis=1), "std": values.std(axis=1, ddof=1)}
                place = {"kind": kind, "n_fit": n_fit, "correlation": r, "draw": np.arange(draws)}
                parts.append(pd.DataFrame({**place, **summary}))
    return pd.concat(parts, ignore_index=True)


@cache
def split_alone(number: int) -> pd.DataFrame:
    """Compare a table's means and ± with those of simulated candidates: one row per kind of R2 and printed cell.

    A column's rows share their candidates, hence one correlation: the one whose median means come nearest to the
    printed means (least absolute deviations) of the rows with four candidates or more on either side. The ± play no
    part in the choice. mean, plus_minus: printed; expected_mean, expected_std: medians over draws; low, high: 95 % of
    the draws' standard deviations; inside: the printed ± is in that range; ratio: expected_std / plus_minus.
    """
    if number not in RATIO_TABLES:
        raise ParameterError("number", number, f"one of {', '.join(map(str, RATIO_TABLES))}")
    cells = paper.published(number)
    simulated = protocol(total_candidates(number), tuple(dict.fromkeys(cells["n_fit"].astype(int))))
    grouped = simulated.groupby(["kind", "correlation", "n_fit"])
    medians = grouped[["mean", "std"]].median()
    lowest, highest = (grouped["std"].quantile(share) for share in SHOWN)
    parts = []
    for _, printed in cells.astype({"n_fit": int, "n_validation": int}).groupby("column", sort=False):
        printed = printed.set_index("n_fit")[["table", "column", "row", "n_validation", "mean", "plus_minus"]]
        settled = printed[(printed.index >= SETTLED) & (printed["n_validation"] >= SETTLED)]["mean"]
        for kind in KINDS:
            off = {r: (medians.loc[kind, r]["mean"][settled.index] - settled).abs().sum() for r in CORRELATIONS}
            r = min(off, key=off.get)
            expected = medians.loc[kind, r].add_prefix("expected_")
            expected = expected.assign(low=lowest.loc[kind, r], high=highest.loc[kind, r])
            parts.append(printed.assign(kind=kind, correlation=r).join(expected))
    table = pd.concat(parts).reset_index()
    inside = table["plus_minus"].between(table["low"] - 0.005, table["high"] + 0.005)
    return table.assign(inside=inside, ratio=table["expected_std"] / table["plus_minus"])


def total_candidates(number: int) -> int:
    """Return how many candidates a table of fit sizes has."""
    first = paper.published(number).iloc[0]
    return int(first["n_fit"] + first["n_validation"])


def fit_explains(r2: float, total: int, fits: Sequence[int], draws: int = 400) -> pd.DataFrame:
    """Compute the mean R2 on predicted candidates where the line through all explains `r2`.

    Columns kind, n_fit, median, low, high (95 % of the draws of candidates).
    """
    means = protocol(total, fits, (math.sqrt(r2),), draws).groupby(["kind", "n_fit"])["mean"]
    shares = {"median": 0.5, "low": SHOWN[0], "high": SHOWN[1]}
    table = pd.DataFrame({name: means.quantile(share) for name, share in shares.items()})
    return table.loc[list(KINDS)].reset_index()


def rank_interval(value: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a rank correlation of n candidates (Fisher; Bonett and Wright's variance, 2000)."""
    half = stats.norm.ppf(SHOWN[1]) * math.sqrt((1 + value**2 / 2) / (n - 3))
    return math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half)


def rank_gain_range(baseline: float, better: float, n: int, draws: int = 4000) -> tuple[float, float, float]:
    """Return the gain in rank correlation that n candidates show: (low, high, share of draws without a gain).

    baseline, better: true rank correlations of two predictors with the outcome. All variables are normal, and the two
    predictors are independent given the outcome (a correlation would narrow the range).
    """
    rng = np.random.default_rng(0)
    outcome = rng.standard_normal((draws, n))
    ranks = stats.rankdata(outcome, axis=1) - (n + 1) / 2
    found = []
    for rho in (baseline, better):
        r = 2 * math.sin(math.pi * rho / 6)  # Pearson's correlation of normal variables
        x = r * outcome + math.sqrt(1 - r**2) * rng.standard_normal((draws, n))
        x = stats.rankdata(x, axis=1) - (n + 1) / 2
        found.append((x * ranks).sum(axis=1) / (ranks**2).sum(axis=1))
    gain = found[1] - found[0]
    low, high = np.quantile(gain, SHOWN)
    return float(low), float(high), float((gain <= 1e-12).mean())


def what_candidates_show() -> pd.DataFrame:
    """Return the rank correlations of Tables 1 and 3 with the interval that their number of candidates allows.

    n: candidates of the family's table of fit sizes; gain: printed, over Pass@1; gain_low, gain_high, no_gain: the
    result of `rank_gain_range` if that is the true gain.
    """
    totals = {}
    for number in RATIO_TABLES:
        totals[tuple(paper.published(number)[["scenario", "family"]].iloc[0])] = total_candidates(number)
    rows = []
    for number in (1, 3):
        for family, cells in paper.published(number).groupby("family", sort=False):
            n = totals[cells["scenario"].iloc[0], family]
            baseline = cells.loc[cells["column"] == paper.BASELINE, "mean"].item()
            for cell in cells.itertuples():
                low, high = rank_interval(cell.mean, n)
                row = {"table": number, "family": family, "column": cell.column, "n": n, "value": cell.mean}
                row |= {"low": low, "high": high}
                if cell.column != paper.BASELINE:
                    row["gain"] = cell.mean - baseline
                    row["gain_low"], row["gain_high"], row["no_gain"] = rank_gain_range(baseline, cell.mean, n)
                rows.append(row)
    return pd.DataFrame(rows)
