"""A sweep's cells on the nodes of a Ray cluster: one per CPU core, or `compute.gpus` GPUs of one node each.

    ray start --head --disable-usage-stats --include-dashboard=false    # on one node
    ray start --address=THAT_NODE:6379 --disable-usage-stats            # on each other one
    quagmire sweep mini --ray auto                                      # on any of them

Every node must see the results folder, and the folder in which the sweep was started, under the same path. A node with
other versions of the packages refuses its cells. Ray runs the cells of a node that dies again on others.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from quagmire_utils.core.settings import Profile
from quagmire_utils.engines import cluster
from quagmire_utils.sweep.grid import Cell, plan
from quagmire_utils.sweep.pools import ATTEMPTS, CellLostError, Ended, logged_cell, set_environment

if TYPE_CHECKING:
    from ray import ObjectRef

NO_NODE_TIMEOUT = 60.0  # seconds without any CPU in the cluster after which the sweep gives up
PACKAGES = ("quagmire-utils", "numpy", "torch", "transformers", "tokenizers", "trl", "math-verify", "sympy")
PASSED = ("QUAGMIRE_", "HF_")  # variables that go with a cell: data folder, back-ends, caches of the hub; no token


class RayPool:
    """The cores (or GPUs) of a Ray cluster as a pool of a sweep; at most `workers` cells at a time where given."""

    def __init__(self, profile: Profile, folder: Path, address: str, workers: int | None = None) -> None:
        """Connect to the cluster at `address`. Raises ParameterError if ray is not installed or no cluster answers."""
        self.profile, self.folder, self.workers = profile, folder, workers
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
        """Start a cell."""
        environment = {k: v for k, v in os.environ.items() if k.startswith(PASSED) and "TOKEN" not in k}
        here = self.folder.resolve(), Path.cwd(), environment
        task = self._task.options(name=cell.id).remote(self.profile, cell, cluster.versions(PACKAGES), *here)
        self._tasks[task] = cell

    def wait(self, seconds: float) -> Ended:
        """Wait up to `seconds` for a cell to end; return those that have ended."""
        import ray

        if not self._tasks:
            time.sleep(seconds)
            return []
        done, _ = ray.wait(list(self._tasks), timeout=seconds)
        ended: Ended = []
        for task in done:
            cell = self._tasks.pop(task)
            try:
                failure = ray.get(task)
                error = None if failure is None else RuntimeError(failure)
            except ray.exceptions.RayError as lost:  # a node, or a process
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
                ray.cancel(task, force=True)
        if self._owns_connection:
            ray.shutdown()


def _remote_cell(
    profile: Profile, cell: Cell, versions: dict[str, str], results: Path, working: Path, environment: dict[str, str]
) -> str | None:
    """Compute a cell on a node; return what went wrong. Paths in the profile are relative to the folder `working`."""
    set_environment()
    node = socket.gethostname()
    if other := cluster.different_versions(versions, cluster.versions(PACKAGES)):
        return f"node {node} has {other}; give it the environment of the machine that runs the sweep"
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
