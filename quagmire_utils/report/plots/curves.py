"""What runs and evaluations show: lines with intervals, rewards of RL by step, Pass@k, verdicts, lengths."""

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
    ORANGE,
    SKY,
    VERDICT_STYLE,
    entries_of,
    legend_above,
    log_ticks,
    new_figure,
    per_cent,
    shades,
    small_multiples,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTH = 3  # steps; the mean reward of one step rests on about a hundred answers
BROWN = "#a85d16"
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


def plot_rl_curves(curves: pd.DataFrame, ax: Axes, colours: Mapping[str, Any]) -> None:
    """Plot the smoothed mean reward by step, a thin line for each candidate; dashed: the base without SFT.

    The candidates that end highest and lowest are thicker and marked, and the legend names them.
    """
    means = curves.pivot_table(index="step", columns="candidate", values="reward")
    means = means.rolling(SMOOTH, min_periods=1).mean()
    lines = {
        name: ax.plot(means.index, means[name], color=colours[name], lw=1, gid=name)[0]
        for name in means.columns.drop("base", errors="ignore")
    }
    if "base" in means:
        ax.plot(means.index, means["base"], "k--", lw=1.8, zorder=3, label="base")
    ends = means[list(lines)].ffill().iloc[-1].sort_values()
    marked = {ends.index[-1]: ("^", BLUE, "highest"), ends.index[0]: ("v", ORANGE, "lowest")} if len(ends) else {}
    for name, (marker, colour, text) in marked.items():
        lines[name].set(color=colour, lw=2.2, marker=marker, markevery=[-1], ms=6, mec=INK, mew=0.6, zorder=4)
        lines[name].set(label=f"ends {text}: {name}", clip_on=False)
    ax.legend(loc="best", fontsize=8, handlelength=1.6, borderaxespad=0.1)


def rl_curve_grid(curves: pd.DataFrame, candidates: pd.DataFrame) -> Figure:
    """Draw `plot_rl_curves` of the records for each family (a row) and scenario; dark: low reward at first."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    starts = curves[curves["step"] <= 2 * SMOOTH].groupby(["family", "candidate"])["reward"].mean()
    scale = ScalarMappable(Normalize(starts.min(), starts.max()), ListedColormap(list(shades(range(256)).values())))
    tuned = candidates[candidates["selection"] != "none"].merge(curves[["family", "candidate"]].drop_duplicates())
    scenarios = tuned.assign(scenario=tuned["scenario"].str.split("+")).explode("scenario")
    panels = {
        family: {name: set(rows["candidate"]) for name, rows in mine.groupby("scenario", sort=False)}
        for family, mine in scenarios.groupby("family", sort=False)
    }
    fig, axes = new_figure(max(map(len, panels.values())), len(panels), 4.2, 3.2, squeeze=False)
    top = max(1.1 * curves["reward"].max(), 0.05)
    for (family, mine), line in zip(panels.items(), axes, strict=True):
        of_family, colours = curves[curves["family"] == family], starts[family].map(scale.to_rgba)
        for ax, (scenario, names) in zip(line, mine.items(), strict=False):
            plot_rl_curves(of_family[of_family["candidate"].isin({*names, "base"})], ax, colours)
            ax.set_title(f"{family}, {scenario} level: {len(names)} candidates", fontsize=10)
            ax.set(xlim=(0, curves["step"].max()), ylim=(0, top), xlabel="RL step", ylabel="mean training reward")
        for ax in line[len(mine) :]:
            ax.set_visible(False)
    bar = fig.colorbar(scale, ax=axes, location="bottom", shrink=0.35, aspect=40, pad=0.02, anchor=(0.0, 0.5))
    bar.set_label(f"colour of a candidate's line: mean reward of its first {2 * SMOOTH} steps", loc="left")
    bar.outline.set_visible(False)
    return fig


def plot_pass_at_k(
    rows: pd.DataFrame, ax: Axes, votes: pd.DataFrame | None = None, forecast: pd.DataFrame | None = None
) -> None:
    """Plot Pass@k of one benchmark by k with its interval as a band, maj@k, and what is only a forecast dashed.

    rows: columns benchmark, k, pass_at_k, low, high, problems. votes: benchmark, k, maj_at_k. forecast: of
    `benchmark_extrapolation`.
    """
    name, last = rows["benchmark"].iloc[0], int(rows["k"].max())
    last = last if forecast is None else int(forecast["k"].max())
    powers = [2**i for i in range(last.bit_length())]
    ax.fill_between(rows["k"], rows["low"], rows["high"], color=BLUE, alpha=0.22, lw=0, label="95 % interval")
    marks = np.flatnonzero(rows["k"].isin(powers)).tolist()
    look = {"color": BLUE, "lw": 2, "marker": "o", "ms": 4.5, "mec": "none", "markevery": marks, "clip_on": False}
    ax.plot(rows["k"], rows["pass_at_k"], label="Pass@k", **look)
    if forecast is not None:
        beyond = forecast[forecast["benchmark"] == name]
        dashed = {"color": BLUE, "ls": "--", "lw": 1.6, "marker": "o", "ms": 4.5, "mfc": "white", "clip_on": False}
        ax.plot(beyond["k"], beyond["value"], label="forecast", zorder=3, **dashed)
        band = {"color": BLUE, "alpha": 0.08, "lw": 0, "label": "95 % of the forecast"}
        ax.fill_between(beyond["k"], beyond["low"], beyond["high"], **band)
    if votes is not None and len(mine := votes[votes["benchmark"] == name].dropna(subset="maj_at_k")):
        ax.plot(mine["k"], mine["maj_at_k"], "s--", color=BROWN, lw=1.6, ms=4, mec="none", clip_on=False, label="maj@k")
    log_ticks(ax, powers[:: max(1, math.ceil(len(powers) / 6))])
    ax.set_xlim(0.92, 1.08 * max(last, 1.1))
    per_cent(ax, "y")
    ax.set_title(f"{name} ({rows['problems'].iloc[0]:,} problems)", fontsize=10)


def pass_at_k_grid(
    curves: pd.DataFrame, votes: pd.DataFrame | None = None, forecast: pd.DataFrame | None = None
) -> Figure:
    """Draw `plot_pass_at_k` for each benchmark and, if there are several, for their macro average."""
    names = curves["benchmark"].unique().tolist()
    names = names if len(names) > 2 else names[:1]
    fig, axes = small_multiples(len(names), 4, *((5.2, 3.4) if len(names) == 1 else (2.9, 2.5)))
    for ax, name in zip(axes, names, strict=True):
        plot_pass_at_k(curves[curves["benchmark"] == name], ax, votes, forecast)
        ax.set(xlabel="k", ylabel="per cent")
        ax.label_outer(remove_inner_ticks=False)
    top = float(curves[["pass_at_k", "high"]].max().max())
    top = top if forecast is None else max(top, forecast["high"].max())
    axes[0].set_ylim(0, max(0.01, min(1.0, 1.05 * top)))
    if forecast is None or len(names) == 1:
        axes[0].legend(loc="best", fontsize=8)
    else:  # five entries hide the curves of a small panel
        legend_above(fig, entries_of([axes[0]]))
    return fig


def plot_verdicts(counts: pd.DataFrame, ax: Axes) -> None:
    """Plot the share of each verdict by benchmark as stacked bars; a diamond marks the share of truncated answers."""
    shares = counts.groupby("benchmark", sort=False)[[*VERDICT_STYLE, "truncated", "n"]].sum()
    shares = shares.div(shares["n"], axis=0)[::-1]
    left = np.zeros(len(shares))
    for verdict, (colour, hatch) in VERDICT_STYLE.items():
        width = shares[verdict].to_numpy()
        if verdict in ("timeout", "error") and not width.any():
            continue  # nothing to see; the table has the zero
        look = {"color": colour, "hatch": hatch, "edgecolor": "white", "height": 0.72}
        ax.barh(shares.index, width, left=left, label=verdict.replace("_", " "), **look)
        left += width
    cut = shares["truncated"][shares["truncated"] > 0]
    if len(cut):
        look = {"marker": "D", "ms": 7, "mfc": "white", "mec": "black", "clip_on": False}
        ax.plot(cut, cut.index, ls="", label="truncated", **look)
    ax.set_xlim(-0.03, 1.03)  # room for a diamond at either end
    ax.set_xlabel("share of answers (%)")
    per_cent(ax, "x")
    ax.grid(False, axis="y")


def plot_lengths(samples: pd.DataFrame, max_tokens: int, ax: Axes) -> None:
    """Plot a histogram of answer lengths (columns tokens, verdict) by verdict; the last bin is the limit."""
    import seaborn as sns

    edges = np.unique(np.linspace(0, max_tokens + 1, min(40, max_tokens + 1) + 1).round())
    shown = [name for name in VERDICT_STYLE if samples["verdict"].eq(name).any()]
    colours = {name: VERDICT_STYLE[name][0] for name in shown}
    stack = {"hue_order": shown[::-1], "multiple": "stack", "palette": colours, "alpha": 1, "legend": False}
    sns.histplot(samples, x="tokens", hue="verdict", bins=edges, edgecolor="white", linewidth=0.4, ax=ax, **stack)
    for bars, name in zip(ax.containers, shown, strict=True):  # the last of `hue_order` comes first
        for bar in bars:
            bar.set_hatch(VERDICT_STYLE[name][1])
    ax.axvline(max_tokens, color=INK, ls=":", lw=1.2)
    ax.annotate("limit", (max_tokens, 1.0), xycoords=("data", "axes fraction"), ha="right", va="bottom", fontsize=9)
    ax.set(xlim=(0, 1.01 * max_tokens + 1), xlabel="tokens of an answer", ylabel="answers")
    ax.grid(False, axis="x")


def verdicts_and_lengths(counts: pd.DataFrame, samples: pd.DataFrame, max_tokens: int) -> Figure:
    """Draw `plot_verdicts` and `plot_lengths` side by side."""
    fig, (left, right) = new_figure(2, 1, 5.4, max(2.6, 0.9 + 0.42 * counts["benchmark"].nunique()))
    plot_verdicts(counts, left)
    plot_lengths(samples, max_tokens, right)
    legend_above(fig, entries_of([left]), loc="outside right upper", ncols=1)
    return fig
