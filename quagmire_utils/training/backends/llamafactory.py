"""Fine-tune with LLaMA-Factory, the paper's trainer (App. B.2): write the files of a run, and run it.

    llamafactory.write(model, traces, "runs/sft", SFTSettings(epochs=2), gpus=8)
    llamafactory.train("runs/sft")     # resumes; the checkpoint for our engines: runs/sft/model

The folder holds run.sh, train.yaml (LLaMA-Factory's configuration, each value with its origin), data/ (the traces),
tokenize_traces.py with tokens.json (the check of LLaMA-Factory's token ids against ours), and what the run writes.

LLaMA-Factory's own templates may differ from a model's (a system message, a blank line, a thinking block), so none is
used. The data hold each prompt as `prompts.render` renders it, special tokens included, and the response with the
end-of-sequence token; `template: empty` tokenises both apart and adds nothing. Training reads the compared ids.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import atomic_path, digest, read_json, write_json, write_text
from quagmire_utils.core.settings import SFTSettings
from quagmire_utils.data import Trace
from quagmire_utils.data.prompts import render, resolve_template, response_ids, response_text
from quagmire_utils.engines import load_tokenizer
from quagmire_utils.training.backends import runs

NAME = "llamafactory"
DATASET = "traces"
SAVES = 10  # checkpoints to resume from; only the last is kept


def write(
    model: str | Path, traces: Sequence[Trace], folder: str | Path, settings: SFTSettings, *, gpus: int = 8
) -> Path:
    """Write everything that LLaMA-Factory needs to fine-tune `model` on `traces`; return the folder.

    `settings.batch_size` is the global batch; `settings.micro_batch_size` is the traces of one forward pass on one
    GPU (None: 1). Their ratio is a multiple of the GPUs (0: a CPU, to try things out), as a sweep checks. Calling it
    again with the same arguments changes nothing. Raises ParameterError for no traces, traces longer than
    `settings.max_length`, or a folder that holds another run.
    """
    folder, processes = Path(folder), max(1, gpus)
    if not traces:
        raise ParameterError("traces", traces, "at least one trace")
    micro_batch = settings.micro_batch_size or 1
    model = runs.resolve_model(model)
    tokenizer = load_tokenizer(model)
    steps = math.ceil(math.ceil(len(traces) / settings.batch_size) * settings.epochs)
    facts = {
        "backend": NAME,
        "model": model,
        "settings": settings.model_dump(),
        "gpus": gpus,
        "template": resolve_template(tokenizer),
        "traces": len(traces),
        "data": digest([[trace.id, trace.question, trace.response] for trace in traces]),
    }
    if not runs.open_run(folder, facts, "checkpoints", "model"):
        return folder
    rows, tokens, longest = [], 0, 0
    with atomic_path(folder / "data" / f"{DATASET}.jsonl") as path, path.open("w", encoding="utf-8") as file:
        for trace in traces:
            prompt = render(trace.question, tokenizer)
            response = response_ids(tokenizer, trace.response, prompt)
            length = len(prompt.token_ids) + len(response)
            if length > settings.max_length:
                allowed = f"at least the {length} tokens of trace {trace.id}"
                raise ParameterError("sft.max_length", settings.max_length, allowed)
            tokens, longest = tokens + length, max(longest, length)
            rows.append([trace.id, runs.short_digest(json.dumps([prompt.token_ids, response]))])
            text = response_text(tokenizer, trace.response, prompt) + tokenizer.eos_token
            line = {"prompt": runs.prompt_text(prompt, tokenizer), "response": text}
            file.write(json.dumps(line) + "\n")  # ASCII keeps a lone surrogate of a damaged trace
    columns = {"prompt": "prompt", "response": "response"}
    write_json({DATASET: {"file_name": f"{DATASET}.jsonl", "columns": columns}}, folder / "data" / "dataset_info.json")
    write_json({"rows": rows}, folder / "tokens.json")
    values = {
        "model": model,
        "settings": settings,
        # one more if a trace has the maximum length: LLaMA-Factory's rounding could cut a token off it
        "cutoff": settings.max_length + (longest == settings.max_length),
        "steps": steps,
        "micro_batch": micro_batch,
        "accumulation": settings.batch_size // (micro_batch * processes),
        "warmup_steps": round(settings.warmup_fraction * steps),
        "save_steps": max(1, math.ceil(steps / SAVES)),
        "logging_steps": max(1, steps // 200),
        "gpus": gpus,
    }
    write_text(runs.render_template("llamafactory_train.yaml.j2", NAME, **values), folder / "train.yaml")
    shutil.copy(runs.SCRIPTS / "tokenize_traces.py", folder)
    script = runs.render_template("llamafactory_run.sh.j2", NAME, gpus=gpus)
    runs.close_run(folder, facts, script, steps=steps, tokens=tokens)
    return folder


def train(folder: str | Path) -> dict[str, Any]:
    """Train from the last checkpoint, if there is one, and put the trained checkpoint into `model/`.

    Returns the content of its `sft.json`: settings, traces, steps, tokens seen, final loss in nats per response token,
    seconds of this call. Raises ParameterError if LLaMA-Factory or the GPUs are missing or another run is active in the
    folder, BackendError if the run fails.
    """
    folder = Path(folder)
    run = runs.read_run(folder, NAME)
    summary = folder / "model" / "sft.json"
    if summary.is_file():
        return read_json(summary)
    started = time.perf_counter()
    checkpoints = folder / "checkpoints"
    if not (checkpoints / "train_results.json").is_file():  # LLaMA-Factory writes it after the weights
        runs.check_gpus(run["gpus"])
        runs.run_backend(folder, NAME)
    losses = [entry["loss"] for entry in runs.read_log(checkpoints / "trainer_log.jsonl") if "loss" in entry]
    notes = {
        "backend": NAME,
        **{key: run[key] for key in ("settings", "traces", "steps")},
        "tokens": round(run["tokens"] * run["settings"]["epochs"]),
        "final_loss": losses[-1] if losses else None,
        "seconds": time.perf_counter() - started,
    }
    runs.export_checkpoint(checkpoints, run["model"], folder / "model", {"sft.json": notes})
    return read_json(summary)
