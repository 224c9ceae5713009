"""Candidates before and after RL: Figs. 3 and 5 of the paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from quagmire_utils.plots.figure import GREY, INK, INTERVAL, LABEL_SIZE, MARKERS, _per_cent, _shades

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from quagmire_utils.prediction import LinearFit


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
