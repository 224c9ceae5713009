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
        self._locks: dict[int, FileLock] = {}  # by slot

    def take(self, name: str) -> bool:
        """Claim `name`; return False if another process holds it."""
        try:
            self._lock(name).acquire(blocking=False)  # counts how often it was taken
        except Timeout:
            return False
        return True

    def release(self, name: str) -> None:
        """Let others claim `name`."""
        self._lock(name).release()

    def close(self) -> None:
        """Release everything."""
        for lock in self._locks.values():
            lock.release(force=True)

    def _lock(self, name: str) -> FileLock:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
        slot = int.from_bytes(digest[:8], "big") % _SLOTS
        if slot not in self._locks:
            self._locks[slot] = FileLock(self._folder / f"{slot:02d}.lock", thread_local=False)
        return self._locks[slot]
