"""Commands on stored answers: compare, view, grade; no model and no GPU, unless `--until-decided` draws more."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quagmire_utils.cli.app import OWN, app
from quagmire_utils.cli.decisions import Models, Most, These, Within, decide, make_design
from quagmire_utils.core.errors import ParameterError

if TYPE_CHECKING:
    import pandas as pd

    from quagmire_utils.data import Problem
    from quagmire_utils.evaluation.store import SampleStore

grade_app = typer.Typer(no_args_is_help=True, help="Score, regrade or audit stored answers; needs no model and no GPU.")
app.add_typer(grade_app, name="grade", rich_help_panel=OWN)


@app.command(rich_help_panel=OWN)
def compare(
    a: Annotated[Path, typer.Argument(help="Output folder of an evaluation.")],
    b: Annotated[Path, typer.Argument(help="Output folder of the evaluation to compare it with.")],
    k: Annotated[str, typer.Option("-k", help="One k, or several separated by commas.")] = "1",
    until_decided: Annotated[bool, typer.Option("--until-decided", help="Draw answers until they decide.")] = False,
    within: Within = 2.0,
    num_samples: Most = 64,
    these_problems: These = False,
    models: Models = None,
) -> None:
    """Compare two evaluations on the same problems: difference, 95 % interval, p-value."""
    if until_decided:
        return decide(a, b, make_design(_ks(k), within, num_samples, these_problems), models)
    from quagmire_utils.evaluation.evaluate import compare_outputs
    from quagmire_utils.evaluation.measured import describe_comparison, show_comparison

    table = compare_outputs(a, b, _ks(k))
    print(describe_comparison(table, str(a), str(b)))
    print(show_comparison(table).to_string())


@app.command(rich_help_panel=OWN)
def view(
    folder: Annotated[Path, typer.Argument(help="Output folder of an evaluation, finished or running.")],
    beside: Annotated[Path | None, typer.Argument(help="Folder of another one, to show beside it.")] = None,
    benchmarks: Annotated[str, typer.Option(help="Names or files with the golds, if the folder does not say.")] = "",
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1. Default: one that is free.")] = 0,
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open it in a browser.")] = True,
) -> None:
    """Watch one or two evaluations in the browser while they run: progress, scores so far, answers. Changes nothing."""
    from quagmire_utils.report.viewer import view

    view([folder] if beside is None else [folder, beside], benchmarks, port=port, show=show)


StoreFolder = Annotated[Path, typer.Argument(help="Folder of the stored answers.")]
Golds = Annotated[list[str] | None, typer.Option("--benchmark", help="Name or file with the golds; repeatable.")]
DataDir = Annotated[str | None, typer.Option(help="Local mirror of the benchmarks.")]


@grade_app.command()
def score(
    store: StoreFolder,
    k: Annotated[str, typer.Option("-k", help="One k, or several separated by commas.")] = "1",
) -> None:
    """Print Pass@k of each benchmark: its interval, its bounds if answers are undecided, and its chance level."""
    print_table(_open_store(store), _ks(k))


@grade_app.command()
def regrade(
    store: StoreFolder,
    benchmark: Golds = None,
    data_dir: DataDir = None,
    timeout: Annotated[float, typer.Option(help="Seconds per answer.")] = 5.0,
) -> None:
    """Grade every stored answer again, with the present grader."""
    from quagmire_utils.evaluation.sampling import grade_store
    from quagmire_utils.grading import Grader

    held = _open_store(store)
    with Grader(timeout=timeout) as grader:
        grade_store(held, _problems(held, benchmark or [], data_dir), grader.grade, regrade=True)
    print_table(held, [1])


@grade_app.command()
def audit(
    store: StoreFolder,
    benchmark: Golds = None,
    data_dir: DataDir = None,
    output: Annotated[Path | None, typer.Option(help="Write the list to this .csv file.")] = None,
) -> None:
    """List the answers that a second grader, math-verify alone, judges differently."""
    from quagmire_utils.core.spreadsheet import write_csv
    from quagmire_utils.evaluation.audit import audit_store

    held = _open_store(store)
    if output is not None and (output.is_dir() or not output.parent.is_dir() or not os.access(output.parent, os.W_OK)):
        raise ParameterError("--output", output, "a file in a folder that can be written to")
    table = audit_store(held, _problems(held, benchmark or [], data_dir))
    found = table.attrs
    judged = found["samples"] - found["undecided"]
    print(f"The second grader disagrees on {found['disagreements']} of {judged} answers.")
    if found["either"]:
        print(f"Of the {found['either']} that either calls correct, {100 * found['agreement']:.2f} % are so to both.")
    if found["undecided"]:
        print(f"It cannot judge {found['undecided']} more.")
    if found["unread"]:
        print(f"Neither grader could read {found['unread']} ({100 * found['unread'] / found['samples']:.2f} %).")
    if found["not_math"]:
        print(f"{found['not_math']} answers are not mathematics and were not audited.")
    if output is not None:
        write_csv(table, output)
    elif len(table):
        shown = table.drop(columns=["index", "ending"]).to_string(index=False, max_colwidth=40)
        print("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in shown))  # none commands a terminal


def _open_store(folder: Path) -> SampleStore:
    from quagmire_utils.evaluation.store import SampleStore

    if not folder.is_dir():
        raise ParameterError("store", folder, reason=f"there is no folder {folder}")
    store = SampleStore(folder)
    if not store.parts() and not (store.path / "store.json").is_file():
        raise ParameterError("store", folder, reason=f"{folder} holds no stored answers")
    return store


def _ks(text: str) -> list[int]:
    if not all(item.strip().isdecimal() for item in text.split(",")):
        raise ParameterError("-k", text, "whole numbers separated by commas")
    return [int(item) for item in text.split(",")]


def print_table(store: SampleStore, ks: Sequence[int]) -> pd.DataFrame:
    """Print the scores of a store, and return them. Raises ParameterError if no answer is graded."""
    from quagmire_utils.evaluation.chance import chance_counts
    from quagmire_utils.evaluation.measured import evaluation_table

    counts = store.counts()
    counts = counts[counts["n"] > 0]
    if counts.empty:
        raise ParameterError("store", store.path, reason=f"{store.path} holds answers but no verdicts; regrade it")
    table = evaluation_table(counts, ks, chance=chance_counts(store))
    print_scores(table)
    return table


def print_scores(table: pd.DataFrame) -> None:
    """Print an `evaluation_table`, a column a benchmark, in blocks as wide as the terminal."""
    from quagmire_utils.evaluation.measured import show_evaluation

    print(show_evaluation(table).T.to_string(line_width=shutil.get_terminal_size().columns))


def _problems(store: SampleStore, named: Sequence[str], data_dir: str | None) -> dict[str, list[Problem]]:
    """Load the golds for a store: the benchmarks in `named`, or by default its own and those in the catalogue."""
    from quagmire_utils.data import benchmark_names
    from quagmire_utils.evaluation.store.parts import PROBLEMS

    known = benchmark_names()
    held = list(dict.fromkeys(store.counts()["benchmark"]))
    sources = {source if source in known else Path(source).stem: source for source in named}
    own = {file.stem: str(file) for file in (store.path / PROBLEMS).glob("*.jsonl")}
    sources = sources or {name: own.get(name, name) for name in held if name in known or name in own}
    missing = [name for name in held if name not in sources]
    if not sources:
        raise ParameterError("--benchmark", reason=f"give a file with the golds of {', '.join(held) or 'the store'}")
    if missing:
        print(f"Left unchanged, because no golds were given: {', '.join(missing)}", file=sys.stderr)
    return load_golds(list(sources.values()), data_dir)


def load_golds(named: Sequence[str], data_dir: str | None) -> dict[str, list[Problem]]:
    """Return the problems of benchmarks that are named, or in files, by benchmark."""
    from quagmire_utils.data import benchmark_names, load_benchmark
    from quagmire_utils.grading import prepare_problems

    sources = {source if source in benchmark_names() else Path(source).stem: source for source in named}
    return prepare_problems({name: load_benchmark(source, data_dir=data_dir) for name, source in sources.items()})
