"""The loss of batches of token sequences, on one device.

At evaluation, a language model needs most memory for its logits, length x vocabulary: 1.2 GB in float32 for a trace of
2,000 tokens and 150,000 entries. So the body of the model runs on whole traces, and its head on `chunk_tokens` response
positions at a time, whose logits are reduced, in float32, before the next chunk.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.engines import EngineConfig, load_config, resolve_device, resolve_dtype
from quagmire_utils.evaluation.generalization_loss.sequences import TokenSequence
from quagmire_utils.evaluation.generalization_loss.summary import COLUMNS, position_bin_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load_model(config: EngineConfig) -> PreTrainedModel:
    """Return the model of a configuration, on its device."""
    from quagmire_utils.engines.transformers import load_weights

    where = config.model, config.revision, config.trust_remote_code
    return load_weights(config, resolve_dtype(load_config(*where), config.dtype, resolve_device(config.device)))


def score_here(
    model: PreTrainedModel | EngineConfig,
    chunk_tokens: int,
    probe: TokenSequence,
    batches: Sequence[Sequence[TokenSequence]],
) -> Generator[tuple[int, np.ndarray]]:
    """Yield the number of each batch and its `Scorer.score`; a loaded model is in evaluation mode meanwhile."""
    loaded = load_model(model) if isinstance(model, EngineConfig) else model
    training = loaded.training
    loaded.eval()
    try:
        scorer = Scorer(loaded, chunk_tokens, probe)
        for number, batch in enumerate(batches):
            yield number, scorer.score(batch)
    finally:
        loaded.train(training)


class Scorer:
    """A model in evaluation mode that scores batches."""

    def __init__(self, model: PreTrainedModel, chunk_tokens: int, probe: TokenSequence) -> None:
        """Try the model on `probe`; raise ParameterError if its logits are not simply the output of its head."""
        self.model, self.chunk_tokens = model, chunk_tokens
        self.body, self.head = model.get_decoder(), model.get_output_embeddings()
        self._check_head(probe)

    def score(self, batch: Sequence[TokenSequence]) -> np.ndarray:
        """Return summed losses in nats, float64 (sequences, COLUMNS): of the response and its ranges."""
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
        lengths = [sequence.response for sequence in batch]
        owner = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor(lengths))
        # the position before a response token predicts it
        columns = torch.cat([torch.arange(s.prompt - 1, len(s) - 1, dtype=torch.long) for s in batch])
        targets = input_ids[owner, columns + 1].to(device)
        losses = self._token_losses(hidden[owner.to(device), columns.to(device)], targets)
        return _by_part(losses.double().cpu().numpy(), owner.numpy(), np.array(lengths))

    def _token_losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return float32 (tokens,) from the hidden states that predict `targets`, chunk by chunk."""
        import torch

        chunks = zip(hidden.split(self.chunk_tokens), targets.split(self.chunk_tokens), strict=True)
        if not self._plain_head_on_cpu():
            return torch.cat([token_losses(self.head(chunk), target) for chunk, target in chunks])
        # the same product into reused memory: allocating pages for each chunk would take a third of the time
        weight = self.head.weight
        logits = hidden.new_empty(min(self.chunk_tokens, len(hidden)), len(weight))
        floats = logits if logits.dtype == torch.float32 else logits.float()
        losses = []
        for chunk, target in chunks:
            rows = slice(len(chunk))
            torch.mm(chunk, weight.t(), out=logits[rows])
            if floats is not logits:
                floats[rows].copy_(logits[rows])
            losses.append(token_losses(floats[rows], target))
        return torch.cat(losses)

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


def _by_part(losses: np.ndarray, owner: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Sum token losses (tokens,) of the sequences `owner` (tokens,) by sequence and range: (sequences, COLUMNS)."""
    position = np.concatenate([np.arange(length) for length in lengths])
    total = np.bincount(owner, weights=losses, minlength=len(lengths))
    part = owner * COLUMNS + 1 + position_bin_of(position)
    sums = np.bincount(part, weights=losses, minlength=len(lengths) * COLUMNS).reshape(len(lengths), COLUMNS)
    sums[:, 0] = total
    return sums
