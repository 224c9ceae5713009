"""What the real verl of `./reproduce.sh setup verl` makes of our files: configuration, tokens, a step of its GRPO."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from back_ends import PROBLEMS, RL, backend_python, chat, weights_of, with_bos  # noqa: F401

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json
from quagmire_utils.core.settings import RLSettings
from quagmire_utils.data.prompts import render
from quagmire_utils.engines import load_tokenizer
from quagmire_utils.training.backends import verl
from quagmire_utils.training.backends.runs import LOG

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def verl_python() -> Path:
    return backend_python("verl")


def job_of(folder: Path, verl_python: Path, *overrides: str) -> subprocess.CompletedProcess:
    """What verl makes of the overrides of a run: its whole configuration, in YAML."""
    environment = {**os.environ, "QUAGMIRE_VERL_PYTHON": str(verl_python), "OMP_NUM_THREADS": "1"}
    command = ["bash", str(folder / "run.sh"), *overrides, "--cfg", "job"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_verl_accepts_every_override_and_refuses_a_wrong_one(chat, tmp_path, verl_python):
    settings = RL.replace(micro_batch_size=2, epochs=3)
    folder = verl.write(chat, PROBLEMS, tmp_path / "a folder, of = signs", settings, gpus=2)
    done = job_of(folder, verl_python)
    assert done.returncode == 0, done.stderr
    job = yaml.safe_load(done.stdout)
    assert float(job["actor_rollout_ref"]["actor"]["optim"]["lr"]) == 1e-6
    assert job["actor_rollout_ref"]["actor"]["entropy_coeff"] == 0.001
    assert job["actor_rollout_ref"]["rollout"]["n"] == 4
    assert job["trainer"]["total_training_steps"] == 9  # 3 epochs of 3 batches
    assert job["data"]["train_files"] == str(folder.resolve() / "train.parquet")
    assert job["actor_rollout_ref"]["model"]["custom_chat_template"] == "{{ messages[0].content }}"
    refused = job_of(folder, verl_python, "actor_rollout_ref.rollout.rollouts=16")
    assert refused.returncode != 0
    assert "Could not override 'actor_rollout_ref.rollout.rollouts'" in refused.stderr


@pytest.mark.parametrize("base", ["chat", "with_bos"])
def test_verl_makes_the_tokens_that_sampling_uses_and_a_difference_is_refused(base, request, tmp_path, verl_python):
    model = request.getfixturevalue(base)
    folder = verl.write(model, PROBLEMS, tmp_path / "run", RL, gpus=2)
    verl.check(folder)
    assert "every token is the one that sampling uses; reward works" in (folder / LOG).read_text()
    if base == "with_bos":
        expected = read_json(folder / "prompts.json")
        expected["rows"][7][1] = "0" * 12
        (folder / "prompts.json").write_text(json.dumps(expected))
        command = [verl_python, "check_run.py", ".job.yaml", "prompts.json", "train.parquet"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 1
        assert "verl makes other tokens of problem p7 than sampling does" in done.stderr


PLATFORM = """
import contextlib, types
import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

torch_cpu = types.SimpleNamespace(**{name: getattr(torch.cpu, name) for name in dir(torch.cpu) if name[0] != "_"})
for name in ("memory_reserved", "memory_allocated", "max_memory_allocated", "max_memory_reserved"):
    setattr(torch_cpu, name, lambda *_: 0)
torch_cpu.mem_get_info = lambda *_: (1 << 33, 1 << 34)
torch_cpu.empty_cache = lambda: None
torch_cpu.get_device_name = lambda: "CPU"

class CPU(PlatformBase):
    device_name = vendor_name = "cpu"
    device_module = torch_cpu
    is_available = lambda self: True
    current_device = lambda self: torch.device("cpu")
    device_count = lambda self: 1
    communication_backend_name = lambda self: "gloo"
    visible_devices_envvar = lambda self: "CUDA_VISIBLE_DEVICES"
    ray_resource_name = lambda self: "CPU"
    ray_noset_envvars = lambda self: []
    is_ipc_supported = lambda self: False
    cudart = lambda self: None
    nvtx_range = lambda self, message: contextlib.nullcontext()
    get_device_capability = lambda self, device=0: (None, None)
    manual_seed = manual_seed_all = lambda self, seed: torch.manual_seed(seed)
    set_device = set_allocator_settings = lambda self, value: None
    synchronize = empty_cache = profiler_start = profiler_stop = lambda self, *_: None

PlatformRegistry.register(platform="cpu")(CPU)
"""

# One step as verl's trainer takes it (`_compute_old_log_prob`, `_compute_advantage`, `_update_actor`), on what a worker
# of two has of the batch.
STEP = """
import sys
import numpy as np, torch, torch.distributed as dist
dist.init_process_group("gloo")
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl.workers.utils.padding import left_right_2_no_padding, no_padding_2_padding

job, file, target = sys.argv[1:]
config, rank = OmegaConf.load(job), dist.get_rank()
actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
worker = ActorRolloutRefWorker(config=config.actor_rollout_ref, role="actor")
worker.init_model()
tensors = torch.load(file)
groups = np.arange(len(tensors["responses"])) // rollout.n
tensors["advantages"], _ = compute_grpo_outcome_advantage(
    tensors.pop("rewards"), tensors["response_mask"], groups,
    norm_adv_by_std_in_grpo=config.algorithm.norm_adv_by_std_in_grpo)
mine = DataProto.from_dict(tensors=tensors).chunk(dist.get_world_size())[rank]
mine.meta_info.update(temperature=rollout.temperature,
                      global_token_num=mine.batch["attention_mask"].sum(-1).tolist())
data = left_right_2_no_padding(mine.to_tensordict())
tu.assign_non_tensor(data, calculate_entropy=True, compute_loss=False)
mine.batch["old_log_probs"] = no_padding_2_padding(worker.compute_log_prob(data)["log_probs"], data).float()
data = left_right_2_no_padding(mine.to_tensordict())
size = actor.ppo_mini_batch_size * rollout.n
tu.assign_non_tensor(data, calculate_entropy=actor.calculate_entropy or actor.entropy_coeff != 0, compute_loss=True,
                     distillation_use_topk=False, distillation_only=False, global_batch_size=size,
                     mini_batch_size=size, epochs=actor.ppo_epochs, seed=actor.data_loader_seed,
                     dataloader_kwargs={"shuffle": actor.shuffle})
metrics = {name.removeprefix("actor/"): value for name, value in tu.get(worker.update_actor(data), "metrics").items()}
worker.save_checkpoint(target, None, 1)
weights = {name: p.full_tensor().detach() for name, p in worker.actor.engine.module.named_parameters()}
torch.save({"log_probs": mine.batch["old_log_probs"], "weights": weights,
            "metrics": {name: float(np.mean(metrics[name])) for name in ("grad_norm", "pg_loss", "entropy_loss")}},
           f"{target}/../of_rank_{rank}.pt")
dist.barrier()
dist.destroy_process_group()
"""


def rollouts_of(model: Path, settings: RLSettings) -> dict:
    """A step's batch as verl's trainer lays it out: prompts padded on the left, random answers on the right."""
    import torch

    tokenizer, random = load_tokenizer(str(model)), torch.Generator().manual_seed(0)
    prompts = [render(p.question, tokenizer).token_ids for p in PROBLEMS[: settings.prompts_per_step]]
    width, rows = max(map(len, prompts)), []
    for prompt in (prompt for prompt in prompts for _ in range(settings.rollouts)):
        length = int(torch.randint(2, settings.max_tokens, (), generator=random))
        answer = torch.randint(20, 60, (length,), generator=random).tolist()
        left, right = [0] * (width - len(prompt)), [0] * (settings.max_tokens - length)
        rows.append((left + list(prompt), answer + right, [*left, *[1] * (len(prompt) + length), *right]))
    prompts, responses, mask = map(torch.tensor, zip(*rows, strict=True))
    batch = {"prompts": prompts, "responses": responses, "attention_mask": mask}
    batch["input_ids"] = torch.cat([prompts, responses], 1)
    batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    batch["response_mask"] = batch["attention_mask"][:, width:].contiguous()
    batch["rewards"] = torch.zeros(batch["responses"].shape)
    for row in range(0, len(rows), 3):
        batch["rewards"][row, batch["response_mask"][row].sum() - 1] = 1.0
    return batch


def step_by_hand(model: Path, batch: dict, settings: RLSettings) -> tuple[dict, dict, list]:
    """Weights after one step of GRPO, its metrics, and the log-probabilities of each answer: one row at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    scores = batch["rewards"].sum(1).view(-1, settings.rollouts)
    advantages = ((scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + 1e-6)).flatten()
    policy, entropy, each = 0.0, 0.0, []
    for row, advantage in enumerate(advantages):
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        length = int(batch["response_mask"][row].sum())
        logits = module(ids[None]).logits[0, -length - 1 : -1] / settings.temperature
        log_probs = logits.log_softmax(-1)
        chosen = log_probs.gather(1, ids[-length:, None])[:, 0]
        each.append(chosen.detach())
        policy = policy - (advantage * (chosen - chosen.detach()).exp()).sum()
        entropy = entropy - (log_probs.exp() * log_probs).sum()
    tokens = batch["response_mask"].sum()
    (policy / tokens - settings.entropy_coefficient * entropy / tokens).backward()
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), settings.max_grad_norm)
    torch.optim.AdamW(module.parameters(), lr=settings.learning_rate, weight_decay=0.0).step()
    metrics = {"grad_norm": norm, "pg_loss": policy / tokens, "entropy_loss": entropy / tokens}
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    return weights, {name: value.item() for name, value in metrics.items()}, each


def test_a_step_of_verl_is_the_one_computed_by_hand_and_our_engine_loads_its_checkpoint(chat, tmp_path, verl_python):
    """verl's FSDP engine, loss, optimizer and checkpoints, with our overrides, on two ranks without a GPU."""
    import torch

    from quagmire_utils.engines import EngineConfig, Request, SamplingParams, load_engine

    settings = RL.replace(learning_rate=1e-3, entropy_coefficient=0.02, temperature=0.8, max_grad_norm=0.5)
    folder = verl.write(chat, PROBLEMS, tmp_path / "run", settings, gpus=2)
    full = "{param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}"  # what is done by hand
    fsdp = "actor_rollout_ref.actor.fsdp_config"
    job = job_of(folder, verl_python, f"+{fsdp}.mixed_precision={full}", f"{fsdp}.use_torch_compile=False")
    (tmp_path / "job.yaml").write_text(job.stdout)
    batch = rollouts_of(chat, settings)
    torch.save(batch, tmp_path / "batch.pt")
    (tmp_path / "cpu_platform.py").write_text(PLATFORM)
    (tmp_path / "step.py").write_text(STEP)
    shards = folder / "checkpoints" / "global_step_4" / "actor"
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    variables |= {"VERL_USE_EXTERNAL_MODULES": "cpu_platform", "VERL_PLATFORM": "cpu", "VERL_ENGINE_DEVICE": "cuda"}
    launcher = [verl_python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, tmp_path / "step.py", tmp_path / "job.yaml", tmp_path / "batch.pt", shards],
        env=variables, capture_output=True, text=True, timeout=540,
    )  # fmt: skip
    assert done.returncode == 0, "\n".join(re.findall(r"(?m)^\[rank0\]:.*", done.stderr)[-30:]) or done.stderr[-3000:]

    ranks = [torch.load(shards.parent / f"of_rank_{rank}.pt") for rank in range(2)]
    weights, metrics, each = step_by_hand(chat, batch, settings)
    seen = torch.cat([rank["log_probs"] for rank in ranks])
    for row, log_probs in enumerate(each):
        assert torch.allclose(seen[row, : len(log_probs)], log_probs, atol=1e-4), row
    assert metrics["grad_norm"] > settings.max_grad_norm  # so the clipping counts
    for rank in ranks:
        assert rank["metrics"] == pytest.approx(metrics, rel=1e-3, abs=1e-6)
    start, trained = weights_of(chat), ranks[0]["weights"]
    moved = torch.cat([(weights[name] - start[name]).flatten() for name in trained])
    apart = torch.cat([(weights[name] - trained[name]).flatten() for name in trained])
    assert apart.norm() < 0.01 * moved.norm()

    with pytest.raises(ParameterError, match="global_step_4"):
        verl.export(folder, 3)
    target = verl.export(folder, 4)
    assert target == folder / "checkpoint-4"
    exported = weights_of(target)
    assert set(exported) == set(start)
    for name, tensor in trained.items():  # verl's merger rounds to bfloat16
        assert torch.equal(exported[name], tensor.bfloat16().float()), name
    engine = load_engine(EngineConfig(engine="transformers", model=target))
    prompt = render(PROBLEMS[0].question, engine.tokenizer)
    assert prompt == render(PROBLEMS[0].question, load_tokenizer(str(chat)))
    ((completion,),) = engine.generate([Request(prompt.token_ids, 1, 0)], SamplingParams(max_tokens=4))
    assert completion.tokens >= 1
    assert verl.export(folder, 4) == target  # nothing to do
