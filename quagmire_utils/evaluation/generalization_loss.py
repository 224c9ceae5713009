"""Generalization loss: negative log-likelihood per response token of held-out worked solutions.

Implements the predictor of Sec. 3.1: after SFT, the loss on validation examples (traces whose problems were not trained
on) predicts what RL can still gain. In nats per response token; prompt tokens do not count, the closing EOS does.

    loss = generalization_loss(EngineConfig(model="path/or/hub-id"), load_traces("validation.jsonl"))
    print(loss.nll, "+-", loss.standard_error, "nats over", loss.tokens, "tokens of", loss.traces, "traces")

With s_i the summed loss and n_i the response tokens of trace i of m, the loss is the ratio R = sum(s) / sum(n), a mean
over tokens. Traces, not tokens, were sampled, so its standard error comes from the traces' residuals:

    SE(R) = sqrt( m / (m - 1) * sum_i (s_i - R n_i)^2 ) / sum(n)

At evaluation, a language model needs most memory for its logits, length x vocabulary: 1.2 GB in float32 for a trace of
2,000 tokens and 150,000 entries. So the body of the model runs on whole traces, and its head on `CHUNK_TOKENS` response
positions at a time, whose logits are reduced, in float32, before the next chunk.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import digest, read_json, read_parquet, write_json, write_parquet
from quagmire_utils.data import Trace
from quagmire_utils.data.prompts import RenderedPrompt, render, resolve_template, response_ids
from quagmire_utils.engines import (
    EngineConfig,
    load_config,
    load_tokenizer,
    model_digest,
    resolve_device,
    resolve_dtype,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOSSES = "losses.json"  # in the folder of an evaluation
BATCH_TOKENS = 16_384  # of a batch, padding included; neither this nor the next changes the loss beyond rounding
CHUNK_TOKENS = 1024  # positions that have logits at a time
WRITE_SECONDS = 30.0  # between two writes of the partial losses: the most that a kill loses


@dataclass(frozen=True, eq=False)
class GeneralizationLoss:
    """Loss over a set of traces; `per_trace` has one row per trace, in the order given: id, problem_id, tokens, nll."""

    nll: float  # nats per response token, mean over all response tokens
    standard_error: float  # of `nll`, over traces; NaN for a single trace
    mean_over_traces: float  # mean of the traces' nats per token: every trace weighs the same, however long
    tokens: int  # response tokens, EOS included
    traces: int
    per_trace: pd.DataFrame
    dropped: int  # traces left out, because they are longer than the model's context


class Encoded(NamedTuple):
    """A prompt and its response, as the model reads them."""

    ids: np.ndarray  # int32 (tokens,); in a tuple, a token takes ten times the memory
    prompt: int  # how many of them belong to the prompt


def generalization_loss(
    config: EngineConfig,
    traces: Sequence[Trace],
    *,
    drop_too_long: bool = False,
    partial: str | Path | None = None,
    progress: bool = True,
) -> GeneralizationLoss:
    """Return the negative log-likelihood per response token of `traces` under a causal language model.

    `drop_too_long`: leave out, and count, traces longer than the model's context. `partial`: a parquet file of the
    losses of single traces, written every half minute; a killed computation started again with it computes only the
    batches that are missing, and gives the same bits as an unbroken one.

    Raise ParameterError, before any weight is read if possible, for no traces, a blank question or response, a trace
    longer than the context, a tokenizer with more tokens than the model, a damaged `partial`, and for a model whose
    logits are not simply the output of its head.
    """
    from tqdm import tqdm

    from quagmire_utils.engines.transformers import load_weights

    how = (config.model, config.revision, config.trust_remote_code)
    model_config = load_config(*how)
    dtype = resolve_dtype(model_config, config.dtype, resolve_device(config.device))
    text_config = model_config.get_text_config()
    encoded = encode(traces, load_tokenizer(*how), config.template, progress)
    kept = _fitting(encoded, traces, getattr(text_config, "max_position_embeddings", None), drop_too_long)
    traces, encoded, dropped = [traces[i] for i in kept], [encoded[i] for i in kept], len(traces) - len(kept)
    largest, entries = max(int(ids.max()) for ids, _ in encoded), text_config.vocab_size
    if largest >= entries:
        reason = f"it gives the token id {largest}, but the model has {entries} embeddings"
        raise ParameterError("tokenizer", largest, reason=reason)
    origin = "" if partial is None else f"{model_digest(config.model, config.revision)} {dtype}"
    keys, known = [_key(*one, origin) for one in encoded], _read_known(partial)
    first = {key: i for i, key in reversed(list(enumerate(keys)))}  # equal traces are scored once
    batches = plan_batches({i: encoded[i].ids.size for i in sorted(first.values())}, BATCH_TOKENS)
    batches = [batch for batch in batches if any(keys[i] not in known for i in batch)]
    if batches:
        model = load_weights(config, dtype).eval()
        _check_head(model, encoded[0])
        total = sum(encoded[i].ids.size for batch in batches for i in batch)
        shown = {"desc": "generalization loss", "unit": "tok", "unit_scale": True, "delay": 3, "disable": not progress}
        written = time.monotonic()
        try:
            with tqdm(total=total, **shown) as bar:
                for batch in batches:
                    sums = score(model, [encoded[i] for i in batch])
                    known.update(zip((keys[i] for i in batch), sums.tolist(), strict=True))
                    bar.update(sum(encoded[i].ids.size for i in batch))
                    if partial is not None and time.monotonic() - written >= WRITE_SECONDS:
                        _write_known(known, partial)
                        written = time.monotonic()
        finally:
            if partial is not None:
                _write_known(known, partial)
    tokens = np.array([ids.size - prompt for ids, prompt in encoded])
    return _summarise(traces, np.array([known[key] for key in keys]), tokens, dropped)


def _summarise(traces: Sequence[Trace], sums: np.ndarray, tokens: np.ndarray, dropped: int) -> GeneralizationLoss:
    """Return the loss from summed losses in nats and response tokens, each (traces,)."""
    undefined = int(np.isnan(sums).sum())
    if undefined:
        raise ParameterError("model", reason=f"the loss of {undefined} of {len(sums)} traces is not a number")
    count, total = len(sums), int(tokens.sum())
    nll = float(sums.sum() / total)
    residuals = sums - nll * tokens
    ids = {name: [getattr(trace, name) for trace in traces] for name in ("id", "problem_id")}
    return GeneralizationLoss(
        nll=nll,
        standard_error=math.sqrt(count / (count - 1) * float(residuals @ residuals)) / total if count > 1 else math.nan,
        mean_over_traces=float((sums / tokens).mean()),
        tokens=total,
        traces=count,
        per_trace=pd.DataFrame({**ids, "tokens": tokens, "nll": sums / tokens}),
        dropped=dropped,
    )


# --- traces as token ids, and their batches ---------------------------------------------------------------------------


def encode(traces: Sequence[Trace], tokenizer: PreTrainedTokenizerBase, template: str, progress: bool) -> list[Encoded]:
    """Return prompt and response ids of each trace; raise ParameterError for none, and for what cannot be rendered."""
    from tqdm import tqdm

    if not traces:
        raise ParameterError("traces", reason="the loss needs at least one held-out trace")
    template = resolve_template(tokenizer, template)
    prompts: dict[str, RenderedPrompt] = {}  # by question: several traces may answer one
    encoded = []
    for trace in tqdm(traces, desc="tokenising", unit="trace", delay=3, disable=not progress):
        if trace.question not in prompts:
            prompts[trace.question] = render(trace.question, tokenizer, template)
        prompt = prompts[trace.question]
        ids = np.array((*prompt.token_ids, *response_ids(tokenizer, trace.response, prompt)), dtype=np.int32)
        encoded.append(Encoded(ids, len(prompt.token_ids)))
    return encoded


def _fitting(encoded: Sequence[Encoded], traces: Sequence[Trace], context: int | None, drop: bool) -> list[int]:
    """Return the indices of the traces that fit into the context; raise ParameterError for others unless `drop`."""
    kept = [i for i, (ids, _) in enumerate(encoded) if context is None or ids.size <= context]
    if len(kept) < len(encoded) and not (drop and kept):
        longest = max(range(len(encoded)), key=lambda i: encoded[i].ids.size)
        reason = f"{len(encoded) - len(kept)} of {len(encoded)} are longer than the model's context of {context} "
        reason += f"tokens (the longest, {traces[longest].id}, has {encoded[longest].ids.size}); leave them out"
        raise ParameterError("traces", traces[longest].id, reason=reason)
    return kept


def plan_batches(lengths: Mapping[int, int], most: int) -> list[list[int]]:
    """Return the keys of `lengths` in batches of similar lengths, longest first, so that memory use peaks at once.

    A batch takes `most` with padding; what is longer is a batch of its own.
    """
    batches: list[list[int]] = []
    for key in sorted(lengths, key=lambda key: -lengths[key]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > most:
            batches.append([])
        batches[-1].append(key)
    return batches


# --- the loss of a batch ----------------------------------------------------------------------------------------------


def score(model: PreTrainedModel, batch: Sequence[Encoded]) -> np.ndarray:
    """Return the summed loss of each response in nats, float64 (traces,)."""
    import torch

    # Padding is on the right, where a causal model's earlier positions cannot see it, so no mask is needed and
    # attention takes its fastest kernel.
    input_ids = torch.zeros(len(batch), max(ids.size for ids, _ in batch), dtype=torch.long)
    for row, (ids, _) in enumerate(batch):
        input_ids[row, : ids.size] = torch.from_numpy(ids)
    owner = torch.repeat_interleave(torch.tensor([ids.size - prompt for ids, prompt in batch]))
    # the position before a response token predicts it
    columns = torch.cat([torch.arange(prompt - 1, ids.size - 1) for ids, prompt in batch])
    targets, device = input_ids[owner, columns + 1].to(model.device), model.device
    with torch.inference_mode():
        hidden = model.get_decoder()(input_ids=input_ids.to(device), use_cache=False).last_hidden_state
        chosen = hidden[owner.to(device), columns.to(device)]
        losses = torch.cat(list(_token_losses(model.get_output_embeddings(), chosen, targets)))
    return np.bincount(owner.numpy(), weights=losses.double().cpu().numpy(), minlength=len(batch))


def _token_losses(head: torch.nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield -log softmax(head(hidden))[target] in float32, chunk by chunk."""
    import torch

    # a product into reused memory: on a CPU, allocating pages for each chunk would take a third of the time
    plain = type(head) is torch.nn.Linear and head.bias is None and head.weight.dtype == hidden.dtype
    space = hidden.new_empty(min(CHUNK_TOKENS, len(hidden)), len(head.weight)) if plain else None
    for chunk, target in zip(hidden.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True):
        logits = head(chunk) if space is None else torch.mm(chunk, head.weight.t(), out=space[: len(chunk)])
        logits = logits.float()  # which is overwritten
        own, peak = logits.gather(1, target[:, None])[:, 0], logits.amax(1)
        yield logits.sub_(peak[:, None]).exp_().sum(1).log_().add_(peak - own)


def _check_head(model: PreTrainedModel, probe: Encoded) -> None:
    """Raise ParameterError for a model that scales or caps its logits, whose loss would be wrong here."""
    import torch

    with torch.inference_mode():
        ids = torch.from_numpy(probe.ids[:8].astype(np.int64))[None].to(model.device)
        own = model(input_ids=ids, use_cache=False).logits.float()
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        ours = model.get_output_embeddings()(hidden).float()
    if own.shape != ours.shape or (own - ours).abs().max() > 1e-3 * own.abs().max():
        name = type(model).__name__
        raise ParameterError("model", name, reason=f"{name} scales or caps its logits, which is not supported")


# --- losses in files --------------------------------------------------------------------------------------------------


def _key(ids: np.ndarray, prompt: int, origin: str) -> str:
    """Return a digest of what the loss of a trace depends on: its tokens, the model and its dtype (`origin`)."""
    hashed = hashlib.blake2b(ids.tobytes(), digest_size=16, key=str(prompt).encode())
    hashed.update(origin.encode())
    return hashed.hexdigest()


def _read_known(partial: str | Path | None) -> dict[str, float]:
    if partial is None or not Path(partial).exists():
        return {}
    try:
        frame = read_parquet(partial, ["key", "loss"])
        return dict(zip(frame["key"], frame["loss"], strict=True))
    except (OSError, ValueError, KeyError) as error:
        reason = f"{partial} is damaged, or not a file of losses; delete it, or name another file"
        raise ParameterError("partial", partial, reason=reason) from error


def _write_known(known: dict[str, float], partial: str | Path) -> None:
    write_parquet(pd.DataFrame({"key": list(known), "loss": list(known.values())}), partial)


def write_losses(losses: Mapping[str, GeneralizationLoss], traces: Mapping[str, Sequence[Trace]], folder: Path) -> None:
    """Add losses by validation set to those in the folder of an evaluation, for `quagmire rank`.

    `traces` tells whether two losses compare: a digest of the traces given, how many fitted, and their tokens.
    """
    kept = read_losses(folder)
    for name, loss in losses.items():
        texts = [[trace.question, trace.response] for trace in traces[name]]
        facts = {"nll": loss.nll, "standard_error": loss.standard_error}
        kept[name] = facts | {"traces": [digest(texts), loss.traces, loss.tokens]}
    write_json(kept, folder / LOSSES)


def read_losses(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what `write_losses` kept: nll, standard_error and traces by validation set.

    Raise ParameterError for a file that is damaged.
    """
    file = folder / LOSSES
    try:
        kept = read_json(file) if file.is_file() else {}
        good = all(
            0 <= loss["nll"] < math.inf and loss["traces"] and "standard_error" in loss for loss in kept.values()
        )
    except (ValueError, TypeError, AttributeError, KeyError):
        good = False
    if not good:
        raise ParameterError(LOSSES, reason=f"{file} is damaged; delete it, and evaluate again to measure the loss")
    return kept
