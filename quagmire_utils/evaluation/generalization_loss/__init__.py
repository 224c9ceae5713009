"""Generalization loss: negative log-likelihood per response token of held-out worked solutions.

Implements the predictor of Sec. 3.1: after SFT, the loss on validation examples (traces whose problems were not trained
on) predicts what RL can still gain. In nats per response token; prompt tokens do not count, the closing EOS does.

    loss = generalization_loss(EngineConfig(model="path/or/hub-id"), None, load_traces("validation.jsonl"))
    print(loss.nll, "+-", loss.standard_error, "nats over", loss.tokens, "tokens of", loss.traces, "traces")
    loss.by_position, loss.by_length      # where in a response, and in which responses

On the GPUs of a Ray cluster, in bfloat16; started again after a kill, it computes what is missing:

    config = EngineConfig(model="path/or/hub-id", dtype="bfloat16", ray="auto")
    generalization_loss(config, None, traces, partial="loss.parquet")

With s_i the summed loss and n_i the response tokens of trace i of m, the loss is the ratio R = sum(s) / sum(n), a mean
over tokens. Traces, not tokens, were sampled, so its standard error comes from the traces' residuals:

    SE(R) = sqrt( m / (m - 1) * sum_i (s_i - R n_i)^2 ) / sum(n)

Traces of one problem are not independent; `standard_error_over_problems` puts the problems' sums into the same formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data import Trace
from quagmire_utils.engines import (
    EngineConfig,
    load_config,
    load_tokenizer,
    model_digest,
    resolve_device,
    resolve_dtype,
)
from quagmire_utils.evaluation.generalization_loss.partial import PartialLosses
from quagmire_utils.evaluation.generalization_loss.scoring import score_here
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

__all__ = ["GeneralizationLoss", "generalization_loss"]

TOO_LONG = ("refuse", "drop")


def generalization_loss(
    model: EngineConfig | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    traces: Sequence[Trace],
    *,
    template: str = "auto",
    batch_tokens: int = 16384,
    chunk_tokens: int = 1024,
    too_long: str = "refuse",
    partial: str | Path | None = None,
    progress: bool = True,
) -> GeneralizationLoss:
    """Return the negative log-likelihood per response token of `traces` under a causal language model.

    `model`: the configuration to load it by (`tokenizer` None: the model's own; `template` is the configuration's), or
    a loaded model, on any device and in any dtype. A batch holds traces of similar length, up to `batch_tokens` with
    padding; `chunk_tokens` is how many positions have logits, in float32, at a time. Neither changes the result beyond
    rounding. With `ray`, replicas on a cluster share the batches (default: one per GPU; without GPUs, one per core);
    the result does not depend on their number, and the batch of a node that dies is computed again elsewhere.

    `too_long`: "refuse" traces longer than the model's context, or "drop" and count them. `partial`: a parquet file of
    the losses of single traces, written every half minute; a killed computation started again with it computes only
    what is missing, and gives the same bits as an unbroken one.

    Raise ParameterError, before any weight is read if possible, for no traces, a blank question or response, a trace
    longer than the context, a tokenizer with more tokens than the model, a cluster that does not answer, a `partial` of
    another model, and for a model whose logits are not simply the output of its head.
    """
    if not traces:
        raise ParameterError("traces", reason="the loss needs at least one held-out trace")
    for name, value in (("batch_tokens", batch_tokens), ("chunk_tokens", chunk_tokens)):
        if value < 1:
            raise ParameterError(name, value, "at least 1")
    if too_long not in TOO_LONG:
        raise ParameterError("too_long", too_long, f"one of {', '.join(TOO_LONG)}")
    origin = {}
    if isinstance(model, EngineConfig):
        how = (model.model, model.revision, model.trust_remote_code)
        config = load_config(*how)
        entries = config.get_text_config().vocab_size
        tokenizer, template = tokenizer or load_tokenizer(*how), model.template
        if partial is not None:
            device = resolve_device(model.device) if model.ray is None else ""  # nodes have their own
            dtype = resolve_dtype(config, model.dtype, device)
            origin = {"model": model_digest(model.model, model.revision), "dtype": dtype}
    else:
        for name, wrong in (("tokenizer", tokenizer is None), ("partial", partial is not None)):
            if wrong:
                reason = "with a loaded model, give a tokenizer and no partial"
                raise ParameterError(name, None if name == "tokenizer" else partial, reason=reason)
        config, entries = model.config, model.get_input_embeddings().weight.shape[0]

    sequences = encode(traces, tokenizer, template, progress)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    kept = fitting(sequences, traces, context, too_long == "drop")
    dropped = len(traces) - len(kept)
    traces, sequences = [traces[i] for i in kept], [sequences[i] for i in kept]
    check_vocabulary(sequences, entries)
    known = PartialLosses(partial, origin)
    keys = [str(i) if partial is None else sequence.digest for i, sequence in enumerate(sequences)]
    if any(key not in known for key in keys):
        try:
            _score(model, sequences, keys, known, batch_tokens, chunk_tokens, progress)
        finally:
            known.write()
    return summarise(traces, known.get(keys), np.array([sequence.response for sequence in sequences]), dropped=dropped)


def _score(
    model: EngineConfig | PreTrainedModel,
    sequences: Sequence[TokenSequence],
    keys: Sequence[str],
    known: PartialLosses,
    batch_tokens: int,
    chunk_tokens: int,
    progress: bool,
) -> None:
    """Add to `known` what it lacks."""
    from tqdm import tqdm

    score = score_here
    if isinstance(model, EngineConfig) and model.ray is not None:
        from quagmire_utils.evaluation.generalization_loss.loss_replicas import score_on_cluster as score

    first = {key: i for i, key in reversed(list(enumerate(keys)))}  # equal traces are scored once
    missing = {i for key, i in first.items() if key not in known}
    batches = plan_batches(sequences, sorted(first.values()), batch_tokens)
    batches = [batch for batch in batches if missing.intersection(batch)]
    if not all(missing.issuperset(batch) for batch in batches):  # other traces than in the killed run
        batches = plan_batches(sequences, sorted(missing), batch_tokens)
    scored = score(model, chunk_tokens, sequences[0], [[sequences[i] for i in batch] for batch in batches])
    bar = tqdm(
        total=sum(len(sequences[i]) for i in first.values()),
        initial=sum(len(sequences[i]) for i in first.values() if i not in missing),
        desc="generalization loss",
        unit="tok",
        unit_scale=True,
        delay=3,
        disable=not progress,
    )
    with bar, closing(scored):
        for number, sums in scored:
            known.add([keys[i] for i in batches[number]], sums)
            bar.update(sum(len(sequences[i]) for i in batches[number]))
