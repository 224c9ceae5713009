"""The back-ends: their files, what the real LLaMA-Factory and the real verl make of them, kills in the middle.

The tests that need a back-end take it from `./reproduce.sh setup llamafactory|verl`, or from the Python that
QUAGMIRE_LLAMAFACTORY_PYTHON or QUAGMIRE_VERL_PYTHON names, and skip without it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

from quagmire_utils.backends import BackendError, Machines, environment_python, llamafactory, verl
from quagmire_utils.backends.environments import ROOT, backend_environment
from quagmire_utils.backends.runs import LOG, run_script
from quagmire_utils.benchmarks import Problem, Trace
from quagmire_utils.config import ParameterError, RLSettings, SFTSettings
from quagmire_utils.store import read_json, read_parquet

pytest.importorskip("torch", reason="the micro models need torch")

from quagmire_utils.engines import load_tokenizer
from quagmire_utils.microlab import build_model, build_tokenizer
from quagmire_utils.prompts import INSTRUCTIONS, render, response_ids

LISTS = ROOT / "quagmire_utils" / "backends"
CPU = Machines(nodes=1, devices=0)
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
    try:
        return environment_python(name)
    except ParameterError as error:
        pytest.skip(str(error))


@pytest.fixture
def llamafactory_python() -> Path:
    return backend_python("llamafactory")


@pytest.fixture
def verl_python() -> Path:
    return backend_python("verl")


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


# --- LLaMA-Factory's files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machines", "micro_batch", "accumulation"),
    [(Machines(1, 8), None, 16), (Machines(2, 8), 2, 4), (Machines(1, 1), 16, 8), (CPU, None, 128)],
)
def test_the_training_yaml_has_the_papers_values_and_the_global_batch(
    plain, tmp_path, machines, micro_batch, accumulation
):
    settings = SFTSettings(micro_batch_size=micro_batch)
    llamafactory.write(plain, TRACES, tmp_path / "run", settings, machines=machines)
    values = yaml.safe_load((tmp_path / "run" / "train.yaml").read_text())
    assert values["learning_rate"] == 1e-5  # a number, though YAML reads 1e-5 as text
    assert values["cutoff_len"] == 8192
    assert values["gradient_accumulation_steps"] == accumulation
    assert (
        values["per_device_train_batch_size"]
        * values["gradient_accumulation_steps"]
        * machines.nodes
        * max(1, machines.devices)
        == 128
    )
    assert values["use_cpu"] == (machines.devices == 0) == (not values["bf16"])
    assert ("fsdp" in values) == (machines.processes > 1)
    if "fsdp" in values:  # else each GPU sums the gradients of all weights, in bfloat16
        assert values["accelerator_config"]["gradient_accumulation_kwargs"] == {"sync_each_batch": True}
    assert values["model_name_or_path"] == str(plain.resolve())


def test_what_llamafactory_reads_is_the_prompt_that_sampling_renders(plain, chat, with_bos, tmp_path):
    for base in (plain, chat, with_bos):
        folder = llamafactory.write(base, TRACES, tmp_path / base.name, SFT, machines=CPU)
        info = read_json(folder / "data" / "dataset_info.json")
        tokenizer = load_tokenizer(str(base))
        lines = (folder / "data" / info["traces"]["file_name"]).read_text().splitlines()
        assert len(lines) == len(TRACES)
        for line, trace in zip(map(json.loads, lines), TRACES, strict=True):
            for text, ids in (
                (line["prompt"], render(trace.question, tokenizer).token_ids),
                (line["response"], response_ids(tokenizer, trace.response)),
            ):
                assert tuple(tokenizer.encode(text, add_special_tokens=False)) == ids


def test_writing_again_changes_nothing_and_another_run_is_refused_once_begun(plain, tmp_path):
    folder = llamafactory.write(plain, TRACES, tmp_path / "run", SFT, machines=CPU)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    llamafactory.write(plain, TRACES, folder, SFT, machines=CPU)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    faster = dataclasses.replace(SFT, learning_rate=1e-2)
    llamafactory.write(plain, TRACES, folder, faster, machines=CPU)  # nothing has begun: written anew
    assert yaml.safe_load((folder / "train.yaml").read_text())["learning_rate"] == 1e-2
    (folder / "checkpoints").mkdir()
    with pytest.raises(ParameterError, match="holds a run with other settings or data"):
        llamafactory.write(plain, TRACES, folder, SFT, machines=CPU)
    with pytest.raises(ParameterError, match="holds a run with other settings or data"):
        llamafactory.write(plain, TRACES[:-1], folder, faster, machines=CPU)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"traces": []}, "traces is empty"),
        ({"settings": dataclasses.replace(SFT, max_length=40)}, "sft.max_length is 40, but trace t0 has"),
        ({"machines": Machines(3, 1)}, r"sft.batch_size \(8\) must be a multiple of sft.micro_batch_size \(4\) x dev"),
        ({"sharding": "zero"}, "sharding must be one of auto, none, fsdp, not 'zero'"),
        ({"saves": 0}, "saves must be at least 1"),
        ({"folder": "a$b"}, "must have no quotes, backslashes or"),
        ({"model": "no/such/model/here"}, "there is no folder no/such/model/here"),
    ],
)
def test_what_cannot_train_is_refused_in_one_sentence(plain, tmp_path, change, sentence):
    arguments = {"model": plain, "traces": TRACES, "settings": SFT, "machines": CPU, **change}
    arguments["folder"] = tmp_path / change.get("folder", "run")
    with pytest.raises(ParameterError, match=sentence):
        llamafactory.write(**arguments)
    assert not (arguments["folder"] / "run.json").exists()


def test_run_sh_tokenises_once_then_trains_with_the_readers_own_values(plain, tmp_path):
    folder = llamafactory.write(plain, TRACES, tmp_path / "a folder" / "run", SFT, machines=CPU)
    half = folder / "checkpoints" / "checkpoint-3"
    half.mkdir(parents=True)  # left by a kill: without its trainer_state.json
    assert arguments_of(folder / "run.sh", tmp_path, "num_train_epochs=3") == [
        "train",
        "train.yaml",
        "num_train_epochs=3",
    ]
    assert not half.exists()
    nodes = llamafactory.write(plain, TRACES, tmp_path / "nodes", SFT, machines=Machines(2, 1))
    alone = subprocess.run(["bash", str(nodes / "run.sh")], capture_output=True, text=True, timeout=60)
    assert alone.returncode != 0
    assert "NODE_RANK" in alone.stderr
    (nodes / "tokenized").mkdir()
    half = nodes / "checkpoints" / "checkpoint-3"
    half.mkdir(parents=True)
    variables = {"MASTER_ADDR": "localhost"}
    arguments_of(nodes / "run.sh", tmp_path, NODE_RANK="1", **variables)
    assert half.is_dir()  # one node clears up, or they would trip over each other
    arguments_of(nodes / "run.sh", tmp_path, NODE_RANK="0", **variables)
    assert not half.exists()
    with pytest.raises(ParameterError, match="a run over 2 nodes"):
        llamafactory.train(nodes)


# --- verl's files -------------------------------------------------------------------------------------------------


def overrides_of(folder: Path, tmp_path: Path) -> dict[str, str]:
    module, *pairs = arguments_of(folder / "run.sh", tmp_path)[1:]
    assert module == "verl.trainer.main_ppo"
    return dict(pair.lstrip("+").split("=", 1) for pair in pairs)


def test_verls_overrides_have_the_papers_values(plain, tmp_path):
    problems = [Problem(str(i), f"{i} + 1", str(i + 1)) for i in range(650)]
    settings = RLSettings(max_tokens=8000)  # the micro model's context is 8192 tokens
    folder = verl.write(plain, problems, tmp_path / "a folder", settings, epochs=3)
    values = overrides_of(folder, tmp_path)
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    for name, value in {
        "algorithm.adv_estimator": "grpo",
        "data.train_batch_size": 128,
        f"{rollout}.n": 16,
        f"{actor}.ppo_mini_batch_size": 128,  # one update of the weights a step
        "trainer.total_training_steps": 15,  # 5 whole batches, 3 times
        "trainer.save_freq": 4,
        "trainer.n_gpus_per_node": 8,
        "data.max_response_length": 8000,
        f"{actor}.use_kl_loss": "False",
        f"{actor}.use_dynamic_bsz": "True",
        f"{actor}.ppo_max_token_len_per_gpu": 2 * int(values[f"{rollout}.max_model_len"]),
        "actor_rollout_ref.model.use_remove_padding": "True",  # or that many tokens would bound nothing
        "algorithm.use_kl_in_reward": "False",
    }.items():
        assert values[name] == str(value), name
    for name, value in {
        f"{actor}.optim.lr": 1e-6,
        f"{actor}.entropy_coeff": 0.001,
        f"{rollout}.temperature": 1,
    }.items():
        assert float(values[name]) == value, name
    assert values["data.train_files"] == f"'{folder.resolve()}/train.parquet'"
    assert read_json(folder / "run.json")["checkpoints"] == [4, 8, 12, 15]
    assert int(values["trainer.total_epochs"]) * (650 // 128) >= 15


@pytest.mark.parametrize("checkpoints", [1, 3, 4, 7])
def test_kept_steps_are_the_multiples_of_savings_and_the_last_and_enough(checkpoints):
    for steps in range(checkpoints, 60):
        kept = verl.kept_steps(RLSettings(steps=steps, checkpoints=checkpoints))
        assert kept == tuple(step for step in range(1, steps + 1) if step % kept[0] == 0 or step == steps)
        assert len(kept) >= checkpoints
        assert steps % checkpoints or len(kept) == checkpoints
    assert verl.kept_steps(RLSettings(steps=945, checkpoints=4)) == (237, 474, 711, 945)


def test_verls_parquet_holds_prompts_gold_answers_and_tolerances(plain, chat, with_bos, tmp_path):
    for base in (plain, chat, with_bos):
        folder = verl.write(base, PROBLEMS, tmp_path / base.name, RL, machines=Machines(1, 2), source="amc")
        tokenizer = load_tokenizer(str(base))
        for row, problem in zip(read_parquet(folder / "train.parquet").to_dict("records"), PROBLEMS, strict=True):
            (message,) = row["prompt"]
            assert message["role"] == "user"
            ids = tokenizer.encode(message["content"], add_special_tokens=False)
            assert tuple(ids) == render(problem.question, tokenizer).token_ids
            assert row["data_source"] == "amc"
            assert row["reward_model"] == {"style": "rule", "ground_truth": problem.answer}
            tolerance = row["extra_info"]["tolerance"]
            assert tolerance == problem.tolerance or (problem.tolerance is None and math.isnan(tolerance))
        longest = max(len(render(problem.question, tokenizer).token_ids) for problem in PROBLEMS)
        assert overrides_of(folder, tmp_path)["data.max_prompt_length"] == str(longest)


def test_verl_asks_and_grades_as_the_problems_domain_does(plain, tmp_path):
    problems = [Problem(f"c{i}", f"Which is {i}?\nA) 1\nB) {i}", "B", grader="choice") for i in range(4)]
    folder = verl.write(plain, problems, tmp_path / "run", RL, machines=Machines(1, 2))
    rows = read_parquet(folder / "train.parquet").to_dict("records")
    assert all(INSTRUCTIONS["choice"] in row["prompt"][0]["content"] for row in rows)
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); from reward import compute_score; print(json.dumps(["
        "compute_score('', a, 'B', json.loads(sys.argv[2]))['verdict'] "
        "for a in ('\\\\boxed{B}', '\\\\boxed{A}')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), json.dumps(rows[0]["extra_info"])],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert json.loads(done.stdout) == ["correct", "wrong"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"machines": CPU}, "verl trains on GPUs only"),
        ({"problems": PROBLEMS[:3]}, "rl.prompts_per_step is 4, and there are only 3 problems"),
        ({"machines": Machines(1, 3)}, r"\(16\) must be a multiple of the 3 GPUs"),
        ({"tensor_parallel": 4}, r"tensor_parallel \(4\) must divide machines.devices \(2\)"),
        ({"settings": dataclasses.replace(RL, checkpoints=8), "epochs": 1}, "1 epochs are only 3 steps"),
        ({"settings": dataclasses.replace(RL, max_tokens=8192)}, "max_tokens=8192 does not fit"),
        ({"attention": "eager"}, "attention must be one of sdpa, flash_attention_2"),
        ({"gpu_memory": 1.5}, "gpu_memory must be between 0 and 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
    ],
)
def test_what_verl_cannot_run_is_refused_in_one_sentence(plain, tmp_path, change, sentence):
    arguments = {"problems": PROBLEMS, "settings": RL, "machines": Machines(1, 2), **change}
    with pytest.raises(ParameterError, match=sentence):
        verl.write(plain, arguments.pop("problems"), tmp_path / "run", arguments.pop("settings"), **arguments)


def test_the_curve_counts_a_step_that_was_taken_again_once(plain, tmp_path):
    folder = verl.write(plain, PROBLEMS, tmp_path / "run", RL, machines=Machines(1, 2))
    (folder / "metrics").mkdir()

    def line(step: int, reward: float) -> str:
        data = {"critic/score/mean": reward, "actor/entropy": 0.5, "response_length/mean": 9.0}
        return json.dumps({"step": step, "data": {**data, "response_length/clip_ratio": 0.25, "timing_s/step": 2.0}})

    first = [json.dumps({"step": 0, "data": {"val": 1}}), line(1, 0.25), line(2, 0.5), line(3, 0.9)[:40]]
    (folder / "metrics" / "100.jsonl").write_text("\n".join(first))  # killed while it wrote step 3
    (folder / "metrics" / "200.jsonl").write_text(line(2, 0.75) + "\n" + line(3, 1.0) + "\n")
    curve = verl.curve(folder)
    assert curve.step.tolist() == [1, 2, 3]
    assert curve.reward.tolist() == [0.25, 0.75, 1.0]
    assert curve.truncated.tolist() == [0.25] * 3
    # 4 prompts x 4 rollouts, a quarter of them right: the sample standard deviation of these sixteen rewards
    assert curve.reward_std[0] == pytest.approx(pd.Series([1.0] * 4 + [0.0] * 12).std())
    assert curve.reward_std[2] == 0


def test_verl_on_one_node_starts_a_ray_of_its_own(plain, tmp_path):
    """Inside a cell on a Ray cluster it would join that, and wait for the very GPUs that the cell holds."""
    (tmp_path / "python").write_text(f'#!/usr/bin/env bash\necho "$RAY_ADDRESS" >"{tmp_path}/address"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {**os.environ, "QUAGMIRE_VERL_PYTHON": str(tmp_path / "python"), "RAY_ADDRESS": "head:6379"}
    for nodes, address in ((1, "local"), (2, "head:6379")):
        folder = verl.write(plain, PROBLEMS, tmp_path / f"run{nodes}", RL, machines=Machines(nodes, 2))
        subprocess.run(["bash", str(folder / "run.sh")], env=environment, check=True, timeout=60)
        assert (tmp_path / "address").read_text().strip() == address


def test_a_machine_without_gpus_is_told_before_verl_starts(plain, tmp_path, monkeypatch):
    monkeypatch.setenv("QUAGMIRE_VERL_PYTHON", sys.executable)
    monkeypatch.setattr(verl, "count_gpus", lambda: 0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    folder = verl.write(plain, PROBLEMS, tmp_path / "run", RL, machines=Machines(1, 2))
    with pytest.raises(ParameterError, match=r"machines.devices is 2, and this machine has 0 GPUs"):
        verl.train(folder)
    with pytest.raises(ParameterError, match="has no checkpoint of it; there are none"):
        verl.export(folder, 2)


# --- environments and runs ----------------------------------------------------------------------------------------


def test_a_back_end_that_is_not_there_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr("quagmire_utils.backends.environments.ROOT", tmp_path)
    monkeypatch.delenv("QUAGMIRE_VERL_PYTHON", raising=False)
    with pytest.raises(ParameterError, match=r"verl is not installed: run ./reproduce.sh setup verl"):
        environment_python("verl")
    python = tmp_path / ".venv-verl" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    with pytest.raises(ParameterError, match="is not installed"):  # set-up was interrupted
        environment_python("verl")
    (tmp_path / ".venv-verl" / "quagmire-setup").touch()
    assert environment_python("verl") == python
    monkeypatch.setenv("QUAGMIRE_VERL_PYTHON", str(tmp_path / "nowhere"))
    with pytest.raises(ParameterError, match=r"QUAGMIRE_VERL_PYTHON names .*nowhere, which is no program"):
        environment_python("verl")
    with pytest.raises(ParameterError, match="backend must be one of llamafactory, verl"):
        environment_python("trl")


def test_a_python_that_cannot_run_a_back_end_is_refused_in_one_sentence(tmp_path, monkeypatch):
    python, answer = tmp_path / "python", tmp_path / "answer"
    python.write_text(f'#!/usr/bin/env bash\nsource "{answer}"\n')
    python.chmod(0o755)
    pinned = re.search(r"(?m)^verl==(.*)$", (LISTS / "verl.txt").read_text())[1]
    for named, says, sentence in (
        (
            sys.executable,
            "",
            "has no verl: run ./reproduce.sh setup verl, or name another Python in QUAGMIRE_VERL_PYTH",
        ),
        (
            python,
            "echo 0.4.1",
            f"has verl 0.4.1, and runs are written for verl {pinned}: run ./reproduce.sh setup verl",
        ),
        (python, "echo cannot open shared object >&2; exit 127", "does not run .cannot open shared object.: run ./rep"),
    ):
        answer.write_text(says)
        monkeypatch.setenv("QUAGMIRE_VERL_PYTHON", str(named))
        with pytest.raises(ParameterError, match=sentence) as raised:
            backend_environment("verl")
        assert "\n" not in str(raised.value)
    answer.write_text(f"echo {pinned}")
    assert backend_environment("verl") == {"QUAGMIRE_VERL_PYTHON": str(python)}


@pytest.mark.parametrize("name", ["llamafactory", "verl"])
def test_the_pinned_lists_are_exact_and_name_no_host(name):
    lines = [line for line in (LISTS / f"{name}.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in lines)
    names = [line.split("==")[0] for line in lines]
    assert len(names) == len(set(names))
    assert {name, "torch", "transformers"} <= set(names)


def test_the_reward_grades_with_the_versions_that_grade_the_benchmarks():
    def pins(path: Path) -> dict[str, str]:
        return dict(line.split("==") for line in path.read_text().splitlines() if "==" in line and line[0] != "#")

    ours, theirs = pins(ROOT / "constraints.txt"), pins(LISTS / "verl.txt")
    for name in ("math-verify", "latex2sympy2-extended", "sympy"):
        assert theirs[name] == ours[name]


def script(folder: Path, text: str) -> Path:
    (folder / "run.sh").write_text(f"set -e\n{text}\n")
    return folder


def test_a_failure_names_its_log_and_shows_its_end(tmp_path):
    script(tmp_path, 'for i in $(seq 50); do echo "line $i"; done; echo "CUDA out of memory" >&2; exit 3')
    with pytest.raises(BackendError) as raised:
        run_script(tmp_path, name="verl", environment={}, steps=9, steps_done=lambda: 4, progress=False)
    message = str(raised.value)
    assert "verl stopped with exit code 3 after 4 of 9 steps" in message
    assert str(tmp_path / LOG) in message
    assert message.endswith("    CUDA out of memory")
    assert "line 50" in message
    assert "line 30" not in message


def test_progress_is_reported_and_a_resumed_run_begins_where_it_was(tmp_path, capfd):
    count = tmp_path / "count"
    count.write_text("xx")
    script(tmp_path, f'for i in 1 2 3; do printf x >>"{count}"; sleep 0.7; done')
    fractions: list[float] = []
    run_script(
        tmp_path,
        name="LLaMA-Factory",
        environment={},
        steps=5,
        steps_done=lambda: count.stat().st_size,
        on_progress=fractions.append,
    )
    assert fractions == sorted(set(fractions))
    assert fractions[0] >= 3 / 5
    assert fractions[-1] == 1
    assert "LLaMA-Factory: 100%" in capfd.readouterr().err


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def test_an_interrupt_ends_everything_that_was_started(tmp_path):
    script(tmp_path, 'sleep 600 & echo $! >child; echo "$QUAGMIRE_X" >variable; wait')
    threading.Timer(0.1, lambda: (wait_for((tmp_path / "variable").exists), signal.raise_signal(signal.SIGINT))).start()
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_script(tmp_path, name="verl", environment={"QUAGMIRE_X": "yes"}, progress=False)
    finally:
        os.chdir(here)
    assert (tmp_path / "variable").read_text() == "yes\n"
    wait_for(lambda: not psutil.pid_exists(int((tmp_path / "child").read_text())))


def test_a_run_outlives_its_killed_caller_and_is_not_started_twice(tmp_path):
    script(tmp_path, f'echo $$ >"{tmp_path}/pid"; exec sleep 600')
    code = (
        "import sys; from pathlib import Path; from quagmire_utils.backends.runs import run_script; "
        "run_script(Path(sys.argv[1]), name='verl', environment={}, progress=False)"
    )
    caller = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    caller.kill()
    caller.wait()
    pid = int((tmp_path / "pid").read_text())
    try:
        with pytest.raises(ParameterError, match="a run is still at work in it"):
            run_script(tmp_path, name="verl", environment={}, progress=False)
    finally:
        os.kill(pid, signal.SIGKILL)
    script(tmp_path, "true")
    wait_for(lambda: not psutil.pid_exists(pid))
    run_script(tmp_path, name="verl", environment={}, progress=False)


# --- the real LLaMA-Factory ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("base", ["chat", "with_bos"])  # every run below checks the plain one's
def test_llamafactory_makes_the_tokens_that_sampling_uses_and_a_difference_is_refused(
    base, request, tmp_path, llamafactory_python
):
    model = request.getfixturevalue(base)
    folder = llamafactory.write(model, TRACES, tmp_path / "run", SFT, machines=CPU)
    llamafactory.check(folder)
    tokenizer = load_tokenizer(str(model))
    code = (
        "import json, sys; from datasets import load_from_disk; rows = load_from_disk(sys.argv[1])['train']; "
        "print(json.dumps([[row['input_ids'], row['labels']] for row in rows]))"
    )
    made = subprocess.run(
        [llamafactory_python, "-c", code, str(folder / "tokenized")], capture_output=True, text=True, check=True
    )
    for (ids, labels), trace in zip(json.loads(made.stdout), TRACES, strict=True):
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
            llamafactory.check(folder)
        assert not (folder / "tokenized").exists()


@pytest.fixture(scope="module")
def unbroken(plain, tmp_path_factory) -> Path:
    """A run of LLaMA-Factory on the CPU, from beginning to end."""
    backend_python("llamafactory")
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    settings = dataclasses.replace(SFT, epochs=60)
    llamafactory.write(plain, TRACES, folder, settings, machines=CPU, saves=6)
    summary = llamafactory.train(folder, progress=False)
    assert summary["steps"] == 180
    return folder


def weights_of(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_llamafactory_trains_and_its_checkpoint_keeps_the_tokenizer_of_its_base(unbroken, plain):
    summary = read_json(unbroken / "model" / "sft.json")
    losses = [entry["loss"] for entry in llamafactory.log_entries(unbroken) if "loss" in entry]
    assert summary["final_loss"] == losses[-1] < losses[0] / 2
    tokenizer = load_tokenizer(str(unbroken / "model"))
    # LLaMA-Factory gave the base model a chat template, and with it other prompts; the exported one has none.
    assert (unbroken / "checkpoints" / "chat_template.jinja").is_file()
    assert not tokenizer.chat_template
    prompt = render(TRACES[0].question, tokenizer)
    assert prompt == render(TRACES[0].question, load_tokenizer(str(plain)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_our_engines_sample_what_llamafactory_trained(name, unbroken):
    from quagmire_utils.engines import Request, SamplingParams, load_engine

    if name == "vllm":
        if importlib.util.find_spec("vllm") is None:
            pytest.skip("vLLM is not installed")
        if not any(shutil.which(tool) for tool in ("g++", "gcc")):
            pytest.skip("vLLM compiles kernels, and there is no compiler")
    engine = load_engine(name, unbroken / "model", max_model_len=512)
    try:
        prompt = render(TRACES[0].question, engine.tokenizer)
        params = SamplingParams(temperature=1e-6, max_tokens=64)
        ((completion,),) = engine.generate([Request(prompt.token_ids, 1, 0)], params)
        assert completion.text.startswith("Adding one:\n\n")  # as every trace does
    finally:
        engine.close()


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_weights(unbroken, plain, tmp_path):
    import torch

    folder = tmp_path / "run"
    settings = dataclasses.replace(SFT, epochs=60)
    llamafactory.write(plain, TRACES, folder, settings, machines=CPU, saves=6)
    shutil.copytree(unbroken / "tokenized", folder / "tokenized")  # the same traces
    code = "import sys; from quagmire_utils.backends import llamafactory; llamafactory.train(sys.argv[1])"
    caller = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: any(folder.glob("checkpoints/checkpoint-*/trainer_state.json")), 240)
    processes = [caller, *psutil.Process(caller.pid).children(recursive=True)]
    for process in processes:
        process.kill()
    caller.wait()
    wait_for(lambda: not any(psutil.pid_exists(process.pid) for process in processes))
    assert not (folder / "model").exists()
    reached = max(entry["current_steps"] for entry in llamafactory.log_entries(folder))
    assert 30 <= reached < 180
    llamafactory.train(folder, progress=False)
    assert "Resuming training from" in (folder / LOG).read_text()
    ours, theirs = weights_of(folder / "model"), weights_of(unbroken / "model")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_llamafactory_by_hand_on_two_processes_and_trl_train_the_same_model(plain, tmp_path, llamafactory_python):
    """Each step on all traces, so that their order does not matter: same loss, same schedule, same optimizer.

    The loss of the first step, before any update, is our generalization loss of the base model on these traces.
    """
    import torch

    from quagmire_utils import sft
    from quagmire_utils.generalization_loss import generalization_loss

    settings = SFTSettings(
        epochs=12, batch_size=24, micro_batch_size=8, learning_rate=1e-3, max_length=512, warmup_fraction=0.25
    )
    ours = sft.train_sft(plain, TRACES, tmp_path / "trl", settings, progress=False)
    folder = llamafactory.write(plain, TRACES, tmp_path / "lf", settings, machines=CPU)
    variables = {"QUAGMIRE_LLAMAFACTORY_PYTHON": str(llamafactory_python), "FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}
    done = subprocess.run(
        ["bash", folder / "run.sh", "per_device_train_batch_size=4", "gradient_accumulation_steps=3"],
        env={**os.environ, **variables, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=540,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "world size: 2" in done.stdout + done.stderr
    theirs = llamafactory.train(folder, progress=False)  # collects what was run by hand
    assert theirs["tokens"] == ours["tokens"]
    assert theirs["steps"] == ours["steps"] == 12
    assert theirs["final_loss"] == pytest.approx(ours["final_loss"], rel=1e-3)
    first = next(entry["loss"] for entry in llamafactory.log_entries(folder) if "loss" in entry)
    assert first == pytest.approx(generalization_loss(plain, None, TRACES).nll, rel=1e-4)
    start, a, b = (weights_of(folder) for folder in (plain, tmp_path / "trl", tmp_path / "lf" / "model"))
    moved = torch.cat([(a[name] - start[name]).flatten() for name in start])
    apart = torch.cat([(a[name] - b[name]).flatten() for name in start])
    assert apart.norm() < 0.01 * moved.norm()


# --- the real verl ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_verl_accepts_every_override_and_refuses_a_wrong_one(chat, tmp_path, verl_python):
    folder = verl.write(
        chat, PROBLEMS, tmp_path / "a folder, of = signs", dataclasses.replace(RL, micro_batch_size=2), epochs=3,
        machines=Machines(1, 2),
    )  # fmt: skip
    environment = {**os.environ, "QUAGMIRE_VERL_PYTHON": str(verl_python)}
    done = subprocess.run(
        ["bash", str(folder / "run.sh"), "--cfg", "job"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    job = yaml.safe_load(done.stdout)
    assert float(job["actor_rollout_ref"]["actor"]["optim"]["lr"]) == 1e-6
    assert job["actor_rollout_ref"]["actor"]["entropy_coeff"] == 0.001
    assert job["actor_rollout_ref"]["rollout"]["n"] == 4
    assert job["trainer"]["total_training_steps"] == 9  # 3 epochs of 3 batches
    assert job["data"]["train_files"] == str(folder.resolve() / "train.parquet")
    assert job["actor_rollout_ref"]["model"]["custom_chat_template"] == "{{ messages[0].content }}"
    refused = subprocess.run(
        ["bash", str(folder / "run.sh"), "actor_rollout_ref.rollout.rollouts=16", "--cfg", "job"],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert refused.returncode != 0
    assert "Could not override 'actor_rollout_ref.rollout.rollouts'" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("base", ["chat", "with_bos"])
def test_verl_makes_the_tokens_that_sampling_uses_and_a_difference_is_refused(base, request, tmp_path, verl_python):
    model = request.getfixturevalue(base)
    folder = verl.write(model, PROBLEMS, tmp_path / "run", RL, machines=Machines(1, 2))
    verl.check(folder)
    assert "every token is the one that sampling uses; reward works" in (folder / LOG).read_text()
    if base == "with_bos":
        expected = read_json(folder / "prompts.json")
        expected["rows"][7][1] = "0" * 12
        (folder / "prompts.json").write_text(json.dumps(expected))
        command = [verl_python, "check_run.py", ".job.yaml", "prompts.json", "train.parquet"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 1
        assert "verl makes other tokens of problem p7 than sampling does" in done.stderr


REWARDS = """
import asyncio, json, sys
import numpy as np, torch
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl import DataProto
from verl.trainer.ppo.reward import load_reward_manager

model, reward, rows, target = sys.argv[1:]
config = OmegaConf.create({"reward": {
    "custom_reward_function": {"path": reward, "name": "compute_score", "reward_kwargs": {"timeout": 5.0}},
    "reward_manager": {"source": "register", "name": "naive"}}})
tokenizer = AutoTokenizer.from_pretrained(model)

async def main():
    manager = load_reward_manager(config, tokenizer)
    async def one(row):
        ids = torch.tensor([tokenizer.encode(row["response"], add_special_tokens=False) + [tokenizer.eos_token_id]])
        mask = torch.ones_like(ids)
        data = DataProto.from_dict(
            tensors={"responses": ids, "attention_mask": mask},
            non_tensors={"data_source": np.array(["math"], dtype=object),
                         "reward_model": np.array([{"ground_truth": row["gold"]}], dtype=object),
                         "extra_info": np.array([{name: row[name] for name in ("tolerance", "grader")}], dtype=object)})
        return await manager.run_single(data)
    return await asyncio.gather(*map(one, [json.loads(line) for line in open(rows)]))

json.dump([[r["reward_score"], r["reward_extra_info"]["verdict"]] for r in asyncio.run(main())], open(target, "w"))
"""


@pytest.mark.slow
def test_verls_reward_manager_gives_the_verdicts_of_grading_on_real_responses(plain, tmp_path, verl_python):
    from quagmire_utils.grading import Verdict, grade

    data = Path(os.environ.get("QUAGMIRE_DATA_DIR", ROOT.parent / "shared" / "data")) / "responses"
    if not data.is_dir():
        pytest.skip(f"real responses are missing: {data} does not exist")
    rows = [
        {"gold": line["gold"], "response": response, "tolerance": None}
        for file, count in (("gsm8k_gpt3.jsonl", 40), ("math_cot.jsonl", 50))
        for line in map(json.loads, (data / file).read_text().splitlines()[:count])
        for response in line["responses"][:6]
    ]
    rows += [
        {"gold": "4.2", "response": "\\boxed{4.25}", "tolerance": 0.1},
        {"gold": "4.2", "response": "\\boxed{4.35}", "tolerance": 0.1},
        {"gold": "1", "response": "\\boxed{9^{9^{9^{9}}}}", "tolerance": None},  # hostile
        {"gold": "1", "response": "", "tolerance": None},
        {"gold": "B", "response": "So it is \\boxed{B}.", "tolerance": None, "grader": "choice"},
    ]
    rows = [{"grader": "math", **row} for row in rows]
    folder = verl.write(plain, PROBLEMS, tmp_path / "run", RL, machines=Machines(1, 2))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONPATH", None)  # reward.py finds the package by itself
    done = subprocess.run(
        [verl_python, "-c", REWARDS, plain, folder / "reward.py", tmp_path / "rows.jsonl", tmp_path / "out.json"],
        env=environment, capture_output=True, text=True, timeout=540, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    golds = [Problem("", "", row["gold"], row["tolerance"], row["grader"]) for row in rows]
    verdicts = [grade.verdict for grade in grade([row["response"] for row in rows], golds, timeout=5.0)]
    rewarded = read_json(tmp_path / "out.json")
    assert [verdict for _, verdict in rewarded] == [verdict.value for verdict in verdicts]
    assert [score for score, _ in rewarded] == [float(verdict == Verdict.CORRECT) for verdict in verdicts]
    assert len({verdict for _, verdict in rewarded}) >= 3
    assert 0.1 < sum(score for score, _ in rewarded) / len(rewarded) < 0.9


PLATFORM = """
import contextlib, types
import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

torch_cpu = types.SimpleNamespace(**{name: getattr(torch.cpu, name) for name in dir(torch.cpu) if name[0] != "_"})
for name in ("memory_reserved", "memory_allocated", "max_memory_allocated", "max_memory_reserved"):
    setattr(torch_cpu, name, lambda *_: 0)
torch_cpu.mem_get_info = lambda *_: (1 << 33, 1 << 34)
torch_cpu.empty_cache = lambda: None
torch_cpu.get_device_name = lambda: "CPU"

class CPU(PlatformBase):
    device_name = vendor_name = "cpu"
    device_module = torch_cpu
    is_available = lambda self: True
    current_device = lambda self: torch.device("cpu")
    device_count = lambda self: 1
    communication_backend_name = lambda self: "gloo"
    visible_devices_envvar = lambda self: "CUDA_VISIBLE_DEVICES"
    ray_resource_name = lambda self: "CPU"
    ray_noset_envvars = lambda self: []
    is_ipc_supported = lambda self: False
    cudart = lambda self: None
    nvtx_range = lambda self, message: contextlib.nullcontext()
    get_device_capability = lambda self, device=0: (None, None)
    manual_seed = manual_seed_all = lambda self, seed: torch.manual_seed(seed)
    set_device = set_allocator_settings = lambda self, value: None
    synchronize = empty_cache = profiler_start = profiler_stop = lambda self, *_: None

PlatformRegistry.register(platform="cpu")(CPU)
"""

# One step as verl's trainer takes it (`_compute_old_log_prob`, `_compute_advantage`, `_update_actor`), on what a worker
# of two has of the batch.
STEP = """
import sys
import numpy as np, torch, torch.distributed as dist
dist.init_process_group("gloo")
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl.workers.utils.padding import left_right_2_no_padding, no_padding_2_padding

job, file, target = sys.argv[1:]
config, rank = OmegaConf.load(job), dist.get_rank()
actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
worker = ActorRolloutRefWorker(config=config.actor_rollout_ref, role="actor")
worker.init_model()
tensors = torch.load(file)
groups = np.arange(len(tensors["responses"])) // rollout.n
tensors["advantages"], _ = compute_grpo_outcome_advantage(
    tensors.pop("rewards"), tensors["response_mask"], groups,
    norm_adv_by_std_in_grpo=config.algorithm.norm_adv_by_std_in_grpo)
mine = DataProto.from_dict(tensors=tensors).chunk(dist.get_world_size())[rank]
mine.meta_info.update(temperature=rollout.temperature,
                      global_token_num=mine.batch["attention_mask"].sum(-1).tolist())
data = left_right_2_no_padding(mine.to_tensordict())
tu.assign_non_tensor(data, calculate_entropy=True, compute_loss=False)
mine.batch["old_log_probs"] = no_padding_2_padding(worker.compute_log_prob(data)["log_probs"], data).float()
data = left_right_2_no_padding(mine.to_tensordict())
size = actor.ppo_mini_batch_size * rollout.n
tu.assign_non_tensor(data, calculate_entropy=actor.calculate_entropy or actor.entropy_coeff != 0, compute_loss=True,
                     distillation_use_topk=False, distillation_only=False, global_batch_size=size,
                     mini_batch_size=size, epochs=actor.ppo_epochs, seed=actor.data_loader_seed,
                     dataloader_kwargs={"shuffle": actor.shuffle})
metrics = {name.removeprefix("actor/"): value for name, value in tu.get(worker.update_actor(data), "metrics").items()}
worker.save_checkpoint(target, None, 1)
weights = {name: p.full_tensor().detach() for name, p in worker.actor.engine.module.named_parameters()}
torch.save({"log_probs": mine.batch["old_log_probs"], "weights": weights,
            "metrics": {name: float(np.mean(metrics[name])) for name in ("grad_norm", "pg_loss", "entropy_loss")}},
           f"{target}/../of_rank_{rank}.pt")
dist.barrier()
dist.destroy_process_group()
"""


def rollouts_of(model: Path, settings: RLSettings) -> dict:
    """A step's batch as verl's trainer lays it out: prompts padded on the left, random answers on the right."""
    import torch

    tokenizer, random = load_tokenizer(str(model)), torch.Generator().manual_seed(0)
    prompts = [render(p.question, tokenizer).token_ids for p in PROBLEMS[: settings.prompts_per_step]]
    width, rows = max(map(len, prompts)), []
    for prompt in (prompt for prompt in prompts for _ in range(settings.rollouts)):
        length = int(torch.randint(2, settings.max_tokens, (), generator=random))
        answer = torch.randint(20, 60, (length,), generator=random).tolist()
        left, right = [0] * (width - len(prompt)), [0] * (settings.max_tokens - length)
        rows.append((left + list(prompt), answer + right, [*left, *[1] * (len(prompt) + length), *right]))
    prompts, responses, mask = map(torch.tensor, zip(*rows, strict=True))
    batch = {"prompts": prompts, "responses": responses, "attention_mask": mask}
    batch["input_ids"] = torch.cat([prompts, responses], 1)
    batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    batch["response_mask"] = batch["attention_mask"][:, width:].contiguous()
    batch["rewards"] = torch.zeros(batch["responses"].shape)
    for row in range(0, len(rows), 3):
        batch["rewards"][row, batch["response_mask"][row].sum() - 1] = 1.0
    return batch


def step_by_hand(model: Path, batch: dict, settings: RLSettings) -> tuple[dict, dict, list]:
    """Weights after one step of GRPO, its metrics, and the log-probabilities of each answer: one row at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    scores = batch["rewards"].sum(1).view(-1, settings.rollouts)
    advantages = ((scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + 1e-6)).flatten()
    policy, entropy, each = 0.0, 0.0, []
    for row, advantage in enumerate(advantages):
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        length = int(batch["response_mask"][row].sum())
        logits = module(ids[None]).logits[0, -length - 1 : -1] / settings.temperature
        log_probs = logits.log_softmax(-1)
        chosen = log_probs.gather(1, ids[-length:, None])[:, 0]
        each.append(chosen.detach())
        policy = policy - (advantage * (chosen - chosen.detach()).exp()).sum()
        entropy = entropy - (log_probs.exp() * log_probs).sum()
    tokens = batch["response_mask"].sum()
    (policy / tokens - settings.entropy_coefficient * entropy / tokens).backward()
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), settings.max_grad_norm)
    torch.optim.AdamW(module.parameters(), lr=settings.learning_rate, weight_decay=0.0).step()
    metrics = {"grad_norm": norm, "pg_loss": policy / tokens, "entropy_loss": entropy / tokens}
    return (
        {name: weight.detach() for name, weight in module.named_parameters()},
        {name: value.item() for name, value in metrics.items()},
        each,
    )


@pytest.mark.slow
def test_a_step_of_verl_is_the_one_computed_by_hand_and_our_engine_loads_its_checkpoint(chat, tmp_path, verl_python):
    """verl's FSDP engine, loss, optimizer and checkpoints, with our overrides, on two ranks without a GPU."""
    import torch

    from quagmire_utils.engines import Request, SamplingParams, load_engine

    settings = dataclasses.replace(RL, learning_rate=1e-3, entropy_coefficient=0.02, temperature=0.8, max_grad_norm=0.5)
    folder = verl.write(chat, PROBLEMS, tmp_path / "run", settings, machines=Machines(1, 2))
    full = "{param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}"  # what is done by hand
    variables = {**os.environ, "QUAGMIRE_VERL_PYTHON": str(verl_python), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "job.yaml").open("w") as job:
        subprocess.run(
            [
                "bash",
                folder / "run.sh",
                f"+actor_rollout_ref.actor.fsdp_config.mixed_precision={full}",
                "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
                *("--cfg", "job"),
            ],
            env=variables, stdout=job, check=True, timeout=300,
        )  # fmt: skip
    batch = rollouts_of(chat, settings)
    torch.save(batch, tmp_path / "batch.pt")
    (tmp_path / "cpu_platform.py").write_text(PLATFORM)
    (tmp_path / "step.py").write_text(STEP)
    shards = folder / "checkpoints" / "global_step_4" / "actor"
    variables |= {
        "PYTHONPATH": str(tmp_path),
        "VERL_USE_EXTERNAL_MODULES": "cpu_platform",
        "VERL_PLATFORM": "cpu",
        "VERL_ENGINE_DEVICE": "cuda",
        "CUDA_VISIBLE_DEVICES": "",
    }
    launcher = [verl_python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, tmp_path / "step.py", tmp_path / "job.yaml", tmp_path / "batch.pt", shards],
        env=variables, capture_output=True, text=True, timeout=540,
    )  # fmt: skip
    assert done.returncode == 0, "\n".join(re.findall(r"(?m)^\[rank0\]:.*", done.stderr)[-30:]) or done.stderr[-3000:]

    ranks = [torch.load(shards.parent / f"of_rank_{rank}.pt") for rank in range(2)]
    weights, metrics, each = step_by_hand(chat, batch, settings)
    seen = torch.cat([rank["log_probs"] for rank in ranks])
    for row, log_probs in enumerate(each):
        assert torch.allclose(seen[row, : len(log_probs)], log_probs, atol=1e-4), row
    assert metrics["grad_norm"] > settings.max_grad_norm  # so the clipping counts
    for rank in ranks:
        assert rank["metrics"] == pytest.approx(metrics, rel=1e-3, abs=1e-6)
    start, trained = weights_of(chat), ranks[0]["weights"]
    moved = torch.cat([(weights[name] - start[name]).flatten() for name in trained])
    apart = torch.cat([(weights[name] - trained[name]).flatten() for name in trained])
    assert apart.norm() < 0.01 * moved.norm()

    with pytest.raises(ParameterError, match=r"step 3: .* has no checkpoint of it; there are global_step_4"):
        verl.export(folder, 3)
    target = verl.export(folder, 4)
    assert target == folder / "checkpoint-4"
    exported = weights_of(target)
    assert set(exported) == set(start)
    for name, tensor in trained.items():  # verl's merger rounds to bfloat16
        assert torch.equal(exported[name], tensor.bfloat16().float()), name
    engine = load_engine("transformers", target)
    prompt = render(PROBLEMS[0].question, engine.tokenizer)
    assert prompt == render(PROBLEMS[0].question, load_tokenizer(str(chat)))
    ((completion,),) = engine.generate([Request(prompt.token_ids, 1, 0)], SamplingParams(max_tokens=4))
    assert completion.tokens >= 1
    assert verl.export(folder, 4) == target  # nothing to do
