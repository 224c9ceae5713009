"""Commands that execute notebooks: run, evaluate, rank, forecast; and what is made from their copies: report."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from quagmire_utils.cli.app import OWN, REPRODUCE, Assignments, app, assignments, place, stop
from quagmire_utils.cli.stores import Models, Most, These, Within, make_design, print_table, settle
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.paths import ROOT

if TYPE_CHECKING:
    from quagmire_utils.report.reproduction import Run


@app.command("run", rich_help_panel=REPRODUCE)
def run_command(
    profile: Annotated[str, typer.Option(help="Its name, a YAML file, or a folder of records. Default: mini.")] = "",
    only: Annotated[str, typer.Option(help="Notebooks whose names begin so (fig03,table01), or report.")] = "",
    parameters: Assignments = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Figures and tables to execute at a time.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Set aside what was computed; compute it again.")] = False,
    spot_check: Annotated[str, typer.Option(help="Instead retrain one recorded candidate (or random).")] = "",
    notebooks: Annotated[Path, typer.Option(help="Folder of the notebooks.")] = ROOT / "notebooks",
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = ROOT / "results",
) -> None:
    """Execute the notebooks of a profile; resume what an earlier run left."""
    from quagmire_utils.report.reproduction import Run, default_profile

    profile = profile or default_profile(results)
    if (Path(profile) / "manifest.json").is_file():
        profile = str(Path(profile).resolve())
    if spot_check:
        from quagmire_utils.cli.sweeps import spot_check_candidate

        if only or parameters or fresh:
            raise ParameterError("--spot-check", spot_check, reason="it executes no notebook: use it with --profile")
        return spot_check_candidate(profile, None, spot_check)
    prefixes = tuple(prefix.strip() for prefix in only.split(",") if prefix.strip())
    folders = {"notebooks": notebooks.resolve(), "results": results.resolve()}
    _execute(Run(profile, prefixes, assignments(parameters), fresh, jobs, **folders))


@app.command(rich_help_panel=OWN)
def evaluate(
    model: Annotated[str, typer.Argument(help="smollm2-135m, a folder, a hub id, or the address of a server.")],
    benchmarks: Annotated[str, typer.Option(help="Names, .jsonl or .yaml files, or all; separated by commas.")],
    num_samples: Annotated[int, typer.Option(help="Answers to each problem.")] = 64,
    k: Annotated[int | None, typer.Option(help="Largest k of Pass@k. Default: --num-samples.")] = None,
    forecast_k: Annotated[int | None, typer.Option(help="Forecast this Pass@k; at most 16 x --num-samples.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Generated tokens an answer.")] = 2048,
    limit: Annotated[int | None, typer.Option(help="Problems of each benchmark. Default: all.")] = None,
    engine: Annotated[str, typer.Option(help="transformers, vllm or server.")] = "transformers",
    output: Annotated[Path | None, typer.Option(help="Folder of the results. Default: in runs/evaluations.")] = None,
    parameters: Assignments = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser at the end.")] = False,
) -> None:
    """Sample a checkpoint, grade every answer, and make a page with Pass@k for every k."""
    from quagmire_utils.evaluation.store import SampleStore

    given = {"model": model, "benchmarks": benchmarks, "num_samples": num_samples, "max_tokens": max_tokens}
    given |= {"k": num_samples if k is None else k, "forecast_k": forecast_k}
    given |= {"limit": limit, "engine": engine, "output": output}
    page = _workflow("evaluate", "evaluate_model", given, parameters)
    if page is not None:
        print_table(SampleStore(page.parent), sorted({1, given["k"]}))
    if show and page is not None:
        webbrowser.open(page.resolve().as_uri())


READ = ("model", "benchmarks", "validation_traces", "measurements", "server_tokenizer")  # parameters that may be paths
Measurements = Annotated[str, typer.Argument(help="A .csv file, or a folder of records or of evaluations.")]


@app.command(rich_help_panel=OWN)
def rank(
    measurements: Measurements,
    parameters: Assignments = None,
    until_settled: Annotated[bool, typer.Option("--until-settled", help="Draw answers until one is best.")] = False,
    k: Annotated[int | None, typer.Option("-k", help="k of Pass@k. Default: 64; while drawing, 1.")] = None,
    within: Within = 2.0,
    num_samples: Most = 64,
    these_problems: These = False,
    models: Models = None,
) -> None:
    """Rank SFT candidates before RL: whom to send first, and how sure that is."""
    if until_settled:
        return settle(Path(measurements), make_design([k or 1], within, num_samples, these_problems), models)
    _workflow("rank", "rank_candidates", {"measurements": measurements, "k": k}, parameters)


@app.command(rich_help_panel=OWN)
def forecast(measurements: Measurements, parameters: Assignments = None) -> None:
    """Forecast what RL makes of each candidate, from RL runs of a few."""
    _workflow("forecast", "forecast_rl", {"measurements": measurements}, parameters)


def _workflow(name: str, notebook: str, given: dict[str, object], parameters: Sequence[str] | None) -> Path | None:
    """Execute one of the workflow notebooks on a user's own models, in runs/<name>; return the page that it made."""
    from quagmire_utils.report.reproduction import Run, default_profile

    own = {name: str(value) for name, value in given.items() if value is not None} | assignments(parameters)
    own |= {name: ",".join(map(place, own[name].split(","))) for name in READ if name in own}
    own |= {"output": str(Path(own["output"]).resolve())} if "output" in own else {}
    return _execute(Run(default_profile(), only=(notebook,), parameters=own, output=ROOT / "runs" / name))


def _execute(run: Run) -> Path | None:
    """Execute notebooks, make the page, and print where everything is, what was found, and last the page; return it."""
    from quagmire_utils.report.execution import clock
    from quagmire_utils.report.notebook import headlines
    from quagmire_utils.report.reproduction import make_report, run_notebooks

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a plain kill also ends the kernel, not only us
    started = time.monotonic()
    try:
        taken = run_notebooks(run)
        page = make_report(run, taken)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise
        stop(f"{run.place} cannot be written to: {error.strerror or error}; resume with: {run.resume_command}", 1)
    except KeyboardInterrupt as interrupt:
        where = f" in notebook{'s' * (',' in str(interrupt))} {interrupt}" if str(interrupt) else ""
        raise KeyboardInterrupt(f"interrupted{where}; resume with: {run.resume_command}") from None
    if taken:
        copies = os.path.relpath(run.place / "notebooks")
        what = f"{len(taken)} executed notebooks" if len(taken) > 1 else "1 executed notebook"
        print(f"Done in {clock(time.monotonic() - started)}: {what} in {copies}", file=sys.stderr)
    width = max(40, shutil.get_terminal_size().columns)
    for name in (name for name in taken if run.names and name.startswith(run.names)):
        texts, own = headlines(run.place / "notebooks" / f"{name}.ipynb", width)
        page = own or page
        for text in texts:
            print(f"\n{text}", flush=True)
    if page is not None:
        print(f"\nAll on one page: {os.path.relpath(page)}", file=sys.stderr)
    return page


@app.command(rich_help_panel=REPRODUCE)
def docs(build: Annotated[Path | None, typer.Option(help="Write it to this folder.")] = None) -> None:
    """Serve the README and docs/ as a site at http://127.0.0.1:8000."""
    how = ["serve"] if build is None else ["build", "--strict", "--site-dir", str(build.resolve())]
    raise typer.Exit(subprocess.call([sys.executable, "-m", "mkdocs", *how, "--config-file", str(ROOT / "mkdocs.yml")]))


@app.command(rich_help_panel=REPRODUCE)
def report(
    what: Annotated[Literal["page", "screenshot", "readme", "card"], typer.Argument()],
    profile: Annotated[str, typer.Argument(help="A folder of results/, by name or path.")],
) -> None:
    """Make the page, its picture for the README, the table of docs/reproduction.md, or the records' data card."""
    from quagmire_utils.core.settings import load_profile
    from quagmire_utils.report import card, page

    folder = Path(profile) if (Path(profile) / "notebooks").is_dir() else ROOT / "results" / profile
    if not folder.is_dir():
        raise ParameterError("profile", profile, reason=f"there is no folder {folder}")
    if what == "page":
        print(page.write_report(folder))
    elif what == "screenshot":
        if not (folder / page.NAME).is_file():
            raise ParameterError("profile", profile, reason="it has no page; `quagmire report page` makes it")
        print(page.take_screenshot(folder / page.NAME, folder / "report.png"))
    elif what == "readme":
        stale = card.update_readme(ROOT / "docs" / "reproduction.md", folder)
        print(f"docs/reproduction.md {'was rewritten' if stale else 'is up to date'}")
    elif not card.update_card(folder, load_profile(profile)):
        raise ParameterError("profile", profile, reason="its README.md has no markers of a data card")
