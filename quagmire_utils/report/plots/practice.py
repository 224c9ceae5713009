"""Pictures of the two workflows of Sec. 4: how sure a ranking is, and what RL is forecast to make of each candidate.

    fig, axes = practice_figure(found.table, columns=2)
    plot_ranking(found, axes[0]); plot_chances(found, axes[1])
    plot_settling(found, ax)                       # what more answers would change
    plot_forecast(found, axes[0], truth); plot_left_out(found, axes[1])

A row per candidate, best first, so that no name covers a point.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from quagmire_utils.report.plots.look import GREY, INK, INTERVAL, LABEL_SIZE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quagmire_utils.analysis.forecasting import RLForecast
    from quagmire_utils.analysis.ranking import Ranking

BLUE, ORANGE = "#0b5394", "#d9822b"
ROW = 0.26  # inches for a candidate
LONGEST = 36  # characters of a name that are shown; of longer ones the beginning and the end
FREE = 18  # characters of a name that the usual width has room for
LETTER = 0.075  # inches


def practice_figure(table: pd.DataFrame, columns: int = 1, width: float = 5.2) -> tuple[Figure, Any]:
    """A figure of axes with room for a row and a name per candidate of `table`: (figure, axis or array of axes)."""
    width += LETTER * max(0, min(LONGEST, table["candidate"].str.len().max()) - FREE)
    return new_figure(columns=columns, width=width, height=max(3.6, 1.5 + ROW * len(table)))


def plot_ranking(found: Ranking, ax: Axes) -> None:
    """Pass@k of each candidate: thin bars for all noise, thick ones for the sampling of answers; hollow: ruled out."""
    table = found.table
    rows = np.arange(len(table))[::-1]
    value, error, own = (100 * table[name].to_numpy(float) for name in ("pass_k", "pass_k_se", "pass_k_sampling_se"))
    for width, spread, colour in ((1.0, error, GREY), (3.2, own, BLUE)):
        known = ~np.isnan(spread)
        low, high = (value + sign * INTERVAL * spread for sign in (-1, 1))
        ax.hlines(rows[known], low[known], high[known], color=colour, linewidth=width, alpha=0.8)
    out = table["rank"].isna().to_numpy()
    for mine, face in ((~out, BLUE), (out, "white")):
        if mine.any():
            ax.scatter(value[mine], rows[mine], 34, facecolor=face, edgecolor=INK, zorder=3)
    _candidate_rows(ax, table["candidate"])
    ax.set_xlabel(f"Pass@{found.k} before RL (%), 95 % intervals")
    ax.set_title("● in the running   ○ ruled out by score and loss", loc="left", fontsize=10)


def plot_chances(found: Ranking, ax: Axes) -> None:
    """Chance of each candidate to be the rule's choice: bars for all noise, a mark for exactly these problems."""
    table = found.table
    rows = np.arange(len(table))[::-1]
    ax.set_title("Chance to be the rule's choice", loc="left", fontsize=10)
    ax.set_yticks(rows, [""] * len(rows))
    ax.set_ylim(-0.7, len(rows) - 0.3)
    if math.isnan(found.chance):
        place = {"ha": "center", "va": "center", "transform": ax.transAxes, "color": GREY}
        ax.text(0.5, 0.5, "not known: no standard errors, no counts", **place)
        ax.set_xticks([])
        return
    ax.barh(rows, 100 * table["chance"], height=0.6, color=BLUE, label="other problems and traces of the kind")
    if found.samples is not None:
        here = table["chance_here"].to_numpy(float) * 100
        shown = (here >= 0.5) | (table["chance"].to_numpy(float) >= 0.005)  # no row of marks at zero
        look = {"marker": "D", "facecolor": "white", "edgecolor": INK, "zorder": 3, "label": "exactly these"}
        ax.scatter(here[shown], rows[shown], 34, **look)
        ax.legend(loc="lower right", bbox_to_anchor=(0.9, 0.0), frameon=False)  # left of the dashed line
    ax.axvline(100 * found.confidence, color=GREY, linestyle="--", linewidth=1)
    ax.set_xlim(-2, 104)
    ax.set_xlabel(f"% (dashed: {found.confidence:.0%}, settled)")


def plot_settling(found: Ranking, ax: Axes) -> None:
    """The chance of `found.settling` with more answers a problem; dotted: with endlessly many."""
    ax.set_title(f"More answers for {short(found.settling)}", loc="left", fontsize=10)
    if found.curve.empty:
        place = {"ha": "center", "va": "center", "transform": ax.transAxes, "color": GREY}
        ax.text(0.5, 0.5, "not known: it takes the counts of correct answers", **place)
        ax.set_xticks([])
        ax.set_yticks([])
        return
    finite = found.curve[np.isfinite(found.curve["n"])]
    looks = (("chance", BLUE, "o", "other problems and traces"), ("chance_here", ORANGE, "D", "exactly these"))
    for name, colour, marker, label in looks:
        face = colour if name == "chance" else "white"
        ax.plot(finite["n"], 100 * finite[name], color=colour, marker=marker, mfc=face, mec=colour, label=label)
        ax.axhline(100 * found.curve[name].iloc[-1], color=colour, linestyle=":", linewidth=1)
    ax.axhline(100 * found.confidence, color=GREY, linestyle="--", linewidth=1)
    ax.set_xscale("log", base=2)
    ax.set_xticks(finite["n"], [f"{n:,.0f}" for n in finite["n"]])
    ax.minorticks_off()
    ax.set_ylim(0, 104)
    ax.set_xlabel("answers to each problem (the first: now)")
    ax.set_ylabel("chance (%)")
    ax.legend(loc="lower right", frameon=False)


def plot_forecast(found: RLForecast, ax: Axes, truth: Mapping[str, float] | None = None) -> None:
    """Outcomes of the RL runs (filled) and forecasts of the others with their intervals (hollow), highest first.

    Orange and dashed: the forecast extrapolates. truth: outcomes that were withheld, drawn as crosses.
    """
    table = found.table
    rows = np.arange(len(table))[::-1]
    for row, one in zip(rows, table.itertuples(), strict=True):
        if one.calibrated:
            ax.plot(100 * one.outcome, row, "o", color=INK, ms=6, zorder=3)
            continue
        colour = ORANGE if one.extrapolated else BLUE
        style = "--" if one.extrapolated else "-"
        ax.hlines(row, 100 * one.low, 100 * one.high, color=colour, linestyle=style, linewidth=1.6)
        ax.plot(100 * one.predicted, row, "o", mfc="white", mec=colour, ms=6, zorder=3)
        if truth is not None and one.candidate in truth:
            ax.plot(100 * truth[one.candidate], row, "x", color=INK, ms=6, mew=1.5, zorder=4)
    _candidate_rows(ax, table["candidate"], found.advised_run)
    withheld = "   × outcome, withheld" if truth else ""
    ax.set_title(f"● RL run   ○ forecast{withheld}", loc="left", fontsize=10)
    dashed = ", dashed: extrapolated" if (table["extrapolated"] & ~table["calibrated"]).any() else ""
    ax.set_xlabel(f"Pass@1 after RL (%), {found.confidence:.0%} intervals{dashed}")


def plot_left_out(found: RLForecast, ax: Axes) -> None:
    """Each RL run's outcome and its forecast from the others, with the interval (cut at the axis)."""
    check = found.check
    known = "" if math.isnan(found.r2) else f": R² {found.r2:.2f}, ranks {found.rank_correlation:.2f}"
    ax.set_title(f"Leave one out{known}", loc="left", fontsize=10)
    if check.empty:
        place = {"ha": "center", "va": "center", "transform": ax.transAxes, "color": GREY}
        ax.text(0.5, 0.5, "takes at least four RL runs", **place)
        ax.set_xticks([])
        ax.set_yticks([])
        return
    check = check.sort_values("outcome", ascending=False)
    outcome = 100 * check["outcome"].to_numpy(float)
    reach = max(np.ptp(outcome), 1.0)  # a forecast that is far off would flatten all others: it is written at the edge
    edges = outcome.min() - reach, outcome.max() + reach
    for row, one in zip(np.arange(len(check))[::-1], check.itertuples(), strict=True):
        colour = ORANGE if one.extrapolated else BLUE
        low, high, middle = (100 * value for value in (one.low, one.high, one.predicted))
        style = "--" if one.extrapolated else "-"
        ax.hlines(row, max(low, edges[0]), min(high, edges[1]), color=colour, linestyle=style, linewidth=1.6)
        if edges[0] < middle < edges[1]:
            ax.plot(middle, row, "o", mfc="none", mec=colour, mew=1.6, ms=8, zorder=5)  # around a matching outcome
        else:
            right = middle >= edges[1]
            place = {"ha": "right" if right else "left", "va": "bottom", "fontsize": LABEL_SIZE}
            ax.text(edges[int(right)], row + 0.12, f"{middle:.0f} →" if right else f"← {middle:.0f}", **place)
        ax.plot(100 * one.outcome, row, "o", color=INK, ms=6, zorder=4)
    ax.locator_params(axis="x", nbins=6)
    ax.set_xlim(edges[0] - 0.03 * reach, edges[1] + 0.03 * reach)
    _candidate_rows(ax, check["candidate"])
    ax.set_xlabel("● outcome   ○ forecast by the others (%)")


def _candidate_rows(ax: Axes, names: Iterable[str], next_run: str | None = None) -> None:
    labels = [("next: " if name == next_run else "") + short(name) for name in names]
    # a dollar sign would begin a formula
    ax.set_yticks(np.arange(len(labels))[::-1], [text.replace("$", r"\$") for text in labels], fontsize=LABEL_SIZE)
    ax.set_ylim(-0.7, len(labels) - 0.3)
    ax.grid(axis="y", visible=False)


def short(name: str) -> str:
    """A name of at most LONGEST characters: what candidates of one study differ by is often at the end."""
    half = LONGEST // 2
    return name if len(name) <= LONGEST else f"{name[: half - 1]}…{name[-half:]}"
