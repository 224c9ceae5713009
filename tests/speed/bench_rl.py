"""Seconds per step of GRPO: the compact backend beside TRL, on one micro model and the same problems.

    OMP_NUM_THREADS=1 python tests/speed/bench_rl.py                             # pretrains a base model first
    OMP_NUM_THREADS=1 python tests/speed/bench_rl.py --model path/to/checkpoint   # any other micro model

Both draw rollouts from the same engine with the same seeds per step, and the same grader rewards them. They take turns,
so that a busy moment hurts them alike. The first step of a run, which imports and warms up, is not counted. Without
`--model` a base model of the study is pretrained, for some minutes: where no answer is right, the compact backend has
nothing to do.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

from quagmire_utils.core.settings import PretrainingSettings, RLSettings
from quagmire_utils.grading import Grader
from quagmire_utils.training import microlab
from quagmire_utils.training.grpo import train_rl

TERMS = (2, 3, 4, 5)


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--steps", type=int, default=10, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    problems = microlab.make_mixed_problems(TERMS, 2000, seed=1)
    steps: dict[str, list[float]] = {"trl": [], "compact": []}
    with tempfile.TemporaryDirectory() as scratch, Grader(workers=1) as grader:
        model = options.model or Path(scratch) / "model"
        if options.model is None:
            microlab.pretrain(PretrainingSettings(), model, seed=0)
        for i in range(options.rounds):
            for backend, seconds in steps.items():
                settings = RLSettings(
                    steps=options.steps,
                    checkpoints=1,
                    prompts_per_step=8,
                    rollouts=16,
                    max_tokens=96,
                    learning_rate=1e-4,
                    entropy_coefficient=0.0,
                    backend=backend,
                    seed=i,
                )
                output = Path(scratch) / f"{backend}-{i}"
                curve = train_rl(model, problems, output, settings, grader=grader.grade)
                seconds += curve["seconds"][1:].tolist()
                print(f"{backend:8} run {i}: reward {curve['reward'].iloc[0]:.2f} to {curve['reward'].iloc[-1]:.2f}")
    print("\nseconds per step  median  mean")
    for backend, seconds in steps.items():
        print(f"{backend:16} {np.median(seconds):7.3f} {np.mean(seconds):5.3f}")
    print(f"ratio            {np.median(steps['trl']) / np.median(steps['compact']):7.2f}")


if __name__ == "__main__":
    main()
