"""The generalization loss against a naive reference (one trace at a time, full logits, float64) and closed forms."""

import dataclasses
import math
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data import Trace
from quagmire_utils.data.prompts import render, response_ids
from quagmire_utils.engines import EngineConfig, transformers
from quagmire_utils.evaluation import generalization_loss as losses
from quagmire_utils.evaluation.generalization_loss import generalization_loss
from quagmire_utils.training.microlab import build_model, build_tokenizer

TOKENIZER = build_tokenizer()
TRACES = [
    Trace(f"t{i}", f"p{i // 2}", f"{i}+{j}?", f"{i}+{j}={i + j} \\boxed{{{i + j}}}" + " ok" * (7 * i % 23))
    for i, j in ((i, i * i) for i in range(24))
] + [Trace("short", "p-short", "1+1?", "2")]
TINY = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
TINY |= {"num_attention_heads": 1, "num_key_value_heads": 1}


@pytest.fixture
def loss_of(tmp_path, monkeypatch):
    """Measure the loss of a configuration, or of a model that is saved first, with batches of the sizes given."""

    def measured(model, traces=TRACES, *, batch_tokens=16384, chunk_tokens=1024, how=None, **options):
        monkeypatch.setattr(losses, "BATCH_TOKENS", batch_tokens)
        monkeypatch.setattr(losses, "CHUNK_TOKENS", chunk_tokens)
        config = model if isinstance(model, EngineConfig) else save(model, tempfile.mkdtemp(dir=tmp_path))
        return generalization_loss(config.replace(**how or {}), traces, **{"progress": False, **options})

    return measured


def sharpen(model, factor: float = 12.0):
    """A freshly initialised model predicts nearly uniformly; larger embeddings spread its losses over many nats."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(factor)
    return model


def naive(model, traces, template="auto"):
    """Summed loss in nats and token count of each trace: full logits, float64, one trace at a time."""
    sums, tokens = [], []
    for trace in traces:
        prompt = render(trace.question, TOKENIZER, template).token_ids
        response = response_ids(TOKENIZER, trace.response)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0].double()
        log_probabilities = torch.log_softmax(logits, -1)
        sums.append(-sum(float(log_probabilities[len(prompt) - 1 + j, token]) for j, token in enumerate(response)))
        tokens.append(len(response))
    return np.array(sums), np.array(tokens)


def build(name: str):
    """A sharpened micro model; "window" is a mistral that sees 16 tokens back."""
    from transformers import AutoModelForCausalLM

    model = build_model({"window": "mistral"}.get(name, name), TOKENIZER, layers=2, seed=1)
    if name == "window":
        weights, config = model.state_dict(), model.config
        config.sliding_window = 16
        model = AutoModelForCausalLM.from_config(config).eval()
        model.load_state_dict(weights)
    return sharpen(model)


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen3", "window"])
def model(request):
    return build(request.param)


@pytest.fixture(scope="module")
def llama():
    return build("llama")


def save(model, folder):
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return EngineConfig(model=folder, device="cpu")


@pytest.fixture(scope="module")
def checkpoint(llama, tmp_path_factory):
    return save(llama, tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.mark.parametrize(
    ("batch_tokens", "chunk_tokens", "template"), [(16384, 1024, "auto"), (300, 7, "plain"), (1, 1, "chat")]
)
def test_equals_the_naive_reference(model, batch_tokens, chunk_tokens, template, loss_of):
    sums, tokens = naive(model, TRACES, template)
    loss = loss_of(model, batch_tokens=batch_tokens, chunk_tokens=chunk_tokens, how={"template": template})
    assert (sums / tokens).std() > 0.1  # traces differ by far more than the tolerance below
    np.testing.assert_allclose(loss.per_trace["nll"], sums / tokens, atol=1e-5)
    assert loss.nll == pytest.approx(sums.sum() / tokens.sum(), abs=1e-5)
    assert loss.mean_over_traces == pytest.approx((sums / tokens).mean(), abs=1e-5)
    assert (loss.tokens, loss.traces) == (tokens.sum(), len(TRACES))
    assert list(loss.per_trace["id"]) == [trace.id for trace in TRACES]
    assert list(loss.per_trace["tokens"]) == list(tokens)


def test_bfloat16_weights_are_reduced_in_float32(loss_of, tmp_path):
    how = {"dtype": "bfloat16"}
    model = save(sharpen(build_model("qwen3", TOKENIZER, layers=2, seed=1)), tmp_path)
    sums, tokens = naive(transformers.load_weights(model, "bfloat16").eval(), TRACES)
    # a batch of one runs the reference's own kernels; reduced in bfloat16, it would be off by up to 0.05 nats
    loss = loss_of(model, batch_tokens=1, how=how)
    np.testing.assert_allclose(loss.per_trace["nll"], sums / tokens, atol=1e-4)
    batched = loss_of(model, how=how)
    assert batched.nll == pytest.approx(loss.nll, rel=1e-3)  # a batch rounds its activations differently


def test_uniform_model_loses_log_vocabulary(loss_of):
    model = build_model("llama", TOKENIZER, layers=1)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    loss = loss_of(model)
    assert loss.nll == pytest.approx(math.log(len(TOKENIZER)), abs=1e-6)
    assert loss.standard_error == pytest.approx(0, abs=1e-6)


def bigram_model(probabilities: dict[str, dict[str, float]]):
    """No layers: a token's embedding is one-hot, and its column of the head holds the logarithms of what follows it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = len(TOKENIZER)
    shape = {"hidden_size": size, "num_hidden_layers": 0, "head_dim": 2}
    config = LlamaConfig(vocab_size=size, **{**TINY, **shape}, rms_norm_eps=0.0, tie_word_embeddings=False)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(torch.eye(size))
        head = model.get_output_embeddings().weight.fill_(math.log(1e-12))  # of what never follows
        for before, after in probabilities.items():
            for token, probability in after.items():
                row, column = TOKENIZER.convert_tokens_to_ids([token, before])
                head[row, column] = math.log(probability)
        head.div_(math.sqrt(size))  # the norm makes sqrt(size) of the one
    return model


def test_bigram_model_by_hand(loss_of):
    """P(a) = 1/2 and P(b) = 1/2 at the start; after a: a 1/4, b 1/4, end 1/2; after b: a 1/8, end 7/8."""
    end = TOKENIZER.eos_token
    follows = {"a": {"a": 1 / 4, "b": 1 / 4, end: 1 / 2}, "b": {"a": 1 / 8, end: 7 / 8}}
    model = bigram_model({"<|assistant|>": {"a": 1 / 2, "b": 1 / 2}, **follows})
    traces = [Trace("1", "p", "q", "ab"), Trace("2", "p", "q", "ba"), Trace("3", "r", "q", "aaa")]
    loss = loss_of(model, traces, how={"template": "chat"})
    # ab: 1/2 1/4 7/8; ba: 1/2 1/8 1/2; aaa: 1/2 1/4 1/4 1/2
    s = np.array([math.log(64 / 7), math.log(32), math.log(64)])
    n = np.array([3, 3, 4])
    np.testing.assert_allclose(loss.per_trace["nll"], s / n, atol=1e-6)
    assert loss.nll == pytest.approx(s.sum() / 10, abs=1e-6)
    e = s - s.sum() / 10 * n
    assert loss.standard_error == pytest.approx(math.sqrt(3 / 2 * (e**2).sum()) / 10, rel=1e-5)
    alone = loss_of(model, traces[:1], how={"template": "chat"})
    assert math.isnan(alone.standard_error)


def ratio(s, n):
    """Loss and standard error from the traces' sums and tokens, as the formula has them."""
    loss, m = s.sum() / n.sum(), len(n)
    return loss, math.sqrt(m / (m - 1) * ((s - loss * n) ** 2).sum()) / n.sum() if m > 1 else math.nan


def test_standard_error_is_the_spread_over_repeated_draws(checkpoint, loss_of):
    # 400 draws know the spread to about 4 %; the linearised formula is good to a few percent at 40 traces.
    loss = loss_of(checkpoint, TRACES[:-1])
    n = loss.per_trace["tokens"].to_numpy()
    s = n * loss.per_trace["nll"].to_numpy()
    generator = np.random.default_rng(0)
    draws = [ratio(s[rows], n[rows]) for rows in generator.integers(len(n), size=(400, 40))]
    losses, errors = np.transpose(draws)
    assert np.mean(errors) == pytest.approx(np.std(losses), rel=0.15)
    assert loss.standard_error == pytest.approx(ratio(s, n)[1], rel=1e-9)


def test_a_head_with_a_bias_is_called(loss_of):
    from transformers import PhiConfig, PhiForCausalLM

    config = PhiConfig(vocab_size=len(TOKENIZER), **TINY, eos_token_id=TOKENIZER.eos_token_id)
    model = sharpen(PhiForCausalLM(config).eval())
    with torch.no_grad():
        model.lm_head.bias.normal_()
    sums, tokens = naive(model, TRACES)
    np.testing.assert_allclose(loss_of(model, chunk_tokens=50).per_trace["nll"], sums / tokens, atol=1e-5)


@pytest.fixture
def scored(monkeypatch):
    """How many traces each batch that was scored had."""
    batches: list[int] = []
    original = losses.score

    def counting(model, batch):
        sums = original(model, batch)
        batches.append(len(batch))
        return sums

    monkeypatch.setattr(losses, "score", counting)
    return batches


def test_resuming_gives_the_bits_of_an_unbroken_run(checkpoint, scored, loss_of, tmp_path, monkeypatch):
    """Killed in the middle of a batch; whole batches are kept, so the others are the same batches as before."""
    monkeypatch.setattr(losses, "WRITE_SECONDS", 0)
    unbroken = loss_of(checkpoint, TRACES, batch_tokens=200)
    assert len(scored) > 4
    scored.clear()
    file, kept, original = tmp_path / "new folder" / "losses.parquet", tmp_path / "kept.parquet", losses.score

    def stopping(model, batch):
        if len(scored) == 3:
            shutil.copy(file, kept)  # what a kill would leave, without the writing of an orderly end
            raise KeyboardInterrupt
        return original(model, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "score", stopping)
        with pytest.raises(KeyboardInterrupt):
            loss_of(checkpoint, TRACES, batch_tokens=200, partial=file)
    done = sum(scored)
    assert 0 < done < len(TRACES)
    scored.clear()
    arguments = {"batch_tokens": 200, "partial": kept}
    resumed = loss_of(checkpoint, TRACES, **arguments)
    assert sum(scored) == len(TRACES) - done
    pd.testing.assert_frame_equal(resumed.per_trace, unbroken.per_trace, check_exact=True)
    assert (resumed.nll, resumed.standard_error) == (unbroken.nll, unbroken.standard_error)
    # where all is known no model is loaded; of a larger set, with a trace twice, only the new batch is scored
    scored.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers, "load_weights", lambda *_: pytest.fail("loaded a model for nothing"))
        again = loss_of(checkpoint, TRACES[::-1], **arguments)
    assert list(again.per_trace["nll"]) == list(unbroken.per_trace["nll"])[::-1]
    more = [*TRACES, Trace("new", "p", "3+3?", "6"), Trace("twice", "p", "3+3?", "6")]
    loss = loss_of(checkpoint, more, **arguments)
    assert len(scored) == 1
    assert loss.per_trace["nll"].iloc[-1] == loss.per_trace["nll"].iloc[-2]


def test_partial_losses_are_never_mixed(checkpoint, loss_of, tmp_path, refused):
    """Those of another prompt, model or dtype are others; a file that is damaged is refused."""
    file = tmp_path / "losses.parquet"
    others = [checkpoint.replace(template="chat"), checkpoint.replace(dtype="bfloat16")]
    for config in (checkpoint, *others, save(build("qwen3"), tmp_path / "other")):
        shared = loss_of(config, TRACES[:5], partial=file)
        assert shared.nll == loss_of(config, TRACES[:5]).nll
    whole = bytearray(file.read_bytes())
    whole[100] ^= 255  # in the first column's page
    for content in (b"", whole):
        file.write_bytes(content)
        with refused("partial"):
            loss_of(checkpoint, TRACES[:5], partial=file)


def test_traces_longer_than_the_context_are_refused_or_dropped_and_counted(checkpoint, loss_of, refused):
    long = [Trace(f"long{i}", "p", "q", "x" * (8192 + i)) for i in range(2)]
    with refused("traces") as caught:
        loss_of(checkpoint, TRACES + long)
    assert "2 of 27 are longer" in str(caught.value)
    assert "context of 8192 tokens (the longest, long1, has 8199)" in str(caught.value)
    loss = loss_of(checkpoint, long + TRACES, drop_too_long=True)
    expected = loss_of(checkpoint)
    assert (loss.dropped, loss.traces, expected.dropped) == (2, len(TRACES), 0)
    pd.testing.assert_frame_equal(loss.per_trace, expected.per_trace)
    with refused("traces"):
        loss_of(checkpoint, long, drop_too_long=True)


def test_bad_traces_and_parameters_are_refused(checkpoint, loss_of, tmp_path, refused):
    for part, text in (("question", ""), ("response", " \n")):
        with refused(part):
            loss_of(checkpoint, [*TRACES[:3], dataclasses.replace(TRACES[3], **{part: text})])
    with refused("traces"):
        loss_of(checkpoint, [])
    plain = Path(shutil.copytree(checkpoint.model, tmp_path / "plain"))
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(ParameterError, match="has no chat template"):
        loss_of(EngineConfig(model=plain), how={"template": "chat"})
    if not torch.cuda.is_available():
        with refused("device"):
            loss_of(checkpoint, how={"device": "cuda"})


def test_models_that_give_no_right_loss_are_refused(checkpoint, loss_of, tmp_path, refused):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    with refused("model"):
        loss_of(EngineConfig(model=tmp_path))
    empty = shutil.copytree(checkpoint.model, tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
    with refused("model"):
        loss_of(EngineConfig(model=empty))
    nan, small = (build_model("llama", TOKENIZER, layers=1) for _ in range(2))
    with torch.no_grad():
        nan.get_output_embeddings().weight[5] = math.nan
    ids = {"bos_token_id": None, "pad_token_id": TOKENIZER.pad_token_id, "eos_token_id": TOKENIZER.eos_token_id}
    config = Gemma2Config(vocab_size=len(TOKENIZER), **TINY, head_dim=32, final_logit_softcapping=0.1, **ids)
    for model in (nan, Gemma2ForCausalLM(config).eval()):  # the latter caps its logits
        with refused("model"):
            loss_of(model)
    small.resize_token_embeddings(50)
    with refused("tokenizer"):
        loss_of(small)


def peak_memory() -> int:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_does_not_grow_with_vocabulary_times_length(loss_of, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=150_000, **TINY, max_position_embeddings=4096, tie_word_embeddings=True)
    model = LlamaForCausalLM(config).eval()
    trace = Trace("t", "t", "1+1?", "x" * 2000)
    config, extra = save(model, tmp_path / "model"), {}
    for name in ("ours", "naive"):
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
        before = peak_memory()
        if name == "ours":
            assert loss_of(config, [trace], chunk_tokens=64).tokens == 2001
        else:
            with torch.no_grad():
                model(torch.tensor([response_ids(TOKENIZER, trace.response)])).logits.sum()
        extra[name] = peak_memory() - before
    logits = 4 * 150_000 * 2001  # bytes of the full float32 tensor: 1.2 GB
    assert extra["naive"] > 0.9 * logits  # the measurement sees such a tensor
    assert extra["ours"] < logits / 10  # a chunk of 64 positions is a thirtieth
