"""Running the cells of a sweep in the order of their worth, with a bar, a lock, and an error that says what to do."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.settings import Profile
from quagmire_utils.sweep.cells import has_checkpoint, restore_base
from quagmire_utils.sweep.collect import collect, finished_cells, is_collected
from quagmire_utils.sweep.grid import Cell, check, cost, log_path, plan, progress_path
from quagmire_utils.sweep.pools import CellLostError, LocalPool, Pool, logged_cell, set_environment

FIRST_RUNS = 2  # RL runs that every candidate gets before any candidate gets more
_GO_ON = "What is finished is kept; the same command again goes on from there."
COLLECT_EVERY = 300.0  # seconds; collecting 400 cells takes about one


class SweepError(RuntimeError):
    """A cell failed; the message names it, its log, and the way on."""


def run_sweep(
    profile: Profile,
    folder: str | Path,
    *,
    workers: int | None = None,
    ray: str | None = None,
    progress: bool = True,
    collect_every: float = COLLECT_EVERY,
) -> Path:
    """Run every cell of `profile` that `folder` does not hold yet, then `collect`. Returns the folder.

    The first two RL runs of every candidate come before the further runs of any. Every `collect_every` seconds what is
    finished is collected, so that the records of a long sweep can be read while it runs; the manifest says how many
    cells they hold. A cell that fails stops the sweep; the error names the cell, its log and how to go on.

    workers: processes, one core each; None: the profile's number. ray: instead of this machine's processes, the cores
    of the Ray cluster at this address ("auto": the one that this machine belongs to), at most `workers` where given.
    """
    folder = Path(folder)
    check(profile)
    if ray is None:
        _check_here(profile)
    _check_files(profile, folder)
    cells = plan(profile)
    if workers is not None and workers < 1:
        raise ParameterError(f"workers must be at least 1, not {workers}")
    with only_sweep(folder):
        done = finished_cells(folder, cells)
        todo = [cell for cell in cells if cell.id not in done]
        started = time.time()
        with _SweepBar(profile, folder, cells, done, shown=progress) as bar:
            if todo:
                collecting = _Collecting(profile, folder, cells, done, started, collect_every)
                with _open_pool(profile, folder, workers, ray) as pool:
                    _run_cells(profile, folder, todo, pool, bar, collecting)
        if todo or not is_collected(profile, folder):  # else the manifest keeps saying where they were made
            collect(profile, folder, wall_seconds=time.time() - started)
    return folder


def run_one(profile: Profile, folder: str | Path, cell_id: str, digest: str | None = None) -> None:
    """Compute one cell in this process, unless `folder` holds its records: what an element of a job array does.

    `digest`: that of the cell when it was submitted. Raises ParameterError for a cell that the profile does not have,
    or no longer with these parameters, for one that another process computes now, and where the checkpoint that it
    starts from is not there.
    """
    folder = Path(folder)
    cells = {cell.id: cell for cell in plan(profile)}
    if cell_id not in cells:
        raise ParameterError(f"cell {cell_id} is not one of {profile.name}; `--plan` lists them")
    cell = cells[cell_id]
    if digest is not None and digest != cell.digest:
        raise ParameterError(f"cell {cell_id}: its parameters have changed since it was submitted; submit it again")
    check(profile)
    _check_here(profile.replace(workers=1))
    _check_files(profile, folder)
    set_environment()
    lock = f"lock-{cell_id.replace('/', '__')}"
    with only_sweep(folder, lock, f"cell {cell_id} is being computed by another process"):
        if finished_cells(folder, [cell]):
            return
        parent = cells.get(cell.needs or "")
        if parent is not None and not has_checkpoint(folder, parent) and not restore_base(folder, parent):
            raise ParameterError(f"cell {cell_id} starts from {parent.id}, whose checkpoint is not in {folder}; run it")
        logged_cell(profile, folder, cell)


def _check_here(profile: Profile) -> None:
    """Refuse what this machine has neither the GPUs nor the programs for."""
    from quagmire_utils.sweep.missing import missing_devices, missing_programs

    for lack in [*missing_devices(profile), *missing_programs(profile)]:
        raise ParameterError(f"{lack}; `--dry-run` says what else is missing")


def _check_files(profile: Profile, folder: Path) -> None:
    """Refuse local files of datasets that a later cell, hours from now, would find lost or malformed."""
    from quagmire_utils.sweep.data import unusable_files

    for lack in unusable_files(profile, folder):
        raise ParameterError(lack)


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


class _Collecting:
    """Collects the records of a running sweep now and then."""

    def __init__(
        self, profile: Profile, folder: Path, cells: Sequence[Cell], done: set[str], started: float, every: float
    ) -> None:
        self.profile, self.folder, self.started, self.every = profile, folder, started, every
        # until a cell of each kind has finished, some table would have no rows
        self.missing = {cell.kind for cell in cells} - {cell.kind for cell in cells if cell.id in done}
        self.last, self.news = time.monotonic(), False

    def finish(self, cell: Cell) -> None:
        """A cell is done."""
        self.missing.discard(cell.kind)
        self.news = True

    def collect(self) -> None:
        """Collect if it is time to and there is something new."""
        if self.news and not self.missing and time.monotonic() - self.last >= self.every:
            collect(self.profile, self.folder, wall_seconds=time.time() - self.started)
            self.last, self.news = time.monotonic(), False


@contextlib.contextmanager
def only_sweep(folder: Path, name: str = "lock", taken: str = "another sweep is running") -> Iterator[None]:
    """Holds the folder's lock of this name; the system frees it however this process ends."""
    import fcntl

    path = folder / "scratch" / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ParameterError(f"results: {folder} cannot be written to ({error.strerror})") from error
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ParameterError(f"results: {taken} in {folder}; wait for it or stop it") from error
        yield


def _open_pool(profile: Profile, folder: Path, workers: int | None, ray: str | None) -> Pool:
    if ray is None:
        return LocalPool(profile, folder, profile.workers if workers is None else workers)
    from quagmire_utils.sweep.ray_pool import RayPool

    return RayPool(profile, folder, ray, workers)


def _run_cells(
    profile: Profile, folder: Path, todo: list[Cell], pool: Pool, bar: _SweepBar, collecting: _Collecting
) -> None:
    by_id = {cell.id: cell for cell in plan(profile)}
    # a cell needs a checkpoint on disk: one that was measured long ago, on another machine, is trained again first
    waiting = list(todo)
    for cell in todo:
        parent = by_id.get(cell.needs or "")
        while parent is not None and parent not in waiting and not has_checkpoint(folder, parent):
            if restore_base(folder, parent):
                break
            waiting.append(parent)
            bar.more(parent)
            parent = by_id.get(parent.needs or "")
    order = {cell_id: i for i, cell_id in enumerate(by_id)}
    waiting.sort(key=lambda cell: (cell.run is not None and cell.run >= FIRST_RUNS, order[cell.id]))
    unfinished = {cell.id for cell in waiting}
    while waiting or pool.running:
        try:
            for cell in [cell for cell in waiting if cell.needs not in unfinished]:
                if not pool.has_room(cell):
                    break
                waiting.remove(cell)
                pool.submit(cell)
            bar.show(pool.running)
            ended = pool.wait(1)  # no longer: the clock on the bar goes on
        except CellLostError as error:
            raise SweepError(f"{error}. {_GO_ON}") from error
        for cell, error in ended:
            if error is not None:
                cause = f"cell {cell.id} failed: {str(error).strip() or type(error).__name__}"
                cause = str(error) if isinstance(error, CellLostError) else cause
                raise SweepError(f"{cause}. Log: {log_path(folder, cell)}. {_GO_ON}") from error
            unfinished.discard(cell.id)
            bar.finish(cell)
            collecting.finish(cell)
        collecting.collect()
    bar.show([])
