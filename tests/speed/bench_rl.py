"""Seconds per step of GRPO: the compact backend beside TRL, on one micro model and the same problems.

    OMP_NUM_THREADS=1 python tests/speed/bench_rl.py                     # pretrains a base model first
    OMP_NUM_THREADS=1 python tests/speed/bench_rl.py path/to/checkpoint   # any other micro model

Both use the same engine, seeds and grader, and take turns; the first step of a run, which warms up, is not counted."""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from quagmire_utils.core.settings import PretrainingSettings, RLSettings
from quagmire_utils.grading import Grader
from quagmire_utils.training import microlab
from quagmire_utils.training.grpo import train_rl

ROUNDS = 3
SIZE = {"steps": 10, "checkpoints": 1, "prompts_per_step": 8, "rollouts": 16, "max_tokens": 96}
SETTINGS = RLSettings(**SIZE, learning_rate=1e-4, entropy_coefficient=0.0)


def main(model: str = "") -> None:
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    problems = microlab.make_mixed_problems((2, 3, 4, 5), 2000, seed=1)
    steps: dict[str, list[float]] = {"trl": [], "compact": []}
    with tempfile.TemporaryDirectory() as scratch, Grader(workers=1) as grader:
        base = Path(model or f"{scratch}/model")
        if not model:
            microlab.pretrain(PretrainingSettings(), base, seed=0)
        for i in range(ROUNDS):
            for backend, seconds in steps.items():
                settings = SETTINGS.replace(backend=backend, seed=i)
                curve = train_rl(base, problems, Path(scratch) / f"{backend}-{i}", settings, grader=grader.grade)
                seconds += curve["seconds"][1:].tolist()
                print(f"{backend:8} run {i}: reward {curve['reward'].iloc[0]:.2f} to {curve['reward'].iloc[-1]:.2f}")
    print("\nseconds per step  median  mean")
    for backend, seconds in steps.items():
        print(f"{backend:16} {np.median(seconds):7.3f} {np.mean(seconds):5.3f}")
    print(f"ratio            {np.median(steps['trl']) / np.median(steps['compact']):7.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
