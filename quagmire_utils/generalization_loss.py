"""Generalization loss: the negative log-likelihood per response token that a model gives to held-out worked solutions.

Implements the predictor of Sec. 3.1: after SFT, the loss on validation examples (traces whose problems were not
trained on) foretells what RL can still gain. In nats per response token; prompt tokens are excluded, the closing EOS
is counted.

    loss = generalization_loss("path/or/hub-id", None, load_traces("validation.jsonl"))
    print(loss.nll, "+-", loss.standard_error, "nats over", loss.tokens, "tokens of", loss.traces, "traces")

With s_i the summed loss and n_i the response tokens of trace i of m, the loss is the ratio estimator R = sum(s) /
sum(n), a mean over tokens. Traces, not tokens, are what was sampled, so its standard error comes from the traces'
residuals:

    SE(R) = sqrt( m / (m - 1) * sum_i (s_i - R n_i)^2 ) / sum(n)

A language model's memory at evaluation goes into logits: length x vocabulary, 1.2 GB in float32 for one trace of
2,000 tokens over 150,000 entries. So the body of the model runs on whole traces, and its head on `chunk_tokens`
response positions at a time, whose logits are reduced, in float32, before the next chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quagmire_utils.benchmarks import Trace
from quagmire_utils.config import ParameterError
from quagmire_utils.prompts import render, resolve_template, response_ids

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class GeneralizationLoss:
    """Loss over a set of traces; `per_trace` has one row per trace, in the order given: id, problem_id, tokens, nll."""

    nll: float  # nats per response token, mean over all response tokens
    standard_error: float  # of `nll`, over traces; NaN for a single trace
    mean_over_traces: float  # mean of the traces' own nats per token: every trace weighs the same, however long
    tokens: int  # response tokens, EOS included
    traces: int
    per_trace: pd.DataFrame


def generalization_loss(
    model: PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase | None,
    traces: Sequence[Trace],
    *,
    template: str = "auto",
    batch_tokens: int = 16384,
    chunk_tokens: int = 1024,
    progress: bool = True,
) -> GeneralizationLoss:
    """Negative log-likelihood per response token of `traces` under `model`.

    `model` is a causal language model, on any device and in any dtype, or a path or hub id; with a path, `tokenizer`
    may be None and is then loaded from there. `template` is that of `prompts.render`. A batch holds traces of similar
    length, up to `batch_tokens` including padding; `chunk_tokens` bounds how many positions' logits exist at once.
    Neither changes the result beyond rounding.

    Raises ParameterError where there are no traces, where any exceeds the model's context, where the tokenizer has more
    tokens than the model, and for a model whose logits are not simply its head's output.
    """
    for name, value in (("batch_tokens", batch_tokens), ("chunk_tokens", chunk_tokens)):
        if value < 1:
            raise ParameterError(f"{name} must be at least 1, not {value}")
    if not traces:
        raise ParameterError("traces is empty: the loss needs at least one held-out trace")
    if isinstance(model, str) or hasattr(model, "__fspath__"):
        model, tokenizer = _load(str(model), tokenizer)
    if tokenizer is None:
        raise ParameterError("tokenizer may be None only where model is a path or hub id")
    sequences = [_encode(trace, tokenizer, resolve_template(tokenizer, template)) for trace in traces]
    _check_sequences(sequences, model)

    was_training = model.training
    model.eval()
    try:
        sums = _summed_losses(model, sequences, batch_tokens, chunk_tokens, progress)
    finally:
        model.train(was_training)
    return _summarise(traces, sums, np.array([len(sequence.response) for sequence in sequences]))


@dataclass(frozen=True)
class _Sequence:
    prompt: tuple[int, ...]
    response: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def _load(path: str, tokenizer: PreTrainedTokenizerBase | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    except (OSError, ValueError) as error:
        raise ParameterError(f"model={path!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def _encode(trace: Trace, tokenizer: PreTrainedTokenizerBase, template: str) -> _Sequence:
    return _Sequence(render(trace.question, tokenizer, template).token_ids, response_ids(tokenizer, trace.response))


def _check_sequences(sequences: Sequence[_Sequence], model: PreTrainedModel) -> None:
    if any(not sequence.prompt for sequence in sequences):
        raise ParameterError("a prompt has no tokens, so nothing predicts the first response token")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    lengths = [len(sequence) for sequence in sequences]
    if context is not None and max(lengths) > context:
        too_long = sum(length > context for length in lengths)
        raise ParameterError(
            f"traces: {too_long} of {len(lengths)} are longer than the model's context of {context} tokens "
            f"(the longest has {max(lengths)}); leave them out, since a cut trace has another loss"
        )
    largest = max(max(*sequence.prompt, *sequence.response) for sequence in sequences)
    entries = model.get_input_embeddings().weight.shape[0]
    if largest >= entries:
        raise ParameterError(f"tokenizer gives the token id {largest}, but the model has {entries} embeddings")


def _batches(sequences: Sequence[_Sequence], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of sequences, longest first so that memory peaks at once, `batch_tokens` a batch at most, padded."""
    batch: list[int] = []
    for index in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
        if batch and (len(batch) + 1) * len(sequences[batch[0]]) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    yield batch


def _summed_losses(
    model: PreTrainedModel, sequences: Sequence[_Sequence], batch_tokens: int, chunk_tokens: int, progress: bool
) -> np.ndarray:
    """Summed loss of each sequence's response, in nats, float64 (sequences,)."""
    import torch
    from tqdm import tqdm

    body, head = model.get_decoder(), model.get_output_embeddings()
    sums = np.zeros(len(sequences))
    total = sum(len(sequence) for sequence in sequences)
    with (
        torch.inference_mode(),
        tqdm(
            total=total, desc="generalization loss", unit="tok", unit_scale=True, delay=3, disable=not progress
        ) as bar,
    ):
        _check_head(model, body, head, sequences[0])
        for batch in _batches(sequences, batch_tokens):
            members = [sequences[index] for index in batch]
            input_ids = torch.zeros(len(batch), max(map(len, members)), dtype=torch.long)
            for row, member in enumerate(members):
                input_ids[row, : len(member)] = torch.tensor(member.prompt + member.response)
            # Padding stands on the right, where a causal model's earlier positions cannot see it: no mask is needed,
            # and without one attention takes its fastest kernel.
            hidden = body(input_ids=input_ids.to(model.device), use_cache=False).last_hidden_state
            # The position before a response token predicts it.
            rows = torch.tensor([row for row, member in enumerate(members) for _ in member.response])
            columns = torch.cat(
                [torch.arange(len(member.prompt) - 1, len(member) - 1, dtype=torch.long) for member in members]
            )
            targets = input_ids[rows, columns + 1].to(model.device)
            hidden = hidden[rows.to(model.device), columns.to(model.device)]
            losses = torch.cat(
                [
                    _token_losses(head(chunk), target)
                    for chunk, target in zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
                ]
            )
            sums[batch] = np.bincount(rows.numpy(), weights=losses.double().cpu().numpy(), minlength=len(batch))
            bar.update(sum(map(len, members)))
    return sums


def _token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log softmax(logits)[target] in float32; float32 logits (tokens, vocabulary) are overwritten, not copied."""
    logits = logits.float()
    chosen = logits.gather(1, targets[:, None])[:, 0]
    peak = logits.amax(1)
    return logits.sub_(peak[:, None]).exp_().sum(1).log_().add_(peak - chosen)


def _check_head(model: PreTrainedModel, body: torch.nn.Module, head: torch.nn.Module, sequence: _Sequence) -> None:
    """Some models scale or cap their logits after the head; those would get a wrong loss here, so they are refused."""
    import torch

    input_ids = torch.tensor([(sequence.prompt + sequence.response)[:8]], device=model.device)
    own = model(input_ids=input_ids, use_cache=False).logits.float()
    ours = head(body(input_ids=input_ids, use_cache=False).last_hidden_state).float()
    if own.shape != ours.shape or (own - ours).abs().max() > 1e-3 * own.abs().max():
        raise ParameterError(
            f"model: {type(model).__name__} changes its logits after the head (it scales or caps them), "
            "which the chunked loss does not reproduce"
        )


def _summarise(traces: Sequence[Trace], sums: np.ndarray, tokens: np.ndarray) -> GeneralizationLoss:
    import pandas as pd

    undefined = int(np.isnan(sums).sum())
    if undefined:
        raise ParameterError(f"model gives {undefined} of {len(sums)} traces a loss that is not a number")
    count, total = len(sums), int(tokens.sum())
    nll = float(sums.sum() / total)
    residuals = sums - nll * tokens
    error = math.sqrt(count / (count - 1) * float(residuals @ residuals)) / total if count > 1 else math.nan
    frame = pd.DataFrame(
        {
            "id": [trace.id for trace in traces],
            "problem_id": [trace.problem_id for trace in traces],
            "tokens": tokens,
            "nll": sums / tokens,
        }
    )
    return GeneralizationLoss(nll, error, float(frame["nll"].mean()), total, count, frame)
