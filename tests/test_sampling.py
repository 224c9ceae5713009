"""Sampling into a store: killed, damaged or topped up, its records are those of an unbroken run."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest

from quagmire_utils.benchmarks import Problem
from quagmire_utils.config import ParameterError
from quagmire_utils.engines import Completion, Request, SamplingParams, load_engine
from quagmire_utils.grading import Grade, Verdict, grade
from quagmire_utils.prompts import render
from quagmire_utils.sampling import _chunks, grade_store, problem_seed, sample
from quagmire_utils.store import KEYS, SampleStore

torch = pytest.importorskip("torch", reason="sampling is tested with the transformers engine")
pytest.importorskip("transformers", reason="sampling is tested with the transformers engine")

from quagmire_utils.microlab import build_model, build_tokenizer  # noqa: E402

PARAMS = SamplingParams(max_tokens=12, seed=3)
PROBLEMS = [Problem(id=f"p{i}", question=f"{11 * i}+{i}" + "0" * (i % 3), answer=str(12 * i)) for i in range(10)]


def _save(folder, seed=0):
    tokenizer = build_tokenizer()
    model = build_model("llama", tokenizer, layers=2, seed=seed)
    with torch.no_grad():
        model.model.norm.weight.mul_(5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return _save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(model):
    engine = load_engine("transformers", model, device="cpu")
    yield engine
    engine.close()


def _sample(engine, n, store, **changes):
    return sample(engine, PROBLEMS, n, PARAMS, store, **{"benchmark": "b", "progress": False, **changes})


# --- killed and started again -----------------------------------------------------------------------------------------

# Loads once, then forks a child for each folder it is told of; the child samples into it and is what gets killed.
WORKER = """
import os, sys, torch
torch.set_num_threads(1)
from quagmire_utils.benchmarks import Problem
from quagmire_utils.engines import SamplingParams, load_engine
from quagmire_utils.sampling import sample
from quagmire_utils.store import SampleStore
problems = [Problem(id=f"p{i}", question=f"{i}+{i}" + "0" * (i % 4), answer="1") for i in range(16)]
engine = load_engine("transformers", sys.argv[1], device="cpu", batch_size=40)
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        store, params = SampleStore(line.strip()), SamplingParams(max_tokens=24, seed=1)
        sample(engine, problems, 60, params, store, benchmark="b", chunk_samples=120, progress=False)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def worker(model):
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"

    def run(folder, kill_after=None):
        """Sample into `folder`; SIGKILL after `kill_after` seconds. The exit status."""
        process.stdin.write(f"{folder}\n")
        process.stdin.flush()
        child = int(process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(ProcessLookupError):  # it was faster
                os.kill(child, signal.SIGKILL)
        return int(process.stdout.readline())

    yield run
    process.stdin.close()
    process.wait(timeout=60)


def test_killed_runs_end_with_the_records_of_an_unbroken_one(worker, tmp_path):
    started = time.perf_counter()
    assert worker(tmp_path / "unbroken") == 0
    duration = time.perf_counter() - started
    unbroken = SampleStore(tmp_path / "unbroken").read()
    assert unbroken.groupby("problem")["index"].agg(list).map(lambda rows: rows == list(range(60))).all()
    assert len(unbroken) == 16 * 60

    rng = np.random.default_rng(0)
    folder, kills, held = tmp_path / "killed", 0, [0]
    while True:
        delay = rng.uniform(0.05, 0.6) * duration if kills < 12 else None
        status = worker(folder, delay)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        kills += 1
        held.append(len(SampleStore(folder).existing()))
        assert held[-1] >= held[-2], "a kill lost samples that were there"
        assert held[-1] % 120 == 0, "part of a chunk was written"
    assert kills >= 4
    assert len(set(held)) > 2, "no run was killed in the middle"
    pd.testing.assert_frame_equal(SampleStore(folder).read(), unbroken)
    pd.testing.assert_frame_equal(SampleStore(folder).prompts(), SampleStore(tmp_path / "unbroken").prompts())
    assert sorted(p.name for p in SampleStore(folder).parts()) == sorted(
        p.name for p in SampleStore(tmp_path / "unbroken").parts()
    )


def test_lost_and_damaged_parts_are_drawn_again(engine, tmp_path):
    samples = _sample(engine, 12, tmp_path, chunk_samples=24)
    whole = samples.frame()
    parts = samples.store.parts()
    assert len(parts) == 5
    parts[0].unlink()
    parts[2].write_bytes(parts[2].read_bytes()[:-9])
    with pytest.warns(UserWarning, match="set aside"):
        _sample(engine, 12, tmp_path, chunk_samples=24)
    pd.testing.assert_frame_equal(samples.frame(), whole)


# --- what a sample depends on -----------------------------------------------------------------------------------------


def test_top_up_leaves_the_first_samples_alone(engine, tmp_path):
    first = _sample(engine, 8, tmp_path / "grown").frame()
    stamps = {part: part.stat().st_mtime_ns for part in SampleStore(tmp_path / "grown").parts()}
    grown = _sample(engine, 16, tmp_path / "grown").frame()
    assert {part: part.stat().st_mtime_ns for part in stamps} == stamps
    pd.testing.assert_frame_equal(grown[grown["index"] < 8].reset_index(drop=True), first)
    pd.testing.assert_frame_equal(grown, _sample(engine, 16, tmp_path / "at once").frame())
    assert _sample(engine, 4, tmp_path / "grown").frame().shape == grown.shape  # fewer than there are: nothing to do


def test_a_sample_depends_on_its_own_seed_alone(engine, tmp_path):
    together = _sample(engine, 6, tmp_path / "all").frame().set_index(KEYS)
    alone = sample(engine, PROBLEMS[4:5], 6, PARAMS, tmp_path / "one", benchmark="b", progress=False).frame()
    pd.testing.assert_frame_equal(alone.set_index(KEYS), together[together.index.get_level_values("problem") == "p4"])
    elsewhere = sample(engine, PROBLEMS[4:5], 6, PARAMS, tmp_path / "two", benchmark="c", progress=False).frame()
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


@pytest.mark.parametrize(("count", "n", "size"), [(10, 7, 24), (3, 100, 24), (1, 1, 1), (5, 24, 24), (7, 23, 24)])
def test_chunks_cover_everything_once(engine, count, n, size):
    prompts = {problem.id: render(problem.question, engine.tokenizer) for problem in PROBLEMS[:count]}
    chunks = list(_chunks(prompts, n, size))
    drawn = [(problem, i) for chunk in chunks for problem, indices in chunk for i in indices]
    assert sorted(drawn) == sorted((problem, i) for problem in prompts for i in range(n))
    assert all(0 < sum(len(indices) for _, indices in chunk) <= size for chunk in chunks)
    lengths = [len(prompts[problem].token_ids) for problem, _ in drawn]
    assert lengths == sorted(lengths, reverse=True)


def test_hostile_texts_reach_the_store(engine, tmp_path, monkeypatch):
    texts = ["\0", "\ud800", "", "{" * 100_000]
    drawn = [Completion(text, 3, "stop") for text in texts]
    monkeypatch.setattr(engine, "generate", lambda requests, params: [drawn for _ in requests])
    frame = sample(engine, PROBLEMS[:2], 4, PARAMS, tmp_path, benchmark="b", progress=False).frame()
    assert frame["text"].tolist() == texts * 2


# --- what is refused --------------------------------------------------------------------------------------------------


def test_samples_of_different_origins_are_refused(engine, tmp_path):
    store = SampleStore(tmp_path / "s")
    _sample(engine, 2, store)
    held = store.read()

    def refused(message, engine=engine, problems=PROBLEMS, params=PARAMS, template="auto"):
        with pytest.raises(ParameterError, match=message):
            sample(engine, problems, 4, params, store, benchmark="b", template=template, progress=False)
        pd.testing.assert_frame_equal(store.read(), held)

    refused("temperature is 1.0 there and 0.5 here", params=SamplingParams(temperature=0.5, max_tokens=12, seed=3))
    refused("max_tokens is 12 there and 13 here", params=SamplingParams(max_tokens=13, seed=3))
    refused("seed is 3 there and 4 here", params=SamplingParams(max_tokens=12, seed=4))
    refused("template is 'chat' there and 'plain' here", template="plain")
    refused("drawn with another prompt", problems=[Problem(id="p1", question="other", answer="1")])
    other = load_engine("transformers", _save(tmp_path / "other", seed=1), device="cpu")
    refused("model_digest is", engine=other)
    refused(
        "dtype is 'float32' there and 'bfloat16' here",
        engine=load_engine("transformers", engine.model, dtype="bfloat16"),
    )


def test_bad_parameters_are_refused_before_anything_is_written(engine, tmp_path):
    store = tmp_path / "s"
    with pytest.raises(ParameterError, match="n must be at least 1"):
        _sample(engine, 0, store)
    with pytest.raises(ParameterError, match="problems: b has none"):
        sample(engine, [], 1, PARAMS, store, benchmark="b")
    with pytest.raises(ParameterError, match=r"an id occurs twice in b \(p0\)"):
        sample(engine, [*PROBLEMS, PROBLEMS[0]], 1, PARAMS, store, benchmark="b")
    with pytest.raises(ParameterError, match="chunk_samples must be at least 1"):
        _sample(engine, 1, store, chunk_samples=0)
    with pytest.raises(ParameterError, match="max_tokens=8190 does not fit"):
        sample(engine, PROBLEMS, 1, SamplingParams(max_tokens=8190), store, benchmark="b")
    with pytest.raises(ParameterError, match="max_tokens=12 does not fit: 1 of 1 prompts"):
        sample(engine, [Problem("long", "1" * 9000, "1")], 1, PARAMS, store, benchmark="b")
    with pytest.raises(ParameterError, match="template must be one of"):
        _sample(engine, 1, store, template="alpaca")
    assert not store.exists()


# --- grading a store --------------------------------------------------------------------------------------------------


def _last_digit(responses, problems):
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
    assert (samples.counts()["n"] == 0).all()
    drawn = samples.frame()
    calls = []

    def stops_halfway(responses, problems):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(responses))
        return _last_digit(responses, problems)

    with pytest.raises(KeyboardInterrupt):
        grade_store(samples.store, {"b": PROBLEMS}, stops_halfway, progress=False)
    assert samples.counts()["n"].sum() == sum(calls) == 64
    calls.clear()
    handed = []
    grade_store(samples.store, {"b": PROBLEMS}, lambda r, p: handed.append(len(r)) or _last_digit(r, p), progress=False)
    assert sum(handed) == 160 - 64  # what had a verdict was not graded again

    graded = samples.frame()
    unchanged = ["benchmark", "problem", "index", "text", "tokens", "finish_reason"]
    pd.testing.assert_frame_equal(graded[unchanged], drawn[unchanged])
    expected = _last_digit(graded["text"], [PROBLEMS[0]] * len(graded))
    assert graded["verdict"].tolist() == [str(g.verdict) for g in expected]
    assert graded["extracted"].tolist() == [g.extracted for g in expected]
    counts = samples.counts()
    assert (counts["n"] == 16).all()
    assert counts["correct"].sum() == sum(g.verdict == Verdict.CORRECT for g in expected)
    assert (counts["correct"] + counts["wrong"] + counts["no_answer"] == 16).all()
    assert (
        counts["truncated"] == graded["finish_reason"].eq("length").groupby(graded["problem"]).sum().to_numpy()
    ).all()

    all_wrong = [Grade(Verdict.WRONG, "x")]
    grade_store(samples.store, {"b": PROBLEMS}, lambda r, p: all_wrong * len(r), progress=False)
    pd.testing.assert_frame_equal(samples.frame(), graded)
    grade_store(samples.store, {"b": PROBLEMS}, lambda r, p: all_wrong * len(r), regrade=True, progress=False)
    assert (samples.counts()["wrong"] == 16).all()


def test_problems_that_are_not_given_stay_ungraded(engine, tmp_path):
    samples = _sample(engine, 3, tmp_path)
    grade_store(samples.store, {"b": PROBLEMS[:4], "other": PROBLEMS}, _last_digit, progress=False)
    assert samples.counts()["n"].tolist() == [3] * 4 + [0] * 6
    grade_store(samples.store, {"b": PROBLEMS}, _last_digit, progress=False)
    assert samples.counts()["n"].tolist() == [3] * 10


def test_grading_for_real(tmp_path):
    store = SampleStore(tmp_path)
    texts = ["so \\boxed{\\frac{1}{2}}", "\\boxed{0.50}", "\\boxed{2}", "no idea", "\ud800\0 \\boxed{1/2}"]
    frame = pd.DataFrame({"benchmark": "b", "problem": "half", "index": range(5), "tokens": 4, "finish_reason": "stop"})
    store.append(frame.assign(text=pd.Series(texts, dtype=object)))
    grade_store(store, {"b": [Problem("half", "1/2?", "\\frac{1}{2}")]}, grade, progress=False)
    assert store.read()["verdict"].tolist() == ["correct", "correct", "wrong", "no_answer", "correct"]
    assert store.read()["text"].tolist() == texts
