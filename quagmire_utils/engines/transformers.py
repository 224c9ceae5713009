"""The transformers engine: sampling with PyTorch alone (the paper's App. B.3 used vLLM).

    engine = load_engine(EngineConfig(engine="transformers", model="path/to/checkpoint"))

Made for many samples of few prompts, as Pass@k needs, and for micro models on one CPU core: prompts of equal length
share a batch, so nothing is padded; common beginnings of prompts and answers are computed once (`decoding`); answers
that have ended leave the batch; the cache writes into preallocated memory. Randomness is a hash of (seed, position): an
answer depends on its own seed alone, not on n or on its neighbours in the batch (up to rounding in the model).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.processes import settle_threads
from quagmire_utils.core.tokenizer import cannot_load
from quagmire_utils.engines.base import Completion, Engine, EngineConfig, Request, SamplingParams
from quagmire_utils.engines.checkpoints import resolve_device
from quagmire_utils.engines.decoding import Batch, NotFiniteError, decode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PREFILL_TOKENS = 32_768  # prompt tokens read at once: bounds the activations
_CPU_ROWS, _CUDA_ROWS = 1024, 4096  # sequences at once; measured on micro models
_CPU_CACHE_BYTES = 512 << 20
_CPU_WORK = 500_000_000_000  # generated tokens times parameters of a minute on one core: 130 M and 0.5 M alike


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
        if self.device.type == "cpu":  # about a minute's work on a core
            self.chunk_tokens = min(self.chunk_tokens, _CPU_WORK // self.module.num_parameters())
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
            except NotFiniteError:
                reason = f"the probabilities of {self.model} are not numbers in {self.dtype}"
                raise ParameterError("dtype", self.dtype, reason=reason) from None
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
        """Return batches of rows whose prompts have equal length, longest first, of bounded rows and prompts."""
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
                batches.append(Batch(list(prompts), [p for p, _ in taken], owners, seeds))
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
