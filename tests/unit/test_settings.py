"""Settings: what is refused, under which name; what enters digests; the shipped profiles."""

import shutil

import pandas as pd
import pytest
from example_cells import TINY, in_family

from quagmire_utils import sweep
from quagmire_utils.core import files
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json
from quagmire_utils.core.paths import ROOT
from quagmire_utils.core.settings import RLSettings, explicit, load_profile
from quagmire_utils.sweep.estimate import trace_tokens

LLAMA = "families.a.pretraining"


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def test_a_wrong_value_is_refused_by_its_dotted_name(tiny, refused):
    for override, parameter in (
        ({"rl.steps": "3"}, "rl.steps"),
        ({"rl.checkpoints": 3}, "rl.checkpoints"),
        ({"rl.checkpoint_ratio": 1e300, "rl.steps": 9, "rl.checkpoints": 3}, "rl.checkpoint_ratio"),
        ({"rl.backend": "trl", "rl.final_lr_fraction": 0.1}, "rl.final_lr_fraction"),
        ({"rl.backend": "compact", "rl.kl_coefficient": 0.1}, "rl.kl_coefficient"),
        ({"rl.rollout_engine": "vllm", "rl.backend": "verl"}, "rl.rollout_engine"),
        ({"rl.stepz": 3}, "rl.stepz"),
        ({"evaluation.k": 9}, "evaluation.k"),
        ({"evaluation.max_model_len": 16}, "evaluation.max_tokens"),
        ({"budgets": {"low": 5, "high": 3}}, "budgets"),
        (in_family("model", {"hub_id": "some/model", "revision": "main"}), "families.a.model.revision"),
        (in_family("sources", {"main": {"dataset": "x"}}), "families.a.sources.main.dataset"),
        (in_family("pretraining", {"misconceptions": {"+": [0.5, 0.2]}}), f"{LLAMA}.misconceptions.+"),
        (in_family("candidates", [{"selection": "random"}]), "families.a.candidates[0].n_examples"),
        (in_family("candidates", [{"n_examples": 400}]), "families.a.candidates.random-400x1.n_examples"),
        (in_family("candidates", [{"n_examples": 4, "source": "x"}]), "families.a.candidates.random-4x1-x.source"),
        (in_family("candidates", 2 * [{"n_examples": 4}]), "families.a.candidates"),
    ):
        with refused(parameter) as raised:
            load_profile(tiny, override)
        assert str(raised.value).startswith(parameter)


def test_numbers_may_be_text_but_a_profile_takes_no_shipped_name(tiny, refused):
    assert load_profile(tiny, {"sft.learning_rate": "1e-5"}).sft.learning_rate == 1e-5  # as YAML reads it
    tiny.write_text(TINY.replace("name: tiny", "name: smoke"))
    with refused("name"):
        load_profile(tiny)
    with pytest.raises(ParameterError, match="smoke"):
        load_profile("smke")


DEEP, TWICE = "a: " + "[" * 3000, "a: {b: 1, c: 2, b: 3}"


@pytest.mark.parametrize(
    "text", ["", "- a\n- b", "a: [1", "a: !!python/object:os.system x", "a: 2026-13-45", DEEP, TWICE]
)
def test_files_that_are_no_profile_are_refused(tmp_path, text, refused):
    (tmp_path / "x.yaml").write_text(text)
    with refused("profile"):
        load_profile(tmp_path / "x.yaml", {"rl.steps": 3})


def test_checkpoints_are_spaced_evenly_or_geometrically():
    settings = RLSettings(steps=256, checkpoints=6)
    assert settings.checkpoint_steps == (43, 85, 128, 171, 213, 256)
    assert settings.replace(checkpoint_ratio=2).checkpoint_steps == (8, 16, 32, 64, 128, 256)


def test_settings_at_their_defaults_do_not_enter_digests():
    settings = load_profile("smoke", {"rl.steps": 100, "digits": 3})
    plain = explicit(settings)
    assert "steps" not in plain["rl"]  # 100 is the default
    assert "digits" not in plain
    assert plain["families"][0]["candidates"][1] == {"n_examples": 64}
    assert explicit(settings.replace(digits=4))["digits"] == 4


@pytest.mark.parametrize(
    ("name", "cells", "digest"),
    [
        ("smoke", 24, "c32b5ada350ee96b"),
        ("mini", 240, "c845a8ebaef7955c"),
        ("mini-choice", 25, "3f4be0e76c4b709f"),
        ("mini-pilot", 45, "7a5dfd8dedec2571"),
        ("mini-v1-pilot", 54, "dc9a02445313b130"),
        ("mini-v1", 249, "04d5668d534e10ba"),
        ("single_gpu", 24, "40a4154c797071e3"),
        ("paper", 335, "d7a3156274563fe1"),
    ],
)
def test_digests_of_the_shipped_profiles_stay(name, cells, digest):
    digests = [cell.digest for cell in sweep.plan(load_profile(name))]
    assert (len(digests), files.digest(digests)) == (cells, digest)


@pytest.mark.parametrize("name", ["mini", "mini-choice", "mini-pilot", "mini-v1", "mini-v1-pilot"])
def test_records_of_the_shipped_studies_stay_valid(name):
    profile, folder = load_profile(name), ROOT / "results" / name
    cells = sweep.plan(profile)
    assert sweep.finished_cells(folder, cells) == {cell.id for cell in cells}
    assert read_json(folder / "manifest.json")["settings_digest"] == files.digest(explicit(profile))


def test_records_of_another_profile_are_not_replaced(tmp_path, refused):
    shutil.copy(ROOT / "results" / "mini" / "manifest.json", tmp_path)
    profile = load_profile("smoke")
    cell = sweep.plan(profile)[0].id
    for act in (sweep.collect, sweep.run_sweep, lambda *given: sweep.run_one(*given, cell)):
        with refused("results"):
            act(profile, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_paper_profile_has_the_printed_settings():
    profile = load_profile("paper")
    printed = pd.read_csv(ROOT / "results" / "paper" / "settings.csv").set_index("name")["value"].astype(float)
    same = "sft_learning_rate sft_batch_size rl_learning_rate rl_rollouts rl_temperature rl_kl_coefficient rl_epochs"
    same += " rl_entropy_coefficient evaluation_temperature"
    parts = [(name, *name.split("_", 1)) for name in same.split()]
    ours = {name: getattr(getattr(profile, part), field) for name, part, field in parts} | {
        "rl_batch_size": profile.rl.prompts_per_step,
        "rl_runs_at_least": profile.rl.runs,
        "rl_checkpoints_at_least": profile.rl.checkpoints,
        "gpus_per_node": profile.compute.gpus,
        "benchmarks": len(profile.benchmarks),
        "pass1_repetitions": profile.evaluation.rl_num_samples,
        "large_k": profile.evaluation.k,
        "pass64_repetitions": profile.evaluation.num_samples,
        "budget_low_below": profile.budgets["low"] / 1e9,
        "budget_medium_up_to": profile.budgets["medium"] / 1e9,
        "budget_high_up_to": profile.budgets["high"] / 1e9,
    }
    assert {name: float(printed[name]) for name in ours} == ours
    assert profile.sft.max_length == profile.evaluation.max_model_len == 8 * 1024
    assert (profile.sft.backend, profile.rl.backend, profile.evaluation.engine) == ("llamafactory", "verl", "vllm")
    for family, fitted in zip(profile.families, ([16, 17], [10, 12]), strict=False):  # Tables 5, 7 and 6, 9
        compared = [c.scenario.split("+") for c in family.candidates if c.n_examples]
        assert [sum(name in scenarios for scenarios in compared) for name in ("dataset", "instance")] == fitted
    for family in profile.families:  # all budgets of Tables 8 and 10 are within 20B tokens
        for c in family.candidates[1:]:
            assert c.n_examples * c.epochs * trace_tokens(profile, family, c.source, c.selection) < 20e9
