"""Executes the notebooks of a profile: what `./reproduce.sh` does once the environment stands.

    python -m quagmire_utils.cli run --profile smoke --only fig03,table01 -p num_samples=16

`run_sweep` comes first (it computes the records, resuming whatever an earlier run left), then, several at a time
because they only read, every `figNN_*` and `tableNN_*` notebook, `claims` and `paper_audit`; the others (workflows such
as `evaluate_model`) run one by one where `--only` names them. Each runs through papermill in the repo's root, with
`profile` and the given parameters in its parameters cell. An executed copy replaces
`results/<profile>/notebooks/<name>.ipynb` in one step, when it is complete; the copy in progress and what the notebook
printed are `results/<profile>/logs/<name>.ipynb` and `.log`, and stay there when it fails. In the end
`results/<profile>/report.html` is made anew, from every executed copy that is there (alone: `--only report`), and the
notebooks that `--only` named say on stdout what they found, where they have a sentence for it.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import itertools
import os
import re
import shlex
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TextIO

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.paths import ROOT
from quagmire_utils.core.settings import load_profile
from quagmire_utils.report.execution import Count, Job, NotebookError, Screen, clock, execute_all

SWEEP = "run_sweep"
REPORT = "report"  # what --only calls the page
# These belong to every run, and only read records; other notebooks run where --only names them.
REGULAR = re.compile(r"(fig|table)\d+_?|claims$|paper_audit$")
MOST_JOBS = 4  # notebooks at a time unless --jobs says more; each takes about 0.4 GiB


@dataclass(frozen=True)
class Run:
    """What to execute and where."""

    profile: str  # a name, the path of a YAML file, or a folder of records
    only: tuple[str, ...] = ()  # prefixes of notebook names, or "report"; empty: run_sweep and all that belong to a run
    parameters: Mapping[str, str] = field(default_factory=dict)  # as typed by the user
    fresh: bool = False  # set aside what the profile computed before
    jobs: int | None = None  # notebooks at a time; None: one for each core, at most MOST_JOBS
    root: Path = ROOT  # working directory of the notebooks
    notebooks: Path = ROOT / "notebooks"
    results: Path = ROOT / "results"

    @property
    def records_only(self) -> bool:
        """Whether the profile is a folder of records: nothing there can be computed again."""
        return (Path(self.profile) / "manifest.json").is_file()

    @property
    def folder(self) -> Path:
        """Where the profile's records, executed notebooks and logs go."""
        if self.records_only:
            return Path(self.profile).resolve()
        return self.results / load_profile(self.profile).name

    @property
    def names(self) -> tuple[str, ...]:
        """What `only` says of notebooks."""
        return tuple(name for name in self.only if name != REPORT)

    @property
    def resume_command(self) -> str:
        """The shell command that goes on where this run stopped."""
        words = ["./reproduce.sh", "--profile", self.profile]
        words += ["--only", ",".join(self.only)] if self.only else []
        words += ["--jobs", str(self.jobs)] if self.jobs is not None else []
        for name, value in self.parameters.items():
            words += ["-p", f"{name}={value}"]
        return shlex.join(words)


def select_notebooks(folder: Path, only: Sequence[str] = ()) -> list[Path]:
    """The notebooks to execute, in order: run_sweep, figures, tables, the rest.

    `only` holds prefixes of names. Raises ParameterError where a prefix fits no notebook, or nothing is left to run.
    """
    everything = sorted(folder.glob("*.ipynb"), key=_position)
    if not only:
        regular = [path for path in everything if path.stem == SWEEP or REGULAR.match(path.stem)]
        if not regular:
            raise ParameterError(f"there is no {SWEEP} and no figure or table among the notebooks in {folder}")
        return regular
    for prefix in only:
        if not prefix or not any(path.stem.startswith(prefix) for path in everything):
            names = ", ".join(path.stem for path in everything)
            raise ParameterError(f"no notebook's name begins with {prefix!r}; there are {names}")
    return [path for path in everything if path.stem.startswith(tuple(only))]


def _position(path: Path) -> tuple[bool, bool, str]:
    return path.stem != SWEEP, REGULAR.match(path.stem) is None, path.stem


def notebook_parameters(path: Path) -> dict[str, Any]:
    """The names and default values in the notebook's parameters cell (None where a default is not a literal)."""
    import papermill

    defaults: dict[str, Any] = {}
    for name, parameter in papermill.inspect_notebook(str(path)).items():
        defaults[name] = None
        with contextlib.suppress(ValueError, SyntaxError):
            defaults[name] = ast.literal_eval(parameter["default"])
    return defaults


def parse_value(name: str, text: str, default: Any = None) -> Any:
    """The typed value of `-p name=text`, of the type that the notebook's own default has.

    A list or tuple may be written without brackets (a,b); a default of None takes any literal, and plain text as text.
    Raises ParameterError where the value is of another type.
    """
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "none": None, "null": None}.get(text.lower(), text)
    if value is None or default is None:
        return value
    if isinstance(default, (list, tuple)):
        if isinstance(value, str) and value is text:
            value = [parse_value(name, item.strip()) for item in text.split(",") if item.strip()]
        return type(default)(value) if isinstance(value, (list, tuple)) else type(default)([value])
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise ParameterError(f"parameter {name} must be {type(default).__name__} like {default!r}, not {text!r}")
    return value


def assign_parameters(run: Run, paths: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """The parameters each notebook gets: `profile`, and of the user's those that it has.

    Raises ParameterError for a parameter that none of them has.
    """
    if "profile" in run.parameters:
        raise ParameterError("the profile is chosen with --profile, not with -p")
    defaults = {path: notebook_parameters(path) for path in paths}
    for name in run.parameters:
        if not any(name in known for known in defaults.values()):
            known = sorted(set().union(*defaults.values()) - {"profile"})
            notebooks = ", ".join(path.stem for path in paths)
            raise ParameterError(f"no parameter {name!r} in {notebooks}; known: {', '.join(known) or 'none'}")
    given = {**run.parameters, "profile": run.profile}
    return {
        path: {name: parse_value(name, given[name], default) for name, default in known.items() if name in given}
        for path, known in defaults.items()
    }


def set_aside(folder: Path, keep: Path) -> None:
    """Move a profile's results to `keep`, in place of what was kept there before; its README.md stays."""
    if not folder.is_dir():
        return
    shutil.rmtree(keep, ignore_errors=True)
    keep.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, keep)
    if (keep / "README.md").exists():
        folder.mkdir()
        shutil.copy2(keep / "README.md", folder)


def run_notebooks(run: Run, terminal: TextIO | None = None) -> dict[str, float]:
    """Execute the notebooks of `run`; seconds by notebook name.

    Raises ParameterError before anything runs or from a notebook, NotebookError where a notebook fails, OSError where
    the disk is full, and KeyboardInterrupt with the names of the notebooks that were running.
    """
    screen = Screen(sys.stderr if terminal is None else terminal)
    folder = run.folder
    selected = _plan(run, screen)
    parameters = assign_parameters(run, selected)
    if run.fresh:
        keep = run.results.parent / ".quagmire" / "previous" / folder.name
        set_aside(folder, keep)
        screen.line(f"Set aside what {folder.name} computed before: {os.path.relpath(keep, run.root)}")
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    jobs = [Job(path, folder / "notebooks" / path.name, logs, run.root, parameters[path]) for path in selected]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    at_once = min(MOST_JOBS, cores) if run.jobs is None else run.jobs
    taken: dict[str, float] = {}
    count = Count(len(jobs))
    try:
        # those that only read go side by side; of the others, each has the machine for itself
        for _, group in itertools.groupby(jobs, key=lambda job: job.name if REGULAR.match(job.name) is None else ""):
            taken |= execute_all(list(group), at_once=at_once, screen=screen, count=count)
    except NotebookError as error:
        raise NotebookError(f"{error}\n  resume with:  {run.resume_command}") from None
    return taken


def _plan(run: Run, screen: Screen) -> list[Path]:
    """The notebooks to execute. Raises ParameterError for what does not go together."""
    if run.jobs is not None and run.jobs < 1:
        raise ParameterError(f"--jobs must be at least 1, not {run.jobs}")
    if run.fresh and (run.records_only or run.only == (REPORT,)):
        raise ParameterError("--fresh computes the records of a profile again: it needs a profile, and its notebooks")
    if run.only and not run.names:
        return []
    selected = select_notebooks(run.notebooks, run.names)
    sweep = run.notebooks / f"{SWEEP}.ipynb"
    if run.records_only:
        if run.names and sweep in selected:
            raise ParameterError(f"{SWEEP} needs a profile, and {run.profile} is a folder of records")
        return [path for path in selected if path != sweep]
    no_records = run.fresh or not (run.folder / "manifest.json").exists()
    if no_records and sweep not in selected and sweep.exists() and any(REGULAR.match(path.stem) for path in selected):
        screen.line(f"{run.folder.name} has no records yet: {SWEEP} comes first")
        selected.insert(0, sweep)
    return selected


def make_report(run: Run, taken: Collection[str]) -> Path | None:
    """Make the page anew if a notebook that it shows was executed, or if --only names it; its path."""
    if REPORT not in run.only and not any(REGULAR.match(name) for name in taken):
        return None
    from quagmire_utils.report import write_report

    return write_report(run.folder, sources=run.notebooks)


def print_headlines(executed: Path) -> None:
    """Print to stdout what the executed notebook found, where it says so in words."""
    from quagmire_utils.report.notebook import headlines

    width = max(40, shutil.get_terminal_size().columns)
    for text in headlines(executed):
        said = textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
        print(f"\n{said}", flush=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"reproduce.sh: {message} (see ./reproduce.sh --help)\n")


def parse_arguments(arguments: Sequence[str] | None = None) -> Run:
    """The run that the command line asks for; a wrong one ends the process with one sentence."""
    parser = _Parser(prog="quagmire_utils.cli", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="run")
    command = commands.add_parser("run", allow_abbrev=False, help="execute the notebooks of a profile")
    command.add_argument("--profile", required=True)
    command.add_argument("--only", default="", help="prefixes of notebook names, separated by commas")
    command.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE")
    command.add_argument("--jobs", type=int, help="notebooks at a time (those that only read records)")
    command.add_argument("--fresh", action="store_true", help="set aside what the profile computed, compute it again")
    command.add_argument("--notebooks", type=Path, default=Run.notebooks, help="folder of the notebooks")
    command.add_argument("--results", type=Path, default=Run.results, help="folder of the results")
    values = parser.parse_args(arguments)
    parameters: dict[str, str] = {}
    for text in values.parameters:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            parser.error(f"-p takes NAME=VALUE, not {text!r}")
        if name in parameters:
            parser.error(f"-p gives {name} twice")
        parameters[name] = value
    only = tuple(prefix.strip() for prefix in values.only.split(",") if prefix.strip())
    records = (Path(values.profile) / "manifest.json").is_file()
    return Run(
        profile=str(Path(values.profile).resolve()) if records else values.profile,
        only=only,
        parameters=parameters,
        fresh=values.fresh,
        jobs=values.jobs,
        notebooks=values.notebooks.resolve(),
        results=values.results.resolve(),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a notebook failed or the disk is full, 2 a parameter is wrong, 130 interrupted."""
    run = parse_arguments(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a plain kill also ends the kernel, not only us
    started = time.monotonic()
    try:
        taken = run_notebooks(run)
        page = make_report(run, taken)
    except ParameterError as error:
        print(f"reproduce.sh: {error}", file=sys.stderr)
        return 2
    except NotebookError as error:
        print(f"\nreproduce.sh: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        said = f"{run.folder} cannot be written to: {error.strerror or error}"
        print(f"\nreproduce.sh: {said}; resume with: {run.resume_command}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        where = f" in notebook{'s' * (',' in str(interrupt))} {interrupt}" if str(interrupt) else ""
        print(f"\nreproduce.sh: interrupted{where}; resume with: {run.resume_command}", file=sys.stderr)
        return 130
    copies = os.path.relpath(run.folder / "notebooks")
    if taken:
        seconds = clock(time.monotonic() - started)
        print(f"Done in {seconds}: {len(taken)} executed notebooks in {copies}", file=sys.stderr)
    for name in (name for name in taken if run.names and name.startswith(run.names)):
        print_headlines(run.folder / "notebooks" / f"{name}.ipynb")
    if page is not None:
        print(f"All on one page: {os.path.relpath(page)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
