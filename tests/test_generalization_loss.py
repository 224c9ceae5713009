"""The generalization loss against a naive reference (one trace at a time, full logits, float64) and closed forms."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from quagmire_utils.benchmarks import Trace
from quagmire_utils.config import ParameterError
from quagmire_utils.generalization_loss import generalization_loss
from quagmire_utils.microlab import build_model, build_tokenizer
from quagmire_utils.prompts import render, response_ids

TOKENIZER = build_tokenizer()
TRACES = [
    Trace(
        f"t{i}", f"p{i // 2}", f"{i}+{i * i}?", f"{i}+{i * i}={i + i * i} \\boxed{{{i + i * i}}}" + " ok" * (7 * i % 23)
    )
    for i in range(24)
] + [Trace("empty", "p-empty", "1+1?", "")]  # nothing but its EOS


def sharpen(model, factor: float = 12.0):
    """A freshly initialised model predicts nearly uniformly; larger embeddings spread its losses over many nats."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(factor)
    return model


def naive(model, traces, tokenizer=TOKENIZER, template="auto"):
    """Summed loss in nats and token count of each trace: full logits, float64, one trace at a time."""
    sums, tokens = [], []
    for trace in traces:
        prompt, response = (
            render(trace.question, tokenizer, template).token_ids,
            response_ids(tokenizer, trace.response),
        )
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0].double()
        log_probabilities = torch.log_softmax(logits, -1)
        sums.append(-sum(float(log_probabilities[len(prompt) - 1 + j, token]) for j, token in enumerate(response)))
        tokens.append(len(response))
    return np.array(sums), np.array(tokens)


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen3"])
def model(request):
    return sharpen(build_model(request.param, TOKENIZER, layers=2, seed=1))


@pytest.mark.parametrize(("batch_tokens", "chunk_tokens"), [(16384, 1024), (300, 7), (1, 1)])
def test_equals_the_naive_reference(model, batch_tokens, chunk_tokens):
    sums, tokens = naive(model, TRACES)
    loss = generalization_loss(
        model, TOKENIZER, TRACES, batch_tokens=batch_tokens, chunk_tokens=chunk_tokens, progress=False
    )
    assert (sums / tokens).std() > 0.1  # traces differ by far more than the tolerance below
    np.testing.assert_allclose(loss.per_trace["nll"], sums / tokens, atol=1e-5)
    assert loss.nll == pytest.approx(sums.sum() / tokens.sum(), abs=1e-5)
    assert loss.mean_over_traces == pytest.approx((sums / tokens).mean(), abs=1e-5)
    assert (loss.tokens, loss.traces) == (tokens.sum(), len(TRACES))
    assert list(loss.per_trace["id"]) == [trace.id for trace in TRACES]
    assert list(loss.per_trace["tokens"]) == list(tokens)


def test_templates_give_different_prompts_and_losses(model):
    losses = {}
    for template in ("chat", "plain"):
        sums, tokens = naive(model, TRACES[:5], template=template)
        losses[template] = generalization_loss(model, TOKENIZER, TRACES[:5], template=template, progress=False).nll
        assert losses[template] == pytest.approx(sums.sum() / tokens.sum(), abs=1e-5)
    assert losses["chat"] != losses["plain"]


def test_bfloat16_weights_are_reduced_in_float32():
    model = sharpen(build_model("qwen3", TOKENIZER, layers=2, seed=1)).bfloat16()
    sums, tokens = naive(model, TRACES)
    # A batch of one runs the same bfloat16 kernels as the reference, so what is compared is the reduction: done in
    # bfloat16, it would be off by up to 0.05 nats.
    loss = generalization_loss(model, TOKENIZER, TRACES, batch_tokens=1, progress=False)
    np.testing.assert_allclose(loss.per_trace["nll"], sums / tokens, atol=1e-4)
    batched = generalization_loss(model, TOKENIZER, TRACES, progress=False)
    assert batched.nll == pytest.approx(loss.nll, rel=1e-3)  # a batch rounds its activations differently


def test_uniform_model_loses_log_vocabulary():
    model = build_model("llama", TOKENIZER, layers=1)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    loss = generalization_loss(model, TOKENIZER, TRACES, progress=False)
    assert loss.nll == pytest.approx(math.log(len(TOKENIZER)), abs=1e-6)
    assert loss.standard_error == pytest.approx(0, abs=1e-6)


def test_standard_error_is_the_spread_over_repeated_draws(model):
    # Draw sets of 40 traces with replacement from the pool; the mean of their standard errors estimates the spread of
    # their losses. 400 draws know that spread to about 4 %; the linearised formula is good to a few percent at m = 40.
    pool = generalization_loss(model, TOKENIZER, TRACES[:-1], progress=False).per_trace
    tokens, nll = pool["tokens"].to_numpy(), pool["nll"].to_numpy()
    generator = np.random.default_rng(0)
    losses, errors = [], []
    for _ in range(400):
        rows = generator.integers(len(pool), size=40)
        n, s = tokens[rows], tokens[rows] * nll[rows]
        ratio = s.sum() / n.sum()
        losses.append(ratio)
        errors.append(math.sqrt(40 / 39 * ((s - ratio * n) ** 2).sum()) / n.sum())
    assert np.mean(errors) == pytest.approx(np.std(losses), rel=0.15)
    n, s = tokens, tokens * nll
    expected = math.sqrt(24 / 23 * ((s - s.sum() / n.sum() * n) ** 2).sum()) / n.sum()
    got = generalization_loss(model, TOKENIZER, TRACES[:-1], progress=False).standard_error
    assert got == pytest.approx(expected, rel=1e-9)


def test_single_trace_has_no_standard_error(model):
    assert math.isnan(generalization_loss(model, TOKENIZER, TRACES[:1], progress=False).standard_error)


def test_path_and_training_mode(tmp_path):
    model = sharpen(build_model("llama", TOKENIZER, layers=1, seed=2))
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    model.train()
    direct = generalization_loss(model, TOKENIZER, TRACES, progress=False)
    assert model.training
    assert generalization_loss(str(tmp_path), None, TRACES, progress=False).nll == pytest.approx(direct.nll, abs=1e-6)
    assert generalization_loss(tmp_path, None, TRACES, progress=False).nll == pytest.approx(direct.nll, abs=1e-6)


def test_lower_after_training_on_the_traces():
    model = build_model("llama", TOKENIZER, layers=1, seed=3)
    before = generalization_loss(model, TOKENIZER, TRACES[:4], progress=False).nll
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(20):
        for trace in TRACES[:4]:
            prompt, response = render(trace.question, TOKENIZER).token_ids, response_ids(TOKENIZER, trace.response)
            labels = torch.tensor([[-100] * len(prompt) + list(response)])
            model(torch.tensor([prompt + response]), labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert generalization_loss(model, TOKENIZER, TRACES[:4], progress=False).nll < before / 2


def test_traces_longer_than_the_context_are_refused(model):
    long = [Trace(f"long{i}", "p", "q", "x" * model.config.max_position_embeddings) for i in range(2)]
    with pytest.raises(ParameterError, match=r"traces: 2 of 27 are longer than the model's context of 8192 tokens"):
        generalization_loss(model, TOKENIZER, TRACES + long, progress=False)


def test_bad_parameters_are_refused(model, tmp_path):
    with pytest.raises(ParameterError, match="traces is empty"):
        generalization_loss(model, TOKENIZER, [])
    with pytest.raises(ParameterError, match="chunk_tokens"):
        generalization_loss(model, TOKENIZER, TRACES, chunk_tokens=0)
    with pytest.raises(ParameterError, match="tokenizer may be None only"):
        generalization_loss(model, None, TRACES)
    with pytest.raises(ParameterError, match="cannot be loaded"):
        generalization_loss(str(tmp_path), TOKENIZER, TRACES)
    small = build_model("llama", TOKENIZER, layers=1)
    small.resize_token_embeddings(50)
    with pytest.raises(ParameterError, match="the model has 50 embeddings"):
        generalization_loss(small, TOKENIZER, TRACES)


def test_model_that_gives_nan_is_refused():
    model = build_model("llama", TOKENIZER, layers=1)
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = math.nan
    with pytest.raises(ParameterError, match="not a number"):
        generalization_loss(model, TOKENIZER, TRACES, progress=False)


def test_model_that_caps_its_logits_is_refused():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=32,
        final_logit_softcapping=0.1,
        bos_token_id=None,
        pad_token_id=TOKENIZER.pad_token_id,
        eos_token_id=TOKENIZER.eos_token_id,
    )
    with pytest.raises(ParameterError, match="Gemma2ForCausalLM changes its logits"):
        generalization_loss(Gemma2ForCausalLM(config).eval(), TOKENIZER, TRACES, progress=False)


def peak_memory() -> int:
    """Peak resident memory of this process since it was last reset, bytes."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_does_not_grow_with_vocabulary_times_length():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=150_000,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    trace = Trace("t", "t", "1+1?", "x" * 2000)
    extra = {}
    for name in ("ours", "naive"):
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
        before = peak_memory()
        if name == "ours":
            assert generalization_loss(model, TOKENIZER, [trace], chunk_tokens=64, progress=False).tokens == 2001
        else:
            with torch.no_grad():
                model(torch.tensor([response_ids(TOKENIZER, trace.response)])).logits.sum()
        extra[name] = peak_memory() - before
    logits = 4 * 150_000 * 2001  # bytes of the full float32 tensor: 1.2 GB
    assert extra["naive"] > 0.9 * logits  # the measurement sees such a tensor
    assert extra["ours"] < logits / 10  # a chunk of 64 positions is a thirtieth
