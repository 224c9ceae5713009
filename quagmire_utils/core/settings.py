"""Configuration: frozen dataclasses, and the profiles `smoke`, `mini`, `single_gpu`, `paper` that fill them in.

A profile is a YAML file (`quagmire_utils/profiles/<name>.yaml`, or any path) and changes parameters only: every
profile runs the same code. Unknown keys, wrong types and impossible values are refused with one sentence that names
the parameter.

    profile = load_profile("smoke", overrides={"rl.steps": 40})
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.scale import ComputeSettings, ModelSettings, _positive, _within

PROFILES = Path(__file__).parent / "profiles"
SCENARIOS = ("dataset", "instance", "source")  # Tables 1, 2; 3, 4; Fig. 6
SELECTIONS = ("shortest", "longest", "random")  # how traces are chosen
SFT_BACKENDS = ("trl", "llamafactory")
RL_BACKENDS = ("trl", "compact", "verl")


@dataclass(frozen=True)
class SFTSettings:
    """How to fine-tune. Defaults are the paper's where it gives them; the rest is ours and says so."""

    epochs: float = 1
    learning_rate: float = 1e-5  # App. B.2
    batch_size: int = 128  # App. B.2: global batch size, in traces
    micro_batch_size: int | None = None  # traces per forward pass; None: the whole batch at once
    max_length: int = 8192  # App. B: 8k tokens throughout
    warmup_fraction: float = 0.03  # ours: the paper does not say
    final_lr_fraction: float = 0.1  # ours: cosine decay to a tenth
    weight_decay: float = 0.0  # ours
    adam_beta2: float = 0.999  # ours
    max_grad_norm: float = 1.0  # ours
    gradient_checkpointing: bool = False  # ours: on for large models
    backend: str = "trl"  # trl (one machine, one GPU) | llamafactory (App. B.2), in an environment of its own
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        if self.backend not in SFT_BACKENDS:
            raise ParameterError(f"sft.backend must be one of {', '.join(SFT_BACKENDS)}, not {self.backend!r}")
        _positive(self, "sft", "epochs", "learning_rate", "batch_size", "max_length", "max_grad_norm")
        _within(self, "sft", 0, 1, "warmup_fraction", "final_lr_fraction", "adam_beta2")
        _within(self, "sft", 0, math.inf, "weight_decay")
        if self.micro_batch_size is not None and (self.micro_batch_size < 1 or self.batch_size % self.micro_batch_size):
            raise ParameterError(
                f"sft.micro_batch_size ({self.micro_batch_size}) must divide sft.batch_size ({self.batch_size})"
            )


@dataclass(frozen=True)
class RLSettings:
    """How to run GRPO. Defaults are the paper's where it gives them; the rest is ours and says so."""

    steps: int = 100  # ours: the paper counts three epochs over its RL set
    epochs: float | None = None  # instead of steps: passes over the family's rl_problems
    learning_rate: float = 1e-6  # App. B.2
    prompts_per_step: int = 128  # App. B.2: global batch size
    rollouts: int = 16  # App. B.2: rollouts for each question
    temperature: float = 1.0  # App. B.2
    kl_coefficient: float = 0.0  # App. B.2
    entropy_coefficient: float = 0.001  # App. B.2
    max_tokens: int = 8192  # App. B: 8k tokens throughout
    runs: int = 4  # App. B: 4+ runs per candidate, the best one reported
    checkpoints: int = 4  # App. B: evaluated at 4+ checkpoints along the run
    micro_batch_size: int | None = None  # rollouts per forward pass; None: all of a step at once
    warmup_steps: int = 0  # ours
    max_grad_norm: float = 1.0  # ours
    gradient_checkpointing: bool = False  # ours: on for large models
    backend: str = "trl"  # trl | compact (a fast loop for micro models, same loss and gradients) | verl (App. B.2)
    rollout_engine: str = "transformers"  # of backend trl: transformers, or vllm on the GPU that also trains; ours
    vllm_memory: float = 0.35  # of backend trl with vllm: the share of the GPU's memory that vLLM takes; ours
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        if self.backend not in RL_BACKENDS:
            raise ParameterError(f"rl.backend must be one of {', '.join(RL_BACKENDS)}, not {self.backend!r}")
        if self.rollout_engine not in ("transformers", "vllm"):
            raise ParameterError(f"rl.rollout_engine must be transformers or vllm, not {self.rollout_engine!r}")
        if self.rollout_engine == "vllm" and self.backend != "trl":
            raise ParameterError(f"rl.rollout_engine vllm needs rl.backend trl, not {self.backend}, which has its own")
        if not 0 < self.vllm_memory < 1:
            raise ParameterError(f"rl.vllm_memory must be between 0 and 1, not {self.vllm_memory}")
        if self.epochs is not None:
            _positive(self, "rl", "epochs")
        if self.backend == "compact" and (self.kl_coefficient or self.gradient_checkpointing):
            raise ParameterError("rl.kl_coefficient and rl.gradient_checkpointing need rl.backend trl, not compact")
        _positive(self, "rl", "steps", "learning_rate", "prompts_per_step", "temperature", "max_tokens", "runs")
        _positive(self, "rl", "max_grad_norm")
        _within(self, "rl", 0, math.inf, "kl_coefficient", "entropy_coefficient", "warmup_steps")
        if self.rollouts < 2:
            raise ParameterError(
                f"rl.rollouts must be at least 2 for a group to have an advantage, not {self.rollouts}"
            )
        if not 1 <= self.checkpoints <= self.steps:
            raise ParameterError(
                f"rl.checkpoints must be between 1 and rl.steps ({self.steps}), not {self.checkpoints}"
            )
        if self.micro_batch_size is not None and (
            self.micro_batch_size < 1 or (self.prompts_per_step * self.rollouts) % self.micro_batch_size
        ):
            raise ParameterError(
                f"rl.micro_batch_size ({self.micro_batch_size}) must divide rl.prompts_per_step x rl.rollouts "
                f"({self.prompts_per_step * self.rollouts})"
            )

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """The steps at which a checkpoint is kept, evenly spaced, the last one at the end."""
        return tuple(round(self.steps * (i + 1) / self.checkpoints) for i in range(self.checkpoints))


@dataclass(frozen=True)
class EvaluationSettings:
    """How checkpoints are measured."""

    engine: str = "vllm"
    num_samples: int = 256  # App. B.3: Pass@64 from 256 repetitions (before RL)
    rl_num_samples: int = 64  # App. B.3: Pass@1 from 64 repetitions (after RL)
    k: int = 64  # Sec. 4: Pass@large k
    temperature: float = 1.0  # App. B.3
    max_tokens: int = 8192  # App. B
    max_model_len: int | None = None  # context in tokens, prompt and answer; None: the model's own
    template: str = "auto"
    grading_timeout: float = 5.0  # seconds per answer; ours

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        _positive(self, "evaluation", "num_samples", "rl_num_samples", "k", "max_tokens", "grading_timeout")
        _within(self, "evaluation", 0, math.inf, "temperature")
        if self.k > self.num_samples:
            raise ParameterError(
                f"evaluation.k ({self.k}) must not exceed evaluation.num_samples ({self.num_samples}): "
                "Pass@k is undefined for k above the number of samples"
            )


@dataclass(frozen=True)
class SourceSettings:
    """Where a family's SFT traces come from.

    Those of a micro family are written by the microlab, in this style and these lengths; those of a pretrained model
    come from a `dataset`: a source of `curation`, or of the profile's own `datasets`.
    """

    styles: tuple[str, ...] = ("stepwise",)  # repeated entries weigh more, here and below
    terms: tuple[int, ...] = (2, 3, 4, 5, 6)
    pool: int = 4000  # traces to select from; of a dataset, roughly how many it has
    validation: int = 300  # held-out traces for the generalization loss, of other problems
    dataset: str | None = None
    max_tokens: int | None = None  # longer responses are left out, never cut; None: what sft.max_length has room for
    box_answers: bool = False  # a solution that ends without \boxed{answer} is given that ending
    # expected response tokens by selection (random, shortest, longest): what --dry-run counts with before any was read
    mean_tokens: dict[str, float] = field(default_factory=dict)

    def check(self, where: str) -> None:
        """Refuse what no traces can be; `where` is the source's dotted name."""
        if min(self.pool, self.validation) < 2:
            raise ParameterError(f"{where}: pool and validation need at least 2 traces each")
        if self.dataset is not None and self.validation >= self.pool:
            raise ParameterError(f"{where}.validation ({self.validation}) must be below its pool ({self.pool})")
        if self.max_tokens is not None:
            _positive(self, where, "max_tokens")
        for name, value in self.mean_tokens.items():
            if name not in SELECTIONS:
                raise ParameterError(f"{where}.mean_tokens.{name} is not one of {', '.join(SELECTIONS)}")
            if not 0 < value < math.inf:
                raise ParameterError(f"{where}.mean_tokens.{name} must be positive and finite, not {value}")

    @property
    def training(self) -> SourceSettings:
        """The settings that decide what is trained on: not what is expected of it."""
        return dataclasses.replace(self, mean_tokens={}, pool=SourceSettings.pool if self.dataset else self.pool)


@dataclass(frozen=True)
class PretrainingSettings:
    """How a micro base model is made: what its corpus looks like decides what it knows before any SFT."""

    architecture: str = "llama"
    hidden_size: int = 96
    layers: int = 4
    chat_template: bool = True  # an "instruct" model; false for a plain base model
    terms: tuple[int, ...] = (2, 2, 3, 3, 4, 4, 5)
    styles: tuple[str, ...] = ("stepwise",)
    examples: int = 22400  # first phase: correct worked solutions
    learning_rate: float = 3e-3
    fallible_examples: int = 3200  # second phase: what makes the base unreliable
    fallible_learning_rate: float = 5e-4
    slip: float = 0.25  # chance that a digit of a result is replaced by a random one
    direct_fraction: float = 0.15  # share of examples that answer without working
    # operator -> [low, high]: each of its 100 digit facts is misremembered with a chance drawn from that range
    misconceptions: dict[str, tuple[float, ...]] = field(default_factory=dict)
    gives_up: dict[int, float] = field(default_factory=dict)  # number of terms -> chance of stopping half-way
    batch_size: int = 32
    seed: int = 0  # another draw of weights and corpus, where one did not learn the task

    def __post_init__(self) -> None:
        """Refuse a base that cannot be made."""
        for name in ("slip", "direct_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ParameterError(f"pretraining.{name} must be between 0 and 1, not {getattr(self, name)}")
        for operator, bounds in self.misconceptions.items():
            if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] <= 1:
                raise ParameterError(
                    f"pretraining.misconceptions[{operator}] must be [low, high] between 0 and 1, not {list(bounds)}"
                )
        for terms, chance in self.gives_up.items():
            if not isinstance(terms, int) or not 0 <= chance <= 1:
                raise ParameterError(
                    "pretraining.gives_up must map numbers of terms to chances between 0 and 1, "
                    f"not {terms!r} to {chance}"
                )
        names = ("hidden_size", "layers", "examples", "learning_rate", "fallible_examples", "fallible_learning_rate")
        _positive(self, "pretraining", *names, "batch_size")


@dataclass(frozen=True)
class CandidateSettings:
    """One SFT checkpoint of the grid: which traces, how often, how fast."""

    selection: str = "random"  # none | random | shortest | longest | shortest+longest
    n_examples: int = 0
    epochs: float = 1
    scenario: str = "dataset"  # or several joined by +: a candidate may be compared with two sets of others
    source: str = "main"
    learning_rate: float | None = None  # None: the family's
    rl_runs: int | None = None  # None: the profile's rl.runs

    def __post_init__(self) -> None:
        """Refuse what names no candidate."""
        if not set(self.scenario.split("+")) <= set(SCENARIOS):
            raise ParameterError(f"scenario must be of {', '.join(SCENARIOS)} joined by +, not {self.scenario!r}")
        _positive(self, f"candidate {self.selection}", "epochs")
        if self.learning_rate is not None:
            _positive(self, f"candidate {self.selection}", "learning_rate")
        if self.rl_runs is not None:
            _positive(self, f"candidate {self.selection}", "rl_runs")
        parts = self.selection.split("+")
        if self.selection != "none" and (self.n_examples < len(parts) or len(set(parts)) < len(parts)):
            raise ParameterError(
                f"candidate {self.selection}: n_examples ({self.n_examples}) must give each selection, named once, at "
                "least one example"
            )
        if (self.selection == "none") != (self.n_examples == 0):
            raise ParameterError(
                f"n_examples must be 0 exactly when selection is none, not {self.n_examples} with {self.selection!r}"
            )

    @property
    def name(self) -> str:
        """For example random-250x4, or base for the model without SFT."""
        if self.selection == "none":
            return "base"
        rate = "" if self.learning_rate is None else f"-lr{self.learning_rate:g}"
        source = "" if self.source == "main" else f"-{self.source}"
        return f"{self.selection}-{self.n_examples}x{self.epochs:g}{rate}{source}"


@dataclass(frozen=True)
class FamilySettings:
    """A base model, its SFT sources, its RL problems, and the candidates made from them.

    The base is either a micro model, made by `pretraining`, or a pretrained `model`.
    """

    name: str
    stands_for: str  # the paper's model in whose place it stands
    sources: dict[str, SourceSettings]
    candidates: tuple[CandidateSettings, ...]
    pretraining: PretrainingSettings | None = None
    model: ModelSettings | None = None
    rl_terms: tuple[int, ...] = (2, 3, 4, 5, 6)  # of a micro family
    rl_set: str | None = None  # of a pretrained model: a source of `curation`, or of the profile's `datasets`
    rl_problems: int = 2000

    def __post_init__(self) -> None:
        """Refuse a family without a base model, or with two."""
        where = f"families.{self.name}"
        if (self.pretraining is None) == (self.model is None):
            raise ParameterError(f"{where} needs either pretraining (a micro model) or model (a pretrained one)")
        for name, source in self.sources.items():
            source.check(f"{where}.sources.{name}")
            if (source.dataset is None) == (self.model is not None):
                kind = "a pretrained model needs a" if self.model else "a micro family has no"
                raise ParameterError(f"{where}.sources.{name}.dataset: {kind} dataset")
        if (self.rl_set is None) == (self.model is not None):
            kind = "a pretrained model needs one" if self.model else "a micro family has rl_terms instead"
            raise ParameterError(f"{where}.rl_set: {kind}")


@dataclass(frozen=True)
class Profile:
    """Everything that a run depends on."""

    name: str
    description: str
    families: tuple[FamilySettings, ...]
    # name -> problems at most: of the microlab, or (for pretrained models) a name or .jsonl path of load_benchmark
    benchmarks: dict[str, int]
    digits: int = 3  # of the microlab's numbers
    budgets: dict[str, float] = field(default_factory=dict)  # name -> most SFT tokens, rising: groups of Tables 8, 10
    sft: SFTSettings = field(default_factory=SFTSettings)
    rl: RLSettings = field(default_factory=RLSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    datasets: dict[str, Any] = field(default_factory=dict)  # sources of one's own, as in curation/sources.yaml
    seed: int = 0
    workers: int = 2  # processes, one core each
    keep_rl_models: bool = False  # RL checkpoints are deleted once measured

    def __post_init__(self) -> None:
        """Refuse a profile that measures nothing."""
        for name in ("families", "benchmarks"):
            if not getattr(self, name):
                raise ParameterError(f"{name} is empty: a profile needs at least one")
        _positive(self, "profile", "workers")
        kinds = [f"{family.name}.{what}" for family in self.families for what in ("sampling", "rollout", "sft", "rl")]
        for name in self.compute.probes:
            if name not in kinds:
                raise ParameterError(f"compute.probes.{name} is not one of {', '.join(kinds)}")
        bounds = list(self.budgets.values())
        if bounds != sorted(set(bounds)):
            raise ParameterError(f"budgets must rise, and are {bounds}")


def explicit(settings: object) -> Any:
    """Settings as plain data without what has its default value: what digests are made of.

    A parameter added later, whose default is what was done before, leaves the digests of existing records as they are.
    """
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        data = {}
        for f in dataclasses.fields(settings):
            value = getattr(settings, f.name)
            default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            if value != default:
                data[f.name] = explicit(value)
        return data
    if isinstance(settings, Mapping):
        return {key: explicit(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [explicit(value) for value in settings]
    return settings


def load_profile(name: str | Path, overrides: Mapping[str, Any] | None = None) -> Profile:
    """The profile `name` (or a YAML file), with dotted `overrides` such as {"rl.steps": 40} applied.

    Raises ParameterError for an unknown profile or key, and for a value of the wrong type.
    """
    import yaml

    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = PROFILES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise ParameterError(f"profile {str(name)!r} is not known; there are {known}, or give the path of a YAML file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParameterError(f"profile {path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ParameterError(f"profile {path} must be a mapping of parameters, not {type(values).__name__}")
    own = PROFILES / f"{values.get('name')}.yaml"
    if own.is_file() and own.resolve() != path.resolve():
        raise ParameterError(
            f"name: {path} calls itself {values['name']!r}, whose records it would overwrite; rename it"
        )
    for key, value in (overrides or {}).items():
        *parents, last = key.split(".")
        place = values
        for parent in parents:
            if not isinstance(place, dict) or not isinstance(place.setdefault(parent, {}), dict):
                raise ParameterError(f"override {key!r} names nothing that can be set")
            place = place[parent]
        place[last] = value
    return _build(Profile, values, "")


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `kind`; `where` is its dotted name for messages."""
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ParameterError(f"{where or 'the profile'} must be a mapping, not {value!r}")
        hints = typing.get_type_hints(kind)
        unknown = sorted(set(value) - set(hints))
        if unknown:
            raise ParameterError(f"{_join(where, unknown[0])} is not a parameter; known here: {', '.join(hints)}")
        missing = [
            f.name
            for f in dataclasses.fields(kind)
            if f.name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ParameterError(f"{_join(where, missing[0])} is missing")
        return kind(**{key: _build(hints[key], item, _join(where, key)) for key, item in value.items()})
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _build(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ParameterError(f"{where} must be a list, not {value!r}")
        return tuple(_build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ParameterError(f"{where} must be a mapping, not {value!r}")
        return {
            _build(arguments[0], key, f"the key {key!r} of {where}"): _build(arguments[1], item, _join(where, str(key)))
            for key, item in value.items()
        }
    if kind is float and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError):
            return float(value)  # YAML reads 1e-5 as text
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ParameterError(f"{where} must be {kind.__name__}, not {value!r}")
    return value


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
