"""Micro models, settings and fixtures of the tests of the back-ends."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.paths import ROOT
from quagmire_utils.core.settings import RLSettings, SFTSettings
from quagmire_utils.data import Problem, Trace
from quagmire_utils.data.prompts import render
from quagmire_utils.engines import load_tokenizer
from quagmire_utils.training.backends.runs import environment_python
from quagmire_utils.training.microlab import build_model, build_tokenizer

LISTS = ROOT / "quagmire_utils" / "training" / "backends"
SFT = SFTSettings(epochs=2, batch_size=8, micro_batch_size=4, learning_rate=1e-3, max_length=512)
RL = RLSettings(steps=8, checkpoints=4, prompts_per_step=4, rollouts=4, max_tokens=64)
TRACES = [
    Trace(f"t{i}", f"p{i}", f"What is {i} + 1? – é 数", f"Adding one:\n\n{i} + 1 = \\boxed{{{i + 1}}}")
    for i in range(24)
]
PROBLEMS = [Problem(f"p{i}", f"What is {i} + 1? – é 数", str(i + 1), 0.1 if i == 3 else None) for i in range(12)]


def save_base(folder: Path, *, chat: bool = False, bos: bool = False, architecture: str = "llama") -> Path:
    """An untrained micro model; `bos`: with a tokenizer that puts a token in front of every text, as Llama's does."""
    tokenizer = build_tokenizer(chat)
    if architecture == "qwen3":  # verl's tokeniser for Qwen3 wants the token that Qwen3 has
        tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    model = build_model(architecture, tokenizer)
    if bos:
        from tokenizers.processors import TemplateProcessing

        tokenizer.bos_token = "<|system|>"
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|system|> $A", special_tokens=[("<|system|>", tokenizer.bos_token_id)]
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("chat"), chat=True, architecture="qwen3")


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory) -> Path:
    folder = save_base(tmp_path_factory.mktemp("bos"), bos=True, architecture="mistral")
    ids = render("1", load_tokenizer(str(folder))).token_ids
    assert ids[0] == load_tokenizer(str(folder)).bos_token_id  # the tokenizer does what it is made for
    return folder


def backend_python(name: str) -> Path:
    """The Python of a back-end's environment; the test skips where there is none."""
    try:
        return environment_python(name)
    except ParameterError as error:
        pytest.skip(str(error))


def arguments_of(script: Path, tmp_path: Path, *more: str, **variables: str) -> list[str]:
    """What run.sh would start: its interpreter replaced by a program that notes its arguments."""
    noted = tmp_path / "noted"
    python = tmp_path / "bin" / "python"
    python.parent.mkdir(exist_ok=True)
    python.write_text(f'#!/usr/bin/env bash\nfor a in "$@"; do printf "%s\\0" "$a"; done >"{noted}"\n')
    python.chmod(0o755)
    shutil.copy2(python, python.with_name("llamafactory-cli"))
    names = ("QUAGMIRE_VERL_PYTHON", "QUAGMIRE_LLAMAFACTORY_PYTHON")
    environment = {**os.environ, **dict.fromkeys(names, str(python)), **variables}
    done = subprocess.run(["bash", str(script), *more], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return noted.read_text().split("\0")[:-1]


def weights_of(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")
