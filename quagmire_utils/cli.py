"""Executes the notebooks of a profile: what `./reproduce.sh` does once the environment stands.

    python -m quagmire_utils.cli run --profile smoke --only fig03,table01 -p num_samples=16

`run_sweep` comes first (it computes the records, resuming whatever an earlier run left), then every `figNN_*` and
`tableNN_*` notebook; the others (workflows such as `evaluate_model`) run where `--only` names them. Each runs through
papermill in the repo's root, with `profile` and the given parameters in its parameters cell. An executed copy replaces
`results/<profile>/notebooks/<name>.ipynb` in one step, when it is complete; the copy in progress and what the notebook
printed are `results/<profile>/logs/<name>.ipynb` and `.log`, and stay there when it fails.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TextIO

from quagmire_utils.config import ParameterError, load_profile

ROOT = Path(__file__).resolve().parents[1]
SWEEP = "run_sweep"
REGULAR = re.compile(r"(fig|table)\d+_?")  # these belong to every run; other notebooks run where --only names them
KERNEL_START_TIMEOUT = 300  # seconds; a loaded two-core machine takes over papermill's 60
SILENCE = 10  # seconds without a sign of life after which the terminal gets one


@dataclass(frozen=True)
class Run:
    """What to execute and where."""

    profile: str  # a name, or the path of a YAML file
    only: tuple[str, ...] = ()  # prefixes of notebook names; empty: run_sweep and every figure and table
    parameters: Mapping[str, str] = field(default_factory=dict)  # as typed by the user
    fresh: bool = False  # set aside what the profile computed before
    root: Path = ROOT  # working directory of the notebooks
    notebooks: Path = ROOT / "notebooks"
    results: Path = ROOT / "results"

    @property
    def folder(self) -> Path:
        """Where the profile's records, executed notebooks and logs go."""
        return self.results / load_profile(self.profile).name

    @property
    def resume_command(self) -> str:
        """The shell command that goes on where this run stopped."""
        words = ["./reproduce.sh", "--profile", self.profile]
        words += ["--only", ",".join(self.only)] if self.only else []
        for name, value in self.parameters.items():
            words += ["-p", f"{name}={value}"]
        return shlex.join(words)


class NotebookError(RuntimeError):
    """A notebook failed; the message names it, its log and the command that resumes."""


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


class ProgressLog:
    """Takes what a running notebook writes to its streams: all lines go to a log, stderr also to the terminal.

    A progress bar redraws itself after a carriage return. A terminal shows each redraw, a file one in ten seconds, and
    the log gets a bar's last state.
    """

    def __init__(self, log: TextIO, terminal: TextIO | None) -> None:
        self._log, self._terminal = log, terminal
        self._line = ""
        self._lock = threading.Lock()
        self.shown = time.monotonic()  # when the terminal last got something

    def write(self, text: str) -> None:
        """Take a piece of the stream; it may begin and end within a line."""
        with self._lock:
            for piece in re.split(r"([\r\n])", text):
                if piece == "\n":
                    self._log.write(self._line + "\n")
                    if self._line.strip():
                        self._show(self._line, final=True)
                    self._line = ""
                elif piece == "\r":
                    self._line = ""
                else:
                    self._line += piece
            if self._line.strip():
                self._show(self._line, final=False)

    def flush(self) -> None:
        """Papermill asks for it after each piece."""
        self._log.flush()

    def close(self) -> None:
        """End the line that the notebook left open."""
        if self._line:
            self.write("\n")

    @property
    def bar(self) -> str:
        """The line that the notebook has open: its progress bar, as a rule."""
        return self._line.strip()

    def note(self, text: str, *, final: bool = False) -> None:
        """Show a line of the runner's own."""
        with self._lock:
            self._show(text, final=final)

    def _show(self, line: str, *, final: bool) -> None:
        if self._terminal is None:
            return
        now = time.monotonic()
        if self._terminal.isatty():
            width = shutil.get_terminal_size().columns - 1
            self._terminal.write("\r\x1b[K" + (line + "\n" if final else line[:width]))
        elif final or now - self.shown >= SILENCE:
            self._terminal.write(line + "\n")
        else:
            return
        self._terminal.flush()
        self.shown = now


def execute(run: Run, path: Path, parameters: Mapping[str, Any], progress: ProgressLog, log: TextIO) -> float:
    """Execute one notebook and put its executed copy in place; seconds taken.

    Raises NotebookError with the failing cell's error; the partial copy stays in the log folder.
    """
    import nbformat
    import papermill

    from quagmire_utils.plots import compact_pictures

    partial, final = run.folder / "logs" / path.name, run.folder / "notebooks" / path.name
    final.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    printed = ProgressLog(log, None)
    try:
        with _heartbeat(path.stem, partial, final, progress):
            notebook = papermill.execute_notebook(
                str(path),
                str(partial),
                parameters=dict(parameters),
                kernel_name="python3",
                cwd=str(run.root),
                progress_bar=False,
                stdout_file=printed,
                stderr_file=progress,
                start_timeout=KERNEL_START_TIMEOUT,
                coalesce_streams=True,  # a progress bar leaves its last state in the copy, not a thousand
                extra_arguments=["--IPKernelApp.log_level=ERROR"],  # no warning per kernel that loopback is unencrypted
            )
    except papermill.PapermillExecutionError as error:
        log.write("\n".join(error.traceback) + "\n")
        raise NotebookError(f"In [{error.exec_count}] raised {error.ename}: {error.evalue}") from None
    except Exception as error:  # a kernel that does not start, or dies
        log.write(f"{type(error).__name__}: {error}\n")
        raise NotebookError(f"{type(error).__name__}: {error} (a kernel that dies is often out of memory)") from None
    finally:
        printed.close()
        progress.close()
    # Where the folders lie on this machine is nobody's business.
    notebook.metadata.papermill["input_path"] = os.path.relpath(path, run.root)
    notebook.metadata.papermill["output_path"] = os.path.relpath(final, run.root)
    compact_pictures(notebook)
    temporary = final.with_name(f".{final.name}.tmp")
    nbformat.write(notebook, temporary)
    os.replace(temporary, final)
    partial.unlink()
    return time.monotonic() - started


@contextlib.contextmanager
def _heartbeat(name: str, partial: Path, previous: Path, progress: ProgressLog) -> Iterator[None]:
    """Show how far the notebook is whenever nothing was shown for ten seconds."""
    done = threading.Event()
    started = time.monotonic()

    def beat() -> None:
        while not done.wait(1.0):
            if time.monotonic() - progress.shown >= SILENCE:
                seconds, bar = time.monotonic() - started, progress.bar
                progress.note(f"{clock(seconds)} {bar}" if bar else progress_line(name, partial, previous, seconds))

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def progress_line(name: str, partial: Path, previous: Path, seconds: float) -> str:
    """How far a running notebook is: cells done so far, time gone, time left.

    The time left is judged by the executed copy of the run before, or by the share of cells done.
    """
    done = total = 0
    with contextlib.suppress(OSError, ValueError, KeyError):  # papermill may be writing the file just now
        cells = [cell for cell in json.loads(partial.read_text())["cells"] if cell["cell_type"] == "code"]
        total = len(cells)
        done = sum(cell["metadata"].get("papermill", {}).get("status") == "completed" for cell in cells)
    usual = seconds * total / done if done else None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        usual = float(json.loads(previous.read_text())["metadata"]["papermill"]["duration"])
    left = "time left not known yet" if usual is None else f"about {clock(max(0.0, usual - seconds))} left"
    return f"{name}: {done} of {total} cells, {clock(seconds)}, {left}"


def clock(seconds: float) -> str:
    """Minutes and seconds, for example 12:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def run_notebooks(run: Run, terminal: TextIO | None = None) -> dict[str, float]:
    """Execute the notebooks of `run` in order; seconds by notebook name.

    Raises ParameterError before anything runs, and NotebookError for the first notebook that fails.
    """
    terminal = sys.stderr if terminal is None else terminal
    folder = run.folder
    selected = select_notebooks(run.notebooks, run.only)
    sweep = run.notebooks / f"{SWEEP}.ipynb"
    no_records = run.fresh or not (folder / "manifest.json").exists()
    if no_records and sweep not in selected and sweep.exists() and any(REGULAR.match(path.stem) for path in selected):
        print(f"{folder.name} has no records yet: {SWEEP} comes first", file=terminal)
        selected.insert(0, sweep)
    parameters = assign_parameters(run, selected)
    if run.fresh:
        keep = run.results.parent / ".quagmire" / "previous" / folder.name
        set_aside(folder, keep)
        print(f"Set aside what {folder.name} computed before: {os.path.relpath(keep, run.root)}", file=terminal)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    taken: dict[str, float] = {}
    for number, path in enumerate(selected, start=1):
        log_path = folder / "logs" / f"{path.stem}.log"
        with log_path.open("w") as log:
            progress = ProgressLog(log, terminal)
            title = f"[{number}/{len(selected)}] {path.stem}"
            progress.note(title, final=True)
            try:
                taken[path.stem] = execute(run, path, parameters[path], progress, log)
            except NotebookError as error:
                raise NotebookError(
                    f"notebook {path.stem} failed: {error}\n"
                    f"  partial copy: {folder / 'logs' / path.name}\n"
                    f"  log:          {log_path}\n"
                    f"  resume with:  {run.resume_command}"
                ) from None
            except KeyboardInterrupt:
                raise KeyboardInterrupt(path.stem) from None
            progress.note(f"{title}: done in {clock(taken[path.stem])}", final=True)
    return taken


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
    return Run(
        profile=values.profile,
        only=only,
        parameters=parameters,
        fresh=values.fresh,
        notebooks=values.notebooks.resolve(),
        results=values.results.resolve(),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a notebook failed, 2 a parameter is wrong, 130 interrupted."""
    run = parse_arguments(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a plain kill also ends the kernel, not only us
    try:
        taken = run_notebooks(run)
    except ParameterError as error:
        print(f"reproduce.sh: {error}", file=sys.stderr)
        return 2
    except NotebookError as error:
        print(f"\nreproduce.sh: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # or the abandoned cell prints its traceback at exit
        where = f" in notebook {interrupt}" if str(interrupt) else ""
        print(f"\nreproduce.sh: interrupted{where}; resume with: {run.resume_command}", file=sys.stderr)
        return 130
    copies = os.path.relpath(run.folder / "notebooks")
    print(f"Done in {clock(sum(taken.values()))}: {len(taken)} executed notebooks in {copies}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
