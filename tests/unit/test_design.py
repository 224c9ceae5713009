"""Whether a world is worth measuring: closed forms, hand-made records, simulations; its figures and its notebook."""

from __future__ import annotations

import html
import math
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest
from example_grid import write_grid_records
from matplotlib.collections import PathCollection

from quagmire_utils.analysis import design
from quagmire_utils.analysis.candidates import candidate_frame
from quagmire_utils.analysis.criteria import CRITERIA, criteria_table
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.records import Records, load_records
from quagmire_utils.evaluation.pass_at_k import benchmark_average
from quagmire_utils.report import plots
from quagmire_utils.sweep.collect import seconds_by_part

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def criteria(grid):
    return criteria_table(grid)


@pytest.fixture(scope="module")
def partial(tmp_path_factory, profile):
    """The base and one candidate of each family, one RL run of each."""
    folder = tmp_path_factory.mktemp("partial") / "mini"
    return load_records(write_grid_records(folder, profile, runs=1, finished=2))


def candidate_row(name: str, selection: str = "random", scenario: str = "dataset", **more: object) -> dict[str, object]:
    row = {"family": "f", "stands_for": "Llama3-8B-Instruct", "candidate": name, "scenario": scenario}
    row |= {"source": "main", "selection": selection, "n_examples": 8, "epochs": 1.0, "learning_rate": 1e-4}
    return row | {"sft_tokens": 100.0, "budget": "low"} | more


def counts_rows(name: str, stage: str, run: int, step: int, n: int, correct: dict[str, list[int]]) -> pd.DataFrame:
    rows = [
        {"family": "f", "candidate": name, "stage": stage, "rl_run": run, "checkpoint": step}
        | {"benchmark": benchmark, "problem": f"{benchmark}-{i}", "n": n, "correct": c}
        | {"wrong": n - c, "no_answer": 0, "truncated": 0, "timeout": 0, "error": 0, "mean_tokens": 9.0}
        for benchmark, values in correct.items()
        for i, c in enumerate(values)
    ]
    return pd.DataFrame(rows)


def hand_made(candidates: list[dict], counts: list[pd.DataFrame], losses: dict[str, float] | None = None) -> Records:
    loss = [
        {"family": "f", "candidate": c, "stage": "sft", "validation_set": "validation", "nll": v}
        | {"standard_error": 0.01, "tokens": 10, "traces": 5}
        for c, v in (losses or {}).items()
    ]
    columns = ["family", "candidate", "stage", "validation_set", "nll", "standard_error", "tokens", "traces"]
    return Records(
        folder=Path("nowhere"),
        candidates=pd.DataFrame(candidates),
        counts=pd.concat(counts, ignore_index=True),
        generalization_loss=pd.DataFrame(loss, columns=columns),
        rl_curves=pd.DataFrame(),
        cells=pd.DataFrame({"kind": ["sft"], "seconds_total": [10.0], "seconds_grading": [1.0], "cpu_seconds": [8.0]}),
        manifest={"configuration": {"name": "hand", "digits": 4, "evaluation": {"k": 4}}},
    )


# --- the base ---------------------------------------------------------------------------------------------------------


def test_base_table_against_fractions_worked_by_hand():
    """Two benchmarks of 2 and 1 problems; two runs of two checkpoints, of which the last counts."""
    before = counts_rows("base", "base", -1, 0, 8, {"sums2": [2, 0], "lanes3": [4]})
    runs = [
        counts_rows("base", "rl", 0, 1, 4, {"sums2": [4, 4], "lanes3": [4]}),
        counts_rows("base", "rl", 0, 2, 4, {"sums2": [4, 0], "lanes3": [4]}),
        counts_rows("base", "rl", 1, 1, 4, {"sums2": [0, 0], "lanes3": [0]}),
        counts_rows("base", "rl", 1, 2, 4, {"sums2": [2, 2], "lanes3": [4]}),
    ]
    (row,) = design.base_table(hand_made([candidate_row("base", "none")], [before, *runs])).to_dict("records")
    assert row["pass1"] == pytest.approx((2 / 16 + 4 / 8) / 2)
    assert row["outcome"] == pytest.approx(1.0)  # the best of all checkpoints
    assert row["outcome_last"] == pytest.approx((0.5 + 1) / 2)  # both runs end so
    assert row["lift_last"] == pytest.approx(0.75 - 0.3125)
    assert (row["k"], row["k_after"], row["n_runs"]) == (4, 4, 2)
    assert row["chance"] == pytest.approx(1 - 0.9999**4)
    # the lift by problem, weighted so that benchmarks count alike: 0.5 * 0.5, 0.25 * 0.5 (never solved), 0.5
    assert row["possible"] == pytest.approx(2 / 3)
    assert row["possible_share"] == pytest.approx((0.25 + 0.5) / (0.25 + 0.125 + 0.5))
    # C(6, 4) / C(8, 4) = 15/70 misses the first problem, C(4, 4) / C(8, 4) = 1/70 the third
    assert row["before_k_after"] == pytest.approx(((1 - 15 / 70) / 2 + 1 - 1 / 70) / 2)
    assert row["after_k_after"] == pytest.approx(((0.5 + 1) / 2 + (1 + 1) / 2) / 2)


def test_a_base_without_runs_is_not_measured():
    before = counts_rows("base", "base", -1, 0, 8, {"sums2": [2, 0], "lanes3": [4]})
    records = hand_made([candidate_row("base", "none")], [before])
    (row,) = design.base_table(records).to_dict("records")
    assert row["possible"] == pytest.approx(2 / 3)
    assert all(math.isnan(row[name]) for name in ("lift_last", "possible_share", "after_k_after"))
    verdicts = criteria_table(records).set_index("criterion")["verdict"]
    assert verdicts["base"] == "not met"  # 31 %
    assert set(verdicts[["lift", "sharpening", "overtraining", "cost"]]) == {"not measured"}


# --- spread -----------------------------------------------------------------------------------------------------------


def test_spread_of_hand_made_runs():
    """One problem, 100 answers: run outcomes are what we choose. b has one run, d none; c also is instance level."""
    outcomes = {"a": [0.2, 0.4], "b": [0.5], "c": [0.7, 0.8, 0.9], "base": [0.0, 1.0]}
    scenarios = {"c": "dataset+instance", "d": "dataset"}
    candidates = [candidate_row(n, scenario=scenarios.get(n, "dataset")) for n in "abcd"]
    candidates.append(candidate_row("base", "none"))
    counts = [
        counts_rows(name, "rl", run, step, 100, {"sums2": [round(100 * value) - lost]})
        for name, values in outcomes.items()
        for run, value in enumerate(values)
        for step, lost in ((1, 0), (2, round(20 * value)))  # the first checkpoint is the best
    ]
    table = design.spread_table(hand_made(candidates, counts)).set_index(["scenario", "outcome"])
    best = table.loc["dataset", "best"]
    assert tuple(best[["planned", "candidates", "repeated", "runs"]]) == (4, 3, 2, 6)
    assert best["mean"] == pytest.approx(np.mean([0.3, 0.5, 0.8]))
    assert best["between"] == pytest.approx(np.std([0.3, 0.5, 0.8], ddof=1))
    assert best["within"] == pytest.approx(math.sqrt((0.02 + 0.02) / (1 + 2)))
    assert best["ratio"] == pytest.approx(best["between"] / best["within"])
    assert math.isnan(best["ratio_low"])  # three candidates are too few
    values = np.array([0.2, 0.4, 0.5, 0.7, 0.8, 0.9])
    assert best["sampling_se"] == pytest.approx(math.sqrt((values * (1 - values) / 99).mean()))
    assert table.loc["dataset", "last"]["between"] == pytest.approx(0.8 * best["between"])
    instance = table.loc["instance", "best"]
    assert tuple(instance[["planned", "candidates", "repeated", "runs"]]) == (1, 1, 1, 3)
    assert math.isnan(instance["ratio"])
    assert instance["within"] == pytest.approx(0.1)
    assert table.loc["all", "best"].equals(table.loc["dataset", "best"])  # c, in both, counts once


def simulated(rng: np.random.Generator, count: int, runs: int, between: float) -> tuple[np.ndarray, ...]:
    y = between * rng.standard_normal((count, 1)) + rng.standard_normal((count, runs))
    means = y.mean(axis=1)
    return means, ((y - means[:, None]) ** 2).sum(axis=1), np.full(count, runs - 1.0)


def test_the_interval_of_the_ratio_covers_what_it_should():
    """Normal outcomes, twelve candidates of four runs, three times as far apart as their runs: close to 95 %."""
    rng = np.random.default_rng(0)
    truth, hits = math.sqrt(9 + 1 / 4), 0
    for seed in range(200):
        spread = design.spread(*simulated(rng, 12, 4, 3.0), n_resamples=1000, seed=seed)
        hits += spread["ratio_low"] <= truth <= spread["ratio_high"]
    assert 0.84 <= hits / 200 <= 0.98


def test_the_ratio_of_run_noise_alone_is_small_and_of_equal_runs_infinite():
    noise = design.spread(*simulated(np.random.default_rng(1), 400, 4, 0.0), n_resamples=1000, seed=0)
    assert noise["ratio"] == pytest.approx(0.5, abs=0.05)  # the mean of four runs
    assert noise["ratio_high"] < 0.6
    equal = design.spread(np.array([0.1, 0.2, 0.4, 0.5]), np.zeros(4), np.ones(4), 100, 0)
    assert (equal["ratio"], equal["ratio_high"]) == (math.inf, math.inf)


def test_spread_of_records_that_are_partial(partial):
    expected = {("micro-llama", "dataset"): 16, ("micro-llama", "instance"): 17, ("micro-llama", "source"): 12}
    expected |= {("micro-mistral", "dataset"): 10, ("micro-mistral", "instance"): 12}
    planned = design.spread_table(partial).set_index(["family", "scenario"])["planned"]
    assert {key: planned.loc[key].unique().tolist() for key in expected} == {k: [v] for k, v in expected.items()}
    assert design.spread_table(partial)["ratio"].isna().all()


# --- overtraining, length, cost ---------------------------------------------------------------------------------------


def overtrained() -> Records:
    """Four epochs: better and sharper at once; sixteen: as the signature says; a higher rate: worse in everything."""
    solved = {
        "e1": ([10] * 20, 1.0),
        "e4": ([20] * 20, 0.8),
        "e16": ([64] * 10 + [0] * 10, 0.9),
        "e4-fast": ([5] * 20, 0.9),
        "alone": ([5] * 20, 0.9),
    }
    settings = {"e1": (1, 1e-4, 8), "e4": (4, 1e-4, 8), "e16": (16, 1e-4, 8), "e4-fast": (4, 5e-4, 8)}
    settings["alone"] = (1, 1e-4, 99)
    candidates = [
        candidate_row(name, epochs=float(epochs), learning_rate=rate, n_examples=examples)
        for name, (epochs, rate, examples) in settings.items()
    ]
    counts = [counts_rows(name, "sft", -1, 0, 64, {"sums2": correct}) for name, (correct, _) in solved.items()]
    return hand_made(candidates, counts, {name: loss for name, (_, loss) in solved.items()})


def test_overtraining_is_seen_where_it_is():
    table = design.overtraining_table(overtrained(), "f").set_index("candidate")
    assert list(table.index) == ["e1", "e4", "e16", "e4-fast"]
    assert table["compared_with"].dropna().to_dict() == {"e4": "e1", "e16": "e4", "e4-fast": "e4"}
    assert table["signature"].to_dict() == {"e1": False, "e4": False, "e16": True, "e4-fast": False}
    assert table["beyond"].to_dict() == {"e1": "", "e4": "", "e16": "Pass@4, loss", "e4-fast": ""}
    assert table.loc["e16", "pass1_change"] == pytest.approx(0.5 - 20 / 64)
    assert table.loc["e16", "gen_loss_change"] == pytest.approx(0.1)
    assert table.loc["e16", "gen_loss_change_se"] == pytest.approx(0.01 * math.sqrt(2))
    criteria = criteria_table(overtrained()).set_index("criterion")
    assert criteria.loc["overtraining", "verdict"] == "met"
    assert not criteria.loc["overtraining", "clear"]  # Pass@1 rose by less than two standard errors
    assert "1 of 3 steps" in criteria.loc["overtraining", "measured"]


def test_paired_change_is_the_difference_of_scores_and_its_error_is_honest():
    """Its standard error is the spread of the change over fresh problems, paired because both meet the same ones."""
    rng = np.random.default_rng(0)
    changes, errors = [], []
    for _ in range(100):
        ease = rng.uniform(0.1, 0.6, (2, 25))
        pair = [
            counts_rows(
                "c", "sft", -1, 0, 16, dict(zip(("sums2", "lanes3"), rng.binomial(16, p).tolist(), strict=True))
            )
            for p in (ease, ease + 0.2)
        ]
        change, error = design.paired_change(*pair, 4)
        changes.append(change)
        errors.append(error)
    scores = [benchmark_average(part, [4])["pass_at_k"].iloc[0] for part in pair]
    assert changes[-1] == pytest.approx(scores[1] - scores[0])
    assert np.mean(errors) == pytest.approx(np.std(changes), rel=0.25)


def test_benchmarks_split_at_the_median_of_their_terms(profile):
    short, long = design.split_by_length(list(profile.benchmarks))
    assert set(short) == {"sums2", "products2", "lanes3"}
    assert set(long) == {"sums5", "lanes6"}
    with pytest.raises(ParameterError) as caught:
        design.split_by_length(["sums2", "gsm8k"])
    assert caught.value.value == "gsm8k"


def test_length_table_and_contrast(grid, profile):
    table = design.length_table(grid, "micro-llama")
    assert len(table) == 17
    known = list(dict.fromkeys(table["budget"]))
    assert known == [name for name in profile.budgets if name in known]  # rising
    row = table[table["candidate"] == "longest-80x1"].iloc[0]
    assert (row["budget"], row["tokens_per_example"], row["n_runs"]) == ("low", 150.0, 2)
    counts = grid.counts.query("family == 'micro-llama' and candidate == 'longest-80x1'")
    long = counts[counts["benchmark"].isin(["sums5", "lanes6"])]
    rate = (long["correct"] / long["n"]).groupby([long["stage"], long["rl_run"], long["checkpoint"]]).mean()
    assert row["long_before"] == pytest.approx(rate["sft", -1, 0])
    assert row["long_after"] == pytest.approx(np.mean([rate["rl", run, 32] for run in range(2)]))
    contrast = design.length_contrast(table).set_index("budget")
    assert contrast["tokens_ratio"].to_numpy() == pytest.approx(150 / 40)
    low = table[table["budget"] == "low"].groupby("selection")["long_before"].mean()
    assert contrast.loc["low", "before"] == pytest.approx(low["longest"] - low["shortest"])


def test_what_a_verdict_rests_on(grid, criteria):
    """A better score of the longest on the long problems turns the verdict; so does a slower cell."""
    verdicts = criteria.set_index(["criterion", "family"])["verdict"]
    assert verdicts["long traces teach", "micro-qwen"] == "not met"
    assert verdicts["cost", ""] == "met"
    counts = grid.counts.copy()
    names = grid.candidates.loc[grid.candidates["selection"] == "longest", "candidate"]
    better = counts["candidate"].isin(names) & (counts["stage"] == "sft")
    counts.loc[better, "correct"] = counts.loc[better, "n"]
    cells = grid.cells.assign(cpu_seconds=grid.cells["cpu_seconds"] * 2)
    changed = criteria_table(
        Records(grid.folder, grid.candidates, counts, grid.generalization_loss, grid.rl_curves, cells, grid.manifest)
    ).set_index(["criterion", "family"])["verdict"]
    assert changed["long traces teach", "micro-qwen"] == "met"
    assert changed["long traces pay", "micro-qwen"] == verdicts["long traces pay", "micro-qwen"]
    assert changed["cost", ""] == "not met"  # 62 + 122 seconds


def test_cost_table_and_the_manifest_agree(grid):
    table, summary = design.cost_table(grid), seconds_by_part(grid.cells)
    assert table.loc["rl", ["cells", "sampling", "rest", "wall", "cpu"]].tolist() == [176, 8.0, 50.0, 60.0, 62.0]
    assert summary["rl"] == {
        "cells": 176,
        "cpu_seconds": 60.0,
        "seconds": {"sampling": 8.0, "grading": 2.0, "total": 60.0},
    }
    assert seconds_by_part(pd.DataFrame()) == {}


def test_every_criterion_has_a_verdict_for_every_family(partial, criteria):
    for table in (criteria, criteria_table(partial)):
        assert set(table["criterion"]) == set(CRITERIA)
        assert set(table["verdict"]) <= {"met", "not met", "not measured"}
        assert not table["measured"].str.contains("nan").any()
    assert "not measured" in set(table["verdict"])


# --- figures ----------------------------------------------------------------------------------------------------------


def test_outcomes_show_every_run_in_order(grid):
    runs = design.run_outcomes(grid)
    assert len(runs) == 176
    assert (runs["best"] >= runs["last"]).all()
    frame = candidate_frame(grid).set_index(["family", "candidate"])["outcome"]
    common = runs[runs["rl_run"] < 2]  # some candidates have four runs, and all have two
    assert len(common) < len(runs)
    assert common.groupby(["family", "candidate"])["best"].max().to_dict() == pytest.approx(frame.to_dict())
    mine = runs[runs["family"] == "micro-llama"]
    _, ax = plots.new_figure()
    plots.curves.plot_outcomes(mine, ax)
    labels = [text.get_text() for text in ax.get_yticklabels()]
    means = mine.groupby("candidate")["best"].mean()
    assert means[labels].is_monotonic_increasing
    shown = np.concatenate([c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)])
    expected = {(row.best, labels.index(row.candidate)) for row in mine.itertuples()}
    assert expected <= {tuple(point) for point in shown}


def test_overtraining_figure_rings_the_signature():
    table = design.overtraining_table(overtrained(), "f")
    fig = plots.overtraining_grid(table)
    for ax, column in zip(fig.axes, ("pass1", "pass_k", "gen_loss"), strict=True):
        (rings,) = [c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)]
        found = table[table["signature"]]
        assert np.asarray(rings).tolist() == found[["epochs", column]].to_numpy().tolist()


def test_figures_of_nothing_say_so(grid):
    runs = design.run_outcomes(grid).iloc[:0]
    for fig in (
        plots.outcome_grid(runs, design.spread_table(grid)),
        plots.overtraining_grid(design.overtraining_table(grid, "no such family")),
    ):
        assert "yet" in fig.axes[0].texts[0].get_text()


def test_no_text_lies_on_a_curve_of_the_shipped_records():
    records = load_records(ROOT / "results" / "mini")
    fig = plots.rl_curve_grid(records.rl_curves, candidates=records.candidates)
    fig.canvas.draw()
    panels = [ax for ax in fig.axes[:-1] if ax.get_visible()]
    assert len(panels) == 7
    for ax in panels:
        texts = ax.get_legend().get_texts()
        assert {text.get_text().partition(":")[0] for text in texts} == {"base", "ends lowest", "ends highest"}
        for text in (*texts, *ax.texts):
            box = text.get_window_extent()
            crossed = [
                line for line in ax.lines if line.get_transform().transform_path(line.get_path()).intersects_bbox(box)
            ]
            assert not crossed, f"{ax.get_title(loc='left')}: {text.get_text()}"


# --- the notebook -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["partial", pytest.param("grid", marks=pytest.mark.slow)])
def test_the_notebook_shows_what_was_computed(tmp_path, request, name):
    records, source = request.getfixturevalue(name), ROOT / "notebooks" / "design_microlab.ipynb"
    given = {"profile": str(records.folder)}
    book = papermill.execute_notebook(
        source, None, given, kernel_name="python3", progress_bar=False, cwd=tmp_path, execution_timeout=600
    )
    outputs = [o for cell in book.cells if cell.cell_type == "code" for o in cell.outputs]
    assert not [o for o in outputs if o.output_type in ("stream", "error")]
    shown = html.unescape("\n".join(o.get("data", {}).get("text/html", "") for o in outputs))
    for measured in criteria_table(records)["measured"]:
        assert measured in shown
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 2
    for figure in ("design_outcomes", "design_overtraining"):
        assert (records.folder / "figures" / f"{figure}.png").is_file()
