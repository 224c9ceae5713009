"""What passes between a worker, its host of programs, and a program: frames of bytes, and plain data as JSON."""

from __future__ import annotations

import numbers
import os
import struct
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

_FRAME = struct.Struct("=cI")
START, INPUT, STOP, OUTPUT, END = b"S", b"I", b"K", b"O", b"E"  # kinds of frames; the first three go to the host


def send(handle: int, kind: bytes, payload: bytes) -> None:
    """Write a frame."""
    data = memoryview(_FRAME.pack(kind, len(payload)) + payload)
    while data:
        data = data[os.write(handle, data) :]


def receive(handle: int) -> tuple[bytes, bytes]:
    """Read a frame: kind and payload. Raises EOFError where the other side is gone."""
    kind, size = _FRAME.unpack(_read_exactly(handle, _FRAME.size))
    return kind, _read_exactly(handle, size)


def _read_exactly(handle: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(handle, min(size, 2**20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def encode(value: Any, other: Callable[[Any], Any]) -> Any:
    """As JSON; `other(value)` encodes what is no plain data. Subclasses go as what they are of."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(int.__index__(value)) >= 2**63:
        return ["n", hex(value)]
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind.__add__(value, kind())
    if isinstance(value, complex):
        return ["c", value.real, value.imag]
    if isinstance(value, bytes | bytearray):
        return ["b" if isinstance(value, bytes) else "ba", bytes(value).hex()]
    if isinstance(value, Mapping):
        return ["d", [[encode(key, other), encode(item, other)] for key, item in value.items()]]
    for kind, name in ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "f")):
        if isinstance(value, kind):
            return [name, [encode(item, other) for item in kind.__iter__(value)]]
    if type(value).__name__ == "deque":
        return ["q", [encode(item, other) for item in value]]
    if isinstance(value, range):
        return ["r", value.start, value.stop, value.step]
    if isinstance(value, numbers.Integral):  # as numpy's
        return encode(int(value), other)
    if isinstance(value, numbers.Rational):
        return ["fr", hex(value.numerator), hex(value.denominator)]
    if isinstance(value, numbers.Real):
        return float(value)
    if type(value).__name__ in ("bool", "bool_") and type(value).__module__ == "numpy":
        return bool(value)
    return other(value)


def decode(data: Any, meant: Callable[[int], Any]) -> Any:
    """What `encode` encoded; `meant(handle)` is what a reference stands for. Raises for anything else."""
    if data is None or isinstance(data, bool | int | float | str):
        return data
    kind, *rest = data
    if kind == "o":
        return meant(rest[0])
    if kind == "n":
        return int(rest[0], 16)
    if kind == "fr":
        return Fraction(int(rest[0], 16), int(rest[1], 16))
    if kind == "c":
        return complex(*rest)
    if kind in ("b", "ba"):
        return (bytes if kind == "b" else bytearray).fromhex(rest[0])
    if kind == "r":
        return range(*rest)
    if kind == "d":
        return {decode(key, meant): decode(item, meant) for key, item in rest[0]}
    items = [decode(item, meant) for item in rest[0]]
    if kind == "q":
        from collections import deque

        return deque(items)
    return {"l": list, "t": tuple, "s": set, "f": frozenset, "i": iter}[kind](items)
