"""Sampling: n answers to every problem, streamed to a store (paper Sec. 4.1 and App. B.3).

    engine = load_engine("vllm", "path/to/checkpoint")
    store = SampleStore("samples/checkpoint")
    samples = sample(engine, problems, 64, SamplingParams(max_tokens=2048), store, benchmark="math500")
    grade_store(store, {"math500": problems}, grade)
    samples.counts()

The work is cut into chunks, each a fixed set of problems and sample indices, and each chunk is one file of the store.
A run that was killed draws what is missing when it is started again and ends with the records of an unbroken run; a
run with a larger n adds to what is there. Sample i of a problem has a seed of its own, derived from the run's seed,
the benchmark, the problem's id and i, so it does not matter what else is drawn, when, or in which order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from quagmire_utils.config import ParameterError
from quagmire_utils.engines import Engine, Request, SamplingParams, model_digest
from quagmire_utils.prompts import RenderedPrompt, check_fits, render, resolve_template
from quagmire_utils.store import KEYS, SampleStore, read_json, write_json

if TYPE_CHECKING:
    from quagmire_utils.benchmarks import Problem

_CHUNK_SAMPLES = 4096
_CHUNK_TOKENS = 8_000_000  # an upper limit on what a kill can lose: well under an hour on any GPU


GOLDS = "golds.json"  # in a store's folder: what each problem was graded against


@dataclass(frozen=True)
class Samples:
    """The samples of one benchmark in a store."""

    store: SampleStore
    benchmark: str

    def frame(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The samples, sorted by problem and index; `columns` as in `SampleStore.read`."""
        wanted = None if columns is None else list(dict.fromkeys(["benchmark", *columns]))
        frame = self.store.read(wanted)
        frame = frame[frame["benchmark"] == self.benchmark].reset_index(drop=True)
        return frame if columns is None else frame[list(columns)]

    def counts(self) -> pd.DataFrame:
        """Verdicts per problem, see `SampleStore.counts`."""
        counts = self.store.counts()
        return counts[counts["benchmark"] == self.benchmark].reset_index(drop=True)


def sample(
    engine: Engine,
    problems: Sequence[Problem],
    n: int,
    params: SamplingParams,
    store: SampleStore | str | Path,
    *,
    benchmark: str,
    template: str = "auto",
    chunk_samples: int | None = None,
    progress: bool = True,
) -> Samples:
    """Bring every problem to at least `n` samples in `store`.

    `benchmark` names the set that the problems' ids belong to. `chunk_samples` is how many samples are drawn between
    two writes, so the most that a kill can lose (default: 4096, fewer where max_tokens is above 1900). To continue a
    killed run bit for bit, keep n, the problems and `chunk_samples`; with others the seeds still hold, but a model's
    rounding depends on what is in its batch, and an answer may differ once in a great many tokens.

    Raises ParameterError, before anything is drawn, for no problems, an id that occurs twice, n < 1, a prompt too
    long for the context, or a store whose samples were drawn with another model, engine, template, prompt or
    parameters.
    """
    store = store if isinstance(store, SampleStore) else SampleStore(store)
    if n < 1:
        raise ParameterError(f"n must be at least 1 sample per problem, not {n}")
    if not problems:
        raise ParameterError(f"problems: {benchmark} has none")
    ids = [problem.id for problem in problems]
    if len(set(ids)) < len(ids):
        raise ParameterError(
            f"problems: an id occurs twice in {benchmark} ({next(i for i in ids if ids.count(i) > 1)})"
        )
    if chunk_samples is None:
        chunk_samples = max(1, min(_CHUNK_SAMPLES, _CHUNK_TOKENS // params.max_tokens))
    if chunk_samples < 1:
        raise ParameterError(f"chunk_samples must be at least 1, not {chunk_samples}")
    template = resolve_template(engine.tokenizer, template)
    prompts = {problem.id: render(problem.question, engine.tokenizer, template) for problem in problems}
    check_fits(list(prompts.values()), params.max_tokens, engine.context_length)

    store.bind(
        {
            "model_digest": model_digest(engine.model, engine.revision),
            "engine": engine.name,
            "engine_version": engine.version,
            "dtype": engine.dtype,
            "template": template,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "max_tokens": params.max_tokens,
            "seed": params.seed,
        },
        notes={"model": Path(engine.model).name if Path(engine.model).is_dir() else engine.model},
    )
    store.add_prompts(_prompt_frame(benchmark, prompts))

    held = store.existing()
    held = held[held["benchmark"] == benchmark]
    held_indices = {problem: set(rows) for problem, rows in held.groupby("problem")["index"]}
    chunks = list(_chunks(prompts, n, chunk_samples))
    missing = [_missing(chunk, held_indices) for chunk in chunks]
    total = n * len(problems)
    done = total - sum(len(indices) for chunk in missing for _, indices in chunk)
    with _progress_bar(total, done, benchmark, progress) as bar:
        tokens = 0
        for chunk in missing:
            if not chunk:
                continue
            frame = _draw_chunk(engine, chunk, prompts, params, benchmark)
            store.append(frame)
            tokens += int(frame["tokens"].sum())
            bar.update(len(frame))
            seconds = bar.format_dict["elapsed"]
            bar.set_postfix_str(f"{tokens / seconds:,.0f} tokens/s" if seconds else "")
    return Samples(store, benchmark)


def grade_store(
    store: SampleStore,
    benchmarks: Mapping[str, Sequence[Problem]],
    grade: Callable[[Sequence[str], Sequence[Problem]], Sequence[Any]],
    *,
    regrade: bool = False,
    progress: bool = True,
) -> None:
    """Grade the samples that have no verdict yet (all of them with `regrade`), one part file at a time.

    `benchmarks` maps each benchmark's name to its problems; samples of other benchmarks or problems are left as they
    are. `grade(responses, problems)` returns one object each with `verdict` and `extracted`: `grading.grade`, or the
    method of a `grading.Grader`. Each part is rewritten atomically, so a run that was killed goes on where it was.
    """
    from tqdm import tqdm

    golds = {(name, problem.id): problem for name, problems in benchmarks.items() for problem in problems}
    _forget_changed_golds(store, golds)
    parts = store.parts()
    for part in tqdm(parts, desc="grading", unit="part", disable=not progress or len(parts) < 2, delay=2):
        if not regrade:
            light = store.read_part(part, [*KEYS, "verdict"])  # most parts need nothing: don't read their texts
            if light is None or not light["verdict"].isna().any():
                continue
        frame = store.read_part(part)
        if frame is None:
            continue
        keys = list(zip(frame["benchmark"], frame["problem"], strict=True))
        wanted = [
            i
            for i, (key, verdict) in enumerate(zip(keys, frame["verdict"], strict=True))
            if key in golds and (regrade or pd.isna(verdict))
        ]
        if not wanted:
            continue
        texts = frame["text"].tolist()
        grades = grade([texts[i] for i in wanted], [golds[keys[i]] for i in wanted])
        verdicts, extracted = frame["verdict"].tolist(), frame["extracted"].tolist()
        for i, result in zip(wanted, grades, strict=True):
            verdicts[i], extracted[i] = str(result.verdict), result.extracted
        graded = frame.assign(
            extracted=pd.Series(extracted, index=frame.index, dtype=object),
            verdict=pd.Series(verdicts, index=frame.index, dtype=object),
        )
        store.replace_part(part, graded)


def _forget_changed_golds(store: SampleStore, golds: Mapping[tuple[str, str], Problem]) -> None:
    """Take back the verdicts that rest on another gold than a problem has now, and note what the golds are now.

    The verdicts go first, so that a kill in between only makes this be done again.
    """
    path = store.path / GOLDS
    noted = read_json(path) if path.is_file() else {}
    now = {"/".join(key): [problem.answer, problem.tolerance] for key, problem in golds.items()}
    changed = {key for key in golds if noted.get("/".join(key), now["/".join(key)]) != now["/".join(key)]}
    for part in store.parts() if changed else []:
        frame = store.read_part(part)
        if frame is None:
            continue
        stale = pd.Series(
            [key in changed for key in zip(frame["benchmark"], frame["problem"], strict=True)], dtype=bool
        )
        if stale.any():
            columns = {
                name: frame[name].astype(object).where(~stale.to_numpy(), None) for name in ("extracted", "verdict")
            }
            store.replace_part(part, frame.assign(**columns))
    if noted | now != noted and store.path.is_dir():
        write_json(noted | now, path)


def problem_seed(seed: int, benchmark: str, problem_id: str) -> int:
    """The seed of a problem's sample 0 (sample i has this plus i): 48 bits, the same on every machine and for ever."""
    name = f"{seed}\x1f{benchmark}\x1f{problem_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(name).digest()[:6], "big")


def _chunks(prompts: Mapping[str, RenderedPrompt], n: int, chunk_samples: int) -> Iterator[list[tuple[str, range]]]:
    """Sets of (problem, indices) with at most `chunk_samples` samples, whatever the store holds.

    Long prompts come first: memory that doesn't suffice shows at once, and prompts of equal length meet in one batch.
    """
    longest_first = sorted(prompts, key=lambda problem: (-len(prompts[problem].token_ids), problem))
    together = max(1, chunk_samples // n)
    pieces = -(-n // chunk_samples)  # more than one only where a problem's samples fill more than a chunk
    for first in range(0, len(longest_first), together):
        for piece in range(pieces):
            indices = range(n * piece // pieces, n * (piece + 1) // pieces)
            yield [(problem, indices) for problem in longest_first[first : first + together]]


def _missing(chunk: Sequence[tuple[str, range]], held: Mapping[str, set[int]]) -> list[tuple[str, list[int]]]:
    left = ((problem, [i for i in indices if i not in held.get(problem, ())]) for problem, indices in chunk)
    return [(problem, indices) for problem, indices in left if indices]


def _draw_chunk(
    engine: Engine,
    chunk: Sequence[tuple[str, Sequence[int]]],
    prompts: Mapping[str, RenderedPrompt],
    params: SamplingParams,
    benchmark: str,
) -> pd.DataFrame:
    """Draw the samples of a chunk; consecutive indices of a problem are one request."""
    runs: list[tuple[str, int, int]] = []  # problem, first index, how many
    for problem, indices in chunk:
        for index in indices:
            if runs and runs[-1][0] == problem and sum(runs[-1][1:]) == index:
                runs[-1] = (problem, runs[-1][1], runs[-1][2] + 1)
            else:
                runs.append((problem, index, 1))
    requests = [
        Request(prompts[problem].token_ids, count, problem_seed(params.seed, benchmark, problem) + first)
        for problem, first, count in runs
    ]
    rows = [
        (problem, first + j, completion)
        for (problem, first, _), completions in zip(runs, engine.generate(requests, params), strict=True)
        for j, completion in enumerate(completions)
    ]
    return pd.DataFrame(
        {
            "benchmark": benchmark,
            "problem": [problem for problem, _, _ in rows],
            "index": [index for _, index, _ in rows],
            "text": pd.Series([completion.text for _, _, completion in rows], dtype=object),
            "tokens": [completion.tokens for _, _, completion in rows],
            "finish_reason": [completion.finish_reason for _, _, completion in rows],
        }
    )


def _prompt_frame(benchmark: str, prompts: Mapping[str, RenderedPrompt]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "benchmark": benchmark,
            "problem": list(prompts),
            "prompt": pd.Series([prompt.text for prompt in prompts.values()], dtype=object),
            "prompt_tokens": [len(prompt.token_ids) for prompt in prompts.values()],
        }
    )


def _progress_bar(total: int, done: int, benchmark: str, shown: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, initial=done, desc=f"sampling {benchmark}", unit="sample", disable=not shown, delay=2)
