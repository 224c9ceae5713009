"""The published numbers against the paper and its transcription, and against each other."""

import json
import math
import re

import pytest

from quagmire_utils.core import published as paper


def printed_cell(table: int | str, row: str, column: str):
    cells = paper.published(table)
    return cells[(cells["row"] == row) & (cells["column"] == column)].iloc[0]


def test_every_cell_equals_the_transcription(paper_file):
    source = json.loads(paper_file("published_tables.json").read_text(encoding="utf-8"))
    assert len(source) == 10
    for name, table in source.items():
        cells = paper.published(name)
        assert len(cells) == len(table["rows"]) * len(table["columns"])
        ours = {(cell.row, cell.column): cell for cell in cells.itertuples(index=False)}
        for row, values in table["rows"].items():
            for column, printed in zip(table["columns"], values, strict=True):
                cell = ours[row, column.replace("pass64", "pass_k")]
                mean, plus_minus = printed if isinstance(printed, list) else (printed, math.nan)
                assert (cell.mean, cell.plus_minus) == pytest.approx((mean, plus_minus), abs=0, nan_ok=True)
                assert cell.statistic == ("spearman" if table["title"].startswith("Spearman") else "r2")
                assert cell.family in f"{table['title']} {row}"


@pytest.mark.parametrize("frame", [paper.settings(), paper.claims()], ids=["settings", "claims"])
def test_every_quote_is_in_the_paper_and_holds_its_number(frame, paper_file):
    text = paper_file("paper.txt").read_text(encoding="utf-8")
    for row in frame.itertuples():
        assert row.quote in text, row.name
        numbers = re.findall(
            r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e-\d+)?", row.quote.replace("lr=", "lr = ").replace("@", "@ ")
        )
        assert row.value in map(float, numbers), (row.name, numbers)
    assert frame["name"].is_unique


def test_captions_are_the_papers(paper_file):
    text = paper_file("paper.txt").read_text()
    shown = paper.captions()
    assert list(shown) == list(range(1, 11))
    assert "correlates with R² = 0.43, indicating" in shown[3]
    for number, caption in zip(shown, paper._read("captions")["caption"], strict=True):
        assert f"Figure {number} {caption}\n" in text


def test_rows_have_one_gain_at_their_best_cell_and_splits_share_their_candidates():
    totals = {5: 16, 6: 10, 7: 17, 9: 12}
    for table in range(1, 11):
        cells = paper.published(table)
        for row, mine in cells.groupby("row"):
            gains = mine.dropna(subset="printed_gain")
            assert len(gains) == 1, (table, row)
            assert gains["mean"].item() == mine["mean"].max()
        if table in totals:
            assert (cells["n_fit"] + cells["n_validation"] == totals[table]).all()
        else:
            assert cells["n_fit"].isna().all()
        assert set(cells["scenario"]) == {"dataset" if table in (1, 2, 5, 6) else "instance"}
        assert ("gen_loss" in set(cells["column"])) == (table in (1, 2, 5, 6))
    assert printed_cell(10, "Low (<2B tokens)", "pass_k")["note"] == "the difference is +0.15"  # a misprint
