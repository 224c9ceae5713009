"""Cost: parameters and FLOPs against the real models and torch's own counter, rates against closed forms, hours."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_parquet, write_parquet
from quagmire_utils.core.paths import ROOT
from quagmire_utils.core.settings import ComputeSettings, ModelShape, load_profile
from quagmire_utils.sweep import cost
from quagmire_utils.sweep.estimate import estimate, gpu_memory
from quagmire_utils.sweep.grid import plan

PAPER = {family.name: family.model.shape for family in load_profile("paper").families}
LLAMA = PAPER["llama3-8b"]
QWEN = load_profile("single_gpu").families[0].model.shape
MICRO = ModelShape(layers=2, hidden_size=64, intermediate_size=96, heads=4, kv_heads=2, head_dim=16, vocabulary=120)


NAMES = {"layers": "num_hidden_layers", "heads": "num_attention_heads", "kv_heads": "num_key_value_heads"}
NAMES |= {"vocabulary": "vocab_size", "tied_embeddings": "tie_word_embeddings"}


def config_of(architecture, shape):
    return AutoConfig.for_model(architecture, **{NAMES.get(name, name): value for name, value in shape})


@pytest.mark.parametrize(
    ("architecture", "shape", "published"),
    [
        ("llama", LLAMA, 8_030_261_248),  # as the hub shows them
        ("mistral", PAPER["mistral-nemo-12b"], 12_247_782_400),
        ("qwen3", PAPER["qwen3-4b"], None),
        ("qwen3", QWEN, None),
    ],
)
def test_parameters_are_those_of_the_real_model(architecture, shape, published):
    config = config_of(architecture, shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    real = sum(p.numel() for p in model.parameters())
    inside = 2 * shape.layers * shape.head_dim if architecture == "qwen3" else 0  # its norms of queries and keys
    assert cost.parameters(shape) + inside == real
    assert published is None or published == real
    assert cost.shape_of(config) == shape


def test_flops_are_those_that_torch_counts():
    length = 24
    model = AutoModelForCausalLM.from_config(config_of("llama", MICRO), attn_implementation="eager").float()
    ids = torch.randint(0, MICRO.vocabulary, (1, length))
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(ids)
    # eager attention computes all pairs; a causal one needs those at or before each position
    pairs, causal = length**2, length * (length + 1) / 2
    each = 4 * MICRO.layers * MICRO.heads * MICRO.head_dim
    assert forward.get_total_flops() == cost.sequence_flops(MICRO, length) + each * (pairs - causal)
    with FlopCounterMode(display=False) as training:
        model(ids, labels=ids).loss.backward()
    assert training.get_total_flops() == 3 * forward.get_total_flops()


def test_memory_of_training_is_what_torch_keeps():
    """The bytes that autograd holds for backward, without their double counting, against the formula's."""
    shape = MICRO.replace(layers=4, vocabulary=4096)
    tokens, held = 512, {}
    model = AutoModelForCausalLM.from_config(config_of("qwen3", shape), attn_implementation="sdpa").float()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    ids = torch.randint(0, shape.vocabulary, (1, tokens))

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def kept():
        held.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(ids).logits.float().logsumexp(-1).sum()  # a loss that keeps the logits once
        return sum(held.values())

    states = cost.ADAM_BYTES * cost.parameters(shape)
    formula = cost.training_bytes(shape, tokens, logits=False, recompute=False) - states
    # here products are float32, where training computes them in bf16: between once and twice the formula
    assert formula < kept() - 4 * tokens * shape.vocabulary < 2 * formula
    assert cost.training_bytes(shape, tokens, gpus=8) == pytest.approx(
        states / 8 + cost.training_bytes(shape, tokens) - states
    )


def test_training_flops_scale_as_they_should():
    once = cost.training_flops(LLAMA, tokens=8e6, length=4000, recompute=False)
    assert once == pytest.approx(3 * 2000 * cost.sequence_flops(LLAMA, 4000))
    assert cost.training_flops(LLAMA, 8e6, 4000) == pytest.approx(once * 4 / 3)
    # attention apart, 6 FLOPs for each parameter that a token meets
    met = cost.parameters(LLAMA) - LLAMA.vocabulary * LLAMA.hidden_size - LLAMA.hidden_size * (2 * LLAMA.layers + 1)
    assert cost.training_flops(LLAMA, 1e6, 1, recompute=False) == pytest.approx(6e6 * met, rel=1e-4)


def test_decoding_rates_have_their_closed_forms():
    gpu = cost.Gpu(flops=1e30, memory=80e9, bandwidth=2e12)
    # short answers: 256 sequences, and all the time goes into reading weights, keys and values
    context = 100 + 200 / 2
    reads = cost.weight_bytes(LLAMA) + 256 * context * cost.kv_bytes(LLAMA)
    assert cost.decode_rate(LLAMA, gpu, prompt=100, answer=200) == pytest.approx(256 * 2e12 / reads)
    # long ones: as many as fit, so that each step reads the share of the memory that is used
    room = 0.9 * 80e9 - cost.weight_bytes(LLAMA)
    fitting = room / (4100 * cost.kv_bytes(LLAMA))
    assert cost.decode_rate(LLAMA, gpu, prompt=100, answer=8000) == pytest.approx(fitting * 2e12 / (0.9 * 80e9))
    # memory without bounds: what is left is arithmetic
    slow = replace(gpu, flops=1e14, bandwidth=1e30)
    assert cost.decode_rate(LLAMA, slow, prompt=100, answer=200) == pytest.approx(
        0.5e14 / cost.forward_flops(LLAMA, context)
    )
    assert cost.kv_bytes(LLAMA) == 131_072  # 128 KiB a token, as is known of Llama 3 8B


def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(ParameterError, match=r"16\.1 GB of weights") as raised:
        cost.decode_rate(LLAMA, cost.Gpu(1e14, 16e9, 1e12), prompt=10, answer=10)
    assert raised.value.parameter == "compute.gpu"


# --- hours of a sweep -------------------------------------------------------------------------------------------------


def costs_of(name, overrides=None, folder=None):
    profile = load_profile(name, overrides)
    return estimate(profile, plan(profile), folder)


def test_hours_add_up_and_follow_their_parameters():
    overhead = load_profile("single_gpu").compute.overhead
    base = costs_of("single_gpu")
    assert 10 < base["hours"].sum() < 25  # a day
    twice = {"evaluation.num_samples": 128, "evaluation.rl_num_samples": 32}
    for overrides, factors in (({"compute.overhead": 2 * overhead}, (2, 2, 2)), (twice, (1, 2, 1))):
        parts = ["train", "sample", "score"]
        assert costs_of("single_gpu", overrides)[parts].to_numpy() == pytest.approx(base[parts].to_numpy() * factors)
    one = base.loc["qwen3-0.6b/random-1000x2"]
    trained = cost.training_flops(QWEN, 1000 * 2 * (130 + 150), 130 + 150)
    assert one["train"] == pytest.approx(overhead * trained / (0.3 * 165e12) / 3600)
    assert one["kept"] == pytest.approx(cost.weight_bytes(QWEN) + 1.5 * 693 * 64 * 300)


def test_rollouts_have_the_memory_that_the_profile_leaves_them():
    """Half the cache, half the sequences, about half the speed; and TRL's updates compute on padding."""
    key = "qwen3-0.6b/base/rl0"
    train = [costs_of("single_gpu", {"rl.vllm_memory": share}).loc[key, "train"] for share in (0.1, 0.2, 0.4)]
    assert train[0] > 1.5 * train[1] > 1.5 * train[2]
    short, long = (costs_of("single_gpu", {"rl.max_tokens": most}).loc[key, "train"] for most in (512, 1024))
    assert long > short


def test_the_shipped_profiles_fit_their_gpus():
    for gpu in get_args(ComputeSettings.model_fields["gpu"].annotation):
        assert ComputeSettings(gpu=gpu).gpu in cost.GPUS
    for name in ("single_gpu", "paper"):
        profile = load_profile(name)
        memory = cost.GPUS[profile.compute.gpu].memory
        assert all(need < 0.8 * memory for family in profile.families for need in gpu_memory(profile, family).values())
    # 16 bytes a parameter, and the float32 logits of 16 traces of 1,174 tokens, twice
    large = load_profile("single_gpu", {"sft.micro_batch_size": 16})
    assert gpu_memory(large, large.families[0])["SFT"] == pytest.approx(9.6e9 + 16 * 1174 * 151936 * 8, rel=0.15)


def test_finished_cells_correct_the_rest(tmp_path):
    records = read_parquet(ROOT / "results" / "mini" / "cells.parquet")
    hours = records.set_index("cell")["seconds_total"] / 3600
    known = costs_of("mini", folder=ROOT / "results" / "mini")
    assert known["hours"].sum() == pytest.approx(hours.sum())
    assert set(known["basis"]) == {"measured"}
    # of one half of the RL runs, the other half
    runs = records[(records["kind"] == "rl") & (records["family"] == "micro-llama")]["cell"].tolist()
    write_parquet(records[~records["cell"].isin(runs[::2])].reset_index(drop=True), tmp_path / "cells.parquet")
    guessed = costs_of("mini", folder=tmp_path).loc[runs[::2], "hours"].sum()
    assert guessed == pytest.approx(hours[runs[::2]].sum(), rel=0.2)
