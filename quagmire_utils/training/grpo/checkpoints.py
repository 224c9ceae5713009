"""The `checkpoint-<step>` folders of a run: which one is the latest, and whether it is whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from quagmire_utils.core.files import read_json

STATE = "trainer_state.json"  # the file that is written last


def latest_checkpoint(output: Path) -> Path | None:
    """The last complete checkpoint of a run; what a kill left half-written is removed."""
    complete = []
    for folder in output.glob("checkpoint-*"):
        if read_state(folder) is None:
            shutil.rmtree(folder)
        else:
            complete.append(folder)
    return max(complete, key=lambda folder: int(folder.name.split("-")[1]), default=None)


def read_state(checkpoint: Path | None) -> dict[str, Any] | None:
    """The state that a checkpoint was saved in, or None where there is no checkpoint or it is not whole."""
    try:
        return None if checkpoint is None else read_json(checkpoint / STATE)
    except (OSError, ValueError):
        return None
