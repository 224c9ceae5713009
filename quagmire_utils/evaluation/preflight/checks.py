"""What can be seen before a model is loaded: one sentence for whatever cannot work."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.provenance import hardware
from quagmire_utils.data import Problem
from quagmire_utils.data.prompts import check_fits, render_problem, resolve_template
from quagmire_utils.engines import (
    SamplingParams,
    check_base_url,
    check_engine,
    check_model,
    load_config,
    load_tokenizer,
    model_digest,
    resolve_context_length,
)
from quagmire_utils.evaluation.preflight.plan import Plan, bytes_in_words
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.grading import Grader, Verdict, prepare_problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTES_PER_TOKEN = 3.0  # on disk: a token is about four characters, and zstd halves English and LaTeX at least
BYTES_PER_SAMPLE = 64.0  # keys, verdict, extracted answer
NO_GOLD = r"\boxed{\text{preflight}}"  # a text, so that it is compared with no gold at length
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")  # needs no grader to be readable
_TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"  # the tokenizers' name of a warning
WEIGHTS = ("model*.safetensors", "*.safetensors", "pytorch_model*.bin")  # some repositories hold them twice


def check(
    model: str | Path,
    benchmarks: Mapping[str, Sequence[Problem]],
    num_samples: int,
    params: SamplingParams,
    folder: str | Path,
    *,
    k: int = 1,
    engine: str = "vllm",
    revision: str | None = None,
    template: str = "auto",
    max_model_len: int | None = None,
    tensor_parallel_size: int = 1,
    data_parallel_size: int = 1,
    trust_remote_code: bool = False,
    ray: str | None = None,
    grader: Grader | None = None,
) -> Plan:
    """What evaluating `model` on `benchmarks` would do, with the samples in `folder`; ParameterErrors as above.

    The other parameters are those of `engines.load_engine` and `sampling.sample`. For the engine "server" the model is
    an address: what only the server knows is checked once it has answered. With `ray`, memory and GPUs are those of
    the cluster's nodes, and are not looked at here. `grader` reads the golds, or one of its own; the plan names those
    that it can't read.
    """
    check_numbers(benchmarks, num_samples, k, max_model_len)
    benchmarks = prepare_problems(benchmarks)
    check_engine(engine)
    context = resolved = lengths = None
    check_base_url(str(model)) if engine == "server" else check_model(model)
    gpus = 0
    store = SampleStore(folder)
    if ray is not None and (engine == "server" or data_parallel_size > 1):
        raise ParameterError(
            "ray: it shares out the work itself, so it goes with engine vllm or transformers and a "
            f"data_parallel_size of 1, not with {engine} and {data_parallel_size}"
        )
    if engine != "server":
        config = load_config(str(model), revision, trust_remote_code)
        context = resolve_context_length(config, max_model_len)
        tokenizer = load_tokenizer(str(model), revision, trust_remote_code)
        resolved = resolve_template(tokenizer, template)
        check_origin(store, params, engine, resolved, lambda: model_digest(model, revision))
        lengths = check_prompts(benchmarks, tokenizer, resolved, params.max_tokens, context, store)
        if ray is None:
            gpus = _check_memory(Path(model).expanduser(), tensor_parallel_size, data_parallel_size)
    else:
        check_origin(store, params, engine, None)
    table, left = what_is_left(benchmarks, num_samples, store)
    total = int(table.loc["total", "to draw"])
    needed, free = total * (params.max_tokens * BYTES_PER_TOKEN + BYTES_PER_SAMPLE), free_bytes(store.path)
    if needed > free:
        raise ParameterError(
            f"output: {total:,} answers of up to {params.max_tokens:,} tokens may need {bytes_in_words(needed)}, and "
            f"{store.path} has {bytes_in_words(free)} free; name another folder, or fewer samples or tokens"
        )
    return Plan(
        model=str(model),
        engine=engine,
        template=resolved or "",
        context_length=context,
        longest_prompt=None if lengths is None else max(map(max, lengths.values())),
        max_tokens=params.max_tokens,
        table=table,
        prompt_tokens=None if lengths is None else prompt_tokens_left(lengths, left),
        disk_at_most=needed,
        disk_free=free,
        folder=store.path,
        gpus=gpus,
        unreadable=tuple(unreadable_golds(benchmarks, grader)),
    )


def check_numbers(
    benchmarks: Mapping[str, Sequence[Problem]], num_samples: int, k: int, max_model_len: int | None = None
) -> None:
    """Raise ParameterError for numbers that are not whole, k outside 1 .. num_samples, and unusable problems.

    Those are none at all, two of one id in a benchmark, and one without a gold answer.
    """
    if not isinstance(benchmarks, Mapping):
        raise ParameterError(f"benchmarks must map names to lists of problems, not be a {type(benchmarks).__name__}")
    if not benchmarks or not all(benchmarks.values()):
        raise ParameterError("benchmarks is empty: name at least one benchmark with at least one problem")
    for name, value in (("num_samples", num_samples), ("k", k), ("max_model_len", max_model_len)):
        if isinstance(value, bool) or not isinstance(value, int | None if name == "max_model_len" else int):
            raise ParameterError(f"{name} must be a whole number, not {value!r}")
    if not 1 <= k <= num_samples:
        raise ParameterError(
            f"k ({k}) must be between 1 and num_samples ({num_samples}): Pass@k is undefined for k above the samples"
        )
    for name, problems in benchmarks.items():
        empty = [problem.id for problem in problems if not str(problem.answer or "").strip()]
        if empty:
            raise ParameterError(f"benchmarks: {name} has no gold answer to {_listed(empty)}")
        twice = [key for key, count in Counter(problem.id for problem in problems).items() if count > 1]
        if twice:
            raise ParameterError(f"benchmarks: {name} has more than one problem with the id {_listed(twice)}")


def unreadable_golds(benchmarks: Mapping[str, Sequence[Problem]], grader: Grader | None = None) -> list[str]:
    """The gold answers that the grader can't read, each as "benchmark/problem (answer)"; needs no model.

    Only an answer that is spelt the same counts as correct there, and any other is an error.
    """
    named = [
        (f"{name}/{problem.id} ({problem.answer})", problem)
        for name, problems in benchmarks.items()
        for problem in problems
        if not _NUMBER.fullmatch(problem.answer.strip())
    ]
    if not named:
        return []
    with nullcontext(grader) if grader is not None else Grader() as using:
        grades = using.grade([NO_GOLD] * len(named), [problem for _, problem in named], progress=True)
    return [name for (name, _), grade in zip(named, grades, strict=True) if grade.verdict == Verdict.ERROR]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def check_prompts(
    benchmarks: Mapping[str, Sequence[Problem]],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    max_tokens: int,
    context_length: int,
    store: SampleStore | None = None,
) -> dict[str, list[int]]:
    """Tokens of each prompt, by benchmark; ParameterError where one leaves less than max_tokens of the context.

    With a `store`, also where it holds samples of a problem that were drawn with another prompt.
    """
    if hasattr(tokenizer, "deprecation_warnings"):
        tokenizer.deprecation_warnings[_TOO_LONG] = True  # we say it ourselves
    lengths = {}
    held = {} if store is None else store.prompts().set_index(["benchmark", "problem"])["prompt"].to_dict()
    for name, problems in benchmarks.items():
        prompts = [render_problem(problem, tokenizer, template) for problem in problems]
        try:
            check_fits(prompts, max_tokens, context_length)
        except ParameterError as error:
            raise ParameterError(f"{error} (benchmark {name})") from None
        changed = [
            problem.id
            for problem, prompt in zip(problems, prompts, strict=True)
            if held.get((name, problem.id), prompt.text) != prompt.text
        ]
        if changed:
            raise ParameterError(
                f"output: {store.path} holds samples of {name} drawn with another prompt (of {_listed(changed)}); use "
                "another folder"
            )
        lengths[name] = [len(prompt.token_ids) for prompt in prompts]
    return lengths


def what_is_left(
    benchmarks: Mapping[str, Sequence[Problem]], num_samples: int, store: SampleStore
) -> tuple[pd.DataFrame, dict[str, list[bool]]]:
    """`Plan.table`, and for each problem of each benchmark whether any of its answers is left to draw."""
    held = store.existing()
    held = held[held["index"] < num_samples]
    drawn = held.groupby(["benchmark", "problem"]).size().to_dict()
    rows, left = [], {}
    for name, problems in benchmarks.items():
        mine = [drawn.get((name, problem.id), 0) for problem in problems]
        left[name] = [count < num_samples for count in mine]
        answers = len(problems) * num_samples
        rows.append({"benchmark": name, "problems": len(problems), "answers": answers, "already drawn": sum(mine)})
    table = pd.DataFrame(rows).set_index("benchmark")
    table["to draw"] = table["answers"] - table["already drawn"]
    table.loc["total"] = table.sum()
    return table, left


def prompt_tokens_left(lengths: Mapping[str, Sequence[int]], left: Mapping[str, Sequence[bool]]) -> int:
    """Tokens of the prompts to which answers are left to draw; both by benchmark, one entry for each problem."""
    return sum(int(np.array(lengths[name])[np.array(left[name])].sum()) for name in lengths)


def free_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes that may still be written under `path`, which need not exist yet."""
    place = Path(path).expanduser().absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def check_origin(
    store: SampleStore,
    params: SamplingParams,
    engine: str,
    template: str | None,
    model: Callable[[], str] | None = None,
) -> None:
    """Raise ParameterError for a store whose samples were drawn otherwise; None: not known yet.

    A store refuses other samples as they come; here is what can be said of it before a model is loaded. `model` gives
    the digest, for which all weights are read, and is asked only where there is something to compare it with.
    """
    here = {
        "engine": engine,
        "template": template,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "max_tokens": params.max_tokens,
        "seed": params.seed,
    }
    origin = store.origin
    if model is not None and "model_digest" in origin:
        here["model_digest"] = model()
    differing = [
        f"{name} is {origin[name]!r} there and {value!r} here"
        for name, value in here.items()
        if value is not None and name in origin and origin[name] != value
    ]
    if differing:
        raise ParameterError(
            f"output: {store.path} holds samples drawn differently ({'; '.join(differing)}); use another folder"
        )


def _check_memory(folder: Path, tensor_parallel_size: int, data_parallel_size: int) -> int:
    """How many GPUs the engine takes; ParameterError for more than there are, and where the weights do not fit."""
    found = next((files for pattern in WEIGHTS if (files := list(folder.glob(pattern)))), [])
    weights = sum(file.stat().st_size for file in found) / 2**30
    machine = hardware()
    gpus = [float(gpu.rsplit(",", 1)[1].split()[0]) / 1024 for gpu in machine["gpus"]]  # "NAME, 81559 MiB"
    wanted = tensor_parallel_size * data_parallel_size
    if gpus and wanted > len(gpus):
        raise ParameterError(
            f"tensor_parallel_size ({tensor_parallel_size}) x data_parallel_size ({data_parallel_size}) needs {wanted} "
            f"GPUs, and this machine has {len(gpus)}"
        )
    if gpus and weights > tensor_parallel_size * min(gpus):
        raise ParameterError(
            f"model: its weights take {weights:.1f} GiB, and {tensor_parallel_size} GPU(s) of {min(gpus):.1f} GiB hold "
            "a copy; raise tensor_parallel_size"
        )
    memory = machine["memory_gib"]
    if not gpus and memory and data_parallel_size * weights > memory:
        raise ParameterError(
            f"model: its weights take {weights:.1f} GiB and this machine has {memory:.1f} GiB of memory"
        )
    return wanted if gpus else 0
