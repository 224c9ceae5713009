"""The `trl` backend: TRL's `GRPOTrainer` on one GPU, for every real model.

Rollouts come from the trained weights themselves (`rollout_engine: transformers`, seeded), or from a vLLM on the same
GPU (`vllm`, many times as fast; its samples depend on how requests are batched). vLLM's probabilities differ slightly
from the trainer's, which TRL corrects with importance weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.engines import load_config, resolve_dtype
from quagmire_utils.training.grpo import Environment


def train(environment: Environment, output: Path, latest: Path | None) -> list[dict[str, float]]:
    """Take the steps that are left after the checkpoint `latest`; return the log. Checkpoints go to `output`."""
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
