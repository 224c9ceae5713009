"""Whether a world is worth measuring: closed forms, hand-made records, simulations; its figures and its notebook."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from notebook_cells import run_cells

from quagmire_utils.analysis import design
from quagmire_utils.analysis.candidates import candidate_frame
from quagmire_utils.core.records import Records
from quagmire_utils.evaluation.pass_at_k import benchmark_average


def judged(records: Records, folder: Path) -> dict[str, object]:
    """Return the variables of the notebook that judges these records: level, spread, plateau, repeated, judged, ..."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUAGMIRE_OUTPUT", str(folder))
        patch.setattr("quagmire_utils.core.records.load_records", lambda _: records)
        patch.setattr("quagmire_utils.report.notebook.results_folder", lambda _: records.folder)
        return run_cells("design_microlab")


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
    columns = ["family", "candidate", "stage", "validation_set", "nll", "standard_error", "tokens", "traces"]
    loss = [("f", name, "sft", "validation", nll, 0.01, 10, 5) for name, nll in (losses or {}).items()]
    facts = {"configuration_digest": "", "cells": 1, "cells_finished": 1, "cell_hours": 0.0, "packages": {}}
    facts |= {"hardware": {"cpu": "", "cores": 1, "memory_gib": 1}}
    return Records(
        folder=Path("nowhere"),
        candidates=pd.DataFrame(candidates),
        counts=pd.concat(counts, ignore_index=True),
        generalization_loss=pd.DataFrame(loss, columns=columns),
        rl_curves=pd.DataFrame(),
        cells=pd.DataFrame({"kind": ["sft"], "seconds_total": [10.0], "seconds_grading": [1.0], "cpu_seconds": [8.0]}),
        manifest={"configuration": {"name": "hand", "digits": 4, "evaluation": {"k": 4}}, **facts},
    )


def test_levels_against_fractions_worked_by_hand(tmp_path):
    """Four candidates, two runs each; on sums2 two end above 90 %, on lanes3 one is where guessing is."""
    ends = {"a": ([100, 100], [3]), "b": ([92, 90], [40]), "c": ([90, 90], [50]), "d": ([30, 30], [60])}
    counts = []
    for place, (name, (sums, lanes)) in enumerate(ends.items()):
        counts.append(counts_rows(name, "sft", -1, 0, 8, {"sums2": [8, place], "lanes3": [0]}))
        counts += [counts_rows(name, "rl", run, 1, 100, {"sums2": [1, 1], "lanes3": [1]}) for run in range(2)]
        counts += [counts_rows(name, "rl", run, 2, 100, {"sums2": sums, "lanes3": lanes}) for run in range(2)]
    counts = [part.assign(chance_correct=part["benchmark"].eq("lanes3").astype(int)) for part in counts]
    (row,) = judged(hand_made([candidate_row(name) for name in ends], counts), tmp_path)["level"].to_dict("records")
    assert (row["candidates"], row["measured"], row["k"]) == (4, 4, 4)
    assert (row["ceiling"], row["ceiling_benchmark"]) == (0.5, "sums2")  # 90 % is not above
    assert (row["floor"], row["floor_benchmark"]) == (0.25, "lanes3")  # 3 % is less than 5 points above 1 %
    assert row["mean"] == pytest.approx(np.mean([(1 + 0.03) / 2, (0.91 + 0.4) / 2, (0.9 + 0.5) / 2, (0.3 + 0.6) / 2]))
    # Pass@4 of c right answers in 8 is 1 - C(8 - c, 4) / C(8, 4); lanes3 is never solved
    large = [(1 + 1 - math.comb(8 - c, 4) / 70) / 4 for c in range(4)]
    assert (row["highest"], row["sd"]) == pytest.approx((max(large), np.std(large, ddof=1)))
    assert row["saturated"] == 0
    assert (row["guessed"], row["guessed_benchmark"]) == (pytest.approx(0.5), "lanes3")  # one chance hit in eight


def test_what_the_end_of_rl_adds_and_an_rl_set_that_lacks_the_longest_problems(tmp_path):
    scores = {("a", 0): (10, 20, 26), ("a", 1): (10, 20, 22), ("base", 0): (0, 0, 4)}
    counts = [
        counts_rows(name, "rl", run, step, 100, {"sums2": [score]})
        for (name, run), values in scores.items()
        for step, score in zip((16, 44, 64), values, strict=True)
    ]
    records = hand_made([candidate_row("a"), candidate_row("base", "none")], counts)
    records.manifest["configuration"]["families"] = [{"name": "f", "rl_terms": [1, 3, 4]}]
    found = judged(records, tmp_path)
    assert found["rl_set"].iloc[0].tolist() == ["f", 0.0, "sums2"]
    (row,) = found["plateau"].to_dict("records")
    assert (row["start"], row["end"], row["checkpoints"], row["runs"]) == (44, 64, 3, 3)
    assert row["added"] == pytest.approx(0.04)
    assert row["added_se"] == pytest.approx(0.02 / math.sqrt(3))


def test_spread_of_hand_made_runs(tmp_path):
    """One problem, 100 answers: run outcomes are what we choose. b has one run, d none; c also is instance level."""
    outcomes = {"a": [0.2, 0.4], "b": [0.5], "c": [0.7, 0.8, 0.9], "base": [0.0, 1.0]}
    candidates = [candidate_row(n, scenario="dataset+instance" if n == "c" else "dataset") for n in "abcd"]
    candidates.append(candidate_row("base", "none"))
    counts = [
        counts_rows(name, "rl", run, step, 100, {"sums2": [round(100 * value) - lost]})
        for name, values in outcomes.items()
        for run, value in enumerate(values)
        for step, lost in ((1, 0), (2, round(20 * value)))  # the first checkpoint is the best
    ]
    table = judged(hand_made(candidates, counts), tmp_path)["spread"].set_index(["scenario", "outcome"])
    best = table.loc["dataset", "best"]
    assert tuple(best[["planned", "candidates", "repeated", "runs"]]) == (4, 3, 2, 6)
    between, within = np.std([0.3, 0.5, 0.8], ddof=1), math.sqrt((0.02 + 0.02) / (1 + 2))
    values = np.array([0.2, 0.4, 0.5, 0.7, 0.8, 0.9])
    sampling = math.sqrt((values * (1 - values) / 99).mean())
    truth = (np.mean([0.3, 0.5, 0.8]), between, within, between / within, sampling)
    assert tuple(best[["mean", "between", "within", "ratio", "sampling_se"]]) == pytest.approx(truth)
    assert math.isnan(best["ratio_low"])  # three candidates are too few
    assert table.loc["dataset", "last"]["between"] == pytest.approx(0.8 * between)
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
    rng, truth = np.random.default_rng(0), math.sqrt(9 + 1 / 4)
    found = [design.spread(*simulated(rng, 12, 4, 3.0), n_resamples=1000, seed=seed) for seed in range(200)]
    assert 0.84 <= np.mean([one["ratio_low"] <= truth <= one["ratio_high"] for one in found]) <= 0.98


def test_the_ratio_of_run_noise_alone_is_small_and_of_equal_runs_infinite():
    noise = design.spread(*simulated(np.random.default_rng(1), 400, 4, 0.0), n_resamples=1000, seed=0)
    assert noise["ratio"] == pytest.approx(0.5, abs=0.05)  # the mean of four runs
    assert noise["ratio_high"] < 0.6
    equal = design.spread(np.array([0.1, 0.2, 0.4, 0.5]), np.zeros(4), np.ones(4), 100, 0)
    assert (equal["ratio"], equal["ratio_high"]) == (math.inf, math.inf)


def overtrained() -> Records:
    """Four epochs: better and sharper at once; sixteen: as the signature says; a higher rate: worse in everything."""
    measured = {  # epochs, learning rate, examples, right of 64 on each problem, loss
        "e1": (1, 1e-4, 8, [10] * 20, 1.0),
        "e4": (4, 1e-4, 8, [20] * 20, 0.8),
        "e16": (16, 1e-4, 8, [64] * 10 + [0] * 10, 0.9),
        "e4-fast": (4, 5e-4, 8, [5] * 20, 0.9),
        "alone": (1, 1e-4, 99, [5] * 20, 0.9),
    }
    candidates = [
        candidate_row(name, epochs=float(epochs), learning_rate=rate, n_examples=examples)
        for name, (epochs, rate, examples, *_) in measured.items()
    ]
    counts = [counts_rows(name, "sft", -1, 0, 64, {"sums2": each[3]}) for name, each in measured.items()]
    return hand_made(candidates, counts, {name: each[4] for name, each in measured.items()})


def test_overtraining_is_seen_where_it_is(tmp_path):
    found = judged(overtrained(), tmp_path)
    table = found["repeated"].set_index("candidate")
    assert table["compared_with"].dropna().to_dict() == {"e4": "e1", "e16": "e4", "e4-fast": "e4"}
    assert table["signature"].to_dict() == {"e1": False, "e4": False, "e16": True, "e4-fast": False}
    assert table["beyond"].to_dict() == {"e1": "", "e4": "", "e16": "Pass@4, loss", "e4-fast": ""}
    changes = table.loc["e16", ["pass1_change", "gen_loss_change", "gen_loss_change_se"]].tolist()
    assert changes == pytest.approx([0.5 - 20 / 64, 0.1, 0.01 * math.sqrt(2)])
    (row,) = found["judged"].query("criterion == 'overtraining'").to_dict("records")
    assert row["verdict"] == "not met"  # Pass@1 rose by less than two standard errors, and there is one family


def test_paired_change_is_the_difference_of_scores_and_its_error_is_honest():
    """Its standard error is the spread of the change over fresh problems, paired because both meet the same ones."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(100):
        ease = rng.uniform(0.1, 0.6, (2, 25))
        drawn = [rng.binomial(16, p).tolist() for p in (ease, ease + 0.2)]
        pair = [counts_rows("c", "sft", -1, 0, 16, {"sums2": sums, "lanes3": lanes}) for sums, lanes in drawn]
        found.append(design.paired_change(*pair, 4))
    changes, errors = np.transpose(found)
    scores = [benchmark_average(part, [4])["pass_at_k"].iloc[0] for part in pair]
    assert changes[-1] == pytest.approx(scores[1] - scores[0])
    assert np.mean(errors) == pytest.approx(np.std(changes), rel=0.25)


def test_outcomes_of_runs_are_those_of_the_candidates(first_world):
    runs = design.run_outcomes(first_world)
    assert len(runs) == 176
    assert (runs["best"] >= runs["last"]).all()
    frame = candidate_frame(first_world).set_index(["family", "candidate"])["outcome"]
    common = runs[runs["rl_run"] < 2]  # some candidates have four runs, and all have two
    assert common.groupby(["family", "candidate"])["best"].max().to_dict() == pytest.approx(frame.to_dict())


def test_every_criterion_has_a_verdict_for_every_family(first_world, tmp_path):
    found = judged(first_world, tmp_path)
    cost, cells = found["cost"].loc["rl"], first_world.cells[first_world.cells["kind"] == "rl"]
    parts = cells.filter(regex="seconds_(?!total)").mean()
    assert (cost["cells"], cost["seconds_total"]) == (176, pytest.approx(cells["seconds_total"].mean()))
    assert cost["seconds_rest"] == pytest.approx(cells["seconds_total"].mean() - parts.sum())
    assert cost["seconds_cpu"] == pytest.approx(cells["cpu_seconds"].mean() + parts["seconds_grading"])
    names = {one["name"] for one in yaml.safe_load(design.CRITERIA.read_text(encoding="utf-8"))["criteria"]}
    assert set(found["judged"]["criterion"]) == names
    assert set(found["judged"]["verdict"]) <= {"met", "not met", "not measured"}
    assert not found["judged"]["measured"].str.contains("nan").any()
    for figure in ("design_outcomes", "design_overtraining"):
        assert (tmp_path / "figures" / f"{figure}.png").is_file()


def test_a_change_of_the_loss_is_paired_over_traces():
    nats, better = np.array([1.0, 2.0, 4.0, 9.0]), np.array([0.5, 1.0, 3.5, 8.0])
    rows = [pd.Series({"standard_error": 0.5, "trace_nll": x, "trace_tokens": np.full(4, 10)}) for x in (nats, better)]
    assert design.loss_change_error(*rows) == pytest.approx((better - nats).std(ddof=1) / 2)
    rows[1]["trace_nll"] = None  # of records that keep no traces
    assert design.loss_change_error(*rows) == pytest.approx(0.5**0.5)
