"""What the records say of a candidate, against frames whose answer is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
from example_records import make_records, write_records

from quagmire_utils.analysis.candidates import candidate_frame, select_candidates
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json, read_parquet, write_json, write_parquet
from quagmire_utils.core.records import RECORDS, load_records


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


def refusal(folder):
    with pytest.raises(ParameterError) as caught:
        load_records(folder)
    return caught.value


@pytest.mark.parametrize("file", [*(f"{name}.parquet" for name in RECORDS), "manifest.json"])
def test_a_damaged_file_is_named_with_what_restores_it(complete, file):
    path = complete / file
    path.write_bytes(path.read_bytes()[:40])
    error = refusal(complete)
    assert error.parameter == str(path)
    assert f"`git checkout {complete}`" in error.reason
    assert "--fresh" in error.reason
    assert "\n" not in str(error)


@pytest.mark.parametrize("text", ["[]", '{"complete": true}'])
def test_a_manifest_needs_a_configuration(complete, text):
    (complete / "manifest.json").write_text(text)
    assert refusal(complete).parameter.endswith("manifest.json")


def test_missing_or_empty_records(tmp_path, records):
    error = refusal(tmp_path / "mini")
    assert "candidates.parquet is missing" in error.reason
    assert "--profile mini --only run_sweep" in error.reason
    frames = {name: getattr(records, name) for name in RECORDS}
    empty = write_records(tmp_path / "empty", {**frames, "counts": records.counts.iloc[:0]})
    assert "no checkpoint" in refusal(empty).reason
    (empty / "manifest.json").unlink()
    assert "manifest.json is missing" in refusal(empty).reason


@pytest.mark.parametrize("table", RECORDS)
def test_repeated_rows_are_refused(complete, table):
    changed(complete, table, lambda frame: pd.concat([frame, frame.iloc[[5, 6]]]))
    error = refusal(complete)
    assert error.parameter.endswith(f"{table}.parquet")
    assert "2 row(s) too many" in error.reason


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("generalization_loss", "nll", "high"),
        ("generalization_loss", "nll", math.inf),
        ("generalization_loss", "standard_error", math.inf),
        ("candidates", "scenario", None),
        ("candidates", "scenario", "datset"),
        ("candidates", "epochs", math.nan),
        ("counts", "correct", math.nan),
        ("counts", "candidate", None),
    ],
)
def test_a_bad_column_is_named_with_its_file(complete, table, column, value):
    def damage(frame):
        frame[column] = frame[column].astype(object)
        frame.loc[4, column] = value
        return frame.assign(**{column: frame[column].map(str) if value == "high" else frame[column].convert_dtypes()})

    changed(complete, table, damage)
    for change in (None, lambda frame: frame.drop(columns=column)):
        if change:
            changed(complete, table, change)
        error = refusal(complete)
        assert error.parameter.endswith(f"{table}.parquet")
        assert column in error.reason


def test_verdicts_add_up_to_the_answers(complete):
    changed(complete, "counts", lambda frame: frame.assign(wrong=frame["wrong"] + (frame.index == 7)))
    assert "verdicts for 65 of 64 answers" in refusal(complete).reason


# --- frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["candidates", "generalization_loss", "counts"])
def test_a_frame_is_not_made_of_repeated_rows(records, table):
    frame = getattr(records, table)
    with pytest.raises(ParameterError) as caught:
        candidate_frame(replace(records, **{table: pd.concat([frame, frame.iloc[[3]]])}), k=16)
    assert caught.value.parameter == table


def test_a_frame_needs_k_answers_to_the_same_problems(records):
    with pytest.raises(ParameterError) as caught:
        candidate_frame(records, k=65)
    assert (caught.value.parameter, caught.value.value) == ("k", 65)
    for counts in (records.counts.drop(index=100), records.counts.drop(columns="correct")):
        with pytest.raises(ParameterError) as caught:
            candidate_frame(replace(records, counts=counts))
        assert caught.value.parameter == "counts"


def test_an_unknown_scenario_or_family_is_refused(records):
    frame = candidate_frame(records, k=16)
    for family, scenario, parameter in (("micro-llama", "foo", "scenario"), ("all", "dataset", "family")):
        with pytest.raises(ParameterError) as caught:
            select_candidates(frame, family, scenario)
        assert caught.value.parameter == parameter
    assert select_candidates(frame, "Qwen3-4B-base").empty
