"""Is a micro world worth measuring: the outcome of every RL run, and scores and loss by epochs."""

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
    log_ticks,
    new_figure,
    per_cent,
    shades,
    shared_legend,
    write_note,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_HEIGHT = 0.21  # inches a candidate


def plot_outcomes(runs: pd.DataFrame, ax: Axes, outcome: str = "best") -> None:
    """Plot the outcome of every RL run of one family: a row per candidate, a marker per run, a bar at their mean.

    runs: from `design.run_outcomes`; outcome: "best" or "last" checkpoint of a run. The band is the mean of all
    candidates plus and minus the pooled standard deviation between runs of one candidate.
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
        look = {"marker": marker, "color": fill, "edgecolors": INK, "linewidths": 0.7, "s": 26, "zorder": 3}
        label = "no SFT" if selection == "none" else selection
        ax.scatter(rows[outcome], rows["candidate"].map(place), label=label, **look)
    ax.scatter(means, range(len(means)), s=130, marker="|", color=INK, linewidths=1.4, zorder=2)
    ax.set_yticks(range(len(means)), means.index, fontsize=LABEL_SIZE - 1)
    ax.set_ylim(-0.8, len(means) - 0.2)
    ax.set_xlabel("Pass@1 after RL (%)")
    per_cent(ax, "x")


def outcome_grid(runs: pd.DataFrame, spread: pd.DataFrame, outcome: str = "best") -> Figure:
    """Draw `plot_outcomes` for each family on a common scale, titled with its ratios of spread to run noise.

    spread: from `design.spread_table`. Without any run, the figure only says so.
    """
    if runs.empty:
        return _nothing("no RL run has finished yet")
    families = list(dict.fromkeys(runs["family"]))
    most = runs.groupby("family")["candidate"].nunique().max()
    fig, axes = new_figure(len(families), 1, 4.6, max(2.6, 1.6 + ROW_HEIGHT * most), sharex=True, squeeze=False)
    for family, ax in zip(families, axes.flat, strict=True):
        plot_outcomes(runs[runs["family"] == family], ax, outcome)
        mine = spread[(spread["family"] == family) & (spread["outcome"] == outcome) & spread["ratio_low"].notna()]
        ratios = ", ".join(f"{s} {r:.1f}" for s, r in zip(mine["scenario"], mine["ratio"], strict=True))
        ax.set_title(f"{family}\nspread : run noise\n{ratios or 'too few candidates'}", fontsize=9)
    shared_legend(fig, axes.flat, ncols=6, fontsize=9)
    return fig


def plot_overtraining(table: pd.DataFrame, axes: Sequence[Axes]) -> None:
    """Plot Pass@1, Pass@k and generalization loss of one family by SFT epochs, on three axes.

    table: from `design.overtraining_table`; only the most common source is drawn. A line per set of examples and
    learning rate. Hollow: a higher rate, tied by a dotted line to the candidate that it is compared with. Rings: the
    signature of overtraining (Pass@1 up, Pass@k down, loss up).
    """
    table = table[table["source"] == table["source"].mode()[0]]
    colours = shades(sorted(table["n_examples"].unique()))
    markers = dict(zip(colours, MARKERS, strict=False))
    rates = sorted(table["learning_rate"].unique())
    titles = {"pass1": "Pass@1 after SFT", "pass_k": f"Pass@{table['k'].iloc[0]:.0f} after SFT"}
    by_name = table.set_index("candidate")
    for (column, title), ax in zip({**titles, "gen_loss": "Generalization loss"}.items(), axes, strict=True):
        for (size, rate), rows in table.groupby(["n_examples", "learning_rate"], sort=True):
            kind = rates.index(rate)
            look = {"ls": LINES[kind % len(LINES)], "lw": 1.4, "ms": 6, "mfc": "white" if kind else colours[size]}
            label = f"{size:,}" + (f", rate {rate:g}" if len(rates) > 1 else "")
            ax.plot(rows["epochs"], rows[column], color=colours[size], marker=markers[size], label=label, **look)
            for _, start in by_name.reindex(rows["compared_with"].iloc[:1].dropna()).iterrows():
                ends = [start["epochs"], rows["epochs"].iloc[0]], [start[column], rows[column].iloc[0]]
                ax.plot(*ends, ":", color=GREY, lw=1.0, zorder=1)
        found = table[table["signature"]]
        ax.scatter(found["epochs"], found[column], s=170, facecolors="none", edgecolors=INK, linewidths=1.3, zorder=4)
        ax.set(title=title, xlabel="SFT epochs", ylim=(0, 1.1 * float(np.nanmax([*table[column], 0.01]))))
        log_ticks(ax, table["epochs"])
        if column == "gen_loss":
            ax.set_ylabel("nats per held-out token")
            ax.legend(title="unique examples", title_fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        else:
            ax.set_ylabel("%")
            per_cent(ax, "y")


def overtraining_grid(table: pd.DataFrame) -> Figure:
    """Draw `plot_overtraining` for each family of `table`, one below the other; if it is empty, the figure says so."""
    families = list(table.groupby("family", sort=False))
    if not families:
        return _nothing("no examples were trained on in two ways yet")
    fig, axes = new_figure(3, len(families), 4.0, 3.0, squeeze=False)
    for (family, rows), line in zip(families, axes, strict=True):
        plot_overtraining(rows, line)
        line[0].set_title(f"{family}: {line[0].get_title('left')}")
    return fig


def _nothing(text: str) -> Figure:
    fig, ax = new_figure(1, 1, 6.0, 1.2)
    write_note(ax, text)
    return fig
