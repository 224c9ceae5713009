"""Settings of a study, and the profiles `smoke`, `mini`, `single_gpu`, `paper` that fill them in.

A profile is a YAML file (`quagmire_utils/core/profiles/<name>.yaml`, or any path). It only changes parameters: every
profile runs the same code. Defaults are the paper's where a comment names the place, otherwise our choice.

    profile = load_profile("smoke", overrides={"rl.steps": 40})
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from quagmire_utils.core import validation
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.validation import Count, Flag, Fraction, Integer, NonNegative, Positive, Settings, Share

PROFILES = Path(__file__).parent / "profiles"
SCENARIOS = ("dataset", "instance", "source")  # Tables 1, 2; 3, 4; Fig. 6
SELECTIONS = ("shortest", "longest", "random")  # how traces are chosen

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # of folders
Architecture = Literal["llama", "mistral", "qwen3"]  # of a micro model
# of the microlab; repeated entries weigh more
Styles = Annotated[tuple[Literal["stepwise", "restated"], ...], Field(min_length=1)]
Terms = Annotated[tuple[Annotated[Integer, Field(ge=2, le=14)], ...], Field(min_length=1)]


class SFTSettings(Settings):
    """How to fine-tune."""

    epochs: Positive = 1
    learning_rate: Positive = 1e-5  # App. B.2
    batch_size: Count = 128  # App. B.2: global batch size, in traces
    micro_batch_size: Count | None = None  # traces per forward pass; None: the whole batch at once
    max_length: Count = 8192  # App. B: 8k tokens throughout
    warmup_fraction: Fraction = 0.03
    final_lr_fraction: Fraction = 0.1  # cosine decay to a tenth
    weight_decay: NonNegative = 0.0
    adam_beta2: Fraction = 0.999
    max_grad_norm: Positive = 1.0
    gradient_checkpointing: Flag = False  # on for large models
    backend: Literal["trl", "llamafactory"] = "trl"  # one machine and one GPU, or App. B.2 in an environment of its own
    seed: Integer = 0

    def _check(self) -> None:
        divides = self.batch_size % (self.micro_batch_size or 1) == 0
        self._require("micro_batch_size", divides, f"a divisor of batch_size ({self.batch_size})")


class RLSettings(Settings):
    """How to run GRPO."""

    steps: Count = 100  # the paper counts three epochs over its RL set
    epochs: Positive | None = None  # instead of steps: passes over the family's rl_problems
    learning_rate: Positive = 1e-6  # App. B.2
    prompts_per_step: Count = 128  # App. B.2: global batch size
    rollouts: Annotated[Integer, Field(ge=2)] = 16  # App. B.2: per question; one alone has no advantage
    temperature: Positive = 1.0  # App. B.2
    kl_coefficient: NonNegative = 0.0  # App. B.2
    entropy_coefficient: NonNegative = 0.001  # App. B.2
    max_tokens: Count = 8192  # App. B: 8k tokens throughout
    runs: Count = 4  # App. B: 4+ runs per candidate, the best one reported
    checkpoints: Count = 4  # App. B: evaluated at 4+ checkpoints along the run
    checkpoint_ratio: Annotated[Positive, Field(gt=1)] | None = None  # of each checkpoint's step to that before it
    micro_batch_size: Count | None = None  # rollouts per forward pass; None: all of a step at once
    warmup_steps: Annotated[Integer, Field(ge=0)] = 0
    final_lr_fraction: Fraction = 1.0  # linear decay to it at the end; below 1 with backend compact alone
    max_grad_norm: Positive = 1.0
    gradient_checkpointing: Flag = False  # on for large models
    backend: Literal["trl", "compact", "verl"] = "trl"  # verl: App. B.2; compact: for small models, same loss
    rollout_engine: Literal["transformers", "vllm"] = "transformers"  # of backend trl; vllm shares the training GPU
    vllm_memory: Annotated[Share, Field(lt=1)] = 0.35  # share of the GPU's memory for vLLM beside training
    seed: Integer = 0

    def _check(self) -> None:
        trl, compact, backend = self.backend == "trl", self.backend == "compact", f"rl.backend {self.backend}"
        self._require("rollout_engine", trl or self.rollout_engine != "vllm", f"transformers with {backend}")
        self._require("final_lr_fraction", compact or self.final_lr_fraction == 1, f"1 with {backend}")
        for name in ("kl_coefficient", "gradient_checkpointing"):
            self._require(name, not (compact and getattr(self, name)), f"0 or false with {backend}; take trl")
        self._require("checkpoints", self.checkpoints <= self.steps, f"at most rl.steps ({self.steps})")
        if self.checkpoint_ratio is not None:
            self._require("checkpoint_ratio", self.backend != "verl", f"left out with {backend}")
            fits = math.log(self.checkpoint_ratio) * (self.checkpoints - 1) < math.log(2 * self.steps)  # no overflow
            enough = fits and len(set(self.checkpoint_steps) - {0}) >= self.checkpoints
            allowed = f"small enough for {self.checkpoints} different steps up to {self.steps}"
            self._require("checkpoint_ratio", enough, allowed)
        rollouts = self.prompts_per_step * self.rollouts
        divides = rollouts % (self.micro_batch_size or 1) == 0
        self._require("micro_batch_size", divides, f"a divisor of rl.prompts_per_step x rl.rollouts ({rollouts})")

    def over(self, problems: int) -> RLSettings:
        """Return the settings with `epochs` as whole steps. Raises ParameterError for fewer problems than one takes."""
        if self.prompts_per_step > problems:
            raise ParameterError("rl.prompts_per_step", self.prompts_per_step, f"at most the {problems} problems")
        if self.epochs is None:
            return self
        return self.replace(steps=max(1, math.floor(self.epochs * (problems // self.prompts_per_step))), epochs=None)

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """Steps at which a checkpoint is kept: evenly spaced (with verl every n-th, so perhaps more), and the last."""
        if self.checkpoint_ratio is not None:  # geometrically spaced
            return tuple(round(self.steps / self.checkpoint_ratio**i) for i in reversed(range(self.checkpoints)))
        if self.backend != "verl":
            return tuple(round(self.steps * (i + 1) / self.checkpoints) for i in range(self.checkpoints))
        every = math.ceil(self.steps / self.checkpoints)
        if math.ceil(self.steps / every) < self.checkpoints:
            every = self.steps // self.checkpoints
        return (*range(every, self.steps, every), self.steps)


class EvaluationSettings(Settings):
    """How checkpoints are measured."""

    engine: Literal["transformers", "vllm"] = "vllm"  # App. B.3
    num_samples: Count = 256  # App. B.3: Pass@64 from 256 repetitions (before RL)
    rl_num_samples: Count = 64  # App. B.3: Pass@1 from 64 repetitions (after RL)
    k: Count = 64  # Sec. 4: Pass@large k
    temperature: NonNegative = 1.0  # App. B.3
    max_tokens: Count = 8192  # App. B
    max_model_len: Integer | None = None  # context in tokens, prompt and answer; None: the model's own
    template: Literal["auto", "chat", "plain"] = "auto"
    grading_timeout: Positive = 5.0  # seconds per answer
    grader: Literal["math_verify", "math"] = "math_verify"  # App. B; of benchmarks and rewards in mathematics
    both_graders: Flag = False  # count by `math` too, in the column correct_math, and show both in the tables

    def _check(self) -> None:
        self._require("k", self.k <= self.num_samples, f"at most evaluation.num_samples ({self.num_samples})")
        fits = self.max_model_len is None or self.max_tokens < self.max_model_len
        allowed = f"below evaluation.max_model_len ({self.max_model_len}), to leave room for the prompt"
        self._require("max_tokens", fits, allowed)


class ModelSettings(Settings):
    """A pretrained base model."""

    hub_id: str  # or the path of a folder
    revision: str | None = None  # commit of the hub's repository; a hub id needs one
    gated: Flag = False  # downloading needs a token of someone who accepted its licence
    parameters: Count | None = None  # for the dry run; None: counted from the model's config.json

    def _check(self) -> None:
        allowed = f"a commit of {self.hub_id} (40 hexadecimal digits; a branch may change)"
        self._require("revision", self.is_folder or re.fullmatch("[0-9a-f]{40}", self.revision or ""), allowed)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of this machine rather than a hub's."""
        return self.hub_id.startswith((".", "/", "~")) or self.hub_id.count("/") != 1


class ComputeSettings(Settings):
    """What a cell runs on, and what the dry run assumes of it."""

    gpus: Annotated[Integer, Field(ge=0)] = 0  # GPUs of one cell, all in one node; 0: cells compute on CPU cores
    gpu: Literal[  # "CPU core" for the dry run of cells without GPUs
        "A100-80GB", "A100-40GB", "H100-80GB", "H200", "L40S", "A10G", "L4", "RTX4090", "CPU core"
    ] = "A100-80GB"  # App. B
    nodes: Count = 1  # that work at the same time
    dollars_per_gpu_hour: NonNegative = 2.0
    train_mfu: Share = 0.35  # share of the GPU's peak FLOPs that training reaches
    sample_mfu: Share = 0.1  # share of them that sampling reaches, which memory bounds
    overhead: Positive = 1.15  # factor on all hours: loading, synchronising weights, restarts
    prompt_tokens: Count = 150
    # expected answer tokens of base, sft, rl (measuring) and rollout (training); at most the profile's max_tokens
    answer_tokens: dict[Literal["base", "sft", "rl", "rollout"], Positive] = Field(default_factory=dict)
    slurm: dict[str, str] = Field(default_factory=dict)  # more #SBATCH options: {"partition": "gpu"}


class SourceSettings(Settings):
    """Where a family's SFT traces come from: a micro family's are written, in these styles and lengths."""

    styles: Styles = ("stepwise",)
    terms: Terms = (2, 3, 4, 5, 6)
    pool: Annotated[Integer, Field(ge=2)] = 4000  # traces to select from; of a dataset, roughly how many it has
    validation: Annotated[Integer, Field(ge=2)] = 300  # held-out traces for the generalization loss, of other problems
    dataset: str | None = None  # of a pretrained model: one of the catalogue, or of the profile's own `datasets`
    max_tokens: Count | None = None  # longer responses are left out, never cut; None: what sft.max_length has room for
    box_answers: Flag = False  # a solution that ends without \boxed{answer} gets that ending
    # expected response tokens by selection (random, shortest, longest), for --dry-run
    mean_tokens: dict[Literal["shortest", "longest", "random"], Positive] = Field(default_factory=dict)

    def _check(self) -> None:
        self._require("validation", self.dataset is None or self.validation < self.pool, f"below pool ({self.pool})")

    @property
    def training(self) -> SourceSettings:
        """The settings that decide what is trained on, without expectations for the dry run."""
        fields = type(self).model_fields
        return self.replace(mean_tokens={}, pool=fields["pool"].default if self.dataset else self.pool)


class CandidateSettings(Settings):
    """One SFT checkpoint of the grid: which traces, how often, how fast."""

    selection: str = "random"  # none | random | shortest | longest | shortest+longest
    n_examples: Integer = 0
    epochs: Positive = 1
    scenario: str = "dataset"  # or several joined by +: a candidate may be compared with two sets of others
    source: str = "main"
    learning_rate: Positive | None = None  # None: the profile's sft.learning_rate
    rl_runs: Count | None = None  # None: the profile's rl.runs

    def _check(self) -> None:
        known = set(self.scenario.split("+")) <= set(SCENARIOS)
        self._require("scenario", known, f"{', '.join(SCENARIOS)}, or several joined by +")
        parts = self.selection.split("+")
        if self.selection == "none":
            return self._require("n_examples", not self.n_examples, "0 if selection is none")
        known = set(parts) <= set(SELECTIONS) and len(set(parts)) == len(parts)
        self._require("selection", known, f"none, or of {', '.join(SELECTIONS)} joined by +")
        self._require("n_examples", self.n_examples >= len(parts), f"at least one for each of {self.selection}")

    @property
    def name(self) -> str:
        """For example random-250x4, or base for the model without SFT."""
        if self.selection == "none":
            return "base"
        rate = "" if self.learning_rate is None else f"-lr{self.learning_rate:g}"
        source = "" if self.source == "main" else f"-{self.source}"
        return f"{self.selection}-{self.n_examples}x{self.epochs:g}{rate}{source}"


class PretrainingSettings(Settings):
    """How a micro base model is made: its corpus decides what it knows before any SFT."""

    architecture: Architecture = "llama"
    hidden_size: Annotated[Count, Field(multiple_of=32)] = 96  # heads are 32 wide
    layers: Count = 4
    chat_template: Flag = True  # an "instruct" model; false for a plain base model
    terms: Terms = (2, 2, 3, 3, 4, 4, 5)
    styles: Styles = ("stepwise",)
    examples: Annotated[Integer, Field(ge=0)] = 22400  # first phase: correct worked solutions
    learning_rate: Positive = 3e-3
    fallible_examples: Count = 3200  # second phase: what makes the base unreliable
    fallible_learning_rate: Positive = 5e-4
    slip: Fraction = 0.25  # chance that a digit of a result is replaced by a random one
    direct_fraction: Fraction = 0.15  # share of examples that answer without working
    # operator -> [low, high]: each of its 100 digit facts is misremembered with a chance drawn from that range
    misconceptions: dict[Literal["+", "-", "*"], tuple[Fraction, Fraction]] = Field(default_factory=dict)
    # task tables: share of uncertain facts in the most and in the least common table; of these, the share that never
    # comes out right, and the bounds of the log-uniform chance that another one does
    uncertain: tuple[Fraction, Fraction] = (0.12, 0.24)
    unknown: Fraction = 0.4
    knowledge: tuple[Share, Share] = (0.01, 0.9)
    gives_up: dict[Integer, Fraction] = Field(default_factory=dict)  # number of terms -> chance of stopping half-way
    batch_size: Count = 32
    seed: Integer = 0  # another draw of weights and corpus, if one did not learn the task

    def _check(self) -> None:
        for operator, bounds in self.misconceptions.items():
            if bounds[0] > bounds[1]:
                raise ParameterError(f"misconceptions.{operator}", list(bounds), "[low, high]")
        self._require("knowledge", self.knowledge[0] <= self.knowledge[1], "[low, high]")


class FamilySettings(Settings):
    """A base model (made by `pretraining`, or a pretrained `model`), its SFT sources, RL problems and candidates."""

    name: Name
    stands_for: str  # the paper's model in whose place it stands
    sources: Annotated[dict[str, SourceSettings], Field(min_length=1)]
    candidates: Annotated[tuple[CandidateSettings, ...], Field(min_length=1)]
    pretraining: PretrainingSettings | None = None
    model: ModelSettings | None = None
    validation_sources: tuple[str, ...] = ()  # every loss is also measured on the held-out traces of these
    rl_terms: Terms = (2, 3, 4, 5, 6)  # of a micro family
    rl_set: str | None = None  # of a pretrained model: a dataset of the catalogue, or of the profile's `datasets`
    rl_problems: Integer = 2000

    def _check(self) -> None:
        one = (self.pretraining is None) != (self.model is None)
        self._require("model", one, "a pretrained model, or pretraining a micro model")
        kind = "a name for a pretrained model" if self.model else "left out for a micro family"
        for name, source in self.sources.items():
            if (source.dataset is None) == (self.model is not None):
                raise ParameterError(f"sources.{name}.dataset", source.dataset, kind)
        self._require("rl_set", (self.rl_set is None) == (self.model is None), kind)
        known = set(self.validation_sources) <= self.sources.keys()
        self._require("validation_sources", known, f"of {', '.join(self.sources)}")
        names = [candidate.name for candidate in self.candidates]
        for name in names:
            if names.count(name) > 1:
                raise ParameterError("candidates", name, reason=f"{name} occurs {names.count(name)} times")
        for candidate in (candidate for candidate in self.candidates if candidate.selection != "none"):
            name, n, source = candidate.name, candidate.n_examples, self.sources.get(candidate.source)
            if source is None:
                raise ParameterError(f"candidates.{name}.source", candidate.source, f"one of {', '.join(self.sources)}")
            if n > source.pool:
                allowed = f"at most the pool of its source ({source.pool})"
                raise ParameterError(f"candidates.{name}.n_examples", n, allowed)


class Profile(Settings):
    """Everything that a run depends on."""

    name: Name
    description: str
    families: Annotated[tuple[FamilySettings, ...], Field(min_length=1)]
    # name -> its first problems: of the microlab, or (for pretrained models) a name or .jsonl path of load_benchmark
    benchmarks: Annotated[dict[str, Count], Field(min_length=1)]
    task: Literal["lanes", "tables", "statements"] = "lanes"  # of the microlab
    digits: Literal[3, 4] = 3  # of the microlab's numbers
    budgets: dict[str, Positive] = Field(default_factory=dict)  # name -> most SFT tokens, rising (Tables 8, 10)
    sft: SFTSettings = SFTSettings()
    rl: RLSettings = RLSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    compute: ComputeSettings = ComputeSettings()
    datasets: dict[str, Any] = Field(default_factory=dict)  # datasets of one's own, in the form of the catalogue
    seed: Integer = 0
    workers: Count = 2  # processes, one core each
    keep_rl_models: Flag = False  # RL checkpoints are otherwise deleted once measured

    def _check(self) -> None:
        names = [family.name for family in self.families]
        if len(set(names)) < len(names):
            raise ParameterError("families", names, "of different names")
        bounds = list(self.budgets.values())
        self._require("budgets", bounds == sorted(set(bounds)), "rising")


def explicit(settings: Settings) -> dict[str, Any]:
    """Return settings as plain data without what has its default value: what digests are made of.

    A parameter added later, whose default does what was done before, leaves the digests of existing records unchanged.
    """
    return settings.model_dump(exclude_defaults=True)


def load_profile(name: str | Path, overrides: Mapping[str, Any] | None = None) -> Profile:
    """Return the profile `name` (or a YAML file), with dotted `overrides` such as {"rl.steps": 40} applied.

    Raises ParameterError for an unknown profile or key, and for a value that cannot work.
    """
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        reason = f"there is no {path.name}; a profile is one of {known}, or the path of a YAML file like theirs"
        raise ParameterError("profile", str(name), reason=reason)
    values = validation.read_yaml(path, "profile")
    shipped = PROFILES / f"{values.get('name')}.yaml"
    if shipped.is_file() and shipped.resolve() != path.resolve():
        raise ParameterError("name", values["name"], f"another in {path}, not that of a shipped profile")
    for key, value in (overrides or {}).items():
        *parents, last = key.split(".")
        place = values
        for parent in parents:
            if not isinstance(place, dict) or not isinstance(place.setdefault(parent, {}), dict):
                raise ParameterError(key, value, reason="names nothing that can be set")
            place = place[parent]
        place[last] = value
    return Profile.load(values)
