"""Candidate frames and score tables, against exact fractions and plain loops over the raw records."""

import math

import pandas as pd
import pytest
from example_records import BENCHMARKS, macro_pass_at_k, second_route
from scipy import stats

from quagmire_utils.analysis.candidates import candidate_frame
from quagmire_utils.core.records import CHECKPOINT
from quagmire_utils.evaluation.measured import evaluation_table, show_evaluation
from quagmire_utils.evaluation.pass_at_k.averages import checkpoint_scores

CLOSE = {"rel": 0, "abs": 1e-9}


@pytest.mark.parametrize("k", [1, 7, 64])
def test_candidate_frame_against_exact_fractions(records, k):
    expected = second_route(records.folder, k).set_index("candidate")
    expected["gain"] = expected["outcome"] - expected["pass1"]
    ours = candidate_frame(records, k=k).set_index("candidate")
    assert len(ours) == len(expected) + 1  # the base model
    for column in ("pass1", "pass_k", "gen_loss", "outcome", "outcome_last", "gain"):
        assert ours.loc[expected.index, column].to_numpy() == pytest.approx(expected[column].to_numpy(), **CLOSE)


def test_standard_errors_of_checkpoint_scores(records):
    counts = records.counts[(records.counts["candidate"] == "random-250x4") & (records.counts["stage"] == "sft")]
    score = checkpoint_scores(counts, [1]).iloc[0]
    share = counts["correct"] / counts["n"]
    groups = [share[counts["benchmark"] == b] for b in BENCHMARKS]
    assert score["se@1"] == pytest.approx(math.sqrt(sum(stats.sem(g) ** 2 for g in groups)) / 3, **CLOSE)
    noise = [(g * (1 - g) / 63).sum() / len(g) ** 2 for g in groups]
    assert score["sampling_se"] == pytest.approx(math.sqrt(sum(noise)) / 3, **CLOSE)


@pytest.fixture(scope="module")
def counts(records):
    return records.counts[records.counts["stage"] == "base"].drop(columns=CHECKPOINT)


def test_evaluation_table(counts):
    table = evaluation_table(counts, [1, 16]).set_index("benchmark")
    assert list(table.index) == [*BENCHMARKS, "macro average"]
    assert table.loc["macro average", "pass@16"] == pytest.approx(macro_pass_at_k(counts, 16), **CLOSE)
    easy = counts[counts["benchmark"] == "easy"]
    assert table.loc["easy", "truncated"] == pytest.approx(easy["truncated"].sum() / easy["n"].sum(), **CLOSE)
    macro = table.loc[list(BENCHMARKS), "no_answer"].mean()
    assert table.loc["macro average", "no_answer"] == pytest.approx(macro, **CLOSE)
    assert (table["low@1"] <= table["pass@1"]).all()
    assert (table["high@1"] >= table["pass@1"]).all()
    assert table.loc["easy", "answers"] == 12 * 64
    text = show_evaluation(table.reset_index())
    assert text.loc["easy", "Pass@1 %"].startswith(f"{100 * table.loc['easy', 'pass@1']:.1f} ± ")


def test_undecided_answers_bound_the_score_and_votes_stand_beside_it():
    columns = {"n": 4, "wrong": 1, "no_answer": 0, "truncated": 2, "error": 0, "mean_tokens": 5.0}
    counts = pd.DataFrame(
        {"benchmark": "b", "problem": range(20), **columns, "correct": [2, 3] * 10, "timeout": [1, 0] * 10}
    )
    votes = pd.DataFrame({"benchmark": ["b", "macro average"], "k": 4, "maj_at_k": 0.75, "low": 0.6, "high": 0.9})
    table = evaluation_table(counts, [1, 4], votes=votes)
    assert table["pass@1"].tolist() == pytest.approx([50 / 80] * 2)
    assert table["if_right@1"].tolist() == pytest.approx([60 / 80] * 2)
    assert table["if_right@4"].tolist() == [1, 1]
    shown = show_evaluation(table)
    assert list(shown.index) == ["b"]  # of one benchmark, the macro average is that benchmark
    assert shown.loc["b", "Pass@1 if undecided were right %"] == "75.0"
    assert "Pass@4 if undecided were right %" not in shown  # it is 100 either way
    assert shown.loc["b", "maj@4 %"].startswith("75.0 [60.0,")
    assert shown.loc["b", "truncated %"] == "50.0"
    assert shown.loc["b", "timeout %"] == "12.5"
