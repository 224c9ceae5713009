"""What the records say of a candidate, against frames whose answer is known."""

import math
from dataclasses import replace

import numpy as np
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


@pytest.mark.parametrize(("given", "expected"), [(None, 4), ((4, 4), 4), ((2, 4), 2)])
def test_the_outcome_is_the_best_checkpoint_over_the_runs_that_all_candidates_have(records, given, expected):
    """given: the runs that are planned for all others and for one candidate."""
    candidates = records.candidates
    name = candidates["candidate"].iloc[3]
    if given:
        candidates = candidates.assign(rl_runs=np.where(candidates["candidate"] == name, given[1], given[0]))
    frame = candidate_frame(replace(records, candidates=candidates), k=16).set_index("candidate")
    assert (frame["n_runs"] == expected).all()
    mine = records.counts.query("candidate == @name and stage == 'rl' and rl_run < @expected")
    shares = (mine["correct"] / mine["n"]).groupby([mine["rl_run"], mine["checkpoint"], mine["benchmark"]]).mean()
    scores = shares.groupby(level=[0, 1]).mean()
    last = scores.groupby("rl_run").last()
    found = frame.loc[name, ["outcome", "outcome_last", "outcome_last_std"]].tolist()
    assert found == pytest.approx([scores.max(), last.mean(), last.std()], abs=1e-12)


@pytest.fixture
def complete(tmp_path):
    frames = make_records()
    frames["candidates"]["rl_runs"] = 2
    folder = write_records(tmp_path / "whole", frames)
    manifest = read_json(folder / "manifest.json")
    write_json({**manifest, "complete": True}, folder / "manifest.json")
    load_records(folder)
    return folder


def changed(folder, table, change):
    write_parquet(change(read_parquet(folder / f"{table}.parquet")), folder / f"{table}.parquet")


@pytest.mark.parametrize("file", [*(f"{name}.parquet" for name in RECORDS), "manifest.json"])
def test_a_damaged_file_is_named_with_what_restores_it(complete, file, refused):
    path = complete / file
    path.write_bytes(path.read_bytes()[:40])
    with refused(str(path)) as error:
        load_records(complete)
    assert f"`git checkout {complete}`" in error.value.reason
    assert "--fresh" in error.value.reason


def test_missing_or_empty_records(tmp_path, records):
    frames = {name: getattr(records, name) for name in RECORDS}
    empty = write_records(tmp_path / "empty", {**frames, "counts": records.counts.iloc[:0]})
    bare = write_records(tmp_path / "bare", frames)
    (bare / "manifest.json").unlink()
    odd = write_records(tmp_path / "odd", frames)
    (odd / "manifest.json").write_text('{"complete": true}')
    for folder, said in (
        (tmp_path / "mini", r"candidates.parquet is missing.* --profile mini --only run_sweep"),
        (empty, "no checkpoint"),
        (bare, r"manifest\.json is missing"),
        (odd, r"manifest\.json"),
    ):
        with pytest.raises(ParameterError, match=said):
            load_records(folder)


@pytest.mark.parametrize("table", RECORDS)
def test_repeated_rows_are_refused(complete, table):
    changed(complete, table, lambda frame: pd.concat([frame, frame.iloc[[5, 6]]]))
    with pytest.raises(ParameterError, match=rf"{table}\.parquet.*2 row\(s\) too many"):
        load_records(complete)


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("generalization_loss", "nll", "high"),
        ("generalization_loss", "standard_error", math.inf),
        ("candidates", "scenario", "datset"),
        ("candidates", "epochs", math.nan),
        ("counts", "correct", math.nan),
    ],
)
def test_a_bad_column_is_named_with_its_file(complete, table, column, value):
    def damage(frame):
        frame[column] = frame[column].astype(object)
        frame.loc[4, column] = value
        return frame.assign(**{column: frame[column].map(str) if value == "high" else frame[column].convert_dtypes()})

    for change in (damage, lambda frame: frame.drop(columns=column)):
        changed(complete, table, change)
        with pytest.raises(ParameterError, match=rf"{table}\.parquet.*{column}"):
            load_records(complete)


def test_verdicts_add_up_to_the_answers(complete):
    changed(complete, "counts", lambda frame: frame.assign(wrong=frame["wrong"] + (frame.index == 7)))
    with pytest.raises(ParameterError, match="verdicts for 65 of 64 answers"):
        load_records(complete)


def test_a_frame_needs_k_answers_to_the_same_problems_and_has_known_families(records, refused):
    with refused("k"):
        candidate_frame(records, k=65)
    for counts in (records.counts.drop(index=100), records.counts.drop(columns="correct")):
        with refused("counts"):
            candidate_frame(replace(records, counts=counts))
    frame = candidate_frame(records, k=16)
    for family, scenario, parameter in (("micro-llama", "foo", "scenario"), ("all", "dataset", "family")):
        with refused(parameter):
            select_candidates(frame, family, scenario)
    assert select_candidates(frame, "Qwen3-4B-base").empty
