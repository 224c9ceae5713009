"""The transformers engine: sampling with PyTorch alone (the paper's App. B.3 used vLLM).

Made for many samples of few prompts, as Pass@k needs, and for micro models on one CPU core: prompts of equal length
share a batch, and those of other lengths, padded on the left, only if the batch is small for the model's weights;
answers that have ended leave it; the cache writes into preallocated memory. The batch has one row per distinct text so
far: answers to one prompt begin alike (of 128 answers by a trained micro model,
2-11 % of the tokens are distinct). Randomness is a hash of (seed, position): an answer depends on its own seed alone,
not on n or on its neighbours in the batch (up to rounding in the model).
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache as cached
from typing import TYPE_CHECKING, Any

import numpy as np

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.processes import settle_threads
from quagmire_utils.core.tokenizer import cannot_load
from quagmire_utils.engines.base import Completion, Engine, EngineConfig, Request, SamplingParams
from quagmire_utils.engines.checkpoints import resolve_device

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_PREFILL_TOKENS = 32_768  # prompt tokens read at once: bounds the activations
_CPU_ROWS, _CUDA_ROWS = 1024, 4096  # sequences at once; measured on micro models
_CPU_CACHE_BYTES = 512 << 20
_SMALL_MODEL = 32 << 20  # bytes of weights that stay in a CPU's cache, so that a small batch costs little
_ENOUGH_ROWS = 64  # with fewer, reading the weights of a larger model takes most of the time (measured)
_UNIFORM_BLOCK = 64  # positions whose random numbers are drawn at once
_CPU_WORK = 500_000_000_000  # generated tokens times parameters of a minute on one core


@dataclass(frozen=True)
class Batch:
    """Answers to decode together: distinct prompts; for each answer its prompt, owner and seed."""

    prompts: list[tuple[int, ...]]
    prompt_of_row: list[int]
    owners: list[tuple[int, int]]  # (request, sample)
    seeds: np.ndarray  # (rows,) uint64


class TransformersEngine(Engine):
    """A causal LM of transformers, sampled by our own decode loop; see `Engine`."""

    name = "transformers"

    def __init__(self, config: EngineConfig) -> None:
        """Load the model. Raises ParameterError if its files are damaged, or there is no GPU for device "cuda"."""
        import transformers

        self._read_checkpoint(config, resolve_device(config.device))
        self.version = transformers.__version__
        self.module: PreTrainedModel = load_weights(config, self.dtype).eval()
        self.device = self.module.device
        small = self.module.get_memory_footprint() <= _SMALL_MODEL
        self._pads = not small and "position_ids" in inspect.signature(self.module.forward).parameters
        if self.device.type == "cpu":  # about a minute's work on a core; two, for the large batches of larger models
            self.chunk_tokens = min(self.chunk_tokens, (1 + self._pads) * _CPU_WORK // self.module.num_parameters())
        # On a CPU, plain matrix products beat the fused kernel for one query at a time, unless heads share their keys.
        self._attention = self.module.config._attn_implementation
        heads, key_heads = _heads(self.module.config)
        self._decode_attention = "eager" if self.device.type == "cpu" and heads == key_heads else self._attention

    def stream(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (index of the request, its n completions), all of them when the last is drawn; see `Engine`."""
        for index, rows in enumerate(self.generate_ids(requests, params)):
            yield index, self.complete(rows)

    def generate_ids(self, requests: Sequence[Request], params: SamplingParams) -> list[list[list[int]]]:
        """Return the token ids of the n answers to each request, with the end-of-sequence token if there is one.

        `module` is used as it is, so weights that are being trained sample their own rollouts (in eval mode, if the
        model has dropout).
        """
        self.check(requests, params)
        answers: list[list[list[int]]] = [[[]] * request.n for request in requests]
        for batch in self._plan(requests, params):
            try:
                rows = decode(self.module, batch, params, self.ends, self._decode_attention)
            finally:
                self.module.set_attn_implementation(self._attention)
            for (request, sample), ids in zip(batch.owners, rows, strict=True):
                answers[request][sample] = ids
        return answers

    def close(self) -> None:
        """Drop the weights and free their memory."""
        import torch

        self.module = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _plan(self, requests: Sequence[Request], params: SamplingParams) -> list[Batch]:
        """Return batches of bounded rows and prompts, longest prompts first; see the module about their lengths."""
        owners: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for r, request in enumerate(requests):
            owners.setdefault(tuple(request.prompt_ids), []).extend((r, j) for j in range(request.n))
        groups: list[list[tuple[tuple[int, ...], tuple[int, int]]]] = []
        for prompt in sorted(owners, key=len, reverse=True):
            last = groups[-1] if groups else []
            if not last or (len(last[-1][0]) > len(prompt) and not (self._pads and len(last) < _ENOUGH_ROWS)):
                groups.append(last := [])
            last += [(prompt, owner) for owner in owners[prompt]]
        batches = []
        for rows in groups:
            length = len(rows[0][0])
            limit = self._rows(length + params.max_tokens)
            size = -(-len(rows) // -(-len(rows) // limit))  # equal batches: no small one left at the end
            while rows:
                prompts = list(dict.fromkeys(prompt for prompt, _ in rows[:size]))[: max(1, _PREFILL_TOKENS // length)]
                row_of = {prompt: i for i, prompt in enumerate(prompts)}
                taken = [row for row in rows[:size] if row[0] in row_of]
                rows = rows[len(taken) :]
                seeds = np.array([(requests[r].seed + j) % 2**64 for _, (r, j) in taken], dtype=np.uint64)
                of_row, asked = [row_of[prompt] for prompt, _ in taken], [owner for _, owner in taken]
                batches.append(Batch(prompts, of_row, asked, seeds))
        return batches

    def _rows(self, length: int) -> int:
        """Return how many sequences of `length` tokens to decode at once."""
        if self.config.batch_size is not None:
            return self.config.batch_size
        import torch

        config = self.module.config.get_text_config()
        heads, key_heads = _heads(config)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        per_token = 2 * config.num_hidden_layers * key_heads * head_dim * self.module.dtype.itemsize
        row = per_token * length + 5 * 4 * config.vocab_size  # and float32 logits, with their copies while drawing
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0]
            # 0.4: while the cache is compacted, there are two of it
            return max(1, min(_CUDA_ROWS, int(0.4 * free) // row))
        return max(1, min(_CPU_ROWS, _CPU_CACHE_BYTES // row))


def _heads(config: Any) -> tuple[int, int]:
    """Return the number of attention heads, and of those of keys and values."""
    config = config.get_text_config()
    return config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def load_weights(config: EngineConfig, dtype: str) -> PreTrainedModel:
    """Return the model on its device, loaded without a progress bar: a sweep loads hundreds of small models."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    device = resolve_device(config.device)
    logging.disable_progress_bar()
    try:
        module = AutoModelForCausalLM.from_pretrained(
            config.model, revision=config.revision, dtype=dtype, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise cannot_load("weights", config.model, error) from error
    if device == "cpu":
        settle_threads(module)
    return module.to(device)


# --- the decode loop: from prompts and seeds to sampled token ids -----------------------------------------------------


def decode(
    module: Any, batch: Batch, params: SamplingParams, ends: Sequence[int], decode_attention: str
) -> list[list[int]]:
    """Return the token ids of each answer, with its end token. Raises ParameterError if logits are not numbers."""
    import torch
    from transformers import Cache, DynamicCache

    with torch.inference_mode():
        device, answers = module.device, len(batch.owners)
        # ours if every layer attends to all tokens, else transformers' own (sliding windows)
        growing = can_share(module)
        cache = Cache(layer_class_to_replicate=_growing_layer()) if growing else DynamicCache(config=module.config)

        longest = max(map(len, batch.prompts))
        padding = torch.tensor([longest - len(prompt) for prompt in batch.prompts], device=device)
        padded = bool(padding.any())

        def read(tokens: torch.Tensor, start: int) -> torch.Tensor:
            """Add tokens (rows, positions from start on) to the cache; return the logits after, (rows, vocabulary)."""
            where = {}
            if padded:  # a row's positions count from its own first token
                positions = torch.arange(start + tokens.shape[1], device=device) - padding[:, None]
                where = {"attention_mask": (positions >= 0).long(), "position_ids": positions[:, start:].clamp(min=0)}
            return module(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1, **where).logits[:, -1]

        filled = [[0] * (longest - len(prompt)) + list(prompt) for prompt in batch.prompts]
        logits = read(torch.tensor(filled, device=device), 0)
        module.set_attn_implementation(decode_attention)

        ends = torch.tensor(ends, device=device, dtype=torch.long)
        tokens = torch.zeros((answers, params.max_tokens), dtype=torch.long, device=device)
        alive = torch.arange(answers, device=device)
        row_of = torch.tensor(batch.prompt_of_row, device=device)  # the cache row of each living answer
        vocabulary = logits.shape[-1]
        for position in range(params.max_tokens):
            if position % _UNIFORM_BLOCK == 0:
                block = uniforms(batch.seeds, position, min(_UNIFORM_BLOCK, params.max_tokens - position))
                chances = torch.from_numpy(block).to(device)
            if not logits.amax(-1).isfinite().all():
                dtype = str(module.dtype).removeprefix("torch.")
                reason = f"the probabilities of {module.name_or_path} are not numbers in {dtype}"
                raise ParameterError("dtype", dtype, reason=reason)
            if params.temperature == 0:
                drawn = logits.argmax(-1)[row_of]
            else:
                drawn = draw(
                    cumulative(logits, params.temperature, params.top_p)[row_of],
                    chances[alive, position % _UNIFORM_BLOCK],
                )
            tokens[alive, position] = drawn
            going = ~torch.isin(drawn, ends)
            alive, drawn, row_of = alive[going], drawn[going], row_of[going]
            if position + 1 == params.max_tokens or not len(alive):
                break
            branches, row_of = torch.unique(row_of * vocabulary + drawn, return_inverse=True)  # (row, token) drawn
            parents = branches // vocabulary
            if len(parents) != len(logits) or not torch.equal(parents, torch.arange(len(logits), device=device)):
                cache.reorder_cache(parents)
                padding = padding[parents]
            logits = read((branches % vocabulary)[:, None], longest + position)
        # without what a finished row drew before it left the batch
        is_end = torch.isin(tokens, ends).cpu().numpy()
        lengths = np.where(is_end.any(1), is_end.argmax(1) + 1, params.max_tokens)
        return [row[:length].tolist() for row, length in zip(tokens.cpu().numpy(), lengths, strict=True)]


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
