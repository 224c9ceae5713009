"""The loss of whole batches of token sequences, on one device.

A language model's memory at evaluation goes into logits: length x vocabulary, 1.2 GB in float32 for one trace of
2,000 tokens over 150,000 entries. So the body of the model runs on whole traces, and its head on `chunk_tokens`
response positions at a time, whose logits are reduced, in float32, before the next chunk.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.evaluation.generalization_loss.sequences import TokenSequence
from quagmire_utils.evaluation.generalization_loss.summary import COLUMNS, decile_of, position_bin_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    Rows = list[list[TokenSequence]]  # what goes through the model at once

_PROBE_TOKENS = 64  # of each of two sequences, to see whether they can share a row


@dataclass(frozen=True)
class Checkpoint:
    """A causal language model to be loaded where it is needed."""

    model: str  # folder or hub id
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False

    def config(self) -> PreTrainedConfig:
        """Its configuration; ParameterError if there is none, or only together with code that isn't trusted."""
        from quagmire_utils.engines import load_config

        return load_config(self.model, self.revision, self.trust_remote_code)

    def load(self) -> PreTrainedModel:
        """The model, on its device."""
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ParameterError(f"device: {device} was asked for, and torch sees no GPU")
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            model = AutoModelForCausalLM.from_pretrained(
                self.model, revision=self.revision, dtype=self.dtype, trust_remote_code=self.trust_remote_code
            )
        except (OSError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ParameterError(f"model={self.model!r} cannot be loaded: {reason}") from error
        finally:
            if shown:
                logging.enable_progress_bar()
        return model.to(device)


class Scorer:
    """A model in evaluation mode that gives the losses of batches; a context manager, which restores the mode."""

    def __init__(
        self, model: PreTrainedModel, chunk_tokens: int, packing: bool, probe: Sequence[TokenSequence]
    ) -> None:
        """`probe`: some of the sequences, on which the model is tried out.

        Raises ParameterError for a model whose logits are not simply its head's output; warns, and does not pack, where
        a model lets sequences of one row see each other.
        """
        self.model, self.chunk_tokens = model, chunk_tokens
        self.body, self.head = model.get_decoder(), model.get_output_embeddings()
        self._was_training = model.training
        model.eval()
        try:
            self._check_head(probe[0])
            self.packing = self._packing(probe) if packing else "none"
        except BaseException:
            model.train(self._was_training)
            raise

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.model.train(self._was_training)

    def score_all(self, batches: Sequence[Rows]) -> Iterator[tuple[int, np.ndarray]]:
        """The number of each batch with its `score`."""
        for number, rows in enumerate(batches):
            yield number, self.score(rows)

    def score(self, rows: Rows) -> np.ndarray:
        """Summed losses in nats, float64 (sequences, COLUMNS): of the response, its tenths, its ranges of positions."""
        import torch

        try:
            with torch.inference_mode():
                return self._score(rows)
        except torch.OutOfMemoryError as error:
            raise ParameterError(
                f"batch_tokens: a batch of {sum(len(s) for row in rows for s in row)} tokens does not fit into the "
                "device's memory; lower it, or chunk_tokens"
            ) from error

    def _score(self, rows: Rows) -> np.ndarray:
        import torch

        members = [member for row in rows for member in row]
        hidden, input_ids, starts = self._hidden(rows)
        lengths = [member.response for member in members]
        owner = torch.repeat_interleave(torch.arange(len(members)), torch.tensor(lengths))
        row_of = torch.tensor([r for r, row in enumerate(rows) for _ in row])[owner]
        # The position before a response token predicts it.
        columns = torch.cat(
            [
                torch.arange(start + member.prompt - 1, start + len(member) - 1, dtype=torch.long)
                for start, member in zip(starts, members, strict=True)
            ]
        )
        device = self.model.device
        targets = input_ids[row_of, columns + 1].to(device)
        hidden = hidden[row_of.to(device), columns.to(device)]
        losses = self._token_losses(hidden, targets)
        return _by_part(losses.double().cpu().numpy(), owner.numpy(), np.array(lengths))

    def _token_losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Float32 (tokens,) from the hidden states that predict `targets`, chunk by chunk."""
        import torch

        chunks = zip(hidden.split(self.chunk_tokens), targets.split(self.chunk_tokens), strict=True)
        if not self._plain_head_on_cpu():
            return torch.cat([token_losses(self.head(chunk), target) for chunk, target in chunks])
        # The same product into memory that is used again: fresh pages for each chunk would take a third of the time.
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
        """Whether the head is a matrix and nothing more (a quantised, adapted or offloaded one is not)."""
        import torch

        head = self.head
        return (
            self.model.device.type == "cpu"
            and type(head) is torch.nn.Linear
            and head.bias is None
            and head.weight.dtype == self.model.dtype
            and not (head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head))
        )

    def _hidden(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Last hidden states and ids (rows, longest row, ...), and the column at which each sequence starts."""
        import torch

        width = max(sum(map(len, row)) for row in rows)
        input_ids = torch.zeros(len(rows), width, dtype=torch.long)
        positions = torch.zeros(len(rows), width, dtype=torch.long)
        starts = []
        for r, row in enumerate(rows):
            end = 0
            for member in row:
                starts.append(end)
                end += len(member)
                input_ids[r, starts[-1] : end] = torch.from_numpy(member.ids)
                positions[r, starts[-1] : end] = torch.arange(len(member))
            positions[r, end:] = torch.arange(width - end)
        # Padding stands on the right, where a causal model's earlier positions cannot see it: no mask is needed,
        # and without one attention takes its fastest kernel. Positions that start again are how transformers is told
        # that a row holds several sequences, none of which sees another.
        packed = {} if all(len(row) == 1 for row in rows) else {"position_ids": positions.to(self.model.device)}
        output = self.body(input_ids=input_ids.to(self.model.device), use_cache=False, **packed)
        return output.last_hidden_state, input_ids, starts

    def _check_head(self, sequence: TokenSequence) -> None:
        """Some models scale or cap their logits after the head; those would get a wrong loss here: they are refused."""
        import torch

        with torch.inference_mode():
            ids = torch.from_numpy(sequence.ids[:8].astype(np.int64))[None].to(self.model.device)
            own = self.model(input_ids=ids, use_cache=False).logits.float()
            ours = self.head(self.body(input_ids=ids, use_cache=False).last_hidden_state).float()
        if own.shape != ours.shape or (own - ours).abs().max() > 1e-3 * own.abs().max():
            raise ParameterError(
                f"model: {type(self.model).__name__} changes its logits after the head (it scales or caps them), "
                "which the chunked loss does not reproduce"
            )

    def _packing(self, probe: Sequence[TokenSequence]) -> str:
        """How sequences can share a row: see `plan_batches`. Tried out, since any architecture takes position ids."""
        import torch

        first, second = (TokenSequence(s.ids[:_PROBE_TOKENS], 1) for s in (probe[0], probe[-1]))
        flash = "flash" in str(self.model.config._attn_implementation)
        try:
            with torch.inference_mode():
                # flash attention takes packed sequences in a batch of one alone
                rows = [[first, second]] if flash else [[first, second], [second, first]]
                together = self._hidden(rows)[0][0, len(first) : len(first) + len(second)].float()
                alone = self._hidden([[second]])[0][0].float()
        except (TypeError, ValueError, RuntimeError):
            separate = False
        else:
            # Another's tokens in sight change hidden states by tens of percent, another order of additions by far less.
            noise = 1e-3 if self.model.dtype == torch.float32 else 0.05
            separate = bool((together - alone).abs().mean() <= noise * alone.abs().mean())
        if separate:
            return "one" if flash else "rows"
        warnings.warn(
            f"packing: {type(self.model).__name__} cannot keep traces of one row apart; they are batched by length",
            stacklevel=5,
        )
        return "none"


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log softmax(logits)[target] in float32; float32 logits (tokens, vocabulary) are overwritten, not copied."""
    logits = logits.float()
    chosen = logits.gather(1, targets[:, None])[:, 0]
    peak = logits.amax(1)
    return logits.sub_(peak[:, None]).exp_().sum(1).log_().add_(peak - chosen)


def _by_part(losses: np.ndarray, owner: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Token losses (tokens,) of the sequences `owner` (tokens,), summed by sequence and part: (sequences, COLUMNS)."""
    position = np.concatenate([np.arange(length) for length in lengths])
    sums = [np.bincount(owner, weights=losses, minlength=len(lengths))[:, None]]
    parts = (decile_of(position, lengths[owner]), 10), (position_bin_of(position), COLUMNS - 11)
    for part, count in parts:
        flat = np.bincount(owner * count + part, weights=losses, minlength=len(lengths) * count)
        sums.append(flat.reshape(len(lengths), count))
    return np.concatenate(sums, axis=1)
