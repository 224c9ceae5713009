"""Candidates after SFT and after RL, a small and a large marker each: Figs. 1, 2, 4, 7, 8, 9 of the paper.

    panels = [panel(frame, family, "dataset", selections=["random"]) for family in families]
    fig = stage_grid(panels, x="n_examples", by="epochs", profile="mini", runs=design.run_outcomes(records))

The large filled marker is the score after RL, the small hollow one the score after SFT (as Fig. 7's caption says of the
paper's dots); a thin upright line joins the two, and lines join the candidates of a series.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.report.plots.labels import _bars, _candidate_labels, _place_labels
from quagmire_utils.report.plots.look import GREY, INK, _per_cent, new_figure, not_run
from quagmire_utils.report.plots.series import OUTCOMES, Panel, Series, half_widths, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

X_LABELS = {
    "n_examples": "unique SFT examples",
    "epochs": "SFT epochs",
    "sft_tokens": "SFT tokens trained on (examples × epochs × length)",
}
APART = 0.035  # of the axis' width: how near markers may come to each other sideways


def plot_stages(
    shown: Panel,
    ax: Axes,
    x: str,
    by: str,
    *,
    outcome: str = "outcome",
    runs: pd.DataFrame | None = None,
    among: pd.DataFrame | None = None,
    profile: str = "",
) -> None:
    """Pass@1 after SFT (small, hollow, dashed) and after RL (large, filled, solid) by `x`, a series for each `by`.

    x: n_examples, epochs or sft_tokens, on a logarithmic axis, where series stand a little aside of each other.
    by: what tells series apart (`series`). runs: `design.run_outcomes`; each RL run's own result is then a short dash.
    Grey lines and bands: the base model before RL (dashed) and after it (solid). Without candidates the axis says so.
    """
    half_widths(shown.candidates, outcome)  # refuses an unknown outcome before anything else
    if x not in X_LABELS:
        raise ParameterError(f"x must be one of {', '.join(X_LABELS)}, not {x!r}")
    ax.set_title(shown.title, loc="left")
    ax.set_xlabel(X_LABELS[x])
    ax.set_ylabel("Pass@1 (%)")
    if not_run(ax, shown.candidates, profile):
        return
    _base_lines(shown, ax, outcome)
    everything = series(shown.candidates.sort_values(x, kind="stable"), by, among)
    for place, one in zip(_places(everything, x), everything, strict=True):
        rows = one.rows
        fewest = by != "selection" or rows["epochs"].iloc[0] == shown.candidates["epochs"].min()
        ax.vlines(place, rows["pass1"], rows[outcome], color=GREY, lw=0.6, zorder=1)
        for column, style, size, face in (("pass1", "--", 5, "white"), (outcome, "-", 9, one.colour)):
            ax.errorbar(
                place,
                rows[column],
                yerr=half_widths(rows, column, shown.candidates),
                color=one.line_colour,
                ls=style,
                lw=1.3 if fewest else 0.6,
                marker=one.marker,
                ms=size,
                mfc=face,
                mec=INK,
                mew=0.8,
                elinewidth=1.0,
                ecolor=INK,
                zorder=3 if column == outcome else 4,  # the small one stays to be seen on the large one
            )
            if one.rate is not None:
                ax.plot(place, rows[column], ls="", marker=".", ms=size / 3, mfc=INK, mec="white", mew=0.4, zorder=5)
        if runs is not None:
            _run_dashes(ax, dict(zip(rows["candidate"], place, strict=True)), rows, runs, outcome)
    _log_axis(ax, x, shown.candidates[x])
    _per_cent(ax, "y")
    ax.margins(0.14, 0.08)


def plot_before_after(
    shown: Panel, ax: Axes, *, correlation: float = math.nan, outcome: str = "outcome", profile: str = ""
) -> None:
    """Pass@1 after SFT against the outcome after RL, a line per selection (Fig. 1).

    Rings: of the candidates of one epoch (the paper's are), the best after SFT (dashed) and the best after RL (solid):
    those that the claim compares. correlation: Spearman's of all that are drawn, for the title.
    """
    ax.set_xlabel("Pass@1 after SFT (%)")
    ax.set_ylabel("Pass@1 after RL (%)")
    rows = shown.candidates
    if not_run(ax, rows, profile):
        return
    known = "" if math.isnan(correlation) else f"rank correlation {correlation:.2f}, "
    ax.set_title(f"{known}n = {len(rows)} candidates", loc="left")
    ax.errorbar(
        rows["pass1"],
        rows[outcome],
        xerr=half_widths(rows, "pass1"),
        yerr=half_widths(rows, outcome),
        fmt="none",
        ecolor=GREY,
        elinewidth=0.9,
        zorder=1,
    )
    for one in series(rows, "selection"):
        part = one.rows.sort_values("sft_tokens")
        ax.plot(
            part["pass1"],
            part[outcome],
            color=one.line_colour,
            marker=one.marker,
            ms=8,
            lw=1.2,
            mfc=one.colour,
            mec=INK,
            mew=0.8,
            zorder=3,
        )
    for style, best in zip(("--", "-"), _best_of_one_epoch(rows, outcome), strict=False):
        best = rows.loc[[best]]
        size = 330 if style == "-" else 210
        ax.scatter(best["pass1"], best[outcome], s=size, facecolors="none", edgecolors=INK, ls=style, lw=1.3, zorder=4)
    _per_cent(ax, "xy")
    ax.margins(0.12, 0.12)


def stage_grid(
    panels: Sequence[Panel],
    x: str,
    by: str,
    *,
    outcome: str = "outcome",
    runs: pd.DataFrame | None = None,
    profile: str = "",
    names: bool = False,
) -> Figure:
    """`plot_stages` for each panel, side by side, with one legend. names: write each candidate's beside its outcome."""
    fig, axes = new_figure(len(panels), 1, 7.4 if len(panels) == 1 else 5.2, 4.8)
    among = pd.concat([shown.candidates for shown in panels])
    for shown, ax in zip(panels, np.atleast_1d(axes), strict=True):
        plot_stages(shown, ax, x, by, outcome=outcome, runs=runs, among=among, profile=profile)
    handles = stage_handles(panels, by, outcome, runs is not None)
    if handles:
        fig.legend(handles=handles, loc="outside upper left", ncols=4 if len(panels) == 1 else 5, frameon=False)
    if names:
        for shown, ax in zip(panels, np.atleast_1d(axes), strict=True):
            label_stages(shown, ax, x, by, outcome, among)
    return fig


def selection_figure(
    shown: Panel,
    *,
    x: str = "sft_tokens",
    outcome: str = "outcome",
    runs: pd.DataFrame | None = None,
    correlation: float = math.nan,
    profile: str = "",
) -> Figure:
    """Fig. 1: scores of each selection by SFT tokens (`plot_stages`), and after RL against after SFT."""
    from matplotlib.lines import Line2D

    fig, (left, right) = new_figure(2, 1, 5.2, 4.6)
    plot_stages(shown, left, x, "selection", outcome=outcome, runs=runs, profile=profile)
    plot_before_after(shown, right, correlation=correlation, outcome=outcome, profile=profile)
    handles = stage_handles([shown], "selection", outcome, runs is not None)
    if handles:
        ring = {"ls": "", "marker": "o", "mfc": "none", "mec": INK, "mew": 1.2}
        handles.append(Line2D([], [], **ring, ms=13, label="one epoch, best after RL (solid ring)"))
        handles.append(Line2D([], [], **{**ring, "mec": GREY}, ms=10, label="one epoch, best after SFT (dashed ring)"))
        fig.legend(handles=handles, loc="outside upper left", ncols=5, frameon=False)
        label_stages(shown, left, x, "selection", outcome)
        rows = shown.candidates
        points = rows["pass1"].to_numpy(), rows[outcome].to_numpy()
        bars = _bars(*points, half_widths(rows, "pass1"), half_widths(rows, outcome))
        ringed = np.where(rows.index.isin(_best_of_one_epoch(rows, outcome)), 10.0, 5.0)
        _place_labels(right, *points, _candidate_labels(rows, repeats=False), bars, ringed)
    return fig


def _best_of_one_epoch(rows: pd.DataFrame, outcome: str) -> list[Any]:
    """Index of the best after SFT and of the best after RL; empty where no candidate has one epoch."""
    once = rows[rows["epochs"] == 1]
    return [once[column].idxmax() for column in ("pass1", outcome)] if len(once) else []


def label_stages(
    shown: Panel, ax: Axes, x: str, by: str, outcome: str = "outcome", among: pd.DataFrame | None = None
) -> None:
    """Write each candidate's name beside its outcome, on an axis that `plot_stages` drew and that is laid out."""
    everything = series(shown.candidates.sort_values(x, kind="stable"), by, among)
    if not everything:
        return
    places = _places(everything, x)
    steps = np.linspace(0, 1, 15)
    avoid = []
    for place, one in zip(places, everything, strict=True):  # the uprights and the upper lines
        after, before = one.rows[outcome].to_numpy(), one.rows["pass1"].to_numpy()
        avoid += [(p, a + t * (b - a)) for p, a, b in zip(place, after, before, strict=True) for t in steps]
        for i in range(len(place) - 1):
            ratio = place[i + 1] / place[i]
            avoid += [(place[i] * ratio**t, after[i] + t * (after[i + 1] - after[i])) for t in steps]
    rows = pd.concat([one.rows for one in everything])
    x_values, y_values = np.concatenate(places), rows[outcome].to_numpy(np.float64)
    bars = _bars(x_values, y_values, np.zeros(len(rows)), half_widths(rows, outcome, shown.candidates))
    _place_labels(ax, x_values, y_values, _candidate_labels(rows, repeats=False), [*avoid, *bars])


def stage_handles(panels: Sequence[Panel], by: str, outcome: str, runs: bool) -> list[Any]:
    """Legend entries for axes drawn by `plot_stages`; none where no panel has a candidate."""
    from matplotlib.lines import Line2D

    among = pd.concat([shown.candidates for shown in panels])
    if among.empty:
        return []
    looks: dict[str, Any] = {}
    rates = set()
    for one in series(among, by):
        mark = Line2D([], [], ls="-", lw=1.2, color=one.line_colour, marker=one.marker, ms=8, mfc=one.colour, mec=INK)
        mark.set_label(one.label)
        looks.setdefault(one.label, mark)
        rates |= {one.rate} - {None}
    handles = list(looks.values())
    handles.append(Line2D([], [], ls="-", color=GREY, marker="o", ms=9, mfc=GREY, mec=INK, label="after RL"))
    handles.append(Line2D([], [], ls="--", color=GREY, marker="o", ms=5, mfc="white", mec=INK, label="after SFT"))
    if rates:
        said = ", ".join(f"{rate:g}" for rate in sorted(rates))
        handles.append(Line2D([], [], ls="", marker=".", color=INK, ms=5, label=f"dot: learning rate {said}"))
    if runs:
        handles.append(Line2D([], [], ls="", marker="_", color=INK, ms=9, label="an RL run"))
    if any(len(shown.base) and len(shown.candidates) for shown in panels):
        for style, said in (("-", "base (no SFT) after RL"), ("--", "base before RL")):
            handles.append(Line2D([], [], ls=style, color=GREY, lw=1.3, label=said))
    return handles


def _base_lines(shown: Panel, ax: Axes, outcome: str) -> None:
    for column, style in (("pass1", "--"), (outcome, "-")):
        widths = half_widths(shown.base, column, pd.concat([shown.candidates, shown.base]))
        for value, width in zip(shown.base[column], np.nan_to_num(widths), strict=True):
            ax.axhspan(value - width, value + width, color="0.9", lw=0, zorder=0)
            ax.axhline(value, ls=style, color=GREY, lw=1.3, zorder=0.9)


def _run_dashes(ax: Axes, place: dict[str, float], rows: pd.DataFrame, runs: pd.DataFrame, outcome: str) -> None:
    """A short dash for each RL run of the rows: its best or its last checkpoint, as `outcome` says."""
    mine = runs[runs["family"].isin(rows["family"]) & runs["candidate"].isin(rows["candidate"])]
    ax.scatter(
        mine["candidate"].map(place), mine[OUTCOMES[outcome]], marker="_", s=70, color=INK, linewidths=0.9, zorder=2
    )


def _places(everything: Sequence[Series], x: str) -> list[np.ndarray]:
    """Where each series' candidates stand (in order of their rows): at x, or a little aside where that is taken.

    Neighbours on the logarithmic axis keep `APART` of its width between them; those that would not are spread about
    their mean, in order of x and then of series.
    """
    logs = [np.log2(one.rows[x].to_numpy(np.float64)) for one in everything]
    flat = np.concatenate(logs)
    order = np.argsort(flat, kind="stable")
    step = APART * max(float(np.ptp(flat)), 1.0)
    clusters: list[tuple[float, int]] = []  # mean, members
    for value in flat[order]:
        clusters.append((value, 1))
        while len(clusters) > 1:
            (low, few), (high, many) = clusters[-2:]
            if high - low >= step * (few + many) / 2 - 1e-9:
                break
            clusters[-2:] = [((low * few + high * many) / (few + many), few + many)]
    spread = [mean + step * (np.arange(size) - (size - 1) / 2) for mean, size in clusters]
    placed = np.empty(len(flat))
    placed[order] = np.concatenate(spread)
    return np.split(2.0**placed, np.cumsum([len(values) for values in logs])[:-1])


def _log_axis(ax: Axes, x: str, values: pd.Series) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.set_xscale("log", base=10 if x == "sft_tokens" else 2)
    if x == "sft_tokens":
        ax.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _thousands(value)))
    else:
        ticks = sorted(values.unique())
        ax.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())


def _thousands(value: float) -> str:
    if value >= 1e9:
        return f"{value / 1e9:g}B"
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"
