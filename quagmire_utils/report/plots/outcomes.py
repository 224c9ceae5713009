"""Is a world worth measuring: outcomes of all candidates with every RL run, and scores and loss by epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from quagmire_utils.report.plots.look import (
    GREY,
    INK,
    LABEL_SIZE,
    LINES,
    MARKERS,
    OTHER_SELECTION,
    SELECTION_STYLE,
    _per_cent,
    _shades,
    new_figure,
)
from quagmire_utils.report.plots.scatter import _epoch_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_HEIGHT = 0.21  # inches a candidate


def plot_outcomes(runs: pd.DataFrame, ax: Axes, outcome: str = "best") -> None:
    """Outcome of every RL run of one family: a row per candidate, a marker per run, a bar at their mean; best on top.

    runs: from `design.run_outcomes`; outcome: "best" or "last" checkpoint of a run. The band is the mean of all
    candidates plus and minus the pooled standard deviation between runs of one: what run noise alone would fill.
    """
    means = runs.groupby("candidate")[outcome].mean().sort_values(kind="stable")
    place = {name: i for i, name in enumerate(means.index)}
    tuned = runs[runs["selection"] != "none"]
    groups = tuned.groupby("candidate")[outcome]
    freedom = len(tuned) - groups.ngroups
    if freedom:
        noise = math.sqrt(((tuned[outcome] - groups.transform("mean")) ** 2).sum() / freedom)
        middle = groups.mean().mean()
        ax.axvspan(middle - noise, middle + noise, color="0.88", lw=0, zorder=0, label="± spread between runs")
    for selection, rows in runs.groupby("selection", sort=False):
        marker, fill = SELECTION_STYLE.get(selection, OTHER_SELECTION)
        ax.scatter(
            rows[outcome],
            rows["candidate"].map(place),
            s=26,
            marker=marker,
            color=fill,
            edgecolors=INK,
            linewidths=0.7,
            zorder=3,
            label="no SFT" if selection == "none" else selection,
        )
    ax.scatter(means, range(len(means)), s=130, marker="|", color=INK, linewidths=1.4, zorder=2)
    ax.set_yticks(range(len(means)), means.index, fontsize=LABEL_SIZE - 1)
    ax.set_ylim(-0.8, len(means) - 0.2)
    ax.set_xlabel("Pass@1 after RL (%)")
    _per_cent(ax, "x")


def outcome_grid(runs: pd.DataFrame, spread: pd.DataFrame, outcome: str = "best") -> Figure:
    """`plot_outcomes` for each family, side by side on a common scale, each with its ratios of spread to run noise.

    spread: from `design.spread_table`. Without a single run the figure only says so.
    """
    if runs.empty:
        return _nothing("no RL run has finished yet")
    families = list(dict.fromkeys(runs["family"]))
    most = runs.groupby("family")["candidate"].nunique().max()
    fig, axes = new_figure(len(families), 1, 4.6, max(2.6, 1.6 + ROW_HEIGHT * most))
    shown: dict[str, object] = {}
    low, high = runs[outcome].min(), runs[outcome].max()
    margin = 0.05 * max(high - low, 0.01)
    for family, ax in zip(families, np.atleast_1d(axes), strict=True):
        plot_outcomes(runs[runs["family"] == family], ax, outcome)
        ax.set_xlim(low - margin, high + margin)
        mine = spread[(spread["family"] == family) & (spread["outcome"] == outcome) & spread["ratio_low"].notna()]
        ratios = ", ".join(f"{s} {r:.1f}" for s, r in zip(mine["scenario"], mine["ratio"], strict=True))
        ax.set_title(f"{family}\nspread : run noise\n{ratios or 'too few candidates'}", loc="left", fontsize=9)
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
    fig.legend(shown.values(), shown.keys(), loc="outside upper left", ncols=len(shown), fontsize=9, frameon=False)
    return fig


def plot_overtraining(table: pd.DataFrame, axes: Sequence[Axes]) -> None:
    """Pass@1, Pass@k and generalization loss of one family by SFT epochs, on three axes.

    table: from `design.overtraining_table`; only the source that most of its candidates have is drawn. A line per set
    of examples and learning rate; marker and shade: number of examples; hollow and another line style: a higher rate,
    tied by a dotted line to the candidate it is compared with. Rings: the signature of overtraining (Pass@1 up, Pass@k
    down, loss up). Raises ValueError for an empty table.
    """
    if table.empty:
        raise ValueError("no examples were trained on in two ways yet, so there is nothing to draw")
    table = table[table["source"] == table["source"].mode()[0]]
    sizes = sorted(table["n_examples"].unique())
    shades, markers = _shades(sizes), {size: MARKERS[i % len(MARKERS)] for i, size in enumerate(sizes)}
    rates = sorted(table["learning_rate"].unique())
    k = int(table["k"].iloc[0])
    titles = {"pass1": "Pass@1 after SFT", "pass_k": f"Pass@{k} after SFT", "gen_loss": "Generalization loss"}
    by_name = table.set_index("candidate")
    for (column, title), ax in zip(titles.items(), axes, strict=True):
        for (size, rate), rows in table.groupby(["n_examples", "learning_rate"], sort=True):
            kind = rates.index(rate)
            label = f"{size:,}" + (f", rate {rate:g}" if len(rates) > 1 else "")
            ax.plot(
                rows["epochs"],
                rows[column],
                ls=LINES[kind % len(LINES)],
                color=shades[size],
                marker=markers[size],
                mfc="white" if kind else shades[size],
                ms=6,
                lw=1.4,
                label=label,
            )
            other = by_name.reindex(rows["compared_with"].iloc[:1].dropna())
            for _, start in other.iterrows():
                ends = [start["epochs"], rows["epochs"].iloc[0]], [start[column], rows[column].iloc[0]]
                ax.plot(*ends, ":", color=GREY, lw=1.0, zorder=1)
        found = table[table["signature"]]
        ax.scatter(found["epochs"], found[column], s=170, facecolors="none", edgecolors=INK, linewidths=1.3, zorder=4)
        ax.set_title(title)
        _epoch_axis(ax, table)
        ax.set_ylim(0, 1.1 * float(np.nanmax([*table[column], 0.01])))
        if column == "gen_loss":
            ax.set_ylabel("nats per held-out token")
            ax.legend(
                title="unique examples", title_fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False
            )
        else:
            ax.set_ylabel("%")
            _per_cent(ax, "y")


def overtraining_grid(table: pd.DataFrame) -> Figure:
    """`plot_overtraining` for each family of `table`, one below the other; of an empty one, a figure that says so."""
    families = list(table.groupby("family", sort=False))
    if not families:
        return _nothing("no examples were trained on in two ways yet")
    fig, axes = new_figure(3, len(families), 4.0, 3.0)
    for (family, rows), line in zip(families, np.atleast_2d(axes), strict=True):
        plot_overtraining(rows, line)
        line[0].set_title(f"{family}: {line[0].get_title()}")
    return fig


def _nothing(text: str) -> Figure:
    fig, ax = new_figure(1, 1, 6.0, 1.2)
    ax.text(0.5, 0.5, text, ha="center", va="center", color=GREY)
    ax.set_axis_off()
    return fig
