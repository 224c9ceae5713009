"""Locks between the processes that share a folder; `kill -9` of a holder releases its locks.

    with exclusive(folder): ...         # one writer at a time
    claims = Claims(folder)
    claims.take("chunk 3")              # False: another process is working on it

Where a file system has no locks, processes do not see each other: work may then be done twice, but no data is lost,
because samples that are stored twice count once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_SLOTS = 64  # lock files for claims; two names in one slot only wait for each other
_POLL_SECONDS = 0.01


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep all other processes and threads out of this block for `folder`. Blocks must not be nested."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock", poll_interval=_POLL_SECONDS):
        yield


class Claims:
    """What this process is working on in a folder, by name; no other process can claim the same while it lives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / ".claims"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._held: dict[str, FileLock] = {}  # by slot

    def take(self, name: str) -> bool:
        """Claim `name`; return False if another process holds it."""
        slot = _slot(name)
        lock = self._held.get(slot) or FileLock(self._folder / f"{slot}.lock", thread_local=False)
        try:
            lock.acquire(blocking=False)  # counts how often it was taken
        except Timeout:
            return False
        self._held[slot] = lock
        return True

    def release(self, name: str) -> None:
        """Let others claim `name`."""
        if lock := self._held.get(_slot(name)):
            lock.release()

    def close(self) -> None:
        """Release everything."""
        for lock in self._held.values():
            lock.release(force=True)
        self._held.clear()


def _slot(name: str) -> str:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return f"{int.from_bytes(digest[:8], 'big') % _SLOTS:02d}"
