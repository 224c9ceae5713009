"""Copies of a model on the nodes of a Ray cluster that share the batches of a generalization loss.

The process that asks cuts the traces into batches, whatever the number of replicas. A replica gets one batch of token
ids at a time and sends back a row of sums for each trace.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from quagmire_utils.engines import EngineConfig
from quagmire_utils.engines.cluster import Replica, ReplicaPool
from quagmire_utils.evaluation.generalization_loss.scoring import Scorer, load_model
from quagmire_utils.evaluation.generalization_loss.sequences import TokenSequence

if TYPE_CHECKING:
    import numpy as np

PACKAGES = ("quagmire-utils", "numpy", "torch", "transformers")  # what the losses are computed with


class ScorerReplica(Replica):
    """The actor: a model on some node. Its settings are EngineConfig, chunk_tokens and probe of a `Scorer`."""

    packages = PACKAGES
    scorer: Scorer | None = None

    def open(self) -> None:
        """Load the model and try it out."""
        config, chunk_tokens, probe = self.settings
        self.scorer = Scorer(load_model(config.replace(model=self.model)), chunk_tokens, probe)

    def score(self, batch: Sequence[TokenSequence]) -> np.ndarray:
        """Return what `Scorer.score` returns."""
        return self.scorer.score(batch)


def score_on_cluster(
    config: EngineConfig, chunk_tokens: int, probe: TokenSequence, batches: Sequence[Sequence[TokenSequence]]
) -> Generator[tuple[int, np.ndarray]]:
    """Yield the number of each batch and its `Scorer.score`, as the replicas on the cluster `config.ray` finish it.

    Raise ParameterError if no cluster answers, no node could hold a replica, or the model cannot be loaded there;
    ReplicaLostError if replicas keep dying.
    """
    where = {"address": config.ray, "count": config.replicas, "gpus": 0 if config.device == "cpu" else 1}
    todo = deque(range(len(batches)))
    with ReplicaPool(ScorerReplica, config.model, (config, chunk_tokens, probe), **where) as pool:
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
