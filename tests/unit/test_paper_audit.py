"""The audit of the published tables: against the transcription itself, brute force, and simulation."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from quagmire_utils.analysis import paper_audit
from quagmire_utils.analysis.fits import fit_predict_r2
from quagmire_utils.analysis.paper_audit import kinds, printed, simulation
from quagmire_utils.core import published as paper
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.report.plots import new_figure
from quagmire_utils.report.plots.forest import mark_kinds, plot_rank_intervals, plot_split_spread

LLAMA, MISTRAL = paper.FAMILIES


@pytest.fixture
def transcription(paper_file) -> dict:
    return json.loads(paper_file("published_tables.json").read_text(encoding="utf-8").replace("pass64", "pass_k"))


def means(row: list) -> list[float]:
    return [value[0] if isinstance(value, list) else value for value in row]


# --- the tables against each other ------------------------------------------------------------------------------------


def test_gains_are_those_of_the_transcription(transcription):
    odd, count = [], 0
    for name, table in transcription.items():
        for row, gain in table["printed_gain"].items():
            values = dict(zip(table["columns"], means(table["rows"][row]), strict=True))
            column, number = gain if isinstance(gain, list) else (max(values, key=values.get), gain)
            difference = round(values[column] - values["pass1"], 2)
            count += 1
            if difference != number:
                odd.append((int(name.removeprefix("table")), row, column, difference, number))
    found = printed.gains()
    assert len(found) == count
    wrong = found[~found["agrees"]]
    assert list(wrong[["table", "row", "column", "difference", "printed"]].itertuples(index=False, name=None)) == odd
    assert odd == [(10, "Low (<2B tokens)", "pass_k", 0.15, 0.25)]
    assert not wrong["rounding"].any()


def test_averages_are_those_of_the_transcription(transcription):
    found = printed.averages().set_index(["table", "what"])
    for number in (8, 10):
        table = transcription[f"table{number}"]
        above = np.array([means(row) for name, row in table["rows"].items() if name != "Average"])
        for i, column in enumerate(table["columns"]):
            assert found.loc[(number, column), "mean"] == pytest.approx(above[:, i].mean())
        assert found.loc[(number, "gain, differences"), "mean"] == pytest.approx((above[:, 1] - above[:, 0]).mean())
    assert found.index[~found["holds"]].tolist() == [(10, "gain as printed")]
    assert set(found.index.get_level_values(0)) == {8, 10}


def test_rows_that_are_printed_twice():
    found = printed.repeated_rows().set_index(["table", "family"])
    assert found["elsewhere"].to_dict() == {
        (2, LLAMA): "Table 5, 5:11",
        (2, MISTRAL): "Table 6, 5:5",
        (3, LLAMA): "Table 8, Average",
        (3, MISTRAL): "Table 10, Average",
        (4, LLAMA): "Table 7, 8:9",
        (4, MISTRAL): "Table 9, 6:6",
    }
    assert found.index[~found["holds"]].tolist() == [(2, LLAMA)]
    assert found.loc[(2, LLAMA), "caption_split"] == "8:8"
    half = paper.published(5).query("row == '8:8'")
    assert found.loc[(2, LLAMA), "half_split"] == ", ".join(
        f"{c.mean:.2f} ± {c.plus_minus:.2f}" for c in half.itertuples()
    )


def test_headlines():
    found = printed.headline_numbers().set_index("name")
    assert (
        "Table 3, Llama3-8B-Instruct, pass_k: 0.69 to 0.94, 36 %"
        in found.loc["instance_spearman_gain_up_to", "matches"]
    )
    assert "Table 4, Llama3-8B-Instruct, pass_k: 0.58 to 0.92, 59 %" in found.loc["instance_r2_gain_up_to", "matches"]
    assert "Table 10, High, pass_k: 0.50 to 1.00, 2.00x" in found.loc["gain_factor_up_to", "matches"]
    assert "Table 2, Mistral-NeMo-12B-Instruct, gen_loss: 0.29 to 0.79, 0.50" in found.loc["gain_up_to", "matches"]
    assert found.loc["dataset_spearman_gain", "matches"] == ""  # 30 %: the nearest is 29 %
    assert found["is_extreme"].to_dict() == {
        "gain_up_to": True,
        "gain_factor_up_to": False,  # 0.27 to 0.75 is 2.78x
        "dataset_spearman_at_least": True,
        "dataset_spearman_gain": False,
        "dataset_r2_factor_up_to": False,
        "instance_spearman_gain_up_to": False,  # Mistral's is 40 %
        "instance_r2_gain_up_to": False,
    }


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_attainable_correlations_by_trying_every_order(n):
    ranks = np.arange(n)
    every = {round(stats.spearmanr(ranks, order).statistic, 2) for order in itertools.permutations(ranks)}
    grid = [value / 100 for value in range(-100, 101)]
    assert {value for value in grid if printed.attainable(value, n)} == every


def test_no_budgets_fit_the_printed_correlations():
    for number, total in ((8, 17), (10, 12)):
        table = printed.budget_sizes(number, total)
        assert table.attrs["partitions"] == []
        for row in table.itertuples():
            for size in range(3, total - 5):
                assert (size in row.sizes) == all(printed.attainable(value, size) for value in row.printed)
    # and where there is a way, it is found
    assert printed.attainable(0.5, 3)
    assert printed.attainable(0.8, 4)
    assert not printed.attainable(0.95, 4)


# --- kinds of R2 ------------------------------------------------------------------------------------------------------


def test_kinds_of_r2_by_hand():
    rng = np.random.default_rng(0)
    actual, predicted = rng.standard_normal((2, 5, 7))
    found = kinds.r2_values(actual, predicted)
    for i in range(5):
        r2 = 1 - ((actual[i] - predicted[i]) ** 2).sum() / ((actual[i] - actual[i].mean()) ** 2).sum()
        assert found["r2"][i] == pytest.approx(r2)
        assert found["clipped"][i] == pytest.approx(max(r2, 0))
        assert found["squared"][i] == pytest.approx(stats.pearsonr(actual[i], predicted[i]).statistic ** 2)
    two = kinds.r2_values(actual[:, :2], predicted[:, :2])
    assert two["squared"] == pytest.approx(1.0)
    assert two["r2"].min() < 0


def test_no_bounded_values_spread_more_than_the_bound():
    rng = np.random.default_rng(1)
    for floor in (0.0, -1.0):
        for values in rng.beta(0.3, 0.3, (200, 100)) * (1 - floor) + floor:
            assert values.std(ddof=1) <= kinds.largest_deviation(values.mean(), floor) + 1e-12
        ends = np.where(np.arange(100) < 53, floor, 1.0)  # attained with values at both ends alone
        assert ends.std(ddof=1) == pytest.approx(kinds.largest_deviation(ends.mean(), floor))


def test_what_the_two_point_cell_rules_out():
    found = kinds.feasibility()
    assert len(found) == sum(len(paper.published(number)) for number in paper_audit.RATIO_TABLES)
    cell = found[(found["table"] == 6) & (found["row"] == "8:2") & (found["column"] == "pass_k")].iloc[0]
    assert (cell["mean"], cell["plus_minus"]) == (0.47, 0.54)
    assert (cell["r2"], cell["clipped"], cell["squared"]) == (True, False, False)
    assert math.sqrt(0.475 * 0.525) < 0.535 / math.sqrt(100 / 99)  # even rounded to its favour
    assert -0.1 < cell["floor"] < 0
    # with values from that floor on, the printed +- is just possible
    rounded = [kinds.largest_deviation(mean, cell["floor"]) for mean in np.linspace(0.465, 0.475, 101)]
    assert max(rounded) == pytest.approx(0.535, abs=1e-6)
    assert not found.loc[found["n_validation"] == 2, "squared"].any()
    assert found["r2"].all()
    assert found["clipped"].sum() == len(found) - 1
    assert found["clipped_se"].mean() < 0.05  # hardly any could be a standard error of values between 0 and 1


def test_smoothness_of_means_that_are_off_by_their_standard_errors():
    expected = rows = 0
    for number in paper_audit.RATIO_TABLES:
        for _, part in paper.published(number).groupby("column"):
            weights = part["plus_minus"] ** -2
            centre = (part["mean"] * weights).sum() / weights.sum()
            expected, rows = (
                expected + (((part["mean"] - centre) / part["plus_minus"]) ** 2).sum(),
                rows + len(part) - 1,
            )
    chi2, degrees, chance = kinds.smoothness()
    assert (chi2, degrees) == (pytest.approx(expected), rows)
    assert chance < 1e-20


# --- simulation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("even", [False, True])
def test_drawn_candidates_have_exactly_the_correlation(even):
    x, e = simulation.draw_candidates(20, 10, np.random.default_rng(0), even=even)
    for one, noise in zip(x, e, strict=True):
        assert stats.pearsonr(one, 0.8 * one + 0.6 * noise).statistic == pytest.approx(0.8)
    if even:
        assert np.diff(x, axis=1) == pytest.approx(np.diff(x, axis=1)[0, 0])


def test_the_protocol_is_the_one_that_our_tables_use():
    """On the candidates of each draw, over all splits: what 2,000 random splits of the simulation come near to."""
    found = simulation.protocol(8, (4,), (0.9,), draws=3, splits=2000, seed=5)
    x, e = simulation.draw_candidates(3, 8, np.random.default_rng(5), even=False)
    y = 0.9 * x + math.sqrt(1 - 0.81) * e
    for kind, measure in (("r2", "r2"), ("clipped", "clipped_r2"), ("squared", "squared_correlation")):
        for draw, row in enumerate(found[found["kind"] == kind].itertuples()):
            every = fit_predict_r2(x[draw], y[draw], 4, "all", measure=measure)
            assert row.mean == pytest.approx(every.mean, abs=5 * every.std / math.sqrt(2000))


def test_two_predicted_candidates_have_a_squared_correlation_of_one():
    found = paper_audit.split_alone(6)
    two = found[(found["kind"] == "squared") & (found["n_validation"] == 2)]
    assert two["expected_mean"].to_numpy() == pytest.approx(1.0)
    assert two["expected_std"].to_numpy() == pytest.approx(0.0, abs=1e-9)
    assert not two["inside"].any()
    # an unbounded R2 of two candidates spreads far more than is printed
    free = found[(found["kind"] == "r2") & (found["n_validation"] == 2)]
    assert (free["low"] > free["plus_minus"]).all()
    assert (found["low"] <= found["expected_std"]).all()
    assert found.groupby(["kind", "column"])["correlation"].nunique().eq(1).all()
    with pytest.raises(ParameterError) as refused:
        paper_audit.split_alone(8)
    assert refused.value.parameter == "number"


def test_a_line_that_explains_as_little_as_fig_3s_predicts_worse_than_table_5():
    found = simulation.fit_explains(0.43, 16, (5, 8), draws=100)
    r2 = found[found["kind"] == "r2"]
    assert (r2["high"] < 0.43).all()  # held-out candidates are predicted worse than fitted ones
    squared = found[found["kind"] == "squared"]
    assert squared["median"].between(0.40, 0.47).all()


def test_intervals_of_rank_correlations_hold_the_truth():
    rng = np.random.default_rng(0)
    rho = 0.75
    r = 2 * math.sin(math.pi * rho / 6)
    x = rng.standard_normal((2000, 16))
    y = r * x + math.sqrt(1 - r * r) * rng.standard_normal((2000, 16))
    held = []
    for one, other in zip(x, y, strict=True):
        low, high = simulation.rank_interval(stats.spearmanr(one, other).statistic, 16)
        held.append(low <= rho <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def test_fewer_candidates_show_less():
    wide, narrow = (simulation.rank_gain_range(0.75, 0.95, n) for n in (10, 100))
    assert wide[0] < narrow[0] < 0.2 < narrow[1] < wide[1]
    assert wide[2] > narrow[2]
    found = paper_audit.what_candidates_show()
    assert set(found["n"]) == {10, 12, 16, 17}
    assert (found["low"] < found["value"]).all()
    assert (found["value"] < found["high"]).all()


# --- findings and pictures --------------------------------------------------------------------------------------------


def test_findings_are_data():
    found = paper_audit.findings()
    assert found.columns.tolist() == ["kind", "place", "printed", "computed"]
    assert found["kind"].nunique() == 10
    assert not found.apply(lambda column: column.str.contains("nan")).any(axis=None)
    said = {row.place: (row.printed, row.computed) for row in found.itertuples()}
    assert said["Table 10, Low (<2B tokens), pass_k"] == ("+0.25", "0.95 - 0.80 = +0.15; no rounding explains it")
    assert "Table 5, 5:11" in said[f"Table 2, {LLAMA}"][1]
    for number, total in ((8, 17), (10, 12)):
        assert f"{total} candidates" in said[f"Table {number}"][1]
        assert f"from 3 to {total - 6} that" in said[f"Table {number}"][1]


def test_a_corrected_table_has_no_odd_gain(monkeypatch):
    cells = paper._read("tables").copy()
    wrong = (cells["table"] == 10) & (cells["printed_gain"] == 0.25)
    cells.loc[wrong, "printed_gain"] = 0.15
    monkeypatch.setattr(paper, "_read", lambda name: cells)
    assert printed.gains()["agrees"].all()
    assert printed.averages()["holds"].all()


def test_pictures():
    fig, ax = new_figure()
    table = paper_audit.split_alone(6)
    plot_split_spread(table, ax)
    assert sum(len(line.get_xdata()) for line in ax.lines) == len(table) + 2  # and the diagonal's ends
    mark_kinds(fig, kinds.KINDS)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == list(kinds.KINDS.values())
    bottom, top = ax.get_ylim()
    points = np.concatenate([line.get_ydata() for line in ax.lines[1:]])
    assert bottom < points.min() == 0.005  # no marker is cut by the edge
    assert points.max() == 100 < top
    ticks = {float(value): label.get_text() for value, label in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)}
    assert (ticks[0.005], ticks[100.0]) == ("≤ 0.005", "≥ 100")
    fig, _ = new_figure(columns=2, width=4.6)  # as the notebook has it
    mark_kinds(fig, kinds.KINDS)
    fig.canvas.draw()
    assert fig.legends[0].get_texts()[-1].get_window_extent().x1 < fig.bbox.x1 - 10
    fig, ax = new_figure()
    shown = paper_audit.what_candidates_show()
    plot_rank_intervals(shown, ax, {column: column for column in paper.COLUMNS})
    assert len(ax.get_yticks()) == len(shown)
