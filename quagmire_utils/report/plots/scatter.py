"""Candidates of the dataset level, before and after RL: Figs. 3 and 5 of the paper."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from quagmire_utils.report.plots.look import (
    GREY,
    INK,
    along_bars,
    candidate_labels,
    label_points,
    legend_entry,
    log_ticks,
    not_run,
    per_cent,
    shades,
)
from quagmire_utils.report.plots.series import Panel, counted, half_widths, places, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from quagmire_utils.analysis.fits import LinearFit

# a dot in a marker: a learning rate that is not the most common one of the figure
DOT: dict[str, Any] = {"ls": "", "marker": ".", "color": INK, "ms": 4.5, "mec": "white", "mew": 0.5}


def plot_sft_vs_rl(panel: Panel, fit: LinearFit | None, ax: Axes) -> None:
    """Plot Pass@1 after SFT against the outcome after RL, a marker for each candidate, and the fitted line (Fig. 3).

    The base model is hollow and not in the fit. Marker: number of unique examples; lightness: epochs; dot: another
    learning rate. Below two candidates there is no line (`fit` is None), and the axis says so.
    """
    ax.set_xlabel("Pass@1 after SFT (%), mean of the benchmarks")
    ax.set_ylabel("Pass@1 after RL (%)")
    candidates, outcome = panel.candidates, panel.outcome
    if not_run(ax, candidates, panel.profile, needs=2) or fit is None:
        return
    colours = shades(sorted(candidates["epochs"].unique()))
    everyone = pd.concat([candidates, panel.base])
    ends = np.array([candidates["pass1"].min(), candidates["pass1"].max()])
    ax.plot(ends, fit.intercept + fit.slope * ends, "-", color=GREY, lw=1.5, zorder=1)
    x, y = everyone["pass1"].to_numpy(), everyone[outcome].to_numpy()
    sides = half_widths(everyone, "pass1"), half_widths(everyone, outcome)
    ax.errorbar(x, y, sides[1], sides[0], fmt="none", ecolor=GREY, elinewidth=0.8)
    shapes: dict[str, Any] = {}
    for one in series(candidates, "n_examples"):
        points = one.rows["pass1"], one.rows[outcome]
        face = [colours[epochs] for epochs in one.rows["epochs"]]
        ax.scatter(*points, s=70, marker=one.marker, c=face, edgecolors=INK, linewidths=0.8, zorder=3)
        shapes[one.label] = legend_entry(one.label, marker=one.marker, ms=8, mfc="white")
        if one.rate is not None:
            ax.plot(*points, **DOT, zorder=5)
    if len(panel.base):
        points = panel.base["pass1"], panel.base[outcome]
        ax.scatter(*points, s=110, facecolors="none", edgecolors=INK, linewidths=1.8, zorder=3)
        shapes["base"] = legend_entry("no SFT (not in the fit)", marker="o", ms=10, mfc="none", mew=1.8)
    fills = [
        legend_entry(counted(epochs, "epoch"), marker="s", ms=8, mfc=colour, mec="none")
        for epochs, colour in colours.items()
    ]
    per_cent(ax, "xy")
    ax.margins(0.1, 0.1)
    ax.set_title(f"Linear fit: R² = {fit.r2:.2f}, n = {fit.n} candidates")
    ax.legend(handles=[*shapes.values(), *fills, *_rate_entry(candidates)], loc="upper left", bbox_to_anchor=(1.0, 1.0))
    line = np.linspace(*ends, 60)
    along = zip(line, fit.intercept + fit.slope * line, strict=True)
    label_points(ax, x, y, candidate_labels(everyone), [*along_bars(x, y, *sides), *along])


def plot_scores_by_epochs(panel: Panel, ax: Axes) -> None:
    """Plot Pass@1 after SFT (hollow, dashed) and after RL (filled) by epochs, a line for each number of examples."""
    ax.set_title("Score: after RL (filled) and after SFT (hollow)")
    ax.set_ylabel("Pass@1 (%)")
    if not_run(ax, panel.candidates, panel.profile):
        return
    _lines_by_epochs(panel.candidates, ax, "pass1", style="--", filled=False)
    _lines_by_epochs(panel.candidates, ax, panel.outcome, style="-", filled=True)
    per_cent(ax, "y")
    ax.set_ylim(bottom=0)


def plot_loss_by_epochs(panel: Panel, ax: Axes) -> None:
    """Plot the generalization loss by epochs, one line per number of unique examples; add a legend to the figure."""
    ax.set_title("Generalization loss")
    ax.set_ylabel("nats per token of held-out traces")
    if not_run(ax, panel.candidates, panel.profile):
        return
    _lines_by_epochs(panel.candidates, ax, "gen_loss", style="-", filled=True)
    ax.set_ylim(bottom=0)
    entries = [*ax.get_legend_handles_labels()[0], *_rate_entry(panel.candidates)]
    ax.figure.legend(handles=entries, loc="outside upper left", ncols=6)


def plot_loss_vs_gain(panel: Panel, ax: Axes, correlation: float, rank_correlation: float) -> None:
    """Plot the generalization loss against what RL adds to Pass@1, with their correlations over the candidates."""
    ax.set_xlabel("generalization loss (nats per token)")
    ax.set_ylabel("gain in Pass@1 during RL (points)")
    candidates = panel.candidates
    if not_run(ax, candidates, panel.profile):
        return
    loss, gain = candidates["gen_loss"], candidates[panel.outcome] - candidates["pass1"]
    up = np.hypot(half_widths(candidates, "pass1"), half_widths(candidates, panel.outcome))
    right = half_widths(candidates, "gen_loss")
    ax.errorbar(loss, gain, up, right, fmt="none", ecolor=GREY, elinewidth=0.8, zorder=1)
    for one in series(candidates, "n_examples"):
        points = loss[one.rows.index], gain[one.rows.index]
        ax.scatter(*points, s=60, marker=one.marker, color=[one.colour], edgecolors=INK, zorder=3)
        if one.rate is not None:
            ax.plot(*points, **DOT, zorder=5)
    ax.axhline(0, color=GREY, lw=0.8)
    known = "" if math.isnan(correlation) else f"r = {correlation:.2f}, rank correlation {rank_correlation:.2f}, "
    ax.set_title(f"{known}n = {len(candidates)}")
    ax.locator_params(axis="x", nbins=5)
    per_cent(ax, "y")
    ax.margins(x=0.12)
    ends = np.array([np.nanmin(gain - np.nan_to_num(up)), np.nanmax(gain + np.nan_to_num(up))])
    ax.set_ylim(ends + 0.12 * np.array([-1, 1]) * max(np.ptp(ends), 0.01))  # zero only if it is near
    label_points(ax, loss, gain, candidate_labels(candidates), along_bars(loss, gain, right, up))


def _lines_by_epochs(candidates: pd.DataFrame, ax: Axes, column: str, *, style: str, filled: bool) -> None:
    """Draw a line for each number of examples and learning rate, overlapping markers moved apart."""
    everything = series(candidates.sort_values("epochs", kind="stable"), "n_examples")
    for one, place in zip(everything, places(everything, "epochs", apart=0.012), strict=True):
        look = {"color": one.line_colour, "ls": style, "lw": 1.4, "marker": one.marker, "ms": 7, "mec": INK, "mew": 0.8}
        look["label"] = one.label if one.rate is None else None
        halves = half_widths(one.rows, column, candidates)
        ax.errorbar(place, one.rows[column], halves, mfc=one.colour if filled else "white", elinewidth=0.8, **look)
        if one.rate is not None:
            ax.plot(place, one.rows[column], **DOT, zorder=5)
    log_ticks(ax, candidates["epochs"])
    ax.set_xlabel("SFT epochs")


def _rate_entry(candidates: pd.DataFrame) -> list[Any]:
    rates = sorted({one.rate for one in series(candidates, "n_examples")} - {None})
    return [legend_entry("dot: learning rate " + ", ".join(f"{r:g}" for r in rates), **DOT)] if rates else []
