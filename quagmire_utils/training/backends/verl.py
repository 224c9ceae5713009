"""GRPO through verl, the paper's trainer (App. B.2): files that a person can read, and the command that runs.

    verl.write("runs/sft/model", problems, "runs/rl", RLSettings(), epochs=3, machines=Machines(nodes=1, devices=8))
    verl.check("runs/rl")     # without a GPU: verl's own code accepts configuration, prompts and reward
    verl.train("runs/rl")     # resumes; checkpoints for our engines: runs/rl/checkpoint-<step>

The folder:

    train.parquet                  prompts and gold answers, in verl's columns
    reward.py                      the reward: a call of `quagmire_utils.grading`
    run.sh                         every override of verl's Hydra configuration, with its origin; `./run.sh --cfg job`
    check_run.py, prompts.json     verl's tokens of each prompt are compared with ours
    checkpoints/, metrics/, train.log, then checkpoint-<step>/, curve.parquet, rl.json: what a run makes

Prompts: the parquet holds each prompt as `prompts.render` renders it, special tokens included, as the content of one
message, and `custom_chat_template` is that content alone. So verl, whatever its version of a model's chat template,
continues the same token ids as sampling; `check` compares them.

verl trains on GPUs only: its engines are registered for cuda and npu, and its rollouts come from the servers of vLLM,
SGLang or TensorRT-LLM. All but the rollouts is tested without a GPU, with the real verl: `check`, the reward manager,
and, its FSDP engine put on the CPU by a platform plugin of the test, a step of two ranks with these very overrides,
against the same step computed by hand; then its checkpoint, merged and loaded by our engines.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import digest, write_json, write_parquet, write_text
from quagmire_utils.core.settings import RLSettings
from quagmire_utils.data import Problem
from quagmire_utils.data.prompts import check_fits, render_problem, resolve_template
from quagmire_utils.training.backends.checkpoints import export_checkpoint
from quagmire_utils.training.backends.environments import (
    BACKENDS,
    ROOT,
    Machines,
    backend_environment,
    count_gpus,
    default_python,
    python_variable,
)
from quagmire_utils.training.backends.runs import (
    SCRIPTS,
    close_run,
    copy_script,
    open_run,
    read_run,
    resolve_model,
    run_script,
    shell_value,
    short_digest,
)
from quagmire_utils.training.backends.verl_curve import NAME, _entries, curve, latest_step

if TYPE_CHECKING:
    import pandas as pd

ATTENTIONS = ("sdpa", "flash_attention_2")


def write(
    model: str | Path,
    problems: Sequence[Problem],
    folder: str | Path,
    settings: RLSettings,
    *,
    machines: Machines | None = None,
    epochs: int | None = None,
    template: str = "auto",
    source: str = "math",
    tensor_parallel: int = 1,
    attention: str = "sdpa",
    gpu_memory: float = 0.6,
    grading_timeout: float = 5.0,
) -> Path:
    """Write everything that verl needs to run GRPO from `model` on `problems` to `folder`; returns the folder.

    `settings.steps` counts the steps; `epochs` over the problems (the paper: 3) may do so instead, where a step takes
    `settings.prompts_per_step` problems and what is left at the end of an epoch is dropped. Checkpoints are kept at
    `kept_steps`. `settings.micro_batch_size` is the rollouts of one forward pass on one GPU (None: as many as make 2
    full-length answers). `tensor_parallel`: GPUs that share one vLLM. `attention`: `flash_attention_2` needs its
    package installed, and then looks back within each answer only, not within all that share a pass. `gpu_memory`: the
    fraction that vLLM takes while it samples. `source` names the problems in verl's metrics.

    Calling it again with the same arguments changes nothing. Raises ParameterError for a machine without GPUs, fewer
    problems than a step takes, prompts and answers beyond the model's context, or a folder that holds another run.
    """
    from quagmire_utils.engines import check_model, load_config, load_tokenizer, resolve_context_length

    machines, folder = machines or Machines(), Path(folder)
    _check(problems, settings, machines, epochs, tensor_parallel, attention, gpu_memory)
    check_model(model)
    model = resolve_model(model)
    if epochs is not None:
        settings = settings.replace(steps=_count_steps(len(problems), epochs, settings))
    tokenizer = load_tokenizer(str(model))
    prompts = [render_problem(problem, tokenizer, template) for problem in problems]
    check_fits(prompts, settings.max_tokens, resolve_context_length(load_config(str(model)), None))
    facts = {
        "backend": NAME,
        "model": str(model),
        "settings": settings.model_dump(),
        "machines": asdict(machines),
        "template": resolve_template(tokenizer, template),
        "source": source,
        "tensor_parallel": tensor_parallel,
        "attention": attention,
        "gpu_memory": gpu_memory,
        "grading_timeout": grading_timeout,
        "problems": len(problems),
        "data": digest([asdict(problem) for problem in problems]),
    }
    if not open_run(folder, facts, "checkpoints", "rl.json"):
        return folder
    write_parquet(_frame(problems, [_text(prompt, tokenizer) for prompt in prompts], source), folder / "train.parquet")
    write_json(
        {
            "rows": [
                [problem.id, short_digest(json.dumps(prompt.token_ids))]
                for problem, prompt in zip(problems, prompts, strict=True)
            ]
        },
        folder / "prompts.json",
    )
    reward = (SCRIPTS / "reward.py").read_text(encoding="utf-8")
    write_text(reward.replace("ROOT OF THE REPOSITORY", str(ROOT)), folder / "reward.py")
    copy_script("check_run.py", folder, "check_run.py")
    longest = max(len(prompt.token_ids) for prompt in prompts)
    close_run(folder, facts, _script(facts, settings, machines, longest), checkpoints=list(kept_steps(settings)))
    return folder


def _check(
    problems: Sequence[Problem],
    settings: RLSettings,
    machines: Machines,
    epochs: int | None,
    tensor_parallel: int,
    attention: str,
    gpu_memory: float,
) -> None:
    if machines.devices == 0:
        raise ParameterError("machines.devices is 0, and verl trains on GPUs only")
    if len(problems) < settings.prompts_per_step:
        raise ParameterError(
            f"rl.prompts_per_step is {settings.prompts_per_step}, and there are only {len(problems)} problems"
        )
    if epochs is not None and epochs < 1:
        raise ParameterError(f"epochs must be at least 1, not {epochs}")
    gpus = machines.nodes * machines.devices
    if settings.prompts_per_step * settings.rollouts % gpus:
        raise ParameterError(
            f"rl.prompts_per_step x rl.rollouts ({settings.prompts_per_step * settings.rollouts}) must be a multiple "
            f"of the {gpus} GPUs"
        )
    if tensor_parallel < 1 or machines.devices % tensor_parallel:
        raise ParameterError(f"tensor_parallel ({tensor_parallel}) must divide machines.devices ({machines.devices})")
    if attention not in ATTENTIONS:
        raise ParameterError(f"attention must be one of {', '.join(ATTENTIONS)}, not {attention!r}")
    if not 0 < gpu_memory < 1:
        raise ParameterError(f"gpu_memory must be between 0 and 1, not {gpu_memory}")


def _count_steps(problems: int, epochs: int, settings: RLSettings) -> int:
    steps = epochs * (problems // settings.prompts_per_step)
    if steps < settings.checkpoints:
        raise ParameterError(f"rl.checkpoints is {settings.checkpoints}, and {epochs} epochs are only {steps} steps")
    return steps


def kept_steps(settings: RLSettings) -> tuple[int, ...]:
    """The steps at which verl keeps a checkpoint: every n-th and the last, at least `settings.checkpoints` in all."""
    every = _save_frequency(settings)
    return (*range(every, settings.steps, every), settings.steps)


def _save_frequency(settings: RLSettings) -> int:
    every = math.ceil(settings.steps / settings.checkpoints)
    return (
        every if math.ceil(settings.steps / every) >= settings.checkpoints else settings.steps // settings.checkpoints
    )


def _text(prompt: Any, tokenizer: Any) -> str:
    """A rendered prompt as text of which the tokenizer makes exactly its ids, a BOS before a plain prompt included."""
    bare = tokenizer.encode(prompt.text, add_special_tokens=False)
    leading = len(prompt.token_ids) - len(bare)
    return tokenizer.decode(prompt.token_ids[:leading]) + prompt.text if leading else prompt.text


def _frame(problems: Sequence[Problem], texts: Sequence[str], source: str) -> pd.DataFrame:
    """verl's columns."""
    import pandas as pd

    return pd.DataFrame(
        {
            "data_source": source,
            "prompt": [[{"role": "user", "content": text}] for text in texts],
            "ability": "math",
            "reward_model": [{"style": "rule", "ground_truth": problem.answer} for problem in problems],
            "extra_info": [
                {"index": index, "id": problem.id, "tolerance": problem.tolerance, "grader": problem.grader}
                for index, problem in enumerate(problems)
            ],
        }
    )


def _overrides(facts: dict[str, Any], settings: RLSettings, machines: Machines, prompt_tokens: int) -> list[str]:
    """Lines of a bash array: overrides of verl's configuration, and comments."""
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    total = prompt_tokens + settings.max_tokens
    sharing = [f"{actor}.use_dynamic_bsz=True", f"{actor}.ppo_max_token_len_per_gpu={2 * total}"]
    if settings.micro_batch_size is not None:
        sharing = [
            f"{actor}.use_dynamic_bsz=False",
            f"{actor}.ppo_micro_batch_size_per_gpu={settings.micro_batch_size}",
            f"{rollout}.log_prob_micro_batch_size_per_gpu={settings.micro_batch_size}",
            f"actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu={settings.micro_batch_size}",
        ]
    epochs = math.ceil(settings.steps / (facts["problems"] // settings.prompts_per_step))
    kl = settings.kl_coefficient
    return [
        "# the algorithm; paper, App. B.2: GRPO, learning rate 1e-6, batch 128, 16 rollouts, KL 0, entropy 0.001",
        "algorithm.adv_estimator=grpo",
        "algorithm.use_kl_in_reward=False",
        f"{actor}.use_kl_loss={kl > 0}",
        *([f"{actor}.kl_loss_coef={kl!r}"] if kl else []),
        f"{actor}.entropy_coeff={settings.entropy_coefficient!r}",
        f"{actor}.optim.lr={settings.learning_rate!r}",
        f"data.train_batch_size={settings.prompts_per_step}",
        f"{rollout}.n={settings.rollouts}",
        f"{rollout}.temperature={settings.temperature!r}",
        f"data.max_response_length={settings.max_tokens} # paper, App. B: 8k tokens throughout",
        f"trainer.total_training_steps={settings.steps} # of {facts['problems']} problems; paper, App. B.2: 3 epochs",
        f"trainer.total_epochs={epochs}",
        f"trainer.save_freq={_save_frequency(settings)} # paper, App. B: 4+ checkpoints",
        "# ours, the paper does not say: one update a step, optimizer, clipping, warm-up",
        f"{actor}.ppo_mini_batch_size={settings.prompts_per_step}",
        f"{actor}.ppo_epochs=1",
        f"{actor}.optim.weight_decay=0.0",
        f"{actor}.optim.clip_grad={settings.max_grad_norm!r}",
        f"{actor}.grad_clip={settings.max_grad_norm!r}",
        f"{actor}.optim.lr_warmup_steps={settings.warmup_steps}",
        f"data.seed={settings.seed}",
        f"{actor}.data_loader_seed={settings.seed}",
        f"{actor}.fsdp_config.seed={settings.seed}",
        f"{rollout}.seed={settings.seed}",
        "# data: prompts hold their special tokens, so the template adds none; they were counted, so none is left out",
        "\"data.train_files='$PWD/train.parquet'\"",
        "\"data.val_files='$PWD/train.parquet'\" # verl wants one; nothing is validated here",
        "data.val_max_samples=1",
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        f"data.max_prompt_length={prompt_tokens}",
        "data.filter_overlong_prompts=False",
        "data.truncation=error",
        f"\"actor_rollout_ref.model.path='{facts['model']}'\"",
        "\"actor_rollout_ref.model.custom_chat_template='{{ messages[0].content }}'\"",
        "# the reward: the grader of the benchmark scores",
        "\"reward.custom_reward_function.path='$PWD/reward.py'\"",
        "reward.custom_reward_function.name=compute_score",
        f"+reward.custom_reward_function.reward_kwargs.timeout={facts['grading_timeout']!r} # seconds for one answer",
        "reward.reward_manager.name=naive",
        "reward.num_workers=8",
        "# the machine",
        f"trainer.nnodes={machines.nodes}",
        f"trainer.n_gpus_per_node={machines.devices}",
        f"{rollout}.name=vllm",
        f"{rollout}.tensor_model_parallel_size={facts['tensor_parallel']}",
        f"{rollout}.gpu_memory_utilization={facts['gpu_memory']!r}",
        f"{rollout}.max_model_len={total}",
        *sharing,
        f"actor_rollout_ref.model.enable_gradient_checkpointing={settings.gradient_checkpointing}",
        f"+actor_rollout_ref.model.override_config.attn_implementation={facts['attention']}",
        f"{actor}.strategy=fsdp2",
        "# answers are packed: padded ones would make a pass as large as its longest answer times their number",
        "actor_rollout_ref.model.use_remove_padding=True",
        "# no logits are kept: those of 16k tokens and 128k words, with their entropy's, are 40 GB",
        "actor_rollout_ref.model.use_fused_kernels=True",
        "actor_rollout_ref.model.fused_kernel_options.impl_backend=torch",
        "# output; a run goes on from its last checkpoint",
        "trainer.resume_mode=auto",
        "\"trainer.default_local_dir='$PWD/checkpoints'\"",
        "'trainer.logger=[console,file]'",
        "\"++ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH='$PWD/metrics/$(date +%s).jsonl'\"",
        "trainer.project_name=quagmire",
        "trainer.experiment_name=grpo",
        "\"hydra.run.dir='$PWD/hydra'\"",
    ]


def _script(facts: dict[str, Any], settings: RLSettings, machines: Machines, prompt_tokens: int) -> str:
    """run.sh."""
    several = machines.nodes > 1
    lines = [
        "#!/usr/bin/env bash",
        "# GRPO with verl. Goes on from the last checkpoint.",
        "#   ./run.sh [OVERRIDE ...]     (further overrides; after them, `--cfg job` prints the configuration only)",
        *([f"# Once, on a node of a Ray cluster of {machines.nodes} nodes that share this folder."] if several else []),
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")"',
        f"python=${{{python_variable(NAME)}:-{shell_value(default_python(NAME))}}}",
        'export PATH="$(dirname "$python"):$PATH"',
        "export HF_HUB_DISABLE_TELEMETRY=1 VLLM_NO_USAGE_STATS=1 RAY_USAGE_STATS_ENABLED=0",
        "unset PYTHONPATH PYTHONHOME # another environment's packages",
        "overrides=(",
        *(f"    {line}" for line in _overrides(facts, settings, machines, prompt_tokens)),
        ")",
        f': "${{RAY_ADDRESS:?is the address of the Ray cluster of {machines.nodes} nodes}}"'
        if several
        # inside a cell on a Ray cluster verl would join that, and wait for the GPUs that the cell holds
        else "export RAY_ADDRESS=local # a Ray of its own",
        "mkdir -p metrics",
        'exec "$python" -m verl.trainer.main_ppo "${overrides[@]}" "$@"',
    ]
    return "\n".join(lines) + "\n"


def check(folder: str | Path) -> None:
    """Have verl's own code check the run, without a GPU: it accepts the configuration, its tokens of every prompt are
    ours, and the reward gives 1 to a gold answer and 0 to none. A minute or two.

    Raises BackendError with verl's words where it does not, ParameterError where verl is not installed.
    """
    folder = Path(folder)
    read_run(folder, NAME)
    command = (
        "set -euo pipefail\n"
        'cd "$(dirname "${BASH_SOURCE[0]}")"\n'
        "export RAY_ADDRESS=${RAY_ADDRESS:-none}\n"
        "./run.sh --cfg job >.job.yaml\n"
        "unset PYTHONPATH PYTHONHOME\n"
        f'exec "${python_variable(NAME)}" check_run.py .job.yaml prompts.json train.parquet\n'
    )
    write_text(command, folder / ".check.sh")
    run_script(folder, name="checking with verl", script=".check.sh", environment=backend_environment(NAME))


def train(
    folder: str | Path,
    *,
    progress: bool = True,
    on_progress: Callable[[float], None] | None = None,
    keep_sharded: bool = False,
) -> pd.DataFrame:
    """Run what `write` wrote, from its last checkpoint if there is one; export the kept checkpoints for our engines.

    Returns the curve (see `curve`), also in `curve.parquet`; `rl.json` is written last. verl's own sharded checkpoints,
    with the optimizer six times as large, are removed once exported unless `keep_sharded`. `on_progress` is called with
    the fraction of steps done. Raises ParameterError where verl is not installed, the GPUs are not there, or a run is
    still at work in the folder; BackendError, with the log's last lines, where it fails.
    """
    folder = Path(folder)
    run = read_run(folder, NAME)
    if (folder / "rl.json").is_file():
        return curve(folder)
    started = time.perf_counter()
    steps, devices = run["settings"]["steps"], run["machines"]["devices"]
    if latest_step(folder) < steps:
        if (run["machines"]["nodes"] == 1 or "RAY_ADDRESS" not in os.environ) and count_gpus() < devices:
            raise ParameterError(
                f"machines.devices is {devices}, and this machine has {count_gpus()} GPUs (verl trains on GPUs only)"
            )
        check(folder)
        run_script(
            folder,
            name=BACKENDS[NAME],
            environment=backend_environment(NAME),
            steps=steps,
            steps_done=lambda: _steps_done(folder),
            progress=progress,
            on_progress=on_progress,
        )
    for step in run["checkpoints"]:
        export(folder, step)
    rows = curve(folder)
    write_parquet(rows, folder / "curve.parquet")
    write_json(
        {
            "backend": NAME,
            "settings": run["settings"],
            "checkpoints": run["checkpoints"],
            "seconds": time.perf_counter() - started,
        },
        folder / "rl.json",
    )
    if not keep_sharded:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return rows


def export(folder: str | Path, step: int) -> Path:
    """The checkpoint that verl kept at `step`, merged from its shards, as `checkpoint-<step>`, which our engines load.

    Does nothing where that is there already. Raises ParameterError where verl kept none at that step.
    """
    folder = Path(folder)
    run = read_run(folder, NAME)
    target = folder / f"checkpoint-{step}"
    if target.is_dir():
        return target
    shards = folder / "checkpoints" / f"global_step_{step}" / "actor"
    if not (shards / "fsdp_config.json").is_file():
        raise ParameterError(f"step {step}: {folder} has no checkpoint of it; there are {_kept(folder)}")
    merged = folder / f".merged-{step}"
    shutil.rmtree(merged, ignore_errors=True)
    command = (
        "set -euo pipefail\n"
        'cd "$(dirname "${BASH_SOURCE[0]}")"\n'
        "unset PYTHONPATH PYTHONHOME\n"
        f'exec "${python_variable(NAME)}" -m verl.model_merger merge --backend fsdp \\\n'
        '    --local_dir "$1" --target_dir "$2"\n'
    )
    write_text(command, folder / ".merge.sh")
    run_script(
        folder,
        str(shards.resolve()),
        str(merged.resolve()),
        name=f"merging step {step} with verl",
        script=".merge.sh",
        environment=backend_environment(NAME),
    )
    export_checkpoint(merged, run["model"], target)
    shutil.rmtree(merged)
    return target


def _kept(folder: Path) -> str:
    return ", ".join(path.name for path in sorted(folder.glob("checkpoints/global_step_*"))) or "none"


def _steps_done(folder: Path) -> int:
    newest = max(folder.glob("metrics/*.jsonl"), default=None)
    return max([latest_step(folder), *(_entries(newest) if newest else {})])
