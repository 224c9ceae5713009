"""The transformers engine: sampling with nothing but PyTorch (the paper's App. B.3 used vLLM).

    engine = load_engine("transformers", "path/to/checkpoint")

Made for many samples of few prompts, the regime of pass@k, and for micro models on one CPU core:

- prompts of equal length share a batch, so nothing is padded;
- each prompt is read once, and its key-value cache repeated for its samples;
- answers that have ended leave the batch as soon as a quarter of it has;
- the cache writes into preallocated memory instead of copying itself at every token;
- randomness is a hash of (seed, position): an answer depends on its own seed alone, not on n or on its
  neighbours in the batch (up to rounding in the model, which batch shapes can change in the last bit).
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quagmire_utils.config import ParameterError
from quagmire_utils.engines import (
    Completion,
    Request,
    SamplingParams,
    check_requests,
    end_tokens,
    load_config,
    load_tokenizer,
    resolve_context_length,
    resolve_dtype,
    to_completions,
)

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel

_PREFILL_TOKENS = 32_768  # prompt tokens read at once: bounds the activations
_CPU_ROWS, _CUDA_ROWS = 1024, 4096  # sequences at once; measured on micro models
_CPU_CACHE_BYTES = 512 << 20
_UNIFORM_BLOCK = 64  # positions whose random numbers are drawn at once


class TransformersEngine:
    """A causal LM of transformers, sampled by a decode loop of our own. See `Engine` for the contract."""

    name = "transformers"

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        max_model_len: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        config = load_config(model, revision)
        self.context_length = resolve_context_length(config, max_model_len)
        self.tokenizer = load_tokenizer(model, revision)

        import torch
        import transformers

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ParameterError(f"device: {device} was asked for, and torch sees no GPU")
        self.model, self.revision = model, revision
        self.version = transformers.__version__
        self.dtype = resolve_dtype(config, dtype)
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.ends = end_tokens(model, revision, config, self.tokenizer)
        self.module: PreTrainedModel = _load_quietly(model, revision, getattr(torch, self.dtype)).to(self.device).eval()
        # On a CPU, plain matrix products beat the fused kernel for one query at a time, unless heads share their keys.
        self._attention = self.module.config._attn_implementation
        heads, key_heads = _heads(self.module.config)
        self._decode_attention = "eager" if self.device.type == "cpu" and heads == key_heads else self._attention

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """The n completions of each request. See `Engine`."""
        answers = self.generate_ids(requests, params)
        flat = iter(to_completions([ids for rows in answers for ids in rows], self.tokenizer, self.ends))
        return [[next(flat) for _ in rows] for rows in answers]

    def generate_ids(self, requests: Sequence[Request], params: SamplingParams) -> list[list[list[int]]]:
        """The token ids of the n answers to each request, each with its end-of-sequence token if it has one.

        Uses `module` as it is, so weights that are being trained sample their own rollouts (in eval mode, if the model
        has dropout).
        """
        check_requests(requests, params, self.context_length)
        answers: list[list[list[int]]] = [[[]] * request.n for request in requests]
        for batch in self._plan(requests, params):
            try:
                rows = self._decode(batch, params)
            finally:
                self.module.set_attn_implementation(self._attention)
            for (request, sample), ids in zip(batch.owners, rows, strict=True):
                answers[request][sample] = ids
        return answers

    def close(self) -> None:
        """Drop the weights."""
        import torch

        self.module = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _plan(self, requests: Sequence[Request], params: SamplingParams) -> list[_Batch]:
        """Batches of rows whose prompts have equal length, longest first, none with too many rows or prompts."""
        by_length: dict[int, dict[tuple[int, ...], list[tuple[int, int]]]] = {}
        for r, request in enumerate(requests):
            ids = tuple(request.prompt_ids)
            by_length.setdefault(len(ids), {}).setdefault(ids, []).extend((r, j) for j in range(request.n))
        batches = []
        for length in sorted(by_length, reverse=True):
            rows = [(prompt, owner) for prompt, owners in by_length[length].items() for owner in owners]
            limit = self._rows(length + params.max_tokens)
            size = -(-len(rows) // -(-len(rows) // limit))  # equal batches: no small one left at the end
            start = 0
            while start < len(rows):
                prompts: dict[tuple[int, ...], int] = {}
                taken = []
                for prompt, owner in rows[start : start + size]:
                    if prompt not in prompts and len(prompts) >= max(1, _PREFILL_TOKENS // length):
                        break
                    taken.append((prompts.setdefault(prompt, len(prompts)), owner))
                start += len(taken)
                owners = [owner for _, owner in taken]
                seeds = np.array([(requests[r].seed + j) % 2**64 for r, j in owners], dtype=np.uint64)
                batches.append(_Batch(list(prompts), [p for p, _ in taken], owners, seeds))
        return batches

    def _rows(self, length: int) -> int:
        """How many sequences of `length` tokens to decode at once."""
        if self.batch_size is not None:
            return self.batch_size
        import torch

        config = self.module.config.get_text_config()
        heads, key_heads = _heads(config)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        per_token = 2 * config.num_hidden_layers * key_heads * head_dim * self.module.dtype.itemsize
        row = per_token * length + 5 * 4 * config.vocab_size  # and float32 logits, with their copies while drawing
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0]
            return max(
                1, min(_CUDA_ROWS, int(0.4 * free) // row)
            )  # 0.4: the cache is there twice while it is compacted
        return max(1, min(_CPU_ROWS, _CPU_CACHE_BYTES // row))

    def _decode(self, batch: _Batch, params: SamplingParams) -> list[list[int]]:
        """The generated token ids of each row, up to and including the first end-of-sequence token."""
        import torch

        with torch.inference_mode():
            device, rows = self.device, len(batch.owners)
            cache = _new_cache(self.module)
            prompts = torch.tensor(batch.prompts, device=device)
            logits = self.module(prompts, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            prompt_of_row = torch.tensor(batch.prompt_of_row, device=device)
            cache.reorder_cache(prompt_of_row)
            self.module.set_attn_implementation(self._decode_attention)
            logits = logits[prompt_of_row]

            ends = torch.tensor(self.ends, device=device, dtype=torch.long)
            tokens = torch.zeros((rows, params.max_tokens), dtype=torch.long, device=device)
            alive = torch.arange(rows, device=device)  # the batch row of each sequence still decoded
            ended = torch.zeros(rows, dtype=torch.bool, device=device)
            finite = torch.ones((), dtype=torch.bool, device=device)
            check_every = 1 if device.type == "cpu" else 8  # asking a GPU how many have ended makes it wait
            for position in range(params.max_tokens):
                if position % _UNIFORM_BLOCK == 0 and params.temperature > 0:
                    block = uniforms(batch.seeds, position, min(_UNIFORM_BLOCK, params.max_tokens - position))
                    numbers = torch.from_numpy(block).to(device)
                finite &= logits.amax(-1).isfinite().all()
                if params.temperature == 0:
                    drawn = logits.argmax(-1)
                else:
                    chances = numbers[alive, position % _UNIFORM_BLOCK]
                    drawn = draw(logits, chances, params.temperature, params.top_p)
                tokens[alive, position] = drawn
                ended |= torch.isin(drawn, ends)
                if position + 1 == params.max_tokens:
                    break
                if (position + 1) % check_every == 0:
                    count = int(ended.sum())
                    if count == len(ended):
                        break
                    if 4 * count >= len(ended):
                        kept = (~ended).nonzero()[:, 0]
                        cache.reorder_cache(kept)
                        alive, drawn, ended = alive[kept], drawn[kept], ended[kept]
                logits = self.module(drawn[:, None], past_key_values=cache, use_cache=True, logits_to_keep=1).logits[
                    :, -1
                ]
            if not finite:
                raise ParameterError(f"dtype: {self.model} gives probabilities that are not numbers in {self.dtype}")
            return _cut(tokens.cpu().numpy(), self.ends)


@dataclass(frozen=True)
class _Batch:
    """Rows to decode together: distinct prompts of one length, and for each row its prompt, owner and seed."""

    prompts: list[tuple[int, ...]]
    prompt_of_row: list[int]
    owners: list[tuple[int, int]]  # (request, sample)
    seeds: np.ndarray  # (rows,) uint64


def _heads(config: Any) -> tuple[int, int]:
    """Attention heads, and those of keys and values."""
    config = config.get_text_config()
    return config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def _cut(tokens: np.ndarray, ends: Sequence[int]) -> list[list[int]]:
    """Rows up to their first end token; what a finished row drew before it left the batch is dropped."""
    is_end = np.isin(tokens, list(ends))
    lengths = np.where(is_end.any(1), is_end.argmax(1) + 1, tokens.shape[1])
    return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]


def draw(logits: torch.Tensor, chances: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """One token per row by inverting the distribution function at `chances`.

    logits (rows, vocabulary) in any float type, chances (rows,) float32 in [0, 1), temperature > 0. Computed in
    float32.
    """
    import torch

    probabilities = torch.softmax(logits.float() / temperature, -1)
    if top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= top_p] = 0  # mass before this token already reaches top_p
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ordered)
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    # Strictly below the total, so that rounding never selects a token of probability zero at the end.
    points = torch.minimum(chances[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, points, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)


def uniforms(seeds: np.ndarray, start: int, count: int) -> np.ndarray:
    """Random numbers in [0, 1) for positions start .. start + count - 1 of each seed, (len(seeds), count) float32.

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


def _load_quietly(model: str, revision: str | None, dtype: torch.dtype) -> Any:
    """The model, without transformers' progress bar, which is noise for the hundreds of small models of a sweep."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(model, revision=revision, dtype=dtype)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ParameterError(f"model: the weights of {model} can't be loaded ({reason})") from error
    finally:
        if shown:
            logging.enable_progress_bar()


def _new_cache(model: Any) -> Cache:
    """An empty cache: ours where every layer attends to all tokens, transformers' own for sliding windows and such."""
    from transformers import Cache, DynamicCache
    from transformers.cache_utils import DynamicLayer

    standard = DynamicCache(config=model.config)
    if any(type(layer) is not DynamicLayer for layer in standard.layers):
        return standard
    return Cache(layer_class_to_replicate=_growing_layer())


_GROWING_LAYER: Any = None


def _growing_layer() -> Any:
    """The class of a cache layer that grows in place (made on first use, because its base needs transformers)."""
    global _GROWING_LAYER
    if _GROWING_LAYER is not None:
        return _GROWING_LAYER
    from transformers.cache_utils import DynamicLayer

    class GrowingLayer(DynamicLayer):
        """A DynamicLayer whose keys and values are the filled part of larger buffers, (rows, heads, tokens, head_dim).

        DynamicLayer copies the whole cache for each new token; here a token is written behind the others, and a copy
        is made only when the buffer is full. Buffers are kept just a little larger than their content: with a wide
        gap after each head, a CPU reads the cache at half the speed (measured; its prefetcher loses the stream).
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
            for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
                buffer[:, :, held:length] = new
            self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)
            return self.keys, self.values

        @staticmethod
        def _enlarged(old, new, held, capacity):
            rows, heads, _, width = new.shape
            buffer = new.new_empty((rows, heads, capacity, width))
            if held:
                buffer[:, :, :held] = old
            return buffer

        def reorder_cache(self, rows):
            self.buffers = [buffer.index_select(0, rows) for buffer in self.buffers]
            length = self.get_seq_length()
            self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)

    _GROWING_LAYER = GrowingLayer
    return GrowingLayer
