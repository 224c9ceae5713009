"""What a sweep consists of: its cells, what each depends on, where each keeps its files, and the data of a family."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from quagmire_utils.core import files
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.settings import (
    SCENARIOS,
    SELECTIONS,
    CandidateSettings,
    FamilySettings,
    Profile,
    RLSettings,
    SourceSettings,
    explicit,
)
from quagmire_utils.data import Problem, Trace

CELL_VERSION = 1  # raise it when a change of the code changes what cells compute


@dataclass(frozen=True)
class Cell:
    """One unit of work. `needs` names the cell whose checkpoint it starts from."""

    id: str
    kind: str  # base | sft | rl
    family: str
    candidate: str
    run: int | None
    needs: str | None
    digest: str  # of every parameter that the cell depends on


def plan(profile: Profile) -> list[Cell]:
    """The cells of a profile in the order in which they are best run: each candidate's RL follows its SFT."""
    names = [family.name for family in profile.families]
    if len(set(names)) < len(names):
        raise ParameterError(f"families: two of them have one name ({', '.join(sorted(names))})")
    cells = []
    measuring = explicit(profile.evaluation)
    measuring.pop("k", None)  # which k is shown changes no answer
    after_rl = measuring.pop("rl_num_samples", None)
    shared = {
        "version": CELL_VERSION,
        "seed": profile.seed,
        "benchmarks": profile.benchmarks,
        "evaluation": measuring,
    }
    if profile.digits != Profile.model_fields["digits"].default:
        shared["digits"] = profile.digits
    for family in profile.families:
        base_id = f"{family.name}/base"
        main = next(iter(family.sources.items()), None)  # everything is validated on it
        main = main and [main[0], _source(profile, main[1])]
        base_digest = files.digest([shared, family.name, _base(family), main])
        cells.append(Cell(base_id, "base", family.name, "base", None, None, base_digest))
        names = [candidate.name for candidate in family.candidates]
        for name in names:
            if names.count(name) > 1:
                raise ParameterError(f"families.{family.name}.candidates has {name} {names.count(name)} times")
        for candidate in family.candidates:
            start, start_digest = base_id, base_digest
            if candidate.selection != "none":
                start = f"{family.name}/{candidate.name}"
                source = family.sources.get(candidate.source)  # `check` refuses one that is not there
                start_digest = files.digest(
                    [base_digest, _training(candidate), source and _source(profile, source), explicit(profile.sft)]
                )
                cells.append(Cell(start, "sft", family.name, candidate.name, None, base_id, start_digest))
            rl = {**explicit(profile.rl), "runs": None, "problems": family.rl_problems, "terms": family.rl_terms}
            rl["num_samples"] = after_rl
            if family.rl_set is not None:
                rl["set"] = [family.rl_set, profile.datasets.get(family.rl_set)]
            for run in range(rl_runs(profile, candidate)):
                digest = files.digest([start_digest, rl, run])
                cells.append(Cell(f"{start}/rl{run}", "rl", family.name, candidate.name, run, start, digest))
    return cells


def check(profile: Profile, *, here: bool = True) -> None:
    """Refuse, with one sentence, what would only fail after minutes or hours of a sweep.

    `here`: also what this machine lacks; without it, only what no machine could run.
    """
    from quagmire_utils.data.prompts import TEMPLATES
    from quagmire_utils.engines import ENGINES, check_engine
    from quagmire_utils.training import microlab

    plan(profile)
    if profile.evaluation.engine == "server":
        raise ParameterError("evaluation.engine server: no server has the checkpoints that a sweep trains; take vllm")
    if here or profile.evaluation.engine not in ENGINES:
        check_engine(profile.evaluation.engine)
    if profile.evaluation.template not in TEMPLATES:
        raise ParameterError(f"evaluation.template must be one of {', '.join(TEMPLATES)}")
    if profile.digits not in microlab.DIGITS:
        raise ParameterError(f"digits must be one of {', '.join(map(str, microlab.DIGITS))}, not {profile.digits}")
    for name, count in profile.benchmarks.items():
        _check_benchmark(profile, name)
        if count < 1:
            raise ParameterError(f"benchmarks.{name} must be at least 1 problem, not {count}")
    for name in (profile.name, *(family.name for family in profile.families)):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name.replace("_", "-") if name == profile.name else name):
            # they become names of folders, in which __ stands for /
            raise ParameterError(f"name: {name!r} may hold letters, digits, dots and hyphens only")
    for family in profile.families:
        where = f"families.{family.name}"
        if family.pretraining is not None:
            microlab.check_pretraining(family.pretraining, where)
            microlab.check_terms(family.rl_terms, f"{where}.rl_terms")
        else:
            _check_pretrained(profile, family, where)
        if profile.rl.prompts_per_step > family.rl_problems:
            raise ParameterError(
                f"{where}.rl_problems ({family.rl_problems}) must not be below rl.prompts_per_step "
                f"({profile.rl.prompts_per_step})"
            )
        if not family.sources:
            raise ParameterError(f"{where}.sources is empty: there is nothing to fine-tune on")
        for name, source in family.sources.items():
            if source.dataset is None:
                microlab.check_terms(source.terms, f"{where}.sources.{name}.terms")
                microlab.check_styles(source.styles, f"{where}.sources.{name}.styles")
        if not family.candidates:
            raise ParameterError(f"{where}.candidates is empty: there is nothing to compare")
        for candidate in family.candidates:
            named = f"{where}.candidates.{candidate.name}"
            if candidate.selection != "none" and not set(candidate.selection.split("+")) <= set(SELECTIONS):
                raise ParameterError(f"{named}.selection must be none, or of {', '.join(SELECTIONS)} joined by +")
            if candidate.source not in family.sources and candidate.selection != "none":
                raise ParameterError(f"{named}.source {candidate.source!r} is not one of {', '.join(family.sources)}")
            if candidate.selection != "none" and candidate.n_examples > family.sources[candidate.source].pool:
                raise ParameterError(
                    f"{named}.n_examples ({candidate.n_examples}) exceeds the source's pool "
                    f"({family.sources[candidate.source].pool})"
                )


def _check_benchmark(profile: Profile, name: str) -> None:
    from quagmire_utils.data import BENCHMARKS
    from quagmire_utils.training.microlab import MICRO_BENCHMARKS

    micro = profile.families[0].model is None
    if any((family.model is None) != micro for family in profile.families):
        raise ParameterError("families: micro and pretrained models cannot share a profile: they share no benchmark")
    if micro and name not in MICRO_BENCHMARKS:
        raise ParameterError(f"benchmarks: {name} is not one of {', '.join(MICRO_BENCHMARKS)}")
    if not micro and name not in BENCHMARKS and not (name.endswith(".jsonl") and Path(name).is_file()):
        raise ParameterError(f"benchmarks: {name} is neither one of {', '.join(BENCHMARKS)} nor a .jsonl file")


def _check_pretrained(profile: Profile, family: FamilySettings, where: str) -> None:
    from quagmire_utils.sweep.data import training_sets

    known = training_sets(profile)
    asked = {f"sources.{name}.dataset": source.dataset for name, source in family.sources.items()}
    for parameter, name in {**asked, "rl_set": family.rl_set}.items():
        if name not in known:
            raise ParameterError(f"{where}.{parameter}: {name} is not one of {', '.join(known)}")
        if parameter != "rl_set" and known[name].response is None:
            raise ParameterError(f"{where}.{parameter}: {name} has problems only, no solutions to fine-tune on")
        if parameter == "rl_set" and not known[name].answer:
            raise ParameterError(f"{where}.{parameter}: {name} has no answers to reward")
    steps = resolved_rl(profile, family).steps
    if profile.rl.checkpoints > steps:
        raise ParameterError(f"rl.checkpoints ({profile.rl.checkpoints}) must not exceed the {steps} steps of a run")
    if profile.rl.backend == "compact":
        raise ParameterError(f"{where}: rl.backend compact is for micro models; take trl or verl")
    for name, source in family.sources.items():
        if (source.max_tokens or 0) >= profile.sft.max_length:
            raise ParameterError(
                f"{where}.sources.{name}.max_tokens ({source.max_tokens}) must leave room for the prompt in "
                f"sft.max_length ({profile.sft.max_length})"
            )
    _check_devices(profile)
    context = profile.evaluation.max_model_len
    if context is not None and profile.evaluation.max_tokens >= context:
        raise ParameterError(
            f"evaluation.max_tokens ({profile.evaluation.max_tokens}) must leave room for the prompt in "
            f"evaluation.max_model_len ({context})"
        )


def _check_devices(profile: Profile) -> None:
    """Refuse back-ends that cannot work on so many GPUs, and batches that do not divide among them."""
    sft, rl, gpus = profile.sft, profile.rl, profile.compute.gpus
    if gpus > 1 and "trl" in (sft.backend, rl.backend):
        raise ParameterError("compute.gpus must be 0 or 1 with backend trl, which trains on one GPU")
    if gpus == 0 and rl.backend == "verl":
        raise ParameterError("compute.gpus must not be 0 with rl.backend verl, which trains on GPUs only")
    if gpus == 0 and rl.rollout_engine == "vllm":
        raise ParameterError("compute.gpus must not be 0 with rl.rollout_engine vllm, which takes new weights on a GPU")
    each = (sft.micro_batch_size or 1) * max(1, gpus)
    if sft.backend == "llamafactory" and sft.batch_size % each:
        raise ParameterError(
            f"sft.batch_size ({sft.batch_size}) must be a multiple of sft.micro_batch_size x compute.gpus ({each})"
        )
    rollouts, each = rl.prompts_per_step * rl.rollouts, (rl.micro_batch_size or 1) * max(1, gpus)
    if rl.backend == "verl" and rollouts % each:
        raise ParameterError(
            f"rl.prompts_per_step x rl.rollouts ({rollouts}) must be a multiple of rl.micro_batch_size x compute.gpus "
            f"({each})"
        )


def resolved_rl(profile: Profile, family: FamilySettings) -> RLSettings:
    """The RL settings with the steps that `rl.epochs` passes over the family's problems come to.

    What is left of the problems at the end of a pass is too few for a step, and is dropped.
    """
    if profile.rl.epochs is None:
        return profile.rl
    steps = max(1, math.floor(profile.rl.epochs * (family.rl_problems // profile.rl.prompts_per_step)))
    return profile.rl.replace(steps=steps, epochs=None)


def cost(profile: Profile, cell: Cell) -> float:
    """Roughly what a cell costs, in sampled answers; a trained example costs about four. For progress bars only."""
    family = next(family for family in profile.families if family.name == cell.family)
    problems = sum(profile.benchmarks.values())
    if cell.kind == "rl":
        rollouts = resolved_rl(profile, family).steps * profile.rl.prompts_per_step * profile.rl.rollouts
        return 5 * rollouts + problems * profile.evaluation.rl_num_samples * profile.rl.checkpoints
    trained = 0
    if family.pretraining is not None:
        trained = family.pretraining.examples + family.pretraining.fallible_examples
    if cell.kind == "sft":
        candidate = next(c for c in family.candidates if c.name == cell.candidate)
        trained = candidate.n_examples * candidate.epochs
    return 4 * trained + problems * profile.evaluation.num_samples


def _training(candidate: CandidateSettings) -> dict[str, object]:
    """What a candidate's training depends on: not which others it is compared with, nor how often RL starts from it."""
    return explicit(candidate.replace(scenario=SCENARIOS[0], rl_runs=None))


def _base(family: FamilySettings) -> object:
    """What a base model depends on."""
    if family.model is None:
        return explicit(family.pretraining)
    return {"hub_id": family.model.hub_id, "revision": family.model.revision}


def _source(profile: Profile, source: SourceSettings) -> object:
    """What a source's traces depend on."""
    own = profile.datasets.get(source.dataset)
    return explicit(source.training) if own is None else [explicit(source.training), own]


def rl_runs(profile: Profile, candidate: CandidateSettings) -> int:
    """How many RL runs start from a candidate."""
    return profile.rl.runs if candidate.rl_runs is None else candidate.rl_runs


# --- data, the same in every process (of a pretrained model's family: see `data`) ------------------------------------


def benchmark_problems(profile: Profile) -> dict[str, list[Problem]]:
    """The profile's benchmarks: at most so many problems of each, the first ones."""
    from quagmire_utils import data as benchmarks
    from quagmire_utils.training import microlab

    if profile.families[0].model is not None:
        return {name: benchmarks.load_benchmark(name, limit=count) for name, count in profile.benchmarks.items()}
    return {
        name: microlab.make_problems(
            name, replace(microlab.MICRO_BENCHMARKS[name], digits=profile.digits), count, profile.seed
        )
        for name, count in profile.benchmarks.items()
    }


def source_traces(profile: Profile, family: FamilySettings, source: str) -> tuple[list[Trace], list[Trace]]:
    """A micro source's (pool, validation) traces, on different problems, none of them a benchmark's."""
    from quagmire_utils.data import curation
    from quagmire_utils.training import microlab

    settings = family.sources[source]
    traces = microlab.make_traces(
        settings.terms,
        settings.pool + settings.validation + sum(profile.benchmarks.values()),
        styles=settings.styles,
        source=source,
        seed=derive_seed(profile.seed, family.name, source),
        digits=profile.digits,
    )
    problems = [problem for group in benchmark_problems(profile).values() for problem in group]
    clean, _ = curation.decontaminate(traces, problems)
    return clean[settings.validation : settings.validation + settings.pool], clean[: settings.validation]


def rl_problems(profile: Profile, family: FamilySettings) -> list[Problem]:
    """The problems that a micro family's RL learns from, none of them a benchmark's."""
    from quagmire_utils.training import microlab

    taken = {problem.question for group in benchmark_problems(profile).values() for problem in group}
    drawn = microlab.make_mixed_problems(
        family.rl_terms,
        family.rl_problems + len(taken),
        derive_seed(profile.seed, family.name, "rl"),
        digits=profile.digits,
    )
    return [problem for problem in drawn if problem.question not in taken][: family.rl_problems]


def derive_seed(*parts: object) -> int:
    """A seed that depends on all the parts and on nothing else."""
    return int(files.digest(list(parts))[:8], 16) & 0x7FFFFFFF


# --- where a cell keeps its files -----------------------------------------------------------------------------------


def cell_folder(folder: Path, cell: Cell) -> Path:
    """Where a finished cell's records are."""
    return folder / "scratch" / "cells" / cell.id.replace("/", "__")


def model_folder(folder: Path, cell_id: str) -> Path:
    """Where a cell's checkpoint is (for RL: its checkpoints)."""
    return folder / "scratch" / "models" / cell_id.replace("/", "__")


def shipped_folder(folder: Path, cell: Cell) -> Path:
    """Where a finished base model is kept beside the records, so that its candidates can be trained again at once."""
    return folder / "bases" / cell.family


def samples_folder(folder: Path, cell: Cell) -> Path:
    """Where a cell's graded answers are."""
    return folder / "scratch" / "samples" / cell.id.replace("/", "__")


def digest_path(folder: Path, cell: Cell) -> Path:
    """The note that says with which parameters a cell's files were made."""
    return folder / "scratch" / "digests" / cell.id.replace("/", "__")


def progress_path(folder: Path, cell: Cell) -> Path:
    """The note of how far a running cell is."""
    return folder / "scratch" / "progress" / cell.id.replace("/", "__")


def log_path(folder: Path, cell: Cell) -> Path:
    """What a cell printed."""
    return folder / "scratch" / "logs" / f"{cell.id.replace('/', '__')}.log"
