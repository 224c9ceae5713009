"""What all engines share: the base class, requests and completions.

What every engine promises, so that results are equal in distribution and can be stored side by side:

- sample j of a request is drawn with the seed `request.seed + j`, whatever else is in the call;
- an answer ends at any end-of-sequence token of the tokenizer, the model's configuration or generation configuration,
  and at the token that the chat template writes after an assistant's turn;
- `text` is the decoded answer without the end-of-sequence token and without other special tokens;
- `tokens` counts every generated token, the end-of-sequence token included;
- no penalties and no top-k; of a model's `generation_config.json`, only its end-of-sequence tokens are used;
- no code that comes with a model is run unless `trust_remote_code` allows it.

A server other than vLLM may break the first three promises; `server` says what is checked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.tokenizer import load_tokenizer
from quagmire_utils.engines.checkpoints import (
    end_tokens,
    load_config,
    model_digest,
    resolve_context_length,
    resolve_dtype,
)
from quagmire_utils.engines.config import EngineConfig, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


class EngineError(RuntimeError):
    """An engine has stopped working: a server that doesn't answer, a worker process that died."""


@dataclass(frozen=True)
class Request:
    """n answers to one prompt; answer j is drawn with the seed `seed + j`."""

    prompt_ids: tuple[int, ...]
    n: int
    seed: int


@dataclass(frozen=True)
class Completion:
    """One answer.

    `finish_reason` is "stop" (ended by itself), "length" (reached max_tokens) or, from a server, "content_filter"
    (withheld; the text is empty).
    """

    text: str
    tokens: int
    finish_reason: str


class Engine(ABC):
    """A loaded model that answers requests."""

    name: ClassVar[str]  # of the engine
    streams: ClassVar[bool] = False  # whether `stream` yields while others are drawn, so that all work can be handed in
    chunk_tokens: int = 16_000_000  # the most to draw between two writes; larger chunks wait less for last answers
    samples_per_call: int | None = None  # samples drawn together; requests of so many lose nothing when a call fails

    config: EngineConfig
    model: str  # folder or hub id; of a server, the name it serves the model under
    version: str  # of the library
    dtype: str
    context_length: int  # prompt and answer together, in tokens
    tokenizer: PreTrainedTokenizerBase
    ends: list[int]  # token ids that end an answer

    def _read_checkpoint(self, config: EngineConfig, device: str) -> PreTrainedConfig:
        """Set what the checkpoint's files tell before any weight is read; return the model's configuration."""
        where = config.model, config.revision, config.trust_remote_code
        model_config = load_config(*where)
        self.config, self.model = config, config.model
        self.context_length = resolve_context_length(model_config, config.max_model_len)
        self.tokenizer = load_tokenizer(*where)
        self.dtype = resolve_dtype(model_config, config.dtype, device)
        self.ends = end_tokens(config.model, config.revision, model_config, self.tokenizer)
        return model_config

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that stand for the model; samples of two digests are never mixed."""
        return model_digest(self.model, self.config.revision)

    @property
    def facts(self) -> dict[str, str]:
        """What it computes with: the part of a store's origin that an engine knows."""
        facts = {"engine": self.name, "engine_version": self.version, "model_digest": self.digest}
        return facts | {"dtype": self.dtype}

    @abstractmethod
    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """Return the n completions of each request, in order.

        Raises ParameterError if a request doesn't fit into the context.
        """

    def stream(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (index of the request, its n completions) as requests are completed, in any order.

        An engine that `streams` takes any number of requests at once and starts them in the order given: put those
        with long answers first, so that none is drawn alone at the end.
        """
        yield from enumerate(self.generate(requests, params))

    def check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        """Raise ParameterError for a request without prompt or samples, or too long for the context."""
        for request in requests:
            if request.n < 1:
                raise ParameterError("n", request.n, "at least 1")
            if not request.prompt_ids:
                raise ParameterError("prompt_ids", reason="a request has no prompt")
            if (prompt := len(request.prompt_ids)) + params.max_tokens > self.context_length:
                reason = f"{prompt} tokens of prompt and {params.max_tokens} generated exceed the context"
                reason += f" of {self.context_length} tokens"
                raise ParameterError("max_tokens", params.max_tokens, reason=reason)

    def complete(self, answers: Sequence[Sequence[int]]) -> list[Completion]:
        """Return the completions of generated token ids; the end-of-sequence token, if there is one, comes last."""
        ends = set(self.ends)
        stopped = [bool(len(ids)) and ids[-1] in ends for ids in answers]
        bodies = [list(ids[:-1]) if stop else list(ids) for ids, stop in zip(answers, stopped, strict=True)]
        texts = self.tokenizer.batch_decode(bodies, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [
            Completion(text, len(ids), "stop" if stop else "length")
            for text, ids, stop in zip(texts, answers, stopped, strict=True)
        ]

    @abstractmethod
    def close(self) -> None:
        """Free the memory; the engine can't be used afterwards."""


class StreamingEngine(Engine):
    """An engine whose `stream` does the work."""

    streams = True

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """Return the n completions of each request, in order; see `Engine`."""
        answers = dict(self.stream(requests, params))
        return [answers[index] for index in range(len(requests))]

    @abstractmethod
    def stream(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (index of the request, its n completions) as requests are completed; see `Engine`."""
