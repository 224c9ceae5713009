"""SFT and RL: the loss is the one we measure, the reward is the one we grade, the compact backend is TRL's equal."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, TrainerCallback

from quagmire_utils.core.settings import RLSettings, SFTSettings
from quagmire_utils.engines import EngineConfig
from quagmire_utils.evaluation.generalization_loss import generalization_loss
from quagmire_utils.grading import Grade, Verdict
from quagmire_utils.training import microlab
from quagmire_utils.training.grpo import compact, make_environment, make_trainer, train_rl, train_trl
from quagmire_utils.training.sft import tokenize_traces, train_sft

TRACES = microlab.make_traces((2, 3), 24, styles=["stepwise"], source="test", seed=0)
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


def test_training_loss_is_the_measured_loss(base, tmp_path):
    """One step over all traces at once: TRL's loss before the update is our nats per response token."""
    before = generalization_loss(EngineConfig(model=base), TRACES, progress=False).nll
    summary = train_sft(base, TRACES, tmp_path / "out", SFTSettings(batch_size=24, learning_rate=1e-3, epochs=1))
    assert summary["steps"] == 1
    assert summary["final_loss"] == pytest.approx(before, rel=1e-5)
    assert generalization_loss(EngineConfig(model=tmp_path / "out"), TRACES, progress=False).nll < before


def test_sft_is_reproducible_whatever_the_micro_batches_and_records_what_it_did(base, tmp_path):
    settings = SFTSettings(batch_size=24, learning_rate=1e-3, epochs=2, seed=3)
    for name, micro in (("one", None), ("two", None), ("parts", 6)):
        train_sft(base, TRACES, tmp_path / name, settings.replace(micro_batch_size=micro))
    one, two, parts = (weights(tmp_path / name) for name in ("one", "two", "parts"))
    assert equal(one, two)
    assert max(float((one[k] - parts[k]).abs().max()) for k in one) < 1e-4
    summary = json.loads((tmp_path / "one" / "sft.json").read_text())
    rows = tokenize_traces(TRACES, AutoTokenizer.from_pretrained(base))
    assert summary["steps"] == 2
    assert summary["tokens"] == 2 * sum(len(row["input_ids"]) for row in rows)
    assert not list(tmp_path.glob("*.writing"))


def test_bf16_checkpoints_are_trained_in_float32_and_saved_in_bf16(base, tmp_path):
    """Steps of 1e-6 on weights of 0.06 vanish in bf16 arithmetic; in float32 they add up."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    start = {k: v.clone().float() for k, v in model.state_dict().items()}
    tokenizer = AutoTokenizer.from_pretrained(base)
    settings = SFTSettings(batch_size=8, learning_rate=1e-5, epochs=20, final_lr_fraction=1.0, warmup_fraction=0)
    train_sft(model, TRACES, tmp_path / "out", settings, tokenizer=tokenizer)
    end = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert end.dtype == torch.bfloat16
    moved = [(end.state_dict()[k].float() - start[k]).abs().mean().item() for k in start if "mlp" in k]
    assert min(moved) > 1e-4  # sixty steps of 1e-5; in bf16 most of them would round to nothing


def test_only_response_tokens_are_trained_on(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    for row, trace in zip(tokenize_traces(TRACES, tokenizer), TRACES, strict=True):
        target = [token for token, mask in zip(row["input_ids"], row["completion_mask"], strict=True) if mask]
        assert tokenizer.decode(target) == trace.response + tokenizer.eos_token


def test_sft_refuses_what_cannot_train(base, tmp_path, refused):
    with refused("traces"):
        train_sft(base, [], tmp_path / "x", SFTSettings())
    for part in ("question", "response"):
        with refused(part):
            train_sft(base, [dataclasses.replace(TRACES[0], **{part: " \n"})], tmp_path / "x", SFTSettings())
    with refused("sft.max_length"):
        train_sft(base, TRACES, tmp_path / "x", SFTSettings(max_length=20))
    assert not (tmp_path / "x").exists()


RL = RLSettings(steps=4, checkpoints=2, prompts_per_step=2, rollouts=4, max_tokens=12, learning_rate=1e-3, seed=5)
COMPACT = RL.replace(backend="compact", steps=10, checkpoints=5, entropy_coefficient=0.0)


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

    curve = train_rl(base, PROBLEMS, tmp_path / "run", RL, grader=grader)
    assert curve["step"].tolist() == [1, 2, 3, 4]
    assert curve["reward"].tolist() == pytest.approx(seen)
    assert curve["length"].between(1, 12).all()
    assert curve["entropy"].between(0, 6).all()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "run" / "curve.parquet"), curve)
    first, last = (weights(tmp_path / "run" / f"checkpoint-{step}") for step in (2, 4))
    assert not equal(first, last)
    assert not equal(weights(base), first)


@pytest.mark.parametrize("settings", [RL.replace(entropy_coefficient=0.0), COMPACT], ids=["trl", "compact"])
def test_without_a_reward_nothing_is_learned(base, tmp_path, settings):
    """Equal rewards mean no advantage; with no entropy bonus the weights must not move at all."""

    def never(responses, problems):
        return [Grade(Verdict.WRONG, "")] * len(responses)

    curve = train_rl(base, PROBLEMS, tmp_path / "run", settings, grader=never)
    assert equal(weights(base), weights(tmp_path / "run" / f"checkpoint-{settings.steps}"))
    assert curve["entropy"].isna().all() == (settings is COMPACT)  # it reads nothing then


@pytest.mark.parametrize("settings", [RL, COMPACT.replace(steps=4, checkpoints=2)], ids=["trl", "compact"])
def test_a_run_that_breaks_goes_on_to_the_same_end(base, tmp_path, settings):
    unbroken = train_rl(base, PROBLEMS, tmp_path / "unbroken", settings, grader=odd_length)
    calls = []

    def breaks(responses, problems):
        calls.append(len(responses))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return odd_length(responses, problems)

    with pytest.raises(KeyboardInterrupt):
        train_rl(base, PROBLEMS, tmp_path / "broken", settings, grader=breaks)
    assert (tmp_path / "broken" / "checkpoint-2").is_dir()
    assert not (tmp_path / "broken" / "rl.json").exists()
    torn = tmp_path / "broken" / "checkpoint-3"  # a save that the kill cut short
    torn.mkdir()
    (torn / "config.json").write_text("{")
    resumed = train_rl(base, PROBLEMS, tmp_path / "broken", settings, grader=odd_length)
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), unbroken.drop(columns="seconds"))
    ends = [weights(tmp_path / name / "checkpoint-4") for name in ("unbroken", "broken")]
    assert equal(*ends)
    (tmp_path / "broken" / "rl.json").unlink()  # killed after the last checkpoint, before the end
    again = train_rl(base, PROBLEMS, tmp_path / "broken", settings, grader=None)  # no step is left to grade
    pd.testing.assert_frame_equal(again, resumed)
    assert equal(ends[0], weights(tmp_path / "broken" / "checkpoint-4"))


def test_rl_refuses_a_backend_that_cannot(base, tmp_path, refused):
    windowed = AutoModelForCausalLM.from_pretrained(base).config.to_dict() | {"model_type": "mistral"}
    config = MistralConfig(**windowed | {"sliding_window": 16})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "windowed")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "windowed")
    with refused("rl.backend"):
        train_rl(tmp_path / "windowed", PROBLEMS, tmp_path / "x", COMPACT, grader=odd_length)
    one_step = RL.replace(steps=1, checkpoints=1)
    train_rl(base, PROBLEMS, tmp_path / "run", one_step, grader=odd_length)
    with refused("rl.backend"):
        train_rl(base, PROBLEMS, tmp_path / "run", COMPACT, grader=odd_length)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """Models whose rollouts share prefixes, repeat each other, and end, or are cut off, at many lengths."""
    tokenizer = microlab.build_tokenizer()
    folders = {}
    for architecture in ("llama", "qwen3"):
        folders[architecture] = tmp_path_factory.mktemp(architecture)
        model = microlab.build_model(architecture, tokenizer, hidden_size=64, layers=2, seed=2)
        with torch.no_grad():
            model.model.norm.weight.mul_(8)  # a sharp policy
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(5, 65)]
        model.save_pretrained(folders[architecture])
        tokenizer.save_pretrained(folders[architecture])
    return folders


@dataclasses.dataclass(frozen=True)
class Recorder:
    """An environment that notes what was asked, answered and rewarded."""

    inner: object
    steps: list = dataclasses.field(default_factory=list)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def rollouts(self, chosen, step):
        self.steps.append({"chosen": list(chosen), "groups": self.inner.rollouts(chosen, step)})
        return self.steps[-1]["groups"]

    def rewards(self, chosen, answers):
        self.steps[-1]["rewards"] = self.inner.rewards(chosen, answers)
        return self.steps[-1]["rewards"]


MIXED = microlab.make_mixed_problems((2, 3, 5), 8, seed=4)  # prompts of three lengths
UNSOLVABLE = {MIXED[0].question}


def second_token(responses, problems):
    """About half of the answers are right, except for one problem, whose groups have no spread."""
    return [
        Grade(Verdict.CORRECT if sum(map(ord, r[:3])) % 2 and p.question not in UNSOLVABLE else Verdict.WRONG, "")
        for r, p in zip(responses, problems, strict=True)
    ]


def environment_of(folder, **changes):
    settings = RLSettings(
        **{"steps": 1, "checkpoints": 1, "prompts_per_step": 8, "rollouts": 6, "max_tokens": 16, "seed": 5} | changes
    )
    return Recorder(make_environment(folder, MIXED, settings, second_token))


def gradients(policy):
    return {name: p.grad.clone() for name, p in policy.named_parameters()}


def one_trl_step(environment, output):
    """The loss that TRL logs and the gradients that it hands to its optimizer, unclipped."""
    seen = {}

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **_):
            seen.update(gradients(environment.engine.module))

    trainer = make_trainer(environment, output)
    trainer.add_callback(Look())
    trainer.train()
    return trainer.state.log_history[0], seen


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {}),
        ("llama", {"entropy_coefficient": 0.05}),
        ("llama", {"temperature": 0.7, "micro_batch_size": 12}),
        ("qwen3", {"entropy_coefficient": 0.001}),
    ],
)
def test_compact_loss_and_gradients_are_those_of_trl(chatty, tmp_path, monkeypatch, architecture, changes):
    changes = {"entropy_coefficient": 0.0, "max_grad_norm": 1e9} | changes
    theirs = environment_of(chatty[architecture], **changes)
    log, expected = one_trl_step(theirs, tmp_path)
    (step,) = theirs.steps
    rewards = np.array(step["rewards"]).reshape(8, 6)
    lengths = {len(ids) for group in step["groups"] for ids in group}
    assert log["completions/clipped_ratio"] > 0  # the batch has all that could differ
    assert len(lengths) > 2
    assert {0.0} < set(rewards.std(1))
    assert any(len({tuple(ids) for ids in group}) < 6 for group in step["groups"])

    ours = environment_of(chatty[architecture], **changes)
    prompts = [ours.prompts[problem].token_ids for problem in step["chosen"]]
    tokens = sum(len(ids) for group in step["groups"] for ids in group)
    keep_all = ours.settings.entropy_coefficient > 0
    for max_nodes, per_pass in ((1024, 4096), (40, 100)):  # whole groups in one pass, then cut into many
        monkeypatch.setattr(compact, "_CPU_NODES", per_pass)
        trees = [
            tree
            for prompt, group, of_group in zip(prompts, step["groups"], compact.advantages(rewards), strict=True)
            if keep_all or of_group.any()
            for tree in compact.grow_trees(prompt, group, of_group, max_nodes)
        ]
        ours.engine.module.zero_grad()
        loss, entropy = compact.backward(ours.engine.module, trees, tokens, ours.settings)
        assert loss == pytest.approx(log["loss"], abs=1e-5)
        largest = max(float(g.abs().max()) for g in expected.values())
        found = gradients(ours.engine.module)
        assert found.keys() == expected.keys()
        assert largest > 1e-3
        assert max(float((found[k] - expected[k]).abs().max()) for k in expected) < 1e-5 * largest
        if keep_all:
            assert entropy == pytest.approx(log["entropy"], rel=1e-5)


def test_compact_and_trl_update_alike(chatty, tmp_path, monkeypatch):
    """Four steps of warm-up, clipping and Adam from the same seeds, the problems in TRL's order."""
    settings = {"steps": 4, "prompts_per_step": 4, "learning_rate": 1e-3, "warmup_steps": 2, "max_grad_norm": 0.05}
    theirs = environment_of(chatty["llama"], **settings, entropy_coefficient=0.0)
    log = train_trl(theirs, tmp_path / "trl", None)
    order = [step["chosen"] for step in theirs.steps]
    monkeypatch.setattr(compact, "draw_problems", lambda count, settings, step: order[step])
    ours = environment_of(chatty["llama"], **settings, entropy_coefficient=0.0)
    history = compact.train(ours, tmp_path / "compact", None)
    assert [step["groups"] for step in ours.steps] == [step["groups"] for step in theirs.steps]
    for name in ("reward", "reward_std", "completions/mean_length", "completions/clipped_ratio"):
        assert [e[name] for e in history] == pytest.approx([e[name] for e in log if name in e]), name
    start, one, other = (
        weights(f) for f in (chatty["llama"], tmp_path / "trl/checkpoint-4", tmp_path / "compact/checkpoint-4")
    )
    moved = max(float((one[k] - start[k]).abs().max()) for k in one)
    assert moved > 1e-3
    assert max(float((one[k] - other[k]).abs().max()) for k in one) < 1e-3 * moved


def test_the_rate_of_compact_falls_linearly(base, tmp_path):
    settings = {"backend": "compact", "entropy_coefficient": 0.0, "warmup_steps": 1, "final_lr_fraction": 0.2}
    ours = environment_of(base, steps=4, learning_rate=1e-3, **settings)
    optimizer = torch.optim.AdamW(ours.engine.module.parameters(), lr=1.0)
    rates = []
    for step in range(4):
        compact.take_step(ours, optimizer, step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.0, 0.8e-3, 0.6e-3, 0.4e-3])
