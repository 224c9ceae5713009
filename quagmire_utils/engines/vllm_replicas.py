"""Data parallelism: several copies of a model in vLLM on this machine, each a Ray actor on GPUs of its own.

    load_engine(EngineConfig(model="path/to/checkpoint", data_parallel_size=8))       # eight copies on eight GPUs
    load_engine(EngineConfig(model="path/to/checkpoint", tensor_parallel_size=2, data_parallel_size=4))

Each copy draws its share of the samples of every request, not its share of the requests, so that hard problems, whose
answers are long, burden all copies alike. Which copy draws which sample is fixed, so a chunk is reproducible. Ray is
started for it, and ends with this process, also when that is killed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.engines import cluster
from quagmire_utils.engines.base import Completion, EngineError, Request, StreamingEngine
from quagmire_utils.engines.config import EngineConfig, SamplingParams
from quagmire_utils.engines.vllm import VLLMEngine, check_devices

if TYPE_CHECKING:
    from ray import ObjectRef


class ReplicatedVLLMEngine(StreamingEngine):
    """`data_parallel_size` copies of a model in vLLM; see `Engine`."""

    name = VLLMEngine.name

    def __init__(self, config: EngineConfig) -> None:
        """Start the copies. Raises ParameterError for fewer GPUs than they need, and what `VLLMEngine` raises."""
        groups = _device_groups(config.tensor_parallel_size, config.data_parallel_size)
        self._read_checkpoint(config, "cpu" if groups[0] is None else "cuda")
        self._owns_connection = cluster.connect(None)
        import ray

        # A Ray task of a sweep already holds this machine's GPUs, so copies ask Ray for none.
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        actor = ray.remote(num_cpus=0, scheduling_strategy=here)(_Copy)
        self._copies = [actor.remote(config.replace(data_parallel_size=1), devices) for devices in groups]
        try:
            loading = [copy.load.remote() for copy in self._copies]
            self.version, *_ = map(self._get, loading)
        except BaseException:
            self.close()
            raise

    def stream(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (index of the request, its n completions) as requests are completed; see `Engine`.

        After an error (EngineError if a copy dies), and if the iterator is closed early, the copies are stopped and the
        engine can't be used.
        """
        self.check(requests, params)
        if not self._copies:
            raise EngineError("the vLLM copies of this engine were stopped; load it again")
        return self._stream(requests, params)

    def _stream(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[tuple[int, list[Completion]]]:
        import ray

        answers: dict[int, list[list[int]]] = {}
        missing = [request.n for request in requests]
        busy = {}
        try:
            for copy, share in zip(self._copies, share_out(requests, len(self._copies)), strict=True):
                pieces = [request for _, _, request in share]
                busy[copy.draw.options(num_returns="streaming").remote(pieces, params)] = share
            while busy:
                [drawing], _ = ray.wait(list(busy), num_returns=1)
                try:
                    place, rows = self._get(next(drawing))
                except StopIteration:
                    del busy[drawing]
                    continue
                index, first, piece = busy[drawing][place]
                answers.setdefault(index, [[]] * requests[index].n)[first : first + piece.n] = rows
                missing[index] -= piece.n
                if not missing[index]:
                    yield index, self.complete(answers.pop(index))
        except BaseException:
            self.close()  # the copies would go on drawing
            raise

    @staticmethod
    def _get(reference: ObjectRef) -> Any:
        import ray

        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as failed:
            if isinstance(failed.cause, ParameterError):
                raise failed.cause from None
            raise EngineError(f"a copy of vLLM failed ({type(failed.cause).__name__}: {failed.cause})") from failed
        except ray.exceptions.RayError as lost:
            raise EngineError(f"a copy of vLLM died ({str(lost).strip().splitlines()[0]})") from None

    def close(self) -> None:
        """Stop the copies, which frees their memory."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            for copy in self._copies:
                ray.kill(copy)
        if self._copies and self._owns_connection:
            ray.shutdown()
        self._copies = []


class _Copy:
    """The actor: a model in vLLM that draws its share."""

    def __init__(self, config: EngineConfig, devices: str | None) -> None:
        if devices is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = devices
        self.config = config

    def load(self) -> str:
        """Load the model; return the version of vLLM."""
        self.engine = VLLMEngine(self.config)
        return self.engine.version

    def draw(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[tuple[int, list[list[int]]]]:
        """Yield (index of the request, its token ids) as requests are completed."""
        yield from self.engine.stream_ids(requests, params)


def share_out(requests: Sequence[Request], replicas: int) -> list[list[tuple[int, int, Request]]]:
    """Return for each replica its pieces: (index of the request, its first sample, the samples as a request).

    The pieces of a request differ by one sample at most; remainders go to the replicas in turn.
    """
    shares: list[list[tuple[int, int, Request]]] = [[] for _ in range(replicas)]
    turn = 0
    for index, request in enumerate(requests):
        whole, extra = divmod(request.n, replicas)
        first = 0
        for place in range(min(replicas, request.n)):
            count = whole + (place < extra)
            piece = Request(request.prompt_ids, count, request.seed + first)
            shares[(turn + place) % replicas].append((index, first, piece))
            first += count
        turn += extra
    return shares


def _device_groups(per_replica: int, replicas: int) -> list[str | None]:
    """Return CUDA_VISIBLE_DEVICES of each replica; None on a machine without GPUs."""
    import torch

    on_cpu = not torch.cuda.is_available()
    check_devices(per_replica * replicas, on_cpu)
    if on_cpu:
        return [None] * replicas
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if visible == [""]:
        visible = [str(device) for device in range(torch.cuda.device_count())]
    return [",".join(visible[i * per_replica : (i + 1) * per_replica]) for i in range(replicas)]
