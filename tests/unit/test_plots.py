"""Figures show the numbers they are given, keep their labels apart, and are saved whole."""

import dataclasses
import itertools
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from matplotlib.text import Text
from notebook_cells import run_cells
from scipy import stats

from quagmire_utils.analysis import design
from quagmire_utils.analysis.candidates import base_models, candidate_frame
from quagmire_utils.analysis.fits import linear_fit
from quagmire_utils.core.records import CHECKPOINT
from quagmire_utils.evaluation.measured import forecast_table
from quagmire_utils.evaluation.pass_at_k import bootstrap_intervals
from quagmire_utils.report import plots
from quagmire_utils.report.plots import curves, look, stages
from quagmire_utils.report.plots.series import OUTCOMES

LLAMA, MISTRAL, QWEN = "Llama3-8B-Instruct", "Mistral-NeMo-12B-Instruct", "Qwen3-4B-base"


@pytest.fixture(scope="module")
def llama(records):
    frame = candidate_frame(records)
    return plots.Panel(LLAMA, plots.choose_candidates(frame, LLAMA, "dataset"), base_models(frame, LLAMA))


@pytest.fixture(scope="module")
def grid(first_world):
    return dataclasses.replace(first_world, counts=first_world.counts[first_world.counts["rl_run"] < 2])


@pytest.fixture(scope="module")
def grid_frame(grid):
    return candidate_frame(grid)


@pytest.fixture(scope="module")
def make_panel(grid, grid_frame):
    runs = design.run_outcomes(grid)

    def panel(family, scenario="dataset", outcome="outcome", frame=grid_frame, **chosen):
        candidates = plots.choose_candidates(frame, family, scenario, **chosen)
        return plots.Panel(family, candidates, base_models(frame, family), outcome, runs, "mini")

    return panel


def offsets(ax) -> np.ndarray:
    return np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections if isinstance(c, PathCollection)])


def label_boxes(fig, ax) -> dict[str, np.ndarray]:
    fig.draw_without_rendering()
    # of the text alone: an annotation's own extent holds its arrow too
    return {text.get_text(): Text.get_window_extent(text).extents for text in ax.texts}


def overlap(one, other) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def overlapping(boxes) -> list:
    return [pair for pair in itertools.combinations(boxes, 2) if overlap(boxes[pair[0]], boxes[pair[1]])]


def test_fig03_shows_every_candidate_and_the_base_apart(llama):
    candidates, base = llama.candidates, llama.base
    fit = linear_fit(candidates["pass1"], candidates["outcome"])
    _, ax = plots.new_figure()
    plots.plot_sft_vs_rl(llama, fit, ax)
    expected = pd.concat([candidates, base])[["pass1", "outcome"]].to_numpy()
    assert {tuple(p) for p in np.round(offsets(ax), 12)} == {tuple(p) for p in np.round(expected, 12)}
    hollow = [c for c in ax.collections if isinstance(c, PathCollection) and not len(c.get_facecolors())]
    assert [tuple(c.get_offsets()[0]) for c in hollow] == [tuple(base[["pass1", "outcome"]].to_numpy()[0])]
    line = ax.lines[0].get_xydata()
    assert line[:, 1] == pytest.approx(fit.intercept + fit.slope * line[:, 0])
    assert line[:, 0].min() == candidates["pass1"].min()  # the base is outside of the fit
    assert f"R² = {fit.r2:.2f}, n = 8" in ax.get_title(loc="left")
    assert {text.get_text() for text in ax.texts} == {"base", *look.candidate_labels(candidates)}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_fig05_panels(llama, outcome):
    panel = dataclasses.replace(llama, outcome=outcome)
    candidates = panel.candidates
    fig, axes = plots.new_figure(columns=3, width=4.6)
    plots.plot_scores_by_epochs(panel, axes[0])
    plots.plot_loss_by_epochs(panel, axes[1])
    plots.plot_loss_vs_gain(panel, axes[2], -0.5, -0.25)
    for ax, columns in ((axes[0], ["pass1", outcome]), (axes[1], ["gen_loss"])):
        drawn = sorted(y for container in ax.containers for y in container.lines[0].get_ydata())
        assert drawn == pytest.approx(sorted(candidates[columns].to_numpy().ravel()))
        assert ax.get_ylim()[0] == 0
    gain = candidates[outcome] - candidates["pass1"]
    assert {tuple(p) for p in offsets(axes[2])} == set(zip(candidates["gen_loss"], gain, strict=True))
    assert axes[2].get_title(loc="left") == "r = -0.50, rank correlation -0.25, n = 8"
    assert len(fig.legends) == 1


def test_intervals(make_panel):
    mine = make_panel(MISTRAL).candidates
    assert plots.half_widths(mine, "outcome") == pytest.approx(1.96 * mine["outcome_sampling_se"])
    assert plots.half_widths(mine, "pass1") == pytest.approx(1.96 * mine["pass1_sampling_se"])
    # two runs each: the pooled variance is the mean of the variances, with one degree of freedom a candidate
    pooled = np.sqrt((mine["outcome_last_std"] ** 2).mean())
    expected = stats.t.ppf(0.975, len(mine)) * pooled / np.sqrt(2)
    assert plots.half_widths(mine, "outcome_last") == pytest.approx(np.full(len(mine), expected))
    assert np.isnan(plots.half_widths(mine.assign(n_runs=1), "outcome_last")).all()


def markers_of(ax, size: float) -> pd.DataFrame:
    """x, y of the error bars' markers of one size, half of each bar, and whether the markers are hollow."""
    rows = []
    for container in ax.containers:
        line = container.lines[0]
        if line.get_markersize() == size:
            hollow = to_rgb(line.get_markerfacecolor()) == (1, 1, 1)
            halves = [(segment[1, 1] - segment[0, 1]) / 2 for segment in container.lines[2][0].get_segments()]
            rows += [(*values, hollow) for values in zip(line.get_xdata(), line.get_ydata(), halves, strict=True)]
    return pd.DataFrame(rows, columns=["x", "y", "half", "hollow"])


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize(
    ("family", "scenario", "selections", "x", "by"),
    [
        pytest.param(MISTRAL, "instance", ("random", "longest", "shortest"), "sft_tokens", "selection", id="fig01"),
        pytest.param(QWEN, "dataset", ("random",), "n_examples", "epochs", id="fig02"),
        pytest.param(LLAMA, "dataset", ("random",), "epochs", "n_examples", id="fig04 with rates"),
        pytest.param(MISTRAL, "instance", ("shortest",), "n_examples", "selection", id="fig08"),
    ],
)
def test_stages_show_the_numbers_of_the_frame(make_panel, family, scenario, selections, x, by, outcome):
    panel = make_panel(family, scenario, outcome, selections=selections)
    expected = panel.candidates
    assert set(expected["selection"]) == set(selections)
    _, ax = plots.new_figure()
    stages.plot_stages(panel, ax, x, by)
    after, before = markers_of(ax, 9), markers_of(ax, 5)
    assert sorted(after["y"]) == pytest.approx(sorted(expected[outcome]))
    assert sorted(before["y"]) == pytest.approx(sorted(expected["pass1"]))
    assert before["hollow"].all()
    assert not after["hollow"].any()
    assert sorted(after["half"]) == pytest.approx(sorted(plots.half_widths(expected, outcome)))
    assert sorted(before["half"]) == pytest.approx(sorted(1.96 * expected["pass1_sampling_se"]))
    # each marker is at its x, but for what keeps markers apart
    true_x = expected.sort_values(outcome)[x].to_numpy()
    assert np.abs(np.log2(after.sort_values("y")["x"] / true_x)).max() < 0.2 * np.log2(true_x.max() / true_x.min())
    assert len(set(after["x"].round(9))) == len(after)
    # lines before and after RL of the base; a dash for each RL run
    base = panel.base.iloc[0]
    levels = {line.get_linestyle(): line.get_ydata()[0] for line in ax.lines if line.get_color() == look.GREY}
    assert levels == pytest.approx({"--": base["pass1"], "-": base[outcome]})
    runs = panel.runs
    mine = runs[(runs["family"] == base["family"]) & runs["candidate"].isin(expected["candidate"])]
    assert len(mine) == 2 * len(expected)
    assert sorted(offsets(ax)[:, 1]) == pytest.approx(sorted(mine[OUTCOMES[outcome]]))


def test_fig01_rings_the_best_of_each_stage(make_panel):
    panel = make_panel(MISTRAL, "instance", selections=["random", "shortest", "longest"])
    rows = panel.candidates.copy()
    once, more = rows.index[rows["epochs"] == 1], rows.index[rows["epochs"] > 1]
    rows.loc[once[0], "pass1"], rows.loc[once[2], "outcome"] = 0.9, 0.95
    rows.loc[more[0], ["pass1", "outcome"]] = 0.97, 0.99  # the claim of the paper is about one epoch
    _, ax = plots.new_figure()
    stages.plot_before_after(dataclasses.replace(panel, candidates=rows), ax, 0.25)
    points = {p for line in ax.lines if line.get_marker() != "None" for p in map(tuple, line.get_xydata())}
    assert points == set(rows[["pass1", "outcome"]].itertuples(index=False, name=None))
    circles = [c for c in ax.collections if isinstance(c, PathCollection)]
    rings = {c.get_linestyle()[0][1] is None: tuple(c.get_offsets()[0]) for c in circles}  # solid or not
    best = [tuple(rows.loc[one, ["pass1", "outcome"]]) for one in (once[0], once[2])]
    assert rings == {False: best[0], True: best[1]}
    assert ax.get_title(loc="left") == f"rank correlation 0.25, n = {len(rows)} candidates"


def heights(ax) -> list[tuple[float, float]]:
    """Before and after RL of each recipe, in order, from the bars."""
    assert all(bar.get_y() == 0 for bar in ax.patches)
    half = len(ax.patches) // 2
    return [(a.get_height(), b.get_height()) for a, b in zip(ax.patches[:half], ax.patches[half:], strict=True)]


def test_fig10_bars_are_the_scores(make_panel):
    panel = make_panel(QWEN, "instance", selections=["shortest", "longest", "shortest+longest"])
    (ax,) = plots.recipe_grid([panel]).axes
    rows = pd.concat([panel.base, panel.candidates])
    np.testing.assert_allclose(heights(ax), rows[["pass1", "outcome"]].to_numpy())
    assert ax.get_ylim()[0] == 0
    ticks = [tick.get_text() for tick in ax.get_xticklabels()]
    assert (len(ticks), ticks[:3], ticks[-1]) == (9, ["base\n(no SFT)", "s64", "s256"], "s+l 480")
    level = [line.get_ydata()[0] for line in ax.lines if line.get_label().startswith("base")]
    assert level == [panel.base["outcome"].iloc[0]]
    assert len(offsets(ax)) == 18


def test_fig06_is_of_one_benchmark_and_three_sources(grid, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("QUAGMIRE_OUTPUT", str(tmp_path))
    scope = run_cells("fig06_sources_and_repetition", profile="mini-v1")
    fig = scope["fig"]
    assert scope["own"].counts["benchmark"].unique().tolist() == ["lanes3"]
    assert scope["labels"][0] == ["512×1\nLR 0.0001", "512×1\nLR 0.0005", "128×4\nLR 0.0001", "128×4\nLR 0.0005"]
    assert [ax.get_title(loc="left").split()[1] for ax in fig.axes] == ["main", "acereason", "openr1"]
    names = ["base", *(f"random-{name}-acereason" for name in ("512x1", "512x1-lr0.0005", "128x4", "128x4-lr0.0005"))]
    counts = grid.counts[(grid.counts["family"] == "micro-llama") & (grid.counts["benchmark"] == "lanes3")]
    before = counts[counts["stage"] != "rl"].groupby("candidate")[["correct", "n"]].sum()
    after = counts[counts["stage"] == "rl"].groupby(["candidate", "rl_run", "checkpoint"])[["correct", "n"]].sum()
    best = (after["correct"] / after["n"]).groupby("candidate").max()
    expected = np.column_stack([(before["correct"] / before["n"])[names], best[names]])
    np.testing.assert_allclose(heights(fig.axes[1]), expected)
    assert len({ax.get_ylim() for ax in fig.axes}) == 1
    with refused("benchmark"):
        run_cells("fig06_sources_and_repetition", profile="mini-v1", benchmark="math500")


def test_what_was_not_run_says_so(grid_frame, make_panel):
    panel = make_panel(MISTRAL, "instance", frame=grid_frame[grid_frame["family"] == "micro-llama"])
    fig, axes = plots.new_figure(4)
    plots.plot_sft_vs_rl(panel, None, axes[0])
    plots.plot_scores_by_epochs(panel, axes[1])
    plots.plot_loss_by_epochs(panel, axes[2])
    plots.plot_loss_vs_gain(panel, axes[3], np.nan, np.nan)
    grid = plots.stage_grid([panel, panel], "n_examples", "selection", names=True)
    for figure in (fig, grid, plots.selection_figure(panel), plots.recipe_grid([panel])):
        for ax in figure.axes:
            assert [text.get_text() for text in ax.texts] == ["not run at profile mini"]
            assert not ax.containers
            assert not ax.patches
        plots.stamp(figure, "profile mini · measured")
        assert figure._supxlabel.get_text() == "profile mini · not run"
    for number in range(1, 11):
        text = plots.caption(number, [panel], ["lanes3"])
        assert text.startswith(f"**Figure {number} (profile mini, not run).**")


def test_labels_and_legends_stay_inside(make_panel):
    panel = make_panel(LLAMA, "instance", selections=["random", "shortest"])
    fig = plots.stage_grid([panel], "sft_tokens", "selection", names=True)
    plots.stamp(fig, "profile mini · measured · commit 01234567 with uncommitted changes")
    plots.write_message(fig, "what the figure says")
    boxes = label_boxes(fig, fig.axes[0])
    assert set(boxes) == {"128", "512", "512×4", "2048", "s64×4", "s256", "s256×4", "s1024", "s1024×4"}
    assert not overlapping(boxes)
    tight = fig.get_tightbbox().padded(-0.03)  # inches
    assert min(tight.x0, tight.y0) >= 0
    assert (tight.max <= fig.get_size_inches()).all()
    (legend,) = fig.legends
    box = legend.get_window_extent().extents
    assert not overlap(box, fig._supxlabel.get_window_extent().extents)
    assert not overlap(box, fig.axes[0].get_window_extent().extents)
    assert legend.get_title().get_text() == "what the figure says"
    assert legend.get_title().get_window_extent().y0 >= max(text.get_window_extent().y1 for text in legend.get_texts())


@pytest.fixture(scope="module")
def counts(records):
    return records.counts[records.counts["stage"] == "base"].drop(columns=CHECKPOINT)


def test_pass_at_k_panels_with_their_bands_votes_and_forecast(counts):
    table = bootstrap_intervals(counts)
    votes = pd.DataFrame({"benchmark": "easy", "k": [1, 8, 64], "maj_at_k": [0.2, 0.3, 0.4]})
    forecast = forecast_table(counts, 256)
    shown = [ax for ax in plots.pass_at_k_grid(table, votes, forecast).axes if ax.get_visible()]
    names = table["benchmark"].unique().tolist()
    assert [ax.get_title(loc="left").split(" (")[0] for ax in shown] == names
    assert len({ax.get_ylim() for ax in shown}) == 1
    for ax, name in zip(shown, names, strict=True):
        rows, beyond = (part[part["benchmark"] == name] for part in (table, forecast))
        lines = {line.get_label(): line for line in ax.lines}
        assert lines["Pass@k"].get_ydata() == pytest.approx(rows["pass_at_k"].to_numpy())
        corners = ax.collections[0].get_paths()[0].vertices
        assert (corners[:, 1].min(), corners[:, 1].max()) == pytest.approx((rows["low"].min(), rows["high"].max()))
        assert ("maj@k" in lines) == (name == "easy")
        assert lines["forecast"].get_linestyle() == "--"
        np.testing.assert_allclose(lines["forecast"].get_xdata(), beyond["k"])
        np.testing.assert_allclose(lines["forecast"].get_ydata(), beyond["value"])
        assert max(lines["Pass@k"].get_xdata()) == min(beyond["k"])
    alone = table[table["benchmark"].isin(["easy", "macro average"])]
    assert len(plots.pass_at_k_grid(alone).axes) == 1


def test_verdict_bars_add_up(counts):
    _, ax = plots.new_figure()
    curves.plot_verdicts(counts, ax)
    ends = dict.fromkeys(range(3), 0.0)
    for bar in ax.patches:
        ends[round(bar.get_y() + bar.get_height() / 2)] += bar.get_width()
    assert ends == pytest.approx({0: 1.0, 1: 1.0, 2: 1.0})
    truncated = counts.groupby("benchmark", sort=False)[["truncated", "n"]].sum()
    shares = (truncated["truncated"] / truncated["n"]).to_numpy()[::-1]
    assert ax.lines[0].get_xdata() == pytest.approx(shares[shares > 0])


def test_saved_whole_stamped_and_the_same_every_time(tmp_path, llama):
    fit = linear_fit(llama.candidates["pass1"], llama.candidates["outcome"])
    copies = []
    for name in ("one", "two"):
        fig, ax = plots.new_figure()
        plots.plot_sft_vs_rl(llama, fit, ax)
        plots.stamp(fig, "profile example · measured")
        copies.append(plots.save_figure(fig, tmp_path / name / "fig03.v1"))
    svg, png = copies[0]
    assert (svg.name, png.name) == ("fig03.v1.svg", "fig03.v1.png")
    assert {*(tmp_path / "one").iterdir()} == {svg, png}
    assert [path.read_bytes() for path in copies[0]] == [path.read_bytes() for path in copies[1]]
    text = svg.read_text()
    ET.fromstring(text)
    assert "measured" in text  # matplotlib keeps the text of a path as a comment
    assert imread(png).shape[:2] == (880, 1200)
