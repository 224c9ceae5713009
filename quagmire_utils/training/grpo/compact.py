"""The `compact` backend: on-policy GRPO for micro models, several times as fast as TRL. Paper: App. B.2.

One update per batch of rollouts, so the trained policy is the one that sampled: the ratio of their probabilities is 1,
clipping never acts, and the gradient of TRL's loss (its default, "dapo") is, with N the tokens of all rollouts,

    - 1/N sum over rollouts i, tokens t of  A_i grad log p(token t of i)  -  entropy_coefficient * grad(mean entropy)

where A_i = (reward - mean of its group) / (standard deviation of its group + 1e-4). It is fast for two reasons:

- a group's rollouts share the prompt, and often many tokens after it, so they are read as a tree: each prefix is one
  node, which attends to its ancestors, and a token is weighted by the summed advantages of the rollouts through it;
- without an entropy bonus, groups whose rewards are all equal are left out, because their advantages are zero.

Weights and arithmetic are float32; the size of a forward pass is fixed here, whatever `micro_batch_size` is. A run
depends only on its settings and the number of the step, so a killed and resumed run equals an unbroken one bit for bit
(on a CPU). Tests compare loss, gradients and updates with TRL's; `tests/speed/bench_rl.py` compares the speed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import write_json
from quagmire_utils.core.settings import RLSettings
from quagmire_utils.engines import EngineConfig, load_engine
from quagmire_utils.engines.transformers import can_share
from quagmire_utils.evaluation.generalization_loss import plan_batches
from quagmire_utils.training.grpo import STATE, Environment, derive_seed, read_state

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Measured on micro models of 96 x 4 layers: a CPU core is fastest on what fits its cache, a GPU on everything at once.
_TREE_NODES = 256  # at most in one tree of several rollouts: attention is quadratic in them
_PROMPTS_A_TREE = 6  # a longer tree is allowed where the prompt, which every tree reads again, is long
_CPU_NODES, _CUDA_NODES = 512, 32_768  # in one forward pass, padding included
_OPTIMIZER = "optimizer.pt"


@dataclass(frozen=True)
class Tree:
    """Rollouts of one prompt as a tree of prefixes. The first nodes are the prompt's; a last token needs no node.

    Target j: `counts[j]` rollouts continue node `target_nodes[j]` with the token `target_tokens[j]`, and their
    advantages sum to `weights[j]`.
    """

    prompt_tokens: int
    tokens: list[int]  # of each node
    parents: list[int]  # of each node, always an earlier one; -1 for the first
    target_nodes: list[int]
    target_tokens: list[int]
    weights: list[float]
    counts: list[int]


def train(environment: Environment, output: Path, latest: Path | None) -> list[dict[str, float]]:
    """Take the steps that are left after the checkpoint `latest`; return the log. Checkpoints go to `output`."""
    import torch

    settings, engine = environment.settings, environment.engine
    policy = engine.module.eval()  # no dropout: the policy that learns is the one that sampled
    if not can_share(policy):  # a tree can't be read then
        reason = f"compact is for models with full attention in every layer, not this {policy.config.model_type}"
        raise ParameterError("rl.backend", "compact", reason=reason)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
    history: list[dict[str, float]] = []
    if latest is not None:
        held = load_engine(EngineConfig(engine="transformers", model=latest, dtype="float32"))
        policy.load_state_dict(held.module.state_dict())
        optimizer.load_state_dict(torch.load(latest / _OPTIMIZER, map_location=engine.device, weights_only=True))
        history = read_state(latest)["log_history"]
    steps = range(len(history), settings.steps)
    for step in tqdm(steps, "RL", settings.steps, initial=len(history)):
        history.append(take_step(environment, optimizer, step))
        if step + 1 in settings.checkpoint_steps:
            _save(environment, optimizer, output, history)
    return history


def take_step(environment: Environment, optimizer: torch.optim.Optimizer, step: int) -> dict[str, float]:
    """Draw rollouts, reward them, and update the policy once; return the log entry. `step` counts from 0."""
    import torch

    started = time.perf_counter()
    settings, engine = environment.settings, environment.engine
    chosen = draw_problems(len(environment.problems), settings, step)
    groups = environment.rollouts(chosen, step)
    answers = [ids for group in groups for ids in group]
    owners = [problem for problem in chosen for _ in range(settings.rollouts)]
    rewards = np.array(environment.rewards(owners, answers))
    prompts = [environment.prompts[problem].token_ids for problem in chosen]
    trees = []
    for prompt, group, of_group in zip(prompts, groups, advantages(rewards.reshape(len(chosen), -1)), strict=True):
        if settings.entropy_coefficient > 0 or of_group.any():
            trees += grow_trees(prompt, group, of_group, max(_TREE_NODES, _PROMPTS_A_TREE * len(prompt)))
    tokens = sum(map(len, answers))

    optimizer.zero_grad(set_to_none=True)
    _, entropy = backward(engine.module, trees, tokens, settings)
    parameters = list(engine.module.parameters())
    for parameter in parameters:
        if parameter.grad is None:  # a step without a gradient still moves the weights, by Adam's momentum
            parameter.grad = torch.zeros_like(parameter)
    torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
    warmed_up = min(1.0, step / settings.warmup_steps) if settings.warmup_steps else 1.0
    decayed = 1 - (1 - settings.final_lr_fraction) * step / settings.steps
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * warmed_up * decayed
    optimizer.step()
    return {
        "step": step + 1,
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std(ddof=1)),
        "entropy": entropy,
        "completions/mean_length": tokens / len(answers),
        "completions/clipped_ratio": float(np.mean([ids[-1] not in engine.ends for ids in answers])),
        "step_time": time.perf_counter() - started,
    }


def draw_problems(count: int, settings: RLSettings, step: int) -> list[int]:
    """Return which of `count` problems step `step` uses: shuffled passes over all of them, one after another."""
    first = step * settings.prompts_per_step
    places = range(first, first + settings.prompts_per_step)
    epochs = {
        epoch: np.random.default_rng(derive_seed("rl problems", settings.seed, epoch)).permutation(count)
        for epoch in range(places[0] // count, places[-1] // count + 1)
    }
    return [int(epochs[place // count][place % count]) for place in places]


def advantages(rewards: np.ndarray) -> np.ndarray:
    """Return rewards (groups, rollouts) minus their group's mean, over its standard deviation + 1e-4 (as in TRL)."""
    spread = rewards.std(1, ddof=1, keepdims=True)
    return (rewards - rewards.mean(1, keepdims=True)) / (spread + 1e-4)


def grow_trees(
    prompt: Sequence[int],
    completions: Sequence[Sequence[int]],
    advantages: Sequence[float],
    max_nodes: int = _TREE_NODES,
) -> list[Tree]:
    """Return the rollouts of one group as a tree, or as several of at most `max_nodes` nodes."""
    trees: list[Tree] = []
    for ids, advantage in sorted(zip(map(tuple, completions), advantages, strict=True)):  # common starts together
        if not trees or len(trees[-1].tokens) + len(ids) > max_nodes:
            trees.append(Tree(len(prompt), list(prompt), list(range(-1, len(prompt) - 1)), [], [], [], []))
            nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node
            targets: dict[tuple[int, int], int] = {}
        tree, node = trees[-1], len(prompt) - 1
        for i, token in enumerate(ids):
            if (node, token) not in targets:
                targets[node, token] = len(tree.target_nodes)
                tree.target_nodes.append(node)
                tree.target_tokens.append(token)
                tree.weights.append(0.0)
                tree.counts.append(0)
            tree.weights[targets[node, token]] += advantage
            tree.counts[targets[node, token]] += 1
            if i + 1 < len(ids):
                if (node, token) not in nodes:
                    nodes[node, token] = len(tree.tokens)
                    tree.tokens.append(token)
                    tree.parents.append(node)
                node = nodes[node, token]
    return trees


def backward(policy: PreTrainedModel, trees: Sequence[Tree], tokens: int, settings: RLSettings) -> tuple[float, float]:
    """Add the gradient of a step's loss to the policy's; return the loss and the entropy.

    `tokens` counts those of all rollouts of the step. The loss is TRL's, at a ratio of 1. The entropy is the mean over
    the tokens in `trees`, in nats; NaN without any.
    """
    import torch

    device, coefficient = policy.device, settings.entropy_coefficient
    policy_sum, entropy_sum, counted = 0.0, 0.0, 0
    sizes = {i: len(tree.tokens) for i, tree in enumerate(trees)}
    for members in plan_batches(sizes, _CUDA_NODES if device.type == "cuda" else _CPU_NODES):
        batch = [trees[i] for i in members]
        first = min(tree.prompt_tokens for tree in batch) - 1  # the first node that any rollout continues
        ids, positions, visible = (torch.from_numpy(array).to(device) for array in _arrays(batch))
        hidden = torch.zeros(visible.shape, dtype=policy.dtype, device=device)
        hidden.masked_fill_(~visible, torch.finfo(policy.dtype).min)
        keep = ids.shape[1] - first
        logits = policy(
            ids, attention_mask=hidden[:, None], position_ids=positions, use_cache=False, logits_to_keep=keep
        ).logits
        tree_of = np.repeat(np.arange(len(batch)), [len(tree.target_nodes) for tree in batch])
        node = np.concatenate([tree.target_nodes for tree in batch]) - first
        places, place_of = np.unique(tree_of * logits.shape[1] + node, return_inverse=True)
        logps = torch.log_softmax(
            logits.flatten(0, 1)[torch.from_numpy(places).to(device)].float() / settings.temperature, -1
        )
        place_of = torch.from_numpy(place_of).to(device)
        chosen = torch.tensor([token for tree in batch for token in tree.target_tokens], device=device)
        weights = torch.tensor([w for tree in batch for w in tree.weights], dtype=torch.float32, device=device)
        counts = torch.tensor([c for tree in batch for c in tree.counts], dtype=torch.float32, device=device)
        with torch.set_grad_enabled(coefficient > 0):
            entropies = -(logps.exp() * logps).sum(-1)
            entropy = (entropies[place_of] * counts).sum()
        objective = (logps[place_of, chosen] * weights).sum() + coefficient * entropy
        (-objective / tokens).backward()
        policy_sum += sum(map(sum, (tree.weights for tree in batch)))
        entropy_sum += entropy.item()
        counted += sum(map(sum, (tree.counts for tree in batch)))
    return -(policy_sum + coefficient * entropy_sum) / tokens, entropy_sum / counted if counted else float("nan")


def _arrays(trees: Sequence[Tree]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return token ids and positions (trees, nodes), and the attention mask (trees, nodes, nodes).

    A node attends to its ancestors and itself; padding, after the nodes, to itself alone.
    """
    width = max(len(tree.tokens) for tree in trees)
    ids = np.zeros((len(trees), width), dtype=np.int64)
    positions = np.zeros((len(trees), width), dtype=np.int64)
    visible = np.broadcast_to(np.eye(width, dtype=bool), (len(trees), width, width)).copy()
    for i, tree in enumerate(trees):
        ids[i, : len(tree.tokens)] = tree.tokens
        for node, parent in enumerate(tree.parents):
            if parent >= 0:
                positions[i, node] = positions[i, parent] + 1
                visible[i, node] |= visible[i, parent]
    return ids, positions, visible


def _save(
    environment: Environment, optimizer: torch.optim.Optimizer, output: Path, history: Sequence[dict[str, float]]
) -> None:
    """Save a checkpoint like TRL's; only the latest one keeps the optimizer's state."""
    import torch

    folder = output / f"checkpoint-{len(history)}"
    shutil.rmtree(folder, ignore_errors=True)
    environment.engine.module.save_pretrained(folder)
    environment.engine.tokenizer.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / _OPTIMIZER)
    # last, because it marks the checkpoint as complete
    write_json({"backend": "compact", "global_step": len(history), "log_history": list(history)}, folder / STATE)
    for other in output.glob(f"checkpoint-*/{_OPTIMIZER}"):
        if other.parent != folder:
            other.unlink()
