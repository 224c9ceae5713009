"""Engines: what turns prompts into sampled answers (paper Sec. 4.1 and App. B.3: vLLM at temperature 1.0).

One small interface with three implementations, each imported only when asked for:

    engine = load_engine("transformers", "path/to/checkpoint")      # or "vllm"
    engine = load_engine("server", "http://127.0.0.1:8000/v1")      # any OpenAI-compatible endpoint
    request = Request(prompt_ids=(5, 17, 4), n=64, seed=0)
    [[first, *others]] = engine.generate([request], SamplingParams(temperature=1.0, max_tokens=64))
    engine.close()

What all engines promise, so that their results are equal in distribution and can be stored side by side:

- sample j of a request is drawn with the seed `request.seed + j`, whatever else is in the call;
- an answer ends at any end-of-sequence token of the tokenizer, the model's configuration or generation configuration;
- `text` is the decoded answer without the end-of-sequence token and without other special tokens;
- `tokens` counts every generated token, the end-of-sequence token included;
- no penalties, no top-k, nothing from a model's `generation_config.json` but its end-of-sequence tokens;
- no code that comes with a model is run, unless `trust_remote_code` says so.

A server other than vLLM may keep the first three promises or not; see `server` for what is checked.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.engines.checkpoints import check_base_url, check_model, model_digest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from quagmire_utils.engines.server import ServerSettings

__all__ = [
    "DTYPES",
    "ENGINES",
    "Completion",
    "Engine",
    "EngineError",
    "Request",
    "SamplingParams",
    "check_base_url",
    "check_engine",
    "check_model",
    "check_requests",
    "end_tokens",
    "engine_digest",
    "load_config",
    "load_engine",
    "load_tokenizer",
    "model_digest",
    "resolve_context_length",
    "resolve_dtype",
    "to_completions",
]

ENGINES = ("transformers", "vllm", "server")
DTYPES = ("auto", "float32", "bfloat16", "float16")

_LIBRARY = {"transformers": "transformers", "vllm": "vllm", "server": "httpx"}


class EngineError(RuntimeError):
    """An engine that has stopped working: a server that doesn't answer, a worker process that died."""


@dataclass(frozen=True)
class SamplingParams:
    """How answers are drawn. The paper: temperature 1.0, nothing cut off (App. B.3)."""

    temperature: float = 1.0  # 0 takes the most likely token
    top_p: float = 1.0  # keeps the smallest set of tokens with at least this probability
    max_tokens: int = 1024  # generated tokens, the end-of-sequence token included
    seed: int = 0  # sampling derives a seed for each problem from it; engines themselves use Request.seed

    def __post_init__(self) -> None:
        for name, kind in (("temperature", Real), ("top_p", Real), ("max_tokens", Integral), ("seed", Integral)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kind):
                raise ParameterError(f"{name} must be a {'' if kind is Real else 'whole '}number, not {value!r}")
        if not 0 <= self.temperature < math.inf:
            raise ParameterError(f"temperature must be 0 (greedy) or more, and finite, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ParameterError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.max_tokens < 1:
            raise ParameterError(f"max_tokens must be at least 1, not {self.max_tokens}")


@dataclass(frozen=True)
class Request:
    """n answers to one prompt; answer j is drawn with the seed `seed + j`."""

    prompt_ids: tuple[int, ...]
    n: int
    seed: int


@dataclass(frozen=True)
class Completion:
    """One answer. `finish_reason` is "stop" (it ended by itself) or "length" (it met max_tokens); of a server also
    "content_filter" (it was withheld, and the text is empty)."""

    text: str
    tokens: int
    finish_reason: str


class Engine(Protocol):
    """A loaded model that answers requests.

    vllm and server have `stream(requests, params) -> Iterator[tuple[int, list[Completion]]]` besides, which yields the
    index of a request with its completions as soon as they are complete, and takes any number of requests at once, so
    that no GPU idles between calls. They start requests in the order given: put those with long answers first, and
    none is computed alone at the end (`sampling` does). `samples_per_call`, where there is one, is how many samples of
    a request are drawn together: with requests of so many, nothing that was answered is lost when the engine fails. A
    server has `digest`, because its `model` names no checkpoint that could be read, see `engine_digest`.
    """

    name: str
    version: str
    model: str  # folder or hub id; of a server, the name it serves the model under
    revision: str | None  # of a hub id
    dtype: str
    context_length: int  # prompt and answer together, in tokens
    tokenizer: PreTrainedTokenizerBase

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """The n completions of each request, in order. ParameterError if one can't fit into the context."""

    def close(self) -> None:
        """Give the memory back; the engine can't be used afterwards."""


def load_engine(
    name: str,
    model: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    max_model_len: int | None = None,
    batch_size: int | None = None,
    tensor_parallel_size: int = 1,
    data_parallel_size: int = 1,
    trust_remote_code: bool = False,
    server: ServerSettings | None = None,
) -> Engine:
    """Load `model` (a folder or a hub id) into the engine called `name`: "transformers", "vllm" or "server".

    dtype "auto" is the checkpoint's own; device "auto" is cuda where there is one. `max_model_len` limits the context
    in tokens (less memory in vLLM); `batch_size` limits the sequences in flight (default: the engine's own choice).
    vllm alone: `tensor_parallel_size` GPUs share each copy of the model, and `data_parallel_size` copies share the
    work, each in a process of its own. `trust_remote_code` runs Python code that comes with the model.

    For "server", `model` is the address of an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1, `server`
    holds what else there is to know about it, and `revision` belongs to the tokenizer.

    Raises ParameterError, before any weight is read, for an unknown engine, a folder without weights or tokenizer, a
    library that isn't installed, an address where nothing of the kind answers, or a parameter that the engine can't
    heed.
    """
    check_engine(name)
    if dtype not in DTYPES:
        raise ParameterError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if batch_size is not None and batch_size < 1:
        raise ParameterError(f"batch_size must be at least 1, not {batch_size}")
    for parameter, size in (("tensor", tensor_parallel_size), ("data", data_parallel_size)):
        if size < 1:
            raise ParameterError(f"{parameter}_parallel_size must be at least 1, not {size}")
        if size > 1 and name != "vllm":
            raise ParameterError(f"{parameter}_parallel_size needs engine vllm, not {name}")
    if server is not None and name != "server":
        raise ParameterError(f"server: these settings are for engine server, not {name}")
    check_model(model, name)
    if name == "server":
        from quagmire_utils.engines.server import ServerEngine

        if (dtype, device) != ("auto", "auto"):
            raise ParameterError("dtype and device are the server's own, and can't be chosen from here")
        return ServerEngine(
            str(model),
            settings=server,
            revision=revision,
            max_model_len=max_model_len,
            batch_size=batch_size,
            trust_remote_code=trust_remote_code,
        )
    if name == "vllm":
        from quagmire_utils.engines.vllm import VLLMEngine, VLLMSettings

        settings = VLLMSettings(
            model=str(model),
            revision=revision,
            dtype=dtype,
            device=device,
            max_model_len=max_model_len,
            batch_size=batch_size,
            tensor_parallel_size=tensor_parallel_size,
            trust_remote_code=trust_remote_code,
        )
        if data_parallel_size > 1:
            from quagmire_utils.engines.vllm_replicas import ReplicatedVLLMEngine

            return ReplicatedVLLMEngine(settings, data_parallel_size)
        return VLLMEngine(settings)
    from quagmire_utils.engines.transformers import TransformersEngine

    return TransformersEngine(
        str(model),
        revision=revision,
        dtype=dtype,
        device=device,
        max_model_len=max_model_len,
        batch_size=batch_size,
        trust_remote_code=trust_remote_code,
    )


def check_engine(name: str) -> None:
    """Raise ParameterError for an engine that does not exist, or whose library is not installed."""
    if name not in ENGINES:
        raise ParameterError(f"engine must be one of {', '.join(ENGINES)}, not {name!r}")
    if importlib.util.find_spec(_LIBRARY[name]) is None:
        if name == "server":
            raise ParameterError("engine server needs httpx: `pip install -e '.[server]'` installs it")
        raise ParameterError(f"engine {name} is not installed: `./reproduce.sh setup` installs it where it can be had")


def load_config(model: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The model's configuration; ParameterError if there is none to be had."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise _needs_trust(model) from error
        raise ParameterError(f"model: {model} can't be loaded ({str(error).strip().splitlines()[0]})") from error


def _needs_trust(model: str) -> ParameterError:
    return ParameterError(
        f"trust_remote_code: {model} comes with Python code of its own, which only runs with trust_remote_code=True"
    )


def load_tokenizer(model: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer; ParameterError if there is none to be had."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers raises bare Exception for a broken tokenizer.json
        if "trust_remote_code" in str(error):
            raise _needs_trust(model) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ParameterError(f"model: the tokenizer of {model} can't be loaded ({reason})") from error


def resolve_context_length(config: PreTrainedConfig, max_model_len: int | None) -> int:
    """Tokens that prompt and answer may have together: the model's, or `max_model_len` if that is less."""
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    if max_model_len is None:
        if longest is None:
            raise ParameterError(
                "max_model_len must be given, because the model's configuration names no context length"
            )
        return longest
    if max_model_len < 2 or (longest is not None and max_model_len > longest):
        raise ParameterError(f"max_model_len must be between 2 and the model's {longest}, not {max_model_len}")
    return max_model_len


def resolve_dtype(config: PreTrainedConfig, dtype: str) -> str:
    """`dtype`, with "auto" replaced by the checkpoint's own (float32 where it names none)."""
    if dtype != "auto":
        return dtype
    own = str(config.get_text_config().dtype or config.dtype or "float32").removeprefix("torch.")
    return own if own in DTYPES else "float32"


def end_tokens(
    model: str, revision: str | None, config: PreTrainedConfig | None, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Every token id that ends an answer: the tokenizer's, the configuration's and the generation configuration's.

    Those that the model has no probability for (of a tokenizer that is larger) are left out; vLLM refuses them.
    """
    from transformers import GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(model, revision=revision).eos_token_id
    except OSError:
        generation = None  # a model without a generation_config.json
    found: set[int] = set()
    text = None if config is None else config.get_text_config()
    own = getattr(text, "eos_token_id", None)
    size = getattr(text, "vocab_size", None) or math.inf
    for ids in (tokenizer.eos_token_id, own, generation):
        found.update([] if ids is None else [ids] if isinstance(ids, int) else ids)
    return sorted(token for token in found if token < size)


def check_requests(requests: Sequence[Request], params: SamplingParams, context_length: int) -> None:
    """Raise ParameterError for a request without prompt or samples, or too long for the context."""
    for request in requests:
        if request.n < 1 or not request.prompt_ids:
            raise ParameterError(
                f"a request needs n >= 1 and a prompt, not n={request.n} with {len(request.prompt_ids)} tokens"
            )
        if len(request.prompt_ids) + params.max_tokens > context_length:
            raise ParameterError(
                f"max_tokens: a prompt of {len(request.prompt_ids)} tokens and {params.max_tokens} generated ones "
                f"exceed the model's context of {context_length} tokens"
            )


def to_completions(
    answers: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
) -> list[Completion]:
    """Completions of generated token ids, each with its end-of-sequence token, if it has one, as the last."""
    ends = set(ends)
    stopped = [bool(len(ids)) and ids[-1] in ends for ids in answers]
    bodies = [list(ids[:-1]) if stop else list(ids) for ids, stop in zip(answers, stopped, strict=True)]
    texts = tokenizer.batch_decode(bodies, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [
        Completion(text, len(ids), "stop" if stop else "length")
        for text, ids, stop in zip(texts, answers, stopped, strict=True)
    ]


def engine_digest(engine: Engine) -> str:
    """Sixteen hexadecimal digits that stand for an engine's model: what it says itself, or the `model_digest`."""
    return getattr(engine, "digest", None) or model_digest(engine.model, engine.revision)
