"""The data card of results/mini, and the executed copies of rank_candidates and forecast_rl."""

import html
import re
from pathlib import Path

import nbformat
import pytest

from quagmire_utils.analysis.advice import advise
from quagmire_utils.analysis.forecasting import known_runs
from quagmire_utils.analysis.measurements import load_measurements
from quagmire_utils.core.files import read_json, read_parquet, write_json, write_parquet
from quagmire_utils.core.records import RECORDS
from quagmire_utils.report import card

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "results" / "mini"


@pytest.mark.parametrize("name", ["rank_candidates", "forecast_rl"])
def test_the_shipped_copies_are_of_these_notebooks_and_say_what_is_said_now(mini, name):
    path = MINI / "notebooks" / f"{name}.ipynb"
    source, copy = (nbformat.read(p, as_version=4) for p in (ROOT / "notebooks" / path.name, path))
    cells = [c for c in copy.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    assert [c.source for c in cells] == [c.source for c in source.cells]
    measured = load_measurements(mini, family="Llama3-8B-Instruct", scenario="dataset")
    said = advise(measured, known_runs(measured.table, 5) if name == "forecast_rl" else None).text
    outputs = [o for c in cells if c.cell_type == "code" for o in c.outputs]
    shown = [o["data"]["text/markdown"] for o in outputs if "text/markdown" in o.get("data", {})]
    assert html.escape(f"**{measured.source}.** {said}", quote=False) in shown
    assert "profile mini, measured" in shown[-1]


CARD = ROOT / "results" / "mini" / "README.md"


def documented_columns(text: str) -> dict[str, list[str]]:
    """The columns that a card documents, by file: the first cells of the table below each `### <file>.parquet`."""
    columns: dict[str, list[str]] = {}
    for section in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        if file := re.match(r"`(\w+)\.parquet`", heading):
            first = re.findall(r"^\| ([^|]+?) \|", re.split(r"^#", body, flags=re.MULTILINE)[0], flags=re.MULTILINE)
            columns[file[1]] = [name for cell in first for name in re.findall(r"`(\w+)`", cell)]
    return columns


@pytest.mark.parametrize("profile", ["mini", "mini-choice", "mini-pilot", "mini-v1", "mini-v1-pilot"])
def test_the_card_documents_every_column_and_no_other(profile):
    folder = ROOT / "results" / profile
    documented = documented_columns((folder.parent / re.sub("-[cp].+", "", profile) / "README.md").read_text("utf-8"))
    assert set(documented) == set(RECORDS)
    for name, columns in documented.items():
        assert len(columns) == len(set(columns))
        found = set(read_parquet(folder / f"{name}.parquet").columns)
        if name == "cells":  # parts that no cell of these records has
            found |= {column for column in columns if column.startswith("seconds_")}
        assert set(columns) == found


def test_the_card_says_what_the_profile_and_the_records_say(mini, profile, tmp_path):
    text = card.generated_part(mini.folder, profile)
    assert "| all |  | 35 | 37 | 12 | 76 | 161 | 240 |" in text
    assert "240 of 240 cells" in text
    assert f"| `counts.parquet` | {len(mini.counts):,} |" in text
    assert f"| 161 | {mini.cells.groupby('kind')['seconds_total'].sum()['rl'] / 3600:.2f} |" in text
    assert "No records yet" in card.generated_part(tmp_path, profile)


def test_updating_the_card_keeps_its_words(mini, profile, tmp_path):
    for name in RECORDS:  # what a sweep leaves that has begun
        write_parquet(getattr(mini, name).head(15), tmp_path / f"{name}.parquet")
    write_json(mini.manifest, tmp_path / "manifest.json")
    assert not card.update_card(tmp_path, profile)  # no card
    before, rest = CARD.read_text(encoding="utf-8").split(card.BEGIN)
    (tmp_path / "README.md").write_text(before + card.BEGIN + rest, encoding="utf-8")
    for _ in range(2):  # the second time changes nothing
        assert card.update_card(tmp_path, profile)
        text = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert text.startswith(before + card.BEGIN)
        assert text.endswith(card.END + rest.split(card.END)[1])
        assert text.count("15 of 240 cells") == 1
    (tmp_path / "README.md").write_text("# words alone")
    assert not card.update_card(tmp_path, profile)
    assert (tmp_path / "README.md").read_text() == "# words alone"


def test_the_shipped_card_is_that_of_the_shipped_records(profile):
    """What depends on the profile is up to date always; what depends on the run once the grid is complete."""
    shipped = CARD.read_text(encoding="utf-8").split(card.BEGIN)[1].split(card.END)[0].strip()
    expected = card.generated_part(CARD.parent, profile)
    cut = "### What has been run"
    assert shipped.split(cut)[0] == expected.split(cut)[0]
    manifest = CARD.parent / "manifest.json"
    if manifest.is_file() and read_json(manifest).get("complete"):
        assert shipped == expected, "run `quagmire report card mini`"
