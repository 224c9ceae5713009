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
    python_variable,
)
from quagmire_utils.training.backends.runs import (
    SCRIPTS,
    close_run,
    copy_script,
    open_run,
    read_run,
    render_template,
    resolve_model,
    run_script,
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
    script = render_template(
        "verl_run.sh.j2",
        NAME,
        facts=facts,
        settings=settings,
        machines=machines,
        prompt_tokens=longest,
        epochs=math.ceil(settings.steps / (len(problems) // settings.prompts_per_step)),
        save_freq=_save_frequency(settings),
    )
    close_run(folder, facts, script, checkpoints=list(kept_steps(settings)))
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
