"""Figures show the numbers they are given, keep their labels apart, and are saved whole."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from example_grid import write_grid_records
from example_records import make_records, write_records
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from matplotlib.text import Text
from PIL import Image
from scipy import stats

from quagmire_utils.analysis import design
from quagmire_utils.analysis.fits import linear_fit
from quagmire_utils.analysis.records import base_models, candidate_frame, select_candidates
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.records import CHECKPOINT, load_records
from quagmire_utils.core.settings import load_profile
from quagmire_utils.evaluation.measured import pass_at_k_curves
from quagmire_utils.report import plots
from quagmire_utils.report.notebook import ROOT
from quagmire_utils.report.plots import compact_pictures
from quagmire_utils.report.plots.labels import _candidate_labels
from quagmire_utils.report.plots.look import GREY, UNFINISHED
from quagmire_utils.report.plots.series import OUTCOMES

LLAMA, MISTRAL, QWEN = "Llama3-8B-Instruct", "Mistral-NeMo-12B-Instruct", "Qwen3-4B-base"


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return load_records(write_records(tmp_path_factory.mktemp("records") / "example", make_records()))


@pytest.fixture(scope="module")
def frame(records):
    return candidate_frame(records)


@pytest.fixture(scope="module")
def candidates(frame):
    return select_candidates(frame, LLAMA)


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """The whole grid of the profile mini, few problems."""
    folder = tmp_path_factory.mktemp("grid") / "mini"
    return load_records(write_grid_records(folder, load_profile("mini"), runs=2, problems=3))


@pytest.fixture(scope="module")
def grid_frame(grid):
    return candidate_frame(grid)


def offsets(ax) -> np.ndarray:
    """Positions of the scattered markers."""
    return np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections if isinstance(c, PathCollection)])


def luminance(colour) -> float:
    return float(np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)))


def label_boxes(fig, ax) -> dict[str, np.ndarray]:
    fig.canvas.draw()
    renderer = fig.canvas.get_renderer()
    # of the text alone: an annotation's own extent holds its arrow too
    return {text.get_text(): Text.get_window_extent(text, renderer).extents for text in ax.texts}


def overlap(one, other) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def test_fig03_shows_every_candidate_and_the_base_apart(frame, candidates):
    fit = linear_fit(candidates["pass1"], candidates["outcome"])
    base = base_models(frame, LLAMA)
    _, ax = plots.new_figure()
    plots.plot_sft_vs_rl(candidates, fit, ax, base=base)
    points = {tuple(p) for p in np.round(offsets(ax), 12)}
    expected = pd.concat([candidates, base])[["pass1", "outcome"]].to_numpy()
    assert points == {tuple(p) for p in np.round(expected, 12)}
    hollow = [c for c in ax.collections if isinstance(c, PathCollection) and not len(c.get_facecolors())]
    assert [tuple(c.get_offsets()[0]) for c in hollow] == [tuple(base[["pass1", "outcome"]].to_numpy()[0])]
    line = ax.lines[0].get_xydata()
    assert line[:, 1] == pytest.approx(fit.intercept + fit.slope * line[:, 0])
    assert line[:, 0].min() == candidates["pass1"].min()  # the base lies outside of the fit
    assert f"R² = {fit.r2:.2f}, n = 8" in ax.get_title(loc="left")
    assert {text.get_text() for text in ax.texts} == {"base", *_candidate_labels(candidates)}
    caption = plots.caption_sft_vs_rl(candidates, fit, "example", 3)
    assert "the paper's: R² = 0.43" in caption
    assert "profile example, measured" in caption


@pytest.mark.parametrize("seed", range(4))
def test_labels_do_not_cover_each_other(seed):
    """Twenty candidates, half of them in a crowd as in a grid of near-equal SFT scores."""
    rng = np.random.default_rng(seed)
    near = rng.normal(0.3, 0.03, 10)
    x = np.concatenate([rng.uniform(0.1, 0.6, 10), near])
    frame = pd.DataFrame({"pass1": x, "outcome": 0.3 + 0.5 * x + 0.02 * rng.standard_normal(20)})
    frame["n_examples"], frame["epochs"] = np.repeat([250, 1000, 4000, 16000], 5), [1.0, 2.0, 4.0, 8.0, 16.0] * 4
    frame["pass1_sampling_se"] = frame["outcome_sampling_se"] = 0.004
    frame = frame.assign(family="one", selection="random", learning_rate=1e-4)
    fig, ax = plots.new_figure(width=7.5, height=4.6)
    plots.plot_sft_vs_rl(frame, linear_fit(frame["pass1"], frame["outcome"]), ax)
    boxes = label_boxes(fig, ax)
    assert len(boxes) == 20
    covered = [pair for pair in itertools.combinations(boxes, 2) if overlap(boxes[pair[0]], boxes[pair[1]])]
    assert not covered
    area = ax.get_window_extent().extents
    assert all(box[0] >= area[0] - 1 and box[2] <= fig.bbox.x1 and box[3] <= fig.bbox.y1 for box in boxes.values())


def test_fig05_panels(candidates):
    fig, axes = plots.new_figure(columns=3, width=4.6)
    plots.plot_scores_by_epochs(candidates, axes[0])
    plots.plot_loss_by_epochs(candidates, axes[1])
    plots.plot_loss_vs_gain(candidates, axes[2], correlation=-0.5, rank_correlation=-0.25)
    for ax, columns in ((axes[0], ("pass1", "outcome")), (axes[1], ("gen_loss",))):
        drawn = sorted(y for container in ax.containers for y in container.lines[0].get_ydata())
        assert drawn == pytest.approx(sorted(candidates[list(columns)].to_numpy().ravel()))
        assert ax.get_ylim()[0] == 0
    assert {tuple(p) for p in offsets(axes[2])} == set(
        candidates[["gen_loss", "gain"]].itertuples(index=False, name=None)
    )
    assert "r = -0.50, rank correlation -0.25, n = 8" in axes[2].get_title()
    assert len(fig.legends) == 1


def test_fig05_gain_is_of_the_chosen_outcome(candidates):
    _, ax = plots.new_figure()
    plots.plot_loss_vs_gain(
        candidates, ax, correlation=np.nan, rank_correlation=np.nan, outcome="outcome_last", profile="example"
    )
    gain = candidates["outcome_last"] - candidates["pass1"]
    assert {tuple(p) for p in offsets(ax)} == set(zip(candidates["gen_loss"], gain, strict=True))
    assert "n = 8" in ax.get_title()
    assert "r =" not in ax.get_title()


def test_series_differ_in_greyscale_and_by_marker(candidates, grid_frame):
    shades = [luminance(one.colour) for one in plots.series(candidates, "n_examples")]
    assert min(np.diff(shades)) > 0.08
    kinds = plots.series(select_candidates(grid_frame, LLAMA, "instance"), "selection")
    fills = {one.label: luminance(one.colour) for one in kinds}
    assert list(fills) == sorted(fills, key=list(plots.SELECTION_STYLE).index)
    assert min(np.diff(sorted(fills.values()))) > 0.1
    assert len({one.marker for one in kinds}) == len(fills) == 4
    markers = [one.marker for one in plots.series(candidates, "n_examples")]
    assert len(set(markers)) == len(markers) == 5
    verdicts = [luminance(colour) for colour, _ in plots.VERDICT_STYLE.values()]
    assert min(abs(a - b) for a, b in itertools.pairwise(verdicts)) > 0.1
    bars = [luminance(fill) for _, fill, _, _ in plots.bars.STAGES.values()]
    assert bars[0] - bars[1] > 0.2
    assert [hatch for _, _, hatch, _ in plots.bars.STAGES.values()] == ["//", ""]


def test_learning_rates_are_never_one_line(grid_frame):
    mine = select_candidates(grid_frame, LLAMA)
    everything = plots.series(mine, "n_examples")
    assert sum(len(one.rows) for one in everything) == len(mine) == 16
    for one in everything:
        assert one.rows["learning_rate"].nunique() == one.rows["n_examples"].nunique() == 1
        assert one.rate == (None if one.rows["learning_rate"].iloc[0] == 1e-4 else 5e-4)
    assert sum(one.rate is not None for one in everything) == 4


def test_intervals(grid_frame):
    mine = select_candidates(grid_frame, MISTRAL)
    assert plots.half_widths(mine, "outcome") == pytest.approx(1.96 * mine["outcome_sampling_se"])
    assert plots.half_widths(mine, "pass1") == pytest.approx(1.96 * mine["pass1_sampling_se"])
    # two runs each: the pooled variance is the mean of the variances, with one degree of freedom a candidate
    pooled = np.sqrt((mine["outcome_last_std"] ** 2).mean())
    expected = stats.t.ppf(0.975, len(mine)) * pooled / np.sqrt(2)
    assert plots.half_widths(mine, "outcome_last") == pytest.approx(np.full(len(mine), expected))
    assert np.isnan(plots.half_widths(mine.assign(n_runs=1), "outcome_last")).all()
    with pytest.raises(ParameterError, match="outcome must be one of outcome, outcome_last, not 'best'"):
        plots.half_widths(mine, "best")


# --- after SFT and after RL -------------------------------------------------------------------------------------------

STAGE_FIGURES = {  # figure -> family, scenario, selections, x, by
    "fig01": (MISTRAL, "instance", ("random", "longest", "shortest"), "sft_tokens", "selection"),
    "fig02": (QWEN, "dataset", ("random",), "n_examples", "epochs"),
    "fig04": (MISTRAL, "dataset", ("random",), "epochs", "n_examples"),
    "fig04 with rates": (LLAMA, "dataset", ("random",), "epochs", "n_examples"),
    "fig07": (LLAMA, "instance", ("random", "shortest"), "sft_tokens", "selection"),
    "fig08": (MISTRAL, "instance", ("shortest",), "n_examples", "selection"),
}


def markers_of(ax, size: float) -> pd.DataFrame:
    """x, y of the error bars' markers of one size, and whether they are hollow."""
    rows = []
    for container in ax.containers:
        line = container.lines[0]
        if line.get_markersize() == size:
            hollow = to_rgb(line.get_markerfacecolor()) == (1, 1, 1)
            rows += [(x, y, hollow) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]
    return pd.DataFrame(rows, columns=["x", "y", "hollow"])


def lengths_of_bars(ax, size: float) -> list[float]:
    return [
        (segment[1, 1] - segment[0, 1]) / 2
        for container in ax.containers
        if container.lines[0].get_markersize() == size
        for segment in container.lines[2][0].get_segments()
    ]


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("figure", STAGE_FIGURES)
def test_stages_show_the_numbers_of_the_frame(grid, grid_frame, figure, outcome):
    family, scenario, selections, x, by = STAGE_FIGURES[figure]
    shown = plots.panel(grid_frame, family, scenario, selections=selections)
    expected = select_candidates(grid_frame, family, scenario)
    expected = expected[expected["selection"].isin(selections)]
    runs = design.run_outcomes(grid)
    _, ax = plots.new_figure()
    plots.plot_stages(shown, ax, x, by, outcome=outcome, runs=runs, profile="mini")
    after, before = markers_of(ax, 9), markers_of(ax, 5)
    assert sorted(after["y"]) == pytest.approx(sorted(expected[outcome]))
    assert sorted(before["y"]) == pytest.approx(sorted(expected["pass1"]))
    assert before["hollow"].all()
    assert not after["hollow"].any()
    widths = plots.half_widths(expected, outcome)
    assert sorted(lengths_of_bars(ax, 9)) == pytest.approx(sorted(widths))
    assert sorted(lengths_of_bars(ax, 5)) == pytest.approx(sorted(1.96 * expected["pass1_sampling_se"]))
    # each stands where it belongs, but for what keeps markers apart
    true_x = expected.sort_values(outcome)[x].to_numpy()
    assert np.abs(np.log2(after.sort_values("y")["x"] / true_x)).max() < 0.2 * np.log2(true_x.max() / true_x.min())
    assert len(set(after["x"].round(9))) == len(after)
    # lines before and after RL of the base; a dash for each RL run
    base = base_models(grid_frame, family).iloc[0]
    levels = {line.get_linestyle(): line.get_ydata()[0] for line in ax.lines if line.get_color() == GREY}
    assert levels == pytest.approx({"--": base["pass1"], "-": base[outcome]})
    mine = runs[(runs["family"] == base["family"]) & runs["candidate"].isin(expected["candidate"])]
    assert len(mine) == 2 * len(expected)
    assert sorted(offsets(ax)[:, 1]) == pytest.approx(sorted(mine[OUTCOMES[outcome]]))


def test_candidates_stay_near_their_place(grid_frame):
    everything = plots.series(select_candidates(grid_frame, MISTRAL), "n_examples")
    places = np.concatenate(plots.stages._places(everything, "epochs"))
    true = np.concatenate([one.rows["epochs"] for one in everything])
    gaps = np.diff(np.sort(np.log2(places)))
    assert gaps.min() > 0.99 * plots.stages.APART * np.ptp(np.log2(true))
    for epochs in np.unique(true):  # those of equal epochs stand around them
        assert np.log2(places[true == epochs]).mean() == pytest.approx(np.log2(epochs))


def test_a_changed_record_moves_its_marker(grid, grid_frame):
    counts = grid.counts.copy()
    changed = (counts["family"] == "micro-mistral") & (counts["candidate"] == "shortest-256x1")
    counts.loc[changed & (counts["stage"] == "rl"), "correct"] = 0
    moved = candidate_frame(dataclasses.replace(grid, counts=counts))
    drawn = []
    for frame in (grid_frame, moved):
        _, ax = plots.new_figure()
        plots.plot_stages(
            plots.panel(frame, MISTRAL, "instance", selections=["shortest"]), ax, "n_examples", "selection"
        )
        drawn.append((markers_of(ax, 9), markers_of(ax, 5)))
    (first, before), (second, same) = drawn
    assert before.equals(same)
    different = first["y"] != second["y"]
    assert different.sum() == 1
    assert second.loc[different, "y"].tolist() == [0.0]
    assert first.loc[different, "x"].tolist() == [256.0]


def test_fig01_rings_the_best_of_each_stage(grid_frame):
    shown = plots.panel(grid_frame, MISTRAL, "instance", selections=["random", "shortest", "longest"])
    rows = shown.candidates.copy()
    once, more = rows.index[rows["epochs"] == 1], rows.index[rows["epochs"] > 1]
    rows.loc[once[0], "pass1"], rows.loc[once[2], "outcome"] = 0.9, 0.95
    rows.loc[more[0], ["pass1", "outcome"]] = 0.97, 0.99  # no claim compares it
    _, ax = plots.new_figure()
    plots.plot_before_after(dataclasses.replace(shown, candidates=rows), ax, correlation=0.25, profile="mini")
    points = {p for line in ax.lines if line.get_marker() != "None" for p in map(tuple, line.get_xydata())}
    assert points == set(rows[["pass1", "outcome"]].itertuples(index=False, name=None))
    circles = [c for c in ax.collections if isinstance(c, PathCollection)]
    rings = {c.get_linestyle()[0][1] is None: tuple(c.get_offsets()[0]) for c in circles}  # solid or not
    best = [tuple(rows.loc[one, ["pass1", "outcome"]]) for one in (once[0], once[2])]
    assert rings == {False: best[0], True: best[1]}
    assert ax.get_title(loc="left") == f"rank correlation 0.25, n = {len(rows)} candidates"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"families": []}, "families is empty: name some of Llama3-8B-Instruct"),
        ({"families": ["all"]}, "family 'all' is not known"),
        ({"selections": []}, "selections is empty: name some of none, random"),
        ({"n_examples": 7}, "n_examples: no candidate of micro-qwen has 7; there are 32, 128, 512, and 0 for all"),
        ({"epochs": -1.0}, "epochs: no candidate of micro-qwen has -1; there are 1, 4, and 0 for all"),
        ({"scenario": "foo"}, "scenario must be one of dataset, instance, source, not 'foo'"),
    ],
)
def test_panels_of_nothing_are_refused(grid_frame, wrong, said):
    with pytest.raises(ParameterError, match=said):
        plots.panels(grid_frame, **{"families": ["micro-qwen"], "scenario": "dataset", **wrong})


def test_an_unknown_axis_is_refused(grid_frame):
    shown = plots.panels(grid_frame, ["micro-qwen"], "dataset")
    with pytest.raises(ParameterError, match="x must be one of n_examples, epochs, sft_tokens, not 'foo'"):
        plots.stage_grid(shown, x="foo", by="epochs")


def test_panels_choose_candidates(grid_frame):
    shown = plots.panel(grid_frame, "micro-qwen", "dataset", epochs=4)
    assert set(shown.candidates["candidate"]) == {"random-32x4", "random-128x4", "random-512x4"}
    assert shown.title == "micro-qwen (for Qwen3-4B-base)"
    assert shown.base["candidate"].tolist() == ["base"]
    assert set(plots.panel(grid_frame, LLAMA, "dataset", n_examples=8).candidates["n_examples"]) == {8}
    with pytest.raises(ParameterError, match="family 'Llama' is not known; the records and the paper have micro-llama"):
        plots.panel(grid_frame, "Llama", "dataset")
    with pytest.raises(ParameterError, match="selections has 'short', which is none of none, random"):
        plots.panel(grid_frame, LLAMA, "instance", selections=["short"])
    assert plots.panel(grid_frame.query("family == 'micro-llama'"), QWEN, "dataset").candidates.empty


# --- recipes ----------------------------------------------------------------------------------------------------------


def heights(ax) -> list[tuple[float, float]]:
    """Before and after RL of each recipe, in order, from the bars."""
    assert all(bar.get_y() == 0 for bar in ax.patches)
    half = len(ax.patches) // 2
    return [(a.get_height(), b.get_height()) for a, b in zip(ax.patches[:half], ax.patches[half:], strict=True)]


def test_fig10_bars_are_the_scores(grid, grid_frame):
    shown = plots.panel(grid_frame, QWEN, "instance", selections=["shortest", "longest", "shortest+longest"])
    fig = plots.recipe_grid([shown], runs=design.run_outcomes(grid), profile="mini")
    (ax,) = fig.axes
    rows = pd.concat([shown.base, shown.candidates])
    assert len(rows) == 9
    np.testing.assert_allclose(heights(ax), rows[["pass1", "outcome"]].to_numpy())
    assert ax.get_ylim()[0] == 0
    ticks = [tick.get_text() for tick in ax.get_xticklabels()]
    assert ticks[:3] == ["base\n(no SFT)", "s64", "s256"]
    assert ticks[-1] == "s+l 480"
    level = [line.get_ydata()[0] for line in ax.lines if line.get_label().startswith("base")]
    assert level == [shown.base["outcome"].iloc[0]]
    assert len(offsets(ax)) == 18


def test_fig06_is_of_one_benchmark_and_three_sources(grid):
    own = plots.on_benchmark(grid)
    assert own.counts["benchmark"].unique().tolist() == ["lanes3"]
    frame = candidate_frame(own)
    panels = plots.source_panels(frame, LLAMA)
    labels = [plots.recipe_labels(shown.candidates) for shown in panels]
    assert labels[0] == ["512×1\nLR 0.0001", "512×1\nLR 0.0005", "128×4\nLR 0.0001", "128×4\nLR 0.0005"]
    fig = plots.recipe_grid(panels, labels=labels, profile="mini")
    assert [ax.get_title(loc="left") for ax in fig.axes] == [
        "source main (for Llama-Nemotron)",
        "source acereason (for AceReason-1.1)",
        "source openr1 (for OpenR1-Math)",
    ]
    names = ["base", "random-512x1-acereason", "random-512x1-lr0.0005-acereason", "random-128x4-acereason"]
    names += ["random-128x4-lr0.0005-acereason"]
    counts = grid.counts[(grid.counts["family"] == "micro-llama") & (grid.counts["benchmark"] == "lanes3")]
    before = counts[counts["stage"] != "rl"].groupby("candidate")[["correct", "n"]].sum()
    after = counts[counts["stage"] == "rl"].groupby(["candidate", "rl_run", "checkpoint"])[["correct", "n"]].sum()
    best = (after["correct"] / after["n"]).groupby("candidate").max()
    expected = [(before.loc[name, "correct"] / before.loc[name, "n"], best[name]) for name in names]
    np.testing.assert_allclose(heights(fig.axes[1]), expected)
    assert len({ax.get_ylim() for ax in fig.axes}) == 1

    effects = plots.repetition_effects(panels).set_index(["source", "recipe"])
    assert len(effects) == 9
    row = effects.loc[("acereason", "128×4, LR 0.0001")]
    assert row["reference"] == "512×1, LR 0.0001"
    sft, rl = (100 * (expected[3][i] - expected[1][i]) for i in (0, 1))
    assert row[["sft", "outcome", "gain"]].tolist() == pytest.approx([sft, rl, rl - sft])
    assert row["gain_half"] ** 2 == pytest.approx(row["sft_half"] ** 2 + row["outcome_half"] ** 2)
    text = plots.show_repetition_effects(effects.reset_index(), "mini")
    assert text.iloc[0, :2].tolist() == ["+8.75", "-1.43"]
    assert text.iloc[1, [0, 2]].tolist() == ["-5.00", "+5.94"]
    assert text.loc["measured (mini), acereason"].iloc[1, 2].startswith(f"{rl:+.1f} ± ")

    assert plots.on_benchmark(grid, "all") is grid
    with pytest.raises(ParameterError, match="benchmark 'math500' is not in these records, which have sums2"):
        plots.on_benchmark(grid, "math500")


def test_what_was_not_run_says_so(tmp_path, grid, grid_frame):
    lonely = grid_frame[grid_frame["family"] == "micro-llama"]
    shown = plots.panel(lonely, MISTRAL, "instance", selections=["shortest"])
    assert shown.title == MISTRAL
    runs = design.run_outcomes(grid)
    panels = plots.source_panels(lonely[lonely["scenario"] == "dataset"], LLAMA)
    figures = {
        "fig01": plots.selection_figure(shown, runs=runs, profile="tiny"),
        "fig02": plots.stage_grid([shown, shown], "n_examples", "epochs", runs=runs, profile="tiny"),
        "fig06": plots.recipe_grid(panels, labels=[[], [], []], runs=runs, profile="tiny"),
        "fig08": plots.stage_grid([shown], "n_examples", "selection", runs=runs, profile="tiny", names=True),
        "fig10": plots.recipe_grid([shown], profile="tiny"),
    }
    fig, axes = plots.new_figure(4)
    plots.plot_sft_vs_rl(shown.candidates, None, axes[0], profile="tiny")
    plots.plot_scores_by_epochs(shown.candidates, axes[1], profile="tiny")
    plots.plot_loss_by_epochs(shown.candidates, axes[2], profile="tiny")
    plots.plot_loss_vs_gain(shown.candidates, axes[3], correlation=np.nan, rank_correlation=np.nan, profile="tiny")
    figures["fig03, fig05"] = fig
    for name, figure in figures.items():
        for ax in figure.axes:
            assert [text.get_text() for text in ax.texts] == ["not run at profile tiny"], name
            assert not ax.containers
            assert not ax.patches
        plots.stamp(figure, "profile tiny · measured")
        assert figure._supxlabel.get_text() == "profile tiny · not run"
    plots.save_figure(figures["fig01"], tmp_path / "fig01")
    for number in (1, 2, 4, 6, 7, 8, 9, 10):
        text = plots.caption(number, [shown], "tiny", benchmarks=["lanes3"])
        assert text.startswith(f"**Figure {number} (profile tiny, not run).** No candidate was run.")
        assert "{" not in text
    assert "(profile tiny, not run)" in plots.caption_loss(shown.candidates, "tiny", 7)
    assert "the paper's: R² = 0.43" in plots.caption_sft_vs_rl(shown.candidates, None, "tiny", 7)
    assert plots.repetition_effects(panels).empty
    assert plots.show_repetition_effects(plots.repetition_effects(panels), "tiny").loc[("tiny", "not run")].eq("").all()


def test_one_candidate_is_too_few_for_a_line(candidates):
    fig, ax = plots.new_figure()
    plots.plot_sft_vs_rl(candidates.head(1), None, ax, profile="tiny")
    assert [text.get_text() for text in ax.texts] == ["too few candidates at profile tiny: 1"]
    plots.stamp(fig, "profile tiny · measured")
    assert fig._supxlabel.get_text() == "profile tiny · measured"


def test_a_panel_that_ran_beside_one_that_did_not_is_measured(grid_frame):
    lonely = grid_frame[grid_frame["family"] == "micro-qwen"]
    panels = [plots.panel(lonely, name, "dataset") for name in (MISTRAL, QWEN)]
    fig = plots.stage_grid(panels, "n_examples", "epochs", profile="tiny")
    plots.stamp(fig, "profile tiny · measured")
    assert fig._supxlabel.get_text() == "profile tiny · measured"
    assert [len(ax.texts) for ax in fig.axes] == [1, 0]
    text = plots.caption(2, panels, "tiny", benchmarks=["a", "b", "c"])
    assert text.startswith("**Figure 2 (profile tiny, measured).** micro-qwen, standing for Qwen3-4B-base, 5 SFT")
    assert "Mean Pass@1 of 3 benchmarks" in text
    assert "after RL: the best checkpoint of all RL runs" in text
    last = plots.caption(2, panels, "tiny", benchmarks=["a"], outcome="outcome_last")
    assert "Pass@1 on a; after RL: mean of the runs' last checkpoints" in last


def test_labels_and_legends_stay_inside(grid, grid_frame):
    """Names of the candidates cover no other name, and nothing is cut off at the edge."""
    shown = plots.panel(grid_frame, LLAMA, "instance", selections=["random", "shortest"])
    fig = plots.stage_grid(
        [shown], "sft_tokens", "selection", runs=design.run_outcomes(grid), profile="mini", names=True
    )
    plots.stamp(fig, "profile mini · measured · commit 01234567 with uncommitted changes")
    boxes = label_boxes(fig, fig.axes[0])
    assert set(boxes) == {"128", "512", "512×4", "2048", "s64×4", "s256", "s256×4", "s1024", "s1024×4"}
    assert not [pair for pair in itertools.combinations(boxes, 2) if overlap(boxes[pair[0]], boxes[pair[1]])]
    tight = fig.get_tightbbox(fig.canvas.get_renderer()).padded(-0.02)
    assert tight.x0 >= -0.01
    assert tight.y0 >= -0.01
    assert tight.x1 <= fig.get_figwidth() + 0.01
    assert tight.y1 <= fig.get_figheight() + 0.01
    legend = fig.legends[0].get_window_extent().extents
    assert not overlap(legend, fig._supxlabel.get_window_extent().extents)
    assert not overlap(legend, fig.axes[0].get_window_extent().extents)


def test_pass_at_k_lines(records):
    counts = records.counts[records.counts["stage"] == "base"].drop(columns=CHECKPOINT)
    curves = pass_at_k_curves(counts)
    _, ax = plots.new_figure(width=7.5)
    plots.plot_pass_at_k(curves, ax)
    full = {line.get_label(): line for line in ax.lines if len(line.get_xdata()) == 64}
    assert set(full) == set(curves["benchmark"])
    for name, line in full.items():
        rows = curves[curves["benchmark"] == name]
        assert line.get_ydata() == pytest.approx(rows["pass_at_k"].to_numpy())
    assert ax.get_xscale() == "log"
    assert ax.get_ylim()[0] == 0


def test_pass_at_k_panels_with_their_bands_and_votes(records):
    counts = records.counts[records.counts["stage"] == "base"].drop(columns=CHECKPOINT)
    curves = pass_at_k_curves(counts)
    votes = pd.DataFrame({"benchmark": "easy", "k": [1, 8, 64], "maj_at_k": [0.2, 0.3, 0.4]})
    shown = [ax for ax in plots.pass_at_k_grid(curves, votes).axes if ax.get_visible()]
    names = curves["benchmark"].unique().tolist()
    assert [ax.get_title(loc="left").split(" (")[0] for ax in shown] == names
    assert len({ax.get_ylim() for ax in shown}) == 1
    for ax, name in zip(shown, names, strict=True):
        rows = curves[curves["benchmark"] == name]
        lines = {line.get_label(): line for line in ax.lines}
        assert lines["Pass@k"].get_ydata() == pytest.approx(rows["pass_at_k"].to_numpy())
        corners = ax.collections[0].get_paths()[0].vertices
        assert (corners[:, 1].min(), corners[:, 1].max()) == pytest.approx((rows["low"].min(), rows["high"].max()))
        assert ax.get_xscale() == "log"
        assert ("maj@k" in lines) == (name == "easy")
    alone = curves[curves["benchmark"].isin(["easy", "macro average"])]
    assert len(plots.pass_at_k_grid(alone).axes) == 1


def test_length_histogram_counts_every_answer():
    verdicts = ["correct"] * 30 + ["wrong"] * 15 + ["timeout"] * 5
    samples = pd.DataFrame({"tokens": [*range(1, 46), 64, 64, 64, 64, 64], "verdict": verdicts})
    _, ax = plots.new_figure()
    plots.plot_lengths(samples, 64, ax)
    tops = {}
    for bar in ax.patches:
        tops[bar.get_x()] = max(tops.get(bar.get_x(), 0), bar.get_y() + bar.get_height())
    assert sum(tops.values()) == 50
    assert tops[max(tops)] == 5  # those at the limit are in the last bin
    plots.plot_lengths(samples.assign(verdict="wrong"), 64, plots.new_figure()[1])  # a single kind


def test_verdict_bars_add_up(records):
    counts = records.counts[records.counts["stage"] == "base"].drop(columns=CHECKPOINT)
    _, ax = plots.new_figure()
    plots.plot_verdicts(counts, ax)
    ends = {}
    for bar in ax.patches:
        row = round(bar.get_y() + bar.get_height() / 2)
        ends[row] = ends.get(row, 0) + bar.get_width()
    assert ends == pytest.approx({0: 1.0, 1: 1.0, 2: 1.0})
    truncated = counts.groupby("benchmark", sort=False)[["truncated", "n"]].sum()
    assert ax.lines[0].get_xdata() == pytest.approx((truncated["truncated"] / truncated["n"]).to_numpy())


@pytest.mark.parametrize("benchmark", [None, "easy"])
def test_no_diamond_covers_a_name_of_the_verdict_plot(records, benchmark):
    """None truncated: no diamond to lie on the names; one benchmark with a few: beside them."""
    counts = records.counts[records.counts["stage"] == "base"].drop(columns=CHECKPOINT).assign(truncated=0)
    counts.loc[counts["benchmark"] == benchmark, "truncated"] = 1
    fig, ax = plots.new_figure(width=5.4, height=2.6)
    plots.plot_verdicts(counts, ax)
    fig.canvas.draw()
    diamonds = [(x, line.get_markersize()) for line in ax.lines for x in line.get_xdata()]
    assert len(diamonds) == (benchmark is not None)
    assert ("truncated" in ax.get_legend_handles_labels()[1]) == bool(diamonds)
    names = max(label.get_window_extent().x1 for label in ax.get_yticklabels())
    for x, size in diamonds:
        half = size / 2 * 2**0.5 * fig.dpi / 72  # of a square on its corner
        assert ax.transData.transform((x, 0))[0] - half > ax.bbox.x0 > names


def test_one_rl_panel_per_candidate(records):
    fig = plots.rl_curve_grid(records.rl_curves)
    shown = [ax for ax in fig.axes if ax.get_visible()]
    assert len(shown) == 17
    assert not any(ax.texts for ax in shown)  # names stand above the curves
    curves = records.rl_curves[records.rl_curves["candidate"] == shown[3].get_title(loc="left")]
    assert len(shown[3].lines) == 3  # two runs and their mean
    mean = curves.groupby("step")["reward"].mean()
    assert shown[3].lines[-1].get_ydata() == pytest.approx(mean.to_numpy())
    assert len({ax.get_ylim() for ax in shown}) == 1


def test_saved_whole_stamped_and_the_same_every_time(tmp_path, candidates):
    fit = linear_fit(candidates["pass1"], candidates["outcome"])
    copies = []
    for name in ("one", "two"):
        fig, ax = plots.new_figure()
        plots.plot_sft_vs_rl(candidates, fit, ax)
        plots.stamp(fig, "profile example · measured")
        copies.append(plots.save_figure(fig, tmp_path / name / "fig03.v1"))
    assert [path.name for path in copies[0]] == ["fig03.v1.svg", "fig03.v1.png"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["fig03.v1.png", "fig03.v1.svg"]
    for first, second in zip(*copies, strict=True):
        assert first.read_bytes() == second.read_bytes()
    svg = copies[0][0].read_text()
    ET.fromstring(svg)
    assert "measured" in svg  # matplotlib keeps the text of a path as a comment
    assert imread(copies[0][1]).shape[:2] == (880, 1200)


def test_failed_save_leaves_the_old_figure(tmp_path, monkeypatch, candidates):
    fig, ax = plots.new_figure()
    ax.plot([0, 1])
    svg, _ = plots.save_figure(fig, tmp_path / "figure")
    before = svg.read_bytes()

    def broken(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(fig, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        plots.save_figure(fig, tmp_path / "figure")
    assert svg.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_pictures_of_executed_notebooks_are_compact_and_spell_no_mark():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 8, (300, 300), dtype=np.uint8) * 32  # hardly compressible: much base64
    buffer = io.BytesIO()
    Image.fromarray(np.stack([noise] * 3, axis=-1)).save(buffer, "png", compress_level=0)
    before = base64.b64encode(buffer.getvalue()).decode()
    output = {"output_type": "display_data", "data": {"image/png": before}, "metadata": {"image/png": {"width": 150}}}
    notebook = {"cells": [{"cell_type": "markdown"}, {"cell_type": "code", "outputs": [output]}]}
    compact_pictures(notebook)
    after = output["data"]["image/png"]
    assert len(after) < len(before) / 3
    assert not UNFINISHED.search(after)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(after))).convert("L")), noise)
    assert output["metadata"] == {"image/png": {"width": 150}}


def test_committed_notebooks_spell_no_mark():
    copies = sorted((ROOT / "results").glob("*/notebooks/*.ipynb"))
    assert copies
    assert [path.name for path in copies if UNFINISHED.search(path.read_text())] == []
