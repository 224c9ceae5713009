"""The grid of a profile: its cells, what each depends on, where each keeps its files, and what can be wrong with it.

cells = plan(load_profile("smoke"))                     # base models, SFT candidates, RL runs
cells[-1].needs.path(Path("results/smoke"), "models")   # the checkpoint that the last RL run starts from
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quagmire_utils.core import files
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.settings import SCENARIOS, CandidateSettings, FamilySettings, Profile, explicit
from quagmire_utils.data import Dataset, benchmark_names, find_dataset, load_benchmark, load_datasets
from quagmire_utils.engines import check_engine
from quagmire_utils.training.microlab import MICRO_BENCHMARKS

FIRST_RUNS = 2  # RL runs that every candidate gets before any candidate gets more
CELL_VERSION = 1  # raise it when a change of the code changes what cells compute


@dataclass(frozen=True)
class Cell:
    """One unit of work: a base model, an SFT candidate or one RL run, made and measured."""

    id: str  # family/candidate, or family/candidate/rlN
    kind: str  # base | sft | rl
    digest: str  # of every parameter that the cell depends on
    family: FamilySettings = field(compare=False, repr=False)
    candidate: CandidateSettings = field(compare=False, repr=False)  # of a base model: selection none
    run: int | None = None  # of an RL cell
    needs: Cell | None = field(default=None, compare=False, repr=False)  # the cell whose checkpoint it starts from

    @property
    def names(self) -> dict[str, str]:
        """The family and the candidate, as in the records."""
        return {"family": self.family.name, "candidate": self.candidate.name}

    def row(self) -> dict[str, object]:
        """Return the cell as plain values, as its cell.json holds them."""
        needs = None if self.needs is None else self.needs.id
        return {"id": self.id, "kind": self.kind, **self.names, "run": self.run, "needs": needs, "digest": self.digest}

    def path(self, folder: Path, what: str) -> Path:
        """Return where the cell keeps its cells (records), models, samples, digests or logs in the results folder."""
        suffix = ".log" if what == "logs" else ""
        return folder / "scratch" / what / (self.id.replace("/", "__") + suffix)


def plan(profile: Profile) -> list[Cell]:
    """Return the cells of a profile in the order in which they run best: each candidate's RL follows its SFT."""
    measuring = explicit(profile.evaluation)
    measuring.pop("k", None)  # which k is shown changes no answer
    after_rl = measuring.pop("rl_num_samples", None)
    shared = {"version": CELL_VERSION, "seed": profile.seed, "benchmarks": profile.benchmarks, "evaluation": measuring}
    shared |= {name: value for name, value in explicit(profile).items() if name in ("digits", "task")}
    cells = []
    for family in profile.families:
        # what the traces of each source depend on
        sources: dict[str, object] = {name: explicit(source.training) for name, source in family.sources.items()}
        for name, source in family.sources.items():
            if source.dataset in profile.datasets:
                sources[name] = [sources[name], profile.datasets[source.dataset]]
        main = next(iter(sources.items()), None)  # every candidate is validated on it
        model = {"hub_id": family.model.hub_id, "revision": family.model.revision} if family.model else None
        made = model or explicit(family.pretraining)
        validated = [[(name, sources[name]) for name in family.validation_sources]] if family.validation_sources else []
        digest = files.digest([shared, family.name, made, main, *validated])
        base = Cell(f"{family.name}/base", "base", digest, family, CandidateSettings(selection="none"))
        cells.append(base)
        rl = {**explicit(profile.rl), "runs": None, "problems": family.rl_problems, "terms": family.rl_terms}
        rl["num_samples"] = after_rl
        if family.rl_set is not None:
            rl["set"] = [family.rl_set, profile.datasets.get(family.rl_set)]
        for candidate in family.candidates:
            start = base
            if candidate.selection != "none":
                # neither the comparisons that a candidate serves nor its number of RL runs change its training
                training = explicit(candidate.replace(scenario=SCENARIOS[0], rl_runs=None))
                parts = [base.digest, training, sources.get(candidate.source), explicit(profile.sft)]
                name = f"{family.name}/{candidate.name}"
                start = Cell(name, "sft", files.digest(parts), family, candidate, needs=base)
                cells.append(start)
            for run in range(rl_runs(profile, candidate)):
                digest = files.digest([start.digest, rl, run])
                cells.append(Cell(f"{start.id}/rl{run}", "rl", digest, family, candidate, run, start))
    return cells


def first_runs_first(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells in their order, but after the first RL runs of all candidates their further ones."""
    return sorted(cells, key=lambda cell: cell.run is not None and cell.run >= FIRST_RUNS)


def rl_runs(profile: Profile, candidate: CandidateSettings) -> int:
    """Return how many RL runs start from a candidate."""
    return profile.rl.runs if candidate.rl_runs is None else candidate.rl_runs


def work(profile: Profile, cell: Cell) -> float:
    """Return the rough cost of a micro model's cell in sampled answers. A trained example costs about four."""
    problems, pretraining = sum(profile.benchmarks.values()), cell.family.pretraining
    if cell.kind == "rl":
        rl = profile.rl.over(cell.family.rl_problems)
        rollouts = rl.steps * rl.prompts_per_step * rl.rollouts
        return 5 * rollouts + problems * profile.evaluation.rl_num_samples * rl.checkpoints
    trained = cell.candidate.n_examples * cell.candidate.epochs
    if cell.kind == "base" and pretraining is not None:
        trained = pretraining.examples + pretraining.fallible_examples
    return 4 * trained + problems * profile.evaluation.num_samples


def derive_seed(*parts: object) -> int:
    """Return a seed that depends on all the parts and on nothing else."""
    return int(files.digest(list(parts))[:8], 16) & 0x7FFFFFFF


def check(profile: Profile, *, here: bool = True) -> None:
    """Raise ParameterError for a profile that would fail in a sweep; `here`: also if the engine is missing here."""
    if here:
        check_engine(profile.evaluation.engine)
    _check_benchmarks(profile)
    for family in profile.families:
        profile.rl.over(family.rl_problems)
        if family.model is not None:
            _check_pretrained(profile, family, f"families.{family.name}")
    if profile.families[0].model is not None:
        _check_devices(profile)


def _check_benchmarks(profile: Profile) -> None:
    """Refuse unknown benchmarks, and more problems than one has."""
    micro = profile.families[0].model is None
    if any((family.model is None) != micro for family in profile.families):
        raise ParameterError("families", reason="micro and pretrained models share no benchmark; use two profiles")
    known, also = (MICRO_BENCHMARKS, "") if micro else (benchmark_names(), ", or the path of a .jsonl file")
    for name, count in profile.benchmarks.items():
        own = not micro and name.endswith(".jsonl") and Path(name).is_file()
        if not own and name not in known:
            raise ParameterError("benchmarks", name, f"of {', '.join(known)}{also}")
        if micro:
            continue
        dataset = None if own else find_dataset(name)
        there = len(load_benchmark(name)) if own else max(dataset.count or 0, dataset.hub_count or 0)
        if there and count > there:
            raise ParameterError(f"benchmarks.{name}", count, f"at most the {there:,} problems that it has")


def training_sets(profile: Profile) -> dict[str, Dataset]:
    """Return the datasets that a profile can train on: the catalogue's and its own. Raises ParameterError."""
    known = load_datasets(profile.datasets)
    return {name: dataset for name, dataset in known.items() if dataset.kind == "training"}


def _check_pretrained(profile: Profile, family: FamilySettings, where: str) -> None:
    known = training_sets(profile)
    asked = {f"sources.{name}.dataset": source.dataset for name, source in family.sources.items()}
    for parameter, name in {**asked, "rl_set": family.rl_set}.items():
        if name not in known:
            raise ParameterError(f"{where}.{parameter}", name, f"one of {', '.join(known)}")
        column = "answer" if parameter == "rl_set" else "response"
        if not getattr(known[name], column):
            raise ParameterError(f"{where}.{parameter}", name, f"a dataset with {column}s")
    if profile.rl.backend == "compact" and profile.compute.gpus:
        raise ParameterError("rl.backend", "compact", f"trl or verl for {where}; compact is for models on a CPU")
    for name, source in family.sources.items():
        if (source.max_tokens or 0) >= profile.sft.max_length:
            allowed = f"below sft.max_length ({profile.sft.max_length}), to leave room for the prompt"
            raise ParameterError(f"{where}.sources.{name}.max_tokens", source.max_tokens, allowed)


def _check_devices(profile: Profile) -> None:
    """Refuse back-ends that cannot work on so many GPUs, and batches that do not divide among them."""
    sft, rl, gpus = profile.sft, profile.rl, profile.compute.gpus
    if gpus > 1 and "trl" in (sft.backend, rl.backend):
        raise ParameterError("compute.gpus", gpus, "0 or 1 with backend trl, which trains on one GPU")
    if gpus == 0 and (rl.backend == "verl" or rl.rollout_engine == "vllm"):
        need = "rl.backend verl" if rl.backend == "verl" else "rl.rollout_engine vllm"
        raise ParameterError("compute.gpus", gpus, f"at least 1 with {need}")
    rollouts = rl.prompts_per_step * rl.rollouts
    for settings, name, parameter, batch in (
        (sft, "sft", "sft.batch_size", sft.batch_size),
        (rl, "rl", "rl.prompts_per_step x rl.rollouts", rollouts),
    ):
        each = (settings.micro_batch_size or 1) * max(1, gpus)
        if settings.backend in ("llamafactory", "verl") and batch % each:
            raise ParameterError(parameter, batch, f"a multiple of {name}.micro_batch_size x compute.gpus ({each})")
