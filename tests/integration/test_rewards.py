"""The reward in the trainers that call it: TRL trains with it; others, in QUAGMIRE_TOOLS/<tool>/bin/python, load it."""

import json
import logging
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from quagmire_utils.core.files import read_parquet
from quagmire_utils.core.paths import ROOT
from quagmire_utils.data import Problem, load_benchmark
from quagmire_utils.exchange.importing import import_logs
from quagmire_utils.grading import Grade, Verdict
from quagmire_utils.training.rewards import MOST_UNDECIDED, Reward, compute_score, rewards_of, shared, trl_reward

HALF = Problem("p", "What is 1/4 + 1/4?", "0.5")
TOWER = "\\boxed{9^{9^{9^9}}}"  # math-verify would compute it until it is killed
ANSWERS = [("so \\boxed{\\frac{1}{2}}", 1.0, "correct"), (TOWER, 0.0, "timeout"), ("I do not know.", 0.0, "no_answer")]


def test_a_step_logs_its_verdicts_and_warns_only_when_too_many_are_undecided(caplog):
    caplog.set_level(logging.INFO, "quagmire.rewards")
    right, slow = Grade(Verdict.CORRECT, "1"), Grade(Verdict.TIMEOUT, "")
    most = round(100 * MOST_UNDECIDED)
    assert rewards_of([slow] * most + [right] * (100 - most)) == [0.0] * most + [1.0] * (100 - most)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert rewards_of([slow, Grade(Verdict.ERROR, ""), Grade(Verdict.WRONG, "2"), right]) == [0.0, 0.0, 0.0, 1.0]
    logged, warned = caplog.records[1:]
    assert "4 answers: 1 timeout, 1 error, 1 wrong, 1 correct" in logged.getMessage()
    assert warned.levelname == "WARNING"
    assert warned.getMessage().startswith("50 % of a step's answers could not be judged")


def test_whatever_comes_instead_of_an_answer_is_an_error():
    reward = Reward(1, timeout=1.0)
    hostile = [None, 7, ["x"], "\ud800\x00", TOWER, ANSWERS[0][0], "\\boxed{0.5}"]
    problems = [HALF] * 6 + [Problem("q", "", " ")]
    found = [str(grade.verdict) for grade in reward.grade(hostile, problems)]
    assert found == ["error", "error", "error", "no_answer", "timeout", "correct", "error"]


def test_answers_that_come_one_at_a_time_are_graded_together_and_a_slow_one_delays_few(caplog):
    calls = []

    class Counted(Reward):
        step = 16

        def grade(self, responses, problems):
            calls.append(len(responses))
            return super().grade(responses, problems)

    reward = Counted(1, timeout=0.5)
    texts = [TOWER, *["\\boxed{\\frac{2}{4}}"] * 15]
    with ThreadPoolExecutor(len(texts)) as threads:
        grades = list(threads.map(lambda text: reward.grade_one(text, HALF), texts))
    assert [str(grade.verdict) for grade in grades] == ["timeout"] + ["correct"] * 15
    assert sum(calls) == 16
    assert len(calls) < 8
    (warned,) = caplog.records  # sixteen answers are a step
    assert warned.getMessage().startswith("6 % of a step's answers could not be judged")


def test_the_columns_of_trl_and_the_fields_of_verl_choose_grader_and_tolerance():
    said = [[{"role": "assistant", "content": "The answer is \\boxed{B}"}], "\\boxed{0.51}", "\\boxed{0.51}"]
    columns = {"grader": ["choice", None, None], "tolerance": [None, 0.02, None], "difficulty": [1, 2, 3]}
    assert trl_reward(completions=said, answer=["B", 0.5, 0.5], prompts=["?"] * 3, **columns) == [1.0, 1.0, 0.0]
    for text, score, verdict in ANSWERS:
        undecided = float(verdict == "timeout")
        expected = {"score": score, "acc": score, "verdict": verdict, "undecided": undecided}
        assert compute_score("math", text, "0.5", {"grader": "math", "index": 3}, timeout=1.0) == expected
    assert compute_score("", "\\boxed{0.51}", "0.5", {"tolerance": 0.02})["score"] == 1.0


def test_a_completion_of_trl_without_a_text_is_an_error_and_a_missing_gold_too():
    completions = [None, [], [{"role": "assistant", "tool_calls": []}], "\\boxed{5}"]
    verdicts = {}
    assert trl_reward(completions, [5, 5, 5, float("nan")], log_extra=verdicts.__setitem__) == [0.0] * 4
    assert verdicts["verdict"] == ["error"] * 4
    assert trl_reward(["\\boxed{nan}"], ["nan"]) == [1.0]
    assert trl_reward([], [], log_metric=verdicts.__setitem__) == []


def test_a_process_forked_while_a_thread_waits_for_a_grade_has_a_reward_of_its_own():
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(compute_score, "", TOWER, "5", timeout=1.0)
        while not shared(1, 1.0)._turn.locked():
            time.sleep(0.01)
        if not (child := os.fork()):
            signal.alarm(60)
            os._exit(int(compute_score("", "\\boxed{5}", "5", timeout=1.0)["score"]))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        assert waiting.result()["verdict"] == "timeout"


@pytest.mark.slow
def test_trl_trains_with_it_and_logs_what_could_not_be_judged(tmp_path, caplog):
    pytest.importorskip("trl")
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    from quagmire_utils.data.prompts import render_problem
    from quagmire_utils.engines import load_tokenizer

    base = ROOT / "results" / "mini-v1" / "bases" / "micro-llama"
    tokenizer = load_tokenizer(str(base))
    problems = load_benchmark(str(ROOT / "results" / "mini-v1" / "benchmarks" / "sums2.jsonl"), limit=8)
    rows = [{"prompt": render_problem(one, tokenizer).text, "answer": one.answer} for one in problems]
    rows[0]["answer"] = "9^{9^{9^{9^9}}}"  # no answer can be compared with this gold
    batch = {"max_steps": 2, "per_device_train_batch_size": 32, "num_generations": 4, "max_completion_length": 64}
    logged = {"logging_steps": 1, "log_completions": True, "save_strategy": "no", "report_to": "none"}
    arguments = GRPOConfig(output_dir=str(tmp_path), learning_rate=1e-3, use_cpu=True, **batch, **logged)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    data = {"train_dataset": Dataset.from_list(rows), "processing_class": tokenizer}
    trainer = GRPOTrainer(model=model, reward_funcs=trl_reward, args=arguments, **data)
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(steps) == 2
    assert all(step["reward"] > 0 for step in steps)
    assert [step["undecided"] for step in steps] == pytest.approx([4 / 32] * 2)
    file = tmp_path / "completions" / "completions_00001.parquet"
    logged = read_parquet(file)
    assert (logged["verdict"] == "correct").mean() == pytest.approx(steps[0]["reward"])
    assert set(logged["answer"]) == {row["answer"] for row in rows}
    imported, left_out = import_logs(file, tmp_path / "imported")
    assert not left_out
    assert imported.counts()["correct"].sum() == (logged["verdict"] == "correct").sum()
    assert any(not torch.equal(before[name], weight) for name, weight in model.named_parameters())
    assert [record.getMessage()[:4] for record in caplog.records if record.name == "quagmire.rewards"] == ["12 %"] * 2


VERIFIERS = """
import asyncio
import verifiers.v1 as vf
from verifiers.v1.types import AssistantMessage
from verifiers.v1.utils.loaders import load_taskset, taskset_config_type

plugged = {"rewards": {"right": {"fn": "quagmire_utils.training.rewards:verifiers_reward"}}}
(task,) = load_taskset(taskset_config_type("halves")(id="halves", task=plugged))

async def score(text):
    told = vf.TraceTask(type="Task", data=task.data, key=task.key, hash=task.hash)
    trace = vf.Trace(task=told, agent=vf.AgentInfo(config=vf.AgentConfig()))
    trace.nodes.append(vf.MessageNode(message=AssistantMessage(content=text), sampled=True))
    await task.score(trace)
    return [trace.reward, trace.metrics["undecided"]]

async def main():
    return await asyncio.gather(*map(score, texts))

found = asyncio.run(main())
"""
HALVES = """
import verifiers.v1 as vf

class Data(vf.TaskData):
    answer: str

class Halves(vf.Taskset[vf.Task[Data], vf.TasksetConfig]):
    def load(self):
        yield vf.Task(Data(prompt="What is 1/4 + 1/4?", answer="0.5"), self.config.task)

__all__ = ["Halves"]
"""
OPENRLHF = """
import asyncio, os, types
from openrlhf.utils.agent import SingleTurnAgentExecutor
from transformers import AutoTokenizer

root = os.environ["PYTHONPATH"].split(":")[0]
executor = SingleTurnAgentExecutor(f"{root}/quagmire_utils/training/rewards.py")
tokenizer = AutoTokenizer.from_pretrained(f"{root}/results/mini-v1/bases/micro-llama")
limits = types.SimpleNamespace(max_tokens=64, logprobs=None)

class Engine:
    async def generate(self, prompt, limits, multi_modal_data):
        ids = tokenizer.encode(self.text, add_special_tokens=False) + [tokenizer.eos_token_id]
        done = types.SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=None)
        return types.SimpleNamespace(outputs=[done])

async def score(text):
    engine = Engine()
    engine.text = text
    done = await executor.execute("1/4 + 1/4 = ?", "0.5", limits, 256, tokenizer, engine)
    return [done["reward"].item(), done["extra_logs"]["undecided"].item()]

async def main():
    return await asyncio.gather(*map(score, texts))

found = asyncio.run(main())
"""
NEMO_GYM = """
import os

server = {"entrypoint": "app.py", "host": "127.0.0.1", "port": 1, "domain": "math"}
whole = {"head_server": {"host": "127.0.0.1", "port": 2}, "quagmire": {"resources_servers": {"quagmire": server}}}
os.environ |= {"NEMO_GYM_CONFIG_DICT": json.dumps(whole), "NEMO_GYM_CONFIG_PATH": "quagmire"}  # as `gym env start` does

from fastapi.testclient import TestClient
from nemo_gym.global_config import get_global_config_dict
from nemo_gym.server_utils import ServerClient
from quagmire_utils.training.rewards import nemo_gym_server

Server = nemo_gym_server()
head = ServerClient.load_head_server_config()
client = ServerClient(head_server_config=head, global_config_dict=get_global_config_dict())
web = TestClient(Server(config=Server.load_config_from_global_config(), server_client=client).setup_webserver())
found = []
for text in texts:
    part = {"type": "output_text", "text": text, "annotations": []}
    message = {"id": "m", "role": "assistant", "status": "completed", "type": "message", "content": [part]}
    response = {"id": "r", "created_at": 0.0, "model": "m", "object": "response", "parallel_tool_calls": False}
    response |= {"tool_choice": "none", "tools": [], "output": [message]}
    body = {"responses_create_params": {"input": "1/4 + 1/4?"}, "response": response, "expected_answer": "0.5"}
    said = web.post("/verify", json=body).json()
    found.append([said["reward"], said["undecided"]])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("tool", "script"), [("verifiers", VERIFIERS), ("openrlhf", OPENRLHF), ("nemo-gym", NEMO_GYM)])
def test_the_trainers_own_loader_calls_it(tmp_path: Path, tool: str, script: str):
    python = Path(os.environ.get("QUAGMIRE_TOOLS") or "/nowhere") / tool / "bin" / "python"
    if not python.exists():
        pytest.skip(f"needs {tool}, in QUAGMIRE_TOOLS/{tool}")
    (tmp_path / "halves.py").write_text(HALVES)
    texts = json.dumps([text for text, _, _ in ANSWERS])
    ending = 'print("\\nFOUND", json.dumps(found))'
    (tmp_path / "calls.py").write_text(f"import json, sys\ntexts = json.loads(sys.argv[1])\n{script}\n{ending}\n")
    done = subprocess.run(
        [python, "calls.py", texts],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "\nFOUND" in done.stdout, done.stderr[-3000:]
    found = json.loads(done.stdout.rpartition("FOUND")[2])
    assert found == [[reward, float(verdict == "timeout")] for _, reward, verdict in ANSWERS]
