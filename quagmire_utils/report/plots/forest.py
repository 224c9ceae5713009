"""Forest plots: a row with its interval for each claim and each printed correlation; and the printed ± of the paper.

`claims_grid` makes the axes and their rows of the ledger, `plot_claims` draws one of them, `mark_verdicts` the legend.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from quagmire_utils.report.plots.look import GREY, INK, LABEL_SIZE, legend_entry, name_rows, new_figure, write_note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DARK, ORANGE = "#0b3d6e", "#d9822b"
VERDICT_MARKS = {  # marker, face, edge: verdicts differ by shape and by lightness
    "holds": ("o", DARK, DARK),
    "fails": ("X", ORANGE, ORANGE),
    "undecided": ("D", "white", "0.45"),
}
PANELS = {  # unit of a claim -> panel
    "points": "Pass@1, points",
    **dict.fromkeys(("nats", "correlation", "share", "R²"), "Correlations, shares, losses (nats per token)"),
    "difference of rank correlations": "Gains in rank correlation",
    "difference of R²": "Gains in median R²",
}
ROW = 0.24  # inches
LIMIT = 1.5  # of correlations and R²: an arrow stands for what lies beyond
SHOWN = 0.94  # of the limit: place of the marker of a value beyond it
CLAIM_LENGTH = 92  # characters


def claims_grid(table: pd.DataFrame, width: float = 12.5) -> tuple[Figure, list[tuple[Axes, str, pd.DataFrame]]]:
    """Make a figure with one axis for each kind of statistic; return it and (axis, title, rows of the ledger) each.

    Claims that could not be tested have no interval and are left out. There is always at least one axis.
    """
    tested = table[table["verdict"].isin(VERDICT_MARKS)]
    panels = tested["unit"].map(PANELS)
    parts = [(title, tested[panels == title]) for title in dict.fromkeys(PANELS.values())]
    parts = [(title, part) for title, part in parts if len(part)] or [("nothing was tested", tested)]
    heights = [max(len(part), 2) * ROW + 0.9 for _, part in parts]
    mean = (sum(heights) + 0.6) / len(parts)
    fig, axes = new_figure(1, len(parts), width, mean, height_ratios=heights, squeeze=False)
    return fig, [(axis, title, part) for axis, (title, part) in zip(axes.flat, parts, strict=True)]


def plot_claims(table: pd.DataFrame, ax: Axes, title: str = "") -> None:
    """Plot one row per claim: its 95 % interval, turned and shifted so that right of zero is what the paper claims.

    Marker and colour show the verdict. A triangle above the row is the paper's number. An arrow stands for an interval
    that ends beyond the axis; a value beyond the axis is written beside its marker.
    """
    ax.set_title(title)
    if table.empty:
        write_note(ax, "no claim of the paper was tested")
        return
    points = (table["unit"] == "points").all()
    scale = np.where(table["below"], -1.0, 1.0) * (100.0 if points else 1.0)
    value, low, high, paper = (
        ((table[name] - table["bound"]) * scale).to_numpy(float) for name in ("value", "low", "high", "paper")
    )
    low, high = np.fmin(low, high), np.fmax(low, high)
    limit = 1.1 * np.nanmax(np.abs([value, low, high]))
    limit = limit if points else min(max(limit, 0.3), LIMIT)
    beyond = np.abs(value) > limit
    inside = np.where(beyond, np.sign(value) * SHOWN * limit, value)
    rows = np.arange(len(table))[::-1]
    ax.axvline(0, color=INK, linewidth=1)
    for verdict, (marker, face, edge) in VERDICT_MARKS.items():
        mine = (table["verdict"] == verdict).to_numpy()
        ax.hlines(rows[mine], low[mine].clip(-limit), high[mine].clip(max=limit), color=edge, linewidth=1.8)
        for end, arrow in ((mine & (low < -limit), "<"), (mine & (high > limit), ">")):
            ax.plot(np.full(end.sum(), -limit if arrow == "<" else limit), rows[end], arrow, color=edge, markersize=5)
        ax.scatter(inside[mine], rows[mine], 42, marker=marker, facecolor=face, edgecolor=edge, zorder=3, label=verdict)
    for row, at, place in zip(rows[beyond], value[beyond], inside[beyond], strict=True):
        side = math.copysign(1, at)
        text = {"textcoords": "offset points", "ha": "left" if side < 0 else "right", "fontsize": LABEL_SIZE}
        ax.annotate(f"{at:+.1f}", (place, row), xytext=(-9 * side, 4), **text)
    printed = np.abs(paper) <= limit  # not NaN
    if printed.any():
        look = {"marker": "v", "facecolor": "white", "edgecolor": INK, "zorder": 3, "label": "paper"}
        ax.scatter(paper[printed], rows[printed] + 0.3, 22, **look)
    name_rows(ax, [_row_label(row) for row in table.itertuples()])
    ax.set_xlim(-limit * 1.04, limit * 1.04)
    ax.set_xlabel("← against the claim      as the paper claims →", fontsize=LABEL_SIZE)


def mark_verdicts(fig: Figure, table: pd.DataFrame) -> None:
    """Draw one legend for all panels of a `claims_grid`, of what its ledger has."""
    marks = {word: mark for word, mark in VERDICT_MARKS.items() if (table["verdict"] == word).any()}
    if marks and table.loc[table["verdict"].isin(marks), "paper"].notna().any():
        marks["paper"] = ("v", "white", INK)
    entries = [legend_entry(word, marker=m, mfc=face, mec=edge, ms=7) for word, (m, face, edge) in marks.items()]
    if entries:
        fig.legend(handles=entries, loc="outside upper left", ncols=len(entries))


def _row_label(row: Any) -> str:
    claim = row.claim if len(row.claim) <= CLAIM_LENGTH else row.claim[: CLAIM_LENGTH - 1] + "…"
    return f"{row.where} · {row.family}:  {claim}"


# --- the published tables ---------------------------------------------------------------------------------------------

KIND_MARKS = {"r2": ("o", DARK), "clipped": ("s", ORANGE), "squared": ("^", "0.55")}


def plot_split_spread(table: pd.DataFrame, ax: Axes) -> None:
    """Plot the printed ± (x) against what the split alone gives at the same means (y, 95 % of draws), on log axes.

    table: one table's `paper_audit.split_alone`. Values beyond the last tick are drawn on it, and its label says so.
    """
    low, high = 0.005, 100.0
    ax.plot([low, high], [low, high], color=INK, linewidth=1)
    for kind, (marker, colour) in KIND_MARKS.items():
        part = table[table["kind"] == kind]
        x = part["plus_minus"].to_numpy(float)
        y, bottom, top = (np.clip(part[name].to_numpy(float), low, high) for name in ("expected_std", "low", "high"))
        ax.vlines(x, bottom, top, color=colour, linewidth=1, alpha=0.7)
        ax.plot(x, y, marker, color=colour, markersize=5, mec="none")
    ax.set(xscale="log", yscale="log", xlabel="printed ±", ylabel="± from the split alone")
    ax.set_xlim(low, 1.0)
    ax.set_ylim(0.7 * low, 1.5 * high)  # room for the markers on the last ticks
    ax.set_yticks([low, 0.01, 0.1, 1, 10, high], [f"≤ {low:g}", "0.01", "0.1", "1", "10", f"≥ {high:g}"])
    ax.xaxis.set_major_formatter("{x:g}")


def mark_kinds(fig: Figure, titles: Mapping[str, str]) -> None:
    """Draw one legend for several `plot_split_spread`; titles: name of each kind of R²."""
    entries = [legend_entry(titles[k], marker=m, color=colour, mec="none") for k, (m, colour) in KIND_MARKS.items()]
    close = {"handlelength": 1.0, "handletextpad": 0.4, "columnspacing": 1.4}  # as wide as two panels
    fig.legend(handles=entries, loc="outside upper left", ncols=len(entries), **close)


def plot_rank_intervals(table: pd.DataFrame, ax: Axes, titles: Mapping[str, str]) -> None:
    """Plot printed rank correlations with the interval that so few candidates leave.

    table: from `paper_audit.what_candidates_show`. titles: name of each predictor.
    """
    rows = np.arange(len(table))[::-1]
    base = (table["column"] == "pass1").to_numpy()
    for mine, marker, face, line in ((base, "D", "white", GREY), (~base, "o", DARK, DARK)):
        part = table[mine]
        ax.hlines(rows[mine], part["low"], part["high"], color=line, linewidth=1.8)
        ax.scatter(part["value"], rows[mine], 40, marker=marker, facecolor=face, edgecolor=INK, zorder=3)
    name_rows(ax, [f"Table {r.table} · {r.family}, n = {r.n}:  {titles[r.column]}" for r in table.itertuples()])
    ax.set_xlim(0, 1.02)
    ax.set_xlabel("rank correlation of prediction and outcome, 95 % interval")
