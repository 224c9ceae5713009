"""Running a sweep: cells in order of importance, a progress bar, a lock, and errors that say how to resume.

    quagmire sweep paper --submit slurm --output paper.sbatch && bash paper.sbatch

On a Slurm cluster an element of a job array computes one cell (`run_one`). All nodes see the results folder, this
Python and the folder in which the script was written.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.settings import Profile
from quagmire_utils.sweep.cells import can_start, has_checkpoint
from quagmire_utils.sweep.collect import check_folder, collect, finished_cells, is_collected
from quagmire_utils.sweep.datasets import check_files
from quagmire_utils.sweep.estimate import estimate, missing_here
from quagmire_utils.sweep.grid import Cell, check, first_runs_first, plan
from quagmire_utils.sweep.pools import CellLostError, LocalPool, RayPool, logged_cell, set_environment

TEMPLATE = Path(__file__).with_name("slurm.sbatch.jinja")
SLACK = 2.0  # on the computed hours, for the time limit of a job
MOST_HOURS = 120  # App. B: an RL run takes up to 5 days; what takes longer queues again


class SweepError(RuntimeError):
    """A cell failed; the message names it, its log (None if a cluster was lost), and how to resume."""

    def __init__(self, cause: str, log: Path | None = None) -> None:
        where = "" if log is None else f" Log: {log}."
        super().__init__(f"{cause}.{where} Finished cells are kept; the same command resumes.")
        self.log = log


def run_sweep(profile: Profile, folder: str | Path, *, workers: int | None = None, ray: str | None = None) -> Path:
    """Run every cell of `profile` that `folder` does not hold yet, then `collect`. Return the folder.

    workers: cells at a time; None: the profile's number, or all that a Ray cluster has room for. ray: its address
    ("auto": the one that this machine belongs to). Raises ParameterError before anything runs, SweepError if a cell
    fails.
    """
    folder = Path(folder)
    if workers is not None and workers < 1:
        raise ParameterError("workers", workers, "at least 1")
    _check_all(profile, folder, here=ray is None)
    cells = plan(profile)
    with only_sweep(folder):
        done = finished_cells(folder, cells)
        todo = [cell for cell in cells if cell.id not in done]
        started = time.time()
        if todo:
            wanted = _with_lost_starts(folder, todo)
            todo = first_runs_first([cell for cell in cells if cell.id in wanted])
            shown = {"total": len(done) + len(todo), "initial": len(done), "unit": "cell"}
            with tqdm(desc=f"sweep {profile.name}", **shown) as bar, _open_pool(profile, folder, workers, ray) as pool:
                run_cells(folder, todo, pool, bar)
        if todo or not is_collected(profile, folder, cells):  # else the manifest keeps its hardware and wall time
            collect(profile, folder, cells, wall_seconds=time.time() - started)
    return folder


def run_one(profile: Profile, folder: str | Path, cell_id: str) -> None:
    """Compute one cell in this process, unless `folder` holds its records: one element of a job array.

    Raises ParameterError for an unknown cell, one that is computed now, or whose starting checkpoint is missing.
    """
    folder = Path(folder)
    cell = next((cell for cell in plan(profile) if cell.id == cell_id), None)
    if cell is None:
        raise ParameterError("cell", cell_id, f"one of profile {profile.name}; `--plan` lists them")
    _check_all(profile.replace(workers=1), folder)
    set_environment()
    with only_sweep(folder, f"lock-{cell_id.replace('/', '__')}", f"another process computes cell {cell_id}"):
        if finished_cells(folder, [cell]):
            return
        if cell.needs is not None and not can_start(folder, cell.needs):
            raise ParameterError("cell", cell_id, f"run after {cell.needs.id}, whose checkpoint is not in {folder}")
        logged_cell(profile, folder, cell)


def _check_all(profile: Profile, folder: Path, *, here: bool = True) -> None:
    """Refuse a wrong profile or folder, what this machine lacks, and dataset files that would fail a later cell."""
    check(profile)
    check_folder(profile, folder)
    for lack in missing_here(profile) if here else ():
        raise ParameterError("profile", profile.name, reason=f"{lack}; `--dry-run` lists what else is missing")
    for lack in check_files(profile, folder):
        raise ParameterError("datasets", reason=lack)


def _with_lost_starts(folder: Path, todo: Sequence[Cell]) -> set[str]:
    """Return the ids of `todo`, and of the finished cells that they start from, whose checkpoints are not here."""
    ids = {cell.id for cell in todo}
    starts = {cell.needs for cell in todo if cell.needs is not None and cell.needs.id not in ids}
    lost = [start for start in starts if not can_start(folder, start)]
    return _with_lost_starts(folder, [*todo, *lost]) if lost else ids


def _open_pool(profile: Profile, folder: Path, workers: int | None, ray: str | None) -> LocalPool | RayPool:
    return RayPool(profile, folder, ray, workers) if ray else LocalPool(profile, folder, workers or profile.workers)


def run_cells(folder: Path, todo: Sequence[Cell], pool: LocalPool | RayPool, bar: tqdm) -> None:
    """Run `todo` in order, each cell as soon as the checkpoint that it starts from is there. Raises SweepError."""
    waiting = list(todo)
    unfinished = {cell.id for cell in todo}

    def ready(cell: Cell) -> bool:
        if cell.needs is None or cell.needs.id not in unfinished:
            return True
        return cell.needs in pool.running and has_checkpoint(folder, cell.needs)  # trained, and being measured

    while waiting or pool.running:
        try:
            while pool.has_room() and (cell := next(filter(ready, waiting), None)):
                waiting.remove(cell)
                pool.submit(cell)
            bar.set_postfix_str(", ".join(cell.id for cell in pool.running))
            ended = pool.wait(1)
        except CellLostError as error:
            raise SweepError(str(error)) from error
        for cell, error in ended:
            if error is not None:
                said = str(error).strip() or type(error).__name__
                cause = said if isinstance(error, CellLostError) else f"cell {cell.id} failed: {said}"
                raise SweepError(cause, cell.path(folder, "logs")) from error
            unfinished.discard(cell.id)
            bar.update()


def slurm_script(profile: Profile, name: str, folder: Path, done: set[str]) -> str:
    """Fill in the template for the cells not `done`; `name`: the profile as typed. Raises ParameterError."""
    import jinja2

    check(profile, here=False)
    check_folder(profile, folder)
    name = str(Path(name).resolve()) if name.endswith((".yaml", ".yml")) else name
    cells = plan(profile)
    todo = first_runs_first([cell for cell in cells if cell.id not in done])
    if not todo:
        raise ParameterError("submit", "slurm", reason="every cell is finished; there is nothing to submit")
    todo.sort(key=lambda cell: ("base", "sft", "rl").index(cell.kind))
    gpus = profile.compute.gpus
    options = {
        "nodes": "1",
        "ntasks": "1",
        "requeue": "",
        "open-mode": "append",
        "signal": "B:USR1@120",  # to the script, two minutes before its time limit
        "chdir": f'"{Path.cwd()}"',  # paths in the profile are relative to it
        **({"gpus-per-node": str(gpus), "exclusive": ""} if gpus > 1 else {"gpus": "1"} if gpus else {}),
        **profile.compute.slurm,
    }
    hours = estimate(profile, cells, folder)["hours"] / max(1, gpus)
    stages = []
    for kind in dict.fromkeys(cell.kind for cell in todo):
        mine = [i for i, cell in enumerate(todo) if cell.kind == kind]
        limit = min(MOST_HOURS, max(1, math.ceil(SLACK * max(hours[todo[i].id] for i in mine))))
        time = "" if "time" in profile.compute.slurm else f" --time={limit // 24}-{limit % 24:02}:00:00"
        stages.append({"kind": kind, "array": f"{mine[0]}-{mine[-1]}", "time": time})
    command = [sys.executable, "-m", "quagmire_utils", "sweep", name, "--results", str(folder.resolve())]
    return jinja2.Template(TEMPLATE.read_text(), keep_trailing_newline=True).render(
        name=profile.name,
        options=options,
        cells=[cell.id for cell in todo],
        stages=stages,
        command=shlex.join(command),
        collect=shlex.quote(shlex.join([*command, "--collect"])),
        logs=shlex.quote(str(folder.resolve() / "scratch" / "slurm")),
        folder=shlex.quote(str(Path.cwd())),
    )


@contextlib.contextmanager
def only_sweep(folder: Path, name: str = "lock", taken: str = "another sweep is running") -> Iterator[None]:
    """Hold the folder's lock of this name; the system frees it however this process ends. Raises ParameterError."""
    try:
        (folder / "scratch").mkdir(parents=True, exist_ok=True)
        held = FileLock(folder / "scratch" / name).acquire(timeout=0)
    except Timeout as error:
        raise ParameterError("results", str(folder), reason=f"{taken} in {folder}; wait for it or stop it") from error
    except OSError as error:
        reason = f"{folder} cannot be written to ({error.strerror})"
        raise ParameterError("results", str(folder), reason=reason) from error
    with held:
        yield
