"""What one run or one evaluation shows: rewards by step, Pass@k curves, verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from quagmire_utils.report.plots.look import GREY, INK, LINES, MARKERS, VERDICT_STYLE, _per_cent, _shades, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    from quagmire_utils.evaluation.generalization_loss import GeneralizationLoss

MOST_PANELS = 20  # candidates that `rl_curve_grid` gives a panel each
SMOOTH = 3  # steps; a step's mean reward rests on a hundred answers


def plot_rl_curve(curves: pd.DataFrame, ax: Axes) -> None:
    """Mean reward by step of one candidate's RL runs: a thin line each, and their mean."""
    for i, (_, rows) in enumerate(curves.groupby("rl_run")):
        ax.plot(rows["step"], rows["reward"], ls=LINES[i % len(LINES)], color=GREY, lw=0.9)
    mean = curves.groupby("step")["reward"].mean()
    ax.plot(mean.index, mean, color="#0b5394", lw=2)
    ax.set_title(str(curves["candidate"].iloc[0]), loc="left", fontsize=9, color=INK)


def rl_curve_grid(curves: pd.DataFrame, columns: int = 4, *, candidates: pd.DataFrame | None = None) -> Figure:
    """Small multiples of `plot_rl_curve`, one for each candidate (of each family), on common axes.

    Beyond `MOST_PANELS` of them they could not be read: then there is one panel for each family and scenario (with
    `candidates`, the records' table, to say which), drawn by `plot_rl_curves`.
    """
    if curves.groupby(["family", "candidate"]).ngroups > MOST_PANELS:
        return _crowded_grid(curves, candidates)
    groups = list(curves.groupby(["family", "candidate"], sort=False))
    several = len(curves["family"].unique()) > 1
    columns = min(columns, len(groups))
    rows = math.ceil(len(groups) / columns)
    fig, axes = new_figure(columns, rows, 2.6, 1.9)
    axes = np.atleast_1d(axes).ravel()
    top = 1.12 * curves["reward"].max()
    for ax, ((family, candidate), part) in zip(axes, groups, strict=False):
        plot_rl_curve(part.assign(candidate=f"{family}\n{candidate}" if several else candidate), ax)
        ax.set_ylim(0, max(top, 0.05))
        ax.set_xlim(0, curves["step"].max())
    for ax in axes[len(groups) :]:
        ax.set_visible(False)
    for i, ax in enumerate(axes[: len(groups)]):
        if i % columns == 0:
            ax.set_ylabel("mean reward")
        else:
            ax.tick_params(labelleft=False)
        if i + columns >= len(groups):
            ax.set_xlabel("RL step")
        else:
            ax.tick_params(labelbottom=False)
    return fig


def plot_rl_curves(curves: pd.DataFrame, ax: Axes, colours: ScalarMappable | None = None) -> None:
    """Mean reward by step of many candidates of one family: a thin line each (mean over runs, over `SMOOTH` steps).

    Coloured by the reward at the start (`colours`, by default `start_colours` of these curves); the base without SFT is
    dashed. The candidates that end highest and lowest are thicker and marked; the legend names these and the base.
    """
    colours = colours or start_colours(curves)
    means = curves.pivot_table(index="step", columns="candidate", values="reward")
    means = means.rolling(SMOOTH, min_periods=1).mean()
    end = means.drop(columns="base", errors="ignore").ffill().iloc[-1].sort_values()
    marked = {end.index[0]: ("v", "ends lowest"), end.index[-1]: ("^", "ends highest")} if len(end) else {}
    for (_, name), start in _start_rewards(curves).sort_values().items():
        looks = {"color": colours.to_rgba(start), "lw": 1.0, "zorder": 2}
        if name == "base":
            looks = {"color": "black", "lw": 1.8, "zorder": 3, "ls": "--", "label": "base"}
        elif name in marked:
            marker, place = marked[name]
            looks |= {"lw": 2.2, "zorder": 4, "marker": marker, "markevery": [-1], "ms": 6, "mec": INK, "mew": 0.6}
            looks |= {"clip_on": False, "label": f"{place}: {name}"}
        ax.plot(means.index, means[name], **looks)
    handles = sorted(ax.get_legend_handles_labels()[0], key=lambda line: line.get_label())
    ax.legend(handles=handles, loc="best", fontsize=8, frameon=False, handlelength=1.6, borderaxespad=0.1)


def start_colours(curves: pd.DataFrame) -> ScalarMappable:
    """Colours for the reward at the start of RL of the candidates in `curves`, dark where it is low."""
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    starts = _start_rewards(curves)
    shades = ListedColormap(mpl.colormaps["cividis"](np.linspace(0.0, 0.9, 256)))
    return ScalarMappable(Normalize(starts.min(), starts.max()), shades)


def _start_rewards(curves: pd.DataFrame) -> pd.Series:
    """Mean reward over the first 2 * `SMOOTH` steps, by family and candidate."""
    return curves[curves["step"] <= 2 * SMOOTH].groupby(["family", "candidate"])["reward"].mean()


def _crowded_grid(curves: pd.DataFrame, candidates: pd.DataFrame | None) -> Figure:
    """A panel for each family (a row) and scenario, with the base in each of them."""
    keys = ["family", "candidate"]
    named = curves[keys].drop_duplicates().assign(scenario="", selection="")
    if candidates is not None:
        named = named[keys].merge(candidates[[*keys, "scenario", "selection"]], on=keys)
    panels: dict[str, dict[str, set[str]]] = {}
    for row in named.itertuples():
        mine = panels.setdefault(row.family, {})
        if row.selection != "none":
            for scenario in row.scenario.split("+"):
                mine.setdefault(scenario, set()).add(row.candidate)
    width = max(1, *(len(mine) for mine in panels.values()))
    fig, axes = new_figure(width, len(panels), 4.2, 3.2)
    grid = np.atleast_1d(axes).reshape(len(panels), width)
    colours, top = start_colours(curves), 1.1 * curves["reward"].max()
    for (family, mine), line in zip(panels.items(), grid, strict=True):
        of_family = curves[curves["family"] == family]
        for ax, (scenario, names) in zip(line, mine.items(), strict=False):
            plot_rl_curves(of_family[of_family["candidate"].isin({*names, "base"})], ax, colours)
            title = f"{family}, {scenario} level" if scenario else family
            ax.set_title(f"{title}: {len(names)} candidates", loc="left", fontsize=10)
            ax.set_xlim(0, curves["step"].max())
            ax.set_ylim(0, max(top, 0.05))
            ax.set_xlabel("RL step")
            ax.set_ylabel("mean reward")
        for ax in line[len(mine) :]:
            ax.set_visible(False)
    bar = fig.colorbar(colours, ax=grid, location="bottom", shrink=0.35, aspect=40, pad=0.02, anchor=(0.0, 0.5))
    bar.set_label(f"colour of a candidate's line: mean reward of its first {2 * SMOOTH} steps", loc="left")
    bar.outline.set_visible(False)
    return fig


def plot_pass_at_k(curves: pd.DataFrame, ax: Axes) -> None:
    """Pass@k by k, a line per benchmark and a bold one for their mean, with a band of one standard error.

    curves: columns benchmark, k, pass_at_k, standard_error; the benchmark called "macro average" is the bold line.
    """
    names = [name for name in curves["benchmark"].unique() if name != "macro average"]
    colours = _shades(names)
    for i, name in enumerate([*names, "macro average"]):
        rows = curves[curves["benchmark"] == name]
        if rows.empty:
            continue
        macro = name == "macro average"
        colour = "black" if macro else colours[name]
        style = "-" if macro else LINES[i % len(LINES)]
        rows_k, value, error = rows["k"], rows["pass_at_k"], rows["standard_error"]
        ax.plot(rows_k, value, ls=style, color=colour, lw=2.6 if macro else 1.5, label=name)
        if macro:
            ax.fill_between(
                rows_k, (value - error).clip(0, 1), (value + error).clip(0, 1), color="0.85", lw=0, zorder=0
            )
        mark = rows[np.log2(rows["k"]) % 1 == 0]
        if not macro:
            ax.plot(mark["k"], mark["pass_at_k"], ls="", marker=MARKERS[i % len(MARKERS)], color=colour, ms=5)
    ax.set_xscale("log", base=2)
    from matplotlib.ticker import FuncFormatter

    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlabel("k")
    ax.set_ylabel("Pass@k (%)")
    _per_cent(ax, "y")
    ax.set_ylim(0, max(0.01, min(1.02, 1.15 * float(curves["pass_at_k"].max()))))
    # Markers are in the legend too: lines of equal style differ by them.
    handles, labels = ax.get_legend_handles_labels()
    for i, handle in enumerate(handles[: len(names)]):
        handle.set_marker(MARKERS[i % len(MARKERS)])
        handle.set_markevery([])
    ax.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def plot_pass_at_k_band(rows: pd.DataFrame, ax: Axes, votes: pd.DataFrame | None = None) -> None:
    """Pass@k of one benchmark by k (log scale) with its interval as a band, and maj@k beside it.

    rows: columns benchmark, k, pass_at_k, low, high, problems. votes: benchmark, k, maj_at_k.
    """
    name, last = rows["benchmark"].iloc[0], int(rows["k"].max())
    ax.fill_between(rows["k"], rows["low"], rows["high"], color="#0b5394", alpha=0.22, lw=0, label="95 % interval")
    ax.plot(rows["k"], rows["pass_at_k"], color="#0b5394", lw=2, label="Pass@k")
    marks = rows[np.log2(rows["k"]) % 1 == 0]
    ax.plot(marks["k"], marks["pass_at_k"], ls="", marker="o", ms=4.5, color="#0b5394", clip_on=False)
    if votes is not None:
        mine = votes[votes["benchmark"] == name].dropna(subset="maj_at_k")
        line = {"color": "#a85d16", "ls": "--", "lw": 1.6, "marker": "s", "ms": 4, "clip_on": False}
        if len(mine):
            ax.plot(mine["k"], mine["maj_at_k"], label="maj@k", **line)
    ax.set_xscale("log", base=2)
    powers = [2**i for i in range(int(np.log2(last)) + 1)]
    ax.set_xticks(powers[:: max(1, math.ceil(len(powers) / 6))])
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_xlim(0.92, 1.08 * max(last, 1.1))
    _per_cent(ax, "y")
    ax.set_title(f"{name} ({rows['problems'].iloc[0]:,} problems)", loc="left", fontsize=10)


def pass_at_k_grid(curves: pd.DataFrame, votes: pd.DataFrame | None = None, columns: int = 4) -> Figure:
    """A panel of `plot_pass_at_k_band` for each benchmark and, where there are several, one for their macro average."""
    names = curves["benchmark"].unique().tolist()
    names = names if len(names) > 2 else names[:1]
    columns = min(columns, len(names))
    rows = math.ceil(len(names) / columns)
    fig, axes = new_figure(columns, rows, *((5.2, 3.4) if columns == 1 else (2.9, 2.5)))
    axes = np.atleast_1d(axes).ravel()
    top = max(0.01, min(1.0, 1.05 * float(curves[["pass_at_k", "high"]].max().max())))
    for i, (ax, name) in enumerate(zip(axes, names, strict=False)):
        plot_pass_at_k_band(curves[curves["benchmark"] == name], ax, votes)
        ax.set_ylim(0, top)
        ax.set_xlabel("k")
        if i % columns == 0:
            ax.set_ylabel("per cent")
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    axes[0].legend(loc="best", fontsize=8)
    return fig


def plot_lengths(samples: pd.DataFrame, max_tokens: int, ax: Axes, bins: int = 40) -> None:
    """Histogram of answer lengths in tokens, stacked by verdict; the last bin holds those that met the limit.

    samples: one row per answer, columns tokens, verdict.
    """
    edges = np.unique(np.linspace(0, max_tokens + 1, min(bins, max_tokens + 1) + 1).round())
    shown = [name for name in VERDICT_STYLE if samples["verdict"].eq(name).any()]
    lengths = [samples.loc[samples["verdict"] == name, "tokens"].to_numpy() for name in shown]
    looks = [VERDICT_STYLE[name] for name in shown]
    _, _, bars = ax.hist(
        lengths,
        edges,
        stacked=True,
        color=[colour for colour, _ in looks],
        label=[name.replace("_", " ") for name in shown],
        edgecolor="white",
        linewidth=0.4,
    )
    for group, (_, hatch) in zip(bars if len(shown) > 1 else [bars], looks, strict=True):
        for bar in group:
            bar.set_hatch(hatch)
    ax.axvline(max_tokens, color=INK, ls=":", lw=1.2)
    ax.annotate("limit", (max_tokens, 1.0), xycoords=("data", "axes fraction"), ha="right", va="bottom", fontsize=9)
    ax.set_xlim(0, 1.01 * max_tokens + 1)
    ax.set_xlabel("tokens of an answer")
    ax.set_ylabel("answers")
    ax.grid(False, axis="x")


def verdicts_and_lengths(counts: pd.DataFrame, samples: pd.DataFrame, max_tokens: int) -> Figure:
    """`plot_verdicts` and `plot_lengths` side by side."""
    fig, (left, right) = new_figure(2, 1, 5.4, max(2.6, 0.9 + 0.42 * counts["benchmark"].nunique()))
    plot_verdicts(counts, left)
    left.get_legend().remove()
    plot_lengths(samples, max_tokens, right)
    handles, labels = left.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right upper", frameon=False)
    return fig


def plot_loss(rows: pd.DataFrame, place: pd.Series, ax: Axes, look: int = 0, label: str = "") -> None:
    """Nats per token at each `place`, with two standard errors: rows of a `GeneralizationLoss.by_...` table."""
    colour = ("#0b5394", "#a85d16", "#38761d", "#741b47")[look % 4]
    low, high = rows["nll"] - 2 * rows["standard_error"], rows["nll"] + 2 * rows["standard_error"]
    ax.fill_between(place, low.clip(lower=0), high, color=colour, alpha=0.18, lw=0)
    ax.plot(
        place,
        rows["nll"],
        color=colour,
        ls=LINES[look % len(LINES)],
        marker=MARKERS[look % len(MARKERS)],
        ms=4.5,
        label=label,
    )


def loss_by_position_and_length(losses: Mapping[str, GeneralizationLoss]) -> Figure:
    """Where the generalization loss lies: by position in the response, and by the length of the response."""
    fig, (left, right) = new_figure(2, 1, 5.2, 2.9)
    for i, (name, loss) in enumerate(losses.items()):
        position, length = loss.by_position, loss.by_length
        plot_loss(position, (position["first"] + position["last"]) / 2, left, i, name)
        plot_loss(length, (length["shortest"] + length["longest"]) / 2, right, i, name)
    left.set_xscale("log", base=2)
    left.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.set_xlabel("position in the response (tokens)")
    right.set_xlabel("length of the response (tokens)")
    top = 1.05 * max(ax.get_ylim()[1] for ax in (left, right))
    for ax in (left, right):
        ax.set_ylim(0, top)
    left.set_ylabel("nats per token")
    if len(losses) > 1:
        left.legend(fontsize=8)
    return fig


def plot_verdicts(counts: pd.DataFrame, ax: Axes) -> None:
    """Share of each verdict by benchmark as stacked bars; a diamond marks the share of truncated answers, if any."""
    shares = counts.groupby("benchmark", sort=False)[[*VERDICT_STYLE, "truncated", "n"]].sum()
    shares = shares.div(shares["n"], axis=0)
    position = np.arange(len(shares))[::-1]
    left = np.zeros(len(shares))
    for verdict, (colour, hatch) in VERDICT_STYLE.items():
        width = shares[verdict].to_numpy()
        if verdict in ("timeout", "error") and not width.any():
            continue  # nothing to see; the table has the zero
        bars = {"color": colour, "hatch": hatch, "edgecolor": "white", "height": 0.72}
        ax.barh(position, width, left=left, label=verdict.replace("_", " "), **bars)
        left += width
    cut = shares["truncated"].to_numpy()
    if cut.any():
        diamond = {"marker": "D", "ms": 7, "mfc": "white", "mec": "black", "clip_on": False}
        ax.plot(cut[cut > 0], position[cut > 0], ls="", label="truncated", **diamond)
    ax.set_yticks(position, shares.index)
    ax.set_xlim(-0.03, 1.03)  # room for a diamond at either end
    ax.set_xlabel("share of answers (%)")
    _per_cent(ax, "x")
    ax.grid(False, axis="y")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
