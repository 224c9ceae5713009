"""One candidate retrained: it comes out to the last bit, and a record that was changed is found out."""

import dataclasses
import math
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from example_cells import run_sweep, tiny_profile, write_cell

from quagmire_utils import sweep
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_parquet, write_parquet
from quagmire_utils.core.records import load_records
from quagmire_utils.sweep.spot_check import choose, judge, run_spread

NAME = "a/random-16x2"
PROFILE = tiny_profile(rl={"runs": 2})


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """The records of a sweep whose numbers were drawn, so that there is noise to tell from change."""
    folder, rng = tmp_path_factory.mktemp("recorded"), np.random.default_rng(0)
    for cell in sweep.plan(PROFILE):
        write_cell(PROFILE, folder, cell, rng)
    sweep.collect(PROFILE, folder)
    return load_records(folder)


def judged(records, name=NAME, change=None):
    """`records` against the cells of the sweep that made them, as if they had been computed again."""
    changed = dataclasses.replace(records, **(change or {}))
    rl = next(cell for cell in sweep.plan(PROFILE) if cell.kind == "rl" and name in (cell.id, cell.needs.id))
    return judge(changed, rl, records.folder)


def elsewhere(records):
    """The records as another processor would have made them."""
    return {"cells": records.cells.assign(hardware="another processor")}


def test_every_sft_candidate_and_run_is_drawn(records):
    drawn = {choose(PROFILE, records, "").id for _ in range(90)}
    assert drawn == {cell.id for cell in sweep.plan(PROFILE) if cell.kind == "rl" and cell.needs.kind == "sft"}
    assert choose(PROFILE, records, f"{NAME}/rl1").id == f"{NAME}/rl1"
    assert {choose(PROFILE, records, NAME).id for _ in range(40)} == {f"{NAME}/rl0", f"{NAME}/rl1"}
    assert choose(PROFILE, records, "a/base").needs.id == "a/base"


def test_only_what_is_recorded_with_the_present_parameters_is_drawn(records):
    more = tiny_profile(rl={"runs": 3})
    assert all(choose(more, records, "").run < 2 for _ in range(20))
    other = tiny_profile(rl={"runs": 2}, sft={"learning_rate": 0.5})
    assert choose(other, records, "").needs.id == "a/base"  # what the change does not touch can still be checked
    for profile, name, said in (
        (more, f"{NAME}/rl2", "hold no RL run of it yet"),
        (other, NAME, "made with other parameters"),
        (PROFILE, "a/nothing", "a/random-16x2"),
    ):
        with pytest.raises(ParameterError, match=said) as raised:
            choose(profile, records, name)
        assert (raised.value.parameter, raised.value.value) == ("spot-check", name)


@pytest.mark.slow
def test_a_candidate_comes_out_again_to_the_last_bit_and_a_changed_record_is_found_out(tiny, unbroken, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(unbroken, folder, ignore=shutil.ignore_patterns("scratch"))  # the records are all that it needs

    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    answer = run_sweep(tiny, folder, "--spot-check", "random")
    assert answer.returncode == 0, answer.stderr
    assert re.search(r"Spot check of a/(random-16x2|shortest-16x1)/rl0 against", answer.stdout)
    equal = re.findall(r"(\w+): (\d+) of (\d+) rows bit-equal", answer.stdout)
    assert {table for table, rows, of in equal if rows == of != "0"} == set(sweep.TABLES)
    assert "\nStarts from the base model kept there\n" in answer.stdout
    assert "\nbit-equal: " in answer.stdout
    assert re.search(r"spot check: +\d+%", answer.stderr)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    # a base that was changed is not started from, and the right one, trained again, gives all rows but the changed one
    weights = folder / "bases" / "a" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    counts = read_parquet(folder / "counts.parquet")
    row = counts.index[counts["cell"] == f"{NAME}/rl0"][0]
    other = "no_answer" if counts.loc[row, "wrong"] else "wrong"
    held = next(name for name in ("wrong", "correct", "no_answer") if counts.loc[row, name])
    counts.loc[row, [held, other]] += [-1, 1]  # still as many verdicts as answers
    write_parquet(counts, folder / "counts.parquet")
    answer = run_sweep(tiny, folder, "--spot-check", f"{NAME}/rl0")
    assert answer.returncode == 1, answer.stderr
    assert "\nStarts from random weights\n" in answer.stdout
    equal = re.findall(r"(\w+): (\d+) of (\d+) rows bit-equal", answer.stdout)
    assert [(table, int(of) - int(rows)) for table, rows, of in equal if rows != of] == [("counts", 1)]
    assert "\ndiffers: on the processor and packages of the records" in answer.stdout


@pytest.mark.parametrize(
    ("table", "column"), [("counts", "mean_tokens"), ("generalization_loss", "nll"), ("rl_curves", "entropy")]
)
def test_the_last_bit_of_one_number_is_found(records, table, column):
    frame = getattr(records, table).copy()
    row = frame.index[frame["cell"].str.startswith(NAME)][0]
    frame.loc[row, column] = np.nextafter(frame.loc[row, column], np.inf)
    outcome = judged(records, f"{NAME}/rl0", {table: frame})
    equal, rows = outcome.rows[table]
    assert (rows - equal, outcome.verdict) == (1, "differs")
    assert judged(records).verdict == judged(records, NAME, elsewhere(records)).verdict == "bit-equal"
    # another processor may round otherwise
    assert judged(records, f"{NAME}/rl0", {table: frame, **elsewhere(records)}).verdict == "within noise"


def test_elsewhere_a_difference_beyond_three_standard_errors_is_no_noise(records):
    """The allowance is recomputed here from its definition, and a shift on either side of it gets its verdict."""
    spread = run_spread(records)
    noise = judged(records, f"{NAME}/rl0", elsewhere(records)).quantities.set_index("quantity")
    counts = records.counts[records.counts["cell"] == NAME]
    share = counts["correct"] / counts["n"]
    benchmarks = (share * (1 - share) / (counts["n"] - 1)).groupby(counts["benchmark"])
    variance = (benchmarks.sum() / benchmarks.count() ** 2).sum() / benchmarks.ngroups**2
    before = noise.loc["Pass@1 before RL"]
    assert before["noise"] == pytest.approx(3 * math.sqrt(2 * variance + 2 * spread**2))
    assert before["recorded"] == pytest.approx(share.groupby(counts["benchmark"]).mean().mean())
    name = "generalization loss (validation)"
    for factor, verdict in ((0.9, "within noise"), (1.1, "differs")):
        frame = records.generalization_loss.copy()
        mine = (frame["cell"] == NAME) & (frame["validation_set"] == "validation")
        frame.loc[mine, "nll"] += factor * noise.loc[name, "noise"]
        change = {"generalization_loss": frame, **elsewhere(records)}
        assert judged(records, f"{NAME}/rl0", change).verdict == verdict


def test_the_spread_of_runs_is_pooled_over_candidates(records):
    """Of two candidates with three and two runs: the mean of their variances, weighted by degrees of freedom."""
    shares = {"x": [0.1, 0.2, 0.6], "y": [0.5, 0.7], "z": [0.9]}
    rows = [("a", name, run, round(100 * value)) for name, values in shares.items() for run, value in enumerate(values)]
    counts = pd.DataFrame(rows, columns=["family", "candidate", "rl_run", "correct"])
    counts = counts.assign(stage="rl", checkpoint=4, benchmark="sums2", problem="p", n=100)
    pooled = math.sqrt((2 * np.var(shares["x"], ddof=1) + np.var(shares["y"], ddof=1)) / 3)
    assert run_spread(dataclasses.replace(records, counts=counts)) == pytest.approx(pooled)
    assert math.isnan(run_spread(dataclasses.replace(records, counts=counts[counts["candidate"] == "z"])))
