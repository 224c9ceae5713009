"""The rungs of evidence: rank correlations and gains of predictors by set of candidates."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from example_records import make_records, write_records

from quagmire_utils.analysis import rungs


@pytest.fixture
def rows() -> pd.DataFrame:
    """Eight candidates that Pass@1 orders as RL does, the loss too, and Pass@k the other way round."""
    score = np.linspace(0.1, 0.8, 8)
    return pd.DataFrame({"pass1": score, "gen_loss": 1 - score, "pass_k": 1 - score, "outcome": score**2})


def test_predictors_are_judged_in_the_direction_that_is_expected_of_them(rows):
    drawn = rungs.judge(rows, resamples=50)
    assert drawn["rank"].iloc[0].tolist() == [1, 1, -1]
    assert drawn["gain"].iloc[0].tolist() == [0, 0, -2]
    assert rungs.gain({"a": drawn, "b": drawn}, "pass_k") == ("-2.00 [-2.00 to -2.00] (2 sets)", "worse")
    assert rungs.gain({"a": drawn}, "gen_loss")[1] == "undecided"


def test_a_predictor_that_few_candidates_have_is_compared_on_these(rows):
    drawn = rungs.judge(rows.assign(gen_loss=rows["gen_loss"].where(rows.index < 5), pass_k=np.nan), resamples=50)
    assert drawn["rank"].iloc[0].tolist()[:2] == [1, 1]
    assert drawn["rank", "pass_k"].isna().all()
    assert rungs.gain({"a": drawn}, "pass_k") == ("not measured", "undecided")


def test_sets_of_records(tmp_path):
    assert rungs.measured_frame(tmp_path) is None
    assert rungs.measured_sets(None) == {}
    folder = write_records(tmp_path / "records", make_records(full=True))
    sets = rungs.measured_sets(rungs.measured_frame(folder))
    assert all(len(rows) >= rungs.FEWEST for rows in sets.values())
    assert all(rows["gen_loss"].isna().all() == name.endswith("instance level") for name, rows in sets.items())
    assert rungs.published_sets()
