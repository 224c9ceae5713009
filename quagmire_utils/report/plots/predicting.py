"""How well predictors of the outcome do: lines with intervals along an axis, and a row with its interval for each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from quagmire_utils.report.plots.look import BLUE, GREY, INK, ORANGE, SKY, log_ticks, name_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHIFT = 1.025  # between the bars of two lines at the same x
LOOKS = ((GREY, "o", "-"), (BLUE, "s", "-"), (ORANGE, "D", "--"), (SKY, "^", "-."), (INK, "v", ":"))


def plot_lines(table: pd.DataFrame, ax: Axes, titles: Mapping[Any, str]) -> None:
    """Plot value, with a bar from low to high, along a logarithmic axis: one line for each of the titles.

    table: rows by (x, series), columns value, low, high. titles: of at most five series; each is shifted a little.
    """
    for number, ((name, title), (colour, marker, line)) in enumerate(zip(titles.items(), LOOKS, strict=False)):
        part = table.xs(name, level=1)
        place = part.index * SHIFT ** (number - (len(titles) - 1) / 2)
        ax.vlines(place, part["low"], part["high"], color=colour, lw=1.2, alpha=0.7)
        ax.plot(place, part["value"], color=colour, marker=marker, ls=line, ms=5, label=title)
    log_ticks(ax, table.index.unique(level=0))


def plot_intervals(table: pd.DataFrame, ax: Axes, names: Mapping[Any, str], *, mark: Collection[Any] = ()) -> None:
    """Plot one row for each of the names: value and interval; the names in `mark` stand out.

    table: rows by the keys of `names`, columns value, low, high; a missing value is written as "not measured".
    """
    for name, row in zip(names, name_rows(ax, list(names.values())), strict=True):
        one, colour = table.loc[name], BLUE if name in mark else INK
        if pd.isna(one["value"]):
            ax.text(0.02, row, "not measured", transform=ax.get_yaxis_transform(), va="center", fontsize=8, color=GREY)
            continue
        ax.hlines(row, one["low"], one["high"], color=colour, lw=1.8)
        ax.plot(one["value"], row, "o", color=colour, ms=6, zorder=3)


def plot_rungs(values: pd.DataFrame, ax: Axes, names: Sequence[str], title: str) -> None:
    """Plot rank correlations of one rung of evidence: a row per predictor, a point per set, a bar at their mean.

    values: a row per set of candidates, a column per predictor, NaN where it was not measured.
    """
    ax.set(title=title, xlabel="rank correlation")
    rows = name_rows(ax, list(names))
    ax.axvline(0, color=GREY, lw=0.8)
    if values.empty:
        ax.text(0.5, rows.mean(), "not run", ha="center", va="center", fontsize=13, color=INK)
        return
    for row, column, colour in zip(rows, values, (GREY, ORANGE, BLUE), strict=True):
        known = values[column].dropna()
        place = row + 0.24 * (np.arange(len(known)) / max(len(known) - 1, 1) - 0.5)
        ax.plot(known, place, "o", mfc=colour, mec=INK, ms=6, alpha=0.85)
        if len(known):
            ax.plot([known.mean()] * 2, [row - 0.36, row + 0.36], color=INK, lw=3, solid_capstyle="butt")
            ax.annotate(f"{known.mean():.2f}", (known.mean(), row + 0.4), ha="center", va="bottom", fontsize=9)
