"""Generalization loss: the negative log-likelihood per response token that a model gives to held-out worked solutions.

Implements the predictor of Sec. 3.1: after SFT, the loss on validation examples (traces whose problems were not
trained on) foretells what RL can still gain. In nats per response token; prompt tokens are excluded, the closing EOS
is counted.

    loss = generalization_loss("path/or/hub-id", None, load_traces("validation.jsonl"))
    print(loss.nll, "+-", loss.standard_error, "nats over", loss.tokens, "tokens of", loss.traces, "traces")
    loss.by_decile, loss.by_position, loss.by_length      # where in a response, and in which responses

A large set, in bfloat16, on the GPUs of a Ray cluster; started again after a kill, it does what is missing:

    generalization_loss(model, None, traces, dtype="bfloat16", partial="loss.parquet", ray="auto")

With s_i the summed loss and n_i the response tokens of trace i of m, the loss is the ratio estimator R = sum(s) /
sum(n), a mean over tokens. Traces, not tokens, are what was sampled, so its standard error comes from the traces'
residuals:

    SE(R) = sqrt( m / (m - 1) * sum_i (s_i - R n_i)^2 ) / sum(n)

Where several traces solve one problem they are not independent; `standard_error_over_problems` puts the problems' sums
into the same formula.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data import Trace
from quagmire_utils.evaluation.generalization_loss.partial import PartialLosses
from quagmire_utils.evaluation.generalization_loss.scoring import Checkpoint, Scorer
from quagmire_utils.evaluation.generalization_loss.sequences import (
    TokenSequence,
    check_vocabulary,
    encode,
    fitting,
    plan_batches,
)
from quagmire_utils.evaluation.generalization_loss.summary import GeneralizationLoss, summarise

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from quagmire_utils.evaluation.generalization_loss.actors import ClusterScorer
    from quagmire_utils.evaluation.generalization_loss.sequences import Batch

__all__ = ["GeneralizationLoss", "generalization_loss"]

TOO_LONG = ("refuse", "drop")


def generalization_loss(
    model: PreTrainedModel | str | Path,
    tokenizer: PreTrainedTokenizerBase | None,
    traces: Sequence[Trace],
    *,
    template: str = "auto",
    batch_tokens: int = 16384,
    chunk_tokens: int = 1024,
    packing: bool = False,
    too_long: str = "refuse",
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    partial: str | Path | None = None,
    ray: str | None = None,
    replicas: int | None = None,
    progress: bool = True,
) -> GeneralizationLoss:
    """Negative log-likelihood per response token of `traces` under `model`.

    `model` is a causal language model, on any device and in any dtype, or a path or hub id; with a path, `tokenizer`
    may be None and is then loaded from there. `template` is that of `prompts.render`. A batch holds traces of similar
    length, up to `batch_tokens` including padding; `chunk_tokens` bounds how many positions' logits exist at once.
    Neither changes the result beyond rounding.

    `packing` puts several traces into one row, with positions and attention of their own, where the architecture keeps
    them apart (it is tried out; else a warning, and batches by length). It saves padding, which is little in a large
    set sorted by length unless the model was loaded with flash attention; it changes rounding, so it is off by default.

    `too_long` says what happens to traces longer than the model's context: "refuse" all, or "drop" those and count
    them.

    The rest needs a path or hub id. `revision` and `trust_remote_code` are those of transformers, `dtype` is the
    weights' ("auto": the checkpoint's own; logits are reduced in float32 whatever it is), `device` "auto" is cuda where
    there is one. `partial` is a parquet file of single traces' losses, written every half minute: a killed computation
    that is started again with it does only what is missing, and gives the same bits as an unbroken one.

    `ray` ("auto", or the address of a cluster) shares the batches among `replicas` of the model on the nodes of a Ray
    cluster (default: one per GPU; without GPUs, one per core). The batches are the same for any number of replicas, so
    the result is too; the batch of a node that dies is done again by another. No shared file system is needed.

    Raises ParameterError, before any weight is read where that can be, where there are no traces, one has a blank
    question or response, any exceeds the model's context, the tokenizer has more tokens than the model, no cluster
    answers, or `partial` belongs to another model; and for a model whose logits are not simply its head's output.
    """
    named = isinstance(model, str | os.PathLike)
    _check(traces, batch_tokens, chunk_tokens, too_long, ray, replicas)
    if not named:
        given = {"revision": revision, "partial": partial, "ray": ray, "trust_remote_code": trust_remote_code or None}
        given |= {name: None if value == "auto" else value for name, value in (("dtype", dtype), ("device", device))}
        unwanted = [name for name, value in given.items() if value is not None]
        if unwanted:
            raise ParameterError(f"{unwanted[0]} needs model as a path or hub id, not a loaded one")
        if tokenizer is None:
            raise ParameterError("tokenizer may be None only where model is a path or hub id")
        config, entries = model.config, model.get_input_embeddings().weight.shape[0]
    else:
        from quagmire_utils.engines import DTYPES, load_tokenizer, model_digest, resolve_dtype

        if dtype not in DTYPES:
            raise ParameterError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
        model = Checkpoint(str(model), revision, dtype, device, trust_remote_code)
        config = model.config()
        entries = config.get_text_config().vocab_size
        tokenizer = tokenizer or load_tokenizer(model.model, revision, trust_remote_code)

    sequences = encode(traces, tokenizer, template, progress)
    kept = fitting(
        sequences, traces, getattr(config.get_text_config(), "max_position_embeddings", None), too_long == "drop"
    )
    dropped = len(traces) - len(kept)
    traces, sequences = [traces[i] for i in kept], [sequences[i] for i in kept]
    check_vocabulary(sequences, entries)
    origin = (
        {} if partial is None else {"model": model_digest(model.model, revision), "dtype": resolve_dtype(config, dtype)}
    )
    known = PartialLosses(partial, origin)
    keys = [str(i) if partial is None else sequence.digest for i, sequence in enumerate(sequences)]
    if any(key not in known for key in keys):
        probe = [sequences[0], min(sequences, key=len)]
        with ExitStack() as stack:
            stack.callback(known.write)
            scorer = stack.enter_context(_scorer(model, chunk_tokens, packing, probe, ray, replicas))
            _score(scorer, sequences, keys, known, batch_tokens, progress)
    return summarise(traces, known.get(keys), np.array([sequence.response for sequence in sequences]), dropped=dropped)


def _check(
    traces: Sequence[Trace], batch_tokens: int, chunk_tokens: int, too_long: str, ray: str | None, replicas: int | None
) -> None:
    """Raise ParameterError for what can be seen without a model."""
    for name, value in (("batch_tokens", batch_tokens), ("chunk_tokens", chunk_tokens)):
        if value < 1:
            raise ParameterError(f"{name} must be at least 1, not {value}")
    if not traces:
        raise ParameterError("traces is empty: the loss needs at least one held-out trace")
    if too_long not in TOO_LONG:
        raise ParameterError(f"too_long must be one of {', '.join(TOO_LONG)}, not {too_long!r}")
    if replicas is not None and (ray is None or replicas < 1):
        raise ParameterError(f"replicas must be at least 1, and needs ray, not {replicas} with ray={ray}")


def _scorer(
    model: PreTrainedModel | Checkpoint,
    chunk_tokens: int,
    packing: bool,
    probe: Sequence[TokenSequence],
    ray: str | None,
    replicas: int | None,
) -> Scorer | ClusterScorer:
    if ray is not None:
        from quagmire_utils.evaluation.generalization_loss.actors import ClusterScorer, ScorerSettings

        return ClusterScorer(ScorerSettings(model, chunk_tokens, packing, probe), ray, replicas)
    return Scorer(model.load() if isinstance(model, Checkpoint) else model, chunk_tokens, packing, probe)


def _score(
    scorer: Scorer | ClusterScorer,
    sequences: Sequence[TokenSequence],
    keys: Sequence[str],
    known: PartialLosses,
    batch_tokens: int,
    progress: bool,
) -> None:
    """Add what is missing to `known`."""
    from tqdm import tqdm

    first = {key: i for i, key in reversed(list(enumerate(keys)))}  # a trace that is there twice is scored once
    missing = {i for key, i in first.items() if key not in known}
    batches = plan_batches(sequences, sorted(first.values()), batch_tokens, scorer.packing)
    batches = [batch for batch in batches if any(i in missing for row in batch for i in row)]
    if not all(i in missing for i in _members(batches)):  # not what a kill leaves: the traces are others than before
        batches = plan_batches(sequences, sorted(missing), batch_tokens, scorer.packing)
    with tqdm(
        total=sum(len(sequences[i]) for i in first.values()),
        initial=sum(len(sequences[i]) for i in first.values() if i not in missing),
        desc="generalization loss",
        unit="tok",
        unit_scale=True,
        delay=3,
        disable=not progress,
    ) as bar:
        rows = [[[sequences[i] for i in row] for row in batch] for batch in batches]
        for number, sums in scorer.score_all(rows):
            members = _members([batches[number]])
            known.add([keys[i] for i in members], sums)
            bar.update(sum(len(sequences[i]) for i in members))


def _members(batches: Sequence[Batch]) -> list[int]:
    return [i for batch in batches for row in batch for i in row]
