"""Copies of a model on the nodes of a Ray cluster: `generalization_loss(..., ray=...)`.

The process that asks cuts the traces into batches, whatever the number of replicas; a replica gets one batch of token
ids at a time and sends back a row of sums for each trace.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.engines.cluster import Replica, ReplicaPool
from quagmire_utils.evaluation.generalization_loss.scoring import Checkpoint, Scorer
from quagmire_utils.evaluation.generalization_loss.sequences import TokenSequence

if TYPE_CHECKING:
    import numpy as np

    from quagmire_utils.evaluation.generalization_loss.scoring import Rows

PACKAGES = ("quagmire-utils", "numpy", "torch", "transformers")  # what the losses are computed with


@dataclass(frozen=True)
class ScorerSettings:
    """What makes a `Scorer` of a checkpoint."""

    checkpoint: Checkpoint
    chunk_tokens: int
    packing: bool
    probe: Sequence[TokenSequence]


class ScorerReplica(Replica):
    """The actor: a model on some node."""

    packages = PACKAGES
    scorer: Scorer | None = None

    def open(self, model: str) -> str:
        """Load the model and try it out; how it packs, see `Scorer`."""
        settings: ScorerSettings = self.settings
        loaded = replace(settings.checkpoint, model=model).load()
        self.scorer = Scorer(loaded, settings.chunk_tokens, settings.packing, settings.probe)
        return self.scorer.packing

    def score(self, rows: Rows) -> np.ndarray:
        """See `Scorer.score`."""
        return self.scorer.score(rows)


class ClusterScorer:
    """The replicas of a model on a cluster, and the batches that they share; a context manager, as `Scorer` is."""

    def __init__(self, settings: ScorerSettings, address: str, count: int | None) -> None:
        """Connect, and wait for the first replica. `count`: replicas; None: as many as the cluster has room for.

        Raises ParameterError where no cluster answers, none of its nodes could hold a replica, or the model can't be
        loaded there; ReplicaLostError where replicas keep dying.
        """
        checkpoint = settings.checkpoint
        self.packing: str | None = None
        with ExitStack() as stack:
            self._pool: ReplicaPool[int] = stack.enter_context(
                ReplicaPool(
                    ScorerReplica,
                    checkpoint.model,
                    settings,
                    address=address,
                    count=count,
                    gpus=0 if checkpoint.device == "cpu" else 1,
                )
            )
            while self.packing is None:
                self._pool.start()
                for ended in self._pool.ended():
                    self._loaded(ended.answer)
            self._open = stack.pop_all()

    def __enter__(self) -> ClusterScorer:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def score_all(self, batches: Sequence[Rows]) -> Iterator[tuple[int, np.ndarray]]:
        """The number of each batch with its `Scorer.score`, as they are finished."""
        pool, todo = self._pool, deque(range(len(batches)))
        while todo or pool.working:
            if todo:
                pool.start()
            while todo and pool.idle:
                batch = todo.popleft()
                pool.give(batch, "score", batches[batch], note="its batch is done again")
            for ended in pool.ended():
                if ended.job is None:
                    self._loaded(ended.answer)
                elif ended.lost:
                    todo.appendleft(ended.job)
                else:
                    yield ended.job, ended.answer

    def _loaded(self, packing: str) -> None:
        """All replicas compute alike."""
        self.packing = self.packing or packing
        if packing != self.packing:
            raise ParameterError("ray: nodes differ in what attention they have; give all of them one environment")
