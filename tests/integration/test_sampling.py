"""Sampling into a store: topped up or shared out, its records are those of one unbroken run."""

import re
from contextlib import closing
from dataclasses import replace
from datetime import date, timedelta

import pandas as pd
import pytest
from crash_worker import Wrapped, save_model

from quagmire_utils.data import Problem
from quagmire_utils.data.prompts import render
from quagmire_utils.engines import EngineConfig, Request, SamplingParams, load_engine
from quagmire_utils.evaluation.marking import grade_store
from quagmire_utils.evaluation.sampling import chunks_of, problem_seed, sample
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.evaluation.store_files import KEYS, SAMPLED, verdict_file
from quagmire_utils.grading import Grade, Verdict, grade
from quagmire_utils.grading.registry import grader_version

PARAMS = SamplingParams(max_tokens=12, seed=3)
PROBLEMS = [Problem(id=f"p{i}", question=f"{11 * i}+{i}" + "0" * (i % 3), answer=str(12 * i)) for i in range(10)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(model):
    engine = load_engine(EngineConfig(engine="transformers", model=model, device="cpu"))
    yield engine
    engine.close()


def _sample(engine, n, store, **changes):
    return sample(engine, PROBLEMS, n, PARAMS, store, **{"benchmark": "b", "progress": False, **changes})


def test_a_prompt_with_a_date_resumes_on_another_day(model, tmp_path, monkeypatch):
    class Tomorrow(date):
        @classmethod
        def today(cls):
            return date.today() + timedelta(days=1)

    with closing(load_engine(EngineConfig(engine="transformers", model=model, device="cpu"))) as engine:
        engine.tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }} {{ messages[0].content }}"
        first = _sample(engine, 1, tmp_path).prompts()
        monkeypatch.setattr("quagmire_utils.evaluation.store.date", Tomorrow)
        assert _sample(engine, 2, tmp_path).prompts().equals(first)
        assert len(SampleStore(tmp_path).read()) == 20
        assert first["prompt"][0].startswith(f"{date.today()} ")
        assert _sample(engine, 1, tmp_path / "new").prompts()["prompt"][0].startswith(f"{Tomorrow.today()} ")


class Recorded(Wrapped):
    """An engine that keeps what it was asked."""

    def generate(self, requests, params):
        self.calls.append(tuple(requests))
        return self.engine.generate(requests, params)


@pytest.mark.parametrize("size", [4096, 48])
def test_a_top_up_from_64_to_256_is_exact(engine, tmp_path, size):
    """The engine is asked for the very batches of a run of 256, whatever the chunks: no answer can differ by a bit."""
    problems = PROBLEMS[:4]

    def run(n, folder, engine):
        arguments = {"benchmark": "b", "chunk_samples": size, "progress": False}
        return sample(engine, problems, n, PARAMS, folder, **arguments).read()

    grown, at_once = Recorded(engine), Recorded(engine)
    first = run(64, tmp_path / "grown", grown)
    drawn = len(grown.calls)
    topped_up = run(256, tmp_path / "grown", grown)
    whole = run(256, tmp_path / "at once", at_once)
    pd.testing.assert_frame_equal(topped_up, whole)
    pd.testing.assert_frame_equal(topped_up[topped_up["index"] < 64].reset_index(drop=True), first)
    assert set(grown.calls) == set(at_once.calls)
    assert len(grown.calls) == len(at_once.calls) > drawn
    asked = [request.n for call in grown.calls[drawn:] for request in call]
    assert sum(asked) == len(problems) * (256 - 64), "samples were drawn again"
    parts = [{part.name for part in SampleStore(tmp_path / name).parts()} for name in ("grown", "at once")]
    assert parts[0] == parts[1]
    calls = len(grown.calls)
    assert len(run(4, tmp_path / "grown", grown)) == len(whole)  # fewer than there are: nothing to do
    assert len(grown.calls) == calls


def test_a_sample_depends_on_its_own_seed_alone(engine, tmp_path):
    together = _sample(engine, 6, tmp_path / "all").read().set_index(KEYS)
    alone = sample(engine, PROBLEMS[4:5], 6, PARAMS, tmp_path / "one", benchmark="b", progress=False).read()
    pd.testing.assert_frame_equal(alone.set_index(KEYS), together[together.index.get_level_values("problem") == "p4"])
    elsewhere = sample(engine, PROBLEMS[4:5], 6, PARAMS, tmp_path / "two", benchmark="c", progress=False).read()
    assert elsewhere["text"].tolist() != alone["text"].tolist()
    # and it is what the engine draws for that seed
    request = Request(render(PROBLEMS[4].question, engine.tokenizer).token_ids, 1, problem_seed(3, "b", "p4") + 5)
    assert engine.generate([request], PARAMS)[0][0].text == alone["text"][5]


def test_problem_seeds():
    seeds = {problem_seed(s, b, f"{i}") for s in range(5) for b in "ab" for i in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**48 for seed in seeds)
    assert problem_seed(1, "2", "3") != problem_seed(12, "", "3")
    assert problem_seed(0, "math500", "test/1") == 158108665172150  # must never change: stores are topped up by it


@pytest.mark.parametrize("n", [20, 64, 128])
def test_the_batches_of_the_shipped_records(engine, n):
    """Up to 128 samples, a problem's are drawn in one call with those of others, 4096 at most: it must stay so."""
    problems = [Problem(id=f"p{i}", question="1" * (i % 5 + 1), answer="1") for i in range(300)]
    prompts = {problem.id: render(problem.question, engine.tokenizer) for problem in problems}
    order = sorted(prompts, key=lambda problem: (-len(prompts[problem].token_ids), problem))
    size = 4096 // n
    expected = [(tuple(order[i : i + size]), range(n)) for i in range(0, 300, size)]
    assert list(chunks_of(prompts, n, 4096)) == expected


def test_samples_of_different_origins_are_refused(engine, tmp_path, refused):
    store = _sample(engine, 2, tmp_path / "s")
    held = store.read()
    how = {"engine": "transformers", "device": "cpu"}
    other = EngineConfig(model=save_model(tmp_path / "other", seed=1), **how)
    cases = {
        "temperature is 1.0 there and 0.5 here": {"params": PARAMS.replace(temperature=0.5)},
        "max_tokens is 12 there and 13 here": {"params": PARAMS.replace(max_tokens=13)},
        "seed is 3 there and 4 here": {"params": PARAMS.replace(seed=4)},
        "template is 'chat' there and 'plain' here": {"engine": engine.config.replace(template="plain")},
        "drawn with another prompt": {"problems": [Problem(id="p1", question="other", answer="1")]},
        "model_digest is": {"engine": other},
        "dtype is 'float32' there and 'bfloat16' here": {"engine": engine.config.replace(dtype="bfloat16")},
    }
    for sentence, changes in cases.items():
        arguments = {"engine": engine, "problems": PROBLEMS, "params": PARAMS, **changes}
        with refused("store") as caught:
            sample(num_samples=4, store=store, benchmark="b", progress=False, **arguments)
        assert sentence in str(caught.value)
    pd.testing.assert_frame_equal(store.read(), held)


@pytest.mark.parametrize(
    ("parameter", "changes"),
    [
        *(("num_samples", {"num_samples": n}) for n in (0, 64.0, True)),
        ("chunk_samples", {"chunk_samples": 0}),
        ("problems", {"problems": []}),
        ("max_tokens", {"params": SamplingParams(max_tokens=8190)}),
    ],
)
def test_bad_parameters_are_refused_before_anything_is_written(engine, tmp_path, refused, parameter, changes):
    arguments = {"problems": PROBLEMS, "num_samples": 1, "params": PARAMS, "benchmark": "b", **changes}
    with refused(parameter):
        sample(engine, store=tmp_path / "s", **arguments)
    assert not (tmp_path / "s").exists()


def _last_digit(responses, problems, answer="boxed"):
    """A grader that anyone can follow: correct if the response ends in an even digit."""
    grades = []
    for response, problem in zip(responses, problems, strict=True):
        assert isinstance(problem, Problem)
        end = re.search(r"(\d)\W*$", response)
        verdict = Verdict.NO_ANSWER if end is None else Verdict.CORRECT if int(end[1]) % 2 == 0 else Verdict.WRONG
        grades.append(Grade(verdict, "" if end is None else end[1]))
    return grades


def test_a_store_is_graded_part_by_part(engine, tmp_path):
    samples = _sample(engine, 16, tmp_path, chunk_samples=32)
    drawn, handed = samples.read(), []

    def grading(responses, problems, answer):
        if len(handed) == 2:
            handed.append(0)
            raise KeyboardInterrupt
        handed.append(len(responses))
        return _last_digit(responses, problems)

    with pytest.raises(KeyboardInterrupt):
        grade_store(samples, {"b": PROBLEMS}, grading, progress=False)
    assert samples.counts()["n"].sum() == sum(handed) == 64
    grade_store(samples, {"b": PROBLEMS[:8], "other": PROBLEMS}, grading, progress=False)
    assert samples.counts()["n"].tolist() == [16] * 8 + [0, 16]  # p8 was not given, p9 graded before
    grade_store(samples, {"b": PROBLEMS}, grading, progress=False)
    assert sum(handed) == 160  # what had a verdict was not graded again

    graded, counts = samples.read(), samples.counts()
    pd.testing.assert_frame_equal(graded[SAMPLED], drawn[SAMPLED])
    expected = _last_digit(graded["text"], [PROBLEMS[0]] * len(graded))
    assert graded["verdict"].tolist() == [str(g.verdict) for g in expected]
    assert graded["extracted"].tolist() == [g.extracted for g in expected]
    assert counts["correct"].sum() == sum(g.verdict == Verdict.CORRECT for g in expected)
    assert (counts["correct"] + counts["wrong"] + counts["no_answer"] == 16).all()
    truncated = graded["finish_reason"].eq("length").groupby(graded["problem"]).sum()
    assert counts["truncated"].tolist() == truncated.tolist()


def test_verdicts_name_their_gold_and_grader(tmp_path):
    """Another gold takes back the verdicts on its problem alone; a lost file of verdicts is made again."""
    store = SampleStore(tmp_path)
    frame = pd.DataFrame({"benchmark": "b", "problem": ["p", "q"], "index": 0, "tokens": 1, "finish_reason": "stop"})
    part = store.append(frame.assign(text=["\\boxed{1}", "\\boxed{1}"]))
    problems = [Problem("p", "0+1", "1"), Problem("q", "0+1", "1")]
    handed = []

    def grading(responses, problems, answer):
        handed.append(len(responses))
        return grade(responses, problems, answer=answer)

    grade_store(store, {"b": problems}, grading, progress=False)
    gold = ["1", None, grader_version("math"), "boxed"]
    assert store.golds() == {("b", "p"): gold, ("b", "q"): gold}
    assert store.read()["grader"].eq(gold[2]).all()
    grade_store(store, {"b": [replace(problems[0], answer="2"), problems[1]]}, grading, progress=False)
    assert store.read()["verdict"].tolist() == ["wrong", "correct"]
    assert store.golds()["b", "p"] == ["2", *gold[1:]]
    verdict_file(part).unlink()
    grade_store(store, {"b": problems}, grading, progress=False)
    assert store.read()["verdict"].tolist() == ["correct", "correct"]
    assert handed == [2, 1, 2]


def test_a_prompt_that_asks_for_a_box_is_graded_by_it(tmp_path):
    """Verdicts of the two kinds never mix: another instruction takes back those of the first."""
    store = SampleStore(tmp_path)
    frame = pd.DataFrame({"benchmark": "b", "problem": "p", "index": range(3), "tokens": 4, "finish_reason": "stop"})
    store.append(frame.assign(text=["noise 5 and 7", "so \\boxed{7}", "The answer is 7."]))
    boxed, plain = Problem("p", "3+4", "7"), Problem("p", "3+4", "7", instruction="Answer with a number.")
    library, right = replace(boxed, grader="math_verify"), ["correct"] * 3
    for problem, verdicts in ((boxed, ["no_answer", *right[1:]]), (plain, right), (library, right)):
        grade_store(store, {"b": [problem]}, grade, progress=False)
        assert store.read()["verdict"].tolist() == verdicts
    assert store.golds() == {("b", "p"): ["7", None]}  # as all stores of the library's verdicts have it
