"""What the records say of a candidate, against frames whose answer is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from example_records import make_records, write_records

from quagmire_utils.records import candidate_frame, load_records


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
