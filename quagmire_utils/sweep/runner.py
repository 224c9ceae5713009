"""Running the cells of a sweep on worker processes, with a bar, a lock, and an error that says what to do."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from quagmire_utils.config import ParameterError, Profile
from quagmire_utils.sweep.cells import has_checkpoint, run_cell
from quagmire_utils.sweep.collect import collect, finished_cells, is_collected
from quagmire_utils.sweep.grid import Cell, check, cost, log_path, plan, progress_path


class SweepError(RuntimeError):
    """A cell failed; the message names it, its log, and the way on."""


def run_sweep(profile: Profile, folder: str | Path, *, workers: int | None = None, progress: bool = True) -> Path:
    """Run every cell of `profile` that `folder` does not hold yet, then `collect`. Returns the folder.

    A cell that fails stops the sweep after the cells in flight; the error names the cell, its log and how to go on.
    """
    folder = Path(folder)
    check(profile)
    cells = plan(profile)
    workers = profile.workers if workers is None else workers
    if workers < 1:
        raise ParameterError(f"workers must be at least 1, not {workers}")
    with only_sweep(folder):
        done = finished_cells(folder, cells)
        todo = [cell for cell in cells if cell.id not in done]
        started = time.time()
        with _SweepBar(profile, folder, cells, done, shown=progress) as bar:
            if todo:
                _run_cells(profile, folder, todo, workers, bar)
        if todo or not is_collected(profile, folder):  # else the manifest keeps saying where they were made
            collect(profile, folder, wall_seconds=time.time() - started)
    return folder


class _SweepBar:
    """A bar over the cost of all cells: it moves, and knows an ETA, while the first long cell is still running."""

    def __init__(self, profile: Profile, folder: Path, cells: Sequence[Cell], done: set[str], *, shown: bool) -> None:
        from tqdm import tqdm

        self.profile, self.folder = profile, folder
        self.finished, self.cells = len(done), len(cells)
        self.paid = sum(cost(profile, cell) for cell in cells if cell.id in done)
        self.bar = tqdm(
            total=sum(cost(profile, cell) for cell in cells),
            initial=self.paid,
            desc=f"sweep {profile.name}",
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}, about {remaining} left{postfix}",
            disable=not shown,
        )

    def __enter__(self) -> _SweepBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def more(self, cell: Cell) -> None:
        """A cell whose records exist must be computed again."""
        self.cells += 1
        self.bar.total += cost(self.profile, cell)

    def finish(self, cell: Cell) -> None:
        """A cell is done."""
        self.finished += 1
        self.paid += cost(self.profile, cell)
        progress_path(self.folder, cell).unlink(missing_ok=True)

    def show(self, running: Sequence[Cell]) -> None:
        """Redraw, with what the running cells have done so far."""
        partly = 0.0
        for cell in running:
            with contextlib.suppress(OSError, ValueError):
                partly += float(progress_path(self.folder, cell).read_text()) * cost(self.profile, cell)
        self.bar.n = min(self.paid + partly, self.bar.total)
        names = ", ".join(cell.id for cell in running)
        self.bar.set_postfix_str(f"{self.finished} of {self.cells} cells" + (f", now {names}" if names else ""))


@contextlib.contextmanager
def only_sweep(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; the system frees it however this process ends."""
    import fcntl

    path = folder / "scratch" / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ParameterError(f"results: {folder} cannot be written to ({error.strerror})") from error
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ParameterError(f"results: another sweep is running in {folder}; wait for it or stop it") from error
        yield


def _run_cells(profile: Profile, folder: Path, todo: list[Cell], workers: int, bar: _SweepBar) -> None:
    import multiprocessing

    by_id = {cell.id: cell for cell in plan(profile)}
    # a cell needs a checkpoint on disk: one that was measured long ago, on another machine, is trained again first
    waiting = list(todo)
    for cell in todo:
        parent = by_id.get(cell.needs or "")
        while parent is not None and parent not in waiting and not has_checkpoint(folder, parent):
            waiting.append(parent)
            bar.more(parent)
            parent = by_id.get(parent.needs or "")
    order = {cell_id: i for i, cell_id in enumerate(by_id)}
    waiting.sort(key=lambda cell: order[cell.id])
    running: dict[Future, Cell] = {}
    unfinished = {cell.id for cell in waiting}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),)) as pool:
        try:
            while waiting or running:
                ready = [cell for cell in waiting if cell.needs not in unfinished]
                for cell in ready[: workers - len(running)]:
                    waiting.remove(cell)
                    running[pool.submit(_logged_cell, profile, folder, cell)] = cell
                bar.show(list(running.values()))
                finished, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)  # the clock on the bar goes on
                for future in finished:
                    _raise_for(future, running, folder)
                    cell = running.pop(future)
                    unfinished.discard(cell.id)
                    bar.finish(cell)
            bar.show([])
        except BaseException:
            # the pool would wait for the cells in flight; they are resumed, so they need not end first
            processes = list((getattr(pool, "_processes", None) or {}).values())
            for process in processes:
                process.terminate()
            for process in processes:
                process.join(5)
                process.kill()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _raise_for(future: Future, running: Mapping[Future, Cell], folder: Path) -> None:
    error = future.exception()
    if error is None:
        return
    cell = running[future]
    cause = f"cell {cell.id} failed: {str(error).strip() or type(error).__name__}"
    if isinstance(error, BrokenProcessPool):  # the system does not say which of the processes died
        cause = f"a process died (out of memory?) while these cells ran: {', '.join(c.id for c in running.values())}"
    raise SweepError(
        f"{cause}. Log: {log_path(folder, cell)}. What is finished is kept; the same command again goes on from there."
    ) from error


def _start_worker(parent: int) -> None:
    """Set up a worker process; it dies with its parent, or a restarted sweep would meet it at the same cell."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


def _logged_cell(profile: Profile, folder: Path, cell: Cell) -> None:
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
