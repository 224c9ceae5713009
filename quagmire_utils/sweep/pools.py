"""Worker processes of this machine that compute cells. `ray_pool` does the same on the nodes of a Ray cluster.

A pool is given cells whose starting checkpoint is in the results folder. When a cell has ended, its records and its
checkpoint are there too, wherever it ran. A cell whose process or node dies is started again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TextIO

from pebble import ProcessExpired, ProcessPool

from quagmire_utils.core.processes import end_with_parent
from quagmire_utils.core.settings import Profile
from quagmire_utils.sweep.cells import run_cell
from quagmire_utils.sweep.grid import Cell

ATTEMPTS = 4  # starts of a cell whose process or node keeps dying
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
Ended = list[tuple[Cell, BaseException | None]]  # cells that have ended, each with its error


class CellLostError(RuntimeError):
    """A cell's process or machine died again and again; the message says what happened."""


class LocalPool:
    """Worker processes, one cell at a time each; a context manager that ends the cells in flight on an exception."""

    def __init__(self, profile: Profile, folder: Path, workers: int) -> None:
        self.profile, self.folder, self.workers = profile, folder, workers
        gpus = profile.compute.gpus
        self._cells: dict[Future, tuple[Cell, str | None]] = {}
        self._starts: Counter[str] = Counter()
        self._free = _devices(gpus, workers) if gpus and workers > 1 else [None] * workers
        resource_tracker.ensure_running()  # its start unblocks interrupts, and a pool's first worker would be born so
        self._pool = ProcessPool(
            workers,
            max_tasks=1 if gpus else 0,  # a process that has used its GPUs cannot change to others
            initializer=end_with_parent,
            initargs=(os.getpid(),),
            context=multiprocessing.get_context("spawn"),
        )

    @property
    def running(self) -> list[Cell]:
        """The cells in flight."""
        return [cell for cell, _ in self._cells.values()]

    def has_room(self) -> bool:
        """Return whether a worker is free."""
        return len(self._cells) < self.workers

    def submit(self, cell: Cell) -> None:
        """Start a cell."""
        self._starts[cell.id] += 1
        devices = self._free.pop(0)
        with _interrupts_wait():
            future = self._pool.schedule(_compute, args=(self.profile, self.folder, cell, devices))
        self._cells[future] = cell, devices

    def wait(self, seconds: float) -> Ended:
        """Wait up to `seconds` for a cell to end; return those that have ended."""
        finished, _ = wait_for(self._cells, timeout=seconds, return_when=FIRST_COMPLETED)
        ended: Ended = []
        for future in finished:
            cell, devices = self._cells.pop(future)
            self._free.append(devices)
            error = future.exception()
            if isinstance(error, ProcessExpired):
                if self._starts[cell.id] < ATTEMPTS:
                    with _log(self.folder, cell) as log:
                        log.write("--- the process died; started again\n")
                    self.submit(cell)
                    continue
                error = CellLostError(f"cell {cell.id} died {ATTEMPTS} times; is there too little memory?")
            ended.append((cell, error))
        return ended

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.stop()  # without an exception, nothing runs any more
        self._pool.join()


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold Ctrl-C back while workers are born: they inherit the blocked signal, and the pool ends them.

    A terminal sends it to all of its processes, and one that is half started would answer with a traceback.
    """
    waiting: list[object] = []
    handler = signal.signal(signal.SIGINT, lambda *_: waiting.append(None))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
        if waiting:
            raise KeyboardInterrupt


def _devices(gpus: int, workers: int) -> list[str | None]:
    """Return the GPUs of each worker, as CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(gpus * workers)]
    return [",".join(names[i * gpus : (i + 1) * gpus]) for i in range(workers)]


def set_environment() -> None:
    """Set the variables of a process that runs cells, before torch is loaded."""
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


def _compute(profile: Profile, folder: Path, cell: Cell, devices: str | None) -> None:
    set_environment()
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
    logged_cell(profile, folder, cell)


def _log(folder: Path, cell: Cell) -> TextIO:
    path = cell.path(folder, "logs")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a", buffering=1)


def logged_cell(profile: Profile, folder: Path, cell: Cell) -> None:
    """Run a cell and write everything it prints to its own log."""
    with _log(folder, cell) as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {cell.id}")
        try:
            run_cell(profile, folder, cell)
        except BaseException:
            traceback.print_exc()
            raise
