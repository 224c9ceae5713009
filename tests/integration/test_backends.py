"""The back-ends: their files, and how they are run. `test_backends_*.py` run the real ones."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from back_ends import LISTS, PROBLEMS, RL, SFT, TRACES, arguments_of, chat, plain, with_bos  # noqa: F401
from verdicts import wait_until

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json, read_parquet
from quagmire_utils.core.paths import ROOT
from quagmire_utils.core.settings import RLSettings, SFTSettings
from quagmire_utils.data import Problem
from quagmire_utils.data.prompts import INSTRUCTIONS, render, response_ids
from quagmire_utils.engines import load_tokenizer
from quagmire_utils.training.backends import llamafactory, verl
from quagmire_utils.training.backends.runs import LOG, BackendError, environment_python, run_backend


@pytest.mark.parametrize(("gpus", "micro_batch", "accumulation"), [(8, None, 16), (1, 16, 8), (0, None, 128)])
def test_the_training_yaml_has_the_papers_values_and_the_global_batch(plain, tmp_path, gpus, micro_batch, accumulation):
    settings = SFTSettings(micro_batch_size=micro_batch)
    llamafactory.write(plain, TRACES, tmp_path / "run", settings, gpus=gpus)
    values = yaml.safe_load((tmp_path / "run" / "train.yaml").read_text())
    assert values["learning_rate"] == 1e-5  # a number, though YAML reads 1e-5 as text
    assert values["cutoff_len"] == 8192
    assert values["gradient_accumulation_steps"] == accumulation
    assert values["per_device_train_batch_size"] * accumulation * max(1, gpus) == 128
    assert values["use_cpu"] == (gpus == 0) == (not values["bf16"])
    assert ("fsdp" in values) == (gpus > 1)
    if "fsdp" in values:  # else each GPU sums the gradients of all weights, in bfloat16
        assert values["accelerator_config"]["gradient_accumulation_kwargs"] == {"sync_each_batch": True}
    assert values["model_name_or_path"] == str(plain.resolve())


def test_what_llamafactory_reads_is_the_prompt_that_sampling_renders(plain, chat, with_bos, tmp_path):
    for base in (plain, chat, with_bos):
        folder = llamafactory.write(base, TRACES, tmp_path / base.name, SFT, gpus=0)
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


def test_writing_again_changes_nothing_and_another_run_is_refused_once_begun(plain, tmp_path, refused):
    folder = llamafactory.write(plain, TRACES, tmp_path / "run", SFT, gpus=0)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    llamafactory.write(plain, TRACES, folder, SFT, gpus=0)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    faster = SFT.replace(learning_rate=1e-2)
    llamafactory.write(plain, TRACES, folder, faster, gpus=0)  # nothing has begun: written anew
    assert yaml.safe_load((folder / "train.yaml").read_text())["learning_rate"] == 1e-2
    (folder / "checkpoints").mkdir()
    with refused("folder"):
        llamafactory.write(plain, TRACES, folder, SFT, gpus=0)
    with refused("folder"):
        llamafactory.write(plain, TRACES[:-1], folder, faster, gpus=0)


SFT_RUN = {"traces": TRACES, "settings": SFT, "gpus": 0}
RL_RUN = {"problems": PROBLEMS, "settings": RL, "gpus": 2}


@pytest.mark.parametrize(
    ("run", "change", "parameter"),
    [
        (SFT_RUN, {"settings": SFT.replace(max_length=40)}, "sft.max_length"),
        (SFT_RUN, {"folder": "a$b"}, "folder"),
        (SFT_RUN, {"model": "no/such/model/here"}, "model"),
        (RL_RUN, {"settings": RL.replace(epochs=1)}, "rl.checkpoints"),
        (RL_RUN, {"settings": RL.replace(max_tokens=8192)}, "max_tokens"),
    ],
)
def test_what_cannot_train_is_refused_before_anything_is_written(plain, tmp_path, run, change, parameter, refused):
    arguments = {"model": plain, **run, **change, "folder": tmp_path / change.get("folder", "run")}
    with refused(parameter):
        (llamafactory if run is SFT_RUN else verl).write(**arguments)
    assert not (arguments["folder"] / "run.json").exists()


def test_run_sh_trains_with_the_readers_own_values(plain, tmp_path):
    folder = llamafactory.write(plain, TRACES, tmp_path / "a folder" / "run", SFT, gpus=0)
    half = folder / "checkpoints" / "checkpoint-3"
    half.mkdir(parents=True)  # left by a kill: without its trainer_state.json
    given = arguments_of(folder / "run.sh", tmp_path, "num_train_epochs=3")
    assert given == ["train", "train.yaml", "num_train_epochs=3"]
    assert not half.exists()


def overrides_of(folder: Path, tmp_path: Path) -> dict[str, str]:
    module, *pairs = arguments_of(folder / "run.sh", tmp_path)[1:]
    assert module == "verl.trainer.main_ppo"
    return dict(pair.lstrip("+").split("=", 1) for pair in pairs)


def test_verls_overrides_have_the_papers_values(plain, tmp_path):
    problems = [Problem(str(i), f"{i} + 1", str(i + 1)) for i in range(650)]
    settings = RLSettings(max_tokens=8000, epochs=3)  # the micro model's context is 8192 tokens
    folder = verl.write(plain, problems, tmp_path / "a folder", settings)
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
    numbers = (f"{actor}.optim.lr", f"{actor}.entropy_coeff", f"{rollout}.temperature")
    assert [float(values[name]) for name in numbers] == [1e-6, 0.001, 1]
    assert values["data.train_files"] == f"'{folder.resolve()}/train.parquet'"
    assert read_json(folder / "run.json")["checkpoints"] == [4, 8, 12, 15]
    assert int(values["trainer.total_epochs"]) * (650 // 128) >= 15


@pytest.mark.parametrize("checkpoints", [1, 3, 4, 7])
def test_kept_steps_are_the_multiples_of_savings_and_the_last_and_enough(checkpoints):
    for steps in range(checkpoints, 60):
        kept = RLSettings(steps=steps, checkpoints=checkpoints, backend="verl").checkpoint_steps
        assert kept == tuple(step for step in range(1, steps + 1) if step % kept[0] == 0 or step == steps)
        assert len(kept) >= checkpoints
        assert steps % checkpoints or len(kept) == checkpoints
    assert RLSettings(steps=945, checkpoints=4, backend="verl").checkpoint_steps == (237, 474, 711, 945)


def test_verls_parquet_holds_prompts_gold_answers_and_tolerances(plain, chat, with_bos, tmp_path):
    for base in (plain, chat, with_bos):
        folder = verl.write(base, PROBLEMS, tmp_path / base.name, RL, gpus=2)
        tokenizer = load_tokenizer(str(base))
        for row, problem in zip(read_parquet(folder / "train.parquet").to_dict("records"), PROBLEMS, strict=True):
            (message,) = row["prompt"]
            assert message["role"] == "user"
            ids = tokenizer.encode(message["content"], add_special_tokens=False)
            assert tuple(ids) == render(problem.question, tokenizer).token_ids
            assert row["data_source"] == "math"
            assert row["reward_model"] == {"style": "rule", "ground_truth": problem.answer}
            tolerance = row["extra_info"]["tolerance"]
            assert tolerance == problem.tolerance or (problem.tolerance is None and math.isnan(tolerance))
        longest = max(len(render(problem.question, tokenizer).token_ids) for problem in PROBLEMS)
        assert overrides_of(folder, tmp_path)["data.max_prompt_length"] == str(longest)


def test_verl_asks_and_grades_as_the_problems_domain_does(plain, tmp_path):
    problems = [Problem(f"c{i}", f"Which is {i}?\nA) 1\nB) {i}", "B", grader="choice") for i in range(4)]
    folder = verl.write(plain, problems, tmp_path / "run", RL, gpus=2)
    rows = read_parquet(folder / "train.parquet").to_dict("records")
    assert all(INSTRUCTIONS["choice"] in row["prompt"][0]["content"] for row in rows)
    reward = overrides_of(folder, tmp_path)["reward.custom_reward_function.path"].strip("'")
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); from rewards import compute_score\n"
        "for text in sys.argv[3:]: print(compute_score('', text, 'B', json.loads(sys.argv[2]))['verdict'])"
    )
    command = [sys.executable, "-c", code, str(Path(reward).parent), json.dumps(rows[0]["extra_info"])]
    command += ["\\boxed{B}", "\\boxed{A}"]
    assert subprocess.check_output(command, text=True, timeout=60) == "correct\nwrong\n"


def test_the_curve_counts_a_step_that_was_taken_again_once(plain, tmp_path):
    folder = verl.write(plain, PROBLEMS, tmp_path / "run", RL, gpus=2)
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


def test_verl_starts_a_ray_of_its_own(plain, tmp_path):
    """Inside a cell on a Ray cluster it would join that, and wait for the very GPUs that the cell holds."""
    (tmp_path / "python").write_text(f'#!/usr/bin/env bash\necho "$RAY_ADDRESS" >"{tmp_path}/address"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {**os.environ, "QUAGMIRE_VERL_PYTHON": str(tmp_path / "python"), "RAY_ADDRESS": "head:6379"}
    folder = verl.write(plain, PROBLEMS, tmp_path / "run", RL, gpus=2)
    subprocess.run(["bash", str(folder / "run.sh")], env=environment, check=True, timeout=60)
    assert (tmp_path / "address").read_text() == "local\n"


def test_a_machine_without_gpus_is_told_before_verl_starts(plain, tmp_path, monkeypatch, refused):
    monkeypatch.setattr("quagmire_utils.training.backends.runs.hardware", lambda: {"gpus": []})
    folder = verl.write(plain, PROBLEMS, tmp_path / "run", RL, gpus=2)
    with refused("gpus"):
        verl.train(folder)
    with refused("step"):
        verl.export(folder, 2)


def test_a_back_end_that_is_not_there_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch, refused):
    monkeypatch.setattr("quagmire_utils.training.backends.runs.ROOT", tmp_path)
    monkeypatch.delenv("QUAGMIRE_VERL_PYTHON", raising=False)
    with pytest.raises(ParameterError, match=r"run ./reproduce.sh setup verl"):
        environment_python("verl")
    python = tmp_path / ".venv-verl" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    with refused("backend"):  # set-up was interrupted
        environment_python("verl")
    (tmp_path / ".venv-verl" / "quagmire-setup").touch()
    assert environment_python("verl") == python
    monkeypatch.setenv("QUAGMIRE_VERL_PYTHON", str(tmp_path / "nowhere"))
    with refused("QUAGMIRE_VERL_PYTHON"):
        environment_python("verl")


def test_the_pinned_lists_are_exact_and_verl_grades_with_the_versions_that_grade_the_benchmarks():
    pins = {}
    for name in ("llamafactory", "verl"):
        lines = [line for line in (LISTS / f"{name}.txt").read_text().splitlines() if not line.startswith("#")]
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in lines)
        pins[name] = dict(line.split("==") for line in lines)
        assert len(pins[name]) == len(lines)
        assert {name, "torch", "transformers"} <= pins[name].keys()
    ours = (ROOT / "constraints.txt").read_text().splitlines()
    for name in ("math-verify", "latex2sympy2-extended", "sympy"):
        assert f"{name}=={pins['verl'][name]}" in ours


def script(folder: Path, text: str) -> Path:
    (folder / "run.sh").write_text(f"set -e\n{text}\n")
    return folder


@pytest.fixture(autouse=True)
def our_python(monkeypatch):
    monkeypatch.setenv("QUAGMIRE_VERL_PYTHON", sys.executable)


def test_a_failure_names_its_log_and_shows_its_end(tmp_path):
    script(tmp_path, 'for i in $(seq 50); do echo "line $i"; done; echo "CUDA out of memory" >&2; exit 3')
    with pytest.raises(BackendError) as raised:
        run_backend(tmp_path, "verl")
    message = str(raised.value)
    assert "verl stopped with exit code 3" in message
    assert str(tmp_path / LOG) in message
    assert message.endswith("    CUDA out of memory")
    assert "line 50" in message
    assert "line 30" not in message


def test_an_interrupt_ends_everything_that_was_started(tmp_path):
    script(tmp_path, 'sleep 600 & echo $! >child; echo "$QUAGMIRE_VERL_PYTHON" >variable; wait')
    threading.Timer(
        0.1, lambda: (wait_until((tmp_path / "variable").exists), signal.raise_signal(signal.SIGINT))
    ).start()
    with pytest.raises(KeyboardInterrupt):
        run_backend(tmp_path, "verl")
    assert (tmp_path / "variable").read_text() == f"{sys.executable}\n"
    wait_until(lambda: not psutil.pid_exists(int((tmp_path / "child").read_text())))


def test_a_run_outlives_its_killed_caller_and_is_not_started_twice(tmp_path, refused):
    script(tmp_path, f'echo $$ >"{tmp_path}/pid"; exec sleep 600')
    code = (
        "import sys; from pathlib import Path; from quagmire_utils.training.backends.runs import run_backend; "
        "run_backend(Path(sys.argv[1]), 'verl')"
    )
    caller = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    caller.kill()
    caller.wait()
    pid = int((tmp_path / "pid").read_text())
    try:
        with refused("folder"):
            run_backend(tmp_path, "verl")
    finally:
        os.kill(pid, signal.SIGKILL)
    script(tmp_path, "true")
    wait_until(lambda: not psutil.pid_exists(pid))
    run_backend(tmp_path, "verl")
