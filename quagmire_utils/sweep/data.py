"""What a cell trains on and is validated on, of micro families (written by the microlab) and of pretrained models.

A pretrained model's traces and RL problems are sets that `curation` makes of the hub's datasets (or of local files with
their columns): filtered, without duplicates, and without any question that meets one of the profile's benchmarks or of
the paper's seven. They are kept under `scratch/data`, made once, whichever cell needs them first.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import digest
from quagmire_utils.core.settings import CandidateSettings, FamilySettings, ModelSettings, Profile
from quagmire_utils.data import BENCHMARKS, Dataset, Problem, Trace, load_benchmark, load_datasets
from quagmire_utils.data.dataset import local_files
from quagmire_utils.sweep.grid import derive_seed, rl_problems, source_traces

if TYPE_CHECKING:
    from quagmire_utils.data.curation import Recipe

PROMPT_ROOM = 1024  # tokens of sft.max_length that are kept for question and template
MOST_LEFT_OUT = 0.02  # share of a candidate's traces that may be too long with their prompts
WEIGHTS = ("*.safetensors", "*.json", "tokenizer*", "*.jinja", "*.model", "*.txt")  # what of a hub's repository


@dataclass(frozen=True)
class CandidateData:
    """What a candidate is trained on, and the held-out traces that were chosen as these were."""

    traces: list[Trace]
    held_out: list[Trace]


def candidate_traces(
    profile: Profile, folder: Path, family: FamilySettings, candidate: CandidateSettings, base: Path, own_fraction: int
) -> CandidateData:
    """The traces of one candidate. `base` is the checkpoint whose tokenizer counts lengths."""
    from transformers import AutoTokenizer

    from quagmire_utils.data import curation

    tokenizer = AutoTokenizer.from_pretrained(base)
    seed = derive_seed(profile.seed, family.name, candidate.source, "selection")
    if family.model is None:
        pool, held_out = source_traces(profile, family, candidate.source)
        traces = curation.select(pool, candidate.selection, candidate.n_examples, tokenizer=tokenizer, seed=seed)
    else:
        recipe = _recipe(profile, family, candidate.source, base)
        recipe = recipe.replace(selection=candidate.selection, n=candidate.n_examples)
        traces, held_out = _sft_set(profile, folder, family, candidate.source, recipe, base)
        if candidate.source != next(iter(family.sources)):
            traces = without_problems(traces, validation_traces(profile, folder, family, base))
    own = held_out
    if candidate.selection != "random":
        n_own = max(2, len(held_out) // own_fraction)
        own = curation.select(held_out, candidate.selection, n_own, tokenizer=tokenizer, seed=seed)
    return CandidateData(traces, own)


def validation_traces(profile: Profile, folder: Path, family: FamilySettings, base: Path) -> list[Trace]:
    """The held-out traces of the family's first source, on which all its candidates are validated."""
    main = next(iter(family.sources))
    if family.model is None:
        return source_traces(profile, family, main)[1]
    recipe = _recipe(profile, family, main, base).replace(n=1)  # of the training side, one trace: there must be one
    return _sft_set(profile, folder, family, main, recipe, base)[1]


def rl_problems_of(profile: Profile, folder: Path, family: FamilySettings) -> list[Problem]:
    """The problems that a family's RL learns from, none of them a benchmark's."""
    if family.model is None:
        return rl_problems(profile, family)
    from quagmire_utils.data.curation import Recipe

    recipe = Recipe(
        source=family.rl_set,
        n=family.rl_problems,
        benchmarks=_forbidden(profile),
        seed=derive_seed(profile.seed, family.name, "rl"),
    )
    problems = load_benchmark(_build(profile, folder, recipe) / "train.jsonl")
    return [replace(problem, id=f"{family.rl_set}/{problem.id}") for problem in problems]


def training_sets(profile: Profile) -> dict[str, Dataset]:
    """Return the datasets that a profile can train on: the catalogue's and its own."""
    known = load_datasets(profile.datasets)
    return {name: dataset for name, dataset in known.items() if dataset.kind == "training"}


def rows_asked(profile: Profile) -> dict[str, int]:
    """How many rows of each dataset the profile needs at least, held-out ones among them."""
    asked: dict[str, int] = {}
    for family in profile.families:
        if family.rl_set is not None:
            asked[family.rl_set] = max(asked.get(family.rl_set, 0), family.rl_problems)
        for name, source in family.sources.items():
            most = max((c.n_examples for c in family.candidates if c.source == name), default=0)
            if source.dataset is not None:
                asked[source.dataset] = max(asked.get(source.dataset, 0), max(1, most) + source.validation)
    return asked


def unusable_files(profile: Profile, folder: Path | None = None) -> list[str]:
    """Local files of datasets that are not there, are not as described, or hold too few rows; a sentence for each.

    Files beyond 64 MB are tried, not counted. With the results `folder`, those of which a set was made there already
    are not needed any more and pass.
    """
    found = []
    for name, rows in sorted(rows_asked(profile).items()):
        if folder is not None and any((folder / "scratch" / "data").glob(f"{name}-*/manifest.json")):
            continue
        try:
            dataset = training_sets(profile)[name]
            if files := local_files(dataset):
                _check_rows(dataset, files, rows)
        except ParameterError as error:
            found.append(f"dataset {name}: {str(error).removeprefix(f'{name}: ')}")
    return found


def _check_rows(dataset: Dataset, files: Sequence[Path], asked: int) -> None:
    """Raise ParameterError unless local files can be read and, if small, have as many rows as asked."""
    from quagmire_utils.data.curation.files import read_unit, units
    from quagmire_utils.data.rows import Record

    pieces = units(dataset, files)
    records: Iterator[object] = (record for piece in pieces[:1] for _, _, record in read_unit(dataset, piece))
    usable = (record for record in records if isinstance(record, Record))
    if len(pieces) > 1:
        if next(usable, None) is None:
            raise ParameterError(dataset.name, reason=f"none of the first rows of {files[0]} is as described")
        return
    count = sum(1 for _ in usable)
    if count < asked:
        raise ParameterError(
            dataset.name, count, reason=f"{count:,} rows of {files[0]} can be used, {asked:,} are needed"
        )


def fetch_model(model: ModelSettings, target: Path) -> None:
    """Put a base model's files into the folder `target`, which appears when they are complete."""
    scratch = target.with_name(target.name + ".writing")
    if model.is_folder:
        source = Path(model.hub_id).expanduser()
        if not source.is_dir():
            raise ParameterError(f"model: there is no folder {source}")
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(source, scratch)
    else:
        from huggingface_hub import snapshot_download

        try:  # what a download that was cut off left is gone on with
            snapshot_download(
                model.hub_id,
                revision=model.revision,
                local_dir=scratch,
                allow_patterns=list(WEIGHTS),
                ignore_patterns=["original/*", "consolidated*"],
            )
        except Exception as error:  # the hub's client raises many kinds
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            remedy = "; accept its licence on its page and log in with `hf auth login`" if model.gated else ""
            raise ParameterError(f"model {model.hub_id}: its hub gave no files ({reason}){remedy}") from error
        shutil.rmtree(scratch / ".cache", ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)


def _recipe(profile: Profile, family: FamilySettings, name: str, base: Path) -> Recipe:
    """A source's recipe, the selection left open. Every candidate of a source holds out the same problems."""
    from quagmire_utils.data.curation import Recipe

    settings = family.sources[name]
    return Recipe(
        source=settings.dataset,
        tokenizer=str(base),
        max_tokens=settings.max_tokens or max(1, profile.sft.max_length - PROMPT_ROOM),
        benchmarks=_forbidden(profile),
        validation_problems=settings.validation,
        seed=derive_seed(profile.seed, family.name, name, "selection"),
    )


def _forbidden(profile: Profile) -> tuple[str, ...]:
    """The benchmarks whose questions nothing may be trained on: the profile's, and the paper's seven."""
    return tuple(dict.fromkeys([*BENCHMARKS, *profile.benchmarks]))


def _sft_set(
    profile: Profile, folder: Path, family: FamilySettings, name: str, recipe: Recipe, base: Path
) -> tuple[list[Trace], list[Trace]]:
    from quagmire_utils.data.curation import load_set

    settings = family.sources[name]
    traces, held_out = load_set(_build(profile, folder, recipe))
    held_out = held_out[: settings.validation]  # some problems have several traces; these come in seeded order
    if settings.box_answers:
        traces, held_out = [boxed(trace) for trace in traces], [boxed(trace) for trace in held_out]
    fitting = _fitting(traces, base, profile.sft.max_length)
    if len(traces) - len(fitting) > MOST_LEFT_OUT * len(traces):
        raise ParameterError(
            f"sources.{name}: {len(traces) - len(fitting)} of {len(traces)} traces exceed sft.max_length "
            f"({profile.sft.max_length}) with their prompts; lower sources.{name}.max_tokens"
        )
    return fitting, _fitting(held_out, base, profile.sft.max_length)


def _fitting(traces: Sequence[Trace], base: Path, max_length: int) -> list[Trace]:
    """The traces that fit `max_length` tokens with their prompts."""
    from transformers import AutoTokenizer

    from quagmire_utils.data.prompts import render, response_ids

    tokenizer = AutoTokenizer.from_pretrained(base)
    return [
        trace
        for trace in traces
        if len(render(trace.question, tokenizer).token_ids) + len(response_ids(tokenizer, trace.response)) <= max_length
    ]


def without_problems(traces: Sequence[Trace], held_out: Sequence[Trace]) -> list[Trace]:
    """The traces whose questions meet none of another source's held-out ones: public datasets share many problems."""
    from quagmire_utils.data import curation

    return curation.decontaminate(traces, [Problem(t.problem_id, t.question, t.answer) for t in held_out])[0]


def boxed(trace: Trace) -> Trace:
    """A trace whose solution ends in \\boxed{answer}, as the prompt asks; one that does already stays as it is.

    GSM8K's own marks (`<<48/2=24>>`, and the last line `#### 72`) are taken out.
    """
    if "\\boxed" in trace.response or not trace.answer:
        return trace
    text = re.sub(r"<<[^<>]*>>", "", trace.response)
    text = re.sub(r"\n####[^\n]*\s*$", "", text).rstrip()
    return replace(trace, response=f"{text}\nThe answer is $\\boxed{{{trace.answer}}}$.")


def _build(profile: Profile, folder: Path, recipe: Recipe) -> Path:
    """The folder of the recipe's set, made unless it is there; one process at a time reads a dataset."""
    from quagmire_utils.data.curation import build

    place = folder / "scratch" / "data"
    place.mkdir(parents=True, exist_ok=True)
    # the tokenizer is that of a cell of this folder, which may be moved
    portable = recipe if recipe.tokenizer is None else recipe.replace(tokenizer=Path(recipe.tokenizer).name)
    key = digest([repr(portable), profile.datasets.get(recipe.source)])
    target = place / f"{recipe.source}-{recipe.selection}-{recipe.n}-{key}"
    if (target / "manifest.json").is_file():
        return target
    with _locked(place / f"{recipe.source}.lock"):
        datasets = load_datasets(profile.datasets)
        build(recipe, target, cache=place / "cache", datasets=datasets, workers=profile.workers, progress=False)
    return target


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
