"""`quagmire compare --until-decided` and `quagmire rank --until-settled`: draw answers until they decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quagmire_utils.core.errors import ParameterError

if TYPE_CHECKING:
    from quagmire_utils.evaluation.pass_at_k.sequential import Design, Look

Within = Annotated[float, typer.Option(help="While drawing: smaller differences, in points, do not matter.")]
Most = Annotated[int, typer.Option("--num-samples", help="While drawing: most answers to a problem, as a mean.")]
These = Annotated[bool, typer.Option("--these-problems", help="While drawing: decide for exactly these problems.")]
Models = Annotated[Path | None, typer.Option(help="While drawing: folder that holds the models, by their names.")]

TRUTH = "Such a verdict is right in at least 95 % of runs, at whichever look it comes"


def make_design(k: Sequence[int], within: float, num_samples: int, these_problems: bool) -> Design:
    """Return the design that options describe."""
    from quagmire_utils.evaluation.pass_at_k.sequential import Design

    if len(k) > 1:
        raise ParameterError("-k", k, "one k, for a decision")
    if not 0 < within <= 100:
        raise ParameterError("--within", within, "above 0 and at most 100 points")
    return Design(k=k[0], within=within / 100, most=num_samples, these_problems=these_problems)


def decide(a: Path, b: Path, design: Design, models: Path | None) -> None:
    """Print looks at two evaluations until one is better, they are equal, or more answers would not tell."""
    from quagmire_utils.evaluation.evaluate import compare_outputs
    from quagmire_utils.evaluation.measured import describe_comparison

    print(describe_comparison(compare_outputs(a, b), str(a), str(b)))

    def ends(look: Look) -> str:
        found = look.verdict("a", "b")
        return {"a": "A better", "b": "B better", "equal": f"no difference above {_points(design)}", "": ""}[found]

    _look({"a": a, "b": b}, design, models, ends)


def settle(folder: Path, design: Design, models: Path | None) -> None:
    """Print looks at the evaluations in a folder until it is settled which one is best."""
    from quagmire_utils.analysis.measurements import load_measurements

    names = load_measurements(folder, k=2).table["candidate"]  # which checks that they compare

    def ends(look: Look) -> str:
        if not look.settled:
            return ""
        rivals = f" or less than {_points(design)} below the best" if len(look.left) > 1 else ""
        return f"{look.left[0]} is best{rivals}"

    _look({name: folder / name for name in names}, design, models, ends)


def _look(folders: Mapping[str, Path], design: Design, models: Path | None, ends: Any) -> None:
    """Draw and look until `ends` gives a verdict; print each look and last the verdict, its guarantee and its price."""
    from quagmire_utils.evaluation.deciding import Answers
    from quagmire_utils.evaluation.pass_at_k.sequential import looks
    from quagmire_utils.grading import Grader
    from quagmire_utils.report.inputs import recorded_run

    runs = {name: recorded_run(folder, models) for name, folder in folders.items()}
    whose = "exactly these problems" if design.these_problems else "problems of this kind"
    with Grader() as grader:
        answers = Answers(runs, design, grader)
        print(f"Pass@{design.k} on {whose}, from {len(answers.benchmarks)} problems.", flush=True)
        for number, look in enumerate(looks(list(runs), answers, answers.benchmarks, design), 1):
            print(f"look {number} of {len(design.sizes)}, {look.answers} answers a problem: {_state(look)}", flush=True)
            verdict = ends(look)
            if verdict or look.hopeless:
                break
    if verdict:
        print(f"{verdict}. {TRUTH}, on {whose}.")
    else:
        end = "do not" if look.answers >= design.most else "would hardly"
        print(f"Undecided between {', '.join(look.left)}: {design.most} answers a problem {end} decide it; ", end="")
        print("take more answers." if design.these_problems else "take more problems, or decide for these.")
    used, everything = sum(look.tokens.values()), len(answers.benchmarks) * design.most
    fixed = sum(look.tokens[name] / look.drawn[name] * everything for name in runs)
    print(
        f"Used {sum(look.drawn.values()):,} answers, {used:,} tokens, of them drawn now: {answers.drawn:,}. "
        f"{design.most} answers to every problem would take about {fixed:,.0f}: {100 * (1 - used / fixed):.0f} % saved."
    )


def _state(look: Look) -> str:
    """Return the differences between the best and the others, in points, closest first."""
    best = max(look.scores, key=lambda name: look.scores[name])
    rivals = sorted((name for name in look.scores if name != best), key=lambda name: -look.scores[name])
    ordered = [("a", "b")] if list(look.scores) == ["a", "b"] else [(best, name) for name in rivals]
    texts = []
    for first, second in ordered[:3]:
        found = look.lead(first, second)
        interval = f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
        texts.append(f"{first} - {second} {100 * found.value:+.1f} {interval}")
    more = f"; {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(texts) + more + (f"; {len(look.left)} left" if len(ordered) > 1 else "")


def _points(design: Design) -> str:
    return f"{100 * design.within:g} points"
