"""Processes that share a store: one writes its description at a time, and each draws something else.

The locks are POSIX record locks: they end with their process, whatever kills it, and file systems that several machines
share keep them too. Where there are none, processes don't see each other: the store stays right, since samples that are
there twice count once, and only work is lost. Threads of one process are all the same to such a lock, and closing the
file anywhere in the process ends it, so `exclusive` holds a lock of the process besides.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HELD = (errno.EACCES, errno.EAGAIN)
_SLOTS = 2**31 - 1  # bytes that a lock can lie on; two names on one byte only wait for each other
_THREADS = threading.Lock()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Wait until no other process or thread is in this block for `folder`, and keep others out. Blocks don't nest."""
    folder.mkdir(parents=True, exist_ok=True)
    with _THREADS:
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, 0, wait=True)
            yield
        finally:
            os.close(descriptor)


class Claims:
    """What this process is working on in a folder, by name; other processes can't claim it while this one lives."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor: int | None = os.open(folder / ".claims", os.O_RDWR | os.O_CREAT, 0o666)

    def take(self, name: str) -> bool:
        """Claim `name`; False if another process has it."""
        return _lock(self._descriptor, _slot(name), wait=False)

    def release(self, name: str) -> None:
        """Let others have `name`."""
        import fcntl

        if self._descriptor is not None:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _slot(name))

    def close(self) -> None:
        """Release everything."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _slot(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") % _SLOTS


def _lock(descriptor: int, slot: int, *, wait: bool) -> bool:
    import fcntl

    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, slot)
    except OSError as error:
        return error.errno not in _HELD  # a file system without locks: go on without
    return True
