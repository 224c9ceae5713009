"""Before an evaluation: say what it will do, and refuse in one sentence what cannot work.

    config = EngineConfig(engine="vllm", model="path/to/checkpoint")
    plan = check(config, problems, 64, SamplingParams(max_tokens=2048), "samples/mine", k=64)
    print(plan.text)                        # problems, answers, tokens, disk

`check` reads configuration and tokenizer, no weights. The paper's evaluations (App. B.3) draw 256 answers of up to
8,192 tokens to 3,812 problems for hundreds of checkpoints, so a mistake should be found before the first answer.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from quagmire_utils.core.errors import ParameterError, check_whole
from quagmire_utils.data import Problem
from quagmire_utils.data.prompts import check_fits, render_problem, resolve_template
from quagmire_utils.engines import EngineConfig, SamplingParams, model_digest
from quagmire_utils.evaluation.sampling import tokenizer_and_context
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.grading import Grader, Verdict, prepare_problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTES_PER_TOKEN = 3.0  # on disk: a token is about four characters, and zstd at least halves English and LaTeX
BYTES_PER_SAMPLE = 64.0  # keys, verdict, extracted answer
_UNLIKE_ANY_GOLD = r"\boxed{\text{preflight}}"  # quickly graded, whatever the gold
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")  # golds that any grader can read
# What math-verify reads as something else: words as products of letters (pi/4 as i p/4), 2 3/4 as 5/4, 4.5e7 as 4.5 e 7
_LATEX_WORDS = re.compile(
    r"\\(?:text|math|mbox|operatorname|begin|end)[a-z]*\s*\{[^{}]*\}|\\[a-zA-Z]+"
    r"|\b(?:sqrt|inf|infinity|and|or)\b"
)
_WITH_UNIT = re.compile(r"-?[0-9.,]+ +(?!hundred|thousand|million|billion|dozen)[a-z]+")  # which math-verify drops
_MISREAD = re.compile(
    r"(?<![a-zA-Z])(?![A-Z]+(?![a-zA-Z]))[a-zA-Z]{3,}|(?<![a-zA-Z])(?:pi|ln|no|oo)(?![a-zA-Z])"
    r"|\d\s+\d+\s*/\s*\d|\d\.?e[+-]?\d"
)
_LENGTH_WARNING = "sequence-length-is-longer-than-the-specified-maximum"  # the tokenizers' name for it
Benchmarks = Mapping[str, Sequence[Problem]]  # problems by name of the benchmark


@dataclass(frozen=True, eq=False)
class Plan:
    """What an evaluation will do."""

    table: pd.DataFrame  # problems, answers, already drawn, to draw, by benchmark and in total
    text: str  # the plan in a few sentences, one per line
    warning: str  # a sentence each on golds that the grader cannot read or misreads; empty if there are none


def check(
    config: EngineConfig,
    benchmarks: Benchmarks,
    num_samples: int,
    params: SamplingParams,
    folder: str | os.PathLike[str],
    *,
    k: int = 1,
    grader: Grader | None = None,
) -> Plan:
    """Return what evaluating a model on `benchmarks` will do, with the samples in `folder`.

    Raise ParameterError for: k above num_samples; problems without gold answer or with the same id; an engine, model or
    chat template that is not there; a prompt that leaves no room for max_tokens in the context; a store whose samples
    were drawn from another model, with other parameters or other prompts; a disk too full for the answers. What only a
    server knows is checked when it is asked. `grader` reads the golds (default: a new one).
    """
    check_numbers(benchmarks, num_samples, k)
    benchmarks = prepare_problems(benchmarks)
    config.check()
    store = SampleStore(folder)
    store.check_origin({"engine": config.engine, **params.model_dump()})
    template, context, longest = "", None, None
    if config.engine != "server":
        tokenizer, context = tokenizer_and_context(config)
        template = resolve_template(tokenizer, config.template)
        store.check_origin({"template": template})
        if "model_digest" in store.origin:  # all weights are read for it
            store.check_origin({"model_digest": model_digest(config.model, config.revision)})
        longest = check_prompts(benchmarks, tokenizer, template, params.max_tokens, context, store)
    table = _what_is_left(benchmarks, num_samples, store)
    total = int(table.loc["total", "to draw"])
    folder = store.path.expanduser().absolute()
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    needed = total * (params.max_tokens * BYTES_PER_TOKEN + BYTES_PER_SAMPLE)
    if needed > free:
        reason = f"{total:,} answers of up to {params.max_tokens:,} tokens may need {size(needed)}, and {store.path} "
        reason += f"has {size(free)} free; name another folder, or fewer samples or tokens"
        raise ParameterError("store", store.path, reason=reason)
    warning = _odd_golds(benchmarks, grader)
    every = table.loc["total"]
    held = f", {every['already drawn']:,} of them already drawn" if every["already drawn"] else ""
    lines = [
        f"{every['problems']:,} problems of {len(benchmarks)} benchmark{'s' * (len(benchmarks) > 1)} "
        f"({_listed(list(benchmarks))}); {every['answers']:,} answers{held}; {total:,} to draw with {config.engine}."
    ]
    if context is not None:
        lines.append(
            f"Template {template}; the longest prompt has {longest:,} tokens, which fit with {params.max_tokens:,} for "
            f"the answer into the context of {context:,}."
        )
    tokens, disk = total * params.max_tokens, f"{size(needed)} of disk, of which {size(free)} are free"
    left = f"At most {tokens:,} generated tokens and {disk}." if total else "Nothing is left to draw."
    return Plan(table, "\n".join(filter(None, [*lines, warning, left])), warning)


def check_numbers(benchmarks: Benchmarks, num_samples: int, k: int) -> None:
    """Raise ParameterError for numbers below 1 or not whole, k above num_samples, and unusable problems."""
    if not benchmarks or not all(benchmarks.values()):
        raise ParameterError("benchmarks", reason="name at least one benchmark with at least one problem")
    check_whole("num_samples", num_samples, 1)
    check_whole("k", k, 1, num_samples)
    for name, problems in benchmarks.items():
        without = [problem.id for problem in problems if not str(problem.answer or "").strip()]
        repeated = [key for key, count in Counter(problem.id for problem in problems).items() if count > 1]
        for ids, what in ((without, "no gold answer to"), (repeated, "more than one problem with the id")):
            if ids:
                raise ParameterError("benchmarks", ids, reason=f"{name} has {what} {_listed(ids)}")


def check_prompts(
    benchmarks: Benchmarks,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    max_tokens: int,
    context_length: int,
    store: SampleStore,
) -> int:
    """Return the tokens of the longest prompt.

    Raise ParameterError if a prompt leaves less than max_tokens of the context, or if the store holds samples of a
    problem that were drawn with another prompt.
    """
    if hasattr(tokenizer, "deprecation_warnings"):
        tokenizer.deprecation_warnings[_LENGTH_WARNING] = True  # the error below says it
    longest, texts, day = 0, {}, store.day
    for name, problems in benchmarks.items():
        prompts = [render_problem(problem, tokenizer, template, day=day) for problem in problems]
        check_fits(prompts, max_tokens, context_length)
        longest = max(longest, *(len(prompt.token_ids) for prompt in prompts))
        texts |= {(name, problem.id): prompt.text for problem, prompt in zip(problems, prompts, strict=True)}
    store.check_prompts(texts)
    return longest


def _odd_golds(benchmarks: Benchmarks, grader: Grader | None) -> str:
    """Return a sentence each on the golds that the grader cannot read and misreads; empty if there are none."""
    named = [
        (f"{name}/{problem.id} ({problem.answer})", problem)
        for name, problems in benchmarks.items()
        for problem in problems
        if not _NUMBER.fullmatch(problem.answer.strip())
    ]
    if not named:
        return ""
    with nullcontext(grader) if grader is not None else Grader() as using:
        grades = using.grade([_UNLIKE_ANY_GOLD] * len(named), [problem for _, problem in named], progress=True)
    unreadable = [name for (name, _), grade in zip(named, grades, strict=True) if grade.verdict == Verdict.ERROR]
    misread = [
        name
        for name, problem in named
        if problem.grader == "math"
        and name not in unreadable
        and not _WITH_UNIT.fullmatch(problem.answer.strip())
        and _MISREAD.search(_LATEX_WORDS.sub(" ", problem.answer))
    ]
    sentences = []
    if unreadable:
        sentences.append(
            f"The grader cannot read the gold answer of {_listed(unreadable)}: only an answer with the same spelling "
            "will count as correct, and any other as an error."
        )
    if misread:
        sentences.append(
            f"The grader misreads the gold answer of {_listed(misread)}: write it as LaTeX without prose, such as "
            r"2\frac{3}{4}, \frac{\pi}{4} or 4.5 \times 10^{7}."
        )
    return " ".join(sentences)


def _what_is_left(benchmarks: Benchmarks, num_samples: int, store: SampleStore) -> pd.DataFrame:
    """Return `Plan.table`."""
    held = store.existing()
    drawn = held[held["index"] < num_samples].groupby(["benchmark", "problem"]).size().to_dict()
    rows = {
        name: {
            "problems": len(problems),
            "answers": len(problems) * num_samples,
            "already drawn": sum(drawn.get((name, problem.id), 0) for problem in problems),
        }
        for name, problems in benchmarks.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("benchmark")
    table["to draw"] = table["answers"] - table["already drawn"]
    table.loc["total"] = table.sum()
    return table


def size(value: float) -> str:
    """Return a number of bytes in words: 1.5 GiB."""
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if value >= unit:
            return f"{value / unit:,.1f} {name}"
    return f"{value / 1024:,.1f} KiB"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:7])
    return shown if len(names) <= 7 else f"{shown} and {len(names) - 7} more"
