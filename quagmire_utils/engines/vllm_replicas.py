"""Data parallelism: several copies of a model in vLLM, each in a process and on GPUs of its own.

    load_engine(EngineConfig(model="path/to/checkpoint", data_parallel_size=8))       # eight copies on eight GPUs
    load_engine(EngineConfig(model="path/to/checkpoint", tensor_parallel_size=2, data_parallel_size=4))

Each copy draws its share of the samples of every request, not its share of the requests, so that hard problems, whose
answers are long, burden all copies alike. Which copy draws which sample is fixed, so a chunk is reproducible.

This is not vLLM's own data parallelism because that leaves its processes, with the GPU memory they hold, behind when
this process is killed (measured with vLLM 0.32: `AsyncLLM` with data_parallel_size=2, SIGKILL, a minute later its
coordinator and both engine processes were still alive). A copy here ends when its pipe is closed, also by a kill.

    python -m quagmire_utils.engines.vllm_replicas FD        # what this module starts: a copy that obeys the pipe FD
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.engines.base import Completion, EngineError, Request, StreamingEngine
from quagmire_utils.engines.checkpoints import load_tokenizer
from quagmire_utils.engines.config import EngineConfig, SamplingParams
from quagmire_utils.engines.vllm import VLLMEngine, check_devices

_STOP_SECONDS = 30


class ReplicatedVLLMEngine(StreamingEngine):
    """`data_parallel_size` copies of a model in vLLM; see `Engine`."""

    name = VLLMEngine.name

    def __init__(self, config: EngineConfig) -> None:
        """Start the copies. Raises ParameterError for fewer GPUs than they need, and what `VLLMEngine` raises."""
        self._processes: list[subprocess.Popen] = []
        self._pipes: list[Connection] = []
        try:
            for devices in _device_groups(config.tensor_parallel_size, config.data_parallel_size):
                self._launch(config.replace(data_parallel_size=1), devices)
            facts = [self._receive(replica) for replica in range(config.data_parallel_size)]
        except BaseException:
            self.close()
            raise
        self.config, self.model = config, config.model
        self.tokenizer = load_tokenizer(config.model, config.revision, config.trust_remote_code)
        self.ends, self.dtype, self.version, self.context_length = facts[0]

    def stream(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (index of the request, its n completions) as requests are completed; see `Engine`.

        After an error (EngineError if a copy dies), and if the iterator is closed early, the copies are stopped and the
        engine can't be used.
        """
        self.check(requests, params)
        if not self._pipes:
            raise EngineError("the vLLM processes of this engine were stopped; load it again")
        return self._stream(requests, params)

    def _stream(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[tuple[int, list[Completion]]]:
        shares = share_out(requests, len(self._pipes))
        answers: dict[int, list[list[int]]] = {}
        missing = [request.n for request in requests]
        try:
            busy = {self._pipes[replica]: replica for replica, share in enumerate(shares) if share}
            for replica in busy.values():
                self._send(replica, ([request for _, _, request in shares[replica]], params))
            while busy:
                for pipe in wait(list(busy)):
                    drawn = self._receive(busy[pipe])
                    if drawn is None:
                        del busy[pipe]
                        continue
                    place, rows = drawn
                    index, first, piece = shares[busy[pipe]][place]
                    answers.setdefault(index, [[]] * requests[index].n)[first : first + piece.n] = rows
                    missing[index] -= piece.n
                    if not missing[index]:
                        yield index, self.complete(answers.pop(index))
        except BaseException:
            self.close()  # what the copies are drawing would be taken for the answer to the next call
            raise

    def close(self) -> None:
        """Stop the processes, which frees their memory."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.close()  # a copy that waits for work stops now
        for process in self._processes:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes, self._pipes = [], []

    def _launch(self, config: EngineConfig, devices: str | None) -> None:
        ours, theirs = Pipe()
        environment = dict(os.environ) if devices is None else {**os.environ, "CUDA_VISIBLE_DEVICES": devices}
        # The package may not be installed, but only be on this process's path.
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._pipes.append(ours)
        with theirs:
            command = [sys.executable, "-m", "quagmire_utils.engines.vllm_replicas", str(theirs.fileno())]
            self._processes.append(
                subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
            )
        self._send(len(self._pipes) - 1, config)

    def _send(self, replica: int, message: Any) -> None:
        try:
            self._pipes[replica].send(message)
        except OSError:
            raise self._death(replica) from None

    def _receive(self, replica: int) -> Any:
        try:
            message = self._pipes[replica].recv()
        except (EOFError, OSError):
            raise self._death(replica) from None
        if isinstance(message, Exception):
            raise message
        return message

    def _death(self, replica: int) -> EngineError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._processes[replica].wait(_STOP_SECONDS)
        status = self._processes[replica].returncode
        how = f"killed by signal {-status}" if status is not None and status < 0 else f"exit status {status}"
        return EngineError(f"vLLM process {replica + 1} of {len(self._processes)} died ({how})")


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


def _obey(pipe: Connection) -> None:
    """Load a model and draw what is asked for, until the pipe is closed."""
    try:
        engine = VLLMEngine(pipe.recv())
    except ParameterError as error:
        pipe.send(error)
        return
    pipe.send((engine.ends, engine.dtype, engine.version, engine.context_length))
    while True:
        requests, params = pipe.recv()
        message = None
        try:
            for answer in engine.stream_ids(requests, params):
                pipe.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            break  # the caller stopped
        except ParameterError as error:
            message = error
        except Exception as error:
            message = EngineError(f"vLLM failed in a process of its own ({type(error).__name__}: {error})")
        pipe.send(message)
    engine.close()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, EOFError), Connection(int(sys.argv[1])) as pipe:
        _obey(pipe)
