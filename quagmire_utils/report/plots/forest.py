"""Pictures of the ledger of claims, and of what the paper's printed numbers leave open.

Draws what `claims.ledger` and `paper_audit` computed: `claims_grid` gives the axes and their rows, `plot_claims` draws
one of them, `mark_verdicts` the legend of all.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from quagmire_utils.report.plots.look import GREY, INK, LABEL_SIZE, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VERDICT_MARKS = {  # marker, face, edge: shape and lightness both tell verdicts apart
    "holds": ("o", "#0b3d6e", "#0b3d6e"),
    "does not hold": ("X", "#d9822b", "#d9822b"),
    "undecided": ("D", "white", "0.45"),
}
PANELS = {  # unit of a claim -> panel
    "points": "Pass@1, points",
    "nats": "Correlations, shares, losses (nats per token)",
    "correlation": "Correlations, shares, losses (nats per token)",
    "share": "Correlations, shares, losses (nats per token)",
    "R²": "Correlations, shares, losses (nats per token)",
    "difference of rank correlations": "Gains in rank correlation",
    "difference of R²": "Gains in median R²",
}
ROW = 0.24  # inches
LIMIT = 1.5  # of correlations and R2: what lies beyond is an arrow
SHOWN = 0.94  # of the limit: where the marker of a value beyond it stands, so that the arrow is seen
CLAIM_LENGTH = 92


def claims_grid(table: pd.DataFrame, width: float = 12.5) -> tuple[Figure, list[tuple[Axes, str, pd.DataFrame]]]:
    """A figure with one axis for each kind of statistic: (figure, [(axis, its title, its rows of the ledger)]).

    Claims that could not be tested have no interval and are left out; at least one axis is there, maybe empty.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tested = table[table["verdict"].isin(VERDICT_MARKS)]
    panels = tested["unit"].map(PANELS)
    parts = [(title, tested[panels == title]) for title in dict.fromkeys(PANELS.values())]
    parts = [(title, part) for title, part in parts if len(part)] or [("nothing was tested", tested)]
    heights = [max(len(part), 2) * ROW + 0.9 for _, part in parts]
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(width, sum(heights) + 0.6), layout="constrained")
        FigureCanvasAgg(fig)
        axes = fig.subplots(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
    return fig, [(axis, title, part) for axis, (title, part) in zip(axes, parts, strict=True)]


def plot_claims(table: pd.DataFrame, ax: Axes, title: str = "") -> None:
    """One line per claim: its 95 % interval, turned and shifted so that the right of zero is what the paper claims.

    Marker, lightness and colour say the verdict; a triangle above the line is the paper's number, where it prints one;
    an arrow goes on beyond the axis, and a value that lies there is written beside its marker.
    """
    ax.set_title(title, loc="left")
    if table.empty:
        ax.text(0.5, 0.5, "no claim of the paper was tested", transform=ax.transAxes, ha="center", color=GREY)
        ax.set_axis_off()
        return
    points = (table["unit"] == "points").all()
    scale = np.where(table["below"], -1.0, 1.0) * (100.0 if points else 1.0)
    value, low, high, paper = (
        ((table[name] - table["bound"]) * scale).to_numpy(float) for name in ("value", "low", "high", "paper")
    )
    low, high = np.fmin(low, high), np.fmax(low, high)
    limit = 1.1 * np.nanmax(np.abs([value, low, high]))
    limit = limit if points else min(max(limit, 0.3), LIMIT)
    rows = np.arange(len(table))[::-1]
    ax.axvline(0, color=INK, linewidth=1)
    for mark, (marker, face, edge) in VERDICT_MARKS.items():
        mine = (table["verdict"] == mark).to_numpy()
        for row, start, stop in zip(rows[mine], low[mine], high[mine], strict=True):
            _line(ax, row, start, stop, limit, edge)
        for row, at in zip(rows[mine], value[mine], strict=True):
            if abs(at) > limit:  # the marker stands within the axis, with its number
                side = math.copysign(1, at)
                ax.annotate(
                    f"{at:+.1f}",
                    (side * SHOWN * limit, row),
                    xytext=(-9 * side, 4),
                    textcoords="offset points",
                    ha="left" if side < 0 else "right",
                    fontsize=LABEL_SIZE,
                )
        inside = np.where(np.abs(value[mine]) > limit, np.sign(value[mine]) * SHOWN * limit, value[mine])
        ax.scatter(inside, rows[mine], 42, marker=marker, facecolor=face, edgecolor=edge, zorder=3, label=mark)
    printed = ~np.isnan(paper) & (np.abs(paper) <= limit)
    if printed.any():
        ax.scatter(
            paper[printed],
            rows[printed] + 0.3,
            22,
            marker="v",
            facecolor="white",
            edgecolor=INK,
            zorder=3,
            label="paper",
        )
    ax.set_yticks(rows, [_row_label(row) for row in table.itertuples()], fontsize=LABEL_SIZE)
    ax.set_ylim(-0.8, len(table) - 0.2)
    ax.set_xlim(-limit * 1.04, limit * 1.04)
    ax.set_xlabel("← against the claim      as the paper claims →", fontsize=LABEL_SIZE)
    ax.grid(axis="y", visible=False)


def mark_verdicts(fig: Figure, table: pd.DataFrame) -> None:
    """One legend for all panels of a `claims_grid`, of what its ledger has."""
    from matplotlib.lines import Line2D

    marks = {word: mark for word, mark in VERDICT_MARKS.items() if (table["verdict"] == word).any()}
    if marks and table.loc[table["verdict"].isin(marks), "paper"].notna().any():
        marks["paper"] = ("v", "white", INK)
    handles = [
        Line2D(
            [], [], linestyle="", marker=marker, markerfacecolor=face, markeredgecolor=edge, markersize=7, label=word
        )
        for word, (marker, face, edge) in marks.items()
    ]
    if handles:
        fig.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False)


def _line(ax: Axes, row: float, start: float, stop: float, limit: float, colour: str) -> None:
    if math.isnan(start):
        return
    ax.plot([max(start, -limit), min(stop, limit)], [row, row], color=colour, linewidth=1.8, solid_capstyle="butt")
    for beyond, place, marker in ((start < -limit, -limit, "<"), (stop > limit, limit, ">")):
        if beyond:
            ax.plot([place], [row], marker=marker, color=colour, markersize=5)


def _row_label(row) -> str:
    claim = row.claim if len(row.claim) <= CLAIM_LENGTH else row.claim[: CLAIM_LENGTH - 1] + "…"
    return f"{row.where} · {row.family}:  {claim}"


# --- the published tables ---------------------------------------------------------------------------------------------


KIND_MARKS = {"r2": ("o", "#0b3d6e"), "clipped": ("s", "#d9822b"), "squared": ("^", "0.55")}


def plot_split_spread(table: pd.DataFrame, ax: Axes) -> None:
    """Printed +- (x) against what the split alone gives at the same means (y, 95 % of draws), on logarithmic axes.

    table: one table's `paper_audit.split_alone`. What lies beyond the last tick (a squared correlation of two points
    has no spread at all) is drawn there, and the tick says so.
    """
    low, high = 0.005, 100.0
    ax.plot([low, high], [low, high], color=INK, linewidth=1)
    for kind, (marker, colour) in KIND_MARKS.items():
        part = table[table["kind"] == kind]
        x = part["plus_minus"].to_numpy(float)
        y, bottom, top = (np.clip(part[name].to_numpy(float), low, high) for name in ("expected_std", "low", "high"))
        ax.vlines(x, bottom, top, color=colour, linewidth=1, alpha=0.7)
        ax.plot(x, y, marker, color=colour, markersize=5)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(low, 1.0)
    ax.set_ylim(0.7 * low, 1.5 * high)  # room for the markers on the last ticks
    ax.set_yticks([low, 0.01, 0.1, 1, 10, high], [f"≤ {low:g}", "0.01", "0.1", "1", "10", f"≥ {high:g}"])
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("printed ±")
    ax.set_ylabel("± from the split alone")


def mark_kinds(fig: Figure, titles: dict[str, str]) -> None:
    """One legend for several `plot_split_spread`; titles: name of each kind of R2."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker=marker, color=colour, label=titles[kind])
        for kind, (marker, colour) in KIND_MARKS.items()
    ]
    close = {"handlelength": 1.0, "handletextpad": 0.4, "columnspacing": 1.4}  # as wide as two panels
    fig.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, **close)


def plot_rank_intervals(table: pd.DataFrame, ax: Axes, titles: dict[str, str]) -> None:
    """Printed rank correlations with the interval that so few candidates leave: `paper_audit.what_candidates_show`.

    titles: name of each predictor.
    """
    rows = np.arange(len(table))[::-1]
    base = (table["column"] == "pass1").to_numpy()
    for mine, marker, face in ((base, "D", "white"), (~base, "o", "#0b3d6e")):
        part = table[mine]
        ax.hlines(rows[mine], part["low"], part["high"], color="#0b3d6e" if marker == "o" else "0.45", linewidth=1.8)
        ax.scatter(part["value"], rows[mine], 40, marker=marker, facecolor=face, edgecolor=INK, zorder=3)
    labels = [f"Table {row.table} · {row.family}, n = {row.n}:  {titles[row.column]}" for row in table.itertuples()]
    ax.set_yticks(rows, labels, fontsize=LABEL_SIZE)
    ax.set_xlim(0, 1.02)
    ax.set_xlabel("rank correlation of prediction and outcome, 95 % interval")
    ax.grid(axis="y", visible=False)
