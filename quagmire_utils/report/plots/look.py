"""The look that all figures share: colours, markers, labels beside points, the stamp, and how a figure is saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from quagmire_utils.core.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*", "<", ">")
INTERVAL = 1.96  # standard errors to each side: 95 %
LABEL_SIZE = 8.5
GREY, INK = "0.45", "0.15"
BLUE, ORANGE, SAND, SKY = "#0b5394", "#d9822b", "#f0d9a8", "#5b9bd5"  # distinct in greyscale
FORMATS = ("svg", "png")
NOT_RUN = "not run"  # marks the text of an axis without data
SELECTION_STYLE = {  # marker, fill
    "none": ("D", "white"),
    "random": ("o", BLUE),
    "shortest": ("v", ORANGE),
    "longest": ("^", SAND),
    "shortest+longest": ("s", "0.42"),
}
OTHER_SELECTION = ("P", "white")
VERDICT_STYLE = {  # face colour of rising lightness, hatch
    "correct": (BLUE, ""),
    "wrong": (ORANGE, "//"),
    "no_answer": (SAND, ".."),
    "timeout": ("#8c8c8c", "xx"),
    "error": ("#222222", ""),
}
STYLE = Path(__file__).with_name("quagmire.mplstyle")


def new_figure(
    columns: int = 1, rows: int = 1, width: float = 6.0, height: float = 4.4, **grid: Any
) -> tuple[Figure, Any]:
    """Make a figure of `rows` x `columns` axes, each `width` x `height` inches; return it and its axis or axes."""
    import matplotlib as mpl
    import seaborn as sns
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    mpl.rcParams.update(sns.axes_style("whitegrid") | mpl.rc_params_from_file(STYLE, use_default_template=False))
    fig = Figure(figsize=(width * columns, height * rows), layout="constrained")  # pyplot would keep it open
    FigureCanvasAgg(fig)
    return fig, fig.subplots(rows, columns, **grid)


def small_multiples(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Make a figure of `count` axes on common scales, at most `columns` side by side; only outer axes have labels."""
    columns = min(columns, count)
    width = max(width, 7.5 / columns)  # room for a title of the figure
    fig, axes = new_figure(columns, -(-count // columns), width, height, sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[count:]:
        ax.set_visible(False)
    for ax in axes.flat[max(0, count - columns) : count]:
        ax.tick_params(labelbottom=True)
    return fig, list(axes.flat[:count])


def save_figure(fig: Figure, path: str | Path) -> list[Path]:
    """Write `path`.svg and `path`.png (200 dots an inch, 256 colours), each atomically; return the two paths."""
    path = Path(path)
    written = []
    for kind in FORMATS:
        target = path.with_name(f"{path.name}.{kind}")
        with atomic_path(target) as temporary:
            fig.savefig(temporary, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
            if kind == "png":
                shrink_picture(temporary)
        written.append(target)
    return written


def shrink_picture(path: Path) -> None:
    """Write a PNG again with a palette of 256 colours, which makes a third of the size."""
    from PIL import Image

    with Image.open(path) as image:
        palette = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    palette.save(path, format="png")


def stamp(fig: Figure, text: str) -> None:
    """Write the origin of the figure in its lower left corner; "not run" for "measured" if every axis is empty."""
    if fig.axes and all(any(text.get_gid() == NOT_RUN for text in ax.texts) for ax in fig.axes if ax.get_visible()):
        text = text.replace("measured", NOT_RUN)
    fig.supxlabel(text, fontsize=8, color=GREY, x=0.01, ha="left")


def write_message(fig: Figure, message: str) -> None:
    """Write what a figure says above it, and above its legend: a title of the figure would lie over that one."""
    if fig.legends:
        fig.legends[0].set_title(message, {"size": 11})
        fig.legends[0].set_alignment("left")
    else:
        fig.suptitle(message, x=0.01, ha="left", size=11)


def write_note(ax: Axes, text: str, gid: str | None = None) -> None:
    """Write a sentence in the middle of an axis that has nothing to show."""
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, color=GREY, fontsize=11, gid=gid)
    ax.set_xticks([])
    ax.set_yticks([])


def shades(values: Sequence[Any]) -> dict[Any, Any]:
    """Return a colour of cividis for each value, dark for the first and light for the last."""
    from matplotlib import colormaps

    colours = colormaps["cividis"](np.linspace(0.0, 0.9, len(values)))
    return dict(zip(values, map(tuple, colours), strict=True))


def per_cent(ax: Axes, which: str) -> None:
    """Show the ticks of the axes in `which` ("x", "y" or "xy") in per cent."""
    for name in which:
        getattr(ax, f"{name}axis").set_major_formatter(lambda value, _: f"{100 * value:g}")


def log_ticks(ax: Axes, values: Iterable[float], base: int = 2) -> None:
    """Make the x axis logarithmic, with a tick at each of the values and none between them."""
    ticks = sorted(set(values))
    ax.set_xscale("log", base=base)
    names = [f"{tick:,g}" for tick in ticks]
    for i in range(1, len(ticks)):  # near ticks have their names on two lines
        names[i] = "\n" * int(ticks[i] < 1.45 * ticks[i - 1] and names[i - 1][0] != "\n") + names[i]
    ax.set_xticks(ticks, names)
    ax.minorticks_off()


def name_rows(ax: Axes, names: Sequence[str]) -> np.ndarray:
    """Name the rows of an axis, the first on top; return their heights."""
    rows = np.arange(len(names))[::-1]
    ax.set_yticks(rows, [name.replace("$", r"\$") for name in names], fontsize=LABEL_SIZE)  # `$` begins a formula
    ax.set_ylim(-0.8, len(names) - 0.2)
    ax.grid(axis="y", visible=False)
    return rows


def legend_entry(label: str, **looks: Any) -> Line2D:
    """Return a legend entry with the looks of a line, by default a marker without a line."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **{"ls": "", "mec": INK, **looks})


def legend_above(fig: Figure | Axes, entries: Iterable[Any], **looks: Any) -> None:
    """Draw one legend, by default above the figure, with each label once; none without entries."""
    once: dict[str, Any] = {}
    for entry in entries:
        once.setdefault(entry.get_label(), entry)
    if once:
        fig.legend(handles=list(once.values()), **{"loc": "outside upper left", "ncols": 5, **looks})


def entries_of(axes: Iterable[Axes]) -> list[Any]:
    """Return the legend entries of what is drawn on these axes."""
    return [handle for ax in axes for handle in ax.get_legend_handles_labels()[0]]


# --- labels beside points ---------------------------------------------------------------------------------------------

MARKER_RADIUS = 5  # typographic points
FAR = 14  # typographic points from which a line ties a label to its point
ANGLES = np.radians([45, 0, 135, 315, 180, 225, 90, 270, 22, 68, 112, 158, 202, 248, 292, 338])
# places of a label around its point: right, up, distance
SPOTS = np.array([(r * np.cos(t), r * np.sin(t), r) for r in (8, 13, 20, 28, 38, 50) for t in ANGLES])
PREFIX = {"random": "", "shortest": "s", "longest": "l", "shortest+longest": "s+l "}


def candidate_labels(candidates: pd.DataFrame, *, repeats: bool = True) -> list[str]:
    """Return "base", or selection (s, l, s+l, none for random), examples × epochs of each; `repeats`: also × 1.

    Of twins, which differ in the learning rate alone, those of a rate that is not the most common one have a dot.
    """
    labels = pd.Series("base", index=candidates.index, dtype=object)
    for i, row in enumerate(candidates.itertuples(index=False)):
        epochs = f"×{row.epochs:g}" if repeats or row.epochs != 1 else ""
        if row.selection != "none":
            labels.iloc[i] = f"{PREFIX.get(row.selection, row.selection + ' ')}{row.n_examples}{epochs}"
    rates = candidates["learning_rate"]
    unusual = rates.groupby(labels).transform("nunique").gt(1) & ~rates.isin(rates.mode()[:1])
    return (labels + np.where(unusual, " •", "")).tolist()


def halo() -> list[Any]:
    """Return path effects that keep a text readable on a line."""
    from matplotlib import patheffects

    return [patheffects.withStroke(linewidth=2, foreground="white")]


def label_points(ax: Axes, x: Sequence[float], y: Sequence[float], names: Sequence[str], avoid: Any = ()) -> None:
    """Write each name near its point, off other names and markers and, if possible, off the points (x, y) in `avoid`.

    Each name takes the best of 96 places around its point, in three rounds; a line ties a distant name to its point.
    adjustText is slower and puts names nearer to other points than to their own.
    """
    ax.figure.draw_without_rendering()  # lays the axes out
    scale = ax.figure.dpi / 72  # pixels in a typographic point
    points = ax.transData.transform(np.column_stack([x, y])) / scale
    thin = ax.transData.transform(np.array([*avoid], dtype=float).reshape(-1, 2)) / scale
    frame = ax.get_window_extent().extents / scale
    texts = [ax.text(0, 0, name, fontsize=LABEL_SIZE) for name in names]
    sizes = np.array([text.get_window_extent().size for text in texts]) / scale
    markers = np.hstack([points - MARKER_RADIUS, points + MARKER_RADIUS])
    boxes = np.full((len(texts), 4), np.nan)  # left, low, right, high; NaN overlaps with nothing
    for i in [*range(len(texts))] * 3:
        lows = points[i] + SPOTS[:, :2] - sizes[i] * (0.5 - 0.5 * np.sign(np.round(SPOTS[:, :2])))
        spots = np.hstack([lows, lows + sizes[i]])[:, None]
        others = np.vstack([markers, np.delete(boxes, i, axis=0)])
        sides = np.minimum(spots[..., 2:], others[:, 2:]) - np.maximum(spots[..., :2], others[:, :2])
        covered = np.nansum(sides.clip(0).prod(axis=2), axis=1)
        crossed = ((thin > spots[..., :2]) & (thin < spots[..., 2:])).all(axis=2).sum(axis=1)
        outside = (frame[:2] - spots[:, 0, :2]).clip(0).sum(axis=1) + (spots[:, 0, 2:] - frame[2:]).clip(0).sum(axis=1)
        gaps = np.hypot(*(points.clip(spots[..., :2], spots[..., 2:]) - points).transpose(2, 0, 1))  # to all points
        astray = gaps[:, i] > gaps.min(axis=1)  # nearer to another point
        cost = 20 * covered + 8 * crossed + 100 * outside + 80 * astray + 5 * SPOTS[:, 2]
        boxes[i] = spots[np.argmin(cost), 0]
    looks: dict[str, Any] = {"fontsize": LABEL_SIZE, "color": INK, "zorder": 6, "path_effects": halo()}
    line = {"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkA": 0, "shrinkB": 3, "relpos": (0.5, 0.5)}
    for text, at, point, box in zip(texts, zip(x, y, strict=True), points, boxes, strict=True):
        text.remove()
        gap = np.hypot(*(point.clip(box[:2], box[2:]) - point))
        looks["arrowprops"] = line if gap > FAR else None
        ax.annotate(text.get_text(), at, tuple(box[:2] - point), textcoords="offset points", **looks)


def error_crosses(
    ax: Axes, x: Sequence[float], y: Sequence[float], right: np.ndarray, up: np.ndarray
) -> list[tuple[float, float]]:
    """Draw error bars in both directions; return points along them, for labels to avoid."""
    ax.errorbar(x, y, up, right, fmt="none", ecolor=GREY, elinewidth=0.8, zorder=1)
    steps = np.linspace(-1, 1, 7)
    bars = zip(x, y, np.nan_to_num(right), np.nan_to_num(up), strict=True)
    return [point for px, py, dx, dy in bars for t in steps for point in ((px + t * dx, py), (px, py + t * dy))]
