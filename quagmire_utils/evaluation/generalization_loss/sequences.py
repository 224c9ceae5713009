"""Traces as token ids, and their batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data import Trace
from quagmire_utils.data.prompts import RenderedPrompt, render, resolve_template, response_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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

    @property
    def digest(self) -> str:
        """Digest of what its loss depends on besides the model."""
        return hashlib.blake2b(self.ids.tobytes(), digest_size=16, key=str(self.prompt).encode()).hexdigest()


def encode(
    traces: Sequence[Trace], tokenizer: PreTrainedTokenizerBase, template: str, progress: bool
) -> list[TokenSequence]:
    """Return prompt and response ids of each trace; raise ParameterError for a blank question, response or prompt."""
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
        if not prompt.token_ids:
            reason = f"the prompt of {trace.id} has no tokens, so nothing predicts its response"
            raise ParameterError("traces", trace.id, reason=reason)
        ids = np.array((*prompt.token_ids, *response_ids(tokenizer, trace.response, prompt)), dtype=np.int32)
        sequences.append(TokenSequence(ids, len(prompt.token_ids)))
    return sequences


def fitting(sequences: Sequence[TokenSequence], traces: Sequence[Trace], context: int | None, drop: bool) -> list[int]:
    """Return the indices of the sequences that fit into the context; raise ParameterError for others unless `drop`."""
    if context is None:
        return list(range(len(sequences)))
    kept = [i for i, sequence in enumerate(sequences) if len(sequence) <= context]
    if len(kept) < len(sequences) and not (drop and kept):
        longest = max(range(len(sequences)), key=lambda i: len(sequences[i]))
        reason = f"{len(sequences) - len(kept)} of {len(sequences)} are longer than the model's context of {context} "
        reason += f"tokens (the longest, {traces[longest].id}, has {len(sequences[longest])}); leave them out"
        raise ParameterError("traces", traces[longest].id, reason=reason)
    return kept


def check_vocabulary(sequences: Sequence[TokenSequence], entries: int) -> None:
    """Raise ParameterError if a token id exceeds the model's `entries` embeddings."""
    largest = max(int(sequence.ids.max()) for sequence in sequences)
    if largest >= entries:
        reason = f"it gives the token id {largest}, but the model has {entries} embeddings"
        raise ParameterError("tokenizer", largest, reason=reason)


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
