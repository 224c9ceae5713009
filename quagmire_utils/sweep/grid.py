"""The grid of a profile: its cells, what each depends on, and where each keeps its files. Paper: Sec. 4.1.

cells = plan(load_profile("smoke"))                     # base models, SFT candidates, RL runs
cells[-1].needs.path(Path("results/smoke"), "models")   # the checkpoint that the last RL run starts from
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quagmire_utils.core import files
from quagmire_utils.core.settings import SCENARIOS, CandidateSettings, FamilySettings, Profile, explicit

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
        """Return where the cell keeps its files of one kind in the results `folder`.

        what: cells (its records), models, samples, digests or logs.
        """
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
        made = family.pretraining or {"hub_id": family.model.hub_id, "revision": family.model.revision}
        validated = [[(name, sources[name]) for name in family.validation_sources]] if family.validation_sources else []
        digest = files.digest([shared, family.name, explicit(made), main, *validated])
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
