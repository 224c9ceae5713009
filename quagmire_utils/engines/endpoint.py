"""What the server engine needs to read a server's answers and to call it from any thread."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import re
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any
from urllib.parse import urlsplit

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.engines.checkpoints import resolve_context_length


class MalformedError(ValueError):
    """An answer does not have the form that the endpoint promises; the call is worth another try."""


def in_thread(work: Callable[[Callable[[Any], None]], Coroutine[Any, Any, None]]) -> Iterator[Any]:
    """Yield what the coroutine `work(put)` puts, and raise what it raises; closing the iterator cancels it.

    It runs in a thread with an event loop of its own, because in a notebook this thread has one already.
    """
    items: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    tasks: list[asyncio.Task[None]] = []

    async def run() -> None:
        tasks.append(asyncio.current_task())
        await work(lambda item: items.put(("item", item)))

    def target() -> None:
        try:
            asyncio.run(run())
            items.put(("end", None))
        except BaseException as error:  # raised again in the thread that waits for it
            items.put(("error", error))

    thread = threading.Thread(target=target, name="server-engine", daemon=True)
    thread.start()
    try:
        while (item := items.get())[0] == "item":
            yield item[1]
        if item[0] == "error":
            raise item[1]
    finally:
        while thread.is_alive():
            for task in tasks:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    task.get_loop().call_soon_threadsafe(task.cancel)
            thread.join(0.1)


def check_prompt(ours: tuple[int, ...], seen: Any, count: Any) -> None:
    """Raise ParameterError if the server read other prompt tokens than ours; seen: their ids, count: their number."""
    if isinstance(seen, list):
        same, theirs = tuple(seen) == ours, len(seen)
    else:
        same, theirs = not isinstance(count, int) or count in (0, len(ours)), count
    if not same:
        reason = f"the server's prompt tokens ({theirs}) are not ours ({len(ours)}); name its tokenizer"
        raise ParameterError("server.tokenizer", reason=reason)


def model_list(data: Any) -> list[dict[str, Any]]:
    """Return the model cards in an answer of the models endpoint."""
    cards = data["data"]
    if not isinstance(cards, list) or not all(isinstance(c, dict) and isinstance(c.get("id"), str) for c in cards):
        raise MalformedError("no list of models")
    return cards


def context_length(served: int | None, config: Any, wanted: int | None) -> int:
    """Return how many tokens prompt and answer may have: `wanted`, or what the server or the configuration allows."""
    if served is None and config is not None:
        return resolve_context_length(config, wanted)
    if served is None and wanted is None:
        raise ParameterError("max_model_len", reason="give it, because neither server nor tokenizer reports it")
    if served is not None and wanted is not None and wanted > served:
        raise ParameterError("max_model_len", wanted, f"at most the server's {served}")
    return wanted or served


def shown(text: str) -> str:
    """Return at most 200 characters of foreign text on one line, without control characters."""
    if not isinstance(text, str):
        raise MalformedError("not a text")
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:2000]).split()).rstrip(".")
    return line if len(line) <= 200 else line[:197] + "..."


def is_loopback(base_url: str) -> bool:
    """Whether the address is on this machine."""
    host = urlsplit(base_url).hostname or ""
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", host) is not None
