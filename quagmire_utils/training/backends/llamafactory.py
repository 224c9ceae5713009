"""SFT through LLaMA-Factory, the paper's trainer (App. B.2): files that a person can read, and the command that runs.

    llamafactory.write(model, traces, "runs/sft", SFTSettings(epochs=2), machines=Machines(nodes=1, devices=8))
    llamafactory.train("runs/sft")     # resumes; the trained checkpoint, for our engines: runs/sft/model

The folder:

    data/dataset_info.json, data/traces.jsonl    what is trained on
    train.yaml                                   how, every value with its origin
    tokenize_traces.py, tokens.json              LLaMA-Factory tokenises the traces; each token is compared with ours
    run.sh                                       both steps; on several nodes, once on each
    tokenized/, checkpoints/, train.log          what a run makes;  model/: the trained checkpoint

Prompts: LLaMA-Factory's own templates are rewritten by hand from each model's and may differ from it (a system message,
a blank line, a thinking block), so none is used. The file holds the prompt as `prompts.render` renders it, special
tokens included, and the response with the end-of-sequence token; `template: empty` tokenises the two apart and adds
nothing, as `prompts` does. That this gives the same ids is not taken for granted: before training, LLaMA-Factory's own
ids are compared with those of `prompts` (`tokenize_traces.py`), and training reads exactly the ones that were compared.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import atomic_path, digest, read_json, write_json, write_text
from quagmire_utils.core.settings import SFTSettings
from quagmire_utils.data import Trace
from quagmire_utils.data.prompts import render, resolve_template, response_ids
from quagmire_utils.training.backends.checkpoints import export_checkpoint
from quagmire_utils.training.backends.environments import (
    BACKENDS,
    Machines,
    backend_environment,
    count_gpus,
    python_variable,
)
from quagmire_utils.training.backends.runs import (
    close_run,
    copy_script,
    open_run,
    read_run,
    render_template,
    resolve_model,
    run_script,
    short_digest,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME = "llamafactory"
SHARDINGS = ("auto", "none", "fsdp")
DATASET = "traces"


def write(
    model: str | Path,
    traces: Sequence[Trace],
    folder: str | Path,
    settings: SFTSettings,
    *,
    machines: Machines | None = None,
    template: str = "auto",
    sharding: str = "auto",
    saves: int = 10,
    progress: bool = True,
) -> Path:
    """Write everything that LLaMA-Factory needs to fine-tune `model` on `traces` to `folder`; returns the folder.

    `settings.batch_size` is the global batch, `settings.micro_batch_size` the traces of one forward pass on one device
    (None: 1); their ratio must be a multiple of the devices. `sharding`: `fsdp` spreads weights and optimizer over all
    devices (an 8B model with AdamW needs 16 bytes a parameter), `none` repeats them on each, `auto` shards where there
    is more than one. `saves`: checkpoints to resume from, evenly over the run; only the last one is kept.

    Calling it again with the same arguments changes nothing. Raises ParameterError for no traces, traces longer than
    `settings.max_length`, a batch that does not divide, or a folder that holds another run.
    """
    from tqdm import tqdm

    from quagmire_utils.engines import check_model, load_tokenizer

    machines, folder = machines or Machines(), Path(folder)
    if not traces:
        raise ParameterError("traces is empty: there is nothing to fine-tune on")
    if sharding not in SHARDINGS:
        raise ParameterError(f"sharding must be one of {', '.join(SHARDINGS)}, not {sharding!r}")
    if saves < 1:
        raise ParameterError(f"saves must be at least 1, not {saves}")
    micro_batch = settings.micro_batch_size or 1
    if settings.batch_size % (micro_batch * machines.processes):
        raise ParameterError(
            f"sft.batch_size ({settings.batch_size}) must be a multiple of sft.micro_batch_size ({micro_batch}) x "
            f"devices ({machines.processes})"
        )
    check_model(model)
    model = resolve_model(model)
    tokenizer = load_tokenizer(str(model))
    steps = math.ceil(math.ceil(len(traces) / settings.batch_size) * settings.epochs)
    facts = {
        "backend": NAME,
        "model": str(model),
        "settings": settings.model_dump(),
        "machines": asdict(machines),
        "template": resolve_template(tokenizer, template),
        "sharding": sharding,
        "saves": saves,
        "traces": len(traces),
        "data": digest([[trace.id, trace.question, trace.response] for trace in traces]),
    }
    if not open_run(folder, facts, "checkpoints", "model"):
        return folder
    rows, tokens, longest = [], 0, 0
    with (
        atomic_path(folder / "data" / f"{DATASET}.jsonl") as path,
        path.open("w", encoding="utf-8") as file,
        tqdm(traces, desc="tokenising traces", unit="trace", delay=10, disable=not progress) as bar,
    ):
        prefix = ""
        if facts["template"] == "plain":
            prefix = _leading_text(tokenizer)
        for trace in bar:
            prompt = render(trace.question, tokenizer, template)
            response = response_ids(tokenizer, trace.response)
            length = len(prompt.token_ids) + len(response)
            if length > settings.max_length:
                raise ParameterError(
                    f"sft.max_length is {settings.max_length}, but trace {trace.id} has {length} tokens"
                )
            tokens, longest = tokens + length, max(longest, length)
            rows.append([trace.id, short_digest(json.dumps([prompt.token_ids, response]))])
            line = {"prompt": prefix + prompt.text, "response": trace.response + tokenizer.eos_token}
            file.write(json.dumps(line) + "\n")  # ASCII: a lone surrogate of a damaged trace stays what it is
    write_json(
        {DATASET: {"file_name": f"{DATASET}.jsonl", "columns": {"prompt": "prompt", "response": "response"}}},
        folder / "data" / "dataset_info.json",
    )
    write_json({"rows": rows}, folder / "tokens.json")
    # One more where a trace is as long as allowed: LLaMA-Factory's rounding could cut a token off it.
    cutoff = settings.max_length + (longest == settings.max_length)
    values = {
        "model": model,
        "settings": settings,
        "cutoff": cutoff,
        "steps": steps,
        "micro_batch": micro_batch,
        "accumulation": settings.batch_size // (micro_batch * machines.processes),
        "warmup_steps": round(settings.warmup_fraction * steps),
        "cpu": machines.devices == 0,
        "sharded": sharding == "fsdp" or (sharding == "auto" and machines.processes > 1),
        "save_steps": max(1, math.ceil(steps / saves)),
        "logging_steps": max(1, steps // 200),
        "machines": machines,
    }
    write_text(render_template("llamafactory_train.yaml.j2", NAME, **values), folder / "train.yaml")
    copy_script("tokenize_traces.py", folder, "tokenize_traces.py")
    script = render_template("llamafactory_run.sh.j2", NAME, machines=machines)
    close_run(folder, facts, script, steps=steps, tokens=tokens)
    return folder


def _leading_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the special tokens that stand before a plain prompt (a BOS, or nothing)."""
    empty = render("0", tokenizer, "plain")
    bare = tokenizer.encode(empty.text, add_special_tokens=False)
    return tokenizer.decode(empty.token_ids[: len(empty.token_ids) - len(bare)])


def check(folder: str | Path) -> None:
    """Have LLaMA-Factory tokenise the traces; compare its ids, and what it would train on, with ours. Minutes at most.

    Raises BackendError with its words where a token differs, ParameterError where it is not installed.
    """
    folder = Path(folder)
    read_run(folder, NAME)
    if (folder / "tokenized").is_dir():
        return
    command = (
        "set -euo pipefail\n"
        'cd "$(dirname "${BASH_SOURCE[0]}")"\n'
        "unset PYTHONPATH PYTHONHOME\n"
        f'exec "${python_variable(NAME)}" tokenize_traces.py train.yaml tokens.json\n'
    )
    write_text(command, folder / ".tokenize.sh")
    run_script(folder, name="tokenising in LLaMA-Factory", script=".tokenize.sh", environment=backend_environment(NAME))


def train(
    folder: str | Path, *, progress: bool = True, on_progress: Callable[[float], None] | None = None
) -> dict[str, Any]:
    """Run what `write` wrote, from its last checkpoint if there is one; put the trained checkpoint into `model/`.

    Returns what `sft.json` in it says: settings, traces, steps, tokens seen, final loss in nats per response token,
    seconds of this call. `on_progress` is called with the fraction of steps done. Raises ParameterError where
    LLaMA-Factory is not installed, the GPUs are not there, or a run is still at work in the folder; BackendError, with
    the log's last lines, where it fails. A run over several nodes is started with run.sh on each, then collected here.
    """
    folder = Path(folder)
    run = read_run(folder, NAME)
    summary = folder / "model" / "sft.json"
    if summary.is_file():
        return read_json(summary)
    started = time.perf_counter()
    checkpoints = folder / "checkpoints"
    if not (checkpoints / "train_results.json").is_file():  # LLaMA-Factory writes it after the weights
        devices, nodes = run["machines"]["devices"], run["machines"]["nodes"]
        if nodes > 1:
            raise ParameterError(f"{folder} is a run over {nodes} nodes: start {folder / 'run.sh'} on each of them")
        if count_gpus() < devices:
            raise ParameterError(f"machines.devices is {devices}, and this machine has {count_gpus()} GPUs")
        run_script(
            folder,
            name=BACKENDS[NAME],
            environment=backend_environment(NAME),
            steps=run["steps"],
            steps_done=lambda: max((entry["current_steps"] for entry in log_entries(folder)), default=0),
            progress=progress,
            on_progress=on_progress,
        )
    losses = [entry["loss"] for entry in log_entries(folder) if "loss" in entry]
    export_checkpoint(
        checkpoints,
        run["model"],
        folder / "model",
        {
            "sft.json": {
                "backend": NAME,
                "settings": run["settings"],
                "traces": run["traces"],
                "steps": run["steps"],
                "tokens": round(run["tokens"] * run["settings"]["epochs"]),
                "final_loss": losses[-1] if losses else None,
                "seconds": time.perf_counter() - started,
            }
        },
    )
    return read_json(summary)


def log_entries(folder: str | Path) -> list[dict[str, Any]]:
    """What LLaMA-Factory logged so far: current_steps, total_steps, loss (nats per response token), lr, epoch."""
    try:
        lines = (Path(folder) / "checkpoints" / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue  # cut off by a kill, or being written
    return [entry for entry in entries if isinstance(entry, dict) and "current_steps" in entry]
