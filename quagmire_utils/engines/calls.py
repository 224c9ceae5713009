"""The HTTP side of the server engine: calls that are repeated while that helps, and errors in one sentence.

What is worth another try (429, 5xx, a connection that breaks, an answer that is not one) is told apart from what is
not (a wrong address, a missing key, an unknown model, a prompt that is too long). Pauses double and are jittered; a
Retry-After holds back all calls that share a `Calls`.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.engines.base import EngineError

if TYPE_CHECKING:
    import httpx

    from quagmire_utils.engines.config import ServerSettings

_PROBE_TRIES = 3
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})  # 52x: Cloudflare's


class MalformedError(ValueError):
    """An answer that isn't what the endpoint should give; worth another try."""


class Calls:
    """HTTP calls that share connections, the pauses a server asks for, and the decision to give up."""

    def __init__(self, base_url: str, settings: ServerSettings, at_once: int, *, probing: bool = False) -> None:
        import httpx

        self.base_url, self.settings, self.probing = base_url, settings, probing
        self.given_up = False
        self._resume_at = 0.0  # monotonic seconds
        self._jitter = random.SystemRandom()  # no seed: many clients must not come back at the same moment
        self._key = os.environ.get(settings.api_key_env, "").strip()
        if self._key and not (self._key.isascii() and self._key.isprintable()):
            raise ParameterError(f"{settings.api_key_env} holds characters that no API key has")
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(settings.timeout, connect=min(20.0, settings.timeout)),
            limits=httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once),
            trust_env=not is_loopback(base_url),  # proxies are for other machines
        )

    async def __aenter__(self) -> Calls:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def call(self, method: str, path: str, body: Any, read: Callable[[Any], Any]) -> Any:
        """`read(answer)` of the first answer that `read` takes; None if another call has given up meanwhile.

        `read` raises MalformedError for what is worth another try. Raises EngineError when the tries are used up,
        ParameterError where trying again can't help.
        """
        import httpx

        tries = min(self.settings.tries, _PROBE_TRIES) if self.probing else self.settings.tries
        for attempt in range(tries):
            while (pause := self._resume_at - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            if self.given_up:
                return None
            asked = None  # seconds that the server wants us to wait
            limited = False
            try:
                async with asyncio.timeout(self.settings.timeout):
                    response = await self._client.request(method, _join(self.base_url, path), json=body)
            except (httpx.RequestError, TimeoutError, OSError) as error:
                if self.probing and isinstance(error, httpx.ConnectError | httpx.UnsupportedProtocol):
                    raise ParameterError(
                        f"base_url: nothing answers at {self.base_url} ({self.cleaned(str(error))})"
                    ) from None
                reason = self.cleaned(str(error) or type(error).__name__)
            else:
                if response.status_code == 200:
                    try:
                        return read(response.json())
                    except (ValueError, KeyError, TypeError, RecursionError) as error:
                        if isinstance(error, ParameterError):
                            raise
                        if self.probing:
                            raise _not_a_server(self.base_url) from None
                        reason = "an answer that is not what the endpoint should give"
                        if isinstance(error, MalformedError):
                            reason += f": {self.cleaned(str(error))}"
                elif response.status_code in _RETRIED:
                    limited = response.status_code == 429
                    asked = _retry_after(response.headers.get("retry-after"))
                    reason = f"{response.status_code}, {self._said(response)}"
                else:
                    raise self._refusal(response, path)
            if attempt + 1 == tries:
                break
            if asked is not None and asked > self.settings.timeout:
                raise EngineError(f"{self.base_url} asks to wait {asked:.0f} seconds before the next call ({reason})")
            wait = min(
                self.settings.longest_wait, self.settings.first_wait * 2 ** min(attempt, 32)
            ) * self._jitter.uniform(0.5, 1)
            wait = max(wait, asked or 0.0)
            if limited or asked is not None:
                self._resume_at = max(self._resume_at, time.monotonic() + wait)
                wait = self._jitter.uniform(0, self.settings.first_wait)  # not all at once after the pause
            await asyncio.sleep(wait)
        raise EngineError(f"{self.base_url} did not answer after {tries} {'tries' if tries > 1 else 'try'} ({reason})")

    def _refusal(self, response: httpx.Response, path: str) -> ParameterError:
        """The error for a status that stays what it is."""
        status, said, env = response.status_code, self._said(response), self.settings.api_key_env
        if status in (401, 403):
            cure = f"the key in {env} is not one that it takes" if self._key else f"put a key into {env}"
            return ParameterError(f"api_key_env: {self.base_url} wants an API key ({status}); {cure}")
        if 300 <= status < 400:
            target = self.cleaned(response.headers.get("location", "elsewhere"))
            return ParameterError(f"base_url: {self.base_url} redirects to {target}; give the address that answers")
        if path == "models" or (status in (404, 405) and "model" not in said.lower()):
            return ParameterError(
                f"base_url: {self.base_url} has no {path} endpoint ({status}); the address of an OpenAI-compatible "
                "server mostly ends in /v1"
            )
        if status == 404:
            return ParameterError(f"model: {self.base_url} does not serve it ({said})")
        if re.search(r"context|maximum.*length|too long|max_tokens", said, re.IGNORECASE):
            return ParameterError(f"max_tokens: prompt and answer do not fit the server's context ({said})")
        return ParameterError(f"{self.base_url} refuses the request ({status}, {said})")

    def _said(self, response: httpx.Response) -> str:
        """The message in an error answer, fit to be shown."""
        try:
            data = response.json()
        except (ValueError, RecursionError):
            return self.cleaned(response.text) or response.reason_phrase or "without a reason"
        for name in ("error", "message", "detail"):
            if isinstance(data, dict) and data.get(name):
                data = data[name]
        return self.cleaned(data if isinstance(data, str) else json.dumps(data))

    def cleaned(self, text: str) -> str:
        """A server's text for a message of ours: without the key, which some repeat. See `shown`."""
        return shown(text.replace(self._key, "***") if self._key else text)


def shown(text: str) -> str:
    """At most 200 characters of foreign text in one line, without what a terminal would obey."""
    if not isinstance(text, str):
        raise MalformedError("not a text")
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:2000]).split()).rstrip(".")
    return line if len(line) <= 200 else line[:197] + "..."


def _not_a_server(base_url: str) -> ParameterError:
    return ParameterError(
        f"base_url: what answers at {base_url} is no OpenAI-compatible server, whose address mostly ends in /v1"
    )


def _retry_after(header: str | None) -> float | None:
    """Seconds to wait by a Retry-After header, which holds seconds or a date."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
            seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _join(base_url: str, path: str) -> str:
    """`base_url`/`path`; "../x" stands beside the last part of the address, where vLLM has its version."""
    if path.startswith("../"):
        return f"{base_url.removesuffix('/v1')}/{path[3:]}"
    return f"{base_url}/{path}"


def is_loopback(base_url: str) -> bool:
    """Whether the address is on this machine."""
    host = urlsplit(base_url).hostname or ""
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", host) is not None


def in_thread(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, also where this thread has an event loop already."""
    result: list[Any] = []

    def work() -> None:
        try:
            result.append((asyncio.run(coroutine), None))
        except BaseException as error:
            result.append((None, error))

    thread = threading.Thread(target=work, name="server-engine", daemon=True)
    thread.start()
    thread.join()
    value, error = result[0]
    if error is not None:
        raise error
    return value
