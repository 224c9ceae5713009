"""Figures: drawing on a given axis, and saving; numbers come from `records`, `tables`, `prediction`. Paper: Figs. 3, 5.

    frame = select_candidates(candidate_frame(records), "Llama3-8B-Instruct")
    fig, ax = new_figure()
    plot_sft_vs_rl(frame, linear_fit(frame["pass1"], frame["outcome"]), ax)
    stamp(fig, "profile smoke, measured")
    save_figure(fig, "results/smoke/figures/fig03_sft_vs_rl")     # .svg and .png

Series differ by marker, line style and lightness as well as by colour, so that they survive greyscale printing and
colour blindness. Error bars are 95 % intervals from the sampling of answers alone: candidates are measured on the same
problems, so the choice of problems moves them together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from quagmire_utils.store import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quagmire_utils.prediction import LinearFit

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*", "<", ">")
LINES = ("-", "--", "-.", ":")
INTERVAL = 1.96  # standard errors to each side: 95 %
LABEL_SIZE = 8.5
GREY, INK = "0.45", "0.15"
FORMATS = ("svg", "png")
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


def stamp(fig: Figure, text: str) -> None:
    """Write where the figure comes from (profile, measured or paper) in its lower left corner."""
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


# --- Figs. 3 and 5 ----------------------------------------------------------------------------------------------------


def plot_sft_vs_rl(
    candidates: pd.DataFrame, fit: LinearFit, ax: Axes, *, base: pd.DataFrame | None = None, outcome: str = "outcome"
) -> None:
    """Pass@1 after SFT against the outcome after RL, a marker for each candidate, and the fitted line (Fig. 3).

    candidates: from `records.select_candidates`; `base` (rows of the same frame) is drawn hollow and takes no part in
    the fit. Marker: number of unique examples; lightness: epochs; both are written beside it.
    """
    from matplotlib.lines import Line2D

    colours = _shades(sorted(candidates["epochs"].unique()))
    everyone = candidates if base is None else pd.concat([candidates, base])
    ends = np.array([candidates["pass1"].min(), candidates["pass1"].max()])
    ax.plot(ends, fit.intercept + fit.slope * ends, "-", color=GREY, lw=1.5, zorder=1)
    vertical = everyone["outcome_sampling_se"]
    if outcome == "outcome_last":
        vertical = everyone["outcome_last_std"] / everyone["n_runs"] ** 0.5
    sides = INTERVAL * everyone["pass1_sampling_se"], INTERVAL * vertical
    ax.errorbar(
        everyone["pass1"], everyone[outcome], xerr=sides[0], yerr=sides[1], fmt="none", ecolor=GREY, elinewidth=0.8
    )
    shapes, names = [], []
    for (examples, marker), rows in _series(candidates):
        shades = [colours[epochs] for epochs in rows["epochs"]]
        ax.scatter(
            rows["pass1"], rows[outcome], s=70, marker=marker, c=shades, edgecolors=INK, linewidths=0.8, zorder=3
        )
        shapes.append(Line2D([], [], ls="", marker=marker, ms=8, mfc="white", mec=INK, label=f"{examples:,} examples"))
    if base is not None and len(base):
        ax.scatter(base["pass1"], base[outcome], s=110, facecolors="none", edgecolors=INK, linewidths=1.8, zorder=3)
        label = "no SFT (not in the fit)"
        shapes.append(Line2D([], [], ls="", marker="o", ms=10, mfc="none", mec=INK, mew=1.8, label=label))
    fills = [
        Line2D(
            [],
            [],
            ls="",
            marker="s",
            ms=8,
            mfc=colour,
            mec="none",
            label=f"{epochs:g} epoch" + ("" if epochs == 1 else "s"),
        )
        for epochs, colour in colours.items()
    ]
    ax.set_xlabel("Pass@1 after SFT (%), mean of the benchmarks")
    ax.set_ylabel("Pass@1 after RL (%)")
    _per_cent(ax, "xy")
    ax.margins(0.1, 0.1)
    ax.set_title(f"Linear fit: R² = {fit.r2:.2f}, n = {fit.n} candidates", loc="left")
    ax.legend(handles=[*shapes, *fills], loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    x, y = everyone["pass1"].to_numpy(), everyone[outcome].to_numpy()
    names = _candidate_labels(everyone)
    line = np.linspace(*ends, 60)
    bars = _bars(x, y, sides[0].to_numpy(), sides[1].to_numpy())
    _place_labels(ax, x, y, names, [*bars, *zip(line, fit.intercept + fit.slope * line, strict=True)])


def caption_sft_vs_rl(
    candidates: pd.DataFrame, fit: LinearFit, profile: str, n_benchmarks: int, published_r2: float
) -> str:
    """What stands under Fig. 3, in Markdown."""
    return (
        f"**Figure 3 (profile {profile}, measured).** {_who(candidates)}. One marker per SFT candidate: shape for the "
        f"number of unique examples, shade for the epochs, label examples×epochs. Mean Pass@1 of {n_benchmarks} "
        "benchmarks; bars are 95 % intervals from the sampling of answers alone, since all candidates answer the same "
        f"problems. Line: R² = {fit.r2:.2f} over {fit.n} candidates; **the paper's: R² = {published_r2:.2f}**."
    )


def plot_scores_by_epochs(candidates: pd.DataFrame, ax: Axes, outcome: str = "outcome") -> None:
    """Pass@1 after SFT (hollow, dashed) and after RL (filled) by epochs, a line per number of examples (Fig. 5)."""
    colours = _series_colours(candidates)
    for (examples, marker), rows in _dodged(candidates):
        for column, error, style, face in (
            ("pass1", "pass1_sampling_se", "--", "white"),
            (outcome, "outcome_sampling_se", "-", colours[examples]),
        ):
            ax.errorbar(
                rows["epochs"],
                rows[column],
                yerr=INTERVAL * rows[error],
                color=colours[examples],
                ls=style,
                marker=marker,
                markerfacecolor=face,
                markeredgecolor=colours[examples],
                ms=7,
                lw=1.4,
                elinewidth=0.8,
                label=f"{examples:,}" if column == outcome else None,
            )
    ax.set_title("Score: after RL (filled) and after SFT (hollow)")
    ax.set_ylabel("Pass@1 (%)")
    _per_cent(ax, "y")
    ax.set_ylim(bottom=0)
    _epoch_axis(ax, candidates)


def plot_loss_by_epochs(candidates: pd.DataFrame, ax: Axes) -> None:
    """Generalization loss by epochs, a line per number of unique examples (Fig. 5)."""
    colours = _series_colours(candidates)
    for (examples, marker), rows in _dodged(candidates):
        ax.errorbar(
            rows["epochs"],
            rows["gen_loss"],
            yerr=INTERVAL * rows["gen_loss_se"],
            color=colours[examples],
            marker=marker,
            ms=7,
            lw=1.4,
            elinewidth=0.8,
            label=f"{examples:,}",
        )
    ax.set_title("Generalization loss")
    ax.set_ylabel("nats per token of held-out traces")
    ax.set_ylim(bottom=0)
    _epoch_axis(ax, candidates)
    ax.legend(title="unique SFT examples", title_fontsize=9, frameon=False)


def plot_loss_vs_gain(candidates: pd.DataFrame, ax: Axes, *, correlation: float, rank_correlation: float) -> None:
    """Generalization loss against what RL adds to Pass@1, with their correlations over the candidates (Fig. 5)."""
    colours = _series_colours(candidates)
    error = INTERVAL * np.hypot(candidates["pass1_sampling_se"], candidates["outcome_sampling_se"])
    ax.errorbar(
        candidates["gen_loss"], candidates["gain"], yerr=error, fmt="none", ecolor=GREY, elinewidth=0.8, zorder=1
    )
    for (examples, marker), rows in _series(candidates):
        ax.scatter(
            rows["gen_loss"], rows["gain"], s=60, marker=marker, color=colours[examples], edgecolors=INK, zorder=3
        )
    ax.axhline(0, color=GREY, lw=0.8)
    ax.set_title(f"r = {correlation:.2f}, rank correlation {rank_correlation:.2f}, n = {len(candidates)}")
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel("generalization loss (nats per token)")
    ax.set_ylabel("gain in Pass@1 during RL (points)")
    _per_cent(ax, "y")
    ax.margins(0.12, 0.12)
    x, y = candidates["gen_loss"].to_numpy(), candidates["gain"].to_numpy()
    _place_labels(ax, x, y, _candidate_labels(candidates), _bars(x, y, np.zeros(len(x)), error.to_numpy()))


def caption_loss(candidates: pd.DataFrame, profile: str, n_benchmarks: int) -> str:
    """What stands under Fig. 5, in Markdown."""
    return (
        f"**Figure 5 (profile {profile}, measured).** {_who(candidates)}; {len(candidates)} SFT candidates, a line per "
        "number of unique examples, moved sideways a little so that none hides another. Left: mean Pass@1 of "
        f"{n_benchmarks} benchmarks after SFT and after RL. Middle: loss on held-out traces. Right: that loss against "
        "what RL added, with Pearson's and Spearman's correlation (the paper calls it strong and prints no number). "
        "Bars: 95 % intervals; those of scores hold the sampling of answers alone."
    )


def _who(candidates: pd.DataFrame) -> str:
    return f"{', '.join(candidates['family'].unique())}, standing for {candidates['stands_for'].iloc[0]}"


def _series(candidates: pd.DataFrame) -> list[tuple[tuple[int, str], pd.DataFrame]]:
    """((unique examples, marker), rows in order of epochs) for each number of unique examples, ascending."""
    groups = candidates.sort_values("epochs").groupby("n_examples", sort=True)
    return [((int(m), MARKERS[i % len(MARKERS)]), rows) for i, (m, rows) in enumerate(groups)]


def _dodged(candidates: pd.DataFrame) -> list[tuple[tuple[int, str], pd.DataFrame]]:
    """`_series` with the epochs of each moved a little, so that equal values do not hide each other."""
    series = _series(candidates)
    shifts = 2.0 ** (0.07 * (np.arange(len(series)) - (len(series) - 1) / 2))
    return [(key, rows.assign(epochs=rows["epochs"] * f)) for (key, rows), f in zip(series, shifts, strict=True)]


def _series_colours(candidates: pd.DataFrame) -> dict[int, Any]:
    return _shades(sorted(candidates["n_examples"].astype(int).unique()))


def _candidate_labels(candidates: pd.DataFrame) -> list[str]:
    """Unique examples × epochs, or base."""
    return [
        "base" if examples == 0 else f"{examples}×{epochs:g}"
        for examples, epochs in zip(candidates["n_examples"], candidates["epochs"], strict=True)
    ]


def _bars(x: np.ndarray, y: np.ndarray, right: np.ndarray, up: np.ndarray) -> list[tuple[float, float]]:
    """Points along error bars, for labels to keep off."""
    steps = np.linspace(-1, 1, 13)
    points = []
    for px, py, dx, dy in zip(x, y, np.nan_to_num(right), np.nan_to_num(up), strict=True):
        points += [(px + t * dx, py) for t in steps] + [(px, py + t * dy) for t in steps]
    return points


def _shades(values: Sequence[Any]) -> dict[Any, Any]:
    """A colour of cividis for each value: dark for the first, light for the last, distinct in greyscale."""
    import matplotlib as mpl

    return dict(zip(values, mpl.colormaps["cividis"](np.linspace(0.0, 0.9, len(values))), strict=True))


def _per_cent(ax: Axes, which: str) -> None:
    from matplotlib.ticker import FuncFormatter

    for axis, name in ((ax.xaxis, "x"), (ax.yaxis, "y")):
        if name in which:
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))


def _epoch_axis(ax: Axes, candidates: pd.DataFrame) -> None:
    ticks = sorted(candidates["epochs"].unique())
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [f"{e:g}" for e in ticks])
    ax.minorticks_off()
    ax.set_xlabel("SFT epochs")


def _place_labels(
    ax: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str], avoid: Sequence[tuple[float, float]] = ()
) -> None:
    """Write each name near its point, where it covers no other name or point and as little as can be of `avoid`.

    Each name takes the best of many places around its point, given where the others are, in a few rounds. A name that
    stands off is tied to its point by a line.
    """
    from matplotlib import patheffects

    fig = ax.figure
    fig.draw_without_rendering()
    renderer = fig.canvas.get_renderer()
    scale = fig.dpi / 72  # pixels a point
    points = ax.transData.transform(np.column_stack([x, y])) / scale
    thin = ax.transData.transform(np.array(avoid)) / scale if len(avoid) else np.empty((0, 2))
    frame = ax.get_window_extent(renderer).extents / scale
    sizes = []
    for name in names:
        text = ax.text(0, 0, name, fontsize=LABEL_SIZE)
        extent = text.get_window_extent(renderer)
        sizes.append((extent.width / scale, extent.height / scale))
        text.remove()
    angles = np.radians([45, 0, 135, 315, 180, 225, 90, 270, 22, 68, 112, 158, 202, 248, 292, 338])
    spots = [(r * math.cos(t), r * math.sin(t), r) for r in (8, 13, 20, 28, 38, 50) for t in angles]
    marks = np.column_stack([points - 5, points + 5])
    boxes = np.full((len(names), 4), np.nan)  # NaN overlaps with nothing
    places = [(0.0, 0.0)] * len(names)
    for _ in range(3):
        for i, (point, (width, height)) in enumerate(zip(points, sizes, strict=True)):
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
    halo = [patheffects.withStroke(linewidth=2, foreground="white")]
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
            path_effects=halo,
            arrowprops=tie if math.hypot(dx, dy) > 15 else None,
        )


def _overlap(box: np.ndarray, others: np.ndarray) -> float:
    """Area that a box (left, low, right, high) shares with the others, in square points."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return float(np.nansum(np.where((sides > 0).all(axis=1), sides.prod(axis=1), 0)))


# --- run_sweep and evaluate_model -------------------------------------------------------------------------------------


def plot_rl_curve(curves: pd.DataFrame, ax: Axes) -> None:
    """Mean reward by step of one candidate's RL runs: a thin line each, and their mean."""
    for i, (_, rows) in enumerate(curves.groupby("rl_run")):
        ax.plot(rows["step"], rows["reward"], ls=LINES[i % len(LINES)], color=GREY, lw=0.9)
    mean = curves.groupby("step")["reward"].mean()
    ax.plot(mean.index, mean, color="#0b5394", lw=2)
    ax.text(0.03, 0.96, str(curves["candidate"].iloc[0]), transform=ax.transAxes, va="top", fontsize=9, color=INK)


def rl_curve_grid(curves: pd.DataFrame, columns: int = 4) -> Figure:
    """Small multiples of `plot_rl_curve`, one for each candidate (of each family), on common axes."""
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


def plot_verdicts(counts: pd.DataFrame, ax: Axes) -> None:
    """Share of each verdict by benchmark as stacked bars; a diamond marks the share of truncated answers."""
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
    ax.plot(
        shares["truncated"],
        position,
        ls="",
        marker="D",
        ms=7,
        mfc="white",
        mec="black",
        label="truncated",
        clip_on=False,
    )
    ax.set_yticks(position, shares.index)
    ax.set_xlim(0, 1)
    ax.set_xlabel("share of answers (%)")
    _per_cent(ax, "x")
    ax.grid(False, axis="y")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
