"""Commands for large runs: curate makes SFT and RL sets, sweep trains and measures a grid of candidates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from quagmire_utils.cli.app import DATA, LARGE, Assignments, app, assignments
from quagmire_utils.core.errors import ParameterError

if TYPE_CHECKING:
    from quagmire_utils.data.curation.recipes import Recipe


@app.command(rich_help_panel=DATA)
def curate(
    recipes: Annotated[str | None, typer.Argument(help="A YAML file with sets (and defaults, datasets).")] = None,
    names: Annotated[list[str] | None, typer.Argument(help="Which of its sets. Default: all.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the set, or of the sets' folders.")] = None,
    source: Annotated[str | None, typer.Option(help="A dataset; see --list.")] = None,
    selection: Annotated[str | None, typer.Option(help="shortest, longest, random, or several joined by +.")] = None,
    n: Annotated[int | None, typer.Option(help="Traces.")] = None,
    token_budget: Annotated[int | None, typer.Option(help="Tokens at most, instead of --n.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or hub id of the model whose tokens count.")] = None,
    files: Annotated[list[str] | None, typer.Option(help="Local files, folders or globs; repeatable.")] = None,
    parameters: Assignments = None,
    cache: Annotated[Path | None, typer.Option(help="Where texts, hashes and lengths are kept.")] = None,
    show: Annotated[bool, typer.Option("--list", help="List the training sets.")] = False,
) -> None:
    """Make SFT and RL sets from hub datasets (streamed) or local files: select, deduplicate, decontaminate."""
    from quagmire_utils.core.validation import parse_yaml
    from quagmire_utils.data import load_datasets
    from quagmire_utils.data.curation import load_sets
    from quagmire_utils.data.curation.build import CACHE, build, prepare, summary

    sets, datasets = ({}, load_datasets()) if recipes is None else load_sets(recipes)
    if show:
        for item in datasets.values():
            if item.kind == "training":
                print(f"{item.name:<20}{item.hub_id or ', '.join(item.files):<46}{item.title}")
        return
    if output is None:
        raise ParameterError("--output", reason="give the folder for the set")
    own = {name: parse_yaml(value, name) for name, value in assignments(parameters).items()}
    named = {"source": source, "selection": selection, "n": n, "token_budget": token_budget, "tokenizer": tokenizer}
    own |= {name: value for name, value in {**named, "files": files or None}.items() if value is not None}
    asked = _sets(recipes, sets, names or [], output, own)
    for recipe, folder in asked if len(asked) > 1 else ():  # not after the hours that the first may take
        prepare(recipe, folder, datasets=datasets)
    for recipe, folder in asked:
        print(summary(folder, build(recipe, folder, cache=cache or CACHE, datasets=datasets)))


def _sets(
    path: str | None, known: dict[str, Recipe], names: Sequence[str], output: Path, own: dict[str, Any]
) -> list[tuple[Recipe, Path]]:
    """Return the sets to make, with their folders: the one described by options, or those `known` from a file."""
    from quagmire_utils.data.curation import Recipe

    if path is None:
        if "source" not in own:
            raise ParameterError("--source", reason="name a source, or give a YAML file with sets")
        return [(Recipe.load(own), output)]
    if own:
        raise ParameterError(next(iter(own)), reason=f"write it into {path}, not on the command line")
    for name in names:
        if name not in known:
            raise ParameterError("names", name, f"of the sets in {path} ({', '.join(known)})")
    return [(known[name], output / name) for name in names or known]


@app.command(rich_help_panel=LARGE)
def sweep(
    profile: Annotated[str, typer.Argument(help="smoke, mini, single_gpu, paper, or the path of a YAML file.")],
    results: Annotated[Path | None, typer.Option(help="Folder of the records. Default: results/PROFILE.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes, one core each. Default: the profile's.")] = None,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster; auto: this machine's.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="List the cells and which are done.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Hours, price, disk, and what is missing here.")] = False,
    gpu: Annotated[str | None, typer.Option(help="With --dry-run: another GPU than the profile's.")] = None,
    price: Annotated[float | None, typer.Option(help="With --dry-run: dollars per GPU hour.")] = None,
    mfu: Annotated[float | None, typer.Option(help="With --dry-run: share of the GPU's peak in training.")] = None,
    submit: Annotated[Literal["slurm"] | None, typer.Option(help="Write a job script.")] = None,
    output: Annotated[Path | None, typer.Option(help="With --submit: file of the script, else printed.")] = None,
    cell: Annotated[str | None, typer.Option(help="Compute one cell, unless it is finished.")] = None,
    collect: Annotated[bool, typer.Option("--collect", help="Gather the records of finished cells.")] = False,
    spot_check: Annotated[str | None, typer.Option(help="Retrain one candidate (or random) and compare.")] = None,
) -> None:
    """Train and measure a grid of candidates; resume where it stopped."""
    from quagmire_utils import sweep as grid
    from quagmire_utils.core.files import write_text
    from quagmire_utils.core.settings import load_profile
    from quagmire_utils.report.notebook import results_folder

    modes = {"--plan": plan, "--dry-run": dry_run, "--submit": submit, "--cell": cell, "--collect": collect}
    asked = [name for name, value in {**modes, "--spot-check": spot_check}.items() if value not in (None, False)]
    if len(asked) > 1:
        raise ParameterError(asked[0], reason=f"it does not go with {asked[1]}")
    costs = {"gpu": gpu, "dollars_per_gpu_hour": price, "train_mfu": mfu}
    overrides = {f"compute.{name}": value for name, value in costs.items() if value is not None}
    for option, given, mode in (
        ("--gpu, --price and --mfu", overrides, "--dry-run"),
        ("--output", output is not None, "--submit"),
    ):
        if given and mode not in asked:
            raise ParameterError(option, reason=f"use it with {mode}")
    if spot_check is not None:
        return spot_check_candidate(profile, results, spot_check)
    settings = load_profile(profile, overrides)
    folder = results or results_folder(profile)
    if plan:
        everything = grid.plan(settings)
        done = grid.finished_cells(folder, everything)
        for item in everything:
            print("done" if item.id in done else "to do", item.id)
    elif dry_run:
        print(grid.dry_run(settings, folder))
    elif submit is not None:
        from quagmire_utils.sweep.runner import slurm_script

        script = slurm_script(settings, profile, folder, grid.finished_cells(folder, grid.plan(settings)))
        if output is None:
            print(script)
        else:
            write_text(script, output)
            print(f"Submit it with: bash {output}")
    elif cell is not None:
        grid.run_one(settings, folder, cell)
    elif collect:
        grid.collect(settings, folder)
    else:
        grid.run_sweep(settings, folder, workers=workers, ray=ray)


def spot_check_candidate(profile: str, results: Path | None, name: str) -> None:
    """Retrain one recorded candidate, compare it with its record, and exit with 1 if they differ."""
    from quagmire_utils.core.settings import load_profile
    from quagmire_utils.report.execution import clock
    from quagmire_utils.report.notebook import results_folder
    from quagmire_utils.sweep.spot_check import spot_check

    started = time.monotonic()
    folder = results or results_folder(profile)
    outcome = spot_check(load_profile(profile), folder, "" if name == "random" else name)
    print(f"{outcome}\nTook {clock(time.monotonic() - started)}.")
    raise typer.Exit(int(outcome.verdict == "differs"))
