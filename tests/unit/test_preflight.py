"""Preflight: says what an evaluation will do, measures how long, refuses in one sentence what can't work."""

import shutil
from contextlib import closing
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from quagmire_utils import engines
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data import Problem
from quagmire_utils.data.prompts import render
from quagmire_utils.engines import EngineConfig, SamplingParams, load_engine
from quagmire_utils.evaluation import preflight
from quagmire_utils.evaluation.preflight import checks, probing
from quagmire_utils.evaluation.sampling import sample
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.report.notebook import load_benchmarks
from quagmire_utils.training import microlab

PARAMS = SamplingParams(max_tokens=32)
SUMS = {name: microlab.make_problems(name, microlab.MICRO_BENCHMARKS[name], 5, seed=0) for name in ("sums2", "sums3")}


def save_model(folder, chat=True, seed=0):
    tokenizer = microlab.build_tokenizer(chat_template=chat)
    microlab.build_model("llama", tokenizer, hidden_size=32, layers=1, seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(model):
    with closing(load_engine(EngineConfig(engine="transformers", model=model, device="cpu"))) as loaded:
        yield loaded


def plan_of(model, tmp_path, **changes):
    arguments = {"benchmarks": SUMS, "num_samples": 4, "params": PARAMS, "folder": tmp_path / "samples"}
    arguments |= {"k": 4, "engine": "transformers"} | changes
    return preflight.check(model, **arguments)


def test_the_plan_counts_what_is_asked_and_what_is_there(model, engine, tmp_path):
    plan = plan_of(model, tmp_path)
    assert plan.table.loc["total"].tolist() == [10, 40, 0, 40]
    assert plan.tokens_at_most == 40 * 32
    assert plan.template == "chat"
    assert plan.context_length == microlab.CONTEXT_LENGTH
    lengths = [len(render(p.question, engine.tokenizer).token_ids) for some in SUMS.values() for p in some]
    assert plan.longest_prompt == max(lengths)
    assert plan.prompt_tokens == sum(lengths)
    for part in ("10 problems of 2 benchmarks (sums2, sums3)", "40 answers", "1,280 generated tokens", "Disk: at most"):
        assert part in plan.text
    assert "Time: not measured." in plan.text

    sample(engine, SUMS["sums2"], 3, PARAMS, SampleStore(tmp_path / "samples"), benchmark="sums2", progress=False)
    resumed = plan_of(model, tmp_path)
    assert resumed.table["to draw"].to_dict() == {"sums2": 5, "sums3": 20, "total": 25}
    assert "15 of them already drawn" in resumed.text
    assert resumed.prompt_tokens == plan.prompt_tokens  # every problem still lacks an answer
    done = plan_of(model, tmp_path, benchmarks={"sums2": SUMS["sums2"]}, num_samples=3, k=1)
    assert done.to_draw == 0
    assert done.prompt_tokens == 0
    assert "Nothing is left to draw." in done.text


def test_nothing_heavy_is_loaded_for_a_plan(model, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights were loaded")

    import transformers

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr(engines, "load_engine", refuse)
    assert plan_of(model, tmp_path).to_draw == 40
    assert not (tmp_path / "samples").exists()


def test_a_probe_measures_speed_and_length(engine, model, tmp_path):
    plan = preflight.timed(plan_of(model, tmp_path, num_samples=400), engine, SUMS, PARAMS, seconds=2)
    assert plan.probe.tokens_per_second > 0
    assert 8 <= plan.probe.sequences <= plan.probe.load == plan.to_draw // 2  # of two benchmarks
    assert plan.tokens is None or plan.tokens <= plan.tokens_at_most
    if plan.probe.busy and plan.tokens is not None:
        assert plan.seconds == pytest.approx(plan.tokens / plan.probe.tokens_per_second)
    assert "tokens/s" in plan.text
    assert "not measured" not in plan.text
    assert not (tmp_path / "samples").exists(), "a probe leaves nothing behind"
    with pytest.raises(ParameterError, match="seconds must be positive"):
        preflight.probe(engine, SUMS, PARAMS, seconds=0)


def test_a_probe_costs_little_of_the_work(engine, model, tmp_path, monkeypatch):
    drawn = []
    step = probing._probe_step

    def counted(*arguments):
        lengths, ended = step(*arguments)
        drawn.append(sum(lengths))
        return lengths, ended

    monkeypatch.setattr(probing, "_probe_step", counted)
    plan = plan_of(model, tmp_path, num_samples=100)
    preflight.timed(plan, engine, SUMS, PARAMS, seconds=60)
    first_two = (2 * 8 + probing.PROBE_FIRST) * probing.PROBE_TOKENS
    assert sum(drawn) <= max(first_two, probing.PROBE_SHARE * plan.tokens_at_most)


class Clockwork:
    """Answers end with a chance of 1/50 at every token; a step of all in flight takes 10 ms, `wide` side by side.

    `slow` seconds are lost in the call of that number, as to another program on a busy machine.
    """

    tokenizer = microlab.build_tokenizer()

    def __init__(self, wide, slow=None):
        self.wide, self.slow = wide, slow or {}
        self.now = 0.0
        self.random = np.random.default_rng(0)
        self.calls = []

    def generate(self, requests, params):
        answers = []
        self.calls.append((sum(request.n for request in requests), params.max_tokens))
        for request in requests:
            lengths = self.random.geometric(1 / 50, request.n)
            ends = [(int(min(n, params.max_tokens)), "stop" if n <= params.max_tokens else "length") for n in lengths]
            answers.append([engines.Completion("", *end) for end in ends])
        total = sum(c.tokens for some in answers for c in some)
        self.now += total / (100 * min(self.wide, sum(request.n for request in requests)))
        self.now += self.slow.get(len(self.calls), 0.0)
        return answers


def probed(monkeypatch, engine, **changes):
    monkeypatch.setattr(probing.time, "perf_counter", lambda: engine.now)
    return preflight.probe(engine, SUMS, SamplingParams(max_tokens=512), **{"num_samples": 1000} | changes)


def test_the_estimate_is_right_for_an_engine_of_known_speed(monkeypatch):
    """Mean length of such answers, cut at 512: 50 tokens; 4096 at a time give 409,600 tokens/s, 64 only 6,400."""
    engine = Clockwork(wide=4096)
    measured = probed(monkeypatch, engine, answers=10**6)
    assert measured.tokens_per_second == pytest.approx(409_600)
    assert (measured.sequences, measured.load, measured.busy) == (4096, 4096, True)
    assert measured.mean_tokens == pytest.approx(50, rel=0.05)
    assert engine.calls[:5] == [(8, 8), (32, 16), (256, 16), (2048, 16), (4096, 16)]
    assert engine.now < 10


def test_a_slow_step_leaves_no_rate_of_a_few_answers_in_flight(monkeypatch):
    """Reading the weights for the first time, or a busy machine: such a step is left out, or is not the last."""
    for call in (1, 2, 3):
        engine = Clockwork(wide=4096, slow={call: 2.0})
        measured = probed(monkeypatch, engine, answers=10**6)
        if measured.busy:
            assert measured.sequences >= 0.5 * 4096
            assert 204_800 <= measured.tokens_per_second < 409_601
        assert engine.now < 10


def test_an_engine_that_was_never_busy_gives_no_estimate_but_a_bound(model, tmp_path, monkeypatch):
    engine = Clockwork(wide=4096, slow=dict.fromkeys(range(1, 50), 4.0))
    measured = probed(monkeypatch, engine, answers=10**6)
    assert not measured.busy
    assert engine.now < 10
    plan = replace(plan_of(model, tmp_path), probe=measured)
    assert plan.seconds is None
    assert "Time: not known, at most" in plan.text
    assert "up to 4,096 answers in flight, which is faster" in plan.text
    assert "about" not in plan.text.partition("Time:")[2]


def test_an_engine_that_is_busy_with_few_is_known_to_be(monkeypatch):
    """A server that takes 16 at a time is no faster with 4096."""
    measured = probed(monkeypatch, Clockwork(wide=16), answers=10**6, seconds=14)
    assert measured.tokens_per_second == pytest.approx(1600)
    assert measured.sequences < 2048
    assert measured.busy


def test_gpu_hours_are_said_where_there_is_a_gpu(model, tmp_path):
    plan = replace(plan_of(model, tmp_path), gpus=4)
    probe = preflight.Probe(tokens_per_second=2.0, sequences=8, mean_tokens=18.0, seconds=1.0)
    text = replace(plan, probe=probe).text
    assert "about 6.0 minutes, at most 10.7 minutes" in text
    assert "about 0.4 GPU-hours on 4" in text
    unknown = replace(plan, probe=replace(probe, mean_tokens=None)).text
    assert "at most 10.7 minutes (no answer ended within the probe" in unknown
    assert "GPU" not in replace(plan, gpus=0, probe=probe).text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"k": 5}, r"k \(5\) must be between 1 and num_samples \(4\)"),
        ({"benchmarks": {}}, "benchmarks is empty"),
        ({"num_samples": 2.5}, "num_samples must be a whole number"),
        ({"k": 1.5}, "k must be a whole number, not 1.5"),
        ({"k": True}, "k must be a whole number, not True"),
        ({"max_model_len": "12"}, "max_model_len must be a whole number, not '12'"),
        ({"benchmarks": [*SUMS["sums2"]]}, "benchmarks must map names to lists of problems, not be a list"),
        ({"benchmarks": {"own": [Problem("p", "1+1", " ")]}}, "own has no gold answer to p"),
        ({"benchmarks": {"own": [Problem("p", "1+1", "2")] * 2}}, "own has more than one problem with the id p"),
        ({"engine": "llama.cpp"}, "engine must be one of"),
        ({"template": "alpaca"}, "template must be one of"),
        ({"max_model_len": 40}, r"max_tokens=32 does not fit.*context of 40 tokens.*benchmark sums2"),
        ({"params": SamplingParams(max_tokens=9000)}, "context of 8192 tokens"),
        ({"benchmarks": {"long": [Problem("p", "1+" * 5000, "1")]}}, "context.*benchmark long"),
        ({"num_samples": 10**12, "k": 1}, "output: .* may need .* and .* has .* free"),
        ({"ray": "auto", "data_parallel_size": 2}, "ray: it shares out the work itself"),
    ],
)
def test_what_cannot_work_is_one_sentence(model, tmp_path, changes, sentence):
    with pytest.raises(ParameterError, match=sentence) as caught:
        plan_of(model, tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_a_chat_template_that_is_not_there_is_refused_and_not_replaced(tmp_path):
    base = save_model(tmp_path / "base", chat=False)
    with pytest.raises(ParameterError, match="needs a chat template"):
        plan_of(base, tmp_path, template="chat")
    assert plan_of(base, tmp_path, template="auto").template == "plain"


def test_a_full_disk_is_seen_before_it_is_full(model, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage._replace(free=2000))
    with pytest.raises(ParameterError, match=r"40 answers of up to 32 tokens may need .* KiB, and .* has 2.0 KiB free"):
        plan_of(model, tmp_path)


def test_samples_of_another_kind_are_seen_before_a_model_is_loaded(model, engine, tmp_path):
    sample(engine, SUMS["sums2"], 1, PARAMS, SampleStore(tmp_path / "samples"), benchmark="sums2", progress=False)
    with pytest.raises(ParameterError, match=r"max_tokens is 32 there and 16 here"):
        plan_of(model, tmp_path, params=SamplingParams(max_tokens=16))
    with pytest.raises(ParameterError, match="template is 'chat' there and 'plain' here"):
        plan_of(model, tmp_path, template="plain")


def test_another_model_or_question_is_seen_before_a_model_is_loaded(model, engine, tmp_path):
    """What is in the store could not be used, so it must not pass for already drawn."""
    sample(engine, SUMS["sums2"], 1, PARAMS, SampleStore(tmp_path / "samples"), benchmark="sums2", progress=False)
    assert plan_of(shutil.copytree(model, tmp_path / "same"), tmp_path).table["already drawn"]["total"] == 5
    other = save_model(tmp_path / "other", seed=1)
    with pytest.raises(ParameterError, match=r"model_digest is '[0-9a-f]{16}' there and"):
        plan_of(other, tmp_path)
    first, *rest = SUMS["sums2"]
    changed = {"sums2": [replace(first, question=first.question + " now"), *rest]}
    with pytest.raises(ParameterError, match=f"samples of sums2 drawn with another prompt .of {first.id}."):
        plan_of(model, tmp_path, benchmarks=changed)


def test_golds_that_the_grader_cannot_read_are_named_before_a_model_is_loaded(model, tmp_path):
    golds = ["7", r"\frac{1}{2}", r"\frac{1}{", "}{", "(1,2)", r"\text{A}"]
    own = {"own": [Problem(f"p{i}", "1+1", gold) for i, gold in enumerate(golds)]}
    plan = plan_of(model, tmp_path, benchmarks=own)
    assert plan.unreadable == (r"own/p2 (\frac{1}{)", "own/p3 (}{)")
    assert r"cannot read the gold answer of own/p2 (\frac{1}{), own/p3 (}{): only" in plan.text
    assert plan_of(model, tmp_path).warning == ""


def test_our_sentence_on_a_long_prompt_is_the_only_one(model, tmp_path, caplog):
    with pytest.raises(ParameterError, match=r"context.*benchmark long"):
        plan_of(model, tmp_path, benchmarks={"long": [Problem("p", "1+" * 9000, "1")]})
    assert "sequence length" not in caplog.text


def test_weights_that_cannot_fit_into_memory_are_refused(model, tmp_path, monkeypatch):
    machine = {"memory_gib": 1e-6, "gpus": []}
    monkeypatch.setattr(checks, "hardware", lambda: machine)
    with pytest.raises(ParameterError, match=r"its weights take .* GiB and this machine has"):
        plan_of(model, tmp_path)
    machine |= {"gpus": ["NVIDIA A100, 81920 MiB"]}
    assert plan_of(model, tmp_path).gpus == 1
    with pytest.raises(ParameterError, match=r"data_parallel_size \(2\) needs 2 GPUs, and this machine has 1"):
        plan_of(model, tmp_path, data_parallel_size=2)
    machine |= {"gpus": ["NVIDIA A100, 0.001 MiB"] * 8}
    with pytest.raises(ParameterError, match="raise tensor_parallel_size"):
        plan_of(model, tmp_path)  # a copy must fit on one GPU, not on all of them together
    assert plan_of(model, tmp_path, ray="auto").gpus == 0, "the nodes of a cluster are not this machine"


def test_weights_that_a_repository_holds_twice_are_counted_once(model, tmp_path, monkeypatch):
    twice = shutil.copytree(model, tmp_path / "twice")
    shutil.copy(twice / "model.safetensors", twice / "consolidated.safetensors")
    size = (twice / "model.safetensors").stat().st_size / 2**30
    monkeypatch.setattr(checks, "hardware", lambda: {"memory_gib": 1.5 * size, "gpus": []})
    assert plan_of(twice, tmp_path).to_draw == 40


def test_what_only_a_server_knows_is_checked_once_it_answers(engine, tmp_path):
    """Nothing of it is known from its address; the loaded engine fills the plan in, or refuses."""
    plan = plan_of("http://127.0.0.1:1/v1", tmp_path, engine="server")
    assert (plan.context_length, plan.template, plan.prompt_tokens) == (None, "", None)
    assert "Template" not in plan.text
    filled = preflight.timed(plan, engine, SUMS, PARAMS, template="plain", seconds=0.01)
    assert (filled.context_length, filled.template) == (microlab.CONTEXT_LENGTH, "plain")
    assert filled.prompt_tokens > 0
    assert "Template plain" in filled.text
    with pytest.raises(ParameterError, match="does not fit"):
        preflight.timed(plan, engine, SUMS, SamplingParams(max_tokens=microlab.CONTEXT_LENGTH))


def test_an_engine_that_is_loaded_on_a_cluster_is_not_probed(model, tmp_path):
    plan = plan_of(model, tmp_path, ray="auto")
    assert preflight.timed(plan, EngineConfig(engine="transformers", model=model), SUMS, PARAMS) is plan


def test_a_model_or_a_benchmark_that_is_not_there(model, tmp_path):
    with pytest.raises(ParameterError, match="there is no folder"):
        plan_of(tmp_path / "nothing", tmp_path)
    with pytest.raises(ParameterError, match="imo2024"):
        load_benchmarks("imo2024")
    for limit in (1.5, True, 0, "3"):
        with pytest.raises(ParameterError, match="limit must be a whole number of at least 1, or None"):
            load_benchmarks("math500", limit)
    empty = shutil.copytree(model, tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ParameterError, match="no weights"):
        plan_of(empty, tmp_path)


def test_a_plan_is_a_table_with_a_total(model, tmp_path):
    table = plan_of(model, tmp_path).table
    assert isinstance(table, pd.DataFrame)
    assert table.loc["total"].equals(table.drop(index="total").sum())
