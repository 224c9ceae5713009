"""The grid: cells depend on exactly what they should, and a killed sweep ends as an unbroken one."""

import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

from quagmire_utils import sweep
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json, read_parquet
from quagmire_utils.core.settings import explicit, load_profile

TINY = """
name: tiny
description: the smallest sweep that goes through every step
benchmarks: {sums2: 2, lanes3: 2}
families:
  - name: a
    stands_for: Llama3-8B-Instruct
    pretraining: {hidden_size: 32, layers: 1, terms: [2, 3], examples: 64, fallible_examples: 32}
    sources: {main: {terms: [2, 3], pool: 40, validation: 6}}
    rl_terms: [2]
    rl_problems: 8
    candidates:
      - {selection: none}
      - {selection: random, n_examples: 16, epochs: 2}
      - {selection: shortest, n_examples: 16, scenario: instance}
sft: {learning_rate: 0.001, batch_size: 8, max_length: 256}
rl: {steps: 2, learning_rate: 0.001, prompts_per_step: 2, rollouts: 4, max_tokens: 12, runs: 1, checkpoints: 2}
evaluation: {engine: transformers, num_samples: 4, rl_num_samples: 2, k: 4, max_tokens: 16}
"""


SOURCES = {"main": {"terms": [2], "pool": 40, "validation": 6}, "other": {"terms": [3], "pool": 40, "validation": 6}}


CANDIDATES = yaml.safe_load(TINY)["families"][0]["candidates"]


def in_family(name, value):
    """An override of one parameter of the only family."""
    return {"families": [yaml.safe_load(TINY)["families"][0] | {name: value}]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def unbroken(tiny, tmp_path_factory):
    """A sweep that ran through, on two workers."""
    folder = tmp_path_factory.mktemp("unbroken")
    run(tiny, folder).check_returncode()
    return folder


def command(tiny, folder):
    return [sys.executable, "-m", "quagmire_utils", "sweep", str(tiny), "--results", str(folder)]


def run(tiny, folder):
    return subprocess.run(command(tiny, folder), capture_output=True, text=True, check=False)


def records(folder):
    frames = {name: read_parquet(folder / f"{name}.parquet") for name in (*sweep.TABLES, "candidates")}
    frames["rl_curves"] = frames["rl_curves"].drop(columns="seconds")
    return frames


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_plan_names_every_cell_after_what_it_needs(tiny):
    cells = sweep.plan(load_profile(tiny))
    assert [cell.id for cell in cells] == [
        "a/base",
        "a/base/rl0",
        "a/random-16x2",
        "a/random-16x2/rl0",
        "a/shortest-16x1",
        "a/shortest-16x1/rl0",
    ]
    for i, cell in enumerate(cells):
        assert cell.needs is None or cell.needs in {earlier.id for earlier in cells[:i]}


def test_settings_at_their_defaults_do_not_enter_digests():
    settings = load_profile("smoke", {"rl.steps": 100, "digits": 3})
    plain = explicit(settings)
    assert "steps" not in plain["rl"]  # 100 is the default
    assert "digits" not in plain
    assert plain["families"][0]["candidates"][1] == {"n_examples": 64}
    assert explicit(settings.replace(digits=4))["digits"] == 4


def test_a_candidate_may_have_more_rl_runs_than_others(tiny):
    usual = load_profile(tiny)
    family = usual.families[0]
    more = family.candidates[-1].replace(rl_runs=3)
    family = family.replace(candidates=(*family.candidates[:-1], more))
    before, after = (
        {cell.id: cell.digest for cell in sweep.plan(profile)} for profile in (usual, usual.replace(families=(family,)))
    )
    assert after.keys() - before.keys() == {"a/shortest-16x1/rl1", "a/shortest-16x1/rl2"}
    assert all(after[cell] == digest for cell, digest in before.items())
    with pytest.raises(ParameterError, match="rl_runs must be at least 1"):
        more.replace(rl_runs=0)


def test_budgets_group_by_trained_tokens(tiny, unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "copy")
    tokens = read_parquet(unbroken / "candidates.parquet").set_index("candidate")["sft_tokens"]
    assert 0 < tokens["shortest-16x1"] < tokens["random-16x2"]
    profile = load_profile(tiny, {"budgets": {"low": float(tokens["shortest-16x1"]), "high": 1e6}})
    frames = sweep.collect(profile, tmp_path / "copy")
    budget = frames["candidates"].set_index("candidate")["budget"]
    assert budget["shortest-16x1"] == "low"
    assert budget["random-16x2"] == "high"
    assert pd.isna(budget["base"])


@pytest.mark.parametrize(
    ("override", "kinds"),
    [
        ({"seed": 1}, {"base", "sft", "rl"}),
        ({"evaluation.num_samples": 8}, {"base", "sft", "rl"}),
        ({"evaluation.rl_num_samples": 3}, {"rl"}),
        ({"evaluation.k": 2}, set()),
        ({"sft.learning_rate": 0.002}, {"sft", "rl of sft"}),
        ({"rl.steps": 4}, {"rl"}),
        ({"rl.runs": 2}, set()),  # a further run leaves the first ones as they are
        ({"workers": 1}, set()),
        (in_family("sources", SOURCES), {"base", "sft", "rl"}),
        (in_family("sources", dict(reversed(SOURCES.items()))), {"base", "sft", "rl"}),
        ({"description": "other words"}, set()),
        # nothing that was computed depends on a source that no candidate uses, or on what candidates are compared with
        (in_family("sources", {"main": {"terms": [2, 3], "pool": 40, "validation": 6}, "other": {}}), set()),
        (in_family("candidates", [*CANDIDATES[:2], CANDIDATES[2] | {"scenario": "dataset+instance"}]), set()),
        ({"budgets": {"low": 100.0}}, set()),
        ({"digits": 4}, {"base", "sft", "rl"}),
        ({"rl.backend": "compact"}, {"rl"}),
    ],
)
def test_a_changed_parameter_redoes_what_depends_on_it(tiny, override, kinds):
    before = {cell.id: cell for cell in sweep.plan(load_profile(tiny))}
    after = {cell.id: cell for cell in sweep.plan(load_profile(tiny, override))}
    for name, cell in before.items():
        kind = "rl of sft" if cell.kind == "rl" and cell.candidate != "base" and "rl" not in kinds else cell.kind
        assert (after[name].digest != cell.digest) == (kind in kinds), name


def test_training_and_measuring_problems_are_apart(tiny):
    profile = load_profile(tiny, {"benchmarks": {"sums2": 60, "lanes2": 60, "lanes3": 60}})
    family = profile.families[0].replace(rl_problems=300)
    measured = {p.question for problems in sweep.benchmark_problems(profile).values() for p in problems}
    pool, validation = sweep.source_traces(profile, family, "main")
    groups = [measured, {p.question for p in sweep.rl_problems(profile, family)}, {t.question for t in pool}]
    groups.append({t.question for t in validation})
    assert [len(group) for group in groups] == [180, 300, 40, 6]
    assert not groups[0] & (groups[1] | groups[2] | groups[3])
    assert not groups[2] & groups[3]


# --- running ----------------------------------------------------------------------------------------------------------


def test_a_sweep_leaves_every_record(tiny, unbroken):
    profile = load_profile(tiny)
    frames = records(unbroken)
    counts = frames["counts"]
    stages = counts.groupby(["cell", "stage"], sort=False).size().to_dict()
    assert stages == {
        ("a/base", "base"): 4,
        ("a/base/rl0", "rl"): 8,
        ("a/random-16x2", "sft"): 4,
        ("a/random-16x2/rl0", "rl"): 8,
        ("a/shortest-16x1", "sft"): 4,
        ("a/shortest-16x1/rl0", "rl"): 8,
    }
    assert set(counts.loc[counts.stage != "rl", "n"]) == {4}
    assert set(counts.loc[counts.stage == "rl", "n"]) == {2}
    verdicts = counts[["correct", "wrong", "no_answer", "timeout", "error"]].sum(axis=1)
    assert (verdicts == counts["n"]).all()
    losses = frames["generalization_loss"].set_index(["candidate", "validation_set"])
    both = ["validation", "own"]
    sets = [("base", "validation"), *((name, s) for name in ("random-16x2", "shortest-16x1") for s in both)]
    assert losses.index.tolist() == sets
    # random traces are held out as they are trained on; the shortest have held-out traces of their own
    assert losses.loc[("random-16x2", "own"), "nll"] == losses.loc[("random-16x2", "validation"), "nll"]
    assert losses.loc[("shortest-16x1", "own"), "tokens"] < losses.loc[("shortest-16x1", "validation"), "tokens"]
    assert frames["rl_curves"].groupby("cell").size().tolist() == [2, 2, 2]
    assert (frames["candidates"]["sft_tokens"] > 0).tolist() == [False, True, True]
    manifest = read_json(unbroken / "manifest.json")
    assert manifest["cells"] == manifest["cells_finished"] == 6
    assert manifest["configuration"]["name"] == "tiny"
    assert sweep.finished_cells(unbroken, sweep.plan(profile)) == {c.id for c in sweep.plan(profile)}


def test_a_finished_sweep_computes_nothing_again(tiny, unbroken):
    cells = {p: p.stat().st_mtime_ns for p in (unbroken / "scratch" / "cells").rglob("*") if p.is_file()}
    run(tiny, unbroken).check_returncode()
    assert {p: p.stat().st_mtime_ns for p in (unbroken / "scratch" / "cells").rglob("*") if p.is_file()} == cells


def test_records_are_enough_to_resume_from(tiny, unbroken, tmp_path):
    """What a clone holds: the collected records, without checkpoints. Nothing is recomputed, nothing is lost."""
    for file in unbroken.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    sweep.run_sweep(load_profile(tiny), tmp_path, progress=False)
    assert not (tmp_path / "scratch" / "cells").exists()
    for name, frame in records(unbroken).items():
        pd.testing.assert_frame_equal(records(tmp_path)[name], frame)


@pytest.mark.slow
def test_further_runs_start_from_the_base_that_the_records_ship(tiny, unbroken, tmp_path):
    folder = tmp_path / "clone"
    shutil.copytree(unbroken, folder, ignore=shutil.ignore_patterns("scratch"))
    shipped = read_json(folder / "bases" / "a" / "base.json")
    base = next(cell for cell in sweep.plan(load_profile(tiny)) if cell.kind == "base")
    assert shipped["digest"] == base.digest
    more = load_profile(tiny, {"rl.runs": 2})
    sweep.run_sweep(more, folder, workers=1, progress=False)
    logs = {path.stem for path in (folder / "scratch" / "logs").iterdir()}
    assert "a__base" not in logs
    assert {"a__base__rl1", "a__random-16x2__rl1", "a__shortest-16x1__rl1"} <= logs
    counts = read_parquet(folder / "counts.parquet")
    old = read_parquet(unbroken / "counts.parquet")
    again = counts[counts["cell"].isin(set(old["cell"]) - {"a/random-16x2", "a/shortest-16x1"})]
    pd.testing.assert_frame_equal(
        again.reset_index(drop=True), old[old["cell"].isin(set(again["cell"]))].reset_index(drop=True)
    )


def test_leftovers_of_other_parameters_are_not_used(tiny, unbroken, tmp_path):
    """With another SFT rate the base stays, the candidates and their RL are made anew: as in a folder of their own."""
    changed = load_profile(tiny, {"sft.learning_rate": 0.005})
    for name in ("mixed", "own"):
        if name == "mixed":
            shutil.copytree(unbroken, tmp_path / name)
        profile = tmp_path / f"{name}.yaml"
        profile.write_text(tiny.read_text().replace("sft: {learning_rate: 0.001", "sft: {learning_rate: 0.005"))
        run(profile, tmp_path / name).check_returncode()
    assert load_profile(tmp_path / "own.yaml") == changed
    mixed, own, before = (records(folder) for folder in (tmp_path / "mixed", tmp_path / "own", unbroken))
    for name, frame in own.items():
        pd.testing.assert_frame_equal(mixed[name], frame, obj=name)
    assert not own["generalization_loss"].equals(before["generalization_loss"])


@pytest.mark.slow
def test_a_killed_sweep_ends_like_an_unbroken_one(tiny, unbroken, tmp_path):
    rng, kills = random.Random(0), 0
    for _ in range(8):
        process = subprocess.Popen(
            command(tiny, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(timeout=rng.uniform(4, 14))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)  # its workers must notice by themselves
            process.wait()
            kills += 1
            time.sleep(0.5)
        else:
            assert process.returncode == 0
            break
    else:
        run(tiny, tmp_path).check_returncode()
    assert kills >= 2
    for name, frame in records(unbroken).items():
        pd.testing.assert_frame_equal(records(tmp_path)[name], frame, obj=name)


def test_a_failing_cell_names_itself_its_log_and_the_way_on(tiny, tmp_path):
    blocked = tmp_path / "scratch" / "models"
    blocked.parent.mkdir()
    blocked.write_text("a file where the checkpoints should go")
    result = run(tiny, tmp_path)
    assert result.returncode == 1
    assert "cell a/base failed" in result.stderr
    again = re.search(r"Go on with: python -m (.*)", result.stderr)[1]
    assert again == shlex.join(command(tiny, tmp_path)[2:])
    log = tmp_path / "scratch" / "logs" / "a__base.log"
    assert str(log) in result.stderr
    assert "Traceback" in log.read_text()
    blocked.unlink()
    subprocess.run([sys.executable, "-m", *shlex.split(again)], check=True, capture_output=True)
    assert (tmp_path / "manifest.json").is_file()


def test_a_failed_sweep_leaves_no_worker_behind(tiny, tmp_path):
    """In a kernel the process lives on; workers that lived on with it would meet the next sweep at the same cell."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "models").write_text("a file where the checkpoints should go")
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with pytest.raises(sweep.SweepError, match="a/base"):
        sweep.run_sweep(load_profile(tiny), tmp_path, progress=False)
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    assert not [p for p in left if "spawn_main" in " ".join(p.cmdline())]
    with sweep.only_sweep(tmp_path):
        pass


@pytest.mark.parametrize("damage", ["gone", "torn"])
@pytest.mark.parametrize("name", ["counts.parquet", "cells.parquet", "candidates.parquet", "manifest.json"])
def test_lost_record_files_are_collected_again(tiny, unbroken, tmp_path, name, damage):
    folder = shutil.copytree(unbroken, tmp_path / "copy")
    if damage == "gone":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes((folder / name).read_bytes()[:50])
    sweep.run_sweep(load_profile(tiny), folder, progress=False)
    assert read_json(folder / "manifest.json")["cells_finished"] == 6
    for table, frame in records(unbroken).items():
        pd.testing.assert_frame_equal(records(folder)[table], frame, obj=table)


@pytest.mark.slow
def test_damaged_work_is_computed_again(tiny, unbroken, tmp_path):
    folder = shutil.copytree(unbroken, tmp_path / "copy")
    weights = folder / "scratch" / "models" / "a__base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (folder / "scratch" / "cells" / "a__random-16x2" / "counts.parquet").unlink()
    for name in ("counts.parquet", "manifest.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "scratch" / "models" / "a__random-16x2")
    run(tiny, folder).check_returncode()
    for table, frame in records(unbroken).items():
        pd.testing.assert_frame_equal(records(folder)[table], frame, obj=table)


def test_a_profile_does_not_pass_for_a_shipped_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(TINY.replace("name: tiny", "name: smoke"))
    with pytest.raises(ParameterError, match="name must be another"):
        load_profile(path)


def test_looking_at_finished_records_does_not_rewrite_them(tiny, unbroken):
    files = {p: p.read_bytes() for p in unbroken.iterdir() if p.is_file()}
    sweep.run_sweep(load_profile(tiny), unbroken, progress=False)
    assert {p: p.read_bytes() for p in unbroken.iterdir() if p.is_file()} == files


def test_two_sweeps_do_not_share_a_folder(tiny, tmp_path):
    with sweep.only_sweep(tmp_path):
        result = run(tiny, tmp_path)
    assert result.returncode == 2
    assert "another sweep is running" in result.stderr


@pytest.mark.parametrize("text", ["", "- a\n- b", "a: [1", "\tb: 1", "a: !!python/object:os.system x"])
def test_files_that_are_no_profile_are_refused(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ParameterError, match=r"x\.yaml"):
        load_profile(path, {"rl.steps": 3})


def test_bad_profiles_are_refused_before_anything_runs(tiny, tmp_path):
    for override, named in (
        ({"benchmarks": {"imo": 3}}, "imo"),
        ({"rl.rollouts": 1}, "rl.rollouts"),
        ({"evaluation.k": 9}, "evaluation.k"),
        ({"families": []}, "families"),
        ({"benchmarks": {"sums2": 0}}, "benchmarks.sums2"),
        ({"evaluation.engine": "llama.cpp"}, "engine"),
        ({"evaluation.template": "alpaca"}, "evaluation.template"),
        ({"rl.prompts_per_step": 9}, "rl_problems"),
        (in_family("candidates", [{"selection": "prettiest", "n_examples": 4}]), "selection"),
        (in_family("candidates", [{"selection": "random", "n_examples": 400}]), "n_examples"),
        (in_family("candidates", [{"selection": "random", "n_examples": 4, "source": "x"}]), "source 'x'"),
        (in_family("candidates", 2 * [{"selection": "random", "n_examples": 4}]), "occurs 2 times"),
        (in_family("rl_terms", [2, 99]), "rl_terms"),
        (in_family("sources", {"main": {"styles": ["prose"]}}), "sources.main.styles"),
        ({"digits": 9}, "digits"),
        ({"budgets": {"low": 5, "high": 3}}, "budgets"),
        (in_family("pretraining", {"architecture": "rnn"}), "architecture"),
        (in_family("pretraining", {"examples": 0}), "pretraining.examples"),
        (in_family("pretraining", {"slip": 2.0}), "pretraining.slip"),
        (in_family("candidates", [{"selection": "random", "n_examples": 4, "epochs": 0}]), "epochs"),
        (in_family("candidates", [{"selection": "random", "n_examples": 4, "learning_rate": 0}]), "learning_rate"),
        (in_family("candidates", [{"selection": "n_examples", "n_examples": 1}]), "shortest.longest"),
        (in_family("name", "../a"), "name"),
        ({"evaluation.grading_timeout": float("inf")}, "grading_timeout"),
        ({"sft.micro_batch_size": 0}, "micro_batch_size"),
    ):
        with pytest.raises(ParameterError, match=named):
            sweep.run_sweep(load_profile(tiny, override), tmp_path / "x")
    with pytest.raises(ParameterError, match="workers"):
        sweep.run_sweep(load_profile(tiny), tmp_path / "x", workers=0)
    assert not (tmp_path / "x").exists()
    assert Path(tiny).exists()
