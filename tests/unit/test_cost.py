"""The cost of a sweep: hours and bytes against hand-made sums, and measured hours in their place."""

from typing import get_args

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_parquet, write_parquet
from quagmire_utils.core.paths import ROOT
from quagmire_utils.core.settings import ComputeSettings, ModelSettings, load_profile
from quagmire_utils.sweep.estimate import GPUS, estimate, parameters
from quagmire_utils.sweep.grid import plan

MICRO = ROOT / "results" / "mini-v1" / "bases" / "micro-llama"
QWEN = 596_049_920


def costs_of(name, overrides=None, folder=None):
    profile = load_profile(name, overrides)
    return estimate(profile, plan(profile), folder)


def test_parameters_are_those_of_the_real_model(tmp_path):
    assert parameters(ModelSettings(hub_id=str(MICRO))) == AutoModelForCausalLM.from_pretrained(MICRO).num_parameters()
    with pytest.raises(ParameterError) as raised:
        parameters(ModelSettings(hub_id=str(tmp_path / "absent")))
    assert raised.value.parameter == "model.hub_id"
    sizes = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
    sizes |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **sizes))
    assert parameters(load_profile("single_gpu").families[0].model) == model.num_parameters() == QWEN


def test_hours_add_up_and_follow_their_parameters():
    profile = load_profile("single_gpu")
    overhead, peak = profile.compute.overhead, GPUS["RTX4090"].flops
    base = costs_of("single_gpu")
    assert 10 < base["hours"].sum() < 25  # a day
    twice = {"evaluation.num_samples": 128, "evaluation.rl_num_samples": 32}
    for overrides, factors in (({"compute.overhead": 2 * overhead}, (2, 2)), (twice, (1, 2))):
        changed = costs_of("single_gpu", overrides)[["train", "sample"]]
        assert changed.to_numpy() == pytest.approx(base[["train", "sample"]].to_numpy() * factors)
    sft, rl = base.loc["qwen3-0.6b/random-1000x2"], base.loc["qwen3-0.6b/base/rl0"]
    assert sft["train"] == pytest.approx(overhead * 8 * QWEN * 1000 * 2 * (130 + 150) / (0.3 * peak) / 3600)
    assert sft["kept"] == pytest.approx(2 * QWEN + 1.5 * 693 * 64 * 300)
    rollouts = 40 * 32 * 8
    flops = 8 * rollouts * (400 + 150) / 0.3 + 2 * rollouts * 400 / profile.compute.sample_mfu
    assert rl["train"] == pytest.approx(overhead * QWEN * flops / peak / 3600)
    assert set(get_args(ComputeSettings.model_fields["gpu"].annotation)) == set(GPUS)


def test_finished_cells_correct_the_rest(tmp_path):
    records = read_parquet(ROOT / "results" / "mini-v1" / "cells.parquet")
    hours = records.set_index("cell")["seconds_total"] / 3600
    known = costs_of("mini-v1", folder=ROOT / "results" / "mini-v1")
    assert known["hours"].sum() == pytest.approx(hours.sum())
    assert set(known["basis"]) == {"measured"}
    # of one half of the RL runs, the other half
    runs = records[(records["kind"] == "rl") & (records["family"] == "micro-llama")]["cell"].tolist()
    write_parquet(records[~records["cell"].isin(runs[::2])].reset_index(drop=True), tmp_path / "cells.parquet")
    guessed = costs_of("mini-v1", folder=tmp_path).loc[runs[::2], "hours"].sum()
    assert guessed == pytest.approx(hours[runs[::2]].sum(), rel=0.2)
