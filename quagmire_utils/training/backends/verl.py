"""Run GRPO with verl, the paper's trainer (App. B.2): write the files of a run, check them, run it.

    verl.write("runs/sft/model", problems, "runs/rl", RLSettings(epochs=3), gpus=8)
    verl.check("runs/rl")     # without a GPU: verl's own code accepts configuration, prompts and reward
    verl.train("runs/rl")     # resumes; checkpoints for our engines: runs/rl/checkpoint-<step>

The folder holds run.sh (every override of verl's configuration, with its origin), train.parquet (prompts and golds),
check_run.py with prompts.json (the check of verl's token ids against ours), and what the run writes. The parquet holds
each prompt as `prompts.render` renders it, special tokens included, as the content of one message, and
`custom_chat_template` is that content alone, so verl continues the same token ids as sampling. It trains on GPUs only.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import digest, write_json, write_parquet
from quagmire_utils.core.paths import ROOT
from quagmire_utils.core.settings import RLSettings
from quagmire_utils.data import Problem
from quagmire_utils.data.prompts import check_fits, render_problem, resolve_template
from quagmire_utils.engines import load_config, load_tokenizer, resolve_context_length
from quagmire_utils.training.backends import runs

NAME = "verl"
GPU_MEMORY = 0.6  # share of a GPU that vLLM takes while it samples
_CURVE = {  # our names and verl's
    "reward": "critic/score/mean",
    "entropy": "actor/entropy",
    "length": "response_length/mean",
    "truncated": "response_length/clip_ratio",
    "seconds": "timing_s/step",
}


def write(
    model: str | Path,
    problems: Sequence[Problem],
    folder: str | Path,
    settings: RLSettings,
    *,
    gpus: int = 8,
    grading_timeout: float = 5.0,
) -> Path:
    """Write everything that verl needs to run GRPO from `model` on `problems`; return the folder.

    `settings.micro_batch_size` is the rollouts of one forward pass on one GPU (None: as many as fit 2 full-length
    answers). Each GPU has a vLLM of its own. Calling it again with the same arguments changes nothing. Raises
    ParameterError for fewer problems than a step takes, prompts and answers beyond the model's context, or a folder
    that holds another run.
    """
    folder, settings = Path(folder), settings.replace(backend="verl").over(len(problems))
    model = runs.resolve_model(model)
    tokenizer = load_tokenizer(model)
    prompts = [render_problem(problem, tokenizer) for problem in problems]
    check_fits(prompts, settings.max_tokens, resolve_context_length(load_config(model), None))
    facts = {
        "backend": NAME,
        "model": model,
        "settings": settings.model_dump(),
        "gpus": gpus,
        "template": resolve_template(tokenizer),
        "grading_timeout": grading_timeout,
        "problems": len(problems),
        "data": digest([asdict(problem) for problem in problems]),
    }
    if not runs.open_run(folder, facts, "checkpoints", "rl.json"):
        return folder
    texts = [runs.prompt_text(prompt, tokenizer) for prompt in prompts]
    write_parquet(_frame(problems, texts), folder / "train.parquet")
    pairs = zip(problems, prompts, strict=True)
    rows = [[problem.id, runs.short_digest(json.dumps(prompt.token_ids))] for problem, prompt in pairs]
    write_json({"rows": rows}, folder / "prompts.json")
    shutil.copy(runs.SCRIPTS / "check_run.py", folder)
    longest = max(len(prompt.token_ids) for prompt in prompts)
    script = runs.render_template(
        "verl_run.sh.j2",
        NAME,
        facts=facts,
        settings=settings,
        gpu_memory=GPU_MEMORY,
        reward=ROOT / "quagmire_utils" / "training" / "rewards.py",
        prompt_tokens=longest,
        epochs=math.ceil(settings.steps / (len(problems) // settings.prompts_per_step)),
        save_freq=settings.checkpoint_steps[0],
    )
    runs.close_run(folder, facts, script, checkpoints=list(settings.checkpoint_steps))
    return folder


def _frame(problems: Sequence[Problem], texts: Sequence[str]) -> pd.DataFrame:
    """Return the training data in verl's columns."""
    rows = [
        {
            "data_source": "math",  # names the problems in verl's metrics
            "prompt": [{"role": "user", "content": text}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": problem.answer},
            "extra_info": {"index": i, "id": problem.id, "tolerance": problem.tolerance, "grader": problem.grader},
        }
        for i, (problem, text) in enumerate(zip(problems, texts, strict=True))
    ]
    return pd.DataFrame(rows)


def check(folder: str | Path) -> None:
    """Let verl's own code check the run without a GPU: configuration, token ids of every prompt, reward; 1-2 minutes.

    Raises BackendError with verl's message if something differs, ParameterError if verl is not installed.
    """
    folder = Path(folder)
    runs.read_run(folder, NAME)
    compare = "python check_run.py .job.yaml prompts.json train.parquet"
    runs.run_backend(folder, NAME, f"./run.sh --cfg job >.job.yaml\n{compare}", doing="checking with ")


def train(folder: str | Path) -> pd.DataFrame:
    """Train from the last checkpoint, if there is one, and export the kept checkpoints for our engines.

    Returns the curve (see `curve`), also written to `curve.parquet`; `rl.json` is written last. verl's sharded
    checkpoints, six times as large with the optimizer, are then removed. Raises ParameterError if verl or
    the GPUs are missing or another run is active in the folder, BackendError if the run fails.
    """
    folder = Path(folder)
    run = runs.read_run(folder, NAME)
    if (folder / "rl.json").is_file():
        return curve(folder)
    started = time.perf_counter()
    latest = folder / "checkpoints" / "latest_checkpointed_iteration.txt"
    if not latest.is_file() or int(latest.read_text() or 0) < run["settings"]["steps"]:
        runs.check_gpus(run["gpus"])
        check(folder)
        runs.run_backend(folder, NAME)
    for step in run["checkpoints"]:
        export(folder, step)
    rows = curve(folder)
    write_parquet(rows, folder / "curve.parquet")
    facts = {"backend": NAME, **{key: run[key] for key in ("settings", "checkpoints")}}
    write_json({**facts, "seconds": time.perf_counter() - started}, folder / "rl.json")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return rows


def export(folder: str | Path, step: int) -> Path:
    """Merge the shards that verl kept at `step` into `checkpoint-<step>` for our engines; return it.

    Does nothing if that folder exists. Raises ParameterError if verl kept no checkpoint at that step.
    """
    folder = Path(folder)
    run = runs.read_run(folder, NAME)
    target = folder / f"checkpoint-{step}"
    if target.is_dir():
        return target
    shards = folder / "checkpoints" / f"global_step_{step}" / "actor"
    if not (shards / "fsdp_config.json").is_file():
        kept = ", ".join(path.name for path in sorted(folder.glob("checkpoints/global_step_*"))) or "none"
        raise ParameterError("step", step, f"one that {folder} keeps a checkpoint of ({kept})")
    merged = folder / f".merged-{step}"
    shutil.rmtree(merged, ignore_errors=True)
    places = f'--local_dir "$PWD"/{shards.relative_to(folder)} --target_dir "$PWD"/{merged.name}'
    command = f"python -m verl.model_merger merge --backend fsdp {places}"
    runs.run_backend(folder, NAME, command, doing=f"merging step {step} with ")
    runs.export_checkpoint(merged, run["model"], target)
    shutil.rmtree(merged)
    return target


def curve(folder: str | Path) -> pd.DataFrame:
    """Return one row per step with the columns of `grpo.train_rl`: step, reward (mean over rollouts), reward_std,
    entropy (nats per token), length (mean tokens of a rollout), truncated (fraction), seconds. Of a step that was
    repeated after a kill, only the last attempt counts.
    """
    settings = runs.read_run(Path(folder), NAME)["settings"]
    # verl begins a new file at each start
    entries = [entry for file in sorted(Path(folder).glob("metrics/*.jsonl")) for entry in runs.read_log(file)]
    taken = {int(entry["step"]): entry["data"] for entry in entries if {"step", "data"} <= entry.keys()}
    logged = pd.DataFrame.from_dict(taken, orient="index", columns=list(_CURVE.values()), dtype=float)
    table = logged.set_axis(list(_CURVE), axis=1).dropna(subset="reward").sort_index()  # without what precedes a step
    # rewards are 0 or 1, so their mean gives their spread
    n, mean = settings["prompts_per_step"] * settings["rollouts"], table["reward"]
    table.insert(1, "reward_std", (mean * (1 - mean) * n / (n - 1)).clip(lower=0) ** 0.5)
    return table.rename_axis("step").reset_index()
