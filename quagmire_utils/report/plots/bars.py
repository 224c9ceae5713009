"""Recipes side by side as bars from zero: Figs. 6 (sources, repetition, learning rate) and 10 (mixtures)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from quagmire_utils.report.plots.look import (
    GREY,
    INK,
    SAND,
    SKY,
    candidate_labels,
    entries_of,
    halo,
    legend_above,
    new_figure,
    per_cent,
)
from quagmire_utils.report.plots.series import Panel, half_widths

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STAGES = {"pass1": ("after SFT", SAND, "//", -1), "outcome": ("after RL", SKY, "", 1)}  # label, fill, hatch, side
WIDTH = 0.38  # of a bar, where recipes are 1 apart


def plot_recipes(panel: Panel, ax: Axes, labels: Sequence[str] = ()) -> None:
    """Draw two bars for each candidate, Pass@1 after SFT and after RL, with 95 % intervals; the base comes first.

    labels: below the bars of the candidates. Short dashes: single RL runs. Grey line: the base after RL.
    """
    if not panel.begin(ax, title=panel.title, ylabel="Pass@1 (%)"):
        return
    rows = pd.concat([panel.base, panel.candidates], ignore_index=True)
    names = ["base\n(no SFT)"] * len(panel.base) + (list(labels) or candidate_labels(panel.candidates, repeats=False))
    highest = 0.01
    for stage, (label, fill, hatch, side) in STAGES.items():
        column = "pass1" if stage == "pass1" else panel.outcome
        place, halves = np.arange(len(rows)) + side * WIDTH / 2, half_widths(rows, column)
        look = {"color": fill, "hatch": hatch, "edgecolor": INK, "linewidth": 0.6}
        ax.bar(place, rows[column], WIDTH, label=label, zorder=2, **look)
        ax.errorbar(place, rows[column], halves, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2.5, zorder=4)
        tops = (rows[column] + np.nan_to_num(halves)).to_numpy()
        if stage == "outcome":
            runs = panel.draw_runs(ax, rows, place, s=90, zorder=3, label="an RL run")
            tops = np.fmax(tops, runs.groupby("candidate")["score"].max().reindex(rows["candidate"]).to_numpy(float))
        text = {"fontsize": 7.5, "color": INK, "ha": "center", "va": "bottom", "path_effects": halo(), "zorder": 5}
        for x, value, top in zip(place, rows[column], tops, strict=True):
            ax.annotate(f"{100 * value:.0f}", (x, top), xytext=(0, 2), textcoords="offset points", **text)
        highest = max(highest, float(np.nanmax(tops)))
    for value in panel.base[panel.outcome]:
        ax.axhline(value, color=GREY, lw=1.3, zorder=1.5, label="base (no SFT) after RL")
    ax.set_xticks(range(len(rows)), names, fontsize=8.5)
    ax.set_xlim(-0.6, len(rows) - 0.4)
    ax.set_ylim(0, 1.1 * highest)
    ax.grid(False, axis="x")
    per_cent(ax, "y")


def recipe_grid(panels: Sequence[Panel], labels: Sequence[Sequence[str]] = ()) -> Figure:
    """Draw `plot_recipes` for each panel on a common scale, side by side, with one legend above."""
    most = max([len(panel.candidates) + len(panel.base) for panel in panels if len(panel.candidates)] or [6])
    width = max(6.4, 0.85 * most) if len(panels) == 1 else max(4.2, 0.78 * most)
    fig, axes = new_figure(len(panels), 1, width, 4.4, squeeze=False)
    for i, (panel, ax) in enumerate(zip(panels, axes.flat, strict=True)):
        plot_recipes(panel, ax, labels[i] if labels else ())
    drawn = [ax for ax, panel in zip(axes.flat, panels, strict=True) if len(panel.candidates)]
    for ax in drawn:
        ax.set_ylim(0, max(other.get_ylim()[1] for other in drawn))
    order = {label: i for i, (label, *_) in enumerate(STAGES.values())}
    legend_above(fig, sorted(entries_of(drawn), key=lambda entry: order.get(entry.get_label(), len(order))))
    return fig
