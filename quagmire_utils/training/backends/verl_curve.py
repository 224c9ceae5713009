"""How far a run of verl has come, read from the files it writes as it goes."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from quagmire_utils.training.backends.runs import read_run

if TYPE_CHECKING:
    import pandas as pd

NAME = "verl"
_CURVE = {  # our names (see `rl.train_rl`), and verl's
    "reward": "critic/score/mean",
    "entropy": "actor/entropy",
    "length": "response_length/mean",
    "truncated": "response_length/clip_ratio",
    "seconds": "timing_s/step",
}


def latest_step(folder: str | Path) -> int:
    """The step of the last whole checkpoint that verl kept; 0 before the first."""
    with contextlib.suppress(OSError, ValueError):
        return int((Path(folder) / "checkpoints" / "latest_checkpointed_iteration.txt").read_text())
    return 0


def curve(folder: str | Path) -> pd.DataFrame:
    """One row per step, with the columns of `rl.train_rl`: step, reward (mean over rollouts), reward_std (standard
    deviation over rollouts), entropy (nats per token), length (mean tokens of a rollout), truncated (fraction),
    seconds. Steps that were taken again after a kill count once, as they were taken last.
    """
    import pandas as pd

    settings = read_run(Path(folder), NAME)["settings"]
    taken: dict[int, dict[str, float]] = {}
    for file in sorted(Path(folder).glob("metrics/*.jsonl")):  # verl begins a new file whenever it starts
        taken |= _entries(file)
    n = settings["prompts_per_step"] * settings["rollouts"]
    rows = []
    for step, values in sorted(taken.items()):
        row = {"step": step, **{ours: values.get(theirs) for ours, theirs in _CURVE.items()}}
        mean = row["reward"]
        if mean is None:
            continue  # logged before the first step
        # rewards are 0 or 1, so their mean says how far they spread
        row["reward_std"] = math.sqrt(max(0.0, mean * (1 - mean)) * n / (n - 1))
        rows.append(row)
    columns = ["step", "reward", "reward_std", "entropy", "length", "truncated", "seconds"]
    return pd.DataFrame(rows, columns=columns)


def _entries(file: Path) -> dict[int, dict[str, float]]:
    entries = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # cut off by a kill, or being written
            entry = json.loads(line)
            entries[int(entry["step"])] = entry["data"]
    return entries
