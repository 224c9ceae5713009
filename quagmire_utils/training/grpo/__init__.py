"""Reinforcement learning with verifiable rewards: GRPO from a candidate, keeping checkpoints. Paper: App. B.2.

    train_rl("models/candidate", problems, "models/candidate-rl0", RLSettings(steps=100), grader=grader)

Rollouts come from the same engine, and rewards from the same grader, as the benchmark scores. `RLSettings.backend`
chooses the trainer: `trl` (for every real model), TRL's `GRPOTrainer` on one machine; or `compact`, our own loop for
micro models, with the same loss and gradients (a test compares them), several times as fast.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json, write_json, write_parquet
from quagmire_utils.core.settings import RLSettings
from quagmire_utils.data import Problem
from quagmire_utils.data.prompts import RenderedPrompt, check_fits, render_problem
from quagmire_utils.engines import EngineConfig, Request, SamplingParams, load_engine
from quagmire_utils.evaluation.thinking import OPEN
from quagmire_utils.training.rewards import rewards_of

if TYPE_CHECKING:
    from quagmire_utils.engines.transformers import TransformersEngine

_CURVE = {  # our names, and those of TRL's log, which both backends keep
    "step": "step",
    "reward": "reward",
    "reward_std": "reward_std",
    "entropy": "entropy",
    "length": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
    "seconds": "step_time",
}
Grader = Callable[[Sequence[str], Sequence[Problem]], Sequence[Any]]
STATE = "trainer_state.json"  # the last file that is written of a checkpoint


@dataclass(frozen=True)
class Environment:
    """The problems as prompts, the policy that answers them, and the grader that rewards the answers."""

    engine: TransformersEngine
    problems: Sequence[Problem]
    prompts: Sequence[RenderedPrompt]  # of the problems, in their order
    grader: Grader
    settings: RLSettings

    def rollouts(self, chosen: Sequence[int], step: int) -> list[list[list[int]]]:
        """Return the token ids of `settings.rollouts` answers to each of the problems `chosen`.

        They are drawn from the current weights, in eval mode, with the seeds of `step` (from 0).
        """
        settings, policy = self.settings, self.engine.module
        stride = len(chosen) * settings.rollouts
        first = derive_seed("rl", settings.seed, step)
        requests = [
            Request(self.prompts[problem].token_ids, settings.rollouts, first + i * stride)
            for i, problem in enumerate(chosen)
        ]
        was_training = policy.training
        policy.eval()
        groups = self.engine.generate_ids(
            requests, SamplingParams(temperature=settings.temperature, max_tokens=settings.max_tokens)
        )
        policy.train(was_training)
        return groups

    def rewards(self, chosen: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """Return 1 for each answer (token ids) that solves its problem, else 0; `chosen`: the problem of each.

        As in an evaluation, thinking that the prompt opened has to end. Undecided answers are logged as `rewards` says.
        """
        opened = [OPEN * self.prompts[problem].text.rstrip().endswith(OPEN) for problem in chosen]
        texts = [start + done.text for start, done in zip(opened, self.engine.complete(answers), strict=True)]
        return rewards_of(self.grader(texts, [self.problems[problem] for problem in chosen]))


def make_environment(
    model: str | Path, problems: Sequence[Problem], settings: RLSettings, grader: Grader
) -> Environment:
    """Load the policy and render the prompts. Raises ParameterError if prompt and answer exceed the context."""
    # The policy samples its own rollouts from the weights that are trained, in float32, because a step of 1e-6 on a
    # bf16 weight is nearly always rounded away.
    engine = load_engine(EngineConfig(engine="transformers", model=model, dtype="float32"))
    prompts = [render_problem(problem, engine.tokenizer) for problem in problems]
    check_fits(prompts, settings.max_tokens, engine.context_length)
    return Environment(engine, problems, prompts, grader, settings)


def derive_seed(*names: object) -> int:
    """Return a 48-bit seed; steps of one run, and runs of one candidate, never share samples."""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, names)).encode()).digest()[:6], "big")


def latest_checkpoint(output: Path) -> Path | None:
    """Return the last complete `checkpoint-<step>` folder of a run; remove those that a kill left half-written."""
    complete = []
    for folder in output.glob("checkpoint-*"):
        if read_state(folder) is None:
            shutil.rmtree(folder)
        else:
            complete.append(folder)
    return max(complete, key=lambda folder: int(folder.name.split("-")[1]), default=None)


def read_state(checkpoint: Path | None) -> dict[str, Any] | None:
    """Return the state that a checkpoint was saved in; None if there is no complete checkpoint."""
    try:
        return None if checkpoint is None else read_json(checkpoint / STATE)
    except (OSError, ValueError):
        return None


def train_rl(
    model: str | Path, problems: Sequence[Problem], output: str | Path, settings: RLSettings, *, grader: Grader
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
    done = state is not None and state["global_step"] >= settings.steps
    history = state["log_history"] if done else train(environment, output, latest)
    rows = [{ours: entry.get(theirs) for ours, theirs in _CURVE.items()} for entry in history if "reward" in entry]
    curve = pd.DataFrame(rows, columns=list(_CURVE))
    write_parquet(curve, output / "curve.parquet")
    facts = {"settings": settings.model_dump(), "checkpoints": list(settings.checkpoint_steps)}
    write_json({**facts, "seconds": time.perf_counter() - started}, output / "rl.json")
    return curve
