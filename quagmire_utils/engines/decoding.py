"""The decode loop of the transformers engine: from prompts and seeds to sampled token ids.

It keeps one row per distinct text so far: answers to one prompt begin alike (of 128 answers by a trained micro model,
2-11 % of the tokens are distinct), so most rows would repeat the same computation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache as cached
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from transformers import Cache

    from quagmire_utils.engines.base import SamplingParams

_UNIFORM_BLOCK = 64  # positions whose random numbers are drawn at once


@dataclass(frozen=True)
class Batch:
    """Answers to decode together: distinct prompts of one length; for each answer its prompt, owner and seed."""

    prompts: list[tuple[int, ...]]
    prompt_of_row: list[int]
    owners: list[tuple[int, int]]  # (request, sample)
    seeds: np.ndarray  # (rows,) uint64


class NotFiniteError(ValueError):
    """The model's logits are not numbers."""


def _chances(seeds: np.ndarray, positions: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Yield the random number of each answer at each position, (answers,) float32."""
    import torch

    for start in range(0, positions, _UNIFORM_BLOCK):
        block = uniforms(seeds, start, min(_UNIFORM_BLOCK, positions - start))
        yield from torch.from_numpy(block).to(device).unbind(1)


def decode(
    module: Any, batch: Batch, params: SamplingParams, ends: Sequence[int], decode_attention: str
) -> list[list[int]]:
    """Return the token ids of each answer, up to and including its first end token. Raises NotFiniteError."""
    import torch

    with torch.inference_mode():
        device, answers = module.device, len(batch.owners)
        cache = _new_cache(module)
        logits = _read(module, torch.tensor(batch.prompts, device=device), cache)
        module.set_attn_implementation(decode_attention)

        ends = torch.tensor(ends, device=device, dtype=torch.long)
        tokens = torch.zeros((answers, params.max_tokens), dtype=torch.long, device=device)
        alive = torch.arange(answers, device=device)
        row_of = torch.tensor(batch.prompt_of_row, device=device)  # the cache row of each living answer
        vocabulary = logits.shape[-1]
        for position, chances in enumerate(_chances(batch.seeds, params.max_tokens, device)):
            if not logits.amax(-1).isfinite().all():
                raise NotFiniteError
            if params.temperature == 0:
                drawn = logits.argmax(-1)[row_of]
            else:
                drawn = draw(cumulative(logits, params.temperature, params.top_p)[row_of], chances[alive])
            tokens[alive, position] = drawn
            going = ~torch.isin(drawn, ends)
            alive, drawn, row_of = alive[going], drawn[going], row_of[going]
            if position + 1 == params.max_tokens or not len(alive):
                break
            branches, row_of = torch.unique(row_of * vocabulary + drawn, return_inverse=True)  # (row, token) drawn
            parents = branches // vocabulary
            if len(parents) != len(logits) or not torch.equal(parents, torch.arange(len(logits), device=device)):
                cache.reorder_cache(parents)
            logits = _read(module, (branches % vocabulary)[:, None], cache)
        # without what a finished row drew before it left the batch
        is_end = torch.isin(tokens, ends).cpu().numpy()
        lengths = np.where(is_end.any(1), is_end.argmax(1) + 1, params.max_tokens)
        return [row[:length].tolist() for row, length in zip(tokens.cpu().numpy(), lengths, strict=True)]


def _read(module: Any, tokens: torch.Tensor, cache: Cache) -> torch.Tensor:
    """Add tokens (rows, positions) to the cache; return the logits after each row, (rows, vocabulary)."""
    return module(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]


def cumulative(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Return the distribution function of each row of logits (rows, vocabulary), in float32; temperature > 0."""
    import torch

    probabilities = torch.softmax(logits.float() / temperature, -1)
    if top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= top_p] = 0  # mass before this token already reaches top_p
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ordered)
    return probabilities.cumsum(-1)


def draw(distribution: torch.Tensor, chances: torch.Tensor) -> torch.Tensor:
    """Draw one token per row by inverting its distribution function at `chances`, (rows,) float32 in [0, 1)."""
    import torch

    total = distribution[:, -1:].contiguous()
    # Strictly below the total, so that rounding never selects a token of probability zero at the end.
    points = torch.minimum(chances[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(distribution, points, right=True)[:, 0].clamp_(max=distribution.shape[-1] - 1)


def uniforms(seeds: np.ndarray, start: int, count: int) -> np.ndarray:
    """Return random numbers in [0, 1) for positions start .. start + count - 1 of each seed, (seeds, count) float32.

    Counter-based (two rounds of the SplitMix64 finaliser), so any position of any stream costs the same and
    neighbouring seeds are unrelated.
    """
    with np.errstate(over="ignore"):
        origin = _mix(seeds.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))[:, None]
        counter = np.arange(start + 1, start + count + 1, dtype=np.uint64)[None, :]
        bits = _mix(origin + counter * np.uint64(0x9E3779B97F4A7C15))
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def can_share(model: Any) -> bool:
    """Whether every layer of this model attends to all tokens."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def _new_cache(model: Any) -> Cache:
    """Return an empty cache: ours if every layer attends to all tokens, else transformers' own (sliding windows)."""
    from transformers import Cache, DynamicCache

    return Cache(layer_class_to_replicate=_growing_layer()) if can_share(model) else DynamicCache(config=model.config)


@cached
def _growing_layer() -> Any:
    """Return the class of a cache layer that grows in place; its base needs transformers."""
    from transformers.cache_utils import DynamicLayer

    class GrowingLayer(DynamicLayer):
        """A DynamicLayer whose keys and values are the filled part of larger buffers, (rows, heads, tokens, head_dim).

        DynamicLayer copies the whole cache for each new token. Here a token is written after the others, and the cache
        is copied only when the buffer is full. Buffers are only slightly larger than their content: with a wide gap
        after each head, a CPU reads the cache at half the speed (measured).
        """

        def update(self, key_states, value_states, *args, **kwargs):
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self.buffers = None
            held = self.get_seq_length()
            length = held + key_states.shape[-2]
            if self.buffers is None or length > self.buffers[0].shape[-2]:
                capacity = length + max(4, length // 32)
                self.buffers = [
                    self._enlarged(old, new, held, capacity)
                    for old, new in ((self.keys, key_states), (self.values, value_states))
                ]
            rows = key_states.shape[0]
            for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
                buffer[:rows, :, held:length] = new
            self.keys, self.values = (buffer[:rows, :, :length] for buffer in self.buffers)
            return self.keys, self.values

        @staticmethod
        def _enlarged(old, new, held, capacity):
            rows, heads, _, width = new.shape
            buffer = new.new_empty((rows, heads, capacity, width))
            if held:
                buffer[:, :, :held] = old[:rows]
            return buffer

        def reorder_cache(self, rows):
            self.buffers = [buffer.index_select(0, rows) for buffer in self.buffers]
            length = self.get_seq_length()
            self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)

    return GrowingLayer
