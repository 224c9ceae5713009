"""Settings of pretrained models and of the machines that cells run on (App. B); `config` builds profiles of them.

It also holds what every setting is checked with, as `config` imports it and not the other way round.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from quagmire_utils.core.errors import ParameterError


def _positive(settings: object, where: str, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not 0 < value < math.inf:
            raise ParameterError(f"{where}.{name} must be positive and finite, not {value}")


def _within(settings: object, where: str, low: float, high: float, *names: str) -> None:
    """Refuse values outside low to high (themselves allowed, unless infinite)."""
    bounds = f"between {low:g} and {high:g}" if high < math.inf else f"finite and not below {low:g}"
    for name in names:
        value = getattr(settings, name)
        if not low <= value <= high or value == math.inf:
            raise ParameterError(f"{where}.{name} must be {bounds}, not {value}")


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder-only transformer (Llama, Mistral, Qwen3), from which memory and FLOPs follow."""

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied_embeddings: bool = False

    def __post_init__(self) -> None:
        """Refuse what no model has."""
        names = ("layers", "hidden_size", "intermediate_size", "heads", "kv_heads", "head_dim", "vocabulary")
        _positive(self, "shape", *names)
        if self.heads % self.kv_heads:
            raise ParameterError(f"shape.kv_heads ({self.kv_heads}) must divide shape.heads ({self.heads})")


@dataclass(frozen=True)
class ModelSettings:
    """A pretrained base model."""

    hub_id: str  # or the path of a folder
    revision: str | None = None  # commit of the hub's repository; a hub id needs one
    gated: bool = False  # the hub gives it only to those who accepted its licence
    shape: ModelShape | None = None  # for the dry run; None: read from the model's config.json

    def __post_init__(self) -> None:
        """Refuse a hub model that may change."""
        if not self.is_folder and (self.revision is None or not re.fullmatch("[0-9a-f]{40}", self.revision)):
            raise ParameterError(
                f"model {self.hub_id}: revision must be a commit of 40 hexadecimal digits, not {self.revision!r}; "
                "a branch may change"
            )

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of this machine rather than a hub's."""
        return self.hub_id.startswith((".", "/", "~")) or self.hub_id.count("/") != 1


@dataclass(frozen=True)
class ComputeSettings:
    """What a cell runs on, and what the dry run assumes of it. All of it is ours except what names its place."""

    gpus: int = 0  # GPUs of one cell, all in one node; 0: cells compute on CPU cores
    gpu: str = "A100-80GB"  # App. B; one of cost.GPUS
    nodes: int = 1  # that work at the same time
    dollars_per_gpu_hour: float = 2.0
    train_mfu: float = 0.35  # share of the GPU's peak FLOPs that training reaches
    bandwidth_share: float = 0.5  # share of the GPU's memory bandwidth that decoding reaches
    step_seconds: float = 0.004  # of a decoding step beside its memory traffic
    rollout_efficiency: float = 0.6  # of decoding in RL: each step waits for its longest answers
    overhead: float = 1.15  # on all of it: loading, synchronising weights, restarts
    prompt_tokens: int = 150
    # expected answer tokens: base, sft, rl (measuring) and rollout (training); at most the profile's max_tokens
    answer_tokens: dict[str, float] = field(default_factory=dict)
    # measured tokens/s of a GPU, that replace what is computed: {"llama3-8b.sampling": 2900}; also rollout, sft, rl
    probes: dict[str, float] = field(default_factory=dict)
    published_gpu_hours: float | None = None  # what the study that the profile repeats says it spent
    published_run_hours: float | None = None  # and the most hours that it says one RL run took
    slurm: dict[str, str] = field(default_factory=dict)  # more #SBATCH options: {"partition": "gpu"}

    def __post_init__(self) -> None:
        """Refuse what no machine is."""
        names = ("nodes", "train_mfu", "bandwidth_share", "rollout_efficiency", "overhead", "prompt_tokens")
        _positive(self, "compute", *names)
        for name in ("train_mfu", "bandwidth_share", "rollout_efficiency"):
            if getattr(self, name) > 1:
                raise ParameterError(f"compute.{name} is a share and must not exceed 1, and is {getattr(self, name)}")
        _within(self, "compute", 0, math.inf, "gpus", "dollars_per_gpu_hour", "step_seconds")
        unknown = sorted(set(self.answer_tokens) - {"base", "sft", "rl", "rollout"})
        if unknown:
            raise ParameterError(f"compute.answer_tokens.{unknown[0]} is not one of base, sft, rl, rollout")
        for name, value in {**self.answer_tokens, **self.probes}.items():
            if not 0 < value < math.inf:
                raise ParameterError(f"compute: {name} must be positive and finite, not {value}")
