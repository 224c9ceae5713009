"""The notebooks: clean, thin, parameters are literals; executed in real kernels, they show what the library says."""

import ast
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import papermill
import pytest
from example_cells import TINY
from example_records import make_records, write_records
from nbclient.util import run_sync

from quagmire_utils.analysis import tables
from quagmire_utils.analysis.candidates import candidate_frame
from quagmire_utils.core import published as paper
from quagmire_utils.core.paths import ROOT
from quagmire_utils.core.records import load_records
from quagmire_utils.grading import Grader
from quagmire_utils.report import execution, notebook
from quagmire_utils.report.answers import Watched
from quagmire_utils.report.study import AUDIT, BEYOND, HEADLINE, LEDGER
from quagmire_utils.training import microlab

BENCHMARKS = ROOT / "results" / "mini-v1" / "benchmarks"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TABLES = {spec.slug: number for number, spec in tables.TABLES.items()}  # all executed from table.ipynb
FIGURES = [path.stem for path in NOTEBOOKS if re.match(r"fig\d\d_", path.stem)]
STUDY = [*FIGURES, *TABLES, LEDGER, AUDIT, *BEYOND]
REPORTED = [*FIGURES, "table", LEDGER, AUDIT, *BEYOND]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_clean_thin_and_with_parameters_that_are_literals(path):
    """About ten cells of code, in them no function longer than two lines, and a use for every parameter."""
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    assert "papermill" not in book.metadata
    for cell in book.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert set(cell.metadata) <= {"tags"}
    assert book.cells[0].cell_type == "markdown"
    assert book.cells[0].source.startswith("# ")
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert len(cells) <= 10
    tags = [cell.metadata.get("tags", []) for cell in cells]
    if path.stem in REPORTED:
        assert ["report"] in tags
        assert tags[-1] == ["provenance"]
        assert tags.count(["provenance"]) == 1
    trees = [ast.parse(cell.source.rstrip().rstrip(";")) for cell in cells]
    parameters = trees.pop(tags.index(["parameters"])).body
    for statement in parameters:
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)
    names = {target.id for statement in parameters for target in statement.targets}
    assert len(names) == len(parameters)
    assert "profile" in names or path.stem == "evaluate_model"
    nodes = [node for tree in trees for node in ast.walk(tree)]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    assert all(node.end_lineno - node.lineno < 2 for node in functions)
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    assert names <= used, sorted(names - used)


def shown(book: nbformat.NotebookNode, kind: str) -> list[str]:
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[Callable[..., nbformat.NotebookNode]]:
    """Execute a notebook with parameters, in one kernel in a folder that is not the repo; once for the same ones."""
    kernel, done = execution.start_kernel(tmp_path_factory.mktemp("elsewhere")), {}

    def execute(name: str, again: bool = False, **parameters: object) -> nbformat.NotebookNode:
        given = {key: str(value) if isinstance(value, Path) else value for key, value in parameters.items()}
        given |= {"table": TABLES[name]} if name in TABLES else {}
        key = (name, repr(given))
        if again or key not in done:
            source = ROOT / "notebooks" / f"{'table' if name in TABLES else name}.ipynb"
            done[key] = papermill.execute_notebook(str(source), None, given, km=kernel, progress_bar=False)
            execution.reset(kernel)
        return done[key]

    yield execute
    run_sync(kernel.shutdown_kernel)(now=True)


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    """Records of three families with the whole grid, like the mini profile's."""
    return write_records(tmp_path_factory.mktemp("full") / "example", make_records(full=True))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Records of one family that stands for Llama, dataset level alone, like the smoke profile's."""
    frames = make_records()
    chosen = frames["candidates"]["scenario"] == "dataset"
    names = set(frames["candidates"].loc[chosen, "candidate"])
    kept = {key: frame[frame["candidate"].isin(names)].reset_index(drop=True) for key, frame in frames.items()}
    return write_records(tmp_path_factory.mktemp("small") / "example", kept)


FEWER = {  # draws than the shipped copies have
    "pass_at_k_from_few_samples": {"n_draws": 2, "n_candidates": 4},
    "real_models": {"n_resamples": 50},
    "rl_is_worth_k_tries": {"n_resamples": 50},
}
WITHOUT_RECORDS = ("paper_audit", "real_models")


@pytest.mark.parametrize(
    ("scale", "name"),
    [*(("full", name) for name in STUDY), *(("small", name) for name in STUDY if name not in WITHOUT_RECORDS)],
)
def test_every_notebook_of_the_study_executes(run, name, scale, request):
    """Also where a family or a scenario was not run: it says so and finishes."""
    folder = request.getfixturevalue(scale)
    book = run(name, profile=folder, **FEWER.get(name, {}))
    texts = shown(book, "text/markdown")
    if name in WITHOUT_RECORDS:
        return
    assert texts[-1] == notebook.provenance(load_records(folder).manifest)
    assert "profile example, measured" in texts[-1]
    everything = "\n".join(texts + shown(book, "text/html"))
    assert "nan" not in re.findall(r"[a-zA-Z]+", everything.replace("NaN", ""))
    if name in TABLES and scale == "small" and paper.FAMILIES[1] in set(paper.published(TABLES[name])["family"]):
        assert "not run" in everything


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("scale", ["full", "small"])
def test_table_notebooks_show_what_tables_computes(run, name, scale, request):
    folder = request.getfixturevalue(scale)
    book, frame = run(name, profile=folder), candidate_frame(load_records(folder))
    table = tables.compute_table(frame, TABLES[name])
    html = shown(book, "text/html")
    assert tables.show_table(table, "example")._repr_html_() in html
    assert tables.compare_gains(table)._repr_html_() in html
    sensitivity = tables.compute_sensitivity(frame, TABLES[name])
    assert tables.show_sensitivity(sensitivity)._repr_html_() in html
    supplement = tables.compute_table(frame, TABLES[name], supplement=True)
    assert len(supplement) == 0 or tables.show_table(supplement, "example")._repr_html_() in html
    said = tables.headline(table)
    assert all(part in shown(book, HEADLINE)[0].values() for part in said)
    # the computation in the notebook's own cell gives the table's first cell
    printed = "".join(output.text for cell in book.cells for output in cell.get("outputs", []) if "text" in output)
    by_hand, in_table = re.search(r"Pass@1: (\S+) by hand, (\S+) in the table", printed).groups()
    assert by_hand == in_table
    assert (by_hand == "undefined") == (table["status"].iloc[0] != "measured")


@pytest.mark.parametrize(
    ("name", "parameters", "verdict_on"),
    [
        ("fig03_sft_vs_rl", {"family": "Mistral-NeMo-12B-Instruct"}, ""),
        ("fig05_generalization_loss", {"family": "micro-mistral"}, ""),
        ("fig02_more_examples_two_families", {"families": ["micro-mistral"]}, "micro-mistral"),
        ("table08_spearman_by_budget_llama", {"family": "Mistral-NeMo-12B-Instruct"}, ""),
        ("table01_spearman_dataset_level", {"family": "micro-llama"}, "micro-llama"),
    ],
)
def test_the_verdict_is_about_the_family_that_is_drawn(run, full, name, parameters, verdict_on):
    book = run(name, profile=full, **parameters)
    ledger = "".join(text for text in shown(book, "text/html") if "the claim says" in text)
    assert set(re.findall(r">(micro-[a-z]+)<", ledger)) == ({verdict_on} - {""})


def test_evaluate_model_on_a_micro_model(run, tmp_path):
    tokenizer = microlab.build_tokenizer()
    for part in (microlab.build_model("llama", tokenizer, hidden_size=32, layers=1), tokenizer):
        part.save_pretrained(tmp_path / "model")
    folders = {"model": tmp_path / "model", "output": tmp_path / "evaluation"}
    asked = {"benchmarks": f"{BENCHMARKS}/lanes[34].jsonl", "limit": 3, "num_samples": 4, "k": 4, "forecast_k": 64}
    book = run("evaluate_model", **asked, max_tokens=16, **folders)
    html = "\n".join(shown(book, "text/html"))
    assert "macro average" in html
    assert "Pass@64 %, forecast" in html
    page = (tmp_path / "evaluation" / "evaluation.html").read_text(encoding="utf-8")
    assert "Forecast, not measured: Pass@64 of these problems about" in page
    order = [page.index(text) for text in ("<h2>Scores", "<img ", ">truncated", "<h2>Answers", "<summary>How it was")]
    assert order == sorted(order)
    assert html.count("tex2jax_ignore") >= 5  # answers of a random model, escaped
    assert len(shown(book, "image/png")) == 2
    assert (tmp_path / "evaluation" / "manifest.json").is_file()
    assert "model model, measured" in shown(book, "text/markdown")[-1]
    watched = Watched(tmp_path / "evaluation", "what `quagmire view` knows")
    with Grader(1) as grader:
        watched.look(grader)
    assert (watched.wanted, watched.drawn, watched.graded, watched.complaint) == (24, 24, 24, "")


@pytest.mark.slow
def test_run_sweep_from_nothing_and_again(run, tmp_path):
    name = f"test-{os.getpid()}"
    profile = tmp_path / "tiny.yaml"
    profile.write_text(TINY.replace("name: tiny", f"name: {name}"))
    results = ROOT / "results" / name
    try:
        book = run("run_sweep", profile=profile)
        records = load_records(results)
        assert records.profile == name
        assert f"<td>{records.counts['n'].sum()}</td>" in "".join(shown(book, "text/html"))
        assert (ROOT / "runs" / name / "figures" / "rl_curves.svg").is_file()
        before = candidate_frame(records, k=4)
        run("run_sweep", again=True, profile=profile)
        assert candidate_frame(load_records(results), k=4).equals(before)  # nothing is computed again
    finally:
        for folder in (results, ROOT / "runs" / name):
            shutil.rmtree(folder, ignore_errors=True)
