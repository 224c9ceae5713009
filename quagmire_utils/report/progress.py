"""Progress of notebooks that run side by side: one screen, a log each, and an estimate of the time left.

screen = Screen(sys.stderr)
progress = ProgressLog(log, screen, "fig03_sft_vs_rl")       # takes what a notebook writes to stderr
left = time_left([12.0, 14.0], remaining=5, at_once=2)          # ", about 0:32 left"
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TextIO

SILENCE = 10  # seconds between two lines in a file; a terminal is redrawn each second


class Screen:
    """The terminal that the notebooks of a run share: lines that stay, and below them a line with what is running."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._states = stream, dict[str, str]()
        self._lock = threading.RLock()
        self.shown = time.monotonic()  # when something was last written
        self.total = self.done = 0  # notebooks of the run

    def silent(self) -> bool:
        """Return whether nothing was written for a second (terminal) or `SILENCE` seconds (file)."""
        return time.monotonic() - self.shown >= (1.0 if self._stream.isatty() else SILENCE)

    def line(self, text: str, forget: str = "") -> None:
        """Write a line that stays; forget the state of a notebook that has ended."""
        with self._lock:
            self._states.pop(forget, None)
            self._write(text, final=True)

    def state(self, states: Mapping[str, str]) -> None:
        """Show the state of running notebooks: a terminal is redrawn, a file gets a line after ten silent seconds."""
        with self._lock:
            self._states.update(states)
            if self._stream.isatty() or self.silent():
                self._write(" · ".join(self._states.values()), final=False)

    def _write(self, text: str, *, final: bool) -> None:
        if self._stream.isatty():
            text = "\r\x1b[K" + (text + "\n" if final else text[: shutil.get_terminal_size().columns - 1])
        self._stream.write(text if self._stream.isatty() else text + "\n")
        self._stream.flush()
        self.shown = time.monotonic()


class ProgressLog:
    """Take what a running notebook writes to a stream: whole lines go to a log, and to the screen if there is one.

    A progress bar redraws itself after a carriage return: the screen shows each redraw, the log its last state.
    """

    def __init__(self, log: TextIO, screen: Screen | None, name: str = "", prefix: str = "") -> None:
        self._log, self._screen, self._name, self._prefix = log, screen, name, prefix
        self._line, self._lock = "", threading.Lock()

    def write(self, text: str) -> None:
        """Take a piece of the stream; it may begin and end within a line."""
        with self._lock:
            for piece in re.split(r"([\r\n])", text):
                if piece == "\n":
                    self._log.write(self._line + "\n")
                    if self._line.strip() and self._screen is not None:
                        self._screen.line(self._prefix + self._line)
                self._line = "" if piece in ("\r", "\n") else self._line + piece
            if self._line.strip() and self._screen is not None:
                self._screen.state({self._name: self._prefix + self._line})

    def flush(self) -> None:
        """Flush the log; papermill asks for it after each piece."""
        self._log.flush()

    def close(self) -> None:
        """End the line that the notebook left open."""
        if self._line:
            self.write("\n")

    @property
    def bar(self) -> str:
        """The line that the notebook has open, usually its progress bar."""
        return self._line.strip()


def time_left(taken: Collection[float], remaining: int, at_once: int) -> str:
    """Return ", about 1:20 left", if each remaining notebook takes the mean of those taken; "" if none is known."""
    if not taken or not remaining:
        return ""
    return f", about {clock(sum(taken) / len(taken) * remaining / at_once)} left"


def progress_line(name: str, partial: Path, seconds: float) -> str:
    """Return how far a running notebook is: cells done and time gone."""
    cells = "starting"
    with contextlib.suppress(OSError, ValueError, KeyError):  # papermill may be writing the file just now
        code = [cell for cell in json.loads(partial.read_text())["cells"] if cell["cell_type"] == "code"]
        done = sum(cell["metadata"].get("papermill", {}).get("status") == "completed" for cell in code)
        cells = f"{done} of {len(code)} cells"
    return f"{name}: {cells}, {clock(seconds)}"


def clock(seconds: float) -> str:
    """Return minutes and seconds, for example 12:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
