"""Forecasts from a few RL runs: against closed forms, brute force, simulated worlds, and the shipped records."""

import math

import numpy as np
import pandas as pd
import pytest
from example_candidates import five_candidates, hidden, linear_world
from scipy import stats

from quagmire_utils.analysis.candidates import candidate_frame
from quagmire_utils.analysis.fits import predict, spearman
from quagmire_utils.analysis.forecasting import check_forecasts, choose_runs, forecast_rl, known_runs
from quagmire_utils.analysis.lines import Task
from quagmire_utils.analysis.measurements import load_measurements


@pytest.fixture
def records():
    return five_candidates()


def forecast(table: pd.DataFrame, *choices, **options) -> pd.DataFrame:
    task = Task.check(table, *choices, **options)
    return task.frame(task.known, task.fit(task.known)).sort_values("predicted", ascending=False, ignore_index=True)


def test_forecast_with_one_predictor_is_the_textbook_interval(records):
    known = ["a", "b", "d", "e"]
    result = forecast(hidden(records, known), known, ["pass_k"], confidence=0.9).set_index("candidate")
    rows = records[records["candidate"] != "c"]
    x, y = rows["pass_k"].to_numpy(), rows["outcome"].to_numpy()
    line = stats.linregress(x, y)
    sigma = math.sqrt(((y - line.intercept - line.slope * x) ** 2).sum() / 2)
    for name, x0 in rows.set_index("candidate")["pass_k"].items():  # c is beyond their range
        half = stats.t.ppf(0.95, 2) * sigma * math.sqrt(1 + 1 / 4 + (x0 - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
        assert result.loc[name, "predicted"] == pytest.approx(line.intercept + line.slope * x0)
        assert result.loc[name, "high"] - result.loc[name, "low"] == pytest.approx(2 * half)
    assert result["calibrated"].to_dict() == {name: name != "c" for name in "abcde"}
    assert result.index[result["extrapolated"]].tolist() == ["c"]
    assert result["predicted"].is_monotonic_decreasing


@pytest.mark.parametrize("predictors", [("pass_k",), ("gen_loss", "pass_k")])
@pytest.mark.parametrize("runs", [3, 5, 10])
def test_intervals_cover_from_three_to_ten_runs(runs, predictors):
    """One line is exact, the mean of two a bit too wide; extrapolated forecasts, wider on purpose, are left out."""
    inside = []
    for seed in range(150):
        random = np.random.default_rng(1000 * runs + seed)
        ability = random.normal(size=runs + 4)
        loss, pass_k = (ability + 0.3 * random.normal(size=runs + 4) for _ in range(2))
        line = pass_k if len(predictors) == 1 else ability
        table = pd.DataFrame({"gen_loss": loss, "pass_k": pass_k, "candidate": [f"c{i}" for i in range(runs + 4)]})
        table["outcome"] = 0.5 + 0.1 * line + 0.03 * random.normal(size=runs + 4)
        found = forecast(table, table["candidate"][:runs].tolist(), predictors, 0.9)
        found = found.query("not calibrated and not extrapolated")
        if len(found):
            truth = table.set_index("candidate").loc[found["candidate"], "outcome"].to_numpy()
            inside.append(np.mean((found["low"] <= truth) & (truth <= found["high"])))
    error = np.std(inside) / math.sqrt(len(inside))
    spare = 0.03 if len(predictors) == 2 else 0.0
    assert 0.9 - 3 * error < np.mean(inside) < 0.9 + spare + 3 * error


def test_bad_input_is_refused(records, refused):
    for parameter, call in (
        ("calibrated", lambda r: forecast(r, ["a", "b"])),
        ("calibrated", lambda r: forecast(r, ["a", "b", "z"])),
        ("outcome", lambda r: forecast(r.assign(outcome=0.5), ["a", "b", "c"])),
        ("pass_k", lambda r: forecast(r.assign(pass_k=0.5), ["a", "b", "c"])),
        ("predictors", lambda r: forecast_rl(r, predictors=["pass_k", "pass_k"])),
        ("confidence", lambda r: forecast(r, ["a", "b", "c"], confidence=1)),
        ("outcome", lambda r: forecast_rl(r.drop(columns="outcome"))),
        ("outcome", lambda r: known_runs(hidden(r, ["a", "b"]), 5)),
        ("n_runs", lambda r: choose_runs(r, 7)),
    ):
        with refused(parameter):
            call(records)


def test_forecast_rl_forecasts_as_forecast_and_checks_by_leaving_out():
    table = linear_world(9, 0)
    runs = ["c0", "c1", "c2", "c3", "c4", "c5"]
    found = forecast_rl(hidden(table, runs))
    plain = forecast(table, runs)
    pd.testing.assert_frame_equal(found.table[plain.columns], plain)
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


def test_gain_is_the_variance_that_goes_away_by_brute_force():
    """Two predictors: draw outcomes, run the candidate, and forecast again; without a formula."""
    table = linear_world(7, 2, noise=0.1)
    runs = ["c0", "c1", "c2", "c3"]
    found = forecast_rl(hidden(table, runs)).table.set_index("candidate")
    chance = found["chance_best"][~found["calibrated"]].sort_values()
    contenders = chance.index[chance.cumsum() >= 0.05].tolist()
    assert len(contenders) > 1
    random = np.random.default_rng(0)
    scatter = random.normal(size=(3000, 7))  # about a true line of zero: the error of a forecast does not depend on it

    def variance(ran: list[str]) -> float:
        rest = [name for name in contenders if name not in ran]
        x, fitted = table.set_index("candidate")[["gen_loss", "pass_k"]], [int(name[1:]) for name in ran]
        total = 0.0
        for name in rest:
            lines = [np.polyfit(x[c].iloc[fitted], scatter[:, fitted].T, 1) for c in x]
            mean = sum(slope * x.loc[name, c] + start for c, (slope, start) in zip(x, lines, strict=True)) / 2
            total += np.var(scatter[:, int(name[1:])] - mean)
        return total

    before = variance(runs)
    gains = {name: 1 - variance([*runs, name]) / before for name in found.index[~found["calibrated"]]}
    assert found["gain"].dropna().to_dict() == pytest.approx(gains, abs=0.03)


def test_advised_runs_find_better_candidates_than_random_ones():
    """Three runs at random, then three more: the gap between the best of the six and the best of all 14."""
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


def warned(found, text):
    return sum(text in warning for warning in found.warnings)


def test_the_noise_of_rl_is_in_every_interval():
    """Three runs on a line by luck: the interval is as wide as the given, or the assumed, noise of RL makes it."""
    table = linear_world(8, 1, noise=0.0).assign(gen_loss=np.nan, scenario="instance")
    order = table.sort_values("pass_k")["candidate"].tolist()
    table = hidden(table, [order[0], order[3], order[-1]])
    widths = {}
    for noise in (None, 0.01, 0.03):
        found = forecast_rl(table.assign(outcome_se=noise) if noise else table)
        rest = found.table.set_index("candidate").loc[order[4]]
        widths[noise] = (rest["high"] - rest["low"]) / 2
        assert warned(found, "are assumed to differ by 1.0 points") == (noise is None)
    assert widths[None] == widths[0.01] > stats.t.ppf(0.975, 1) * 0.01
    assert widths[0.03] == pytest.approx(3 * widths[0.01])
    assert forecast_rl(table, rl_noise=0.02).table["chance_best"].max() < 1


def test_extrapolation_widens_an_interval_by_what_the_line_adds():
    table = linear_world(8, 1).sort_values("pass_k", ignore_index=True).assign(scenario="instance")
    names = table["candidate"].tolist()
    task = Task.check(table, names[:5], ["pass_k"])
    fit = task.fit(task.known)
    slope = np.polyfit(table["pass_k"][:5], table["outcome"][:5], 1)[0]
    np.testing.assert_allclose(fit.beyond[5:], abs(slope) * (table["pass_k"][5:] - table["pass_k"][4]))
    np.testing.assert_array_equal(fit.beyond[:5], 0)
    row = task.frame(task.known, fit).iloc[7]
    inside = stats.t.ppf(0.975, 3) * math.sqrt(fit.noise * (1 + (fit.weights[7] ** 2).sum()))
    assert row["high"] - row["predicted"] == pytest.approx(math.hypot(inside, stats.norm.ppf(0.975) * fit.beyond[7]))


def test_forecasts_on_the_shipped_records(first_world, mini):
    ours = check_forecasts(candidate_frame(mini), n_runs=5)  # as the README says
    assert ((ours["regret"] == 0) & (ours["rmse"] < ours["spread"])).tolist() == 10 * [True]
    assert ours["coverage"].mean() == pytest.approx(0.99, abs=0.005)
    check = check_forecasts(candidate_frame(first_world), n_runs=5)
    assert set(check["predictors"]) == {"pass1", "gen_loss and pass_k", "pass_k"}
    assert (check["regret"] < 0.005).all()
    row = check[(check["family"] == "micro-llama") & (check["predictors"] == "pass_k")].iloc[0]
    table = load_measurements(first_world, family="micro-llama", scenario="instance").table
    runs = choose_runs(table, 5)
    found = forecast(table, runs, ["pass_k"]).query("not calibrated")
    truth = table.set_index("candidate").loc[found["candidate"], "outcome"].to_numpy()
    assert row["rmse"] == pytest.approx(math.sqrt(np.mean((found["predicted"] - truth) ** 2)))
    assert row["coverage"] == pytest.approx(np.mean((found["low"] <= truth) & (truth <= found["high"])))
