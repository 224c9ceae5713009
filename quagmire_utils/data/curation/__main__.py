"""Command line of curation: `python -m quagmire_utils.data.curation --source openr1_math --output data/r10k`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data.curation.build import CACHE, build, prepare
from quagmire_utils.data.curation.recipes import DEDUPLICATION, FORMATS, Recipe, load_recipes, to_recipe
from quagmire_utils.data.curation.sources import ENDINGS, load_sources

_EXAMPLES = """examples:
  the 10,000 shortest of OpenR1-Math, in Qwen3's tokens, 500 problems held out, streamed from the hub:
    python -m quagmire_utils.data.curation --source openr1_math --tokenizer Qwen/Qwen3-4B-Base --selection shortest \\
        --n 10000 --max-tokens 7168 --validation-problems 500 --output data/openr1-s10k
  50 million tokens, half of the longest and half of the shortest, from files on this machine:
    python -m quagmire_utils.data.curation --source acereason --files mirror/acereason --tokenizer models/mistral \\
        --selection longest+shortest --token-budget 50000000 --output data/acereason-ls50M
  every set under sets: in a file, or some of them:
    python -m quagmire_utils.data.curation my_sets.yaml --output data
    python -m quagmire_utils.data.curation my_sets.yaml s10k l10k --output data"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make sets and say what they hold."""
    options = _parser().parse_args(arguments)
    try:
        if options.list:
            for source in load_sources(options.recipes).values():
                print(f"{source.name:<20}{source.hub_id or ', '.join(source.files):<46}{source.title}")
            return 0
        if options.output is None:
            raise ParameterError("--output must be given: the folder for the set")
        asked = _asked(options)
        for recipe, folder in asked if len(asked) > 1 else ():  # not after the hours that the first may take
            prepare(recipe, folder, registry=options.recipes)
        for recipe, folder in asked:
            manifest = build(recipe, folder, cache=options.cache, registry=options.recipes, workers=options.workers)
            print(_summary(folder, manifest))
    except ParameterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}; start again when this is mended, what was read is kept", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on after what was read", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m quagmire_utils.data.curation",
        description="Makes SFT and RL sets from the hub's datasets (streamed) or from local files with their columns.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipes", nargs="?", help="a YAML file with sets: (and defaults:, sources:)")
    parser.add_argument("names", nargs="*", help="which of its sets (default: all)")
    parser.add_argument("--list", action="store_true", help="list the sources")
    parser.add_argument("--output", type=Path, help="folder of the set; with a YAML file, of the sets' folders")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where hashes and lengths are kept (%(default)s)")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=cores, help="processes that read (default: %(default)s)")
    group = parser.add_argument_group("a set without a YAML file")
    group.add_argument("--source", help="see --list")
    group.add_argument("--files", nargs="+", help=f"local files, folders or globs ({', '.join(ENDINGS)})")
    group.add_argument("--tokenizer", help="path or hub id of the model whose tokens count")
    group.add_argument("--selection", help="shortest, longest, random, or several joined by + (default: random)")
    group.add_argument("--n", type=int, help="traces")
    group.add_argument("--token-budget", type=int, help="tokens at most, instead of --n")
    group.add_argument("--mixture", metavar="PART=N", nargs="+", help="e.g. longest=10000 shortest=10000")
    group.add_argument("--budgets", metavar="PART=TOKENS", nargs="+", help="the same in tokens")
    group.add_argument("--generators", nargs="+", help="models whose responses are taken (default: the source's)")
    group.add_argument(
        "--where", metavar="COLUMN=VALUE[,VALUE]", nargs="+", help="rows that are taken, e.g. category=math"
    )
    group.add_argument("--min-tokens", type=int)
    group.add_argument("--max-tokens", type=int, help="longer responses are left out, never cut; leave the prompt room")
    group.add_argument("--deduplicate", choices=DEDUPLICATION, help="default: near")
    group.add_argument(
        "--benchmarks", nargs="*", help="names or .jsonl files no question may meet (default: all seven)"
    )
    group.add_argument("--ngram", type=int, help="words in a row that make two questions meet (default: 13)")
    group.add_argument("--validation-problems", type=int, help="problems held out, with all their traces")
    group.add_argument("--validation-fraction", type=float, help="the same as a fraction of the problems")
    group.add_argument("--format", choices=FORMATS, help="default: jsonl")
    group.add_argument("--seed", type=int, help="default: 0")
    return parser


def _asked(options: argparse.Namespace) -> list[tuple[Recipe, Path]]:
    """The recipes to make, with their folders."""
    own = {
        key: value
        for key, value in vars(options).items()
        if value is not None and key not in ("recipes", "names", "list", "output", "cache", "workers")
    }
    for key in ("mixture", "budgets", "where"):
        if key in own:
            own[key] = dict(_pair(text, key) for text in own[key])
    if options.recipes is None:
        if "source" not in own:
            raise ParameterError("--source must be given, or a YAML file with sets:")
        return [(to_recipe(own), options.output)]
    if own:
        raise ParameterError(f"--{next(iter(own)).replace('_', '-')} cannot be given with a YAML file; write it there")
    recipes = load_recipes(options.recipes)
    for name in options.names:
        if name not in recipes:
            raise ParameterError(f"{options.recipes} has no set {name!r}; it has {', '.join(recipes)}")
    return [(recipes[name], options.output / name) for name in options.names or recipes]


def _pair(text: str, option: str) -> tuple[str, Any]:
    name, mark, value = text.partition("=")
    if not mark:
        raise ParameterError(f"--{option}: {text!r} has no =")
    if option == "where":
        return name, value.split(",")
    if not value.isdecimal():
        raise ParameterError(f"--{option}: {value!r} is no whole number")
    return name, int(value)


def _summary(folder: Path, manifest: dict[str, Any]) -> str:
    lines = [f"{folder}:"]
    for name, facts in manifest["sets"].items():
        tokens = "" if facts["tokens"] is None else f", {facts['tokens']:,} tokens"
        lines.append(
            f"  {name}: {facts['traces']:,} traces of {facts['problems']:,} problems{tokens} ({facts['file']}, "
            f"digest {facts['digest'][:12]})"
        )
    counts = sorted(manifest["counts"].items(), key=lambda item: -item[1])
    lines.append("  on the way: " + ", ".join(f"{reason} {count:,}" for reason, count in counts))
    if manifest["not_taken"]:
        lines.append("  not taken: " + ", ".join(f"{k} {v:,}" for k, v in list(manifest["not_taken"].items())[:8]))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
