"""Nothing of the paper is missing: each figure and table has a notebook, a row in the docs, and a place on the page."""

import io
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from quagmire_utils import sweep
from quagmire_utils.core import published as paper
from quagmire_utils.core.records import load_records
from quagmire_utils.core.settings import load_profile
from quagmire_utils.report import notebook, plots
from quagmire_utils.report.card import update_readme
from quagmire_utils.report.page import NAME, build
from quagmire_utils.report.reproduction import Run, run_notebooks
from quagmire_utils.report.study import AUDIT, BEYOND, LEDGER, PLACES, label_of, read_study
from quagmire_utils.sweep.collect import is_collected

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "mini"  # what the README and its picture show
TABLE = ROOT / "docs" / "reproduction.md"
DATA = Path(os.environ.get("QUAGMIRE_DATA_DIR") or "/nowhere")
PAPER = DATA.parent / "paper" / "paper.txt"

EXPECTED = [f"fig{number:02d}" for number in range(1, 11)] + [f"table{number:02d}" for number in range(1, 11)]


@pytest.fixture(scope="module")
def rows() -> list[list[str]]:
    """Cells of the table of docs/reproduction.md, without its head."""
    section = re.split(r"^## ", TABLE.read_text(encoding="utf-8"), flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


@pytest.fixture(scope="module")
def study() -> dict:
    return read_study(RESULTS / "notebooks", ROOT / "notebooks")


@pytest.fixture(scope="module")
def page() -> str:
    return build(RESULTS)


def article_of(place: str, page: str) -> str:
    (found,) = re.findall(rf'<article id="{place}">(.*?)</article>', page, re.DOTALL)
    assert ".ipynb" in found, f"{place} was not executed at profile mini"
    return found


def test_the_page_has_the_papers_figures_and_tables_and_no_other():
    assert sorted(PLACES) == sorted(EXPECTED)
    printed = pd.read_csv(paper.FOLDER / "tables.csv")["table"].unique()
    assert sorted(f"table{number:02d}" for number in printed) == EXPECTED[10:]


@pytest.mark.skipif(not PAPER.is_file(), reason=f"the paper's text is not there: {PAPER.name}")
def test_the_order_is_that_of_the_papers_captions():
    """Figures before tables within a section, otherwise as their captions follow each other in the paper's text."""
    text = PAPER.read_text(encoding="utf-8")
    captions = re.findall(r"^(Figure|Table) (\d+) (?!shows )", text, flags=re.MULTILINE)
    order = [f"{'fig' if kind == 'Figure' else 'table'}{int(number):02d}" for kind, number in captions]
    assert sorted(order) == sorted(EXPECTED)
    assert list(PLACES) == order


@pytest.mark.parametrize("place", EXPECTED)
def test_has_an_executed_notebook_a_row_in_the_table_and_a_place_on_the_page(place, study, rows, page):
    entry, label, figure = study[place], label_of(place), place.startswith("fig")
    assert entry.title.startswith(f"{label}: ")
    assert entry.claim
    (row,) = [row for row in rows if re.search(rf"\b{label}\b", row[0])]
    assert f"](../{(RESULTS / 'notebooks' / entry.name).relative_to(ROOT)}.ipynb)" in row[0]
    shows, published, ours, scale, seconds = row[1:]
    assert shows == entry.short_title
    assert published
    assert ours
    assert "mini" in scale
    assert re.fullmatch(r"\d+ (s|min)", seconds)
    article = article_of(place, page)
    assert f"<h3>{label}{'. The paper: ' if figure else ': '}" in article
    assert ("The paper’s caption" in article) == figure
    assert ("<img " if figure else "<table") in article
    assert "What our scale says" in article
    assert f'href="#{place}"' in page


def test_the_ledger_and_the_audit_are_on_the_page(page):
    assert article_of(LEDGER, page)
    assert article_of(AUDIT, page)


def test_the_table_is_that_of_the_executed_notebooks(tmp_path):
    """Run times are not compared: notebooks that are executed again show the same numbers after other seconds."""
    copy = tmp_path / "README.md"
    copy.write_text(TABLE.read_text(encoding="utf-8"), encoding="utf-8")
    update_readme(copy, RESULTS)
    seen_from = {path: os.path.relpath(RESULTS, path.parent.resolve()) for path in (TABLE, copy)}
    copy.write_text(copy.read_text(encoding="utf-8").replace(seen_from[copy], seen_from[TABLE]), encoding="utf-8")
    before, after = (
        [line.rpartition(" | ")[0] if line.startswith("|") else line for line in path.read_text("utf-8").splitlines()]
        for path in (TABLE, copy)
    )
    assert before == after, "docs/reproduction.md is stale: quagmire report readme mini"


def test_the_page_is_that_of_the_executed_notebooks(page):
    path = RESULTS / NAME
    assert path.is_file(), "there is no page: ./reproduce.sh --profile mini --only report"
    assert path.read_text(encoding="utf-8") == page, "the page is stale: ./reproduce.sh --profile mini --only report"


def lines_and_numbers(svg: Path) -> tuple[str, list[float]]:
    """Return a drawing without its numbers, and the numbers; names that matplotlib makes of numbers are left out."""
    text = re.sub(r"\b[a-z]?[0-9a-f]{10}\b", "", svg.read_text(encoding="utf-8"))
    number = r"-?\d+(?:\.\d+)?"
    return re.sub(number, "#", text), [float(found) for found in re.findall(number, text)]


def assert_same_drawing(shipped: Path, drawn: Path) -> None:
    (one, here), (other, there) = lines_and_numbers(shipped), lines_and_numbers(drawn)
    assert one == other, f"{shipped.name} is stale: ./reproduce.sh --profile mini"
    assert here == pytest.approx(there, rel=1e-3, abs=0.1), f"{shipped.name} is stale: ./reproduce.sh --profile mini"


def test_the_shipped_curves_of_rl_are_those_of_the_code(tmp_path):
    """As `run_sweep` draws them, which trains nothing where the records are complete."""
    records = load_records(RESULTS)
    fig = plots.rl_curve_grid(records.rl_curves, candidates=records.candidates)
    plots.stamp(fig, notebook.stamp_text(records.manifest))
    plots.save_figure(fig, tmp_path / "rl_curves")
    assert_same_drawing(RESULTS / "figures" / "rl_curves.svg", tmp_path / "rl_curves.svg")


@pytest.mark.slow
def test_every_other_shipped_picture_is_that_of_the_code(tmp_path):
    folder = tmp_path / "mini"
    shutil.copytree(RESULTS, folder, ignore=shutil.ignore_patterns("figures", "notebooks", "logs", "scratch"))
    only = ("fig", LEDGER, AUDIT, *BEYOND, "design_microlab", "rank_candidates", "forecast_rl")
    run_notebooks(Run(str(folder), only), io.StringIO())
    drawn = sorted((folder / "figures").glob("*.svg"))
    names = {path.name for path in (RESULTS / "figures").glob("*.svg")}
    assert {path.name for path in drawn} == names - {"rl_curves.svg"}
    for path in drawn:
        assert_same_drawing(RESULTS / "figures" / path.name, path)


def test_the_readme_shows_the_pages_picture():
    assert re.search(r"!\[[^\]]{10,}\]\(results/mini/report\.png\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert (RESULTS / "report.png").is_file(), "no picture: quagmire report screenshot mini"


def test_the_shipped_records_are_complete_and_nothing_is_trained_again():
    """A clone has no checkpoints: run_sweep must find every cell in the records, made with the profile's settings."""
    profile = load_profile("mini")
    cells = sweep.plan(profile)
    missing = {cell.id for cell in cells} - sweep.finished_cells(RESULTS, cells)
    assert not missing, f"{len(missing)} of {len(cells)} cells of results/mini are not those of the profile"
    assert is_collected(profile, RESULTS, cells)
