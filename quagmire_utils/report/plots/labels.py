"""Names beside points: what a candidate is called, and where there is room for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from quagmire_utils.report.plots.look import GREY, INK, LABEL_SIZE

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _place_labels(
    ax: Axes,
    x: np.ndarray,
    y: np.ndarray,
    names: Sequence[str],
    avoid: Sequence[tuple[float, float]] = (),
    sizes: np.ndarray | float = 5.0,
) -> None:
    """Write each name near its point, where it covers no other name or point and as little as can be of `avoid`.

    sizes: of the points' markers, from the middle to the edge, in typographic points.
    Each name takes the best of many places around its point, given where the others are, in a few rounds. A name that
    stands off is tied to its point by a line.
    """
    fig = ax.figure
    fig.draw_without_rendering()
    renderer = fig.canvas.get_renderer()
    scale = fig.dpi / 72  # pixels a point
    points = ax.transData.transform(np.column_stack([x, y])) / scale
    thin = ax.transData.transform(np.array(avoid)) / scale if len(avoid) else np.empty((0, 2))
    frame = ax.get_window_extent(renderer).extents / scale
    extents = []
    for name in names:
        text = ax.text(0, 0, name, fontsize=LABEL_SIZE)
        extent = text.get_window_extent(renderer)
        extents.append((extent.width / scale, extent.height / scale))
        text.remove()
    angles = np.radians([45, 0, 135, 315, 180, 225, 90, 270, 22, 68, 112, 158, 202, 248, 292, 338])
    spots = [(r * math.cos(t), r * math.sin(t), r) for r in (8, 13, 20, 28, 38, 50) for t in angles]
    marks = np.column_stack([points - np.reshape(sizes, (-1, 1)), points + np.reshape(sizes, (-1, 1))])
    boxes = np.full((len(names), 4), np.nan)  # NaN overlaps with nothing
    places = [(0.0, 0.0)] * len(names)
    for _ in range(3):
        for i, (point, (width, height)) in enumerate(zip(points, extents, strict=True)):
            others = np.concatenate([marks, np.delete(boxes, i, axis=0)])
            best = math.inf
            for dx, dy, distance in spots:
                # the box touches the circle around the point with its nearest side
                left = point[0] + dx - width * (0.5 - 0.5 * np.sign(round(dx)))
                low = point[1] + dy - height * (0.5 - 0.5 * np.sign(round(dy)))
                box = np.array([left, low, left + width, low + height])
                outside = np.maximum(frame[:2] - box[:2], 0).sum() + np.maximum(box[2:] - frame[2:], 0).sum()
                inside = ((thin > box[:2]) & (thin < box[2:])).all(axis=1).sum()
                cost = 20 * _overlap(box, others) + 100 * outside + 8 * inside + 5 * distance
                if cost < best:
                    best, boxes[i], places[i] = cost, box, (dx, dy)
    for name, position, point, box, (dx, dy) in zip(names, zip(x, y, strict=True), points, boxes, places, strict=True):
        tie = {"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkA": 0, "shrinkB": 3, "relpos": (0.5, 0.5)}
        ax.annotate(
            name,
            position,
            tuple(box[:2] - point),
            textcoords="offset points",
            fontsize=LABEL_SIZE,
            color=INK,
            zorder=4,
            path_effects=halo(),
            arrowprops=tie if math.hypot(dx, dy) > 15 else None,
        )


def halo() -> list[Any]:
    """Path effects that keep a text readable where a line runs behind it."""
    from matplotlib import patheffects

    return [patheffects.withStroke(linewidth=2, foreground="white")]


def _overlap(box: np.ndarray, others: np.ndarray) -> float:
    """Area that a box (left, low, right, high) shares with the others, in square points."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return float(np.nansum(np.where((sides > 0).all(axis=1), sides.prod(axis=1), 0)))


def _bars(x: np.ndarray, y: np.ndarray, right: np.ndarray, up: np.ndarray) -> list[tuple[float, float]]:
    """Points along error bars, for labels to keep off."""
    steps = np.linspace(-1, 1, 13)
    points = []
    for px, py, dx, dy in zip(x, y, np.nan_to_num(right), np.nan_to_num(up), strict=True):
        points += [(px + t * dx, py) for t in steps] + [(px, py + t * dy) for t in steps]
    return points


PREFIX = {"none": "", "random": "", "shortest": "s", "longest": "l", "shortest+longest": "s+l "}


def _candidate_labels(candidates: pd.DataFrame, *, repeats: bool = True) -> list[str]:
    """Selection (s, l, s+l, or nothing for random) and unique examples × epochs, or base.

    repeats: write the epochs even where they are one.
    """
    return [
        "base"
        if selection == "none"
        else f"{PREFIX.get(selection, selection + ' ')}{examples}" + (f"×{epochs:g}" if repeats or epochs != 1 else "")
        for selection, examples, epochs in zip(
            candidates["selection"], candidates["n_examples"], candidates["epochs"], strict=True
        )
    ]
