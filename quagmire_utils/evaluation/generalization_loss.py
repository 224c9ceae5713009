"""Generalization loss: negative log-likelihood per response token of held-out worked solutions.

Implements the predictor of Sec. 3.1: after SFT, the loss on validation examples (traces whose problems were not trained
on) predicts what RL can still gain. In nats per response token; prompt tokens do not count, the closing EOS does.

    loss = generalization_loss(EngineConfig(model="path/or/hub-id"), None, load_traces("validation.jsonl"))
    print(loss.nll, "+-", loss.standard_error, "nats over", loss.tokens, "tokens of", loss.traces, "traces")

With s_i the summed loss and n_i the response tokens of trace i of m, the loss is the ratio R = sum(s) / sum(n), a mean
over tokens. Traces, not tokens, were sampled, so its standard error comes from the traces' residuals:

    SE(R) = sqrt( m / (m - 1) * sum_i (s_i - R n_i)^2 ) / sum(n)

At evaluation, a language model needs most memory for its logits, length x vocabulary: 1.2 GB in float32 for a trace of
2,000 tokens and 150,000 entries. So the body of the model runs on whole traces, and its head on `chunk_tokens` response
positions at a time, whose logits are reduced, in float32, before the next chunk.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
    import pandas as pd
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOSSES = "losses.json"  # in the folder of an evaluation
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


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """A prompt and its response, as the model reads them."""

    ids: np.ndarray  # int32 (tokens,); in a tuple, a token takes ten times the memory
    prompt: int  # how many of them belong to the prompt

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def response(self) -> int:
        """Tokens of the response, EOS included."""
        return len(self.ids) - self.prompt


def generalization_loss(
    model: EngineConfig | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    traces: Sequence[Trace],
    *,
    template: str = "auto",
    batch_tokens: int = 16384,
    chunk_tokens: int = 1024,
    drop_too_long: bool = False,
    partial: str | Path | None = None,
    progress: bool = True,
) -> GeneralizationLoss:
    """Return the negative log-likelihood per response token of `traces` under a causal language model.

    `model`: the configuration to load it by (`tokenizer` None: the model's own; `template` is the configuration's), or
    a loaded model, on any device and in any dtype. A batch holds traces of similar length, up to `batch_tokens` with
    padding; `chunk_tokens` is how many positions have logits, in float32, at a time. Neither changes the result beyond
    rounding.

    `drop_too_long`: leave out, and count, traces longer than the model's context. `partial`: a parquet file of the
    losses of single traces, written every half minute; a killed computation started again with it computes only the
    batches that are missing, and gives the same bits as an unbroken one.

    Raise ParameterError, before any weight is read if possible, for no traces, a blank question or response, a trace
    longer than the context, a tokenizer with more tokens than the model, a damaged `partial`, and for a model whose
    logits are not simply the output of its head.
    """
    from tqdm import tqdm

    if not traces:
        raise ParameterError("traces", reason="the loss needs at least one held-out trace")
    for name, value in (("batch_tokens", batch_tokens), ("chunk_tokens", chunk_tokens)):
        if value < 1:
            raise ParameterError(name, value, "at least 1")
    origin = ""
    if isinstance(model, EngineConfig):
        how = (model.model, model.revision, model.trust_remote_code)
        config = load_config(*how)
        entries = config.get_text_config().vocab_size
        tokenizer, template = tokenizer or load_tokenizer(*how), model.template
        if partial is not None:
            dtype = resolve_dtype(config, model.dtype, resolve_device(model.device))
            origin = f"{model_digest(model.model, model.revision)} {dtype}"
    elif tokenizer is None or partial is not None:
        name = "tokenizer" if tokenizer is None else "partial"
        raise ParameterError(name, reason="with a loaded model, give a tokenizer and no partial")
    else:
        config, entries = model.config, model.get_input_embeddings().weight.shape[0]

    sequences = encode(traces, tokenizer, template, progress)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    kept = _fitting(sequences, traces, context, drop_too_long)
    traces, sequences, dropped = [traces[i] for i in kept], [sequences[i] for i in kept], len(traces) - len(kept)
    largest = max(int(sequence.ids.max()) for sequence in sequences)
    if largest >= entries:
        reason = f"it gives the token id {largest}, but the model has {entries} embeddings"
        raise ParameterError("tokenizer", largest, reason=reason)
    keys = [_key(sequence, origin) for sequence in sequences]
    known = _read_known(partial)
    first = {key: i for i, key in reversed(list(enumerate(keys)))}  # equal traces are scored once
    batches = plan_batches(sequences, sorted(first.values()), batch_tokens)
    batches = [batch for batch in batches if any(keys[i] not in known for i in batch)]
    if batches:
        loaded = load_model(model) if isinstance(model, EngineConfig) else model
        total = sum(len(sequences[i]) for batch in batches for i in batch)
        shown = {"desc": "generalization loss", "unit": "tok", "unit_scale": True, "delay": 3, "disable": not progress}
        training, written = loaded.training, time.monotonic()
        loaded.eval()
        try:
            scorer = Scorer(loaded, chunk_tokens, sequences[0])
            with tqdm(total=total, **shown) as bar:
                for batch in batches:
                    sums = scorer.score([sequences[i] for i in batch])
                    known.update(zip((keys[i] for i in batch), sums.tolist(), strict=True))
                    bar.update(sum(len(sequences[i]) for i in batch))
                    if partial is not None and time.monotonic() - written >= WRITE_SECONDS:
                        _write_known(known, partial)
                        written = time.monotonic()
        finally:
            loaded.train(training)
            if partial is not None:
                _write_known(known, partial)
    sums = np.array([known[key] for key in keys])
    return _summarise(traces, sums, np.array([sequence.response for sequence in sequences]), dropped)


def _summarise(traces: Sequence[Trace], sums: np.ndarray, tokens: np.ndarray, dropped: int) -> GeneralizationLoss:
    """Return the loss from summed losses in nats and response tokens, each (traces,)."""
    import pandas as pd

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


# --- losses of single traces in a file --------------------------------------------------------------------------------


def _key(sequence: TokenSequence, origin: str) -> str:
    """Return a digest of what the loss of a sequence depends on: its tokens, the model and its dtype (`origin`)."""
    hashed = hashlib.blake2b(sequence.ids.tobytes(), digest_size=16, key=str(sequence.prompt).encode())
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
    import pandas as pd

    write_parquet(pd.DataFrame({"key": list(known), "loss": list(known.values())}), partial)


# --- traces as token ids, and their batches ---------------------------------------------------------------------------


def encode(
    traces: Sequence[Trace], tokenizer: PreTrainedTokenizerBase, template: str, progress: bool
) -> list[TokenSequence]:
    """Return prompt and response ids of each trace; raise ParameterError for a blank question or response."""
    from tqdm import tqdm

    template = resolve_template(tokenizer, template)
    prompts: dict[str, RenderedPrompt] = {}  # by question: several traces may answer one
    sequences = []
    for trace in tqdm(traces, desc="tokenising", unit="trace", delay=3, disable=not progress):
        for part in ("question", "response"):
            if not getattr(trace, part).strip():
                raise ParameterError("traces", trace.id, reason=f"{trace.id} has an empty {part}")
        if trace.question not in prompts:
            prompts[trace.question] = render(trace.question, tokenizer, template)
        prompt = prompts[trace.question]
        ids = np.array((*prompt.token_ids, *response_ids(tokenizer, trace.response, prompt)), dtype=np.int32)
        sequences.append(TokenSequence(ids, len(prompt.token_ids)))
    return sequences


def _fitting(sequences: Sequence[TokenSequence], traces: Sequence[Trace], context: int | None, drop: bool) -> list[int]:
    """Return the indices of the sequences that fit into the context; raise ParameterError for others unless `drop`."""
    kept = [i for i, sequence in enumerate(sequences) if context is None or len(sequence) <= context]
    if len(kept) < len(sequences) and not (drop and kept):
        longest = max(range(len(sequences)), key=lambda i: len(sequences[i]))
        reason = f"{len(sequences) - len(kept)} of {len(sequences)} are longer than the model's context of {context} "
        reason += f"tokens (the longest, {traces[longest].id}, has {len(sequences[longest])}); leave them out"
        raise ParameterError("traces", traces[longest].id, reason=reason)
    return kept


def plan_batches(sequences: Sequence[TokenSequence], indices: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Return batches of the sequences at `indices`, longest first, so that memory use peaks at once.

    A batch holds sequences of similar length, `batch_tokens` with padding at most; a longer sequence is a batch of its
    own.
    """
    batches: list[list[int]] = []
    for index in sorted(indices, key=lambda i: -len(sequences[i])):
        batch = batches[-1] if batches else []
        if not batch or (len(batch) + 1) * len(sequences[batch[0]]) > batch_tokens:
            batches.append(batch := [])
        batch.append(index)
    return batches


# --- the loss of a batch ----------------------------------------------------------------------------------------------


def load_model(config: EngineConfig) -> PreTrainedModel:
    """Return the model of a configuration, on its device."""
    from quagmire_utils.engines.transformers import load_weights

    loaded = load_config(config.model, config.revision, config.trust_remote_code)
    return load_weights(config, resolve_dtype(loaded, config.dtype, resolve_device(config.device)))


class Scorer:
    """A model in evaluation mode that scores batches."""

    def __init__(self, model: PreTrainedModel, chunk_tokens: int, probe: TokenSequence) -> None:
        """Try the model on `probe`; raise ParameterError if its logits are not simply the output of its head."""
        self.model, self.chunk_tokens = model, chunk_tokens
        self.body, self.head = model.get_decoder(), model.get_output_embeddings()
        self._check_head(probe)

    def score(self, batch: Sequence[TokenSequence]) -> np.ndarray:
        """Return the summed loss of each response in nats, float64 (sequences,)."""
        import torch

        try:
            with torch.inference_mode():
                return self._score(batch)
        except torch.OutOfMemoryError as error:
            reason = f"a batch of {sum(map(len, batch))} tokens does not fit into memory; lower it, or chunk_tokens"
            raise ParameterError("batch_tokens", reason=reason) from error

    def _score(self, batch: Sequence[TokenSequence]) -> np.ndarray:
        import torch

        # Padding is on the right, where a causal model's earlier positions cannot see it, so no mask is needed and
        # attention takes its fastest kernel.
        input_ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
        for row, sequence in enumerate(batch):
            input_ids[row, : len(sequence)] = torch.from_numpy(sequence.ids)
        device = self.model.device
        hidden = self.body(input_ids=input_ids.to(device), use_cache=False).last_hidden_state
        owner = torch.repeat_interleave(torch.tensor([sequence.response for sequence in batch]))
        # the position before a response token predicts it
        columns = torch.cat([torch.arange(s.prompt - 1, len(s) - 1, dtype=torch.long) for s in batch])
        targets = input_ids[owner, columns + 1].to(device)
        losses = torch.cat(list(self._token_losses(hidden[owner.to(device), columns.to(device)], targets)))
        return np.bincount(owner.numpy(), weights=losses.double().cpu().numpy(), minlength=len(batch))

    def _token_losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield float32 losses from the hidden states that predict `targets`, chunk by chunk."""
        import torch

        chunks = zip(hidden.split(self.chunk_tokens), targets.split(self.chunk_tokens), strict=True)
        if not self._plain_head_on_cpu():
            yield from (token_losses(self.head(chunk), target) for chunk, target in chunks)
            return
        # the same product into reused memory: allocating pages for each chunk would take a third of the time
        weight = self.head.weight
        logits = hidden.new_empty(min(self.chunk_tokens, len(hidden)), len(weight))
        floats = logits if logits.dtype == torch.float32 else logits.float()
        for chunk, target in chunks:
            rows = slice(len(chunk))
            torch.mm(chunk, weight.t(), out=logits[rows])
            if floats is not logits:
                floats[rows].copy_(logits[rows])
            yield token_losses(floats[rows], target)

    def _plain_head_on_cpu(self) -> bool:
        """Return whether the head is only a matrix (not quantised, adapted or offloaded)."""
        import torch

        head = self.head
        return (
            self.model.device.type == "cpu"
            and type(head) is torch.nn.Linear
            and head.bias is None
            and head.weight.dtype == self.model.dtype
            and not (head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head))
        )

    def _check_head(self, sequence: TokenSequence) -> None:
        """Raise ParameterError for a model that scales or caps its logits, whose loss would be wrong here."""
        import torch

        with torch.inference_mode():
            ids = torch.from_numpy(sequence.ids[:8].astype(np.int64))[None].to(self.model.device)
            own = self.model(input_ids=ids, use_cache=False).logits.float()
            ours = self.head(self.body(input_ids=ids, use_cache=False).last_hidden_state).float()
        if own.shape != ours.shape or (own - ours).abs().max() > 1e-3 * own.abs().max():
            name = type(self.model).__name__
            raise ParameterError("model", name, reason=f"{name} scales or caps its logits, which is not supported")


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return -log softmax(logits)[target] in float32; float32 logits (tokens, vocabulary) are overwritten."""
    logits = logits.float()
    chosen = logits.gather(1, targets[:, None])[:, 0]
    peak = logits.amax(1)
    return logits.sub_(peak[:, None]).exp_().sum(1).log_().add_(peak - chosen)
