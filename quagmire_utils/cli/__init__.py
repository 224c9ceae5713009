"""The command line: `quagmire`, or `python -m quagmire_utils`.

    quagmire run --profile mini --only fig03,table01    # what ./reproduce.sh does after set-up
    quagmire evaluate path/to/checkpoint --benchmarks math500 --num-samples 64

Exit status: 0 done, 1 it failed or the disk is full, 2 a parameter is wrong, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from quagmire_utils.cli import notebooks, stores, sweeps  # noqa: F401 - registers their commands
from quagmire_utils.cli.app import app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(words, prog_name="quagmire", obj=words)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0
