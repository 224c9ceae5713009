"""What the real LLaMA-Factory of `./reproduce.sh setup llamafactory` makes of our files, kills included."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from back_ends import SFT, TRACES, backend_python, chat, plain, weights_of, with_bos  # noqa: F401
from verdicts import wait_until

from quagmire_utils.core.files import read_json
from quagmire_utils.core.paths import ROOT
from quagmire_utils.data.prompts import render, response_ids
from quagmire_utils.engines import EngineConfig, Request, SamplingParams, load_engine, load_tokenizer
from quagmire_utils.training.backends import llamafactory
from quagmire_utils.training.backends.runs import LOG, BackendError, read_log, run_backend

pytestmark = pytest.mark.slow
SETTINGS = SFT.replace(epochs=60)


def check(folder: Path) -> None:
    run_backend(folder, "llamafactory", "python tokenize_traces.py train.yaml tokens.json", doing="tokenising with ")


def log_entries(folder: Path) -> list[dict]:
    return [one for one in read_log(folder / "checkpoints/trainer_log.jsonl") if "current_steps" in one]


@pytest.mark.parametrize("base", ["chat", "with_bos"])  # every run below checks the plain one's
def test_llamafactory_makes_the_tokens_that_sampling_uses_and_a_difference_is_refused(base, request, tmp_path):
    python = backend_python("llamafactory")
    model = request.getfixturevalue(base)
    folder = llamafactory.write(model, TRACES, tmp_path / "run", SFT, gpus=0)
    check(folder)
    tokenizer = load_tokenizer(str(model))
    code = (
        "import json, sys; from datasets import load_from_disk; rows = load_from_disk(sys.argv[1])['train']; "
        "print(json.dumps([[row['input_ids'], row['labels']] for row in rows]))"
    )
    made = subprocess.check_output([python, "-c", code, str(folder / "tokenized")], text=True)
    for (ids, labels), trace in zip(json.loads(made), TRACES, strict=True):
        prompt, response = render(trace.question, tokenizer).token_ids, response_ids(tokenizer, trace.response)
        assert tuple(ids) == (*prompt, *response)
        assert tuple(labels) == (*[-100] * len(prompt), *response)
    if base == "chat":
        shutil.rmtree(folder / "tokenized")
        data = folder / "data" / "traces.jsonl"
        lines = data.read_text().splitlines()
        lines[5] = lines[5].replace("Adding one:", "Adding one: ")
        data.write_text("\n".join(lines) + "\n")
        with pytest.raises(BackendError, match="makes other tokens of trace t5 than sampling does"):
            check(folder)
        assert not (folder / "tokenized").exists()


@pytest.fixture(scope="module")
def unbroken(plain, tmp_path_factory) -> Path:
    backend_python("llamafactory")
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    llamafactory.write(plain, TRACES, folder, SETTINGS, gpus=0)
    assert llamafactory.train(folder)["steps"] == 180
    return folder


def test_llamafactory_trains_and_our_engine_samples_its_checkpoint_with_the_tokenizer_of_the_base(unbroken, plain):
    summary = read_json(unbroken / "model" / "sft.json")
    losses = [entry["loss"] for entry in log_entries(unbroken) if "loss" in entry]
    assert summary["final_loss"] == losses[-1] < losses[0] / 2
    tokenizer = load_tokenizer(str(unbroken / "model"))
    # LLaMA-Factory gave the base model a chat template, and with it other prompts; the exported one has none.
    assert (unbroken / "checkpoints" / "chat_template.jinja").is_file()
    assert not tokenizer.chat_template
    prompt = render(TRACES[0].question, tokenizer)
    assert prompt == render(TRACES[0].question, load_tokenizer(str(plain)))
    engine = load_engine(EngineConfig(engine="transformers", model=unbroken / "model", max_model_len=512))
    params = SamplingParams(temperature=1e-6, max_tokens=64)
    ((completion,),) = engine.generate([Request(prompt.token_ids, 1, 0)], params)
    assert completion.text.startswith("Adding one:\n\n")  # as every trace does


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(unbroken, plain, tmp_path):
    import torch

    folder = tmp_path / "run"
    llamafactory.write(plain, TRACES, folder, SETTINGS, gpus=0)
    shutil.copytree(unbroken / "tokenized", folder / "tokenized")  # the same traces
    code = "import sys; from quagmire_utils.training.backends import llamafactory; llamafactory.train(sys.argv[1])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    caller = subprocess.Popen([sys.executable, "-c", code, str(folder)], env=environment, stderr=subprocess.DEVNULL)
    wait_until(lambda: any(folder.glob("checkpoints/checkpoint-*/trainer_state.json")), seconds=240)
    processes = [caller, *psutil.Process(caller.pid).children(recursive=True)]
    for process in processes:
        process.kill()
    caller.wait()
    wait_until(lambda: not any(psutil.pid_exists(process.pid) for process in processes))
    assert not (folder / "model").exists()
    reached = max(entry["current_steps"] for entry in log_entries(folder))
    assert 18 <= reached < 180
    llamafactory.train(folder)
    assert "Resuming training from" in (folder / LOG).read_text()
    ours, theirs = weights_of(folder / "model"), weights_of(unbroken / "model")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_llamafactory_by_hand_on_two_processes_and_trl_train_the_same_model(plain, tmp_path):
    """Each step on all traces, so that their order does not matter; the first loss is our generalization loss."""
    import torch

    from quagmire_utils.evaluation.generalization_loss import generalization_loss
    from quagmire_utils.training import sft

    python = backend_python("llamafactory")
    settings = SFT.replace(epochs=12, batch_size=24, micro_batch_size=8, warmup_fraction=0.25)
    ours = sft.train_sft(plain, TRACES, tmp_path / "trl", settings)
    folder = llamafactory.write(plain, TRACES, tmp_path / "lf", settings, gpus=0)
    variables = {"QUAGMIRE_LLAMAFACTORY_PYTHON": str(python), "FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}
    done = subprocess.run(
        ["bash", folder / "run.sh", "per_device_train_batch_size=4", "gradient_accumulation_steps=3"],
        env={**os.environ, **variables, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=540,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "world size: 2" in done.stdout + done.stderr
    theirs = llamafactory.train(folder)  # collects what was run by hand
    assert theirs["tokens"] == ours["tokens"]
    assert theirs["steps"] == ours["steps"] == 12
    assert theirs["final_loss"] == pytest.approx(ours["final_loss"], rel=1e-3)
    first = next(entry["loss"] for entry in log_entries(folder) if "loss" in entry)
    assert first == pytest.approx(generalization_loss(EngineConfig(model=plain), TRACES).nll, rel=1e-4)
    start, a, b = (weights_of(folder) for folder in (plain, tmp_path / "trl", tmp_path / "lf" / "model"))
    moved = torch.cat([(a[name] - start[name]).flatten() for name in start])
    apart = torch.cat([(a[name] - b[name]).flatten() for name in start])
    assert apart.norm() < 0.01 * moved.norm()
