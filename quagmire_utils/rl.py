"""Reinforcement learning with verifiable rewards: GRPO from a candidate, keeping checkpoints. Paper: App. B.2.

The backend is TRL's `GRPOTrainer` on one machine. Rollouts come from the same engine, and rewards from the same
grader, as the benchmark scores do, so what RL maximises is exactly what the evaluation measures.

    train_rl("models/candidate", problems, "models/candidate-rl0", RLSettings(steps=100))
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from quagmire_utils.benchmarks import Problem
from quagmire_utils.config import ParameterError, RLSettings
from quagmire_utils.prompts import check_fits, render
from quagmire_utils.sft import progress_callback
from quagmire_utils.store import read_json, write_json, write_parquet

if TYPE_CHECKING:
    import pandas as pd


def train_rl(
    model: str | Path,
    problems: Sequence[Problem],
    output: str | Path,
    settings: RLSettings,
    *,
    grader: Callable[[Sequence[str], Sequence[Problem]], Sequence[object]],
    template: str = "auto",
    progress: bool = True,
    on_progress: Callable[[float], None] | None = None,
) -> pd.DataFrame:
    """Run GRPO from the checkpoint `model` on `problems`; keep `checkpoint-<step>` folders under `output`.

    `grader(responses, problems)` returns one `grading.Grade` each; the reward is 1 for CORRECT and 0 for all else.
    Returns the curve, one row per step: step, reward (mean over rollouts), reward_std (mean over groups), entropy
    (nats per token), length (mean tokens of a rollout), truncated (fraction), seconds. It is also written to
    `curve.parquet`, and `rl.json` is written last. A run that was killed goes on from its latest checkpoint. Raises
    ParameterError for no problems, or a prompt and answer longer than the context.
    """
    if not problems:
        raise ParameterError("problems is empty: there is nothing to learn from")
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from quagmire_utils.engines import Request, SamplingParams, load_config, resolve_dtype
    from quagmire_utils.engines.transformers import TransformersEngine
    from quagmire_utils.grading import Verdict

    output = Path(output)
    # The policy samples its own rollouts: one set of weights. In float32, because a step of 1e-6 on a bf16 weight is
    # nearly always rounded away; matrix products still run in bf16 where the checkpoint is bf16 and the GPU has it.
    engine = TransformersEngine(str(model), dtype="float32")
    policy, tokenizer = engine.module, engine.tokenizer
    prompts = {problem.question: render(problem.question, tokenizer, template) for problem in problems}
    check_fits(list(prompts.values()), settings.max_tokens, engine.context_length)
    by_question = {problem.question: problem for problem in problems}
    params = SamplingParams(temperature=settings.temperature, max_tokens=settings.max_tokens)

    def rollout(questions: list[str], trainer: GRPOTrainer) -> dict[str, list]:
        # TRL hands each question `rollouts` times in a row
        distinct = questions[:: settings.rollouts]
        stride = len(questions)
        first_seed = _mix(settings.seed, trainer.state.global_step)
        requests = [
            Request(prompts[question].token_ids, settings.rollouts, first_seed + i * stride)
            for i, question in enumerate(distinct)
        ]
        was_training = policy.training
        policy.eval()
        groups = engine.generate_ids(requests, params)
        policy.train(was_training)
        return {
            "prompt_ids": [list(prompts[question].token_ids) for question in questions],
            "completion_ids": [ids for group in groups for ids in group],
            "logprobs": None,
        }

    def reward(prompts: list[str], completions: list[str], **_: object) -> list[float]:
        grades = grader(completions, [by_question[question] for question in prompts])
        return [float(grade.verdict == Verdict.CORRECT) for grade in grades]

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
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=engine.device.type == "cuda" and resolve_dtype(load_config(str(model)), "auto") == "bfloat16",
        use_cpu=engine.device.type == "cpu",
        dataloader_pin_memory=False,
        seed=settings.seed,
        data_seed=settings.seed,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=not progress,
    )
    keep = set(settings.checkpoint_steps)

    class KeepCheckpoints(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_save = state.global_step in keep

    started = time.perf_counter()
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": problem.question} for problem in problems]),
        processing_class=tokenizer,
        rollout_func=rollout,
        callbacks=[KeepCheckpoints()],
    )
    trainer.remove_callback(PrinterCallback)
    if on_progress is not None:
        trainer.add_callback(progress_callback(on_progress))
    latest = _latest_checkpoint(output)
    history = _history(latest)
    if not history or history["global_step"] < settings.steps:
        trainer.train(resume_from_checkpoint=None if latest is None else str(latest))
        history = {"log_history": trainer.state.log_history}
    curve = _curve(history["log_history"])
    write_parquet(curve, output / "curve.parquet")
    write_json(
        {"settings": asdict(settings), "checkpoints": sorted(keep), "seconds": time.perf_counter() - started},
        output / "rl.json",
    )
    return curve


def _latest_checkpoint(output: Path) -> Path | None:
    """The last complete checkpoint of a run; what a kill left half-written is removed."""
    complete = []
    for folder in output.glob("checkpoint-*"):
        if _history(folder) is None:  # the trainer's state is the last file that is written
            shutil.rmtree(folder)
        else:
            complete.append(folder)
    return max(complete, key=lambda folder: int(folder.name.split("-")[1]), default=None)


def _history(checkpoint: Path | None) -> dict | None:
    try:
        return None if checkpoint is None else read_json(checkpoint / "trainer_state.json")
    except (OSError, ValueError):
        return None


def _curve(log_history: list[dict[str, float]]) -> pd.DataFrame:
    import pandas as pd

    names = {
        "step": "step",
        "reward": "reward",
        "reward_std": "reward_std",
        "entropy": "entropy",
        "completions/mean_length": "length",
        "completions/clipped_ratio": "truncated",
        "step_time": "seconds",
    }
    rows = [{ours: entry.get(theirs) for theirs, ours in names.items()} for entry in log_history if "reward" in entry]
    return pd.DataFrame(rows, columns=list(names.values()))


def _mix(seed: int, step: int) -> int:
    """A 48-bit seed for one step's rollouts; steps of one run, and runs of one candidate, never share samples."""
    import hashlib

    return int.from_bytes(hashlib.sha256(f"rl {seed} {step}".encode()).digest()[:6], "big")
