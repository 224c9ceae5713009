"""Copies of a model on the nodes of a Ray cluster that share the batches of a generalization loss.

The process that asks cuts the traces into batches, whatever the number of replicas. A replica gets one batch of token
ids at a time and sends back a row of sums for each trace.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quagmire_utils.engines import EngineConfig
from quagmire_utils.engines.cluster import Replica, ReplicaPool
from quagmire_utils.evaluation.generalization_loss.scoring import Scorer, load_model
from quagmire_utils.evaluation.generalization_loss.sequences import TokenSequence

if TYPE_CHECKING:
    import numpy as np

PACKAGES = ("quagmire-utils", "numpy", "torch", "transformers")  # what the losses are computed with


@dataclass(frozen=True)
class ScorerSettings:
    """What makes a `Scorer`."""

    config: EngineConfig
    chunk_tokens: int
    probe: TokenSequence


class ScorerReplica(Replica):
    """The actor: a model on some node. Its settings are `ScorerSettings`."""

    packages = PACKAGES
    scorer: Scorer | None = None

    def open(self, model: str) -> None:
        """Load the model and try it out."""
        settings: ScorerSettings = self.settings
        loaded = load_model(settings.config.replace(model=model))
        self.scorer = Scorer(loaded, settings.chunk_tokens, settings.probe)

    def score(self, batch: Sequence[TokenSequence]) -> np.ndarray:
        """Return what `Scorer.score` returns."""
        return self.scorer.score(batch)


class ClusterScorer:
    """The replicas of a model on a cluster, which share the batches; a context manager, as `Scorer` is."""

    def __init__(self, config: EngineConfig, chunk_tokens: int, probe: TokenSequence) -> None:
        """Connect to the cluster `config.ray`.

        Raise ParameterError if no cluster answers, no node could hold a replica, or the model cannot be loaded there;
        ReplicaLostError if replicas keep dying.
        """
        settings = ScorerSettings(config, chunk_tokens, probe)
        where = {"address": config.ray, "count": config.replicas, "gpus": 0 if config.device == "cpu" else 1}
        self._pool = ReplicaPool(ScorerReplica, config.model, settings, **where)

    def __enter__(self) -> ClusterScorer:
        self._pool.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.__exit__(*error)

    def score_all(self, batches: Sequence[Sequence[TokenSequence]]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number of each batch and its `Scorer.score`, as they are finished."""
        pool, todo = self._pool, deque(range(len(batches)))
        while todo or pool.working:
            if todo:
                pool.start()
            while todo and pool.idle:
                batch = todo.popleft()
                pool.give(batch, "score", batches[batch], note="its batch is computed again")
            for ended in pool.ended():
                if ended.lost and ended.job is not None:
                    todo.appendleft(ended.job)
                elif ended.job is not None:  # else a replica was loaded
                    yield ended.job, ended.answer
