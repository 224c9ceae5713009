"""Commands on stored answers: compare, view, grade, import, export; only drawing more answers takes a model."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quagmire_utils.cli.app import OWN, app
from quagmire_utils.core.errors import ParameterError

if TYPE_CHECKING:
    import pandas as pd

    from quagmire_utils.data import Problem
    from quagmire_utils.evaluation.pass_at_k.sequential import Design, Look
    from quagmire_utils.evaluation.store import SampleStore

Ks = Annotated[str, typer.Option("-k", help="One k, or several separated by commas.")]
Within = Annotated[float, typer.Option(help="While drawing: smaller differences, in points, do not matter.")]
Most = Annotated[int, typer.Option("--num-samples", help="While drawing: most answers to a problem, as a mean.")]
These = Annotated[bool, typer.Option("--these-problems", help="While drawing: decide for exactly these problems.")]
Models = Annotated[Path | None, typer.Option(help="While drawing: folder that holds the models, by their names.")]

PAIR = ["a", "b"]  # names of two evaluations that are compared
TRUTH = "Such a verdict is right in at least 95 % of runs, at whichever look it comes"

grade_app = typer.Typer(no_args_is_help=True, help="Score, regrade or audit stored answers; needs no model and no GPU.")
app.add_typer(grade_app, name="grade", rich_help_panel=OWN)


@app.command(rich_help_panel=OWN)
def compare(
    a: Annotated[Path, typer.Argument(help="Output folder of an evaluation.")],
    b: Annotated[Path, typer.Argument(help="Output folder of the evaluation to compare it with.")],
    k: Ks = "1",
    until_decided: Annotated[bool, typer.Option("--until-decided", help="Draw answers until they decide.")] = False,
    within: Within = 2.0,
    num_samples: Most = 64,
    these_problems: These = False,
    models: Models = None,
) -> None:
    """Compare two evaluations on the same problems: difference, 95 % interval, p-value."""
    from quagmire_utils.evaluation.evaluate import compare_outputs
    from quagmire_utils.evaluation.measured import describe_comparison, show_comparison

    design = make_design(_ks(k), within, num_samples, these_problems) if until_decided else None
    table = compare_outputs(a, b, _ks(k) if design is None else (1,))
    print(describe_comparison(table, str(a), str(b)))
    if design is None:
        print(show_comparison(table).to_string())
    else:
        decide(dict(zip(PAIR, (a, b), strict=True)), design, models)


@app.command(rich_help_panel=OWN)
def view(
    folder: Annotated[Path, typer.Argument(help="Output folder of an evaluation, finished or running.")],
    beside: Annotated[Path | None, typer.Argument(help="Folder of another one, to show beside it.")] = None,
    benchmarks: Annotated[str, typer.Option(help="Names or files with the golds, if the folder does not say.")] = "",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1. Default: a free one.")] = 0,
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open it in a browser.")] = True,
) -> None:
    """Watch one or two evaluations in the browser while they run: progress, scores so far, answers. Changes nothing."""
    from quagmire_utils.report.answers import view

    view([folder] if beside is None else [folder, beside], benchmarks, port=port, show=show)


StoreFolder = Annotated[Path, typer.Argument(help="Folder of the stored answers.")]
Golds = Annotated[list[str] | None, typer.Option("--benchmark", help="Name or file with the golds; repeatable.")]


@grade_app.command()
def score(store: StoreFolder, k: Ks = "1") -> None:
    """Print Pass@k of each benchmark: its interval, its bounds if answers are undecided, and its chance level."""
    print_table(_open_store(store), _ks(k))


@grade_app.command()
def regrade(
    store: StoreFolder,
    benchmark: Golds = None,
    timeout: Annotated[float, typer.Option(help="Seconds per answer.")] = 5.0,
) -> None:
    """Grade every stored answer again, with the present grader."""
    from quagmire_utils.evaluation.marking import grade_store
    from quagmire_utils.grading import Grader

    held = _open_store(store)
    with Grader(timeout=timeout) as grader:
        grade_store(held, _problems(held, benchmark or []), grader.grade, regrade=True)
    print_table(held, [1])


@grade_app.command()
def audit(
    store: StoreFolder,
    benchmark: Golds = None,
    output: Annotated[Path | None, typer.Option(help="Write the list to this .csv file.")] = None,
) -> None:
    """List the answers that a second grader, math-verify alone, judges differently."""
    from quagmire_utils.core.files import write_csv
    from quagmire_utils.evaluation.audit import audit_store

    held = _open_store(store)
    if output is not None and (output.is_dir() or not output.parent.is_dir() or not os.access(output.parent, os.W_OK)):
        raise ParameterError("--output", output, "a file in a folder that can be written to")
    table = audit_store(held, _problems(held, benchmark or []))
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
    if not all(re.fullmatch(r"\s*\d{1,9}\s*", item) for item in text.split(",")):
        raise ParameterError("-k", text, "whole numbers separated by commas")
    return list(dict.fromkeys(map(int, text.split(","))))


def print_table(store: SampleStore, ks: Sequence[int]) -> None:
    """Print the scores of a store. Raises ParameterError if no answer is graded."""
    from quagmire_utils.evaluation.chance import chance_counts
    from quagmire_utils.evaluation.measured import evaluation_table

    counts = store.counts().query("n > 0")
    if counts.empty:
        raise ParameterError("store", store.path, reason=f"{store.path} holds answers but no verdicts; regrade it")
    print_scores(evaluation_table(counts, ks, chance=chance_counts(store)))


def print_scores(table: pd.DataFrame) -> None:
    """Print an `evaluation_table`, a column a benchmark, in blocks as wide as the terminal."""
    from quagmire_utils.evaluation.measured import show_evaluation

    print(show_evaluation(table).T.to_string(line_width=shutil.get_terminal_size().columns))


def _problems(store: SampleStore, named: Sequence[str]) -> dict[str, list[Problem]]:
    """Load the golds for a store: the benchmarks in `named`, or by default its own and those in the catalogue."""
    from quagmire_utils.data import benchmark_names
    from quagmire_utils.evaluation.store_files import PROBLEMS
    from quagmire_utils.grading import prepare_problems
    from quagmire_utils.report.inputs import load_benchmarks

    held = list(dict.fromkeys(store.counts()["benchmark"]))
    own = {file.stem: str(file) for file in (store.path / PROBLEMS).glob("*.jsonl")}
    named = named or [own.get(name, name) for name in held if name in own or name in benchmark_names()]
    if not named:
        raise ParameterError("--benchmark", reason=f"give a file with the golds of {', '.join(held) or 'the store'}")
    golds = prepare_problems(load_benchmarks(named))
    if missing := [name for name in held if name not in golds]:
        print(f"Left unchanged, because no golds were given: {', '.join(missing)}", file=sys.stderr)
    return golds


@app.command("import", rich_help_panel=OWN)
def import_command(
    source: Annotated[Path, typer.Argument(help="A log, or a folder of logs of one model.")],
    output: Annotated[Path, typer.Option(help="Folder of the graded answers and their page.")],
    log_format: Annotated[str, typer.Option("--format", help="The tool, as lm-eval. Default: by its fields.")] = "",
    benchmark: Golds = None,
    grader: Annotated[str, typer.Option(help="Of the golds in the log. Default: choice for letters, else math.")] = "",
) -> None:
    """Read the sample logs of another tool, grade them again, and make the page of an evaluation."""
    from quagmire_utils.exchange.importing import import_logs, write_page
    from quagmire_utils.grading import prepare_problems
    from quagmire_utils.report.inputs import load_benchmarks

    golds = prepare_problems(load_benchmarks(benchmark)) if benchmark else None
    store, left_out = import_logs(source, output, log_format=log_format, golds=golds, grader=grader)
    origin = store.origin
    print(f"From {origin['engine']}: {', '.join(f'{name} {origin[name]}' for name in origin if name != 'engine')}.")
    for reason, count in left_out.items():
        print(f"Left out: {count} answers with {reason}.")
    table, page = write_page(store, left_out)
    print_scores(table)
    print(f"\nAll on one page: {os.path.relpath(page)}")


@app.command("export", rich_help_panel=OWN)
def export_command(
    folders: Annotated[list[Path], typer.Argument(help="Output folders of evaluations, one a model.")],
    output: Annotated[Path, typer.Option(help="Folder of the tables and their data card.")],
    inspect: Annotated[bool, typer.Option("--inspect", help="Also write logs that `inspect view` opens.")] = False,
    to_hub: Annotated[str, typer.Option("--push", metavar="OWNER/NAME", help="Dataset repository of the hub.")] = "",
    public: Annotated[bool, typer.Option("--public", help="With --push: make a new repository public.")] = False,
) -> None:
    """Write counts and answers as parquet with a data card, and a table that `quagmire rank` reads."""
    from quagmire_utils.exchange.exporting import export, push

    print(f"Written to {export(folders, output, inspect_logs=inspect)}; README.md there says what it holds.")
    if to_hub:
        print(f"Uploaded to {push(output, to_hub, public=public)}")


# --- drawing answers until they decide --------------------------------------------------------------------------------


def make_design(k: Sequence[int], within: float, num_samples: int, these_problems: bool) -> Design:
    """Return the design that options describe."""
    from quagmire_utils.evaluation.pass_at_k.sequential import Design

    if len(k) > 1:
        raise ParameterError("-k", k, "one k, for a decision")
    if not 0 < within <= 100:
        raise ParameterError("--within", within, "above 0 and at most 100 points")
    return Design(k=k[0], within=within / 100, most=num_samples, these_problems=these_problems)


def settle(folder: Path, design: Design, models: Path | None) -> None:
    """Print looks at the evaluations in a folder until it is settled which one is best."""
    from quagmire_utils.analysis.measurements import load_measurements

    names = load_measurements(folder, k=2).table["candidate"]  # which checks that they compare
    decide({name: folder / name for name in names}, design, models)


def decide(folders: Mapping[str, Path], design: Design, models: Path | None) -> None:
    """Draw and look until there is a verdict; print each look and last the verdict, its guarantee and its price."""
    from quagmire_utils.evaluation.deciding import Answers
    from quagmire_utils.evaluation.pass_at_k.sequential import looks
    from quagmire_utils.grading import Grader
    from quagmire_utils.report.inputs import recorded_run

    runs = {name: recorded_run(folder, models) for name, folder in folders.items()}
    whose = "exactly these problems" if design.these_problems else "problems of this kind"
    with Grader() as grader:
        answers = Answers(runs, design, grader)
        print(f"Pass@{design.k} on {whose}, from {len(answers.benchmarks)} problems.", flush=True)
        for number, look in enumerate(looks(list(runs), answers, answers.benchmarks, design), 1):
            print(f"look {number} of {len(design.sizes)}, {look.answers} answers a problem: {_state(look)}", flush=True)
            verdict = _verdict(look, f"{100 * design.within:g} points")
            if verdict or look.hopeless:
                break
    if verdict:
        print(f"{verdict}. {TRUTH}, on {whose}.")
    else:
        end = "do not" if look.answers >= design.most else "would hardly"
        print(f"Undecided between {', '.join(look.left)}: {design.most} answers a problem {end} decide it; ", end="")
        print("take more answers." if design.these_problems else "take more problems, or decide for these.")
    used, everything = sum(look.tokens.values()), len(answers.benchmarks) * design.most
    fixed = sum(look.tokens[name] / look.drawn[name] * everything for name in runs)
    print(
        f"Used {sum(look.drawn.values()):,} answers, {used:,} tokens, of them drawn now: {answers.drawn:,}. "
        f"{design.most} answers to every problem would take about {fixed:,.0f}: {100 * (1 - used / fixed):.0f} % saved."
    )


def _verdict(look: Look, margin: str) -> str:
    """Return what is decided; empty before."""
    if [*look.scores] == PAIR:
        found = look.verdict(*PAIR)
        return {"a": "A better", "b": "B better", "equal": f"no difference above {margin}", "": ""}[found]
    rivals = f" or less than {margin} below the best" if len(look.left) > 1 else ""
    return f"{look.left[0]} is best{rivals}" if look.settled else ""


def _state(look: Look) -> str:
    """Return the differences between the best and the others, in points, closest first."""
    best, *rivals = PAIR if [*look.scores] == PAIR else sorted(look.scores, key=lambda name: -look.scores[name])
    texts = []
    for rival in rivals[:3]:
        found = look.lead(best, rival)
        interval = f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
        texts.append(f"{best} - {rival} {100 * found.value:+.1f} {interval}")
    more = f"; {len(rivals) - 3} more" if len(rivals) > 3 else ""
    return ", ".join(texts) + more + (f"; {len(look.left)} left" if len(rivals) > 1 else "")
