"""SFT and RL through TRL: the loss is the one we measure, the reward is the one we grade, and a killed run goes on."""

import json

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from quagmire_utils import microlab
from quagmire_utils.config import ParameterError, RLSettings, SFTSettings
from quagmire_utils.generalization_loss import generalization_loss
from quagmire_utils.grading import Grade, Grader, Verdict
from quagmire_utils.rl import train_rl
from quagmire_utils.sft import tokenize_traces, train_sft

TRACES = microlab.make_traces((2, 3), 24, style="stepwise", source="test", seed=0)
PROBLEMS = microlab.make_mixed_problems((2,), 32, seed=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tokenizer = microlab.build_tokenizer()
    microlab.build_model("llama", tokenizer, hidden_size=32, layers=2, seed=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# --- SFT --------------------------------------------------------------------------------------------------------------


def test_training_loss_is_the_measured_loss(base, tmp_path):
    """One step over all traces at once: TRL's loss before the update is our nats per response token."""
    before = generalization_loss(str(base), None, TRACES, progress=False).nll
    summary = train_sft(
        base, TRACES, tmp_path / "out", SFTSettings(batch_size=24, learning_rate=1e-3, epochs=1), progress=False
    )
    assert summary["steps"] == 1
    assert summary["final_loss"] == pytest.approx(before, rel=1e-5)
    assert generalization_loss(str(tmp_path / "out"), None, TRACES, progress=False).nll < before


def test_micro_batches_give_the_same_checkpoint(base, tmp_path):
    for name, micro in (("whole", None), ("parts", 6)):
        settings = SFTSettings(batch_size=24, micro_batch_size=micro, learning_rate=1e-3, epochs=2, seed=3)
        train_sft(base, TRACES, tmp_path / name, settings, progress=False)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert max(float((whole[k] - parts[k]).abs().max()) for k in whole) < 1e-4


def test_sft_is_reproducible_and_records_what_it_did(base, tmp_path):
    settings = SFTSettings(batch_size=8, learning_rate=1e-3, epochs=2, seed=7)
    for name in ("one", "two"):
        train_sft(base, TRACES, tmp_path / name, settings, progress=False)
    assert equal(weights(tmp_path / "one"), weights(tmp_path / "two"))
    summary = json.loads((tmp_path / "one" / "sft.json").read_text())
    rows = tokenize_traces(TRACES, AutoTokenizer.from_pretrained(base))
    assert summary["steps"] == 6
    assert summary["tokens"] == 2 * sum(len(row["input_ids"]) for row in rows)
    assert not list(tmp_path.glob("*.training"))


def test_bf16_checkpoints_are_trained_in_float32_and_saved_in_bf16(base, tmp_path):
    """Steps of 1e-6 on weights of 0.06 vanish in bf16 arithmetic; in float32 they add up."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    start = {k: v.clone().float() for k, v in model.state_dict().items()}
    tokenizer = AutoTokenizer.from_pretrained(base)
    settings = SFTSettings(batch_size=8, learning_rate=1e-5, epochs=20, final_lr_fraction=1.0, warmup_fraction=0)
    train_sft(model, TRACES, tmp_path / "out", settings, tokenizer=tokenizer, progress=False)
    end = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert end.dtype == torch.bfloat16
    moved = [(end.state_dict()[k].float() - start[k]).abs().mean().item() for k in start if "mlp" in k]
    assert min(moved) > 1e-4  # sixty steps of 1e-5; in bf16 most of them would round to nothing


def test_only_response_tokens_are_trained_on(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    for row, trace in zip(tokenize_traces(TRACES, tokenizer), TRACES, strict=True):
        target = [token for token, mask in zip(row["input_ids"], row["completion_mask"], strict=True) if mask]
        assert tokenizer.decode(target) == trace.response + tokenizer.eos_token


def test_sft_refuses_what_cannot_train(base, tmp_path):
    with pytest.raises(ParameterError, match="traces is empty"):
        train_sft(base, [], tmp_path / "x", SFTSettings())
    with pytest.raises(ParameterError, match="max_length is 20"):
        train_sft(base, TRACES, tmp_path / "x", SFTSettings(max_length=20))
    with pytest.raises(ParameterError, match="micro_batch_size"):
        SFTSettings(batch_size=8, micro_batch_size=3)
    assert not (tmp_path / "x").exists()


# --- RL ---------------------------------------------------------------------------------------------------------------

RL = RLSettings(steps=4, checkpoints=2, prompts_per_step=2, rollouts=4, max_tokens=12, learning_rate=1e-3, seed=5)


def odd_length(responses, problems):
    """A verifiable reward that an untrained model meets now and then, unlike the real one."""
    assert len(responses) == len(problems)
    return [Grade(Verdict.CORRECT if len(r) % 2 else Verdict.WRONG, "") for r in responses]


def test_rl_keeps_its_checkpoints_and_its_curve(base, tmp_path):
    seen = []

    def grader(responses, problems):
        grades = odd_length(responses, problems)
        seen.append(sum(g.verdict == Verdict.CORRECT for g in grades) / len(grades))
        return grades

    curve = train_rl(base, PROBLEMS, tmp_path / "run", RL, grader=grader, progress=False)
    assert curve["step"].tolist() == [1, 2, 3, 4]
    assert curve["reward"].tolist() == pytest.approx(seen)
    assert curve["length"].between(1, 12).all()
    assert curve["entropy"].between(0, 6).all()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "run" / "curve.parquet"), curve)
    first, last = (weights(tmp_path / "run" / f"checkpoint-{step}") for step in (2, 4))
    assert not equal(first, last)
    assert not equal(weights(base), first)


def test_without_a_reward_nothing_is_learned(base, tmp_path):
    """Equal rewards mean no advantage; with no entropy bonus the weights must not move at all."""

    def never(responses, problems):
        return [Grade(Verdict.WRONG, "")] * len(responses)

    settings = RLSettings(**{**vars(RL), "entropy_coefficient": 0.0})
    train_rl(base, PROBLEMS, tmp_path / "run", settings, grader=never, progress=False)
    assert equal(weights(base), weights(tmp_path / "run" / "checkpoint-4"))


def test_a_run_that_breaks_goes_on_to_the_same_end(base, tmp_path):
    unbroken = train_rl(base, PROBLEMS, tmp_path / "unbroken", RL, grader=odd_length, progress=False)
    calls = []

    def breaks(responses, problems):
        calls.append(len(responses))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return odd_length(responses, problems)

    with pytest.raises(KeyboardInterrupt):
        train_rl(base, PROBLEMS, tmp_path / "broken", RL, grader=breaks, progress=False)
    assert (tmp_path / "broken" / "checkpoint-2").is_dir()
    assert not (tmp_path / "broken" / "rl.json").exists()
    torn = tmp_path / "broken" / "checkpoint-3"  # a save that the kill cut short
    torn.mkdir()
    (torn / "config.json").write_text("{")
    resumed = train_rl(base, PROBLEMS, tmp_path / "broken", RL, grader=odd_length, progress=False)
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), unbroken.drop(columns="seconds"))
    ends = [weights(tmp_path / name / "checkpoint-4") for name in ("unbroken", "broken")]
    assert equal(*ends)
    (tmp_path / "broken" / "rl.json").unlink()  # killed after the last checkpoint, before the end

    def unneeded(responses, problems):
        raise AssertionError("there is no step left to take")

    again = train_rl(base, PROBLEMS, tmp_path / "broken", RL, grader=unneeded, progress=False)
    pd.testing.assert_frame_equal(again, resumed)
    assert equal(ends[0], weights(tmp_path / "broken" / "checkpoint-4"))


def test_the_real_grader_is_the_reward(base, tmp_path):
    with Grader(workers=1) as grader:
        curve = train_rl(base, PROBLEMS, tmp_path / "run", RL, grader=grader.grade, progress=False)
    assert (curve["reward"] == 0).all()  # random weights do not box three right digits
    assert set(curve.columns) == {"step", "reward", "reward_std", "entropy", "length", "truncated", "seconds"}


def test_rl_refuses_what_cannot_train(base, tmp_path):
    with pytest.raises(ParameterError, match="problems is empty"):
        train_rl(base, [], tmp_path / "x", RL, grader=odd_length)
    too_long = RLSettings(**{**vars(RL), "max_tokens": microlab.CONTEXT_LENGTH})
    with pytest.raises(ParameterError, match="context"):
        train_rl(base, PROBLEMS, tmp_path / "x", too_long, grader=odd_length)
    for name, value in (("rollouts", 1), ("checkpoints", 9), ("steps", 0), ("micro_batch_size", 3)):
        with pytest.raises(ParameterError, match=f"rl.{name}"):
            RLSettings(**{**vars(RL), name: value})
