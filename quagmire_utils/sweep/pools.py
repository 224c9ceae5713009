"""Where a sweep's cells run: worker processes of this machine. `ray_pool` does the same on the nodes of a Ray cluster.

A pool is given cells whose starting checkpoint is in the results folder; when a cell has finished, its records and its
checkpoint are there too, wherever it ran.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Protocol

from quagmire_utils.core.settings import Profile
from quagmire_utils.sweep.cells import run_cell
from quagmire_utils.sweep.grid import Cell, log_path

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


class CellLostError(RuntimeError):
    """A cell's process or machine died; the message says what happened."""


class Pool(Protocol):
    """Runs cells; a context manager that, left by an exception, ends the cells in flight."""

    @property
    def running(self) -> list[Cell]:
        """The cells in flight."""

    def has_room(self, cell: Cell) -> bool:
        """Whether `cell` would start at once."""

    def submit(self, cell: Cell) -> None:
        """Start a cell."""

    def wait(self, seconds: float) -> list[tuple[Cell, BaseException | None]]:
        """The cells that have ended, each with its error; waits at most so long for the first one."""

    def __enter__(self) -> Pool: ...

    def __exit__(self, *error: object) -> None: ...


class LocalPool:
    """Worker processes of this machine, one cell at a time each."""

    def __init__(self, profile: Profile, folder: Path, workers: int) -> None:
        self.profile, self.folder, self.workers = profile, folder, workers
        self._futures: dict[Future, Cell] = {}
        context = multiprocessing.get_context("spawn")
        slots = None
        if profile.compute.gpus and workers > 1:
            slots = context.Queue()
            for devices in _devices(profile.compute.gpus, workers):
                slots.put(devices)
        self._pool = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(), slots)
        )

    @property
    def running(self) -> list[Cell]:
        """The cells in flight."""
        return list(self._futures.values())

    def has_room(self, cell: Cell) -> bool:
        """Whether a worker is free."""
        return len(self._futures) < self.workers

    def submit(self, cell: Cell) -> None:
        """Start a cell.

        The process for it is born with interrupts blocked: Ctrl-C reaches all processes of a terminal, and ending the
        workers, without a traceback of each, is this one's task.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._futures[self._pool.submit(logged_cell, self.profile, self.folder, cell)] = cell
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def wait(self, seconds: float) -> list[tuple[Cell, BaseException | None]]:
        """The cells that have ended, each with its error; waits at most so long for the first one."""
        running = ", ".join(cell.id for cell in self.running)
        finished, _ = wait_for(self._futures, timeout=seconds, return_when=FIRST_COMPLETED)
        ended = []
        for future in finished:
            error = future.exception()
            if isinstance(error, BrokenProcessPool):  # the system does not say which of the processes died
                error = CellLostError(f"a process died (out of memory?) while these cells ran: {running}")
            ended.append((self._futures.pop(future), error))
        return ended

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def stop(self) -> None:
        """End the cells in flight at once: they can be resumed."""
        processes = list((getattr(self._pool, "_processes", None) or {}).values())
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(5)
            process.kill()
        self._futures.clear()


def _devices(gpus: int, workers: int) -> list[str]:
    """For each worker the GPUs that it may use, as CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(gpus * workers)]
    return [",".join(names[i * gpus : (i + 1) * gpus]) for i in range(workers)]


def _start_worker(parent: int, slots: multiprocessing.Queue | None) -> None:
    """Set up a worker process; it dies with its parent, or a restarted sweep would meet it at the same cell."""
    if slots is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = slots.get()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    set_environment()


def set_environment() -> None:
    """What a process that runs cells needs in its environment, before torch is loaded."""
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


def logged_cell(profile: Profile, folder: Path, cell: Cell) -> None:
    """Run a cell with everything it prints in its own log."""
    path = log_path(folder, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", buffering=1) as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {cell.id}")
        try:
            run_cell(profile, folder, cell)
        except BaseException:
            traceback.print_exc()
            raise
