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
from quagmire_utils.engines import EngineConfig, Request, SamplingParams, load_config, load_engine, resolve_dtype
from quagmire_utils.evaluation.marking import OPEN
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
        train = train_trl
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


def train_trl(environment: Environment, output: Path, latest: Path | None) -> list[dict[str, float]]:
    """Take the steps that are left after the checkpoint `latest` with TRL; return the log.

    Rollouts come from the trained weights themselves (`rollout_engine: transformers`, seeded), or from a vLLM on the
    same GPU (`vllm`, many times as fast; its samples depend on how requests are batched). vLLM's probabilities differ
    slightly from the trainer's, which TRL corrects with importance weights.
    """
    trainer = make_trainer(environment, output)
    trainer.train(resume_from_checkpoint=None if latest is None else str(latest))
    return trainer.state.log_history


def make_trainer(environment: Environment, output: Path) -> Any:
    """Return a `GRPOTrainer` with the rollouts and rewards of `environment`."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    engine, settings = environment.engine, environment.settings
    if settings.rollout_engine == "vllm" and engine.device.type == "cpu":
        reason = "vllm needs a GPU: on a CPU, vLLM can't be given new weights"
        raise ParameterError("rl.rollout_engine", "vllm", reason=reason)
    index_of = {problem.question: i for i, problem in enumerate(environment.problems)}

    def rollout(questions: list[str], trainer: GRPOTrainer) -> dict[str, list]:
        # TRL passes each question `rollouts` times in a row
        prompt_ids = [list(environment.prompts[index_of[question]].token_ids) for question in questions]
        if settings.rollout_engine == "vllm":
            _, answers, logprobs, _ = trainer.vllm_generation.generate(prompt_ids, None, settings.rollouts)
            first = [[token[0] for token in answer] for answer in logprobs]  # of the token that was drawn
            return {"prompt_ids": prompt_ids, "completion_ids": [list(ids) for ids in answers], "logprobs": first}
        chosen = [index_of[question] for question in questions[:: settings.rollouts]]
        groups = environment.rollouts(chosen, trainer.state.global_step)
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": [ids for group in groups for ids in group],
            "logprobs": None,
        }

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: object) -> list[float]:
        return environment.rewards([index_of[question] for question in prompts], completion_ids)

    batch = settings.prompts_per_step * settings.rollouts
    micro_batch = settings.micro_batch_size or batch
    arguments = GRPOConfig(
        output_dir=str(output),
        max_steps=settings.steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=settings.warmup_steps,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=batch // micro_batch,
        num_generations=settings.rollouts,
        max_completion_length=settings.max_tokens,
        temperature=settings.temperature,
        beta=settings.kl_coefficient,
        entropy_coef=settings.entropy_coefficient,
        use_vllm=settings.rollout_engine == "vllm",
        vllm_mode="colocate",  # vLLM shares the GPU, and sleeps during training
        generation_kwargs={"stop_token_ids": engine.ends} if settings.rollout_engine == "vllm" else None,
        vllm_gpu_memory_utilization=settings.vllm_memory,
        vllm_enable_sleep_mode=settings.rollout_engine == "vllm" and engine.device.type == "cuda",
        vllm_max_model_length=max(len(prompt.token_ids) for prompt in environment.prompts) + settings.max_tokens,
        gradient_checkpointing=settings.gradient_checkpointing,
        # float32 weights, but matrix products run in bf16 where the checkpoint is bf16 and the GPU has it
        bf16=engine.device.type == "cuda" and resolve_dtype(load_config(engine.model), "auto") == "bfloat16",
        use_cpu=engine.device.type == "cpu",
        dataloader_pin_memory=False,
        seed=settings.seed,
        data_seed=settings.seed,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
    )
    keep = set(settings.checkpoint_steps)

    class KeepCheckpoints(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_save = state.global_step in keep

    return GRPOTrainer(
        model=engine.module,
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": problem.question} for problem in environment.problems]),
        processing_class=engine.tokenizer,
        rollout_func=rollout,
        callbacks=[KeepCheckpoints()],
    )
