"""How fast an engine samples and how long its answers are, from a few seconds of it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data import Problem
from quagmire_utils.data.prompts import render_problem, resolve_template
from quagmire_utils.engines import Engine, EngineConfig, Request, SamplingParams
from quagmire_utils.evaluation.preflight.checks import check_origin, check_prompts, prompt_tokens_left, what_is_left
from quagmire_utils.evaluation.preflight.plan import Plan, Probe
from quagmire_utils.evaluation.store import SampleStore

PROBE_TOKENS = 16  # of the first, shortest steps
PROBE_FIRST = 32  # sequences in flight in the first step that is timed
PROBE_MOST = 4096  # sequences at most in flight
PROBE_PROBLEMS = 8  # so that an estimated length does not hang on a few of them
PROBE_SHARE = 0.1  # of the work
NEAR = 0.5  # of the run's load: from here on a measured rate is the run's


def timed(
    plan: Plan,
    engine: Engine | EngineConfig,
    benchmarks: Mapping[str, Sequence[Problem]],
    params: SamplingParams,
    *,
    template: str = "auto",
    seconds: float = 10.0,
) -> Plan:
    """The plan with what only a loaded `engine` tells: the time, and of a server's model template and context.

    Probes for about `seconds` at most, and for a tenth of the work at most; an `EngineConfig`, which is loaded
    elsewhere, not at all. Raises ParameterError for what `check` could not see of a server.
    """
    if isinstance(engine, EngineConfig):
        return plan
    num_samples = int(plan.table.loc["total", "answers"] // plan.table.loc["total", "problems"])
    if plan.context_length is None:
        resolved = resolve_template(engine.tokenizer, template)
        held = SampleStore(plan.folder)
        check_origin(held, params, plan.engine, resolved, lambda: engine.digest)
        lengths = check_prompts(benchmarks, engine.tokenizer, resolved, params.max_tokens, engine.context_length, held)
        plan = replace(
            plan,
            template=resolved,
            context_length=engine.context_length,
            longest_prompt=max(map(max, lengths.values())),
            prompt_tokens=prompt_tokens_left(lengths, what_is_left(benchmarks, num_samples, held)[1]),
        )
    if not plan.to_draw:
        return plan
    load = int(plan.table["to draw"].drop(index="total").max())  # one benchmark is drawn after the other
    how = {"template": plan.template, "seconds": seconds, "answers": plan.to_draw, "load": load}
    return replace(plan, probe=probe(engine, benchmarks, params, num_samples=num_samples, **how))


def probe(
    engine: Engine,
    benchmarks: Mapping[str, Sequence[Problem]],
    params: SamplingParams,
    *,
    num_samples: int = 1,
    template: str = "auto",
    seconds: float = 10.0,
    answers: int = PROBE_MOST,
    load: int = PROBE_MOST,
) -> Probe:
    """Measure how fast `engine` samples, in about `seconds`; what it draws is thrown away.

    `answers`: how many the run is going to draw, to problems that get `num_samples` each, `load` of them at a time
    (`PROBE_MOST` at most). An engine that decodes many answers side by side is many times faster than with a few, so a
    rate is the run's only where the load is. After a few short answers that are not timed, more are drawn at a time
    until there are as many in flight as in the run; then longer ones, until most of them end by themselves. Each step
    is as large as surely fits into half of what is left of the time, should it take time in proportion to its tokens,
    and into a tenth of the work. The last step says the speed, and the length: answers that it cut short are taken to
    go on and end as often, token by token, as it saw.
    """
    if seconds <= 0:
        raise ParameterError(f"seconds must be positive, not {seconds}")
    everything = [problem for problems in benchmarks.values() for problem in problems]
    step = max(1, len(everything) // PROBE_MOST)
    ids = [render_problem(problem, engine.tokenizer, template).token_ids for problem in everything[::step]]
    load = max(1, min(PROBE_MOST, answers, load))
    most_tokens = PROBE_SHARE * answers * params.max_tokens
    started = time.perf_counter()
    sequences, tokens = min(8, load), min(8, params.max_tokens)
    bigger = (min(PROBE_FIRST, load), min(PROBE_TOKENS, params.max_tokens))
    growth = bigger[0] * bigger[1] / (sequences * tokens)
    drawn, rates = 0, []
    for _ in range(2):  # the first compiles and fills caches, so what it took says little if it was long
        began = time.perf_counter()
        lengths, ended = _probe_step(engine, ids, sequences, tokens, params, num_samples)
        now = time.perf_counter()
        took, drawn = max(now - began, 1e-6), drawn + sum(lengths)
        if growth * took <= 2 * seconds or now - started > seconds:
            break
    if growth * took > 2 * seconds:  # too slow for more: what there is has to do
        bigger = (sequences, tokens)
    while bigger != (sequences, tokens):
        sequences, tokens = bigger
        began = time.perf_counter()
        lengths, ended = _probe_step(engine, ids, sequences, tokens, params, num_samples)
        now = time.perf_counter()
        took, total = max(now - began, 1e-6), sum(lengths)
        drawn += total
        rates.append(total / took)
        hazard = ended / total
        if sequences < load:
            bigger = (min(8 * sequences, load), tokens)
        elif 4 * ended < 3 * sequences:
            bigger = (sequences, min(4 * tokens, params.max_tokens))
        slower = bigger[0] * _mean_length(hazard, bigger[1]) / (sequences * _mean_length(hazard, tokens))
        room = (seconds - (now - started)) / 2
        scale = min(1.0, room / (slower * took), (most_tokens - drawn) / (slower * total))
        if scale < 1.0 and bigger[0] > sequences:  # not eight times as many, but some
            bigger = (int(bigger[0] * scale), tokens)
        elif scale < 1.0:
            bigger = (sequences, int(bigger[1] * scale))
        if bigger[0] * bigger[1] < 1.5 * sequences * tokens:
            break
    total, hazard = sum(lengths), ended / sum(lengths)
    if ended == len(lengths):
        mean = total / ended
    else:
        mean = _mean_length(hazard, params.max_tokens) if ended or tokens == params.max_tokens else None
    # where more in flight were no faster, twice, still more won't be either
    full = len(rates) > 2 and rates[-1] < 1.1 * rates[-2] < 1.21 * rates[-3]
    busy = bool(rates) and (sequences >= NEAR * load or full)
    return Probe(total / took, sequences, mean, now - started, load, busy)


def _mean_length(hazard: float, limit: int) -> float:
    """Mean tokens of answers that end with this chance at every token, and at `limit` at the latest."""
    return -math.expm1(limit * math.log1p(-min(hazard, 0.999999))) / hazard if hazard else float(limit)


def _probe_step(
    engine: Engine,
    ids: Sequence[tuple[int, ...]],
    sequences: int,
    tokens: int,
    params: SamplingParams,
    num_samples: int,
) -> tuple[list[int], int]:
    """Lengths of `sequences` answers of at most `tokens`, and how many of them ended by themselves."""
    problems = min(len(ids), sequences, max(PROBE_PROBLEMS, -(-sequences // num_samples)))
    counts = [sequences // problems + (i < sequences % problems) for i in range(problems)]
    spread = [ids[i * len(ids) // problems] for i in range(problems)]
    requests = [Request(prompt, n, seed=1 + i) for i, (prompt, n) in enumerate(zip(spread, counts, strict=True))]
    drawn = [c for some in engine.generate(requests, params.replace(max_tokens=tokens)) for c in some]
    return [completion.tokens for completion in drawn], sum(c.finish_reason == "stop" for c in drawn)
