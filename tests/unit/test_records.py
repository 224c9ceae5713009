"""What the records say of a candidate, against frames whose answer is known."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pandas as pd
import pytest
from example_records import make_records, write_records

from quagmire_utils.analysis.records import RECORDS, candidate_frame, load_records, select_candidates
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json, read_parquet, write_json, write_parquet


@pytest.fixture
def records(tmp_path):
    return load_records(write_records(tmp_path / "records", make_records(runs=4)))


def _score(counts):
    return (counts["correct"] / counts["n"]).groupby(counts["benchmark"]).mean().mean()


def test_the_outcome_is_the_best_checkpoint_over_the_runs_that_all_candidates_have(records):
    name = records.candidates["candidate"].iloc[3]
    mine = records.counts[(records.counts["candidate"] == name) & (records.counts["stage"] == "rl")]
    scores = mine.groupby(["rl_run", "checkpoint"]).apply(_score, include_groups=False)
    for given, expected in ((None, 4), ([4, 4], 4), ([2, 4], 2)):
        candidates = records.candidates
        if given:
            runs = [given[1] if c == name else given[0] for c in candidates["candidate"]]
            candidates = candidates.assign(rl_runs=runs)
        frame = candidate_frame(replace(records, candidates=candidates), k=16).set_index("candidate")
        assert (frame["n_runs"] == expected).all()
        counted = scores[scores.index.get_level_values("rl_run") < expected]
        last = counted.groupby("rl_run").last()
        assert math.isclose(frame.loc[name, "outcome"], counted.max(), abs_tol=1e-12)
        assert math.isclose(frame.loc[name, "outcome_last"], last.mean(), abs_tol=1e-12)
        assert math.isclose(frame.loc[name, "outcome_last_std"], last.std(), abs_tol=1e-12)


# --- records that are not what a sweep leaves -------------------------------------------------------------------------


@pytest.fixture
def complete(tmp_path):
    """Records whose manifest says that they are complete."""
    frames = make_records()
    frames["candidates"]["rl_runs"] = 2
    folder = write_records(tmp_path / "whole", frames)
    manifest = read_json(folder / "manifest.json")
    write_json({**manifest, "complete": True}, folder / "manifest.json")
    load_records(folder)
    return folder


def changed(folder, table, change):
    write_parquet(change(read_parquet(folder / f"{table}.parquet")), folder / f"{table}.parquet")
    return folder


@pytest.mark.parametrize("file", [*(f"{name}.parquet" for name in RECORDS), "manifest.json"])
def test_a_damaged_file_is_one_sentence_that_names_it_and_what_brings_it_back(complete, file):
    path = complete / file
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ParameterError) as refused:
        load_records(complete)
    assert str(path) in str(refused.value)
    assert f"`git checkout {complete}`" in str(refused.value)
    assert "--fresh" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["[]", '{"complete": true}'])
def test_a_manifest_without_what_it_is_for_is_refused(complete, text):
    (complete / "manifest.json").write_text(text)
    with pytest.raises(ParameterError, match=r"manifest\.json (holds no JSON object|names no configuration)"):
        load_records(complete)


@pytest.mark.parametrize("table", ["candidates", "counts", "generalization_loss", "rl_curves", "cells"])
def test_rows_that_occur_twice_are_refused(complete, table):
    changed(complete, table, lambda frame: pd.concat([frame, frame.iloc[[5, 6]]]))
    with pytest.raises(ParameterError, match=rf"{table}\.parquet has .* more than once \(2 row\(s\) too many\)"):
        load_records(complete)


@pytest.mark.parametrize("table", ["candidates", "generalization_loss", "counts"])
def test_a_frame_is_not_made_of_rows_that_occur_twice(records, table):
    frame = getattr(records, table)
    with pytest.raises(ParameterError, match=f"{table} has .* more than once"):
        candidate_frame(replace(records, **{table: pd.concat([frame, frame.iloc[[3]]])}), k=16)


@pytest.mark.parametrize(
    ("table", "column", "value", "said"),
    [
        ("generalization_loss", "nll", "high", "must hold numbers, not"),
        ("generalization_loss", "nll", math.inf, "has inf in 1 row"),
        ("generalization_loss", "standard_error", math.inf, "has inf in 1 row"),
        ("candidates", "scenario", None, "has 1 row(s) without a value"),
        ("candidates", "scenario", "datset", "has 'datset', which is not of dataset"),
        ("candidates", "epochs", math.nan, "has nan in 1 row"),
        ("counts", "correct", math.nan, "has nan in 1 row"),
        ("counts", "candidate", None, "has 1 row(s) without a value"),
    ],
)
def test_a_damaged_column_is_one_sentence_that_names_file_and_column(complete, table, column, value, said):
    def damage(frame):
        frame[column] = frame[column].astype(object)
        frame.loc[4, column] = value
        return frame.assign(**{column: frame[column].map(str) if value == "high" else frame[column].convert_dtypes()})

    changed(complete, table, damage)
    with pytest.raises(ParameterError, match=rf"{table}\.parquet: column {column} {re.escape(said)}"):
        load_records(complete)
    changed(complete, table, lambda frame: frame.drop(columns=column))
    with pytest.raises(ParameterError, match=rf"{table}\.parquet lacks the column\(s\) {column}"):
        load_records(complete)


def test_verdicts_add_up_to_the_answers(complete):
    changed(complete, "counts", lambda frame: frame.assign(wrong=frame["wrong"] + (frame.index == 7)))
    with pytest.raises(
        ParameterError, match=r"counts\.parquet: the verdicts on problem .* add up to 65 and not to its"
    ):
        load_records(complete)


@pytest.mark.parametrize(
    ("table", "lost", "said"),
    [
        ("counts", lambda f: (f["candidate"] == "random-250x4") & (f["stage"] == "sft"), "no measurement of {} before"),
        ("counts", lambda f: (f["candidate"] == "random-250x4") & (f["rl_run"] == 1), "has 1 of the 2 RL runs of {}"),
        (
            "counts",
            lambda f: (f["candidate"] == "random-250x4") & (f["rl_run"] == 0) & (f["checkpoint"] == 12),
            "lacks checkpoints of an RL run of {}",
        ),
        ("generalization_loss", lambda f: f["candidate"] == "random-250x4", "generalization_loss.parquet has no loss"),
        ("candidates", lambda f: f["candidate"] == "random-250x4", "candidates.parquet lacks {}"),
        ("cells", lambda f: f["candidate"] == "random-250x4", "has 48 of 51 cells"),
    ],
)
def test_complete_records_lack_nothing(complete, table, lost, said):
    changed(complete, table, lambda frame: frame[~lost(frame)])
    with pytest.raises(ParameterError, match=re.escape(said.format("micro-llama/random-250x4"))):
        load_records(complete)
    manifest = read_json(complete / "manifest.json")  # while a sweep runs, what is missing is not there yet
    write_json({**manifest, "complete": False}, complete / "manifest.json")
    assert load_records(complete).profile == "example"


def test_a_scenario_or_family_that_nobody_knows_is_refused(records):
    frame = candidate_frame(records, k=16)
    with pytest.raises(ParameterError, match="scenario must be one of dataset, instance, source, not 'foo'"):
        select_candidates(frame, "micro-llama", "foo")
    with pytest.raises(ParameterError, match="family 'all' is not known; the records and the paper have micro-llama"):
        select_candidates(frame, "all")
    assert select_candidates(frame, "Qwen3-4B-base").empty
