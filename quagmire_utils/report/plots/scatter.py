"""Candidates of the data set level, before and after RL: Figs. 3 and 5 of the paper."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from quagmire_utils.report.plots.labels import _bars, _candidate_labels, _place_labels
from quagmire_utils.report.plots.look import GREY, INK, _per_cent, _shades, not_run
from quagmire_utils.report.plots.series import _counted, half_widths, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from quagmire_utils.analysis.fits import LinearFit

# a dot in a marker: a learning rate that is not the usual one of the figure
DOT: dict[str, Any] = {"ls": "", "marker": ".", "color": INK, "ms": 4.5, "mec": "white", "mew": 0.5}


def plot_sft_vs_rl(
    candidates: pd.DataFrame,
    fit: LinearFit | None,
    ax: Axes,
    *,
    base: pd.DataFrame | None = None,
    outcome: str = "outcome",
    profile: str = "",
) -> None:
    """Pass@1 after SFT against the outcome after RL, a marker for each candidate, and the fitted line (Fig. 3).

    candidates: from `records.select_candidates`; `base` (rows of the same frame) is drawn hollow and takes no part in
    the fit. Marker: number of unique examples; lightness: epochs; both are written beside it; a dot in it: another
    learning rate than most. Below two candidates there is no line (`fit` is None) and the axis says so.
    """
    from matplotlib.lines import Line2D

    ax.set_xlabel("Pass@1 after SFT (%), mean of the benchmarks")
    ax.set_ylabel("Pass@1 after RL (%)")
    if not_run(ax, candidates, profile, needs=2) or fit is None:
        return
    colours = _shades(sorted(candidates["epochs"].unique()))
    everyone = candidates if base is None else pd.concat([candidates, base])
    ends = np.array([candidates["pass1"].min(), candidates["pass1"].max()])
    ax.plot(ends, fit.intercept + fit.slope * ends, "-", color=GREY, lw=1.5, zorder=1)
    sides = half_widths(everyone, "pass1"), half_widths(everyone, outcome)
    ax.errorbar(
        everyone["pass1"], everyone[outcome], xerr=sides[0], yerr=sides[1], fmt="none", ecolor=GREY, elinewidth=0.8
    )
    shapes: dict[str, Any] = {}
    rates: dict[float, Any] = {}
    for one in series(candidates, "n_examples"):
        rows = one.rows
        shades = [colours[epochs] for epochs in rows["epochs"]]
        ax.scatter(
            rows["pass1"], rows[outcome], s=70, marker=one.marker, c=shades, edgecolors=INK, linewidths=0.8, zorder=3
        )
        entry = Line2D([], [], ls="", marker=one.marker, ms=8, mfc="white", mec=INK, label=one.label)
        shapes.setdefault(one.label, entry)
        if one.rate is not None:
            ax.plot(rows["pass1"], rows[outcome], **DOT, zorder=5)
            rates[one.rate] = Line2D([], [], **DOT, label=f"dot: learning rate {one.rate:g}")
    if base is not None and len(base):
        ax.scatter(base["pass1"], base[outcome], s=110, facecolors="none", edgecolors=INK, linewidths=1.8, zorder=3)
        label = "no SFT (not in the fit)"
        shapes[label] = Line2D([], [], ls="", marker="o", ms=10, mfc="none", mec=INK, mew=1.8, label=label)
    fills = [
        Line2D([], [], ls="", marker="s", ms=8, mfc=colour, mec="none", label=_counted(epochs, "epoch"))
        for epochs, colour in colours.items()
    ]
    _per_cent(ax, "xy")
    ax.margins(0.1, 0.1)
    ax.set_title(f"Linear fit: R² = {fit.r2:.2f}, n = {fit.n} candidates", loc="left")
    ax.legend(
        handles=[*shapes.values(), *fills, *rates.values()], loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False
    )
    x, y = everyone["pass1"].to_numpy(), everyone[outcome].to_numpy()
    line = np.linspace(*ends, 60)
    bars = _bars(x, y, *sides)
    along = list(zip(line, fit.intercept + fit.slope * line, strict=True))
    _place_labels(ax, x, y, _candidate_labels(everyone), [*bars, *along])


def plot_scores_by_epochs(candidates: pd.DataFrame, ax: Axes, outcome: str = "outcome", *, profile: str = "") -> None:
    """Pass@1 after SFT (hollow, dashed) and after RL (filled) by epochs, a line per number of examples (Fig. 5)."""
    ax.set_title("Score: after RL (filled) and after SFT (hollow)")
    ax.set_ylabel("Pass@1 (%)")
    if not_run(ax, candidates, profile):
        return
    for column, style, filled in (("pass1", "--", False), (outcome, "-", True)):
        _lines_by_epochs(candidates, ax, column, style=style, filled=filled)
    _per_cent(ax, "y")
    ax.set_ylim(bottom=0)
    _epoch_axis(ax, candidates)


def plot_loss_by_epochs(candidates: pd.DataFrame, ax: Axes, *, profile: str = "") -> None:
    """Generalization loss by epochs, a line per number of unique examples (Fig. 5); its legend is the figure's."""
    ax.set_title("Generalization loss")
    ax.set_ylabel("nats per token of held-out traces")
    if not_run(ax, candidates, profile):
        return
    _lines_by_epochs(candidates, ax, "gen_loss", style="-", filled=True)
    ax.set_ylim(bottom=0)
    _epoch_axis(ax, candidates)
    rates = [one.rate for one in series(candidates, "n_examples") if one.rate is not None]
    if rates:
        said = ", ".join(f"{rate:g}" for rate in sorted(set(rates)))
        ax.errorbar([], [], **DOT, label=f"dot: learning rate {said}")  # an error bar, to come after the others
    ax.figure.legend(*ax.get_legend_handles_labels(), loc="outside upper left", ncols=6, frameon=False)


def plot_loss_vs_gain(
    candidates: pd.DataFrame,
    ax: Axes,
    *,
    correlation: float,
    rank_correlation: float,
    outcome: str = "outcome",
    profile: str = "",
) -> None:
    """Generalization loss against what RL adds to Pass@1, with their correlations over the candidates (Fig. 5)."""
    ax.set_xlabel("generalization loss (nats per token)")
    ax.set_ylabel("gain in Pass@1 during RL (points)")
    if not_run(ax, candidates, profile):
        return
    loss, gain = candidates["gen_loss"], candidates[outcome] - candidates["pass1"]
    up = np.hypot(half_widths(candidates, "pass1"), half_widths(candidates, outcome))
    right = half_widths(candidates, "gen_loss")
    ax.errorbar(loss, gain, xerr=right, yerr=up, fmt="none", ecolor=GREY, elinewidth=0.8, zorder=1)
    for one in series(candidates, "n_examples"):
        part = loss[one.rows.index], gain[one.rows.index]
        ax.scatter(*part, s=60, marker=one.marker, color=[one.colour], edgecolors=INK, zorder=3)
        if one.rate is not None:
            ax.plot(*part, **DOT, zorder=5)
    ax.axhline(0, color=GREY, lw=0.8)
    known = "" if math.isnan(correlation) else f"r = {correlation:.2f}, rank correlation {rank_correlation:.2f}, "
    ax.set_title(f"{known}n = {len(candidates)}")
    ax.locator_params(axis="x", nbins=5)
    _per_cent(ax, "y")
    ax.margins(x=0.12)
    ends = np.array([np.nanmin(gain - np.nan_to_num(up)), np.nanmax(gain + np.nan_to_num(up))])
    ax.set_ylim(ends + 0.12 * np.array([-1, 1]) * max(np.ptp(ends), 0.01))  # zero only where it is near
    x, y = loss.to_numpy(), gain.to_numpy()
    _place_labels(ax, x, y, _candidate_labels(candidates), _bars(x, y, right, up))


def correlations(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """Pearson's and Spearman's correlation; NaN below three points, and where one side does not vary."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 3 or not np.ptp(x) or not np.ptp(y):
        return math.nan, math.nan
    return float(stats.pearsonr(x, y).statistic), float(stats.spearmanr(x, y).statistic)


def _lines_by_epochs(candidates: pd.DataFrame, ax: Axes, column: str, *, style: str, filled: bool) -> None:
    """A line per number of examples and learning rate, each moved a little, so that equal values hide nothing."""
    everything = series(candidates, "n_examples")
    shifts = 2.0 ** (0.07 * (np.arange(len(everything)) - (len(everything) - 1) / 2))
    for one, shift in zip(everything, shifts, strict=True):
        rows = one.rows.sort_values("epochs")
        ax.errorbar(
            rows["epochs"] * shift,
            rows[column],
            yerr=half_widths(rows, column, candidates),
            color=one.line_colour,
            ls=style,
            marker=one.marker,
            mfc=one.colour if filled else "white",
            mec=INK,
            mew=0.8,
            ms=7,
            lw=1.4,
            elinewidth=0.8,
            label=one.label if one.rate is None else None,
        )
        if one.rate is not None:
            ax.plot(rows["epochs"] * shift, rows[column], **DOT, zorder=5)


def _epoch_axis(ax: Axes, candidates: pd.DataFrame) -> None:
    ticks = sorted(candidates["epochs"].unique())
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [f"{e:g}" for e in ticks])
    ax.minorticks_off()
    ax.set_xlabel("SFT epochs")
