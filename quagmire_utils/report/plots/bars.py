"""Recipes side by side as bars from zero: Figs. 6 (sources, repetition, learning rate) and 10 (mixtures)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from quagmire_utils.core import published as paper
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.records import Records
from quagmire_utils.report.plots.labels import _candidate_labels, halo
from quagmire_utils.report.plots.look import GREY, INK, _per_cent, new_figure, not_run
from quagmire_utils.report.plots.series import OUTCOMES, Panel, half_widths, panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STAGES = {  # column -> label, fill, hatch, side of the tick
    "pass1": ("after SFT", "#f0d9a8", "//", -1),
    "outcome": ("after RL", "#5b9bd5", "", 1),
}
WIDTH = 0.38  # of a bar, where recipes are 1 apart
SOURCES = {"main": "Llama-Nemotron", "acereason": "AceReason-1.1", "openr1": "OpenR1-Math"}  # what each stands for
MATH500 = ("math500", "lanes3")  # the benchmark of Fig. 6, and the one that stands for it: problems as RL trains on


def plot_recipes(
    shown: Panel,
    ax: Axes,
    *,
    outcome: str = "outcome",
    runs: pd.DataFrame | None = None,
    labels: Sequence[str] = (),
    profile: str = "",
) -> None:
    """Two bars for each candidate, Pass@1 after SFT and after RL, with 95 % intervals; the base first, then in order.

    runs: `design.run_outcomes`, a short dash for each RL run. labels: under the bars of the candidates. The grey line
    is what RL makes of the base.
    """
    half_widths(shown.candidates, outcome)
    ax.set_title(shown.title, loc="left")
    ax.set_ylabel("Pass@1 (%)")
    if not_run(ax, shown.candidates, profile):
        return
    rows = pd.concat([shown.base, shown.candidates], ignore_index=True)
    names = ["base\n(no SFT)"] * len(shown.base)
    names += list(labels) or _candidate_labels(shown.candidates, repeats=False)
    tops = np.zeros(len(rows))
    for column, key in (("pass1", "pass1"), (outcome, "outcome")):
        label, fill, hatch, side = STAGES[key]
        place = np.arange(len(rows)) + side * WIDTH / 2
        widths = half_widths(rows, column)
        style = {"color": fill, "hatch": hatch, "edgecolor": INK, "linewidth": 0.6}
        ax.bar(place, rows[column], WIDTH, label=label, zorder=2, **style)
        ax.errorbar(place, rows[column], yerr=widths, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2.5, zorder=4)
        ends = (rows[column] + np.nan_to_num(widths)).to_numpy()
        if runs is not None and key == "outcome":
            mine = runs[runs["family"].isin(rows["family"]) & runs["candidate"].isin(rows["candidate"])]
            x = mine["candidate"].map(dict(zip(rows["candidate"], place, strict=True)))
            y = mine[OUTCOMES[outcome]]
            ax.scatter(x, y, marker="_", s=90, color=INK, linewidths=0.9, zorder=3, label="an RL run")
            ends = np.fmax(ends, y.groupby(mine["candidate"]).max().reindex(rows["candidate"]).to_numpy())
        tops = np.fmax(tops, ends)
        for x, value, end in zip(place, rows[column], ends, strict=True):
            offset = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "va": "bottom", "zorder": 5}
            ax.annotate(f"{100 * value:.0f}", (x, end), fontsize=7.5, color=INK, path_effects=halo(), **offset)
    for value in shown.base[outcome]:
        ax.axhline(value, color=GREY, lw=1.3, zorder=1.5, label="base (no SFT) after RL")
    ax.set_xticks(range(len(rows)), names, fontsize=8.5)
    ax.set_xlim(-0.6, len(rows) - 0.4)
    ax.set_ylim(0, 1.1 * float(np.nanmax([*tops, 0.01])))
    ax.grid(False, axis="x")
    _per_cent(ax, "y")


def recipe_grid(
    panels: Sequence[Panel],
    *,
    outcome: str = "outcome",
    runs: pd.DataFrame | None = None,
    labels: Sequence[Sequence[str]] = (),
    profile: str = "",
) -> Figure:
    """`plot_recipes` for each panel on a common scale, side by side, with one legend below."""
    most = max([len(shown.candidates) + len(shown.base) for shown in panels if len(shown.candidates)] or [6])
    fig, axes = new_figure(len(panels), 1, max(6.4, 0.85 * most) if len(panels) == 1 else max(4.2, 0.78 * most), 4.4)
    shown_in = list(np.atleast_1d(axes))
    entries: dict[str, object] = {}
    for i, (shown, ax) in enumerate(zip(panels, shown_in, strict=True)):
        own = labels[i] if len(labels) else ()
        plot_recipes(shown, ax, outcome=outcome, runs=runs, labels=own, profile=profile)
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    drawn = [ax for ax, shown in zip(shown_in, panels, strict=True) if len(shown.candidates)]
    for ax in drawn:
        ax.set_ylim(0, max(other.get_ylim()[1] for other in drawn))
    if entries:
        order = sorted(entries, key=[label for label, *_ in STAGES.values()].__contains__, reverse=True)
        fig.legend([entries[label] for label in order], order, loc="outside upper left", ncols=4, frameon=False)
    return fig


# --- Fig. 6: repeated or new examples, of several sources ------------------------------------------------------------


def on_benchmark(records: Records, benchmark: str = "auto") -> Records:
    """The records with the answers to one benchmark alone, so that every score is that benchmark's.

    auto: MATH-500 as in Fig. 6, else the one that stands for it, else all of them; "all" keeps them all too. Raises
    ParameterError for a benchmark that the records do not have.
    """
    there = list(records.counts["benchmark"].unique())
    if benchmark == "auto":
        benchmark = next((name for name in MATH500 if name in there), "all")
    if benchmark == "all":
        return records
    if benchmark not in there:
        raise ParameterError(f"benchmark {benchmark!r} is not in these records, which have {', '.join(there)}")
    return dataclasses.replace(records, counts=records.counts[records.counts["benchmark"] == benchmark])


def source_panels(frame: pd.DataFrame, family: str) -> list[Panel]:
    """A panel for each source of SFT examples of a family: unique examples before repeated, low rates before high."""
    whole = panel(frame, family, "source")
    sources = [name for name in SOURCES if name in set(whole.candidates["source"])]
    sources += [name for name in whole.candidates["source"].unique() if name not in SOURCES]
    panels = []
    for source in sources or SOURCES:
        rows = whole.candidates[whole.candidates["source"] == source]
        title = f"source {source}" + (f" (for {SOURCES[source]})" if source in SOURCES else "")
        rows = rows.sort_values(["epochs", "learning_rate"]).reset_index(drop=True)
        panels.append(Panel(title, rows, whole.base))
    return panels


def recipe_labels(candidates: pd.DataFrame) -> list[str]:
    """Examples × epochs, and the learning rate below: what differs between the bars of Fig. 6."""
    names = _candidate_labels(candidates)
    return [f"{name}\nLR {rate:g}" for name, rate in zip(names, candidates["learning_rate"], strict=True)]


def repetition_effects(panels: Sequence[Panel], outcome: str = "outcome") -> pd.DataFrame:
    """What repeated examples, a higher learning rate, and both change, against unique examples at the lowest rate.

    One row per source and recipe: source, recipe, reference (labels as in the figure), then in points of Pass@1
    sft, gain (outcome - pass1) and outcome: recipe minus reference; and sft_half, gain_half, outcome_half: half of
    the 95 % interval (`half_widths`). The paper prints such differences with Fig. 6. Sources with one recipe have none.
    """
    rows = []
    for shown in panels:
        ordered = shown.candidates.sort_values(["epochs", "learning_rate"]).reset_index(drop=True)
        if len(ordered) < 2:
            continue
        names = [name.replace("\n", ", ") for name in recipe_labels(ordered)]
        before, after = half_widths(ordered, "pass1"), half_widths(ordered, outcome)
        change = ordered[["pass1", outcome]] - ordered[["pass1", outcome]].iloc[0]
        for i in range(1, len(ordered)):
            sft, rl = change["pass1"].iloc[i], change[outcome].iloc[i]
            halves = math.hypot(before[0], before[i]), math.hypot(after[0], after[i])
            rows.append(
                {
                    "source": ordered["source"].iloc[i],
                    "recipe": names[i],
                    "reference": names[0],
                    "sft": 100 * sft,
                    "gain": 100 * (rl - sft),
                    "outcome": 100 * rl,
                    "sft_half": 100 * halves[0],
                    "gain_half": 100 * math.hypot(*halves),
                    "outcome_half": 100 * halves[1],
                }
            )
    columns = ["source", "recipe", "reference", "sft", "gain", "outcome", "sft_half", "gain_half", "outcome_half"]
    return pd.DataFrame(rows, columns=columns)


def show_repetition_effects(effects: pd.DataFrame, profile: str) -> pd.DataFrame:
    """`repetition_effects` as text, under the numbers that the paper prints with Fig. 6 (App. A.1)."""
    printed = paper.claims().set_index("name")["value"].map(lambda value: f"{float(value):+.2f}")
    heads = ["Pass@1 after SFT", "gain during RL", "Pass@1 after RL"]
    lines = {
        ("paper", "repeated and/or higher LR − unique (left)"): [
            printed["fig06_repeated_sft_gain"],
            printed["fig06_repeated_rl_gain"],
            "",
        ],
        ("paper", "unique − repeated (middle, right)"): [
            printed["fig06_diverse_sft_gain"],
            "",
            printed["fig06_diverse_rl_gain"],
        ],
    }
    for row in effects.itertuples():
        cells = ((row.sft, row.sft_half), (row.gain, row.gain_half), (row.outcome, row.outcome_half))
        said = [f"{value:+.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}") for value, half in cells]
        lines[f"measured ({profile}), {row.source}", f"{row.recipe} − {row.reference}"] = said
    if effects.empty:
        lines[profile, "not run"] = ["", "", ""]
    index = pd.MultiIndex.from_tuples(lines, names=["points of Pass@1", ""])
    return pd.DataFrame(list(lines.values()), index=index, columns=heads)
