"""Benchmarks, SFT traces and RL problems of a family. Paper: Sec. 4.1, App. B.1.

Those of a micro family are written by the microlab, the same in every process. Those of a pretrained model are made by
`data.curation`, without any question that matches a benchmark of the profile or one of the paper's seven. The first
cell that needs them keeps them under `scratch/data`.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from filelock import FileLock

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import atomic_folder, digest
from quagmire_utils.core.settings import CandidateSettings, FamilySettings, ModelSettings, Profile
from quagmire_utils.core.tokenizer import first_line, load_tokenizer
from quagmire_utils.data import BENCHMARKS, Dataset, Problem, Trace, curation, load_benchmark, load_datasets
from quagmire_utils.data.curation import Recipe
from quagmire_utils.data.curation.scan import read_file
from quagmire_utils.data.dataset import local_files, source_files
from quagmire_utils.data.pretrained import locate
from quagmire_utils.data.prompts import render, response_ids
from quagmire_utils.data.rows import Record
from quagmire_utils.grading import prepare_problems
from quagmire_utils.sweep.grid import derive_seed, training_sets
from quagmire_utils.training import microlab

PROMPT_ROOM = 1024  # tokens of sft.max_length that are kept for question and template
MOST_LEFT_OUT = 0.02  # share of a candidate's traces that may be too long with their prompts
OWN_FRACTION = 4  # a candidate's own validation set keeps one of so many held-out traces
WEIGHTS = ("*.safetensors", "*.json", "tokenizer*", "*.jinja", "*.model", "*.txt")  # files of a hub repository


def benchmark_problems(profile: Profile, grader: str = "") -> dict[str, list[Problem]]:
    """Return the first problems of each benchmark; grader: of those in mathematics ("": the profile's)."""
    grader = grader or profile.evaluation.grader
    if profile.families[0].model is not None:
        return {name: _graded(grader, load_problems(name, count)) for name, count in profile.benchmarks.items()}
    kinds = {name: replace(microlab.MICRO_BENCHMARKS[name], digits=profile.digits) for name in profile.benchmarks}
    return {
        name: _graded(grader, microlab.make_problems(name, kinds[name], count, profile.seed))
        for name, count in profile.benchmarks.items()
    }


def _graded(grader: str, problems: Iterable[Problem]) -> list[Problem]:
    """Return problems of mathematics with this grader and the prompt of SFT and RL, the others as they are."""
    how = {"grader": grader, "instruction": None}
    return [replace(problem, **how) if problem.grader == "math" else problem for problem in problems]


def load_problems(name: str, count: int) -> list[Problem]:
    """Return the first `count` problems of a benchmark. Raises ParameterError if there are fewer or one has no gold."""
    problems = prepare_problems({name: load_benchmark(name, limit=count)})[name]
    if len(problems) < count:
        raise ParameterError(f"benchmarks.{name}", count, f"at most the {len(problems):,} problems that it has")
    return problems


def source_traces(profile: Profile, family: FamilySettings, source: str) -> tuple[list[Trace], list[Trace]]:
    """Return a micro source's (pool, validation) traces, on different problems, none of them a benchmark's."""
    settings = family.sources[source]
    traces = microlab.make_traces(
        settings.terms,
        settings.pool + settings.validation + sum(profile.benchmarks.values()),
        styles=settings.styles,
        source=source,
        seed=derive_seed(profile.seed, family.name, source),
        digits=profile.digits,
        task=profile.task,
    )
    problems = [problem for group in benchmark_problems(profile).values() for problem in group]
    clean, _ = curation.decontaminate(traces, problems)
    return clean[settings.validation : settings.validation + settings.pool], clean[: settings.validation]


def rl_problems(profile: Profile, family: FamilySettings, folder: Path) -> list[Problem]:
    """Return the problems of a family's RL, none of them a benchmark's."""
    seed = derive_seed(profile.seed, family.name, "rl")
    if family.model is None:
        taken = {problem.question for group in benchmark_problems(profile).values() for problem in group}
        count = family.rl_problems + len(taken)
        drawn = microlab.make_mixed_problems(family.rl_terms, count, seed, digits=profile.digits, task=profile.task)
        problems = [problem for problem in drawn if problem.question not in taken][: family.rl_problems]
    else:
        recipe = Recipe(source=family.rl_set, n=family.rl_problems, benchmarks=_forbidden(profile), seed=seed)
        made = load_benchmark(_build(profile, folder, recipe) / "train.jsonl")
        problems = [replace(problem, id=f"{family.rl_set}/{problem.id}") for problem in made]
    return _graded(profile.evaluation.grader, problems)


def candidate_traces(
    profile: Profile, folder: Path, family: FamilySettings, candidate: CandidateSettings, base: Path
) -> tuple[list[Trace], list[Trace]]:
    """Return a candidate's training traces and held-out ones selected alike; `base` has the tokenizer that counts."""
    tokenizer = load_tokenizer(base)
    seed = derive_seed(profile.seed, family.name, candidate.source, "selection")
    if family.model is None:
        pool, held_out = source_traces(profile, family, candidate.source)
        traces = curation.select(pool, candidate.selection, candidate.n_examples, tokenizer=tokenizer, seed=seed)
    else:
        chosen = {"selection": candidate.selection, "n": candidate.n_examples}
        traces, held_out = _sft_set(profile, folder, family, candidate.source, base, **chosen)
        if candidate.source != next(iter(family.sources)):
            traces = without_problems(traces, validation_traces(profile, folder, family, base))
    if candidate.selection == "random":
        return traces, held_out
    count = max(2, len(held_out) // OWN_FRACTION)
    return traces, curation.select(held_out, candidate.selection, count, tokenizer=tokenizer, seed=seed)


def validation_traces(
    profile: Profile, folder: Path, family: FamilySettings, base: Path, source: str | None = None
) -> list[Trace]:
    """Return the held-out traces of a source of the family; None: the first, on which all candidates are validated."""
    source = source or next(iter(family.sources))
    if family.model is None:
        return source_traces(profile, family, source)[1]
    return _sft_set(profile, folder, family, source, base, n=1)[1]  # the smallest training side that a recipe allows


def _forbidden(profile: Profile) -> tuple[str, ...]:
    """Return the benchmarks whose questions nothing may be trained on: the profile's, and the paper's seven."""
    return tuple(dict.fromkeys([*BENCHMARKS, *profile.benchmarks]))


def _sft_set(
    profile: Profile, folder: Path, family: FamilySettings, name: str, base: Path, **chosen: object
) -> tuple[list[Trace], list[Trace]]:
    """Return a source's (training, held-out) traces that fit; chosen: fields of the recipe that select."""
    settings, most = family.sources[name], profile.sft.max_length
    recipe = Recipe(
        source=settings.dataset,
        tokenizer=str(base),
        max_tokens=settings.max_tokens or max(1, most - PROMPT_ROOM),
        benchmarks=_forbidden(profile),
        validation_problems=settings.validation,
        seed=derive_seed(profile.seed, family.name, name, "selection"),
        **chosen,
    )
    traces, held_out = curation.load_set(_build(profile, folder, recipe))
    held_out = held_out[: settings.validation]  # some problems have several traces; these come in seeded order
    if settings.box_answers:
        traces, held_out = [boxed(trace) for trace in traces], [boxed(trace) for trace in held_out]
    tokenizer = load_tokenizer(base)

    def fits(trace: Trace) -> bool:
        prompt = render(trace.question, tokenizer)
        return len(prompt.token_ids) + len(response_ids(tokenizer, trace.response, prompt)) <= most

    fitting = list(filter(fits, traces))
    too_long = len(traces) - len(fitting)
    if too_long > MOST_LEFT_OUT * len(traces):
        reason = f"{too_long} of {len(traces)} traces exceed sft.max_length ({most}) with their prompts; lower it"
        raise ParameterError(f"families.{family.name}.sources.{name}.max_tokens", settings.max_tokens, reason=reason)
    return fitting, list(filter(fits, held_out))


def without_problems(traces: Sequence[Trace], held_out: Sequence[Trace]) -> list[Trace]:
    """Return the traces whose questions match none of the held-out ones: public datasets share many problems."""
    return curation.decontaminate(traces, [Problem(t.problem_id, t.question, t.answer) for t in held_out])[0]


def boxed(trace: Trace) -> Trace:
    """Return a trace whose solution ends in \\boxed{answer}, as the prompt asks.

    GSM8K's own marks (`<<48/2=24>>`, and the last line `#### 72`) are removed. A trace with \\boxed is unchanged.
    """
    if "\\boxed" in trace.response or not trace.answer:
        return trace
    text = re.sub(r"<<[^<>]*>>|\n####[^\n]*\s*$", "", trace.response).rstrip()
    return replace(trace, response=f"{text}\nThe answer is $\\boxed{{{trace.answer}}}$.")


def model_folder(model: ModelSettings) -> Path:
    """Return the folder of a model that is none of a hub's. Raises ParameterError if it is not there."""
    folder = Path(locate(model.hub_id)).expanduser()
    if not folder.is_dir():
        raise ParameterError("model.hub_id", model.hub_id, "a folder that exists, or a hub id")
    return folder


def fetch_model(model: ModelSettings, target: Path) -> None:
    """Put a base model's files into the folder `target`, which appears when they are complete."""
    if model.is_folder:
        source = model_folder(model)
    else:
        from huggingface_hub import snapshot_download

        try:  # into the hub's cache; resumes an interrupted download
            which = {"allow_patterns": list(WEIGHTS), "ignore_patterns": ["original/*", "consolidated*"]}
            source = snapshot_download(model.hub_id, revision=model.revision, **which)
        except Exception as error:  # the hub's client raises many kinds
            cause = first_line(error)
            remedy = "; accept its licence on its page and log in with `hf auth login`" if model.gated else ""
            reason = f"the hub gave no files of {model.hub_id} ({cause}){remedy}"
            raise ParameterError("model.hub_id", model.hub_id, reason=reason) from error
    with atomic_folder(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)


# --- the datasets that a profile names ------------------------------------------------------------------------------


def rows_needed(profile: Profile) -> dict[str, int]:
    """Return how many rows of each dataset the profile needs at least, held-out ones included."""
    needed: Counter[str | None] = Counter()
    for family in profile.families:
        needed |= Counter({family.rl_set: family.rl_problems})
        for name, source in family.sources.items():
            most = max((c.n_examples for c in family.candidates if c.source == name), default=0)
            needed |= Counter({source.dataset: max(1, most) + source.validation})
    return {name: rows for name, rows in needed.items() if name is not None}


def check_files(profile: Profile, folder: Path | None = None) -> Iterator[str]:
    """Yield a sentence for each local dataset file that is missing, not as described, or too short.

    Only the first piece of a large file is read. With the results `folder`, datasets from which a set has already been
    made there are skipped.
    """
    known = training_sets(profile)
    for name, rows in sorted(rows_needed(profile).items()):
        if folder is not None and any((folder / "scratch" / "data").glob(f"{name}-*/manifest.json")):
            continue
        try:
            files = local_files(known[name])
            lack = _check_rows(known[name], files, rows) if files else ""
        except ParameterError as error:
            lack = str(error).removeprefix(f"{name}: ")
        if lack:
            yield f"dataset {name}: {lack}"


def _check_rows(dataset: Dataset, files: Sequence[Path], needed: int) -> str:
    sources = source_files(dataset, files)
    usable = (record for record in read_file(dataset, sources[0]) if isinstance(record, Record))
    enough = needed if len(sources) == 1 else 1
    count = sum(1 for _ in islice(usable, enough))
    return "" if count == enough else f"{count:,} rows of {files[0]} can be used, {needed:,} are needed"


def _build(profile: Profile, folder: Path, recipe: Recipe) -> Path:
    """Return the folder of the recipe's set; make it unless it is there. One process at a time reads a dataset."""
    place = folder / "scratch" / "data"
    place.mkdir(parents=True, exist_ok=True)
    # the results folder, in which the tokenizer lies, may be moved
    portable = recipe if recipe.tokenizer is None else recipe.replace(tokenizer=Path(recipe.tokenizer).name)
    key = digest([repr(portable), profile.datasets.get(recipe.source)])
    target = place / f"{recipe.source}-{recipe.selection}-{recipe.n}-{key}"
    if (target / "manifest.json").is_file():
        return target
    with FileLock(place / f"{recipe.source}.lock"):
        datasets = load_datasets(profile.datasets)
        curation.build(recipe, target, cache=place / "cache", datasets=datasets, progress=False)
    return target
