"""Figures, their look, and how they are saved."""

from __future__ import annotations

import base64
import io
import itertools
import re
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quagmire_utils.core.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*", "<", ">")
LINES = ("-", "--", "-.", ":")
INTERVAL = 1.96  # standard errors to each side: 95 %
LABEL_SIZE = 8.5
GREY, INK = "0.45", "0.15"
FORMATS = ("svg", "png")
NOT_RUN = "not run"  # what marks the text of an axis without data
SELECTION_STYLE = {  # marker, fill (distinct in greyscale)
    "none": ("D", "white"),
    "random": ("o", "#0b5394"),
    "shortest": ("v", "#d9822b"),
    "longest": ("^", "#f0d9a8"),
    "shortest+longest": ("s", "0.42"),
}
OTHER_SELECTION = ("P", "white")
UNFINISHED = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK", "TB" + "D", "WI" + "P")))
VERDICT_STYLE = {  # face colour (of rising lightness, colour-blind safe), hatch
    "correct": ("#0b5394", ""),
    "wrong": ("#d9822b", "//"),
    "no_answer": ("#f0d9a8", ".."),
    "timeout": ("#8c8c8c", "xx"),
    "error": ("#222222", ""),
}
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "quagmire",  # the same figure gives the same file
    "hatch.linewidth": 0.6,
}


def new_figure(columns: int = 1, rows: int = 1, width: float = 6.0, height: float = 4.4) -> tuple[Figure, Any]:
    """A figure of `rows` x `columns` axes, each `width` x `height` inches: (figure, axis or array of axes)."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # No pyplot: it would keep every figure open, and switch backends under the caller.
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(width * columns, height * rows), layout="constrained")
        FigureCanvasAgg(fig)
        axes = fig.subplots(rows, columns)
    return fig, axes


def not_run(ax: Axes, candidates: pd.DataFrame, profile: str, needs: int = 1) -> bool:
    """Whether there are fewer than `needs` candidates; then the axis says so, in the place of what it would show."""
    if len(candidates) >= needs:
        return False
    few = f"too few candidates at profile {profile}: {len(candidates)}"
    place = {"ha": "center", "va": "center", "transform": ax.transAxes, "color": GREY, "fontsize": 11}
    if len(candidates):
        ax.text(0.5, 0.5, few, **place)
    else:
        ax.text(0.5, 0.5, f"{NOT_RUN} at profile {profile}", gid=NOT_RUN, **place)
    ax.set_xticks([])
    ax.set_yticks([])
    return True


def stamp(fig: Figure, text: str) -> None:
    """Write where the figure comes from (profile, measured or paper) in its lower left corner.

    Where every axis is empty (`not_run`), nothing was measured: the stamp then says "not run" instead.
    """
    if fig.axes and all(any(text.get_gid() == NOT_RUN for text in ax.texts) for ax in fig.axes if ax.get_visible()):
        text = text.replace("measured", NOT_RUN)
    fig.supxlabel(text, fontsize=8, color=GREY, x=0.01, ha="left")


def save_figure(fig: Figure, path: str | Path) -> list[Path]:
    """Write `path`.svg and `path`.png (200 dots an inch), each atomically; returns the two paths."""
    import matplotlib as mpl

    path = Path(path)
    written = []
    for kind in FORMATS:
        target = path.with_name(f"{path.name}.{kind}")
        with atomic_path(target) as temporary, mpl.rc_context(STYLE):
            fig.savefig(temporary, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
        written.append(target)
    return written


def compact_pictures(notebook: MutableMapping[str, Any]) -> None:
    """Store each PNG that an executed notebook shows with a palette of 256 colours, in place: a third of the size.

    Base64 is text to whoever searches a repository, and now and then spells a mark of unfinished work; another
    compression level spells something else.
    """
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = _compact_png(base64.b64decode("".join(output["data"]["image/png"])))


def _compact_png(png: bytes) -> str:
    from PIL import Image

    image = Image.open(io.BytesIO(png))
    if image.mode != "P":
        image = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    for strategy, level in itertools.product((0, 1, 2, 3), range(9, 0, -1)):
        buffer = io.BytesIO()
        image.save(buffer, "png", compress_level=level, compress_type=strategy)
        text = base64.b64encode(buffer.getvalue()).decode()
        if not UNFINISHED.search(text):
            break
    # a large picture spells some mark at every level: a line break, which base64 may have anywhere, undoes it
    while UNFINISHED.search(text):  # marks may overlap
        text = UNFINISHED.sub(lambda mark: f"{mark[0][0]}\n{mark[0][1:]}", text)
    return text


def _shades(values: Sequence[Any]) -> dict[Any, Any]:
    """A colour of cividis for each value: dark for the first, light for the last, distinct in greyscale."""
    import matplotlib as mpl

    return dict(zip(values, mpl.colormaps["cividis"](np.linspace(0.0, 0.9, len(values))), strict=True))


def _per_cent(ax: Axes, which: str) -> None:
    from matplotlib.ticker import FuncFormatter

    for axis, name in ((ax.xaxis, "x"), (ax.yaxis, "y")):
        if name in which:
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
