"""The audit of the published tables: against the transcription itself, brute force, and paper_audit."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from quagmire_utils.analysis import paper_audit
from quagmire_utils.core import published as paper
from quagmire_utils.report.plots import new_figure
from quagmire_utils.report.plots.forest import plot_rank_intervals

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
    found = paper_audit.gains()
    assert len(found) == count
    wrong = found[~found["agrees"]]
    assert list(wrong[["table", "row", "column", "difference", "printed"]].itertuples(index=False, name=None)) == odd
    assert odd == [(10, "Low (<2B tokens)", "pass_k", 0.15, 0.25)]
    assert not wrong["rounding"].any()


def test_averages_are_those_of_the_transcription(transcription):
    found = paper_audit.averages().set_index(["table", "what"])
    for number in (8, 10):
        table = transcription[f"table{number}"]
        above = np.array([means(row) for name, row in table["rows"].items() if name != "Average"])
        for i, column in enumerate(table["columns"]):
            assert found.loc[(number, column), "mean"] == pytest.approx(above[:, i].mean())
        assert found.loc[(number, "gain, differences"), "mean"] == pytest.approx((above[:, 1] - above[:, 0]).mean())
    assert found.index[~found["holds"]].tolist() == [(10, "gain as printed")]
    assert set(found.index.get_level_values(0)) == {8, 10}


def test_rows_that_are_printed_twice():
    found = paper_audit.repeated_rows().set_index(["table", "family"])
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
    found = paper_audit.headline_numbers().set_index("name")
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
    assert {value for value in grid if paper_audit.attainable(value, n)} == every


def test_no_budgets_fit_the_printed_correlations():
    for number, total in ((8, 17), (10, 12)):
        table = paper_audit.budget_sizes(number, total)
        assert table.attrs["partitions"] == []
        for row in table.itertuples():
            for size in range(3, total - 5):
                assert (size in row.sizes) == all(paper_audit.attainable(value, size) for value in row.printed)
    # and where there is a way, it is found
    assert paper_audit.attainable(0.5, 3)
    assert paper_audit.attainable(0.8, 4)
    assert not paper_audit.attainable(0.95, 4)


# --- what R2 and ± can be ---------------------------------------------------------------------------------------------


def test_the_largest_deviation_is_that_of_values_at_both_ends():
    ends = np.where(np.arange(100) < 53, 0.0, 1.0)
    cell = paper_audit.feasibility().query("mean == 0.47").iloc[0]
    assert cell["largest"] == pytest.approx(ends.std(ddof=1), abs=1e-3)


def test_what_the_two_point_cell_rules_out():
    found = paper_audit.feasibility()
    assert len(found) == sum(len(paper.published(number)) for number in paper_audit.RATIO_TABLES)
    cell = found[(found["table"] == 6) & (found["row"] == "8:2") & (found["column"] == "pass_k")].iloc[0]
    assert (cell["mean"], cell["plus_minus"]) == (0.47, 0.54)
    assert (cell["clipped"], cell["squared"]) == (False, False)
    assert math.sqrt(0.475 * 0.525) < 0.535 / math.sqrt(100 / 99)  # even rounded to its favour
    assert -0.1 < cell["floor"] < 0
    # with values from that floor on, the printed +- is just possible
    rounded = [math.sqrt((1 - mean) * (mean - cell["floor"]) * 100 / 99) for mean in np.linspace(0.465, 0.475, 101)]
    assert max(rounded) == pytest.approx(0.535, abs=1e-6)
    assert not found.loc[found["n_validation"] == 2, "squared"].any()
    assert found["clipped"].sum() == len(found) - 1
    assert found["clipped_se"].mean() < 0.05  # hardly any could be a standard error of values between 0 and 1


def test_intervals_of_rank_correlations_hold_the_truth():
    rng = np.random.default_rng(0)
    rho = 0.75
    r = 2 * math.sin(math.pi * rho / 6)
    x = rng.standard_normal((2000, 16))
    y = r * x + math.sqrt(1 - r * r) * rng.standard_normal((2000, 16))
    held = []
    for one, other in zip(x, y, strict=True):
        low, high = paper_audit.rank_interval(stats.spearmanr(one, other).statistic, 16)
        held.append(low <= rho <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def test_fewer_candidates_show_less():
    wide, narrow = (paper_audit.rank_gain_range(0.75, 0.95, n) for n in (10, 100))
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
    assert found["kind"].nunique() == 9
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
    assert paper_audit.gains()["agrees"].all()
    assert paper_audit.averages()["holds"].all()


def test_picture_of_what_candidates_show():
    _, ax = new_figure()
    shown = paper_audit.what_candidates_show()
    plot_rank_intervals(shown, ax, {column: column for column in paper.COLUMNS})
    assert len(ax.get_yticks()) == len(shown)
