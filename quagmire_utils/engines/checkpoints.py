"""What a model's name stands for: a folder with a checkpoint, a hub id, or the address of a server; and its digest.

check_model("path/to/checkpoint")        # ParameterError, in a sentence, for one that can't be loaded
model_digest("path/to/checkpoint")       # the key under which its samples are stored
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from quagmire_utils.core.errors import ParameterError

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")
_TOKENIZER_CONTENT = ("tokenizer*", "vocab*", "merges.txt", "spiece.model", "special_tokens_map.json", "chat_template*")


def check_base_url(url: str) -> str:
    """The address of an endpoint without a slash at its end. ParameterError for what is none, or holds a secret."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port that is no number, or a broken IPv6 address
        valid = False
    if not valid or not url.isascii() or not url.isprintable() or " " in url:
        raise ParameterError("base_url must be an address like http://127.0.0.1:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ParameterError(
            f"base_url must hold neither user, password, query nor fragment, only {parts.scheme}://host:port/path; "
            "a key belongs into the environment"
        )
    return url.rstrip("/")


def check_model(model: str | Path, engine: str = "transformers") -> None:
    """Raise ParameterError unless `model` is a folder with configuration, weights and tokenizer, or may be a hub id.

    For the engine "server", unless it is an address.
    """
    if engine == "server":
        check_base_url(str(model))
        return
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ParameterError(f"model: {model} has no config.json")
        if not any(file.stat().st_size for pattern in _WEIGHTS for file in folder.glob(pattern)):
            raise ParameterError(f"model: {model} has no weights (*.safetensors or pytorch_model*.bin)")
        if not any((folder / file).is_file() for file in _TOKENIZER):
            raise ParameterError(f"model: {model} has no tokenizer (tokenizer.json or the like)")
        for file in sorted(folder.glob("*.safetensors")):
            if not _is_whole(file):
                raise ParameterError(f"model: {file} is damaged or incomplete; copy or download it again")
    elif folder.exists():
        raise ParameterError(f"model: {model} is a file, not a folder or a hub id")
    elif isinstance(model, Path) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(model)) or str(model).startswith("."):
        raise ParameterError(f"model: there is no folder {model}")


def _is_whole(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says: eight bytes of length, a JSON header, the tensors."""
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > file.stat().st_size:
            return False
        try:
            header = json.loads(handle.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
    return 8 + length + max(ends, default=0) == file.stat().st_size


def model_digest(model: str | Path, revision: str | None = None) -> str:
    """Sixteen hexadecimal digits that stand for a model: its configuration, weights and tokenizer.

    A folder is digested by content, so the same checkpoint has the same digest wherever it lies and whatever library
    version saved it. A hub id stands for its commit.
    """
    folder = Path(model).expanduser()
    total = hashlib.sha256()
    if not folder.is_dir():
        from transformers.utils import cached_file
        from transformers.utils.hub import extract_commit_hash

        try:
            commit = extract_commit_hash(cached_file(str(model), "config.json", revision=revision), None)
        except (OSError, ValueError) as error:
            raise ParameterError(f"model: {model} can't be found ({str(error).strip().splitlines()[0]})") from error
        total.update(f"{model}@{commit or revision}".encode())
        return total.hexdigest()[:16]
    check_model(folder)
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            total.update(f"{name}:{_configuration(folder / name)}".encode())
    patterns = [*_WEIGHTS, *_TOKENIZER_CONTENT]
    if "auto_map" in (folder / "config.json").read_text(encoding="utf-8"):
        patterns.append("*.py")  # code of the model's own, run where it is trusted
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}):
        facts = file.stat()
        total.update(f"{file.name}:{_file_digest(file, facts.st_size, facts.st_mtime_ns)}".encode())
    return total.hexdigest()[:16]


@lru_cache(maxsize=1024)
def _file_digest(file: Path, size: int, changed: int) -> str:
    """Digest of a file's content; size and time of change only tell the cache when to look again."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _configuration(file: Path) -> str:
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    kept = {key: value for key, value in values.items() if key not in ("transformers_version", "_name_or_path")}
    return json.dumps(kept, sort_keys=True)
