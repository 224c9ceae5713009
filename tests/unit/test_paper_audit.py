"""The audit of the published tables: its notebook's numbers against the transcription itself and brute force."""

import itertools
import json
import math

import numpy as np
import pytest
from notebook_cells import run_cells
from scipy import stats

from quagmire_utils.core import published as paper

LLAMA, MISTRAL = paper.FAMILIES


@pytest.fixture(scope="module")
def audit(tmp_path_factory) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUAGMIRE_OUTPUT", str(tmp_path_factory.mktemp("audit")))
        return run_cells("paper_audit")


@pytest.fixture
def transcription(paper_file) -> dict:
    return json.loads(paper_file("published_tables.json").read_text(encoding="utf-8").replace("pass64", "pass_k"))


def means(row: list) -> list[float]:
    return [value[0] if isinstance(value, list) else value for value in row]


def test_gains_are_those_of_the_transcription(audit, transcription):
    odd, count = [], 0
    for name, table in transcription.items():
        for row, gain in table["printed_gain"].items():
            values = dict(zip(table["columns"], means(table["rows"][row]), strict=True))
            column, number = gain if isinstance(gain, list) else (max(values, key=values.get), gain)
            difference = round(values[column] - values["pass1"], 2)
            count += 1
            if difference != number:
                odd.append((int(name.removeprefix("table")), row, column, difference, number))
    assert len(audit["gains"]) == count
    wrong = audit["wrong"][["table", "row", "column", "difference", "printed_gain"]]
    assert list(wrong.itertuples(index=False, name=None)) == odd
    assert odd == [(10, "Low (<2B tokens)", "pass_k", 0.15, 0.25)]


def test_averages_are_those_of_the_transcription(audit, transcription):
    found = audit["averages"]
    for number in (8, 10):
        table = transcription[f"table{number}"]
        above = np.array([means(row) for name, row in table["rows"].items() if name != "Average"])
        expected = [*above.mean(axis=0), (above[:, 1] - above[:, 0]).mean()]
        shown = [(number, column) for column in (*table["columns"], "gain, differences")]
        assert found.loc[shown, "mean"].tolist() == pytest.approx(expected)
    assert found.index[~found["holds"]].tolist() == [(10, "gain as printed")]
    assert set(found.index.get_level_values(0)) == {8, 10}


def test_rows_that_are_printed_twice(audit):
    found = audit["repeated"].set_index("place")
    said = {
        f"Table 2, {LLAMA}": "Table 5, 5:11",
        f"Table 2, {MISTRAL}": "Table 6, 5:5",
        f"Table 3, {LLAMA}": "Table 8, Average",
        f"Table 3, {MISTRAL}": "Table 10, Average",
        f"Table 4, {LLAMA}": "Table 7, 8:9",
        f"Table 4, {MISTRAL}": "Table 9, 6:6",
    }
    assert found["computed"].str.extract(r"the numbers of ([^;]+)")[0].to_dict() == said
    assert found.index[~found["holds"]].tolist() == [f"Table 2, {LLAMA}"]


def test_headlines(audit):
    said = audit["headlines"]["computed"]
    assert "Table 3, Llama3-8B-Instruct, pass_k: 0.69 to 0.94, 36 %" in said["instance_spearman_gain_up_to"]
    assert "Table 10, High, pass_k: 0.50 to 1.00, 2.00x" in said["gain_factor_up_to"]
    assert said["dataset_spearman_gain"].startswith("no cell")  # 30 %: the nearest is 29 %
    extreme = audit["headlines"]["is_extreme"]  # others: 0.27 to 0.75 is 2.78x, Mistral's gain is 40 %
    assert extreme.index[extreme].tolist() == ["gain_up_to", "dataset_spearman_at_least"]


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_attainable_correlations_by_trying_every_order(audit, n):
    ranks = np.arange(n)
    every = {round(stats.spearmanr(ranks, order).statistic, 2) for order in itertools.permutations(ranks)}
    assert audit["attainable"][n] == every


def test_no_budgets_fit_the_printed_correlations(audit):
    for said, number, total in zip(audit["budgets"]["computed"], (8, 10), (17, 12), strict=True):
        part = paper.published(number).query("row != 'Average'").groupby("row", sort=False)["mean"].agg(set)
        sizes = [[n for n in range(3, total - 5) if audit["attainable"][n] >= values] for values in part]
        assert total not in map(sum, itertools.product(*sizes))
        assert said.startswith(f"{total} candidates (Table {number - 1}): no division fits; sizes from 3")


def test_what_the_two_point_cell_rules_out(audit):
    found = audit["r2"]
    ends = np.where(np.arange(100) < 53, 0.0, 1.0)  # the largest deviation is that of values at both ends
    assert found.query("mean == 0.47").iloc[0]["largest"] == pytest.approx(ends.std(ddof=1), abs=1e-3)
    assert len(found) == sum(len(paper.published(number)) for number in (5, 6, 7, 9))
    cell = found.query("table == 6 and row == '8:2' and column == 'pass_k'").iloc[0]
    assert tuple(cell[["mean", "plus_minus", "clipped", "squared"]]) == (0.47, 0.54, False, False)
    # with values from that floor on, the printed +- is just possible
    rounded = [math.sqrt((1 - mean) * (mean - cell["floor"]) * 100 / 99) for mean in np.linspace(0.465, 0.475, 101)]
    assert max(rounded) == pytest.approx(0.535, abs=1e-6)
    assert not found.loc[found["n_validation"] == 2, "squared"].any()
    assert found["clipped"].sum() == len(found) - 1
    assert found["as_error"].mean() < 0.05  # hardly any could be a standard error of values between 0 and 1
