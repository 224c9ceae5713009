"""Data parallelism: copies of a model in vLLM on this machine, behind vLLM's own server, which shares out the work.

load_engine(EngineConfig(model="path/to/checkpoint", data_parallel_size=8))       # eight copies on eight GPUs
load_engine(EngineConfig(model="path/to/checkpoint", tensor_parallel_size=2, data_parallel_size=4))
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.engines.base import Engine
from quagmire_utils.engines.config import EngineConfig, ServerSettings
from quagmire_utils.engines.server import ServerEngine
from quagmire_utils.engines.vllm import CHILD_SETTINGS, VLLMEngine, check_devices, installed_version

_KEEPER = """
import os, signal, subprocess, sys, time
server = subprocess.Popen([sys.executable, "-m", "vllm.entrypoints.openai.api_server", *sys.argv[2:]])
signal.signal(signal.SIGTERM, lambda *_: server.terminate())
while os.getppid() == int(sys.argv[1]) and server.poll() is None:
    time.sleep(0.2)
os.killpg(0, signal.SIGKILL)
"""  # vLLM's processes outlive a server that is killed, so the keeper ends all of its group
_ROWS = 256  # sequences in flight of each copy
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy


class ReplicatedVLLMEngine(ServerEngine):
    """`data_parallel_size` copies of a model in vLLM; see `Engine`. They end with this process."""

    name = VLLMEngine.name
    digest = Engine.digest

    def __init__(self, config: EngineConfig) -> None:
        """Start the copies. Raises ParameterError for fewer GPUs than they need, and if vLLM can't start."""
        import torch

        copies, on_cpu = config.data_parallel_size, not torch.cuda.is_available()
        check_devices(config.tensor_parallel_size * copies, on_cpu)
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
        self.version = installed_version()

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
                command, stdout=log, stderr=log, env=CHILD_SETTINGS | os.environ, start_new_session=True
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
    try:
        return _DIRECT.open(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
    except OSError:
        return False
