"""Where cells are computed: worker processes of this machine, or the nodes of a Ray cluster.

    quagmire sweep mini --ray auto      # on a node of a cluster (`engines.cluster` says how to start one)

A pool is given cells whose starting checkpoint is in the results folder. When a cell has ended, its records and its
checkpoint are there too, wherever it ran. A cell whose process or node dies is started again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Self, TextIO

from pebble import ProcessExpired, ProcessPool

from quagmire_utils.core.processes import end_with_parent
from quagmire_utils.core.settings import Profile
from quagmire_utils.engines import cluster
from quagmire_utils.engines.cluster import ATTEMPTS, NO_NODE_TIMEOUT
from quagmire_utils.sweep.cells import run_cell
from quagmire_utils.sweep.grid import Cell, plan

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
PASSED = ("QUAGMIRE_", "HF_")  # variables that go to a node: data folder, back-ends, caches of the hub; no token
Ended = list[tuple[Cell, BaseException | None]]  # cells that have ended, each with its error


class CellLostError(RuntimeError):
    """A cell's process or machine died again and again; the message says what happened."""


class Pool:
    """Cells in flight; a context manager that ends them on an exception."""

    def __init__(self, profile: Profile, folder: Path, workers: int | None) -> None:
        self.profile, self.folder, self.workers = profile, folder, workers
        self._cells: dict[Any, Cell] = {}  # by what stands for their results

    @property
    def running(self) -> list[Cell]:
        """The cells in flight."""
        return list(self._cells.values())

    def __enter__(self) -> Self:
        return self


class LocalPool(Pool):
    """Worker processes, one cell at a time each."""

    def __init__(self, profile: Profile, folder: Path, workers: int) -> None:
        super().__init__(profile, folder, workers)
        gpus = profile.compute.gpus
        self._starts: Counter[str] = Counter()
        self._free: list[str | None] = [None] * workers
        if gpus and workers > 1:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            names = visible.split(",") if visible else [str(i) for i in range(gpus * workers)]
            self._free = [",".join(names[i * gpus : (i + 1) * gpus]) for i in range(workers)]
        self._taken: dict[str, str | None] = {}  # by cell: CUDA_VISIBLE_DEVICES
        resource_tracker.ensure_running()  # its start unblocks interrupts, and a pool's first worker would be born so
        self._pool = ProcessPool(
            workers,
            max_tasks=1 if gpus else 0,  # a process that has used its GPUs cannot change to others
            initializer=end_with_parent,
            initargs=(os.getpid(),),
            context=multiprocessing.get_context("spawn"),
        )

    def has_room(self) -> bool:
        """Return whether a worker is free."""
        return bool(self._free)

    def submit(self, cell: Cell) -> None:
        """Start a cell."""
        self._starts[cell.id] += 1
        self._taken[cell.id] = self._free.pop(0)
        with _interrupts_wait():
            future = self._pool.schedule(_compute, args=(self.profile, self.folder, cell, self._taken[cell.id]))
        self._cells[future] = cell

    def wait(self, seconds: float) -> Ended:
        """Wait up to `seconds` for a cell to end; return those that have ended."""
        ended: Ended = []
        for future in wait(self._cells, timeout=seconds, return_when=FIRST_COMPLETED).done:
            cell, error = self._cells.pop(future), future.exception()
            self._free.append(self._taken.pop(cell.id))
            if isinstance(error, ProcessExpired):
                if self._starts[cell.id] < ATTEMPTS:
                    with _log(self.folder, cell) as log:
                        log.write("--- the process died; started again\n")
                    self.submit(cell)
                    continue
                error = CellLostError(f"cell {cell.id} died {ATTEMPTS} times; is there too little memory?")
            ended.append((cell, error))
        return ended

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


def _compute(profile: Profile, folder: Path, cell: Cell, devices: str | None) -> None:
    set_environment()
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
    logged_cell(profile, folder, cell)


def set_environment() -> None:
    """Set the variables of a process that runs cells, before torch is loaded."""
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


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


class RayPool(Pool):
    """The nodes of a Ray cluster: a cell per CPU core, or on `compute.gpus` GPUs of one node; at most `workers` cells.

    Every node must see the results folder, and the folder in which the sweep was started, under the same path. A node
    with other versions of the packages refuses its cells. Ray runs the cells of a node that dies again on others.
    """

    def __init__(self, profile: Profile, folder: Path, address: str, workers: int | None = None) -> None:
        """Connect to the cluster at `address`. Raises ParameterError if ray is not installed or no cluster answers."""
        super().__init__(profile, folder, workers)
        self._room_seen = time.monotonic()
        self._owns_connection = cluster.connect(address)
        import ray

        options = {"num_cpus": 1, "num_gpus": profile.compute.gpus, "max_retries": ATTEMPTS - 1}
        self._task = ray.remote(**options)(_remote_cell)

    def has_room(self) -> bool:
        """Return whether a core, or the GPUs of one node, are free; CellLostError if there was no node for a minute."""
        gpus = self.profile.compute.gpus
        room = cluster.room_for(gpus)
        if room:
            self._room_seen = time.monotonic()
        elif time.monotonic() - self._room_seen > NO_NODE_TIMEOUT:
            what = f"{gpus} GPUs (compute.gpus)" if gpus else "a CPU"
            raise CellLostError(f"the Ray cluster has no node with {what} (any more)")
        return len(self._cells) < min(room, room if self.workers is None else self.workers)

    def submit(self, cell: Cell) -> None:
        """Start a cell."""
        environment = {k: v for k, v in os.environ.items() if k.startswith(PASSED) and "TOKEN" not in k}
        here = self.folder.resolve(), Path.cwd(), environment
        task = self._task.options(name=cell.id).remote(self.profile, cell, cluster.versions(), *here)
        self._cells[task] = cell

    def wait(self, seconds: float) -> Ended:
        """Wait up to `seconds` for a cell to end; return those that have ended."""
        import ray

        if not self._cells:
            time.sleep(seconds)
            return []
        ended: Ended = []
        for task in ray.wait(list(self._cells), timeout=seconds)[0]:
            cell = self._cells.pop(task)
            try:
                failure = ray.get(task)
                error = None if failure is None else RuntimeError(failure)
            except ray.exceptions.RayError as lost:  # a node, or a process
                reason = str(lost).strip().splitlines()[0]
                error = CellLostError(f"cell {cell.id} was lost {ATTEMPTS} times; last reason: {reason}")
            ended.append((cell, error))
        self.has_room()  # raises if the cluster has lost all its nodes
        return ended

    def __exit__(self, *_: object) -> None:
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            for task in self._cells:
                ray.cancel(task, force=True)
        if self._owns_connection:
            ray.shutdown()


def _remote_cell(
    profile: Profile, cell: Cell, versions: dict[str, str], results: Path, working: Path, environment: dict[str, str]
) -> str | None:
    """Compute a cell on a node; return what went wrong. Paths in the profile are relative to the folder `working`."""
    set_environment()
    node = socket.gethostname()
    if other := cluster.refusal(versions):
        return other
    if cell not in plan(profile):
        return f"node {node} has another version of this package; give it that of the machine that runs the sweep"
    for place in (results, working):
        if not place.is_dir():
            return f"node {node} does not see the folder {place}; Ray sweeps need it on every node"
    os.chdir(working)
    os.environ.update(environment)
    try:
        logged_cell(profile, results, cell)
    except Exception as error:
        return str(error).strip() or type(error).__name__
    return None
