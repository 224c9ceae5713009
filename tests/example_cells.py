"""What a sweep's cells leave, their numbers drawn instead of measured, for tests of what is done with them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from quagmire_utils.core.files import write_json, write_parquet
from quagmire_utils.core.provenance import hardware, package_versions
from quagmire_utils.core.settings import Profile
from quagmire_utils.sweep.grid import Cell, cell_folder


def write_cell(profile: Profile, folder: Path, cell: Cell, rng: np.random.Generator) -> None:
    """The records of a finished cell: of 64 answers to each problem, about 26 right."""
    place = cell_folder(folder, cell)
    names = {"family": cell.family, "candidate": cell.candidate}
    problems = [(name, f"{name}-{i}") for name, count in profile.benchmarks.items() for i in range(count)]
    checkpoints = profile.rl.checkpoint_steps if cell.kind == "rl" else (0,)
    keys = [(*problem, checkpoint) for checkpoint in checkpoints for problem in problems]
    counts = pd.DataFrame(keys, columns=["benchmark", "problem", "checkpoint"]).assign(**names, stage=cell.kind, n=64)
    counts["rl_run"] = -1 if cell.run is None else cell.run
    counts["correct"] = rng.binomial(64, 0.4, len(counts))
    counts["wrong"] = 64 - counts["correct"]
    counts[["no_answer", "truncated", "timeout", "error"]] = 0
    counts["mean_tokens"] = rng.uniform(5, 16, len(counts))
    write_parquet(counts, place / "counts.parquet")
    if cell.kind == "rl":
        steps = np.arange(1, profile.rl.steps + 1)
        curve = pd.DataFrame({**names, "rl_run": cell.run, "step": steps, "seconds": 1.0})
        curve["reward"], curve["entropy"] = rng.uniform(0, 1, len(steps)), rng.uniform(0, 2, len(steps))
        write_parquet(curve, place / "rl_curves.parquet")
    else:
        sets = ["validation"] if cell.kind == "base" else ["validation", "own"]
        loss = pd.DataFrame(
            {**names, "stage": cell.kind, "validation_set": sets, "nll": rng.uniform(0.5, 1, len(sets))}
        )
        write_parquet(loss.assign(standard_error=0.01, tokens=90), place / "generalization_loss.parquet")
    facts = {"seconds": {"total": 1.0}, "hardware": hardware(), "packages": package_versions()}
    write_json({**asdict(cell), **facts}, place / "cell.json")
