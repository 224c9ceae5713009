"""Reinforcement learning with verifiable rewards: GRPO from a candidate, keeping checkpoints. Paper: App. B.2.

Rollouts come from the same engine, and rewards from the same grader, as the benchmark scores, so RL maximises exactly
what the evaluation measures.

    train_rl("models/candidate", problems, "models/candidate-rl0", RLSettings(steps=100))

`RLSettings.backend` chooses the trainer. `trl` (the default, for every real model) is TRL's `GRPOTrainer` on one
machine. `compact` is our own loop for micro models: the same loss and gradients (a test compares them), several times
as fast.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import write_json, write_parquet
from quagmire_utils.core.settings import RLSettings
from quagmire_utils.data import Problem

__all__ = ["train_rl"]

_CURVE = {  # our names, and those of TRL's log, which both backends keep
    "step": "step",
    "reward": "reward",
    "reward_std": "reward_std",
    "entropy": "entropy",
    "length": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
    "seconds": "step_time",
}


def train_rl(
    model: str | Path,
    problems: Sequence[Problem],
    output: str | Path,
    settings: RLSettings,
    *,
    grader: Callable[[Sequence[str], Sequence[Problem]], Sequence[object]],
) -> pd.DataFrame:
    """Run GRPO from the checkpoint `model` on `problems`; keep `checkpoint-<step>` folders under `output`.

    `grader(responses, problems)` returns one `grading.Grade` each; the reward is 1 for CORRECT and 0 for all else.
    Returns the curve, one row per step: step, reward (mean over rollouts), reward_std (standard deviation over
    rollouts), entropy (nats per token), length (mean tokens of a rollout), truncated (fraction), seconds. It is also
    written to `curve.parquet`, and `rl.json` is written last. A killed run resumes from its latest checkpoint.
    Raises ParameterError for no problems, a prompt and answer longer than the context, or an `output` that holds the
    checkpoints of the other backend.
    """
    if not problems:
        raise ParameterError("problems", reason="there are none to learn from")
    from quagmire_utils.training.grpo.rollouts import latest_checkpoint, make_environment, read_state

    if settings.backend == "compact":
        from quagmire_utils.training.grpo.compact import train
    else:
        from quagmire_utils.training.grpo.grpo_trl import train
    output = Path(output)
    started = time.perf_counter()
    latest = latest_checkpoint(output)
    state = read_state(latest)
    if state is not None and state.get("backend", "trl") != settings.backend:
        raise ParameterError("rl.backend", settings.backend, reason=f"{latest} was made by another; use a new folder")
    environment = make_environment(model, problems, settings, grader)
    if state is None or state["global_step"] < settings.steps:
        history = train(environment, output, latest)
    else:
        history = state["log_history"]
    rows = [{ours: entry.get(theirs) for ours, theirs in _CURVE.items()} for entry in history if "reward" in entry]
    curve = pd.DataFrame(rows, columns=list(_CURVE))
    write_parquet(curve, output / "curve.parquet")
    facts = {"settings": settings.model_dump(), "checkpoints": list(settings.checkpoint_steps)}
    write_json({**facts, "seconds": time.perf_counter() - started}, output / "rl.json")
    return curve
