"""Ranking and forecasting in practice: against closed forms, simulated worlds, and the shipped records."""

from __future__ import annotations

import html
import math
import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats

from quagmire_utils.analysis import advice, ranking
from quagmire_utils.analysis.fits import predict, spearman
from quagmire_utils.analysis.forecasting import (
    check_forecasts,
    choose_runs,
    compare_predictors,
    forecast,
    forecast_rl,
    known_runs,
    withheld_outcomes,
)
from quagmire_utils.analysis.measurements import Measurements, load_measurements, read_csv
from quagmire_utils.analysis.ranking import check_ranking, rank_candidates, rank_with_noise, regret
from quagmire_utils.analysis.records import candidate_frame
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.records import load_records
from quagmire_utils.evaluation import store
from quagmire_utils.evaluation.pass_at_k import benchmark_average, pass_at_k
from quagmire_utils.report.plots import practice

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "results" / "mini"


@pytest.fixture(scope="module")
def mini():
    if not (MINI / "manifest.json").is_file():
        pytest.skip(f"the records of the miniature study are not in {MINI}")
    return load_records(MINI)


def world(chances: np.ndarray, n: int, k: int, seed: int = 0, losses: float | np.ndarray = math.nan) -> Measurements:
    """Measurements of candidates (rows) whose chance of a correct answer to each problem (columns) is known."""
    random = np.random.default_rng(seed)
    names = [f"c{i}" for i in range(len(chances))]
    rows = [
        {"candidate": name, "benchmark": "one", "problem": f"p{j}", "n": n, "correct": int(random.binomial(n, p))}
        for name, mine in zip(names, chances, strict=True)
        for j, p in enumerate(mine)
    ]
    counts = pd.DataFrame(rows)
    scores = [benchmark_average(counts[counts["candidate"] == name], [1, k])["pass_at_k"].to_numpy() for name in names]
    table = pd.DataFrame(scores, columns=["pass1", "pass_k"]).assign(candidate=names, gen_loss=losses)
    return Measurements(table, counts, table, k, "a simulated world")


# --- the noise of Pass@k ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "later", "k"), [(8, 8, 3), (6, 6, 3), (8, 11, 4), (12, 40, 5)])
def test_sampling_noise_is_unbiased_at_any_number_of_answers(n, later, k):
    """Its expectation over all counts, exactly, is the variance that Pass@k, Pass@1 have with `later` answers."""
    p = Fraction(3, 7)

    def expectation(values, size):
        weights = [math.comb(size, c) * p**c * (1 - p) ** (size - c) for c in range(size + 1)]
        return sum(float(w) * v for w, v in zip(weights, values, strict=True))

    single = [ranking._sampling_parts(np.array([n]), np.array([c]), k) for c in range(n + 1)]
    noise = [
        ranking._Noise(np.zeros((2, 1)), np.zeros(1), np.zeros(1), np.zeros((2, 2)), k, n, part[None], np.array([n]))
        for part in single
    ]
    estimated = [one.sampling(later)[0] for one in noise]
    counts = np.arange(later + 1)
    first, large = pass_at_k(later, counts, 1), pass_at_k(later, counts, k)
    mean = [expectation(values, later) for values in (first, large)]
    truth = {
        (0, 0): expectation(first**2, later) - mean[0] ** 2,
        (0, 1): expectation(first * large, later) - mean[0] * mean[1],
        (1, 1): expectation(large**2, later) - mean[1] ** 2,
    }
    for (i, j), value in truth.items():
        assert expectation([one[i, j] for one in estimated], n) == pytest.approx(value, rel=1e-9)
        assert noise[0].sampling(math.inf)[0, i, j] == 0


def test_all_noise_is_the_standard_error_over_problems():
    random = np.random.default_rng(1)
    measured = world(random.beta(0.5, 1.5, (3, 60)), n=32, k=16)
    found = rank_with_noise(measured, n_draws=100).table.set_index("candidate")
    for name, mine in measured.counts.groupby("candidate"):
        error = benchmark_average(mine, [1, 16])["standard_error"]
        # what is left of the total may be negative in some direction, and is then taken as none: a little more noise
        assert found.loc[name, ["pass1_se", "pass_k_se"]].tolist() == pytest.approx(error.tolist(), rel=0.02)
        assert found.loc[name, "pass_k_sampling_se"] < found.loc[name, "pass_k_se"]


# --- chances and what would settle them -------------------------------------------------------------------------------


def given(values: list[tuple[float, float, float]], errors: tuple[float, float, float]) -> Measurements:
    table = pd.DataFrame(values, columns=["pass1", "gen_loss", "pass_k"])
    table = table.assign(candidate=[f"c{i}" for i in range(len(table))])
    table[["pass1_se", "gen_loss_se", "pass_k_se"]] = errors
    return Measurements(table, None, table, 64, "mine.csv")


def truly_better(z: float, less: float = 1.0) -> float:
    """Chance of the first of two, `z` standard errors of their difference ahead, to be better in truth: an integral
    over the spread of the truth, with its half-Cauchy prior. less: the error then, as a share of the present one."""

    def weight(spread: float) -> float:
        total = 1 + spread**2
        return math.exp(-(z**2) / 2 / total) / math.sqrt(total) / (1 + spread**2)

    def better(spread: float) -> float:
        mean = spread**2 / (1 + spread**2) * z
        return weight(spread) * stats.norm.cdf(mean / math.sqrt(spread**2 * less**2 / (spread**2 + less**2)))

    return integrate.quad(better, 0, math.inf)[0] / integrate.quad(weight, 0, math.inf)[0]


def test_chance_of_two_is_an_integral_over_their_spread():
    found = rank_with_noise(given([(0.3, 1.0, 0.62), (0.5, 1.2, 0.60)], (1e-9, 1e-9, 0.01)), n_draws=40_000)
    truth = truly_better(0.02 / (0.01 * math.sqrt(2)))
    assert 0.75 < truth < stats.norm.cdf(math.sqrt(2)) - 0.02, "less than without the shrinkage"
    assert found.table["chance"].tolist() == pytest.approx([truth, 1 - truth], abs=0.01)
    assert (found.leader, found.samples, found.samples_needed) == ("c0", None, None)
    assert "cannot be told from standard errors" in found.advice


def test_chance_of_being_ruled_out_is_a_product_of_two():
    """c1 is ruled out where its score is lower and its loss higher; where it is not, it wins by Pass@k."""
    found = rank_with_noise(given([(0.50, 1.00, 0.6), (0.49, 1.01, 0.9)], (0.01, 0.02, 1e-9)), n_draws=40_000)
    out = truly_better(0.01 / (0.01 * math.sqrt(2))) * truly_better(0.01 / (0.02 * math.sqrt(2)))
    table = found.table.set_index("candidate")
    assert table.loc["c1", "chance_ruled_out"] == pytest.approx(out, abs=0.01)
    assert table.loc["c1", "chance"] == pytest.approx(1 - out, abs=0.01)
    assert table.loc["c1", "ruled_out_by"] == "c0"
    assert found.leader == "c1"
    assert "would rank first" in found.advice


def test_answers_needed_are_those_of_the_closed_form():
    """Two candidates with the same chance p or q on every problem: only answers matter, and their noise is known."""
    p, q, n, k, problems = 0.10, 0.104, 64, 8, 400
    rng = np.random.default_rng(3)
    measured = world(np.array([[p] * problems, [q] * problems]), n, k, seed=6)
    found = rank_with_noise(measured, confidence=0.95, n_draws=40_000)
    table = found.table.set_index("candidate")
    gap = table["pass_k"].iloc[0] - table["pass_k"].iloc[1]

    def error(samples: int) -> float:
        draws = [pass_at_k(samples, rng.binomial(samples, r, 200_000), k) for r in (p, q)]
        return math.sqrt(sum(one.var() for one in draws) / problems)

    def chance(samples: int) -> float:
        return truly_better(gap / error(n), error(samples) / error(n))

    assert found.chance == table["chance"].iloc[0] > 0.5
    assert table["chance_here"].iloc[0] == pytest.approx(chance(n), abs=0.02)
    assert found.samples_needed_here > n, "otherwise this tests nothing"
    assert chance(found.samples_needed_here) == pytest.approx(0.95, abs=0.01)
    ends = found.curve.set_index("n")["chance_here"]
    assert ends.loc[math.inf] == 1
    assert ends.loc[128.0] == pytest.approx(chance(128), abs=0.02)


def test_chances_agree_with_a_bootstrap_over_problems():
    """All noise at once: resample problems, the same for all candidates, with the answers they got; then the model of
    the true differences by Bayes' rule on a grid, as it is written down, with whole matrices."""
    random = np.random.default_rng(5)
    ease = random.normal(-1.5, 1.5, 150)
    strength = np.array([0.0, 0.1, 0.25])
    measured = world(1 / (1 + np.exp(-(ease + strength[:, None] + 0.7 * random.normal(size=(3, 150))))), 64, 16, 6)
    found = rank_with_noise(measured, n_draws=20_000).table.set_index("candidate").loc[["c0", "c1", "c2"]]
    correct = measured.counts["correct"].to_numpy().reshape(3, 150)
    values = pass_at_k(np.full(450, 64), correct.ravel(), 16).reshape(3, 150)
    draws = values[:, random.integers(150, size=(4000, 150))].mean(axis=2)
    ahead = values.mean(axis=1)[:2] - values.mean(axis=1)[2]  # differences to the last
    noise = np.cov(draws[:2] - draws[2])
    unit = np.eye(2) + 1  # covariance of such differences of candidates whose true values have variance 1
    centred = draws - draws.mean(axis=0)
    typical = math.sqrt(np.trace(np.cov(centred)) / 2)
    taus = np.geomspace(typical / 50, typical * 200, 300)
    density = [
        stats.multivariate_normal.pdf(ahead, cov=t**2 * unit + noise) * t / (1 + (t / typical) ** 2) for t in taus
    ]
    chance = np.zeros(3)
    for tau, weight in zip(taus, np.array(density) / np.sum(density), strict=True):
        kept = tau**2 * unit @ np.linalg.inv(tau**2 * unit + noise)
        true = random.multivariate_normal(kept @ ahead, tau**2 * unit - kept @ unit * tau**2, 2000)
        best = np.concatenate([true, np.zeros((2000, 1))], axis=1).argmax(axis=1)
        chance += weight * np.bincount(best, minlength=3) / 2000
    assert found["chance"].tolist() == pytest.approx(chance.tolist(), abs=0.02)
    assert found["chance_here"].max() > found["chance"].max(), "problems are part of the noise"


def test_stated_chances_come_true():
    """Worlds with many problems of a kind: how often the leader is truly ahead, against the chance it was given."""
    stated, true, here = [], [], []
    for seed in range(120):
        random = np.random.default_rng(seed)
        strength = random.normal(0, 0.25, 3)  # about as far apart as the noise
        offset = 0.5 * random.normal(size=(3, 60))  # that a candidate is good at one problem and bad at another
        ease = random.normal(-2.0, 1.5, 60)
        chances = 1 / (1 + np.exp(-(ease + strength[:, None] + offset)))
        found = rank_with_noise(world(chances, 32, 16, seed), n_draws=400, seed=seed)
        stated.append(found.chance)
        true.append(np.argmax(strength) == int(found.leader[1:]))
        exact = (1 - (1 - chances) ** 16).mean(axis=1)  # on these problems, with endless answers
        by_name = found.table.set_index("candidate")["chance_here"]
        here.append((by_name.max(), by_name.index[by_name.argmax()] == f"c{exact.argmax()}"))
    assert np.mean(true) == pytest.approx(np.mean(stated), abs=0.1)  # two standard errors of 120 worlds: 0.09
    chance, came = np.array(here, dtype=float).T
    assert came.mean() == pytest.approx(chance.mean(), abs=0.1)


@pytest.mark.parametrize(
    ("chances", "losses", "limit"),
    [
        ([[0.0, 1.0] * 20, [1.0, 0.0] * 10 + [1.0, 1.0] * 10], None, "problems"),  # answers carry no noise at all
        ([[1.0] * 40, [1.0] * 40], None, "ties"),
        ([[0.5] * 39 + [0.9], [0.5] * 39 + [0.1]], (1.0, 1.001, 0.1), "traces"),
    ],
)
def test_what_limits_is_said(chances, losses, limit):
    measured = world(np.array(chances), 16, 4)
    if losses is not None:  # c1 has the lower score and by a hair the higher loss, and would win by Pass@4 otherwise
        table = measured.table.assign(gen_loss=losses[:2], gen_loss_se=losses[2], pass1=[0.9, 0.1], pass_k=[0.5, 0.9])
        measured = replace(measured, table=table)
    found = rank_with_noise(measured)
    assert (found.samples_needed, found.limit) == (None, limit)
    said = {"problems": "the choice of problems", "ties": "cannot be told apart", "traces": "held-out traces"}[limit]
    assert said in found.advice
    if limit == "problems":
        assert found.problems_factor > 1
        assert "times as many problems" in found.advice
    if limit == "ties":
        assert found.table["chance"].tolist() == [0.5, 0.5]
        assert "harder problems would" in found.advice


def test_a_settled_choice_and_one_without_noise():
    sure = rank_with_noise(world(np.array([[0.05] * 80, [0.6] * 80]), 32, 8))
    assert (sure.leader, sure.samples_needed, sure.limit) == ("c1", 32, "")
    assert "the choice is settled" in sure.advice
    table = given([(0.3, 1.0, 0.62), (0.5, 1.2, 0.60)], (0.01, 0.01, 0.01)).table.drop(columns=["pass_k_se"])
    bare = rank_with_noise(Measurements(table, None, table, 64, "mine.csv"))
    assert math.isnan(bare.chance)
    assert "cannot be said" in bare.advice
    pd.testing.assert_frame_equal(bare.table[rank_candidates(table).columns], rank_candidates(table))
    for options, message in (({"confidence": 95}, "confidence must lie"), ({"n_draws": 3}, "n_draws must be")):
        with pytest.raises(ParameterError, match=message):
            rank_with_noise(given([(0, 0, 0)], (1, 1, 1)), **options)


# --- forecasts --------------------------------------------------------------------------------------------------------


def linear_world(total: int, seed: int, noise: float = 0.03) -> pd.DataFrame:
    """Candidates whose outcome is a line of an ability that Pass@k shows and the loss shows less well."""
    random = np.random.default_rng(seed)
    ability = random.uniform(0, 1, total)
    table = {
        "candidate": [f"c{i}" for i in range(total)],
        "pass1": random.uniform(0, 0.5, total),
        "pass_k": 0.5 + 0.4 * ability,
        "gen_loss": 1 - 0.6 * ability + 0.08 * random.normal(size=total),
        "outcome": 0.5 + 0.2 * ability + noise * random.normal(size=total),
    }
    return pd.DataFrame(table)


def hidden(table: pd.DataFrame, shown: list[str]) -> pd.DataFrame:
    return table.assign(outcome=table["outcome"].where(table["candidate"].isin(shown)))


def test_forecast_rl_forecasts_as_forecast_and_checks_by_leaving_out():
    table = linear_world(9, 0)
    runs = ["c0", "c1", "c2", "c3", "c4", "c5"]
    found = forecast_rl(hidden(table, runs))
    columns = ["candidate", "calibrated", "predicted", "low", "high", "extrapolated"]
    pd.testing.assert_frame_equal(found.table[columns], forecast(table, runs))
    mine = table.iloc[:6]
    left_out = predict(mine[["gen_loss", "pass_k"]], mine["outcome"], "leave_one_out")
    np.testing.assert_allclose(found.check["predicted"], left_out, rtol=1e-10)
    y = mine["outcome"]
    assert found.r2 == pytest.approx(1 - ((y - left_out) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    assert found.rank_correlation == pytest.approx(spearman(left_out, y))
    inside = []
    for name in runs:
        one = forecast(table, [run for run in runs if run != name]).set_index("candidate").loc[name]
        inside.append(one["low"] <= table.set_index("candidate").loc[name, "outcome"] <= one["high"])
    assert found.check["covered"].tolist() == inside
    assert found.coverage == np.mean(inside)


def test_chance_to_end_best_of_one_candidate_is_students():
    table = linear_world(6, 3, noise=0.1)
    runs = [f"c{i}" for i in range(5)]
    found = forecast_rl(hidden(table, runs), predictors=["pass_k"], n_draws=40_000).table.set_index("candidate")
    one = found.loc["c5"]
    scale = (one["high"] - one["predicted"]) / stats.t.ppf(0.975, 3)
    truth = stats.t.sf((table["outcome"][:5].max() - one["predicted"]) / scale, 3)
    assert 0.05 < truth < 0.95
    assert one["chance_best"] == pytest.approx(truth, abs=0.01)
    assert found["chance_best"].sum() == pytest.approx(1)


def test_gain_of_a_run_is_the_textbook_variance_of_a_line():
    """One predictor: 1 + 1/n + (x - mean)^2 / Sxx for each contender, before and after the run."""
    table = linear_world(8, 2, noise=0.1)
    runs = ["c0", "c1", "c2", "c3"]
    found = forecast_rl(hidden(table, runs), predictors=["pass_k"]).table.set_index("candidate")
    x = table.set_index("candidate")["pass_k"]
    contenders = [name for name in x.index if name not in runs and found.loc[name, "chance_best"] >= 0.05]
    assert len(contenders) > 1

    def total(ran: list[str]) -> float:
        fitted = x[ran]
        spread = ((fitted - fitted.mean()) ** 2).sum()
        rest = [name for name in contenders if name not in ran]
        return sum(1 + 1 / len(ran) + (x[name] - fitted.mean()) ** 2 / spread for name in rest)

    gains = {name: 1 - total([*runs, name]) / total(runs) for name in x.index if name not in runs}
    assert found["gain"].dropna().to_dict() == pytest.approx(gains)
    assert forecast_rl(hidden(table, runs), predictors=["pass_k"]).next_run == max(gains, key=gains.get)


def test_running_what_is_advised_finds_better_candidates_than_running_at_random():
    """Three runs at random, then three more: what the best of the six lacks to the best of all 14."""
    advised, random_runs = [], []
    for seed in range(40):
        table, random = linear_world(14, seed), np.random.default_rng(seed)
        order = random.permutation(table["candidate"]).tolist()
        runs = order[:3]
        for _ in range(3):
            found = forecast_rl(hidden(table, runs), n_draws=300)
            runs.append(found.next_run or found.table.loc[~found.table["calibrated"], "candidate"].iloc[0])
        outcome = table.set_index("candidate")["outcome"]
        advised.append(outcome.max() - outcome[runs].max())
        random_runs.append(outcome.max() - outcome[order[:6]].max())
    assert np.mean(advised) < 0.5 * np.mean(random_runs)


@pytest.mark.parametrize("runs", [4, 7])
def test_intervals_cover_what_they_promise_also_when_the_runs_are_chosen(runs):
    """Which runs are made follows from predictors and chances alone, so choosing them costs little coverage."""
    inside = []
    for seed in range(40):
        table = linear_world(12, seed)
        found = forecast_rl(table, choose_runs(table, runs), n_draws=300)
        truth = table.set_index("candidate")["outcome"]
        rest = found.table[~found.table["calibrated"]]
        inside += [row.low <= truth[row.candidate] <= row.high for row in rest.itertuples()]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.04)


def test_warnings():
    table = linear_world(7, 3).sort_values("pass_k", ignore_index=True)
    table["gen_loss"] = 1 - table["pass_k"]
    middle = table["candidate"][1:6].tolist()
    found = forecast_rl(hidden(table, middle))
    ends = found.table[found.table["extrapolated"]]
    assert sorted(ends["candidate"]) == sorted([table["candidate"][0], table["candidate"][6]])
    assert (
        ends.set_index("candidate")["outside"][table["candidate"][6]]
        == "gen_loss below the runs', pass_k above the runs'"
    )
    assert any(
        "2 of 2 forecasts lie outside" in text and "highest forecast, is among them" in text for text in found.warnings
    )
    inside = [*table["candidate"][:3], *table["candidate"][4:]]
    assert not any("Extrapolation" in text for text in forecast_rl(hidden(table, inside)).warnings)
    turned = forecast_rl(hidden(table.assign(outcome=1 - table["outcome"]), middle)).warnings
    assert sum("against the paper's finding" in text for text in turned) == 2
    assert any("no leave-one-out check" in text for text in forecast_rl(hidden(table, middle[:3])).warnings)
    steep = table.assign(outcome=0.9 + (table["pass_k"] - table["pass_k"].median()))
    assert any(
        "Beyond 0 or 100 %" in text for text in forecast_rl(hidden(steep, middle), predictors=["pass_k"]).warnings
    )
    blank = hidden(table, middle).assign(gen_loss=table["gen_loss"].where(table.index != 6))
    assert any(table["candidate"][6] in text and "Left out" in text for text in forecast_rl(blank).warnings)


def test_forecasts_that_are_complete_or_impossible():
    table = linear_world(6, 4)
    everyone = forecast_rl(table)
    assert everyone.next_run is None
    assert "every candidate was run" in everyone.advice
    beaten = table.assign(outcome=table["outcome"].where(table.index > 0, 0.99))  # far above what any line gives
    ahead = forecast_rl(hidden(beaten, ["c0", "c1", "c2", "c3", "c4"]), predictors=["pass1"], n_draws=20_000)
    if ahead.table.set_index("candidate").loc["c5", "chance_best"] < 0.05:
        assert ahead.next_run is None
    with pytest.raises(ParameterError, match="at least three candidates need an RL outcome, and 0 of 6"):
        forecast_rl(table.drop(columns="outcome"))
    with pytest.raises(ParameterError, match="need an RL outcome, and 2 of 6 have one"):
        forecast_rl(hidden(table, ["c0", "c1"]))
    with pytest.raises(ParameterError, match="n_runs must lie between 3 and the 6"):
        choose_runs(table, 7)
    compared = compare_predictors(table.assign(pass_k=1.0)).set_index("predictors")
    assert compared.loc["Pass@1", "r2"] == pytest.approx(forecast_rl(table, predictors=["pass1"]).r2)
    assert compared["runs"].to_dict() == {"Pass@1": 6, "loss": 6, "Pass@k": 0, "loss and Pass@k": 0}


def test_whose_outcomes_are_used():
    table = linear_world(8, 5)
    assert known_runs(hidden(table, ["c1", "c2", "c5"]), 5) == ["c1", "c2", "c5"]
    chosen = known_runs(table, 5)
    assert len(set(chosen)) == 5
    assert chosen[:3] == table.sort_values("pass_k")["candidate"].iloc[[0, 4, 7]].tolist()
    assert set(withheld_outcomes(table, chosen)) == set(table["candidate"]) - set(chosen)
    assert withheld_outcomes(hidden(table, chosen), chosen) == {}


# --- a table that a person filled in ----------------------------------------------------------------------------------


def test_the_shipped_table_is_what_was_measured(mini):
    """Eight candidates of the miniature study, rounded; outcomes of the runs that were advised there, no others."""
    shipped = load_measurements(ROOT / "notebooks" / "candidates.csv")
    frame = load_measurements(mini, family="micro-llama").table.set_index("candidate")
    table = shipped.table.set_index("candidate")
    assert set(table.index[table["outcome"].notna()]) == set(known_runs(frame.reset_index(), 5))
    assert len(table) == 8
    for column in table:
        known = table[column].dropna()
        np.testing.assert_allclose(known, frame.loc[known.index, column], atol=0.5001e-4)
    assert rank_with_noise(shipped).leader == "random-512x4"
    assert forecast_rl(shipped.table).next_run is not None


COMMAS = "candidate,pass1,gen_loss,pass_k,outcome\na,0.523,1.25,0.9,\nb,0.4,,0.8,0.61\n"


@pytest.mark.parametrize(
    "text",
    [
        COMMAS,
        COMMAS.replace(",", "\t"),
        COMMAS.replace(",", ";").replace("0.", "0,").replace("1.25", "1,25"),
        COMMAS.replace(",", ";").replace("0.523", "52,3%").replace("0.9", "90 %"),
        COMMAS.replace("0.523", "52.3%").replace("0.8", "80%").replace("\n", "\r\n"),
        "\ufeff# my runs, of May\n" + COMMAS + "\n,,,,\n",
        COMMAS.replace("pass1", "Pass@1").replace("gen_loss", "Generalization loss").replace("pass_k", "Pass@64"),
        COMMAS.replace("candidate", '"Checkpoint"').replace("outcome", "after RL").replace("\na", '\n"a"'),
        COMMAS.replace(",,", ",n/a,").replace("0.9,\n", "0.9,-\n"),
    ],
)
def test_tables_as_people_write_them(tmp_path, text):
    (tmp_path / "mine.csv").write_text(text, encoding="utf-8")
    measured = read_csv(tmp_path / "mine.csv")
    assert measured.table["candidate"].tolist() == ["a", "b"]
    np.testing.assert_allclose(measured.table[["pass1", "pass_k"]], [[0.523, 0.9], [0.4, 0.8]])
    np.testing.assert_array_equal(measured.table["gen_loss"], [1.25, np.nan])
    np.testing.assert_array_equal(measured.table["outcome"], [np.nan, 0.61])
    assert (measured.k, measured.counts, measured.manifest) == (64, None, {})


def test_another_large_k_and_errors_are_read_from_the_headings(tmp_path):
    (tmp_path / "mine.csv").write_text(
        "name,pass@1,Pass@256,pass@256 standard error,loss,loss se\na,50%,90%,2%,1,0.1\n"
    )
    measured = load_measurements(tmp_path / "mine.csv", scenario="instance")
    assert measured.k == 256
    row = measured.table.iloc[0]
    assert (row["pass_k"], row["pass_k_se"], row["gen_loss_se"], row["scenario"]) == (0.9, 0.02, 0.1, "instance")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs a line of headings and a line per candidate"),
        ("candidate,pass1\n", "needs a line of headings"),
        ("a,0.5,1.2,0.9\nb,0.4,1.3,0.8\n", "the columns 'a', '0.5', '1.2', '0.9' are not known"),
        ("pass1,gen_loss,pass_k\n0.5,1.2,0.9\n", "must name the columns, at least candidate"),
        (COMMAS.replace("outcome", "outcom"), "the column 'outcom' is not known; known are candidate"),
        (COMMAS.replace("outcome", "pass1"), "the column pass1 twice"),
        (COMMAS.replace("outcome", "pass@128").replace("pass_k", "pass@256"), "give one large k"),
        (COMMAS.replace("0.523", "good"), "line 2, column pass1: 'good' is no number"),
        (COMMAS.replace("0.523", "52.3"), "line 2, column pass1: '52.3' is above 1; write 52.3% or"),
        (COMMAS.replace("0.523", "-0.1"), "must not be negative"),
        (COMMAS.replace("1.25", "5%"), "losses are in nats"),
        (COMMAS.replace("0.523", "0,523"), "decimal commas need semicolons"),
        (COMMAS.replace("\nb", "\n"), "line 3: the candidate has no name"),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path, text, message):
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(ParameterError, match=message) as error:
        load_measurements(tmp_path / "mine.csv")
    assert "mine.csv" in str(error.value)
    assert "\n" not in str(error.value)


def test_sources_that_are_not_there(tmp_path, mini):
    with pytest.raises(ParameterError, match="there is no table"):
        load_measurements(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes(COMMAS.replace("b", "\u00fc").encode("latin-1"))
    with pytest.raises(ParameterError, match="cannot be read as UTF-8"):
        load_measurements(tmp_path / "latin.csv")
    with pytest.raises(ParameterError, match="family: choose one, there are micro-llama, micro-mistral, micro-qwen"):
        load_measurements(mini)
    with pytest.raises(ParameterError, match="outcome must be"):
        load_measurements(mini, family="micro-llama", outcome="gain")
    (tmp_path / "two.csv").write_text(COMMAS.replace("outcome", "family").replace("0.9,", "0.9,llama"))
    assert load_measurements(tmp_path / "two.csv", family="llama").table["candidate"].tolist() == ["a"]
    with pytest.raises(ParameterError, match=r"family: two\.csv has no 'qwen'; it has llama"):
        load_measurements(tmp_path / "two.csv", family="qwen")


def make_store(folder: Path, correct: list[int], n: int = 8, golds: dict | None = None, **origin: object) -> None:
    rows = [
        {"benchmark": "one", "problem": f"p{p}", "index": i, "text": "", "tokens": 1, "finish_reason": "stop"}
        | {"extracted": "", "verdict": "correct" if i < c else "wrong"}
        for p, c in enumerate(correct)
        for i in range(n)
    ]
    samples = store.SampleStore(folder)
    samples.bind({"model_digest": folder.name, "temperature": 1.0, **origin})
    samples.append(pd.DataFrame(rows), golds=golds)


def test_scores_are_counted_from_folders_of_answers(tmp_path):
    make_store(tmp_path / "one", [0, 3, 8, 1])
    make_store(tmp_path / "two", [2, 2, 5, 0])
    (tmp_path / "mine.csv").write_text("candidate,samples,gen_loss,gen_loss_se\na,one,1.2,0.1\nb,two,1.1,0.1\n")
    measured = load_measurements(tmp_path / "mine.csv", k=4)
    expected = [pass_at_k(8, c, 4).mean() for c in (np.array([0, 3, 8, 1]), np.array([2, 2, 5, 0]))]
    assert measured.table["pass_k"].tolist() == pytest.approx(expected)
    assert measured.table["pass1"].tolist() == pytest.approx([12 / 32, 9 / 32])
    found = rank_with_noise(measured)
    assert found.samples == 8
    assert found.table["chance"].sum() == pytest.approx(1)
    (tmp_path / "part.csv").write_text("candidate,samples,pass1,gen_loss,pass_k\na,one,,1.2,\nb,,0.3,1.1,0.5\n")
    assert load_measurements(tmp_path / "part.csv", k=4).counts is None
    make_store(tmp_path / "cold", [1, 1, 1, 1], temperature=0.5)
    make_store(tmp_path / "few", [1, 1])
    for folder, k, message in (
        ("cold", 4, "drawn with temperature 0.5, those of 'a' with 1.0"),
        ("few", 4, r"answered different problems \(2 and 4\)"),
        ("gone", 4, "there is no folder of samples gone"),
        ("two", 9, r"k \(9\) must not exceed the 8 graded answers"),
    ):
        (tmp_path / "bad.csv").write_text(f"candidate,samples,gen_loss\na,one,1.2\nb,{folder},1.1\n")
        with pytest.raises(ParameterError, match=message):
            load_measurements(tmp_path / "bad.csv", k=k)


# --- the shipped records, whose outcomes are known --------------------------------------------------------------------


def test_advice_on_the_shipped_records(mini):
    """How much the advice would have lost, computed again by hand from the frame."""
    frame = candidate_frame(mini)
    check = check_ranking(frame)
    assert len(check) == 6
    for row in check.itertuples():
        part = frame[(frame["family"] == row.family) & (frame["selection"] != "none")]
        part = part[part["scenario"].str.contains(row.scenario)].set_index("candidate")
        assert row.candidates == len(part)
        assert row.regret == pytest.approx(part["outcome"].max() - part.loc[row.chosen.split(", "), "outcome"].mean())
        assert row.regret_pass1 == pytest.approx(part["outcome"].max() - part.loc[part["pass1"].idxmax(), "outcome"])
        assert row.regret_random == pytest.approx((part["outcome"].max() - part["outcome"]).mean())
    assert check["regret"].mean() < 0.2 * check["regret_random"].mean()
    assert f"{100 * check['regret'].mean():.1f} points below the best" in advice.describe_check(check)
    assert regret(frame[frame["family"] == "micro-qwen"], ["random-512x4"]) == 0


def test_forecasts_on_the_shipped_records(mini):
    check = check_forecasts(candidate_frame(mini), n_runs=5)
    assert set(check["predictors"]) == {"pass1", "gen_loss and pass_k", "pass_k"}
    assert (check["regret"] < 0.005).all()
    row = check[(check["family"] == "micro-llama") & (check["predictors"] == "pass_k")].iloc[0]
    table = load_measurements(mini, family="micro-llama", scenario="instance").table
    runs = choose_runs(table, 5)
    found = forecast(table, runs, ["pass_k"]).query("not calibrated")
    truth = table.set_index("candidate").loc[found["candidate"], "outcome"].to_numpy()
    assert row["rmse"] == pytest.approx(math.sqrt(np.mean((found["predicted"] - truth) ** 2)))
    assert row["coverage"] == pytest.approx(np.mean((found["low"] <= truth) & (truth <= found["high"])))


def test_words_and_pictures_of_every_case(mini):
    """Every family and scenario, a hand-filled table and one without errors: no name for a missing number anywhere."""
    sources = [
        load_measurements(mini, family=family, scenario=scenario)
        for family, scenario in (("micro-llama", "dataset"), ("micro-mistral", "instance"), ("micro-qwen", "dataset"))
    ]
    sources.append(load_measurements(ROOT / "notebooks" / "candidates.csv"))
    bare = sources[-1].table.drop(columns=["pass1_se", "pass_k_se", "gen_loss_se"])
    sources.append(replace(sources[-1], table=bare))
    for measured in sources:
        found = rank_with_noise(measured, n_draws=500)
        assert found.leader in found.advice
        texts = [found.advice, advice.show_ranking(found).to_string()]
        fig, axes = practice.practice_figure(found.table, columns=3)
        for draw, ax in zip((practice.plot_ranking, practice.plot_chances, practice.plot_settling), axes, strict=True):
            draw(found, ax)
        fig.draw_without_rendering()
        runs = known_runs(measured.table, 5)
        forecasts = forecast_rl(measured.table, runs, n_draws=500)
        texts += [forecasts.advice, *forecasts.warnings, advice.show_forecast(forecasts).to_string()]
        texts.append(advice.show_predictors(compare_predictors(measured.table, runs)).to_string())
        fig, axes = practice.practice_figure(forecasts.table, columns=2)
        practice.plot_forecast(forecasts, axes[0], withheld_outcomes(measured.table, runs))
        practice.plot_left_out(forecasts, axes[1])
        fig.draw_without_rendering()
        assert "nan" not in " ".join(texts).lower().split()
    assert advice.show_check(pd.DataFrame(), 64).shape == (1, 1)
    assert "Too few" in advice.describe_forecast_check(pd.DataFrame())


def test_notebooks_execute_on_records_and_on_a_table(mini, tmp_path):
    """Both, on a copy of the shipped records and on the shipped table, through papermill as ./reproduce.sh does it."""
    folder = tmp_path / "mini"
    folder.mkdir()
    for file in (*MINI.glob("*.parquet"), MINI / "manifest.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = []
    for name, given in (("rank_candidates", []), ("forecast_rl", ["-p", "measurements", "notebooks/candidates.csv"])):
        command = [sys.executable, "-m", "papermill", str(ROOT / "notebooks" / f"{name}.ipynb")]
        command += [str(tmp_path / f"{name}.ipynb"), "--kernel", "python3", "--no-progress-bar"]
        command += ["-p", "profile", str(folder), *given]
        started.append((name, subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE)))
    shown = {}
    for name, process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()[-2000:]
        book = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4)
        outputs = [o.get("data", {}) for c in book.cells if c.cell_type == "code" for o in c.outputs]
        shown[name] = [o["text/markdown"] for o in outputs if "text/markdown" in o]
        assert sum("image/png" in o for o in outputs) == {"rank_candidates": 2, "forecast_rl": 1}[name]
    measured = load_measurements(mini, family="Llama3-8B-Instruct")
    said = f"**{measured.source}.** {rank_with_noise(measured).advice}"
    assert html.escape(said, quote=False) in shown["rank_candidates"]
    assert "profile mini, measured" in shown["rank_candidates"][-1]
    table = load_measurements(ROOT / "notebooks" / "candidates.csv", scenario="dataset").table
    assert any(html.escape(forecast_rl(table).advice, quote=False) in text for text in shown["forecast_rl"])
    assert "candidates.csv (8 candidates, as given)" in shown["forecast_rl"][-1]
