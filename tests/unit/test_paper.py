"""The published numbers against the paper's own text, and against each other."""

import json
import math
import re

import pytest

from quagmire_utils.core import published as paper
from quagmire_utils.core.errors import ParameterError

ROW_NAMES = [
    (re.compile(r"Fitting: (\d+); Validation: (\d+)"), r"\1:\2"),
    (re.compile(r"Low Budget.*"), "Low (<2B tokens)"),
    (re.compile(r"Medium Budget.*"), "Medium (2-5B tokens)"),
    (re.compile(r"High Budget.*"), "High (5-20B tokens)"),
    (re.compile(r"Average"), "Average"),
]
CELL = re.compile(r"(\d\.\d\d)(?: ± (\d\.\d\d))?(?: \( ?\+(\d\.\d\d) ?\))?")


def printed_cells(text: str) -> dict[tuple[int, str, str], tuple[float, ...]]:
    """(table, row, column) -> (mean, plus_minus, gain), read from the text with its scraps of LaTeX."""
    columns = {1: 4, 2: 4, 3: 2, 4: 2, 5: 4, 6: 4, 7: 2, 8: 2, 9: 2, 10: 2}
    cells, table = {}, None
    for line in text.splitlines():
        if caption := re.match(r"Table (\d+) (?!shows)", line):
            table = int(caption[1])
            continue
        line = line.replace(r"\pm", "±").replace(r"\text{-}", "-")
        plain = re.sub(r"\\begin\{array\}\{[^}]*\}+|\\[a-zA-Z]+|\{array\}|[\\{}$~|]", " ", line)
        plain = re.sub(r" *± *", " ± ", re.sub(r"[ ]+", " ", plain))
        head, *fields = [field.strip() for field in plain.split("\t")]
        if table is None or len(fields) != columns[table] or not CELL.search(fields[0]):
            continue
        names = [family for family in paper.FAMILIES if family in head]
        for pattern, name in ROW_NAMES:
            if match := pattern.search(head):
                names = [match.expand(name)]
        order = [name for name in paper.COLUMNS if len(fields) == 4 or name in ("pass1", "pass_k")]
        for column, field in zip(order, fields, strict=True):
            for row, found in zip(names, CELL.findall(field), strict=False):  # a cell missing in the text stays missing
                cells[table, row, column] = tuple(float(number) if number else math.nan for number in found)
    return cells


def printed_cell(table: int | str, row: str, column: str):
    """One cell of a table, by name."""
    cells = paper.published(table)
    return cells[(cells["row"] == row) & (cells["column"] == column)].iloc[0]


def same(first: float, second: float) -> bool:
    return first == second or (math.isnan(first) and math.isnan(second))


def all_cells():
    for table in range(1, 11):
        yield from paper.published(table).itertuples(index=False)


def test_every_cell_equals_the_papers_text(paper_file):
    printed = printed_cells(paper_file("paper.txt").read_text(encoding="utf-8"))
    ours = {
        (cell.table, cell.row, cell.column): (cell.mean, cell.plus_minus, cell.printed_gain) for cell in all_cells()
    }
    missing = (2, "Mistral-NeMo-12B-Instruct", "pass1")
    assert ours.keys() - printed.keys() == {missing}, "only the cell that the text lacks"
    assert printed.keys() <= ours.keys()
    differing = {key for key in printed if not all(map(same, printed[key], ours[key]))}
    assert not differing
    assert ours[missing] == pytest.approx((0.29, 0.38, math.nan), nan_ok=True)


def test_every_cell_equals_the_transcription(paper_file):
    source = json.loads(paper_file("published_tables.json").read_text(encoding="utf-8"))
    ours = {(cell.table, cell.row, cell.column): cell for cell in all_cells()}
    assert len(ours) == sum(len(table["rows"]) * len(table["columns"]) for table in source.values())
    for name, table in source.items():
        number = int(name.removeprefix("table"))
        for row, values in table["rows"].items():
            for column, printed in zip(table["columns"], values, strict=True):
                cell = ours[number, row, column.replace("pass64", "pass_k")]
                mean, plus_minus = printed if isinstance(printed, list) else (printed, math.nan)
                assert same(cell.mean, mean)
                assert same(cell.plus_minus, plus_minus)
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


def test_one_gain_a_row_at_its_best_cell():
    for table in range(1, 11):
        for row, cells in paper.published(table).groupby("row"):
            gains = cells.dropna(subset="printed_gain")
            assert len(gains) == 1, (table, row)
            assert gains["mean"].item() == cells["mean"].max()
    assert printed_cell(10, "Low (<2B tokens)", "pass_k")["note"] == "the difference is +0.15"  # a misprint


def test_the_splits_of_a_table_share_their_candidates():
    totals = {5: 16, 6: 10, 7: 17, 9: 12}
    for table in range(1, 11):
        cells = paper.published(table)
        if table in totals:
            assert (cells["n_fit"] + cells["n_validation"] == totals[table]).all()
        else:
            assert cells["n_fit"].isna().all()
        spearman = cells["statistic"] == "spearman"
        assert (cells["plus_minus"].isna() == spearman).all()
        assert set(cells["scenario"]) == {"dataset" if table in (1, 2, 5, 6) else "instance"}
        assert ("gen_loss" in set(cells["column"])) == (table in (1, 2, 5, 6))


def test_a_table_by_name():
    cell = printed_cell("table05", "8:8", "avg_genloss_pass_k")
    assert cell[["mean", "plus_minus", "printed_gain", "note"]].tolist() == [0.93, 0.05, 0.29, ""]
    assert paper.published(5).equals(paper.published("5"))
    frame = paper.published(5)
    frame["mean"] = 0.0
    assert printed_cell(5, "8:8", "pass1")["mean"] == 0.64, "a caller's change must not reach the next"


@pytest.mark.parametrize("table", [0, 11, "figure3"])
def test_an_unknown_table_is_refused(table):
    with pytest.raises(ParameterError) as refused:
        paper.published(table)
    assert (refused.value.parameter, refused.value.value) == ("table", table)


def test_missing_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "FOLDER", tmp_path)
    paper._read.cache_clear()
    with pytest.raises(ParameterError, match=r"tables\.csv is missing"):
        paper.published(1)
