"""Traces as token ids, and which of them go through the model together."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data import Trace
from quagmire_utils.data.prompts import render, resolve_template, response_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Batch = list[list[int]]  # rows of the model's input, each with the indices of the sequences in it


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """A prompt and its response, as the model reads them."""

    ids: np.ndarray  # int32 (tokens,): four bytes a token, where a tuple of a large set would take forty
    prompt: int  # how many of them are the prompt's

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def response(self) -> int:
        """Tokens of the response, EOS included."""
        return len(self.ids) - self.prompt

    @property
    def digest(self) -> str:
        """What its loss depends on, besides the model."""
        return hashlib.blake2b(self.ids.tobytes(), digest_size=16, key=str(self.prompt).encode()).hexdigest()


def encode(
    traces: Sequence[Trace], tokenizer: PreTrainedTokenizerBase, template: str, progress: bool
) -> list[TokenSequence]:
    """Prompt and response ids of each trace.

    Raises ParameterError, with the trace's id, for a blank question or response and a prompt without any token.
    """
    from tqdm import tqdm

    template = resolve_template(tokenizer, template)
    prompts: dict[str, tuple[int, ...]] = {}  # several traces may answer one question
    sequences = []
    for trace in tqdm(traces, desc="tokenising", unit="trace", delay=3, disable=not progress):
        for part in ("question", "response"):
            if not getattr(trace, part).strip():
                raise ParameterError(f"traces: {trace.id} has an empty {part}")
        if trace.question not in prompts:
            prompts[trace.question] = render(trace.question, tokenizer, template).token_ids
        prompt = prompts[trace.question]
        if not prompt:
            raise ParameterError(f"traces: the prompt of {trace.id} has no tokens, so nothing predicts its response")
        ids = np.array((*prompt, *response_ids(tokenizer, trace.response)), dtype=np.int32)
        sequences.append(TokenSequence(ids, len(prompt)))
    return sequences


def fitting(sequences: Sequence[TokenSequence], traces: Sequence[Trace], context: int | None, drop: bool) -> list[int]:
    """Indices of the sequences that fit into the context; ParameterError for the others, unless `drop`."""
    if context is None:
        return list(range(len(sequences)))
    kept = [i for i, sequence in enumerate(sequences) if len(sequence) <= context]
    if len(kept) < len(sequences) and not (drop and kept):
        longest = max(range(len(sequences)), key=lambda i: len(sequences[i]))
        raise ParameterError(
            f"traces: {len(sequences) - len(kept)} of {len(sequences)} are longer than the model's context of "
            f"{context} tokens (the longest, {traces[longest].id}, has {len(sequences[longest])}); leave them out, "
            "since a cut trace has another loss"
        )
    return kept


def check_vocabulary(sequences: Sequence[TokenSequence], entries: int) -> None:
    """Raise ParameterError where a token id is beyond the model's `entries` embeddings."""
    largest = max(int(sequence.ids.max()) for sequence in sequences)
    if largest >= entries:
        raise ParameterError(f"tokenizer gives the token id {largest}, but the model has {entries} embeddings")


def plan_batches(
    sequences: Sequence[TokenSequence], indices: Sequence[int], batch_tokens: int, packing: str
) -> list[Batch]:
    """Batches of the sequences at `indices`, longest first so that memory peaks at once.

    `packing` is "none": a sequence a row, in batches of similar length, `batch_tokens` with their padding at most;
    "rows": several a row, none longer than the batch's longest sequence, since attention pays for a row's square;
    "one": a single row of up to `batch_tokens`, for attention that pays for each sequence's own length. A sequence
    longer than `batch_tokens` is a batch of its own.
    """
    if packing == "none":
        return _padded_batches(sequences, indices, batch_tokens)
    ascending = sorted(indices, key=lambda i: (len(sequences[i]), -i))
    lengths = [len(sequences[i]) for i in ascending]
    batches: list[Batch] = []
    while lengths:
        longest = lengths[-1]
        width = max(longest, batch_tokens) if packing == "one" else longest
        batch: Batch = []
        while lengths and len(batch) < max(1, batch_tokens // width):
            row, room = [], width
            while (fit := bisect_right(lengths, room)) > 0:  # the longest one that still fits
                room -= lengths.pop(fit - 1)
                row.append(ascending.pop(fit - 1))
            batch.append(row)
        batches.append(batch)
    return batches


def _padded_batches(sequences: Sequence[TokenSequence], indices: Sequence[int], batch_tokens: int) -> list[Batch]:
    batches: list[Batch] = []
    for index in sorted(indices, key=lambda i: -len(sequences[i])):
        batch = batches[-1] if batches else []
        if not batch or (len(batch) + 1) * len(sequences[batch[0][0]]) > batch_tokens:
            batches.append(batch := [])
        batch.append([index])
    return batches
