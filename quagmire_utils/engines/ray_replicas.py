"""Copies of a model on the nodes of a Ray cluster, each in an actor of its own, and the jobs that they share.

    ray start --head --disable-usage-stats --include-dashboard=false    # on one node
    ray start --address=THAT_NODE:6379 --disable-usage-stats            # on each other one

What `sample(..., ray=...)` and `generalization_loss(..., ray=...)` share. A replica does one job at a time, and
the process that asked keeps the answers. A checkpoint folder that a node does not have, or has with another content, is
sent there. Every node needs the same versions of what is computed with. A node that dies loses the job in flight, which
is done again elsewhere.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.engines import cluster
from quagmire_utils.engines.checkpoints import model_digest

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

ATTEMPTS = 4  # how often a job is done, or a replica started, that keeps losing its node or process
NO_NODE_TIMEOUT = 60.0  # seconds without room for any replica after which a pool gives up
_PIECE = 32 << 20  # bytes of a checkpoint that travel at a time

Job = TypeVar("Job", bound=Hashable)


class ReplicaLostError(RuntimeError):
    """Replicas keep dying, or no node is left for one; the message says what happened."""


class Replica(ABC):
    """An actor: a model on some node. Subclasses say how it is opened, and have the methods that do the jobs."""

    packages: tuple[str, ...] = ()  # whose versions a node must have as the machine that asks

    def __init__(self, model: str, versions: dict[str, str], settings: Any) -> None:
        """model: folder or hub id; versions: of packages, where the pool is; settings: what a subclass wants."""
        self.model, self.versions, self.settings = model, versions, settings
        self.folder: str | None = None  # of a checkpoint that was sent here

    def lacks(self, digest: str | None) -> bool:
        """Whether the checkpoint folder with this digest has to be sent; None: the model is no folder."""
        other = cluster.different_versions(self.versions, cluster.versions(self.packages))
        if other:
            raise ParameterError(
                f"ray: node {socket.gethostname()} has {other}; give it the environment of the machine that asks"
            )
        try:
            return digest is not None and model_digest(self.model) != digest
        except ParameterError:  # no such folder, or half of one
            return True

    def receive(self, name: str, piece: bytes) -> None:
        """One more piece of a file of the checkpoint."""
        self.folder = self.folder or tempfile.mkdtemp(prefix="quagmire-model-")
        with (Path(self.folder) / name).open("ab") as file:
            file.write(piece)

    def load(self) -> Any:
        """Open the model; what `open` says of it. A checkpoint that was sent here is in memory then, not on disk."""
        try:
            return self.open(self.folder or self.model)
        finally:
            if self.folder is not None:
                shutil.rmtree(self.folder, ignore_errors=True)

    @abstractmethod
    def open(self, model: str) -> Any:
        """Load `model`, a folder or hub id; returns what the pool's owner wants to know of it."""

    def close(self) -> None:  # noqa: B027 (not every model has anything to free)
        """Free what the node lent."""


@dataclass(frozen=True)
class Ended(Generic[Job]):
    """What came to its end: a job, or the loading of a replica."""

    job: Job | None  # None: a replica was loaded, and `answer` is what it says of itself
    answer: Any = None
    lost: bool = False  # with its node; the job has to be given again


@dataclass(frozen=True)
class _Task(Generic[Job]):
    """What a replica is doing: saying whether it has the checkpoint ("ask"), loading it ("load"), or a "job"."""

    actor: ActorHandle
    kind: str
    job: Job | None = None
    note: str = ""


class ReplicaPool(Generic[Job]):
    """The replicas of a model on a cluster; a context manager."""

    def __init__(
        self,
        replica: type[Replica],
        model: str,
        settings: Any,
        *,
        address: str,
        count: int | None,
        gpus: int,
    ) -> None:
        """Connect to the cluster at `address`. Replicas come with `start`.

        count: replicas; None: as many as the cluster has room for, also on nodes that join later. gpus: of each replica
        where the cluster has any; else it takes a core.
        Raises ParameterError where no cluster answers, or none of its nodes could ever hold a replica.
        """
        self.model, self.count = model, count
        self._arguments = (model, cluster.versions(replica.packages), settings)
        self._digest = model_digest(model) if Path(model).expanduser().is_dir() else None
        self._tasks: dict[ObjectRef, _Task[Job]] = {}
        self._idle: list[ActorHandle] = []
        self._losses: dict[Job | None, int] = {}  # by job; None counts replicas that were lost while they were loading
        self._room_seen = time.monotonic()
        self._owns_connection = cluster.connect(address)
        import ray

        self._actor = ray.remote(max_restarts=0, max_task_retries=0)(replica)
        self._gpus = gpus if ray.cluster_resources().get("GPU", 0) > 0 else 0
        if self._room() == 0:
            self.stop()
            needed = f"{self._gpus} GPU(s)" if self._gpus else "a CPU core"
            raise ParameterError(f"ray: no node of the cluster has {needed} for a replica")

    def __enter__(self) -> ReplicaPool[Job]:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def idle(self) -> bool:
        """Whether a replica waits for a job."""
        return bool(self._idle)

    @property
    def loading(self) -> bool:
        """Whether a replica is being started."""
        return any(task.kind != "job" for task in self._tasks.values())

    @property
    def working(self) -> bool:
        """Whether a job is being done."""
        return any(task.kind == "job" for task in self._tasks.values())

    def start(self) -> None:
        """Start as many replicas as there is room for, or were asked for; one without a node yet waits for it.

        Raises ReplicaLostError where the cluster has had no node for a while.
        """
        room = self._room()
        if room:
            self._room_seen = time.monotonic()
        elif time.monotonic() - self._room_seen > NO_NODE_TIMEOUT:
            raise ReplicaLostError("ray: the cluster has no node for a replica any more; what was done is kept")
        wanted = room if self.count is None else self.count
        for _ in range(wanted - len(self._tasks) - len(self._idle)):
            options = {"num_cpus": 1, "num_gpus": self._gpus, "scheduling_strategy": "SPREAD"}
            actor = self._actor.options(**options).remote(*self._arguments)
            self._tasks[actor.lacks.remote(self._digest)] = _Task(actor, "ask")

    def give(self, job: Job, method: str, *arguments: Any, note: str = "") -> None:
        """Let an idle replica do a job: call its `method`. note: what a warning says if its node is lost."""
        actor = self._idle.pop()
        self._tasks[getattr(actor, method).remote(*arguments)] = _Task(actor, "job", job, note)

    def ended(self, seconds: float = 0.5) -> Iterator[Ended[Job]]:
        """What has ended; waits at most so long for the first.

        Raises ParameterError where a replica does; RuntimeError for its other errors; ReplicaLostError where a job, or
        the loading, has lost `ATTEMPTS` replicas.
        """
        import ray

        for reference in ray.wait(list(self._tasks), timeout=seconds)[0] if self._tasks else ():
            task = self._tasks.pop(reference)
            try:
                answer = ray.get(reference)
                if task.kind == "ask":
                    self._load(task.actor, send=answer)
                    continue
            except ray.exceptions.RayTaskError as failed:
                if isinstance(failed.cause, ParameterError):
                    raise failed.cause from None
                what = f"{type(failed.cause).__name__}: {failed.cause}"
                raise RuntimeError(f"ray: a replica failed ({what})") from failed
            except ray.exceptions.RayError as lost:
                self._lose(task, str(lost).strip().splitlines()[0])
                if task.kind == "job":
                    yield Ended(task.job, lost=True)
                continue
            self._idle.append(task.actor)
            if task.kind == "load":
                self._losses.pop(None, None)  # loading works
            yield Ended(task.job, answer)

    def stop(self) -> None:
        """End all replicas."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            closing = [actor.close.remote() for actor in self._idle]
            if closing:
                ray.wait(closing, num_returns=len(closing), timeout=10)
            for actor in [*self._idle, *(task.actor for task in self._tasks.values())]:
                ray.kill(actor)
        self._idle, self._tasks = [], {}
        if self._owns_connection:
            ray.shutdown()

    def _room(self) -> int:
        """How many replicas the nodes that are alive have room for, were nothing else running."""
        import ray

        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if self._gpus:
            return sum(min(int(has.get("CPU", 0)), int(has.get("GPU", 0)) // self._gpus) for has in alive)
        return sum(int(has.get("CPU", 0)) for has in alive)

    def _load(self, actor: ActorHandle, *, send: bool) -> None:
        """Let a replica load the model, from a copy of the checkpoint that travels there first where it has none."""
        import ray

        for file in checkpoint_files(self.model) if send else ():
            with file.open("rb") as handle:
                while piece := handle.read(_PIECE):
                    ray.get(actor.receive.remote(file.name, piece))  # one at a time: object stores are small
        self._tasks[actor.load.remote()] = _Task(actor, "load")

    def _lose(self, task: _Task[Job], reason: str) -> None:
        """A node or a process died: another replica is started where it can be."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(task.actor)
        self._losses[task.job] = self._losses.get(task.job, 0) + 1
        if self._losses[task.job] >= ATTEMPTS:
            what = "over the same job" if task.kind == "job" else "while they were loading"
            raise ReplicaLostError(f"ray: {ATTEMPTS} replicas were lost {what}, the last one because: {reason}")
        note = f", and {task.note}" if task.note else ""
        warnings.warn(f"ray: a replica was lost{note} ({reason})", stacklevel=2)


def checkpoint_files(model: str) -> list[Path]:
    """The files of a checkpoint folder that an engine may read. Hidden ones and folders are none of it."""
    return sorted(file for file in Path(model).expanduser().iterdir() if file.is_file() and file.name[0] != ".")
