"""What all engines share: how they are loaded and sampled from, requests, completions, and the base class.

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

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.tokenizer import load_tokenizer
from quagmire_utils.core.validation import Count, Flag, Integer, NonNegative, Settings, Share
from quagmire_utils.data.pretrained import locate
from quagmire_utils.engines.checkpoints import (
    check_base_url,
    check_model,
    end_tokens,
    load_config,
    model_digest,
    resolve_context_length,
    resolve_dtype,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


class ServerSettings(Settings):
    """What to know about a server besides its address."""

    model: str | None = None  # the name it serves the model under; None: the only one that it serves
    tokenizer: str | None = None  # the model's, a folder or hub id; None: where the server says the model is
    extra_body: dict[str, Any] = Field(default={})  # further fields of each call, such as {"top_k": -1}
    tries: Count = 25  # of one call: about three minutes

    @field_validator("tokenizer", mode="before")
    @classmethod
    def _tokenizer_as_text(cls, value: Any) -> Any:
        return locate(str(value)) if isinstance(value, str | Path) else value


class EngineConfig(Settings):
    """What loads an engine: the model, and how it is run. Made once and passed whole."""

    engine: Literal["transformers", "vllm", "server"] = "vllm"
    # a folder, a hub id, or a name of `data.pretrained`, which becomes its folder; for "server", the address of an
    # OpenAI-compatible endpoint
    model: str
    revision: str | None = None  # of a hub id: branch, tag or commit; for "server", of the tokenizer
    # "auto": the checkpoint's own; float32 on a CPU that is slow in it
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"  # "auto": cuda where there is one, otherwise the CPU
    max_model_len: Annotated[Integer, Field(ge=2)] | None = None  # tokens of prompt and answer; None: model's
    batch_size: Count | None = None  # sequences in flight; None: the engine's own choice
    template: Literal["auto", "chat", "plain"] = "auto"  # how prompts are rendered; "auto": chat where there is one
    trust_remote_code: Flag = False  # True runs Python code that comes with the model
    tensor_parallel_size: Count = 1  # vllm: GPUs that share a copy of the model
    data_parallel_size: Count = 1  # vllm: copies on this machine that share the work
    ray: str | None = None  # "auto" or the address of a Ray cluster whose nodes do the work
    replicas: Count | None = None  # copies on the Ray cluster; None: as many as it has room for
    server: ServerSettings | None = None  # for engine "server"; None: the defaults

    @field_validator("model", mode="before")
    @classmethod
    def _model_as_text(cls, value: Any) -> Any:
        if isinstance(value, Path):
            if not value.expanduser().exists():  # as text it could be taken for a hub id
                raise ValueError(f"there is no folder {value}")
            return str(value)
        return locate(value) if isinstance(value, str) else value

    def _check(self) -> None:
        is_vllm, is_server = self.engine == "vllm", self.engine == "server"
        for name in ("tensor_parallel_size", "data_parallel_size"):
            allowed = f"1 for engine {self.engine}; only vllm allows more"
            self._require(name, is_vllm or getattr(self, name) == 1, allowed)
        if is_server:
            check_base_url(self.model)
            for name in ("dtype", "device"):
                self._require(name, getattr(self, name) == "auto", "auto for engine server: the server chooses it")
        self._require("server", is_server or self.server is None, f"unset for engine {self.engine}")
        alone = not is_server and self.data_parallel_size == 1
        self._require("ray", self.ray is None or alone, "unset for engine server and for data_parallel_size")
        self._require("replicas", self.replicas is None or self.ray is not None, "unset without ray")

    def check(self) -> None:
        """Raise ParameterError unless the engine is installed, and the model a whole checkpoint or maybe a hub id."""
        check_engine(self.engine)
        if self.engine != "server":
            check_model(self.model)


class SamplingParams(Settings):
    """How answers are drawn. The paper: temperature 1.0, no top-p and no top-k (App. B.3)."""

    temperature: NonNegative = 1.0  # 0 takes the most likely token
    top_p: Share = 1.0  # the smallest set of tokens with this probability
    max_tokens: Count = 1024  # generated tokens, the end-of-sequence token included
    seed: Integer = 0  # each problem's seed is derived from it; engines use Request.seed


def check_engine(name: str) -> None:
    """Raise ParameterError for an engine whose library is not installed."""
    if importlib.util.find_spec({"server": "openai"}.get(name, name)) is None:
        remedy = "`pip install -e '.[server]'`" if name == "server" else "`./reproduce.sh setup`"
        raise ParameterError("engine", name, reason=f"{name} is not installed; {remedy} installs it where possible")


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
    """One answer; `finish_reason` is "stop" (by itself), "length", or, from a server, "content_filter" (no text)."""

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
        return {"engine": self.name, "engine_version": self.version, "model_digest": self.digest, "dtype": self.dtype}

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """Return the n completions of each request, in order. Raises ParameterError if one doesn't fit."""
        answers = dict(self.stream(requests, params))
        return [answers[index] for index in range(len(requests))]

    @abstractmethod
    def stream(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (index of the request, its n completions) as requests are completed, in any order.

        An engine that `streams` takes any number of requests at once and starts them in the order given: put those
        with long answers first, so that none is drawn alone at the end.
        """

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
