"""A sweep's cells on the nodes of a Ray cluster, one per CPU core, without a shared file system.

    ray start --head --disable-usage-stats --include-dashboard=false    # on one node
    ray start --address=THAT_NODE:6379 --disable-usage-stats            # on each other one
    quagmire sweep mini --ray auto                                      # on any of them

The checkpoint that a cell starts from travels with its task through Ray's object store, and what the cell leaves
travels back into the results folder of the sweep, as if it had run there. A node with other versions of the packages
refuses its cells. Ray runs the cells of a node that dies again on others.

Cells of pretrained models take `compute.gpus` GPUs of one node each. Their checkpoints are too large to travel, so
every node must see the results folder, and the folder in which the sweep was started, under the same path.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import atomic_path
from quagmire_utils.core.settings import Profile
from quagmire_utils.engines import cluster
from quagmire_utils.sweep.grid import Cell, plan
from quagmire_utils.sweep.pools import ATTEMPTS, CellLostError, Ended, add_to_log, logged_cell, set_environment

if TYPE_CHECKING:
    from ray import ObjectRef

NO_NODE_TIMEOUT = 60.0  # seconds without any CPU in the cluster after which the sweep gives up
PACKAGES = ("quagmire-utils", "numpy", "torch", "transformers", "tokenizers", "trl", "math-verify", "sympy")
MOVED = ("models", "samples", "digests", "cells")  # what a cell leaves; its records last
Files = dict[str, bytes]  # contents by path inside the results folder
Surroundings = tuple[str, str, dict[str, str]]  # results folder, working directory, variables of the environment


class RayPool:
    """The cores (or GPUs) of a Ray cluster as a pool of a sweep; at most `workers` cells at a time where given."""

    def __init__(self, profile: Profile, folder: Path, address: str, workers: int | None = None) -> None:
        """Connect to the cluster at `address`. Raises ParameterError if ray is not installed or no cluster answers."""
        self.profile, self.folder, self.workers = profile, folder, workers
        self.shared = profile.families[0].model is not None  # cells work in the results folder itself
        self._tasks: dict[ObjectRef, Cell] = {}
        self._room_seen = time.monotonic()
        self._owns_connection = cluster.connect(address)
        import ray

        options = {"num_cpus": 1, "num_gpus": profile.compute.gpus, "max_retries": ATTEMPTS - 1}
        self._task = ray.remote(**options)(_remote_cell)

    @property
    def running(self) -> list[Cell]:
        """The cells in flight."""
        return list(self._tasks.values())

    def has_room(self) -> bool:
        """Return whether the cluster, as it is now, has a core or enough GPUs of one node that no cell has reserved.

        Raises CellLostError if it has had none at all for a minute.
        """
        import ray

        gpus = self.profile.compute.gpus
        room = int(ray.cluster_resources().get("CPU", 0))
        if gpus:
            nodes = [node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]]
            room = sum(int(count // gpus) for count in nodes)
        if room:
            self._room_seen = time.monotonic()
        elif time.monotonic() - self._room_seen > NO_NODE_TIMEOUT:
            what = f"{gpus} GPUs (compute.gpus)" if gpus else "a CPU"
            raise CellLostError(f"the Ray cluster has no node with {what} (any more)")
        return len(self._tasks) < min(room, room if self.workers is None else self.workers)

    def submit(self, cell: Cell) -> None:
        """Start a cell; its starting checkpoint is read from the results folder."""
        start, surroundings = {}, None
        if self.shared:
            passed = ("QUAGMIRE_", "HF_")  # data folder, back-ends, caches of the hub; no token
            environment = {k: v for k, v in os.environ.items() if k.startswith(passed) and "TOKEN" not in k}
            surroundings = str(self.folder.resolve()), str(Path.cwd()), environment
        elif cell.needs is not None:
            start = _read_files(self.folder, [cell.needs.path(self.folder, "models")])
        versions = cluster.versions(PACKAGES)
        task = self._task.options(name=cell.id).remote(self.profile, cell, start, versions, surroundings)
        self._tasks[task] = cell

    def wait(self, seconds: float) -> Ended:
        """Wait up to `seconds`, copy the files of ended cells to the results folder, and return these cells."""
        import ray

        if not self._tasks:
            time.sleep(seconds)
            return []
        done, _ = ray.wait(list(self._tasks), timeout=seconds)
        ended: Ended = []
        for task in done:
            cell = self._tasks.pop(task)
            error: BaseException | None = None
            try:
                files, failure = ray.get(task)
                _put_files(self.folder, cell, files)
                error = None if failure is None else RuntimeError(failure)
            except ray.exceptions.RayTaskError as failed:  # outside of the cell: no disk space left, say
                error = RuntimeError(f"{type(failed.cause).__name__}: {failed.cause}")
            except ray.exceptions.RayError as lost:  # a node, a process, or what they held
                reason = str(lost).strip().splitlines()[0]
                error = CellLostError(f"cell {cell.id} was lost {ATTEMPTS} times; last reason: {reason}")
            ended.append((cell, error))
        self.has_room()  # raises if the cluster has lost all its nodes
        return ended

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            for task in self._tasks:
                ray.cancel(task)  # lets it remove its folder
            if self._tasks:
                _, left = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=5)
                for task in left:
                    ray.cancel(task, force=True)
        if self._owns_connection:
            ray.shutdown()


def _remote_cell(
    profile: Profile, cell: Cell, start: Files, versions: dict[str, str], surroundings: Surroundings | None
) -> tuple[Files, str | None]:
    """Compute a cell on a node; return its files, and its error.

    start: the files of the checkpoint that it starts from. surroundings: of a cell that works in the shared folder.
    """
    set_environment()
    node = socket.gethostname()
    if other := cluster.different_versions(versions, cluster.versions(PACKAGES)):
        return {}, f"node {node} has {other}; give it the environment of the machine that runs the sweep"
    if cell not in plan(profile):
        return {}, f"node {node} has another version of this package; give it that of the machine that runs the sweep"
    with tempfile.TemporaryDirectory(prefix="quagmire-") as own:
        folder, failure = Path(own), None
        try:
            if surroundings is not None:
                results, working, environment = surroundings
                for place in (results, working):
                    if not Path(place).is_dir():
                        raise ParameterError("results", place, reason=f"node {node} does not see the folder {place}")
                os.chdir(working)  # paths in the profile
                os.environ.update(environment)
                folder = Path(results)
            for path, content in start.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
            logged_cell(profile, folder, cell)
        except Exception as error:
            failure = str(error).strip() or type(error).__name__
        if surroundings is not None:
            return {}, failure
        left = [cell.path(folder, "logs")]
        if failure is None:
            left += [cell.path(folder, what) for what in MOVED] + [folder / "scratch" / "benchmarks"]
        return _read_files(folder, left), failure


def _read_files(folder: Path, kept: list[Path]) -> Files:
    """Read the files and folders `kept` of `folder`."""
    files = [file for path in kept for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files if file.is_file()}


def _put_files(folder: Path, cell: Cell, files: Files) -> None:
    """Replace what a cell left in `folder` before by what it left on a node.

    The records come last, in one step, so that being killed here costs the cell only.
    """
    log = cell.path(folder, "logs").relative_to(folder).as_posix()
    if log in files:
        add_to_log(folder, cell, files.pop(log))
    if not files:
        return
    arrived = folder / "scratch" / "arrived" / cell.id.replace("/", "__")
    shutil.rmtree(arrived, ignore_errors=True)
    for path, content in files.items():
        with atomic_path(arrived / path) as temporary:
            temporary.write_bytes(content)
    cell.path(folder, "digests").unlink(missing_ok=True)  # without it, no part of what follows counts as complete
    left = [cell.path(arrived, what) for what in MOVED]
    for source in [*(arrived / "scratch" / "benchmarks").glob("*"), *left]:
        place = folder / source.relative_to(arrived)
        if source in left and place.is_dir():
            shutil.rmtree(place)
        if source.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, place)
    shutil.rmtree(arrived, ignore_errors=True)
