"""Preflight says what an evaluation will do, and refuses in one sentence what cannot work."""

import re
import shutil
from contextlib import closing
from dataclasses import replace

import pytest

from quagmire_utils import engines
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data import Problem
from quagmire_utils.data.prompts import render
from quagmire_utils.engines import EngineConfig, SamplingParams, load_engine
from quagmire_utils.evaluation import preflight
from quagmire_utils.evaluation.sampling import sample
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.training import microlab

PARAMS = SamplingParams(max_tokens=32)
SUMS = {name: microlab.make_problems(name, microlab.MICRO_BENCHMARKS[name], 5, seed=0) for name in ("sums2", "sums3")}


def save_model(folder, chat=True, seed=0):
    tokenizer = microlab.build_tokenizer(chat_template=chat)
    microlab.build_model("llama", tokenizer, hidden_size=32, layers=1, seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return EngineConfig(engine="transformers", model=folder, device="cpu")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(config):
    with closing(load_engine(config)) as loaded:
        yield loaded


def plan_of(config, tmp_path, **changes):
    arguments = {"benchmarks": SUMS, "num_samples": 4, "params": PARAMS, "folder": tmp_path / "samples", "k": 4}
    engine = {name: changes.pop(name) for name in list(changes) if name in EngineConfig.model_fields}
    return preflight.check(config.replace(**engine), **arguments | changes)


def draw(engine, tmp_path, n):
    sample(engine, SUMS["sums2"], n, PARAMS, SampleStore(tmp_path / "samples"), benchmark="sums2", progress=False)


def own(*golds):
    return {"own": [Problem(f"p{i}", "1+1", gold) for i, gold in enumerate(golds)]}


def test_the_plan_counts_what_is_asked_and_what_is_there(config, engine, tmp_path):
    plan = plan_of(config, tmp_path)
    assert plan.table.loc["total"].tolist() == [10, 40, 0, 40]
    assert plan.table.loc["total"].equals(plan.table.drop(index="total").sum())
    assert not plan.warning
    longest = max(len(render(p.question, engine.tokenizer).token_ids) for some in SUMS.values() for p in some)
    for part in (
        "10 problems of 2 benchmarks (sums2, sums3)",
        "40 answers",
        "1,280 generated tokens",
        f"Template chat; the longest prompt has {longest:,} tokens",
        f"context of {microlab.CONTEXT_LENGTH:,}",
    ):
        assert part in plan.text
    draw(engine, tmp_path, 3)
    resumed = plan_of(config, tmp_path)
    assert resumed.table["to draw"].to_dict() == {"sums2": 5, "sums3": 20, "total": 25}
    assert "15 of them already drawn" in resumed.text
    done = plan_of(config, tmp_path, benchmarks={"sums2": SUMS["sums2"]}, num_samples=3, k=1)
    assert "Nothing is left to draw." in done.text


def test_nothing_heavy_is_loaded_for_a_plan(config, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights were loaded")

    import transformers

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr(engines, "load_engine", refuse)
    assert plan_of(config, tmp_path).table["to draw"]["total"] == 40
    assert not (tmp_path / "samples").exists()


def test_what_cannot_work_is_one_sentence(config, tmp_path, caplog, refused):
    for changes, parameter, sentence in (
        ({"k": 5}, "k", "from 1 to 4, not 5"),
        ({"benchmarks": own(" ")}, "benchmarks", "own has no gold answer to p0"),
        ({"max_model_len": 40}, "max_tokens", "context of 40 tokens"),
        ({"benchmarks": {"long": [Problem("p", "1+" * 5000, "1")]}}, "max_tokens", "the longest has 10.* tokens"),
        ({"num_samples": 10**12, "k": 1}, "store", "may need .* and .* has .* free"),
        ({"model": "./nothing"}, "model", "there is no folder"),
    ):
        with refused(parameter) as caught:
            plan_of(config, tmp_path, **changes)
        assert re.search(sentence, str(caught.value))
        assert "sequence length" not in caplog.text  # a warning of the tokenizer's own


def test_a_chat_template_or_weights_that_are_not_there_are_refused_and_not_replaced(config, tmp_path):
    base = save_model(tmp_path / "base", chat=False)
    with pytest.raises(ParameterError, match="has no chat template"):
        plan_of(base, tmp_path, template="chat")
    assert "Template plain" in plan_of(base, tmp_path, template="auto").text
    empty = shutil.copytree(config.model, tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ParameterError, match="no weights"):
        plan_of(config, tmp_path, model=str(empty))


def test_samples_of_another_kind_are_seen_before_a_model_is_loaded(config, engine, tmp_path, refused):
    draw(engine, tmp_path, 1)
    same = shutil.copytree(config.model, tmp_path / "same")
    assert plan_of(config, tmp_path, model=str(same)).table["already drawn"]["total"] == 5
    first, *rest = SUMS["sums2"]
    changed = {"sums2": [replace(first, question=first.question + " now"), *rest]}
    other = save_model(tmp_path / "other", seed=1).model
    for changes, sentence in (
        ({"model": other}, "model_digest is '[0-9a-f]{16}' there and"),
        ({"benchmarks": changed}, f"drawn with another prompt .such as sums2 {first.id}."),
    ):
        with refused("store") as caught:
            plan_of(config, tmp_path, **changes)
        assert re.search(sentence, str(caught.value))


def test_golds_that_the_grader_cannot_read_or_misreads_are_named(config, tmp_path, grader):
    def warning(benchmarks):
        return plan_of(config, tmp_path, benchmarks=benchmarks, grader=grader).warning

    unread = r"cannot read the gold answer of own/p1 (\frac{1}{), own/p2 (}{): only"
    assert unread in warning(own("7", r"\frac{1}{", "}{", "(1,2)", r"\text{A}"))
    misread = ["The answer is 7", "2 3/4", "pi/4", "4.5e7", "nan", r"\frac{pi}{4}", "sin x"]
    named = ", ".join(f"own/p{i} ({gold})" for i, gold in enumerate(misread))
    assert f"misreads the gold answer of {named}: " in warning(own(*misread))
    read = ["7", "12 apples", "5 or 7", "sqrt(2)", "2\\frac{3}{4}", r"\frac{\pi}{4}", r"4.5 \times 10^{7}", "1E5", "ab"]
    choice = [Problem("c", "A. pi/4 or B. 2 3/4?", "A", grader="choice")]
    assert warning({**own(*read), "choices": choice}) == ""
