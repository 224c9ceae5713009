"""Predictors of the outcome, against values by hand and against pandas on the shipped records."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from example_records import macro_pass_at_k
from notebook_cells import run_cells
from scipy import stats

from quagmire_utils.analysis import predictors
from quagmire_utils.analysis.candidates import candidate_frame, measured_frame
from quagmire_utils.analysis.predictors import PREDICTORS, bootstrap_scores, interval_text, intervals, regret


def right_of(n: int, correct: int, size: int, wanted) -> float:
    """The share of all sets of `size` answers whose number of right ones is wanted, counted one by one."""
    answers = [1] * correct + [0] * (n - correct)
    return float(np.mean([wanted(sum(chosen)) for chosen in combinations(answers, size)]))


def test_measures_of_one_problem(records):
    """Each predictor made from counts, by counting every choice of answers of a problem with 3 right of 16."""
    counts = records.counts.assign(n=16, correct=3, wrong=13, distinct_answers=5.0, chance_correct=1.0)
    found = predictors.average(predictors.measures(replace(records, counts=counts), k=4)).iloc[0]
    pass_k, chance = (right_of(16, c, 4, lambda right: right > 0) for c in (3, 1))
    truth = {"pass1": 3 / 16, "pass_k": pass_k, "headroom": pass_k - 3 / 16, "above_chance": pass_k - chance}
    truth |= {"solved": 1, "coverage": 0, "mean_logit": math.log(3.5 / 13.5), "distinct": 5, "early": 3 / 16}
    truth |= {"variance": right_of(16, 3, 2, lambda right: right == 1) / 2, "active": 1}
    for name, value in truth.items():
        assert found[name] == pytest.approx(value), name
    assert set(PREDICTORS) == {*truth, "gen_loss", "entropy"}


def test_measures_and_outcomes_of_records(records):
    """Averaged over problems, then benchmarks; NaN for what the records lack."""
    table, after = predictors.measures(records, 8), predictors.outcomes(records)
    frame = candidate_frame(records, 8).set_index(["family", "candidate"]).sort_index()
    mean, last = predictors.average(table).sort_index(), predictors.average(after)[24].sort_index()
    for found, name in ((mean["pass1"], "pass1"), (mean["gen_loss"], "gen_loss"), (last, "outcome_last")):
        pd.testing.assert_series_equal(found, frame[name], check_names=False)
    counts = records.counts.query("candidate == 'random-250x4' and stage == 'sft'")
    assert mean.loc[("micro-llama", "random-250x4"), "pass_k"] == pytest.approx(macro_pass_at_k(counts, 8))
    hard = counts.query("benchmark == 'hard'")
    assert table.loc[("micro-llama", "random-250x4", "hard"), "solved"] == np.mean(hard["correct"] > 0)
    assert mean[["above_chance", "distinct"]].isna().all(axis=None)
    assert (mean["entropy"] == 1).all()
    chosen = predictors.candidate_sets(frame.reset_index(), predictors.average(after))
    levels = ("micro-llama, dataset level", "micro-llama, instance level")
    assert {name: len(keys) for name, keys in chosen.items()} == dict.fromkeys(levels, 8)


def test_scores_are_scipys_and_take_the_expected_sign():
    rng = np.random.default_rng(0)
    outcome = rng.uniform(size=12)
    table = pd.DataFrame(
        {"pass1": outcome + rng.normal(size=12), "gen_loss": -outcome, "distinct": np.nan, "flat": 1.0}
    )
    draws = bootstrap_scores(table, outcome, resamples=400)
    assert draws.shape == (401, 12)
    first = draws.iloc[0]
    assert first["spearman", "pass1"] == pytest.approx(stats.spearmanr(table["pass1"], outcome).statistic)
    assert first["r2", "pass1"] == pytest.approx(stats.pearsonr(table["pass1"], outcome).statistic ** 2)
    assert first["regret", "pass1"] == pytest.approx(outcome.max() - outcome[table["pass1"].argmax()])
    assert first["spearman", "gen_loss"] == pytest.approx(1)  # a lower loss is expected to end better
    assert draws["regret", "gen_loss"].abs().max() < 1e-12
    assert first["regret", "flat"] == pytest.approx((outcome.max() - outcome).mean())
    assert draws.xs("distinct", level=1, axis=1).isna().all(axis=None)
    rows = np.random.default_rng(0).integers(12, size=(400, 12))
    again = stats.spearmanr(table["pass1"].to_numpy()[rows[7]], outcome[rows[7]]).statistic
    assert draws["spearman", "pass1"].iloc[8] == pytest.approx(again)


def test_intervals_are_percentiles_of_the_resamples():
    draws = pd.DataFrame({"one": [0.5, *np.linspace(0, 2, 1001)], "none": np.nan})
    assert intervals(draws).loc["one"].tolist() == pytest.approx([0.5, 0.05, 1.95])
    assert interval_text(draws["one"], sign="+") == "+0.50 [+0.05 to +1.95]"
    assert interval_text(draws["none"]) == "not measured"


def test_disagreements_counted_pair_by_pair():
    rng = np.random.default_rng(1)
    table = pd.DataFrame(rng.uniform(size=(9, 3)), columns=["pass1", "pass_k", "gen_loss"])
    outcome = rng.uniform(size=9)
    draws = predictors.disagreements(table, outcome, resamples=5, seed=3)
    rows = [np.arange(9), *np.random.default_rng(3).integers(9, size=(5, 9))]
    for row, drawn in zip(draws.itertuples(), rows, strict=True):
        pairs, right = 0, dict.fromkeys(table, 0)
        for i, j in combinations(drawn, 2):
            if (table["gen_loss"][i] - table["gen_loss"][j]) * (table["pass_k"][i] - table["pass_k"][j]) > 0:
                pairs += 1
                for name in table:
                    better = (table[name][i] > table[name][j]) != (name == "gen_loss")
                    right[name] += better == (outcome[i] > outcome[j])
        assert row.pairs == pairs
        assert {name: getattr(row, name) for name in table} == right
    assert (predictors.disagreements(table[:5], outcome[:5], resamples=2) == 0).all(axis=None)


@pytest.mark.parametrize(
    ("predicted", "outcome", "lost"),
    [
        ([1, 2, 3], [50.0, 60.0, 40.0], 20.0),
        ([1, 3, 2], [50.0, 60.0, 40.0], 0.0),
        ([3, 3, 2], [50.0, 60.0, 40.0], 5.0),  # the first two share the first rank
        ([0, 0, 0], [50.0, 60.0, 40.0], 10.0),  # a random choice
        ([2, 1, 1], [60.0, 60.0, 40.0], 0.0),
        ([[1, 2, 3], [3, 2, 1]], [50.0, 60.0, 40.0], [20.0, 10.0]),
        ([7], [50.0], 0.0),
    ],
)
def test_regret_is_the_best_outcome_minus_that_of_the_choice(predicted, outcome, lost):
    np.testing.assert_allclose(regret(predicted, outcome), lost)


def test_each_set_is_judged_on_the_candidates_that_have_the_predictor(first_world, tmp_path, monkeypatch):
    """The overview's rungs of evidence: rank correlations and gains of predictors by set of candidates."""
    monkeypatch.setenv("QUAGMIRE_OUTPUT", str(tmp_path))
    signs = {"pass1": 1, "gen_loss": -1, "pass_k": 1}
    found = run_cells("overview", resamples=50)
    for rung, sets in found["sets"].items():
        gained = {column: [] for column in signs}
        for name, rows in sets.items():
            for column, sign in signs.items():
                known = rows.dropna(subset=[column])
                if len(known) < 4:
                    assert np.isnan(found["each"][rung].loc[name, column])
                    continue
                rank, base = (stats.spearmanr(known[x], known["outcome"]).statistic for x in (column, "pass1"))
                assert found["each"][rung].loc[name, column] == pytest.approx(sign * rank)
                gained[column].append(sign * rank - base)
        for column, gains in gained.items():
            text = f"{np.mean(gains) + 0.0:+.2f} [" if gains else "not measured"
            assert found["gains"][rung, column].startswith(text)
            assert not gains or found["gains"][rung, column].split("(")[1].startswith(f"{len(gains)} set")
    assert measured_frame(tmp_path) is None
