"""The losses of single traces in a file, so that a killed computation can be resumed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_arrow, write_parquet
from quagmire_utils.evaluation.generalization_loss.summary import COLUMNS

WRITE_SECONDS = 30.0  # between two writes: the most that a kill loses
_MARK = b"quagmire_utils.generalization_loss"
_COLUMNS = ["total", *(f"range_{i}" for i in range(1, COLUMNS))]


class PartialLosses:
    """The losses computed so far, by the digest of the trace's tokens, and the file that holds them (None: no file)."""

    def __init__(self, path: str | Path | None, origin: dict[str, str]) -> None:
        """Read the file, if it exists; `origin` is what the losses depend on besides the tokens.

        Raise ParameterError if the file is something else, or of another origin.
        """
        self.path = None if path is None else Path(path)
        self.origin = origin
        self._known: dict[str, np.ndarray] = {}
        self._unwritten = False
        self._next_write = time.monotonic() + WRITE_SECONDS
        if self.path is not None and self.path.exists():
            self._read()

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def get(self, keys: Sequence[str]) -> np.ndarray:
        """Return summed losses (keys, COLUMNS), in nats."""
        return np.stack([self._known[key] for key in keys])

    def add(self, keys: Sequence[str], sums: np.ndarray) -> None:
        """Add summed losses (keys, COLUMNS), and write the file if the last write is long ago."""
        self._known.update(zip(keys, np.array(sums), strict=True))  # a copy: Ray's arrays pin its memory
        self._unwritten = True
        if self.path is not None and time.monotonic() >= self._next_write:
            self.write()
            self._next_write = time.monotonic() + WRITE_SECONDS

    def write(self) -> None:
        """Write the file, atomically."""
        import pandas as pd

        if self.path is None or not self._unwritten:
            return
        frame = pd.DataFrame(np.stack(list(self._known.values())), columns=_COLUMNS)
        frame.insert(0, "trace", list(self._known))
        write_parquet(frame, self.path, metadata={_MARK: json.dumps(self.origin, sort_keys=True).encode()})
        self._unwritten = False

    def _read(self) -> None:
        import pyarrow as pa

        try:
            table = read_arrow(self.path)
            origin = json.loads((table.schema.metadata or {})[_MARK])
        except (OSError, pa.ArrowException, KeyError) as error:
            reason = f"{self.path} is damaged, or not a file of losses; delete it, or name another file"
            raise ParameterError("partial", self.path, reason=reason) from error
        other = sorted(name for name in {*origin, *self.origin} if origin.get(name) != self.origin.get(name))
        if other:
            reason = f"the losses in {self.path} are of another {' and '.join(other)}; name another file"
            raise ParameterError("partial", self.path, reason=reason)
        sums = np.column_stack([table[name].to_numpy() for name in _COLUMNS])
        self._known = dict(zip(table["trace"].to_pylist(), sums, strict=True))
