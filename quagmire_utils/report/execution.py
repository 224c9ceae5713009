"""Executing notebooks, one or several at a time, with progress that stays readable: what `cli` runs.

    screen = Screen(sys.stderr)
    seconds = execute_all([Job(...), Job(...)], at_once=2, screen=screen, count=Count(2))

Each notebook runs through papermill in a thread of this process and in a kernel of its own. An interrupt or a plain
kill of this process ends the kernels and all they started; where it is killed at once, the kernels notice and end.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from quagmire_utils.core.errors import ParameterError

KERNEL_START_TIMEOUT = 300  # seconds; a loaded two-core machine takes over papermill's 60
SILENCE = 10  # seconds without a sign of life after which a file gets one; a terminal gets one each second
FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk
GRACE = 10.0  # seconds that an interrupted notebook has to end what it started


class NotebookError(RuntimeError):
    """A notebook failed; the message names it and its log."""


@dataclass(frozen=True)
class Job:
    """A notebook to execute: where it is, what it gets, and where its copy goes."""

    source: Path
    final: Path  # the executed copy, put in place when it is complete
    logs: Path  # folder of the copy in progress and of what the notebook prints
    root: Path  # working directory of the kernel
    parameters: Mapping[str, Any]
    heading: str = ""  # replaces the first cell of the executed copy; empty: it stays

    @property
    def name(self) -> str:
        """Name of the executed copy."""
        return self.final.stem

    @property
    def partial(self) -> Path:
        """The copy in progress; it stays when the notebook fails."""
        return self.logs / self.final.name

    @property
    def log(self) -> Path:
        """What the notebook printed."""
        return self.logs / f"{self.name}.log"


@dataclass
class Count:
    """How many notebooks of a run are done."""

    total: int
    done: int = 0


class Screen:
    """The terminal that the notebooks of a run share: lines that stay, and below them one that says what is running."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._states: dict[str, str] = {}
        self._lock = threading.RLock()
        self.shown = time.monotonic()  # when something was last written

    @property
    def silence(self) -> float:
        """Seconds without news after which there should be some."""
        return 1.0 if self._stream.isatty() else SILENCE

    def line(self, text: str) -> None:
        """Write a line that stays."""
        self._write(text, final=True)

    def state(self, states: Mapping[str, str]) -> None:
        """What running notebooks are at: a terminal is redrawn, a file gets a line after ten silent seconds."""
        with self._lock:
            self._states.update(states)
            if self._stream.isatty() or time.monotonic() - self.shown >= SILENCE:
                self._write(" · ".join(self._states.values()), final=False)

    def forget(self, name: str) -> None:
        """A notebook is no longer running."""
        with self._lock:
            self._states.pop(name, None)

    def _write(self, text: str, *, final: bool) -> None:
        with self._lock:
            if self._stream.isatty():
                width = shutil.get_terminal_size().columns - 1
                self._stream.write("\r\x1b[K" + (text + "\n" if final else text[:width]))
            else:
                self._stream.write(text + "\n")
            self._stream.flush()
            self.shown = time.monotonic()


class ProgressLog:
    """Takes what a running notebook writes to its streams: all lines go to a log, stderr also to the screen.

    A progress bar redraws itself after a carriage return. A terminal shows each redraw, a file one in ten seconds, and
    the log gets a bar's last state.
    """

    def __init__(self, log: TextIO, screen: Screen | None, name: str = "", prefix: str = "") -> None:
        self._log, self._screen = log, screen
        self._name, self._prefix = name, prefix
        self._line = ""
        self._lock = threading.Lock()
        self.redraws = False  # whether the notebook has shown a progress bar

    def write(self, text: str) -> None:
        """Take a piece of the stream; it may begin and end within a line."""
        with self._lock:
            for piece in re.split(r"([\r\n])", text):
                if piece == "\n":
                    self._log.write(self._line + "\n")
                    if self._line.strip() and self._screen is not None:
                        self._screen.line(self._prefix + self._line)
                    self._line = ""
                elif piece == "\r":
                    self._line, self.redraws = "", True
                else:
                    self._line += piece
            if self._line.strip() and self._screen is not None:
                self._screen.state({self._name: self._prefix + self._line})

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


def execute(job: Job, progress: ProgressLog, log: TextIO, stop: threading.Event | None = None) -> float:
    """Execute one notebook and put its executed copy in place; seconds taken. No cell is begun once `stop` is set.

    Raises ParameterError with the sentence of one that a cell raised, NotebookError with any other error of a cell, the
    partial copy then staying in the log folder, and OSError where the disk is full.
    """
    import nbformat
    import papermill

    def check(**_: Any) -> None:
        if stop is not None and stop.is_set():
            raise InterruptedError("interrupted")

    job.final.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    printed = ProgressLog(log, None)
    try:
        notebook = papermill.execute_notebook(
            str(job.source),
            str(job.partial),
            parameters=dict(job.parameters),
            kernel_name="python3",
            resources={"metadata": {"path": str(job.root)}},  # papermill's cwd would move the other notebooks too
            progress_bar=False,
            stdout_file=printed,
            stderr_file=progress,
            start_timeout=KERNEL_START_TIMEOUT,
            coalesce_streams=True,  # a progress bar leaves its last state in the copy, not a thousand
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # no line per kernel on how it starts and ends
            on_cell_start=check,
        )
    except papermill.PapermillExecutionError as error:
        if error.ename == ParameterError.__name__:  # its sentence says all
            raise ParameterError(error.evalue) from None
        log.write("\n".join(error.traceback) + "\n")
        raise NotebookError(f"In [{error.exec_count}] raised {error.ename}: {error.evalue}") from None
    except Exception as error:  # a kernel that does not start, or dies
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        log.write(f"{type(error).__name__}: {error}\n")
        raise NotebookError(f"{type(error).__name__}: {error} (a kernel that dies is often out of memory)") from None
    finally:
        printed.close()
        progress.close()
    # Where the folders lie on this machine is nobody's business.
    notebook.metadata.papermill["input_path"] = os.path.relpath(job.source, job.root)
    notebook.metadata.papermill["output_path"] = os.path.relpath(job.final, job.root)
    if job.heading:
        notebook.cells[0].source = job.heading
    temporary = job.final.with_name(f".{job.final.name}.tmp")
    nbformat.write(notebook, temporary)
    os.replace(temporary, job.final)
    job.partial.unlink()
    return time.monotonic() - started


@dataclass
class _Running:
    job: Job
    progress: ProgressLog
    log: TextIO
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def state(self, usual: float | None) -> str:
        """Its progress bar, or else its cells; with `usual`, what it should take, the time left."""
        if bar := self.progress.bar:
            return f"{clock(self.seconds)} {bar}"
        # between its bars, which know better, there is no other estimate
        return progress_line(self.job.name, self.job.partial, self.seconds, None if self.progress.redraws else usual)


def execute_all(jobs: Sequence[Job], *, at_once: int, screen: Screen, count: Count) -> dict[str, float]:
    """Execute notebooks that do not depend on each other, `at_once` at a time; seconds by name.

    After a failure no further notebook is begun; those that are running are finished. Raises NotebookError for what
    failed, or ParameterError where nothing but a parameter was wrong, its sentence once. Ends the kernels before it
    raises OSError, for a full disk, or KeyboardInterrupt with the names of the notebooks that it cut short.
    """
    before = {job.name: usual_seconds(job.final, job.parameters) for job in jobs}
    several = len(jobs) > 1
    if several:
        screen.line(f"{len(jobs)} notebooks, {min(at_once, len(jobs))} at a time")
    waiting, running, failures = list(jobs), dict[Future, _Running](), list[str]()
    wrong: dict[str, None] = {}  # sentences about parameters, each once
    taken: dict[str, float] = {}
    stop = threading.Event()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            while running or (waiting and not failures and not wrong):
                while waiting and not failures and not wrong and len(running) < at_once:
                    job = waiting.pop(0)
                    if not several:
                        screen.line(f"[{count.done + 1}/{count.total}] {job.name}")
                    log = job.log.open("w")
                    progress = ProgressLog(log, screen, job.name, f"{job.name}: " if several else "")
                    running[pool.submit(execute, job, progress, log, stop)] = _Running(job, progress, log)
                ended = wait(running, timeout=1.0, return_when=FIRST_COMPLETED).done
                for future in ended:
                    run = running.pop(future)
                    run.log.close()
                    screen.forget(run.job.name)
                    count.done += 1
                    name, title = run.job.name, f"[{count.done}/{count.total}] {run.job.name}"
                    try:
                        taken[name] = future.result()
                    except ParameterError as error:
                        wrong[str(error)] = None
                        continue
                    except NotebookError as error:
                        failures.append(
                            f"notebook {name} failed: {error}\n"
                            f"  partial copy: {run.job.partial}\n"
                            f"  log:          {run.job.log}"
                        )
                        screen.line(f"{title}: failed after {clock(run.seconds)}")
                        continue
                    at_work = {run.job.name: run.seconds for run in running.values()}
                    left = time_left([job.name for job in waiting], at_work, before, taken, at_once)
                    screen.line(
                        f"{title}: done in {clock(taken[name])}{left if several and (waiting or running) else ''}"
                    )
                if running and time.monotonic() - screen.shown >= screen.silence:
                    usual = expected_seconds(before, taken)
                    screen.state({run.job.name: run.state(usual[run.job.name]) for run in running.values()})
        except (KeyboardInterrupt, OSError) as error:
            stop.set()
            _end_kernels(running)
            for run in running.values():
                with contextlib.suppress(OSError):
                    run.log.close()
            if isinstance(error, OSError):
                raise
            raise KeyboardInterrupt(", ".join(run.job.name for run in running.values())) from None
    if failures:
        raise NotebookError("\n".join([*failures, *wrong]))
    if wrong:
        raise ParameterError("\n".join(wrong))
    return {job.name: taken[job.name] for job in jobs}


def _end_kernels(running: Collection[Future]) -> None:
    """Interrupt the cell that each kernel is in; one that goes on is killed with all it started."""
    import psutil

    told, deadline = set(), time.monotonic() + GRACE
    while wait(running, timeout=0.2).not_done:
        patience = time.monotonic() < deadline
        for kernel in psutil.Process().children():  # a kernel that is being started now shows up in a later round
            with contextlib.suppress(OSError):
                if not patience:
                    os.killpg(kernel.pid, signal.SIGKILL)  # a kernel leads a group of its own
                elif kernel.pid not in told:
                    os.kill(kernel.pid, signal.SIGINT)
                    told.add(kernel.pid)


def usual_seconds(previous: Path, parameters: Mapping[str, Any]) -> float | None:
    """What a notebook took in the run that left this executed copy; None where that had other parameters."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        facts = json.loads(previous.read_text(encoding="utf-8"))["metadata"]["papermill"]
        if facts["parameters"] == json.loads(json.dumps(dict(parameters))):
            return float(facts["duration"])
    return None


def expected_seconds(before: Mapping[str, float | None], taken: Mapping[str, float]) -> dict[str, float | None]:
    """What each notebook should take: what it took `before`, times how much slower those `taken` were than before."""
    both = [(taken[name], seconds) for name, seconds in before.items() if seconds and name in taken]
    pace = sum(now for now, _ in both) / sum(then for _, then in both) if both else 1.0
    return {name: seconds and pace * seconds for name, seconds in before.items()}


def time_left(
    waiting: Sequence[str],
    running: Mapping[str, float],
    before: Mapping[str, float | None],
    taken: Mapping[str, float],
    at_once: int,
) -> str:
    """`, about 1:20 left`; empty where it is not known. All in seconds by notebook name.

    Judged by `expected_seconds` (the machine may be busier than before); a notebook without a run before is expected to
    take as long as the mean of the others.
    """
    expected = expected_seconds(before, taken)
    known = [seconds for seconds in (taken.get(name, expected[name]) for name in before) if seconds is not None]
    if not known:
        return ""
    likely = {name: sum(known) / len(known) if seconds is None else seconds for name, seconds in expected.items()}
    left = sum(likely[name] for name in waiting)
    left += sum(max(0.0, likely[name] - seconds) for name, seconds in running.items())
    return f", about {clock(left / at_once)} left" if left >= 1 else ""  # what still runs takes longer than known


def progress_line(name: str, partial: Path, seconds: float, usual: float | None) -> str:
    """How far a running notebook is: cells done so far, time gone, and time left of what it should take, if known.

    The share of cells done says nothing of the time left: one cell may do all the work.
    """
    cells = "starting"
    with contextlib.suppress(OSError, ValueError, KeyError):  # papermill may be writing the file just now
        code = [cell for cell in json.loads(partial.read_text())["cells"] if cell["cell_type"] == "code"]
        done = sum(cell["metadata"].get("papermill", {}).get("status") == "completed" for cell in code)
        cells = f"{done} of {len(code)} cells"
    left = f", about {clock(usual - seconds)} left" if usual is not None and seconds < usual else ""
    return f"{name}: {cells}, {clock(seconds)}{left}"


def clock(seconds: float) -> str:
    """Minutes and seconds, for example 12:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
