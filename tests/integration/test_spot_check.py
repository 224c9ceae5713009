"""One candidate retrained: it comes out to the last bit, and a record that was changed is found out."""

import dataclasses
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from example_cells import write_cell
from test_sweep import TINY

from quagmire_utils import sweep
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_parquet, write_parquet
from quagmire_utils.core.records import load_records
from quagmire_utils.core.settings import load_profile
from quagmire_utils.sweep import spot_check as module
from quagmire_utils.sweep.spot_check import Quantity, choose, equal_rows, judge, run_spread

NAME = "a/random-16x2"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "tiny.yaml"
    path.write_text(TINY.replace("runs: 1", "runs: 2"))
    return path


@pytest.fixture(scope="module")
def recorded(tiny, tmp_path_factory):
    """The records of a sweep whose numbers were drawn, so that there is noise to tell from change."""
    folder = tmp_path_factory.mktemp("recorded")
    profile, rng = load_profile(tiny), np.random.default_rng(0)
    for cell in sweep.plan(profile):
        write_cell(profile, folder, cell, rng)
    sweep.collect(profile, folder)
    return folder


@pytest.fixture
def records(recorded):
    return load_records(recorded)


def judged(tiny, records, name=NAME, change=None):
    """`records` against the cells of the sweep that made them, as if they had been computed again."""
    profile = load_profile(tiny)
    chosen = choose(profile, records, name, 0)
    changed = records if change is None else dataclasses.replace(records, **change)
    return judge(changed, chosen, records.folder, profile.evaluation.k)


def elsewhere(records):
    """The records as another processor would have made them."""
    return {"cells": records.cells.assign(hardware="another processor")}


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_every_sft_candidate_and_run_is_drawn_and_a_seed_repeats_its_draw(tiny, records):
    profile = load_profile(tiny)
    drawn = {choose(profile, records, "", seed).rl.id for seed in range(60)}
    assert drawn == {cell.id for cell in sweep.plan(profile) if cell.kind == "rl" and cell.needs != "a/base"}
    assert choose(profile, records, "", 7) == choose(profile, records, "", 7)
    chosen = choose(profile, records, f"{NAME}/rl1", 0)
    assert (chosen.base.id, chosen.start.id, chosen.rl.id) == ("a/base", NAME, f"{NAME}/rl1")
    assert {choose(profile, records, NAME, seed).rl.id for seed in range(20)} == {f"{NAME}/rl0", f"{NAME}/rl1"}
    base = choose(profile, records, "a/base", 0)
    assert base.start == base.base


def test_only_what_is_recorded_with_the_present_parameters_is_drawn(tiny, records):
    more = load_profile(tiny, {"rl.runs": 3})
    assert all(choose(more, records, "", seed).rl.run < 2 for seed in range(20))
    with pytest.raises(ParameterError, match=r"hold no RL run 2 of a/random-16x2 that went through RL yet"):
        choose(more, records, f"{NAME}/rl2", 0)
    with pytest.raises(ParameterError, match="made with other parameters than profile tiny has now"):
        choose(load_profile(tiny, {"sft.learning_rate": 0.5}), records, NAME, 0)
    # what the change does not touch can still be checked
    assert choose(load_profile(tiny, {"sft.learning_rate": 0.5}), records, "", 0).start.id == "a/base"
    with pytest.raises(ParameterError, match=r"there is no 'a/nothing' in profile tiny; .* for example a/random-16x2"):
        choose(load_profile(tiny), records, "a/nothing", 0)


def test_no_records_is_one_sentence_with_the_command_that_makes_them(tiny, tmp_path):
    command = [sys.executable, "-m", "quagmire_utils", "sweep", str(tiny), "--results", str(tmp_path), "--spot-check"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert "no complete records" in answer.stderr
    assert "--only run_sweep` makes them" in answer.stderr


def test_an_interrupt_is_one_word_and_leaves_no_process(tiny, recorded):
    command = [sys.executable, "-m", "quagmire_utils", "sweep", str(tiny), "--results", str(recorded), "--spot-check"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in process.stdout:
        if line.startswith("Starts from"):
            break
    me = psutil.Process(process.pid)
    while not (workers := [p for p in me.children() if "spawn_main" in " ".join(p.cmdline())]):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does: all of its processes
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert said.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in said
    assert not psutil.wait_procs(workers, timeout=20)[1]


# --- the check itself -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_candidate_comes_out_again_to_the_last_bit_and_a_changed_record_is_found_out(tiny, tmp_path):
    folder = tmp_path / "results"
    command = [sys.executable, "-m", "quagmire_utils", "sweep", str(tiny), "--results", str(folder)]
    subprocess.run(command, capture_output=True, check=True)
    shutil.rmtree(folder / "scratch")  # the records are all that it needs
    command.append("--spot-check")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    answer = subprocess.run([*command, "--seed", "3"], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    start = choose(load_profile(tiny), load_records(folder), "", 3).rl.id
    assert f"Spot check of {start} (seed 3)" in answer.stdout
    for table in sweep.TABLES:
        equal, rows = re.search(rf"{table}: (\d+) of (\d+) rows bit-equal", answer.stdout).groups()
        assert int(equal) == int(rows) > 0
    assert "\nStarts from the base model kept there\n" in answer.stdout
    assert "\nbit-equal: " in answer.stdout
    assert re.search(r"spot check: +\d+%.*about .* left", answer.stderr)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    # a base that was changed is not started from, and the right one, trained from nothing, gives the same again
    weights = folder / "bases" / "a" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    answer = subprocess.run([*command, NAME, "--seed", "3"], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "\nStarts from nothing\n" in answer.stdout
    assert "\nbit-equal: " in answer.stdout

    counts = read_parquet(folder / "counts.parquet")
    row = counts.index[counts["cell"] == f"{NAME}/rl1"][0]
    other = "no_answer" if counts.loc[row, "wrong"] else "wrong"
    held = next(name for name in ("wrong", "correct", "no_answer") if counts.loc[row, name])
    counts.loc[row, [held, other]] += [-1, 1]  # still as many verdicts as answers
    write_parquet(counts, folder / "counts.parquet")
    answer = subprocess.run([*command, f"{NAME}/rl1"], capture_output=True, text=True, check=False)
    assert answer.returncode == 1, answer.stderr
    assert re.search(r"counts: 11 of 12 rows bit-equal", answer.stdout)
    assert "\ndiffers: on the same processor and packages" in answer.stdout


@pytest.mark.parametrize("name", ["a/base", NAME, "a/shortest-16x1"])
def test_a_record_is_bit_equal_to_itself_wherever_it_was_made(tiny, records, name):
    here, other = judged(tiny, records, name), judged(tiny, records, name, elsewhere(records))
    assert (here.verdict, here.same_machine) == ("bit-equal", True)
    assert (other.verdict, other.same_machine) == ("bit-equal", False)
    assert all(quantity.difference == 0 for quantity in here.quantities)
    assert here.rows["counts"] == (12, 12)  # 4 problems before RL, and at 2 checkpoints
    assert here.rows["rl_curves"] == (2, 2)


@pytest.mark.parametrize(
    ("table", "column"), [("counts", "mean_tokens"), ("generalization_loss", "nll"), ("rl_curves", "entropy")]
)
def test_the_last_bit_of_one_number_is_found(tiny, records, table, column):
    frame = getattr(records, table).copy()
    row = frame.index[frame["cell"].str.startswith(NAME)][0]
    frame.loc[row, column] = np.nextafter(frame.loc[row, column], np.inf)
    outcome = judged(tiny, records, f"{NAME}/rl0", {table: frame})
    equal, rows = outcome.rows[table]
    assert (rows - equal, outcome.verdict) == (1, "differs")
    # another processor may round otherwise
    assert judged(tiny, records, f"{NAME}/rl0", {table: frame, **elsewhere(records)}).verdict == "within noise"


def test_rows_that_one_side_lacks_are_differences():
    left = pd.DataFrame({"cell": "x", "step": [1, 2], "reward": [0.5, np.nan], "seconds": [1.0, 2.0]})
    right = left.assign(cell="y", seconds=9.0)
    assert equal_rows(left, right, ["step"]) == (2, 2)
    assert equal_rows(left, right.iloc[:1], ["step"]) == (1, 2)
    assert equal_rows(left.iloc[:1], right, ["step"]) == (1, 2)
    assert equal_rows(left, right.assign(reward=[0.5, 0.1]), ["step"]) == (1, 2)


def test_elsewhere_a_difference_beyond_three_standard_errors_is_no_noise(tiny, records):
    """The allowance is recomputed here from its definition, and a shift on either side of it gets its verdict."""
    counts = records.counts
    spread, reward_spread = run_spread(records)
    outcome = judged(tiny, records, f"{NAME}/rl0", elsewhere(records))
    before = next(quantity for quantity in outcome.quantities if quantity.name == "Pass@1 before RL")
    mine = counts[(counts["cell"] == NAME)]
    share = mine["correct"] / mine["n"]
    per_problem = share * (1 - share) / (mine["n"] - 1)
    benchmarks = per_problem.groupby(mine["benchmark"])
    variance = (benchmarks.sum() / benchmarks.count() ** 2).sum() / benchmarks.ngroups**2
    assert before.allowed == pytest.approx(3 * math.sqrt(2 * variance + 2 * spread**2))
    assert before.recorded == pytest.approx(share.groupby(mine["benchmark"]).mean().mean())
    for factor, verdict in ((0.9, "within noise"), (1.1, "differs")):
        for name, table, column, allowed in (
            ("generalization loss (validation)", "generalization_loss", "nll", None),
            ("mean reward in RL", "rl_curves", "reward", 3 * math.sqrt(2) * reward_spread),
        ):
            limit = next(quantity for quantity in outcome.quantities if quantity.name == name).allowed
            assert allowed is None or limit == pytest.approx(allowed)
            frame = getattr(records, table).copy()
            mine = frame["cell"].isin([NAME, f"{NAME}/rl0"])
            if table == "generalization_loss":
                mine &= frame["validation_set"] == "validation"
            frame.loc[mine, column] += factor * limit
            changed = {table: frame, **elsewhere(records)}
            # a shifted reward changes the spread of the runs too: judge by the spread of the records as they were
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, "run_spread", lambda _: (spread, reward_spread))
                assert judged(tiny, records, f"{NAME}/rl0", changed).verdict == verdict, (name, factor)


def test_the_spread_of_runs_is_pooled_over_candidates(records):
    """Of two candidates with three and two runs: the mean of their variances, weighted by degrees of freedom."""
    rewards = {"x": [0.1, 0.2, 0.6], "y": [0.5, 0.7], "z": [0.9]}
    rows = [("a", name, run, value) for name, values in rewards.items() for run, value in enumerate(values)]
    curves = pd.DataFrame(rows, columns=["family", "candidate", "rl_run", "reward"])
    counts = curves.assign(stage="rl", checkpoint=4, benchmark="sums2", problem="p", n=100)
    counts["correct"] = (100 * counts["reward"]).round().astype(int)
    pooled = math.sqrt((2 * np.var(rewards["x"], ddof=1) + np.var(rewards["y"], ddof=1)) / 3)
    assert run_spread(dataclasses.replace(records, counts=counts, rl_curves=curves)) == pytest.approx((pooled, pooled))
    single = curves[curves["candidate"] == "z"]
    assert run_spread(dataclasses.replace(records, counts=counts[counts["candidate"] == "z"], rl_curves=single)) == (
        None,
        None,
    )


def test_what_is_missing_on_one_side_is_no_noise():
    assert not Quantity("x", math.nan, 0.5, 0.1).is_noise
    assert Quantity("x", math.nan, math.nan, 0.1).is_noise
    assert Quantity("x", 0.5, 0.9).is_noise  # shown, not judged


def test_records_without_rows_of_the_candidate_are_refused(tiny, records):
    counts = records.counts[~records.counts["cell"].str.startswith(NAME)]
    with pytest.raises(ParameterError, match=r"counts\.parquet in .* has no rows of a/random-16x2"):
        judged(tiny, records, NAME, {"counts": counts})


@pytest.mark.parametrize(
    "arguments",
    ["--spot-check --fresh", "--spot-check a/b --only fig03", "--only fig03 --spot-check=a/b", "--spot-check -p k=1"],
)
def test_what_does_not_go_with_a_spot_check_is_refused_before_anything_is_set_up(arguments):
    script = Path(__file__).parents[2] / "reproduce.sh"
    answer = subprocess.run([script, *arguments.split()], capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert answer.stderr == "reproduce.sh: --spot-check executes no notebook: it goes with --profile only\n"
