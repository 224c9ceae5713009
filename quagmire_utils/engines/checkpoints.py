"""Read what a checkpoint is: its configuration, tokenizer, context length, end tokens and digest.

check_model("path/to/checkpoint")        # ParameterError if it can't be loaded
model_digest("path/to/checkpoint")       # the key under which its samples are stored
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.provenance import cpu_flags
from quagmire_utils.core.tokenizer import cannot_load, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

HUB_TIMEOUT = 3.0  # seconds
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")
_INSTRUCTIONS = {"bfloat16": {"avx512_bf16", "amx_bf16"}, "float16": {"avx512_fp16", "amx_fp16"}}  # of Linux, x86
_TOKENIZER_CONTENT = ("tokenizer*", "vocab*", "merges.txt", "spiece.model", "special_tokens_map.json", "chat_template*")


def check_base_url(url: str) -> None:
    """Raise ParameterError unless `url` is the address of an endpoint, without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not a number, or a broken IPv6 address
        valid = False
    if not valid or not url.isascii() or not url.isprintable() or " " in url:
        raise ParameterError("base_url", reason="it must be an address like http://127.0.0.1:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:  # the value may hold a secret, so it is not shown
        reason = "give scheme://host:port/path alone; an API key belongs in the environment"
        raise ParameterError("base_url", reason=reason)


def check_model(model: str | Path) -> None:
    """Raise ParameterError unless `model` is a folder with configuration, weights and tokenizer, or may be a hub id."""
    folder, name = Path(model).expanduser(), str(model)
    problem = ""
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            problem = f"{name} has no config.json"
        elif not any(file.stat().st_size for pattern in _WEIGHTS for file in folder.glob(pattern)):
            problem = f"{name} has no weights (*.safetensors or pytorch_model*.bin)"
        elif not any((folder / file).is_file() for file in _TOKENIZER):
            problem = f"{name} has no tokenizer (tokenizer.json or the like)"
        elif damaged := [file for file in sorted(folder.glob("*.safetensors")) if not _is_whole(file)]:
            problem = f"{damaged[0]} is damaged or incomplete; copy or download it again"
    elif folder.exists():
        problem = f"{name} is a file, not a folder or a hub id"
    elif isinstance(model, Path) or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        problem = f"there is no folder {name}"
    if problem:
        raise ParameterError("model", name, reason=problem)


def _is_whole(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says; the tensors themselves are not read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy"):
            return True
    except SafetensorError:
        return False


def model_digest(model: str | Path, revision: str | None = None) -> str:
    """Return sixteen hexadecimal digits that stand for a model: its configuration, weights and tokenizer.

    Of a folder, by content, wherever it lies and whichever library version saved it; of a hub id, by commit.
    """
    folder, parts = Path(model).expanduser(), list[str]()
    if not folder.is_dir():
        from transformers.utils import cached_file
        from transformers.utils.hub import extract_commit_hash

        try:
            commit = extract_commit_hash(cached_file(str(model), "config.json", revision=revision), None)
        except (OSError, ValueError) as error:
            raise ParameterError("model", str(model), reason=f"{model} can't be found ({first_line(error)})") from error
        return hashlib.sha256(f"{model}@{commit or revision}".encode()).hexdigest()[:16]
    check_model(folder)
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            values = json.loads((folder / name).read_text(encoding="utf-8"))
            kept = {key: value for key, value in values.items() if key not in ("transformers_version", "_name_or_path")}
            parts.append(f"{name}:{json.dumps(kept, sort_keys=True)}")
    patterns = [*_WEIGHTS, *_TOKENIZER_CONTENT]
    if "auto_map" in (folder / "config.json").read_text(encoding="utf-8"):
        patterns.append("*.py")  # the model's own code, run where it is trusted
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}):
        facts = file.stat()
        parts.append(f"{file.name}:{_file_digest(file, facts.st_size, facts.st_mtime_ns)}")
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


@lru_cache(maxsize=1024)
def _file_digest(file: Path, size: int, changed: int) -> str:
    """Return the digest of a file's content; size and time of change tell the cache when to read it again."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@lru_cache(maxsize=1)
def hub_answers() -> bool:
    """Return whether the hub can be reached from here; its library alone would retry for half a minute."""
    import httpx
    from huggingface_hub import constants

    try:
        return not constants.HF_HUB_OFFLINE and bool(httpx.head(constants.ENDPOINT, timeout=HUB_TIMEOUT))
    except httpx.HTTPError:
        return False


def check_present(model: str) -> None:
    """Raise ParameterError for a hub id if neither the hub answers nor its cache has the configuration."""
    from huggingface_hub import try_to_load_from_cache

    if not Path(model).is_dir() and try_to_load_from_cache(model, "config.json") is None and not hub_answers():
        raise ParameterError("model", model, reason=f"there is no folder {model}, and no hub can be reached")


def load_config(model: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Return the model's configuration; raise ParameterError if it can't be loaded."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise cannot_load("configuration", model, error) from error


def resolve_context_length(
    config: PreTrainedConfig | None, max_model_len: int | None, served: int | None = None
) -> int:
    """Return the tokens of prompt and answer: the model's (`served`: a server's), or a smaller `max_model_len`."""
    text = None if config is None else config.get_text_config()
    longest = served or getattr(text, "max_position_embeddings", None)
    if max_model_len is None and longest is None:
        raise ParameterError("max_model_len", reason="give it, because the model's configuration has none")
    if max_model_len is not None and longest is not None and max_model_len > longest:
        raise ParameterError("max_model_len", max_model_len, f"between 2 and the model's {longest}")
    return max_model_len or longest


def resolve_device(device: str) -> str:
    """Return `device`; for "auto", cuda with a GPU, else cpu. Raises ParameterError for cuda without a GPU."""
    import torch

    there = torch.cuda.is_available()
    if device.startswith("cuda") and not there:
        raise ParameterError("device", device, reason=f"{device} was asked for, and torch sees no GPU")
    return device if device != "auto" else "cuda" if there else "cpu"


def resolve_dtype(config: PreTrainedConfig, dtype: str, device: str = "") -> str:
    """Return `dtype`, with "auto" replaced by the checkpoint's own (float32 if it names none that engines know).

    On `device` cpu, "auto" is float32 where the CPU has no instructions for the checkpoint's own: without them, matrix
    products in bfloat16 take 4 to 50 times as long.
    """
    if dtype != "auto":
        return dtype
    own = str(config.get_text_config().dtype or config.dtype or "float32").removeprefix("torch.")
    if own not in _INSTRUCTIONS or (device == "cpu" and not _INSTRUCTIONS[own] & cpu_flags()):
        return "float32"
    return own


def end_tokens(
    model: str, revision: str | None, config: PreTrainedConfig | None, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Return every token id that ends an answer: those that tokenizer, configuration and chat template name.

    Ids beyond the model's vocabulary (the tokenizer may be larger) are left out, because vLLM refuses them.
    """
    from transformers import GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(model, revision=revision).eos_token_id
    except OSError:
        generation = None  # a model without a generation_config.json
    found: set[int] = set()
    text = None if config is None else config.get_text_config()
    own = getattr(text, "eos_token_id", None)
    size = getattr(text, "vocab_size", None) or math.inf
    for ids in (tokenizer.eos_token_id, own, generation, turn_end(tokenizer)):
        found.update([] if ids is None else [ids] if isinstance(ids, int) else ids)
    return sorted(token for token in found if token < size)


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token that the chat template writes after an assistant's turn; None if there is none.

    Base models of the ChatML kind have another EOS, and would go on with an invented question after `<|im_end|>`. A
    token that opens a user's turn ends nothing.
    """
    question, answer = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "It is 12321."}
    for turns in ([question, answer], [question, answer, question]) if tokenizer.chat_template else ():
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception:  # whatever a template raises, such as for a turn of a kind it doesn't know
            return None
        opening, rest = text.partition(question["content"])[0], text.rpartition(answer["content"])[2].lstrip()
        if rest:
            first = tokenizer.encode(rest, add_special_tokens=False)[0]
            opens = first in tokenizer.encode(opening, add_special_tokens=False)
            return None if opens or first not in tokenizer.added_tokens_decoder else first
    return None
