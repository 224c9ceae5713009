"""A sweep's cells on the nodes of a Ray cluster, one per CPU core, without a shared file system.

    ray start --head --disable-usage-stats --include-dashboard=false    # on one node
    ray start --address=THAT_NODE:6379 --disable-usage-stats            # on each other one
    quagmire sweep mini --ray auto                      # on any of them

The checkpoint that a cell starts from travels with its task through Ray's object store, and what the cell leaves
(records, checkpoint, graded answers, log) travels back and is put into the results folder of the process that asked,
so that records and resuming are the same as on one machine. Every node needs the same environment: a cell that would
run with other versions of what it computes with is refused. A node that dies loses its cells in flight, which are run
again on others.

Cells of micro families compute on CPU cores. Those of pretrained models take `compute.gpus` GPUs of one node each;
their checkpoints are too large to travel, so every node must see the results folder, and the folder in which the sweep
was started, under the same path.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import atomic_path
from quagmire_utils.core.settings import Profile
from quagmire_utils.engines import cluster
from quagmire_utils.sweep.cells import cell_threads
from quagmire_utils.sweep.grid import (
    Cell,
    cell_folder,
    digest_path,
    log_path,
    model_folder,
    plan,
    progress_path,
    samples_folder,
)
from quagmire_utils.sweep.pools import CellLostError, logged_cell, set_environment

if TYPE_CHECKING:
    from ray import ObjectRef

ATTEMPTS = 4  # how often a cell is started whose node or process keeps dying

NO_NODE_TIMEOUT = 60.0  # seconds without any CPU in the cluster after which the sweep gives up
PACKAGES = ("quagmire-utils", "numpy", "torch", "transformers", "tokenizers", "trl", "math-verify", "sympy")


class RayPool:
    """The CPU cores of a Ray cluster as a pool of a sweep; at most `workers` cells at a time where that is given."""

    def __init__(self, profile: Profile, folder: Path, address: str, workers: int | None = None) -> None:
        """Connect to the cluster at `address` ("auto": the one that this machine belongs to).

        Raises ParameterError where ray is not installed or no cluster answers.
        """
        self.profile, self.folder, self.workers = profile, folder, workers
        self._tasks: dict[ObjectRef, Cell] = {}
        self._threads: dict[str, int] = {}  # CPUs that a cell in flight has reserved
        self._starts: dict[str, int] = {}  # how often a cell was started
        self._room_seen = time.monotonic()
        self._owns_connection = cluster.connect(address)
        import ray

        self._task = ray.remote(max_retries=0)(_remote_cell)
        # beside this process, which reads it: it must not die with another node
        here = ray.get_runtime_context().get_node_id()
        beside = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        self._fractions = ray.remote(num_cpus=0, scheduling_strategy=beside)(_Fractions).remote()

    @property
    def running(self) -> list[Cell]:
        """The cells in flight."""
        return list(self._tasks.values())

    def has_room(self, cell: Cell) -> bool:
        """Whether the cluster, as it is now, has a core (two for a cell of two threads) that no cell has reserved.

        For cells on GPUs: whether one of its nodes has so many that no cell has reserved.
        """
        allowed = self.workers is None or len(self._tasks) < self.workers
        taken = (
            len(self._tasks) + 1 if self.profile.compute.gpus else sum(self._threads.values()) + self._cpus_for(cell)
        )
        return taken <= self._room() and allowed

    def _room(self) -> int:
        """How many cells on GPUs, or how many cores, the cluster has; CellLostError where it had none for a while."""
        import ray

        gpus = self.profile.compute.gpus
        room = _places(gpus) if gpus else int(ray.cluster_resources().get("CPU", 0))
        if room:
            self._room_seen = time.monotonic()
        elif time.monotonic() - self._room_seen > NO_NODE_TIMEOUT:
            what = f"{gpus} GPUs (compute.gpus)" if gpus else "a CPU"
            raise CellLostError(f"the Ray cluster has no node with {what}, or none any more")
        return room

    def _cpus_for(self, cell: Cell) -> int:
        """The cell's threads, if a node has so many cores; a node with fewer takes longer, for the same result."""
        if _shares_folder(self.profile):
            return 1
        return max(1, min(cell_threads(self.profile, cell), _cores_of_largest_node()))

    def submit(self, cell: Cell) -> None:
        """Start a cell; its starting checkpoint is read from the results folder."""
        start = {}
        shared = _shared_place(self.folder) if _shares_folder(self.profile) else None
        if cell.needs is not None and shared is None:
            start = _read_files(self.folder, [model_folder(self.folder, cell.needs)])
        self._starts[cell.id] = self._starts.get(cell.id, 0) + 1
        self._threads[cell.id] = self._cpus_for(cell)
        gpus = self.profile.compute.gpus
        task = self._task.options(num_cpus=self._threads[cell.id], num_gpus=gpus, name=cell.id).remote(
            pickle.dumps((self.profile, cell)), start, cluster.versions(PACKAGES), self._fractions, shared
        )
        self._tasks[task] = cell

    def wait(self, seconds: float) -> list[tuple[Cell, BaseException | None]]:
        """The cells that have ended, each with its error; waits at most so long for the first one.

        What they left is in the results folder then. A cell whose node died is started again, `ATTEMPTS` times in all.
        """
        import ray

        if not self._tasks:
            time.sleep(seconds)
            return []
        done, _ = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        if not done:
            done, _ = ray.wait(list(self._tasks), timeout=seconds)
        ended = []
        for task in done:
            cell = self._tasks.pop(task)
            del self._threads[cell.id]
            error: BaseException | None = None
            try:
                files, failure = ray.get(task)
            except ray.exceptions.RayTaskError as failed:  # of what surrounds the cell: no disk left, say
                error = RuntimeError(f"{type(failed.cause).__name__}: {failed.cause}")
            except ray.exceptions.RayError as lost:  # of a node, a process, or what they held
                reason = str(lost).strip().splitlines()[0]
                if self._starts[cell.id] < ATTEMPTS:
                    _add_to_log(self.folder, cell, f"--- lost, and started again: {reason}\n".encode())
                    self.submit(cell)
                    continue
                error = CellLostError(f"cell {cell.id} was lost {ATTEMPTS} times, in the end because: {reason}")
            else:
                _put_files(self.folder, cell, files)
                error = None if failure is None else RuntimeError(failure)
            ended.append((cell, error))
        for task, cell in list(self._tasks.items()):
            if self._threads[cell.id] > max(1, _cores_of_largest_node()):  # it would wait for a node that has died
                ray.cancel(task, force=True)
                del self._tasks[task]
                self.submit(cell)
        self._room()  # or cells without a node would be waited for without an end
        self._note_fractions()
        return ended

    def _note_fractions(self) -> None:
        """Write down how far the cells in flight are, where the sweep's bar looks for it."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            for cell_id, fraction in ray.get(self._fractions.read.remote(), timeout=1).items():
                cell = next((cell for cell in self.running if cell.id == cell_id), None)
                if cell is not None:
                    path = progress_path(self.folder, cell)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(fraction)

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            if self._tasks:
                for task in self._tasks:
                    ray.cancel(task)  # lets it clear away its folder
                _, left = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=5)
                for task in left:
                    ray.cancel(task, force=True)
            ray.kill(self._fractions)
        if self._owns_connection:
            ray.shutdown()


def _cores_of_largest_node() -> int:
    import ray

    return int(max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0))


def _shares_folder(profile: Profile) -> bool:
    """Whether cells work in the results folder itself: their checkpoints are too large to travel."""
    return profile.families[0].model is not None


def _shared_place(folder: Path) -> dict[str, Any]:
    """Where cells on other nodes work, and what they need of this process's surroundings."""
    passed = ("QUAGMIRE_", "HF_")  # mirrors, back-ends, caches of the hub; a token stays where it is
    environment = {k: v for k, v in os.environ.items() if k.startswith(passed) and "TOKEN" not in k}
    return {"results": str(folder.resolve()), "working": str(Path.cwd()), "environment": environment}


def _places(gpus: int) -> int:
    """How many cells of so many GPUs the cluster's nodes hold at a time."""
    import ray

    return sum(int(node["Resources"].get("GPU", 0)) // gpus for node in ray.nodes() if node["Alive"])


class _Fractions:
    """An actor that knows how far cells are."""

    def __init__(self) -> None:
        self.fractions: dict[str, str] = {}

    def note(self, cell_id: str, fraction: str) -> None:
        """A cell's process tells."""
        self.fractions[cell_id] = fraction

    def read(self) -> dict[str, str]:
        """The sweep asks."""
        return self.fractions


def _remote_cell(
    work: bytes, start: dict[str, bytes], versions: dict[str, str], fractions: Any, shared: dict[str, Any] | None
) -> tuple[dict[str, bytes], str | None]:
    """On a node: compute a cell in a folder of its own (or in `shared`); what it left, by path, and its error.

    work: the pickled profile and cell; start: the files of the checkpoint it starts from.
    """
    set_environment()
    node = socket.gethostname()
    other = cluster.different_versions(versions, cluster.versions(PACKAGES))
    if other:
        return {}, f"node {node} has {other}; give it the environment of the machine that runs the sweep"
    profile, cell = pickle.loads(work)
    if cell not in plan(profile):
        return {}, f"node {node} has another version of this package; give it that of the machine that runs the sweep"
    if shared is not None:
        try:
            for place in (shared["results"], shared["working"]):
                if not Path(place).is_dir():
                    raise ParameterError(f"node {node} has no folder {place}: every node must see it")
            os.chdir(shared["working"])  # paths in the profile
            os.environ.update(shared["environment"])
            logged_cell(profile, Path(shared["results"]), cell)
        except Exception as error:
            return {}, str(error).strip() or type(error).__name__
        return {}, None
    with tempfile.TemporaryDirectory(prefix="quagmire-") as name:
        folder = Path(name)
        for path, content in start.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        over = threading.Event()

        def tell() -> None:
            while not over.wait(1):
                with contextlib.suppress(OSError):
                    fractions.note.remote(cell.id, progress_path(folder, cell).read_text())

        threading.Thread(target=tell, daemon=True).start()
        failure = None
        try:
            logged_cell(profile, folder, cell)
        except Exception as error:
            failure = str(error).strip() or type(error).__name__
        finally:
            over.set()
        kept = [log_path(folder, cell)]
        if failure is None:
            kept += [place(folder, cell) for place in (cell_folder, samples_folder, digest_path)]
            kept += [model_folder(folder, cell.id), folder / "scratch" / "benchmarks"]
        return _read_files(folder, kept), failure


def _read_files(folder: Path, kept: list[Path]) -> dict[str, bytes]:
    """The files and folders `kept` of `folder`, by path inside it."""
    files = [file for path in kept for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files if file.is_file()}


def _put_files(folder: Path, cell: Cell, files: dict[str, bytes]) -> None:
    """Put what a cell left on a node into `folder`; its records come last, in one step, so that a kill costs the cell.

    What the cell had left there before is replaced.
    """
    _add_to_log(folder, cell, files.pop(log_path(folder, cell).relative_to(folder).as_posix(), b""))
    if not files:
        return
    arrived = folder / "scratch" / "arrived" / cell.id.replace("/", "__")
    shutil.rmtree(arrived, ignore_errors=True)
    for path, content in files.items():
        with atomic_path(arrived / path) as temporary:
            temporary.write_bytes(content)
    digest_path(folder, cell).unlink(missing_ok=True)  # without it, no part of what follows passes for whole
    for place in (model_folder(folder, cell.id), samples_folder(folder, cell), cell_folder(folder, cell)):
        if place.exists():
            shutil.rmtree(place)
    for place in (model_folder(folder, cell.id), samples_folder(folder, cell), digest_path(folder, cell)):
        _move(arrived, folder, place)
    for file in sorted((arrived / "scratch" / "benchmarks").glob("*")):
        _move(arrived, folder, folder / file.relative_to(arrived))
    _move(arrived, folder, cell_folder(folder, cell))
    shutil.rmtree(arrived, ignore_errors=True)


def _move(arrived: Path, folder: Path, place: Path) -> None:
    """Move a file or folder to its `place` in `folder` in one step, if it arrived."""
    source = arrived / place.relative_to(folder)
    if source.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, place)


def _add_to_log(folder: Path, cell: Cell, text: bytes) -> None:
    path = log_path(folder, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as handle:
        handle.write(text)
