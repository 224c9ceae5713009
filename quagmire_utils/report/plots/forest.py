"""Forest plots: a row with its interval for each candidate.

fig, axes = practice_figure(found.table, columns=2)
plot_ranking(found, axes[0]); plot_chances(found, axes[1])
plot_forecast(found, axes[0], truth); plot_left_out(found, axes[1])
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from quagmire_utils.report.plots.look import (
    BLUE,
    GREY,
    INK,
    INTERVAL,
    LABEL_SIZE,
    ORANGE,
    log_ticks,
    name_rows,
    new_figure,
    write_note,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quagmire_utils.analysis.forecasting import RLForecast
    from quagmire_utils.analysis.ranking import Ranking

CANDIDATE_ROW = 0.26  # inches
LONGEST = 36  # characters of a candidate's name; of longer ones the beginning and the end are shown
FREE = 18  # characters of a name that fit the usual width
LETTER = 0.075  # inches


# --- the workflows of Sec. 4: how sure a ranking is, and which outcome of RL is forecast ------------------------------


def practice_figure(table: pd.DataFrame, columns: int = 1, width: float = 5.2) -> tuple[Figure, Any]:
    """Make a figure of axes with room for a row and a name per candidate; return it and its axis or axes."""
    width += LETTER * max(0, min(LONGEST, table["candidate"].str.len().max()) - FREE)
    return new_figure(columns=columns, width=width, height=max(3.6, 1.5 + CANDIDATE_ROW * len(table)))


def plot_ranking(found: Ranking, ax: Axes) -> None:
    """Plot Pass@k of each candidate: thin bars for all noise, thick ones for the sampling of answers."""
    table = found.table
    rows = name_rows(ax, [short(name) for name in table["candidate"]])
    value, error, own = (100 * table[name].to_numpy(float) for name in ("pass_k", "pass_k_se", "pass_k_sampling_se"))
    for width, spread, colour in ((1.0, error, GREY), (3.2, own, BLUE)):
        known = ~np.isnan(spread)
        low, high = (value[known] + sign * INTERVAL * spread[known] for sign in (-1, 1))
        ax.hlines(rows[known], low, high, color=colour, linewidth=width, alpha=0.8)
    faces = np.where(table["rank"].isna(), "white", BLUE)
    ax.scatter(value, rows, 34, facecolor=faces, edgecolor=INK, zorder=3)
    ax.set_xlabel(f"Pass@{found.k} before RL (%), 95 % intervals")
    ax.set_title("● in the running   ○ ruled out by score and loss", fontsize=10)


def plot_chances(found: Ranking, ax: Axes) -> None:
    """Plot the chance of each candidate to be the rule's choice: a bar for all noise, a mark for these problems."""
    table = found.table
    ax.set_title("Chance to be the rule's choice", fontsize=10)
    if math.isnan(found.chance):
        write_note(ax, "not known: no standard errors, no counts")
        return
    rows = name_rows(ax, [""] * len(table))
    ax.barh(rows, 100 * table["chance"], height=0.6, color=BLUE, lw=0, label="other problems and traces of the kind")
    if found.samples is not None:
        here = table["chance_here"].to_numpy(float) * 100
        shown = (here >= 0.5) | (table["chance"].to_numpy(float) >= 0.005)  # no row of marks at zero
        look = {"marker": "D", "facecolor": "white", "edgecolor": INK, "zorder": 3, "label": "exactly these"}
        ax.scatter(here[shown], rows[shown], 34, **look)
        ax.legend(loc="lower right", bbox_to_anchor=(0.9, 0.0))  # left of the dashed line
    ax.axvline(100 * found.confidence, color=GREY, linestyle="--", linewidth=1)
    ax.set_xlim(-2, 104)
    ax.set_xlabel(f"% (dashed: {found.confidence:.0%}, settled)")


def plot_settling(found: Ranking, ax: Axes) -> None:
    """Plot the chance of `found.settling` with more answers a problem; dotted: the limit of infinitely many."""
    ax.set_title(f"More answers for {short(found.settling)}", fontsize=10)
    if found.curve.empty:
        write_note(ax, "not known: it takes the counts of correct answers")
        return
    finite = found.curve[np.isfinite(found.curve["n"])]
    looks = (
        ("chance", BLUE, "o", BLUE, "other problems and traces"),
        ("chance_here", ORANGE, "D", "white", "exactly these"),
    )
    for name, colour, marker, face, label in looks:
        ax.plot(finite["n"], 100 * finite[name], color=colour, marker=marker, mfc=face, mec=colour, label=label)
        ax.axhline(100 * found.curve[name].iloc[-1], color=colour, linestyle=":", linewidth=1)
    ax.axhline(100 * found.confidence, color=GREY, linestyle="--", linewidth=1)
    log_ticks(ax, finite["n"])
    ax.set(ylim=(0, 104), xlabel="answers to each problem (the first: now)", ylabel="chance (%)")
    ax.legend(loc="lower right")


def plot_forecast(
    found: RLForecast, ax: Axes, truth: Mapping[str, float] | None = None, next_run: str | None = None
) -> None:
    """Plot outcomes of the RL runs (filled) and forecasts of the others with their intervals (hollow), highest first.

    Orange and dashed: the forecast extrapolates. truth: outcomes that were withheld, drawn as crosses.
    next_run: the advised candidate.
    """
    table = found.table
    names = [("next: " if name == next_run else "") + short(name) for name in table["candidate"]]
    for row, one in zip(name_rows(ax, names), table.itertuples(), strict=True):
        if one.calibrated:
            ax.plot(100 * one.outcome, row, "o", color=INK, ms=6, zorder=3)
            continue
        colour = _interval(ax, row, 100 * one.low, 100 * one.high, one.extrapolated)
        ax.plot(100 * one.predicted, row, "o", mfc="white", mec=colour, mew=1, ms=6, zorder=3)
        if truth is not None and one.candidate in truth:
            ax.plot(100 * truth[one.candidate], row, "x", color=INK, ms=6, mew=1.5, zorder=4)
    withheld = "   × outcome, withheld" if truth else ""
    ax.set_title(f"● RL run   ○ forecast{withheld}", fontsize=10)
    dashed = ", dashed: extrapolated" if (table["extrapolated"] & ~table["calibrated"]).any() else ""
    ax.set_xlabel(f"Pass@1 after RL (%), {found.confidence:.0%} intervals{dashed}")


def plot_left_out(found: RLForecast, ax: Axes) -> None:
    """Plot each RL run's outcome and its forecast from the others, with the interval (cut at the axis)."""
    check = found.check
    known = "" if math.isnan(found.r2) else f": R² {found.r2:.2f}, ranks {found.rank_correlation:.2f}"
    ax.set_title(f"Leave one out{known}", fontsize=10)
    if check.empty:
        write_note(ax, "takes at least four RL runs")
        return
    check = check.sort_values("outcome", ascending=False)
    outcome = 100 * check["outcome"].to_numpy(float)
    reach = max(np.ptp(outcome), 1.0)  # a forecast far off would flatten all others: it is written at the edge
    edges = outcome.min() - reach, outcome.max() + reach
    for row, one in zip(name_rows(ax, [short(name) for name in check["candidate"]]), check.itertuples(), strict=True):
        low, high, middle = (100 * value for value in (one.low, one.high, one.predicted))
        colour = _interval(ax, row, max(low, edges[0]), min(high, edges[1]), one.extrapolated)
        if edges[0] < middle < edges[1]:
            ax.plot(middle, row, "o", mfc="none", mec=colour, mew=1.6, ms=8, zorder=5)  # around a matching outcome
        else:
            right = middle >= edges[1]
            place = {"ha": "right" if right else "left", "va": "bottom", "fontsize": LABEL_SIZE}
            ax.text(edges[int(right)], row + 0.12, f"{middle:.0f} →" if right else f"← {middle:.0f}", **place)
        ax.plot(100 * one.outcome, row, "o", color=INK, ms=6, zorder=4)
    ax.locator_params(axis="x", nbins=6)
    ax.set_xlim(edges[0] - 0.03 * reach, edges[1] + 0.03 * reach)
    ax.set_xlabel("● outcome   ○ forecast by the others (%)")


def _interval(ax: Axes, row: float, low: float, high: float, extrapolated: bool) -> str:
    colour = ORANGE if extrapolated else BLUE
    ax.hlines(row, low, high, color=colour, linestyle="--" if extrapolated else "-", linewidth=1.6)
    return colour


def short(name: str) -> str:
    """Return a name of at most `LONGEST` characters: its beginning and its end."""
    half = LONGEST // 2
    return name if len(name) <= LONGEST else f"{name[: half - 1]}…{name[-half:]}"
