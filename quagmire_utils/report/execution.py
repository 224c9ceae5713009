"""Execute notebooks, one or several at a time; `reproduction` decides which.

Each notebook runs through papermill in a thread of this process. A kernel runs one notebook after another, with empty
names, so that it imports its packages once. An interrupt or a plain kill ends the kernels and all they started.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import write_text
from quagmire_utils.report.notebook import OUTPUT

if TYPE_CHECKING:
    from jupyter_client.manager import AsyncKernelManager

PATIENCE = 300  # seconds for a kernel to start; a loaded two-core machine takes over papermill's 60
FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk
VOLATILE = re.compile(r"0x[0-9a-f]{6,}|\bT_[0-9a-f]{5}\b|\bT_[0-9a-f]{5}(?=_)")  # addresses; ids of styled tables
GRACE = 10.0  # seconds that an interrupted notebook has to end what it started


class NotebookError(RuntimeError):
    """A notebook failed; the message names it and its log."""


@dataclass(frozen=True)
class Job:
    """A notebook to execute."""

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
        """The file of what the notebook prints."""
        return self.logs / f"{self.name}.log"


class _Shown:
    """What the only running notebook writes to stderr, its progress bars too: in the log and on the terminal."""

    def __init__(self, *files: TextIO) -> None:
        self.files = files

    def write(self, text: str) -> None:
        for file in self.files:
            print(text, end="", file=file, flush=True)

    def flush(self) -> None:
        pass


def execute(job: Job, terminal: TextIO | None, stop: threading.Event, kernels: list[AsyncKernelManager]) -> float:
    """Execute one notebook in one of `kernels`, put its executed copy in place, and return the seconds it took.

    terminal: also takes what it writes to stderr. Once `stop` is set, no cell is begun. Raises ParameterError with the
    sentence of one that a cell raised, NotebookError with any other error of a cell, OSError for a full disk.
    """
    import nbformat
    import papermill

    def check(**_: Any) -> None:
        if stop.is_set():
            raise InterruptedError("interrupted")

    job.final.parent.mkdir(parents=True, exist_ok=True)
    started, kernel = time.monotonic(), None
    with job.log.open("w") as log:
        try:
            kernel = kernels.pop() if kernels else start_kernel(job.root, job.final.parents[1])
            notebook = papermill.execute_notebook(
                str(job.source),
                str(job.partial),
                parameters=dict(job.parameters),
                kernel_name="python3",
                km=kernel,
                progress_bar=False,
                stdout_file=log,
                stderr_file=log if terminal is None else _Shown(log, terminal),
                start_timeout=PATIENCE,
                coalesce_streams=True,  # a progress bar leaves its last state in the copy, not a thousand
                on_cell_start=check,
            )
            reset(kernel)
        except BaseException as error:
            _shut_down([kernel] if kernel else [])
            if isinstance(error, papermill.PapermillExecutionError):
                if error.ename == ParameterError.__name__:  # its sentence is enough
                    raise ParameterError(error.evalue) from None
                log.write("\n".join(error.traceback) + "\n")
                raise NotebookError(f"In [{error.exec_count}] raised {error.ename}: {error.evalue}") from None
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            said = f"{type(error).__name__}: {error}"  # a kernel that does not start, or dies
            log.write(said + "\n")
            raise NotebookError(f"{said} (a kernel that dies is often out of memory)") from None
    kernels.append(kernel)
    for name, path in (("input_path", job.source), ("output_path", job.final)):  # no absolute paths
        notebook.metadata.papermill[name] = os.path.relpath(path, job.root)
    if job.heading:
        notebook.cells[0].source = job.heading
    text = nbformat.writes(notebook) + "\n"
    if not job.final.is_file() or content(job.final.read_text(encoding="utf-8")) != content(text):
        write_text(text, job.final)
    job.partial.unlink()
    return time.monotonic() - started


def content(notebook: str) -> str:
    """Return what a notebook holds but for what differs in each execution: times, addresses, ids, progress bars."""
    try:
        book = json.loads(notebook)
        cells = [
            (cell["source"], [output for output in cell.get("outputs", []) if output.get("name") != "stderr"])
            for cell in book["cells"]
        ]
        text = json.dumps([cells, book["metadata"]["papermill"]["parameters"]])
    except (ValueError, KeyError):
        return notebook
    return VOLATILE.sub("", text)


def start_kernel(folder: Path, output: Path | None = None) -> AsyncKernelManager:
    """Start a kernel in this folder; output: where its notebooks save their figures (`notebook.figures_folder`)."""
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.util import run_sync

    kernel = AsyncKernelManager(kernel_name="python3")
    options = ["--IPKernelApp.log_level=CRITICAL"]  # no messages when a kernel starts and ends
    env = os.environ | ({OUTPUT: str(output)} if output else {})
    run_sync(kernel.start_kernel)(cwd=str(folder), extra_arguments=options, env=env)
    return kernel


def reset(kernel: AsyncKernelManager) -> None:
    """Forget the names of the notebook, and count cells from 1 again."""
    client = kernel.blocking_client()
    client.start_channels()
    # without __spec__ multiprocessing cannot start a process from the next notebook
    code = "get_ipython().reset(new_session=True)\nget_ipython().user_module.__spec__ = None"
    client.execute(code, store_history=False, reply=True, timeout=PATIENCE)
    client.stop_channels()


def _shut_down(kernels: Collection[AsyncKernelManager]) -> None:
    from nbclient.util import run_sync

    for kernel in kernels:
        run_sync(kernel.shutdown_kernel)(now=True)


def execute_all(groups: Sequence[Sequence[Job]], at_once: int, terminal: TextIO) -> dict[str, float]:
    """Execute notebooks group by group, of a group `at_once` at a time; return the seconds by name.

    After a failure no further notebook is begun; those that are running are finished. Raises NotebookError for what
    failed, or ParameterError if only parameters were wrong. Ends the kernels before it raises OSError, for a full disk,
    or KeyboardInterrupt with the names of the interrupted notebooks.
    """
    taken: dict[str, float] = {}
    done, total = 0, sum(map(len, groups))
    failed, stop = threading.Event(), threading.Event()

    def attempt(job: Job, alone: bool, kernels: list[AsyncKernelManager]) -> None:
        """Execute a notebook, unless another one has failed."""
        try:
            if not failed.is_set():
                taken[job.name] = execute(job, terminal if alone else None, stop, kernels)
        except BaseException:
            failed.set()
            raise

    def say(text: str) -> None:
        print(text, file=terminal, flush=True)

    for jobs in groups:
        alone, kernels, errors = len(jobs) == 1, list["AsyncKernelManager"](), list[ValueError | NotebookError]()
        say(f"[{done + 1}/{total}] {jobs[0].name}" if alone else f"{len(jobs)} notebooks, {at_once} at a time")
        with ThreadPoolExecutor(at_once) as pool:
            running = {pool.submit(attempt, job, alone, kernels): job for job in jobs}
            try:
                for future in as_completed(running):
                    job, done = running[future], done + 1
                    try:
                        future.result()
                    except ParameterError as error:
                        errors.append(error)
                    except NotebookError as error:
                        say(f"[{done}/{total}] {job.name}: failed")
                        places = f"  partial copy: {job.partial}\n  log:          {job.log}"
                        errors.append(NotebookError(f"notebook {job.name} failed: {error}\n{places}"))
                    if job.name in taken:
                        say(f"[{done}/{total}] {job.name}: done in {clock(taken[job.name])}")
            except (KeyboardInterrupt, OSError) as error:
                failed.set()
                stop.set()
                interrupted = ", ".join(job.name for future, job in running.items() if future.running())
                _end_kernels(running)
                raise error if isinstance(error, OSError) else KeyboardInterrupt(interrupted) from None
            finally:
                _shut_down(kernels)
        if failures := [str(error) for error in errors if isinstance(error, NotebookError)]:
            raise NotebookError("\n".join(failures))
        if errors:
            raise errors[0]
    return {job.name: taken[job.name] for jobs in groups for job in jobs}


def _end_kernels(running: Collection[Future]) -> None:
    """Interrupt the cell that each kernel runs; after `GRACE`, kill the kernel with all it started."""
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


def clock(seconds: float) -> str:
    """Return minutes and seconds, for example 12:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
