"""The command line: `quagmire`, or `python -m quagmire_utils`.

    quagmire run --profile mini --only fig03,table01    # what ./reproduce.sh does after set-up
    quagmire evaluate path/to/checkpoint --benchmarks math500 --num-samples 64
    quagmire rank candidates.csv
    quagmire sweep paper --dry-run

Exit status: 0 done, 1 it failed or the disk is full, 2 a parameter is wrong, 130 interrupted.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.paths import ROOT

if TYPE_CHECKING:
    import click

    from quagmire_utils.core.settings import Profile
    from quagmire_utils.data import Problem
    from quagmire_utils.data.curation.recipes import Recipe
    from quagmire_utils.evaluation.store import SampleStore
    from quagmire_utils.report.reproduction import Run

REPRODUCE, OWN, DATA, LARGE = "Reproduce the paper", "Your own models", "Data", "Large runs"


class _Commands(TyperGroup):
    """Turn the errors that users meet into one sentence and an exit status."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        again = shlex.join(["quagmire", *(context.obj or [])])
        try:
            return super().invoke(context)
        except ParameterError as error:
            _stop(str(error), 2)
        except KeyboardInterrupt as interrupt:
            _stop(str(interrupt) or f"interrupted; what is finished is kept; resume with: {again}", 130)
        except BrokenPipeError:  # the reader of the output has seen enough, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            _stop(f"{error}; resume with: {again}", 1)
        except RuntimeError as error:
            if type(error).__name__ not in ("NotebookError", "SweepError", "EngineError"):
                raise
            _stop(str(error), 1)


def _stop(sentence: str, status: int) -> None:
    print(f"quagmire: {sentence}", file=sys.stderr)
    raise typer.Exit(status)


app = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
grade_app = typer.Typer(no_args_is_help=True, help="Score, regrade or audit stored answers; needs no model and no GPU.")
report_app = typer.Typer(no_args_is_help=True, help="Make the page, its picture, the README's table, the data card.")
app.add_typer(grade_app, name="grade", rich_help_panel=OWN)
app.add_typer(report_app, name="report", rich_help_panel=REPRODUCE)


@app.callback()
def _about() -> None:
    """Measure SFT checkpoints, rank them, and forecast what RL makes of them (arXiv 2510.01624)."""


ProfileOption = Annotated[
    str, typer.Option(help="A shipped profile, a YAML file, or a folder of records. Default: mini, else smoke.")
]
Assignments = Annotated[list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help="Set a parameter; repeatable.")]


@app.command("run", rich_help_panel=REPRODUCE)
def run_command(
    profile: ProfileOption = "",
    only: Annotated[str, typer.Option(help="Notebooks whose names begin so (fig03,table01), or report.")] = "",
    parameters: Assignments = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Figures and tables to execute at a time.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Set aside what was computed; compute it again.")] = False,
    spot_check: Annotated[
        str, typer.Option(metavar="NAME", help="Retrain one recorded candidate (family/candidate, or random) instead.")
    ] = "",
    notebooks: Annotated[Path, typer.Option(help="Folder of the notebooks.")] = ROOT / "notebooks",
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = ROOT / "results",
) -> None:
    """Execute the notebooks of a profile; resume what an earlier run left."""
    from quagmire_utils.report.reproduction import Run, default_profile

    profile = profile or default_profile(results)
    if (Path(profile) / "manifest.json").is_file():
        profile = str(Path(profile).resolve())
    if spot_check:
        if only or parameters or fresh:
            raise ParameterError("--spot-check", spot_check, reason="it executes no notebook: use it with --profile")
        return _spot_check(profile, None, spot_check, None)
    prefixes = tuple(prefix.strip() for prefix in only.split(",") if prefix.strip())
    folders = {"notebooks": notebooks.resolve(), "results": results.resolve()}
    _execute(Run(profile, prefixes, _assignments(parameters), fresh, jobs, **folders))


@app.command(rich_help_panel=OWN)
def evaluate(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or the address of an OpenAI-compatible server.")],
    benchmarks: Annotated[str, typer.Option(help="Names, .jsonl or .yaml files, or all; separated by commas.")],
    num_samples: Annotated[int, typer.Option(help="Answers to each problem.")] = 64,
    k: Annotated[int | None, typer.Option(help="Largest k of Pass@k. Default: --num-samples.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Generated tokens an answer.")] = 2048,
    limit: Annotated[int | None, typer.Option(help="Problems of each benchmark. Default: all.")] = None,
    engine: Annotated[str, typer.Option(help="transformers, vllm or server.")] = "transformers",
    output: Annotated[Path | None, typer.Option(help="Folder of answers, figures and page.")] = None,
    parameters: Assignments = None,
) -> None:
    """Sample a checkpoint, grade every answer, and make a page with Pass@k for every k."""
    given = {"model": _place(model), "benchmarks": ",".join(_place(name) for name in benchmarks.split(","))}
    given |= {"num_samples": num_samples, "k": num_samples if k is None else k, "max_tokens": max_tokens}
    given |= {"limit": limit, "engine": engine, "output": None if output is None else output.resolve()}
    _workflow("evaluate_model", given, parameters)


@app.command(rich_help_panel=OWN)
def compare(
    a: Annotated[Path, typer.Argument(help="Output folder of an evaluation.")],
    b: Annotated[Path, typer.Argument(help="Output folder of the evaluation to compare it with.")],
    k: Annotated[str, typer.Option("-k", help="One k, or several separated by commas.")] = "1",
) -> None:
    """Compare two evaluations on the same problems: difference, 95 % interval, p-value."""
    from quagmire_utils.evaluation.evaluate import compare_outputs
    from quagmire_utils.evaluation.measured import describe_comparison, show_comparison

    if not all(item.strip().isdecimal() for item in k.split(",")):
        raise ParameterError("-k", k, "whole numbers separated by commas")
    table = compare_outputs(a, b, [int(item) for item in k.split(",")])
    print(describe_comparison(table, str(a), str(b)))
    print(show_comparison(table).to_string())


Measurements = Annotated[str, typer.Argument(help="A .csv file, or a folder of records or of evaluations.")]


@app.command(rich_help_panel=OWN)
def rank(measurements: Measurements, parameters: Assignments = None) -> None:
    """Rank SFT candidates before RL: whom to send first, and how sure that is."""
    _workflow("rank_candidates", {"measurements": _place(measurements)}, parameters)


@app.command(rich_help_panel=OWN)
def forecast(measurements: Measurements, parameters: Assignments = None) -> None:
    """Forecast what RL makes of each candidate, from RL runs of a few."""
    _workflow("forecast_rl", {"measurements": _place(measurements)}, parameters)


# --- grade ------------------------------------------------------------------------------------------------------------

StoreFolder = Annotated[Path, typer.Argument(help="Folder of the stored answers.")]
Golds = Annotated[list[str] | None, typer.Option("--benchmark", help="Name or file with the golds; repeatable.")]
DataDir = Annotated[str | None, typer.Option(help="Local mirror of the benchmarks.")]


@grade_app.command()
def score(store: StoreFolder) -> None:
    """Print the score of each benchmark with its bounds: undecided answers count as wrong, and as right."""
    _print_scores(_open_store(store))


@grade_app.command()
def regrade(
    store: StoreFolder,
    benchmark: Golds = None,
    data_dir: DataDir = None,
    timeout: Annotated[float, typer.Option(help="Seconds per answer.")] = 5.0,
    workers: Annotated[int | None, typer.Option(help="Grading processes. Default: one per CPU.")] = None,
) -> None:
    """Grade every stored answer again, with the present grader."""
    from quagmire_utils.evaluation.sampling import grade_store
    from quagmire_utils.grading import Grader

    held = _open_store(store)
    with Grader(workers, timeout=timeout) as grader:
        grade_store(held, _problems(held, benchmark or [], data_dir), grader.grade, regrade=True)
    _print_scores(held)


@grade_app.command()
def audit(
    store: StoreFolder,
    benchmark: Golds = None,
    data_dir: DataDir = None,
    output: Annotated[Path | None, typer.Option(help="Write the list to this .csv file.")] = None,
) -> None:
    """List the answers that a second, independent grader judges differently."""
    from quagmire_utils.core.spreadsheet import check_writable, printable, write_csv
    from quagmire_utils.evaluation.audit import audit_store

    held = _open_store(store)
    if output is not None:
        check_writable(output)
    table = audit_store(held, _problems(held, benchmark or [], data_dir))
    found = table.attrs
    judged = found["samples"] - found["undecided"]
    print(f"The second grader disagrees on {found['disagreements']} of {judged} answers.")
    if found["undecided"]:
        print(f"It cannot judge {found['undecided']} more.")
    if found["not_math"]:
        print(f"{found['not_math']} answers are not mathematics and were not audited.")
    if output is not None:
        write_csv(table, output)
    elif len(table):
        print(table.drop(columns=["index", "ending"]).map(printable).to_string(index=False, max_colwidth=40))


def _open_store(folder: Path) -> SampleStore:
    from quagmire_utils.evaluation.store import SampleStore

    if not folder.is_dir():
        raise ParameterError("store", folder, reason=f"there is no folder {folder}")
    store = SampleStore(folder)
    if not store.parts() and not (store.path / "store.json").is_file():
        raise ParameterError("store", folder, reason=f"{folder} holds no stored answers")
    return store


def _print_scores(store: SampleStore) -> None:
    from quagmire_utils.evaluation.audit import score_table

    print(score_table(store.counts()).to_string(index=False, float_format="{:.4f}".format))


def _problems(store: SampleStore, named: Sequence[str], data_dir: str | None) -> dict[str, list[Problem]]:
    """Load the golds for a store: the benchmarks in `named`, or by default the store's that are in the catalogue."""
    from quagmire_utils.data import benchmark_names, load_benchmark
    from quagmire_utils.grading import prepare_problems

    known = benchmark_names()
    held = list(dict.fromkeys(store.counts()["benchmark"]))
    sources = {source if source in known else Path(source).stem: source for source in named}
    sources = sources or {name: name for name in held if name in known}
    missing = [name for name in held if name not in sources]
    if not sources:
        raise ParameterError("--benchmark", reason=f"give a file with the golds of {', '.join(held) or 'the store'}")
    if missing:
        print(f"Left unchanged, because no golds were given: {', '.join(missing)}", file=sys.stderr)
    return prepare_problems({name: load_benchmark(source, data_dir=data_dir) for name, source in sources.items()})


# --- curate -----------------------------------------------------------------------------------------------------------


Fields = Annotated[
    list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help="Any other field of a set, as YAML.")
]


@app.command(rich_help_panel=DATA)
def curate(
    recipes: Annotated[str | None, typer.Argument(help="A YAML file with sets (and defaults, datasets).")] = None,
    names: Annotated[list[str] | None, typer.Argument(help="Which of its sets. Default: all.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the set, or of the sets' folders.")] = None,
    source: Annotated[str | None, typer.Option(help="A dataset; see --list.")] = None,
    selection: Annotated[str | None, typer.Option(help="shortest, longest, random, or several joined by +.")] = None,
    n: Annotated[int | None, typer.Option(help="Traces.")] = None,
    token_budget: Annotated[int | None, typer.Option(help="Tokens at most, instead of --n.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or hub id of the model whose tokens count.")] = None,
    files: Annotated[list[str] | None, typer.Option(help="Local files, folders or globs; repeatable.")] = None,
    parameters: Fields = None,
    cache: Annotated[Path | None, typer.Option(help="Where hashes and lengths are kept.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that read. Default: one per core.")] = None,
    show: Annotated[bool, typer.Option("--list", help="List the training sets.")] = False,
) -> None:
    """Make SFT and RL sets from hub datasets (streamed) or local files: select, deduplicate, decontaminate."""
    import yaml

    from quagmire_utils.core.provenance import usable_cores
    from quagmire_utils.data import load_datasets
    from quagmire_utils.data.curation import load_sets
    from quagmire_utils.data.curation.build import CACHE, build, prepare, summary

    sets, datasets = ({}, load_datasets()) if recipes is None else load_sets(recipes)
    if show:
        for item in datasets.values():
            if item.kind == "training":
                print(f"{item.name:<20}{item.hub_id or ', '.join(item.files):<46}{item.title}")
        return
    if output is None:
        raise ParameterError("--output", reason="give the folder for the set")
    own = {name: yaml.safe_load(value) for name, value in _assignments(parameters).items()}
    named = {"source": source, "selection": selection, "n": n, "token_budget": token_budget, "tokenizer": tokenizer}
    own |= {name: value for name, value in {**named, "files": files or None}.items() if value is not None}
    asked = _sets(recipes, sets, names or [], output, own)
    for recipe, folder in asked if len(asked) > 1 else ():  # not after the hours that the first may take
        prepare(recipe, folder, datasets=datasets)
    for recipe, folder in asked:
        manifest = build(recipe, folder, cache=cache or CACHE, datasets=datasets, workers=workers or usable_cores())
        print(summary(folder, manifest))


def _sets(
    path: str | None, known: dict[str, Recipe], names: Sequence[str], output: Path, own: dict[str, Any]
) -> list[tuple[Recipe, Path]]:
    """Return the sets to make, with their folders: the one described by options, or those `known` from a file."""
    from quagmire_utils.data.curation import Recipe

    if path is None:
        if "source" not in own:
            raise ParameterError("--source", reason="name a source, or give a YAML file with sets")
        return [(Recipe.load(own), output)]
    if own:
        raise ParameterError(next(iter(own)), reason=f"write it into {path}, not on the command line")
    for name in names:
        if name not in known:
            raise ParameterError("names", name, f"of the sets in {path} ({', '.join(known)})")
    return [(known[name], output / name) for name in names or known]


# --- sweep ------------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=LARGE)
def sweep(
    profile: Annotated[str, typer.Argument(help="smoke, mini, single_gpu, paper, or the path of a YAML file.")],
    results: Annotated[Path | None, typer.Option(help="Folder of the records. Default: results/PROFILE.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes, one core each. Default: the profile's.")] = None,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster; auto: this machine's.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="List the cells and which are done.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Hours, price, disk, and what is missing here.")] = False,
    cells: Annotated[bool, typer.Option("--cells", help="With --dry-run: a line for each cell.")] = False,
    gpu: Annotated[str | None, typer.Option(help="With --dry-run: another GPU than the profile's.")] = None,
    price: Annotated[float | None, typer.Option(help="With --dry-run: dollars per GPU hour.")] = None,
    mfu: Annotated[float | None, typer.Option(help="With --dry-run: share of the GPU's peak in training.")] = None,
    submit: Annotated[str | None, typer.Option(help="slurm: write a job script; ray: submit one Ray job.")] = None,
    output: Annotated[Path | None, typer.Option(help="With --submit slurm: file of the script, else printed.")] = None,
    cell: Annotated[str | None, typer.Option(help="Compute one cell, unless it is finished.")] = None,
    digest: Annotated[str | None, typer.Option(help="With --cell: refuse other parameters than these.")] = None,
    collect: Annotated[bool, typer.Option("--collect", help="Gather the records of finished cells.")] = False,
    spot_check: Annotated[str | None, typer.Option(help="Retrain one candidate (or random) and compare.")] = None,
    seed: Annotated[int | None, typer.Option(help="With --spot-check: of the random choice.")] = None,
) -> None:
    """Train and measure a grid of candidates; resume where it stopped."""
    from quagmire_utils import sweep as grid
    from quagmire_utils.core.settings import load_profile
    from quagmire_utils.report.notebook import results_folder

    modes = {"--plan": plan, "--dry-run": dry_run, "--submit": submit, "--cell": cell, "--collect": collect}
    asked = [name for name, value in {**modes, "--spot-check": spot_check}.items() if value not in (None, False)]
    if len(asked) > 1:
        raise ParameterError(asked[0], reason=f"it does not go with {asked[1]}")
    costs = {"gpu": gpu, "dollars_per_gpu_hour": price, "train_mfu": mfu}
    overrides = {f"compute.{name}": value for name, value in costs.items() if value is not None}
    for option, given, mode in (
        ("--cells", cells, "--dry-run"),
        ("--gpu, --price and --mfu", overrides, "--dry-run"),
        ("--digest", digest is not None, "--cell"),
        ("--output", output is not None, "--submit"),
        ("--seed", seed is not None, "--spot-check"),
    ):
        if given and mode not in asked:
            raise ParameterError(option, reason=f"use it with {mode}")
    if spot_check is not None:
        return _spot_check(profile, results, spot_check, seed)
    settings = load_profile(profile, overrides)
    folder = results or results_folder(profile)
    if plan:
        everything = grid.plan(settings)
        done = grid.finished_cells(folder, everything)
        for item in everything:
            print("done" if item.id in done else "to do", item.id)
    elif dry_run:
        print(grid.dry_run(settings, folder, cells=cells))
    elif submit is not None:
        _submit(settings, profile, folder, submit, ray, output)
    elif cell is not None:
        grid.run_one(settings, folder, cell, digest)
    elif collect:
        grid.collect(settings, folder)
    else:
        grid.run_sweep(settings, folder, workers=workers, ray=ray)


def _spot_check(profile: str, results: Path | None, name: str, seed: int | None) -> None:
    from quagmire_utils.core.settings import load_profile
    from quagmire_utils.report.notebook import results_folder
    from quagmire_utils.report.progress import clock
    from quagmire_utils.sweep.spot_check import spot_check

    started = time.monotonic()
    folder = results or results_folder(profile)
    outcome = spot_check(load_profile(profile), folder, "" if name == "random" else name, seed=seed)
    print(f"{outcome}\nTook {clock(time.monotonic() - started)}.")
    raise typer.Exit(int(outcome.verdict == "differs"))


def _submit(profile: Profile, name: str, folder: Path, to: str, ray: str | None, output: Path | None) -> None:
    """Write a Slurm script, or hand the sweep to a Ray cluster."""
    from quagmire_utils.core.files import write_text
    from quagmire_utils.sweep import check, finished_cells, plan
    from quagmire_utils.sweep.submit import check_dashboard, ray_command, slurm_script

    if to not in ("slurm", "ray"):
        raise ParameterError("--submit", to, "slurm or ray")
    check(profile, here=False)
    name = str(Path(name).resolve()) if Path(name).suffix in (".yaml", ".yml") else name
    if to == "ray":
        command = ray_command(name, folder, ray or "")
        print(shlex.join(command), flush=True)
        check_dashboard(ray or "")
        raise typer.Exit(subprocess.run(command, check=False).returncode)
    script = slurm_script(profile, name, folder, finished_cells(folder, plan(profile)))
    if output is None:
        print(script)
    else:
        write_text(script, output)
        print(f"Submit it with: bash {output}")


# --- report -----------------------------------------------------------------------------------------------------------

Records = Annotated[str, typer.Argument(help="A folder of results/, by name or path.")]


@report_app.command("page")
def report_page(profile: Records) -> None:
    """Make results/PROFILE/report.html from the executed notebooks."""
    from quagmire_utils.report.page import write_report

    print(write_report(_records(profile)))


@report_app.command("readme")
def report_readme(
    profile: Records,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit 1 if the table is stale.")] = False,
) -> None:
    """Write the README's table of figures and tables."""
    from quagmire_utils.report.card import update_readme

    stale = update_readme(ROOT / "README.md", _records(profile), write=not check)
    print("README.md " + (("is stale" if check else "was rewritten") if stale else "is up to date"))
    raise typer.Exit(int(check and stale))


@report_app.command("screenshot")
def report_screenshot(profile: Records) -> None:
    """Take the picture of the page for the README."""
    from quagmire_utils.report.browser import take_screenshot
    from quagmire_utils.report.page import NAME

    page = _records(profile) / NAME
    if not page.is_file():
        raise ParameterError("profile", profile, reason=f"{page} does not exist; `quagmire report page` makes it")
    print(take_screenshot(page, page.with_name("report.png")))


@report_app.command("card")
def report_card(profile: Records) -> None:
    """Write the computed part of results/PROFILE/README.md, the data card of the records."""
    from quagmire_utils.core.settings import load_profile
    from quagmire_utils.report.card import update_card

    if not update_card(_records(profile), load_profile(profile)):
        raise ParameterError("profile", profile, reason="its README.md has no markers of a data card")


def _records(profile: str) -> Path:
    folder = Path(profile) if (Path(profile) / "notebooks").is_dir() else ROOT / "results" / profile
    if not folder.is_dir():
        raise ParameterError("profile", profile, reason=f"there is no folder {folder}")
    return folder


# --- shared -----------------------------------------------------------------------------------------------------------


def _assignments(texts: Sequence[str] | None) -> dict[str, str]:
    """Return the pairs of `-p NAME=VALUE`."""
    values: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ParameterError("-p", text, "NAME=VALUE")
        if name in values:
            raise ParameterError("-p", text, reason=f"{name} is given twice")
        values[name] = value
    return values


def _place(text: str) -> str:
    """Return a path of the user's folder in full; anything else (a name, an address, a pattern) unchanged."""
    return str(Path(text).resolve()) if Path(text).exists() else text


def _workflow(notebook: str, given: dict[str, object], parameters: Sequence[str] | None) -> None:
    """Execute one of the workflow notebooks on a user's own models."""
    from quagmire_utils.report.reproduction import Run, default_profile

    values = {name: str(value) for name, value in given.items() if value is not None}
    _execute(Run(default_profile(), only=(notebook,), parameters={**values, **_assignments(parameters)}))


def _execute(run: Run) -> None:
    """Execute notebooks, make the page, and print where everything is."""
    from quagmire_utils.report.execution import NotebookError
    from quagmire_utils.report.progress import clock
    from quagmire_utils.report.reproduction import make_report, run_notebooks

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a plain kill also ends the kernel, not only us
    started = time.monotonic()
    try:
        taken = run_notebooks(run)
        page = make_report(run, taken)
    except (ParameterError, NotebookError):
        raise
    except OSError as error:
        sentence = f"{run.folder} cannot be written to: {error.strerror or error}"
        _stop(f"{sentence}; resume with: {run.resume_command}", 1)
    except KeyboardInterrupt as interrupt:
        where = f" in notebook{'s' * (',' in str(interrupt))} {interrupt}" if str(interrupt) else ""
        raise KeyboardInterrupt(f"interrupted{where}; resume with: {run.resume_command}") from None
    if taken:
        copies = os.path.relpath(run.folder / "notebooks")
        seconds = clock(time.monotonic() - started)
        print(f"Done in {seconds}: {len(taken)} executed notebooks in {copies}", file=sys.stderr)
    for name in (name for name in taken if run.names and name.startswith(run.names)):
        _print_headlines(run.folder / "notebooks" / f"{name}.ipynb")
    if page is not None:
        print(f"All on one page: {os.path.relpath(page)}", file=sys.stderr)


def _print_headlines(executed: Path) -> None:
    """Print to stdout the headlines of an executed notebook."""
    from quagmire_utils.report.notebook import headlines

    width = max(40, shutil.get_terminal_size().columns)
    for text in headlines(executed):
        print("\n" + textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(words, prog_name="quagmire", obj=words)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0
