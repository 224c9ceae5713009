"""Handle the folder of a run: files written once, the commands that do the work, their log, the trained checkpoint.

The commands run in the environment of their back-end, on the GPUs of this machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import atomic_folder, digest, read_json, write_json, write_text
from quagmire_utils.core.paths import ROOT
from quagmire_utils.core.provenance import hardware
from quagmire_utils.data.prompts import RenderedPrompt
from quagmire_utils.engines import check_model, load_config, load_tokenizer, resolve_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BACKENDS = {"llamafactory": "LLaMA-Factory", "verl": "verl"}
SCRIPTS = Path(__file__).parent / "scripts"  # what runs inside the back-ends' environments
TEMPLATES = Path(__file__).parent / "templates"  # configurations and run.sh
RUN = "run.json"  # what the run is; written last, so a folder without it was not written whole
LOG = "train.log"
_LOCK = ".lock"
_TAIL = 12  # lines of a failed run's log that are shown
_POLL = 0.5  # seconds
_PATIENCE = 30.0  # seconds that a stopped run has to end


class BackendError(RuntimeError):
    """A back-end stopped; the message names its log and shows the log's last lines."""


def environment_python(backend: str) -> Path:
    """Return the Python of a back-end's environment.

    It is the one that QUAGMIRE_LLAMAFACTORY_PYTHON or QUAGMIRE_VERL_PYTHON names, else the one that `./reproduce.sh
    setup <backend>` installs. Raises ParameterError, with this command, if there is none.
    """
    variable, python = _variable(backend), ROOT / f".venv-{backend}" / "bin" / "python"
    if named := os.environ.get(variable):
        if not os.access(named, os.X_OK):
            raise ParameterError(variable, named, "the path of a Python")
        return Path(named)
    if not (python.parents[1] / "quagmire-setup").is_file():  # written last
        remedy = f"run ./reproduce.sh setup {backend}, or name its Python in {variable}"
        raise ParameterError("backend", backend, reason=f"{BACKENDS[backend]} is not installed: {remedy}")
    return python


def _variable(backend: str) -> str:
    return f"QUAGMIRE_{backend.upper()}_PYTHON"


def check_gpus(needed: int) -> None:
    """Raise ParameterError if this machine has fewer GPUs than a run needs."""
    there = len(hardware()["gpus"])
    if there < needed:
        raise ParameterError("gpus", needed, f"at most the {there} GPUs of this machine")


def open_run(folder: Path, facts: Mapping[str, Any], *outputs: str) -> bool:
    """Return whether the files of the run described by `facts` must still be written to `folder`.

    Raises ParameterError if the folder holds `outputs` of another run, which would resume with other parameters or
    data. Call `close_run` after writing.
    """
    _check_path("folder", folder.resolve())
    if (folder / RUN).is_file():
        if read_json(folder / RUN)["digest"] == digest(facts):
            return False
        if started := [name for name in outputs if (folder / name).exists()]:
            reason = f"{folder} holds a run with other settings or data ({', '.join(started)}); use another folder"
            raise ParameterError("folder", str(folder), reason=reason)
        (folder / RUN).unlink()
    folder.mkdir(parents=True, exist_ok=True)
    return True


def resolve_model(model: str | Path) -> str:
    """Return the full path of a model's folder, or its hub id.

    Raises ParameterError for a model that cannot be loaded, and for a path that bash cannot hold.
    """
    check_model(model)
    folder = Path(model).expanduser().resolve()
    return _check_path("model", folder) if folder.is_dir() else str(model)


def _check_path(name: str, path: Path) -> str:
    if any(character in str(path) for character in "'\"$`\\\n"):
        raise ParameterError(name, str(path), "a path without quotes, backslashes and $, because run.sh names it")
    return str(path)


def close_run(folder: Path, facts: Mapping[str, Any], script: str, **more: Any) -> None:
    """Write `run.sh` and, last, `run.json`: the facts, their digest, and `more`."""
    write_text(script, folder / "run.sh")
    (folder / "run.sh").chmod(0o755)
    write_json({**facts, **more, "digest": digest(facts)}, folder / RUN)


def read_run(folder: Path, backend: str) -> dict[str, Any]:
    """Return what `write` noted about a run; raise ParameterError if the folder holds no run of this back-end."""
    with contextlib.suppress(OSError, ValueError):
        run = read_json(folder / RUN)
        if run.get("backend") == backend:
            return run
    raise ParameterError("folder", str(folder), f"a folder that {backend}.write made")


def render_template(name: str, backend: str, **values: Any) -> str:
    """Return a template of this package, filled in; `variable` and `python` are those of the back-end."""
    import jinja2

    python = ROOT / f".venv-{backend}" / "bin" / "python"
    place = {"variable": _variable(backend), "python": shlex.quote(str(python))}
    layout = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, **layout)
    environment.filters["number"] = _number
    environment.policies["json.dumps_kwargs"] = {}
    return environment.get_template(name).render(**place, **values)


def _number(value: float) -> str:
    """Return a number that every YAML reader takes for one: PyYAML reads 1e-05 as text, and 1.0e-05 as a number."""
    text = repr(value)
    return text if "e" not in text or "." in text else text.replace("e", ".0e")


def short_digest(value: str) -> str:
    """Return twelve hexadecimal digits for the tokens of a trace or prompt; the scripts compute the same."""
    return hashlib.sha256(value.encode()).hexdigest()[:12]


def run_backend(folder: Path, backend: str, command: str = "exec bash run.sh", *, doing: str = "") -> None:
    """Run a command of bash in the folder to its end, with its output in the log; `python` is the back-end's.

    `doing`: what it does with the back-end, if not train. An exception (an interrupt, say) ends the command and
    everything that it started. Raises BackendError if it fails, and ParameterError if one that an earlier process
    started still runs in the folder, or the back-end is not installed.
    """
    name, variable = doing + BACKENDS[backend], _variable(backend)
    environment = {**os.environ, variable: str(environment_python(backend))}
    python = f'python() {{ env -u PYTHONPATH -u PYTHONHOME "${variable}" "$@"; }}'
    log = folder / LOG
    with (folder / _LOCK).open("w") as lock, log.open("ab") as output:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            reason = f"a run is still active in {folder}; wait for it, or end it (its output: {log})"
            raise ParameterError("folder", str(folder), reason=reason) from None
        output.write(f"\n=== {name} ({time.strftime('%Y-%m-%d %H:%M:%S')})\n".encode())
        output.flush()
        child = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", f"{python}\n{command}"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that all of it can be ended at once
            pass_fds=[lock.fileno()],  # the lock lasts as long as the script, even if this process is killed
            env=environment,
        )
        try:
            while child.poll() is None:
                time.sleep(_POLL)  # a wait without an end would not see an interrupt that another thread was given
        finally:
            _end(child)
        if child.returncode != 0:
            said = log.read_bytes()[-20_000:].decode(errors="replace").replace("\r", "\n")
            last = [line[:300] for line in said.splitlines() if line.strip()][-_TAIL:]
            resume = "start it again to resume from its last checkpoint. Its last lines:"
            first = f"{name} stopped with exit code {child.returncode}; log: {log}; {resume}"
            raise BackendError("\n    ".join([first, *last]))


def prompt_text(prompt: RenderedPrompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a rendered prompt as text that tokenises to exactly its ids, a BOS before a plain prompt included.

    Raises ParameterError if there is no such text.
    """
    bare = tuple(tokenizer.encode(prompt.text, add_special_tokens=False))
    start = len(prompt.token_ids) - len(bare)
    if start < 0 or prompt.token_ids[start:] != bare:
        reason = "a question spells out a control token, which this back-end would read as one; leave it out"
        raise ParameterError("question", prompt.text, reason=reason)
    return tokenizer.decode(prompt.token_ids[:start]) + prompt.text


def read_log(file: Path) -> list[dict[str, Any]]:
    """Return the objects in a file of JSON lines, without a line that a kill cut off; empty if there is no file."""
    entries = []
    with contextlib.suppress(OSError):
        for line in file.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                entries.append(json.loads(line))
    return [entry for entry in entries if isinstance(entry, dict)]


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a script's processes that still run: first with SIGTERM, then with SIGKILL."""
    for wish, patience in ((signal.SIGTERM, _PATIENCE), (signal.SIGKILL, None)):
        if child.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, wish)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience)


def export_checkpoint(weights: Path, model: str, target: Path, notes: Mapping[str, Any] | None = None) -> None:
    """Write the folder `target`, which appears whole: the safetensors of `weights` in the precision of `model`.

    The rest comes from `model`, as a back-end may change it: LLaMA-Factory writes a chat template into the tokenizer of
    a base model that has none. `notes` (file name -> content) are added as JSON. Raises ParameterError if `weights`
    holds no weights.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import GenerationConfig

    shards = sorted(weights.glob("model*.safetensors"))
    if not shards:
        raise ParameterError("weights", str(weights), reason=f"{weights} has no model*.safetensors files")
    config = load_config(model)
    dtype = getattr(torch, resolve_dtype(config, "auto"))
    with atomic_folder(target) as folder:
        for shard in shards:
            tensors = load_file(shard).items()
            cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors}
            save_file(cast, folder / shard.name, metadata={"format": "pt"})
        for index in weights.glob("model*.safetensors.index.json"):
            shutil.copy2(index, folder)
        config.save_pretrained(folder)
        load_tokenizer(model).save_pretrained(folder)
        with contextlib.suppress(OSError):  # a model without a generation_config.json
            GenerationConfig.from_pretrained(model).save_pretrained(folder)
        for name, content in (notes or {}).items():
            write_json(content, folder / name)
        check_model(folder)
