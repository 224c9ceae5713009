"""Read the sample logs of other tools into a sample store, and grade them again with our graders.

    store, left_out = import_logs("lm_eval_output", "runs/theirs")           # a file, or a folder of logs of one model

The folder works like one of `evaluate`: scores with intervals, comparison, audit, page.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import digest, write_text
from quagmire_utils.core.provenance import manifest
from quagmire_utils.data import Problem, load_benchmark
from quagmire_utils.evaluation import measured, pass_at_k
from quagmire_utils.evaluation.audit import audit_store, unread_shares
from quagmire_utils.evaluation.chance import chance_counts
from quagmire_utils.evaluation.marking import grade_store
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.evaluation.store_files import PROBLEMS
from quagmire_utils.exchange.formats import SAMPLING, UNKNOWN, Answer, find, read
from quagmire_utils.grading import grade, prepare_problems
from quagmire_utils.report import answers, notebook, plots
from quagmire_utils.report.page import MEASURED, EvaluationPage

_SETTINGS = ("engine", "model", "template", "step", *SAMPLING)
_NO_BOX = " "  # the instruction of a problem whose prompt does not ask for a box: any answer counts
_COLUMNS = ["benchmark", "problem", "index", "text", "tokens", "finish_reason", "prompt"]


def import_logs(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    log_format: str = "",
    golds: Mapping[str, Sequence[Problem]] | None = None,
    grader: str = "",
) -> tuple[SampleStore, Counter[str]]:
    """Import and grade the answers in a log, or in a folder of logs of one model.

    log_format: of `formats.FORMATS`; by default it is recognised. golds: problems by benchmark. An answer then belongs
    to the one whose question comes last in its prompt (in a log without prompts: that has its id, in the log's
    benchmark or in one alone), and others are left out. grader: of the golds in the log; by default `choice` for a
    benchmark whose golds are letters, else `math`.

    Return the store, and how many answers were left out, by reason. The same call finishes an import that was killed.
    Raise ParameterError for a file that is not as its tool writes it, for logs of several models or tools, if no
    answer has a gold, and for an output that holds other answers.
    """
    if grader and golds:
        raise ParameterError("--grader", grader, reason="the problems that --benchmark names have their own")
    found = find(Path(source), log_format)
    logs = {path: read(path, kind) for path, kind in found}
    names = {path: os.path.relpath(path, source) if Path(source).is_dir() else path.name for path in logs}
    settings = {
        "engine": found[0][1],
        "model_digest": UNKNOWN,
        **_common(source, {names[path]: next(log) for path, log in logs.items()}),
    }
    digests = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in logs}
    if twice := [names[path] for path in logs if path not in digests.values()]:
        raise ParameterError("source", source, reason=f"it holds a copy of {twice[0]}; remove one")
    settings["log"] = digest(list(digests))
    store, matcher = SampleStore(output), _Matcher(golds or {})
    problems, left_out, drawn = dict[str, dict[str, Problem]](), Counter[str](), Counter[tuple[str, str]]()
    for path, log in logs.items():
        kept, limit = [], settings["max_tokens"]
        limit = limit[names[path]] if isinstance(limit, dict) else limit
        for answer in log:
            placed = matcher.place(answer)
            if isinstance(placed, str):
                left_out[placed] += 1
                continue
            name, problem = placed
            if problems.setdefault(name, {}).setdefault(problem.id, problem) != problem:
                reason = f"its answers to problem {problem.id} of {name} differ in question or gold; give each an id"
                raise ParameterError("source", source, reason=reason)
            key = name, problem.id
            kept.append((*key, drawn[key], answer.text, *_length(answer, limit), answer.prompt))
            drawn[key] += 1
        if kept:
            store.bind(settings, notes={"model": str(settings["model"]), "files": list(names.values())})
            frame = pd.DataFrame(kept, columns=_COLUMNS, dtype=object)
            prompts = frame.loc[frame["prompt"] != "", [*_COLUMNS[:2], "prompt"]].drop_duplicates(_COLUMNS[:2])
            if len(prompts):
                store.add_prompts(prompts.assign(prompt_tokens=-1))
            store.append(frame)
    if not problems:
        reasons = " and ".join(f"{count} have {reason}" for reason, count in left_out.items()) or "it holds none"
        remedy = "" if golds else "; name a benchmark, or a file with id, question and answer, with --benchmark"
        raise ParameterError("source", source, reason=f"no answer in {source} can be graded: {reasons}{remedy}")
    prepared = prepare_problems({name: _graded_by(grader, some) for name, some in problems.items()})
    for name, some in prepared.items():
        lines = [{**asdict(one), **(json.loads(one.answer) if one.grader == "code" else {})} for one in some]
        write_text("".join(json.dumps(line) + "\n" for line in lines), store.path / PROBLEMS / f"{name}.jsonl")
    grade_store(store, prepared, grade)
    return store, left_out


def stored_problems(store: SampleStore) -> dict[str, list[Problem]]:
    """Return the problems of an imported store by benchmark; empty for any other store."""
    return {file.stem: load_benchmark(file) for file in sorted((store.path / PROBLEMS).glob("*.jsonl"))}


def _common(source: Any, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings of all logs, `unknown` where they have none; sampling parameters that differ, by file.

    Raise ParameterError if model, template or step differ.
    """
    common: dict[str, Any] = {}
    for name in _SETTINGS:
        values = {file: one.get(name) for file, one in settings.items()}
        first = next(iter(values.values()))
        differ = any(value != first for value in values.values())
        if differ and name not in SAMPLING:
            shown = ", ".join(dict.fromkeys(map(str, values.values())))
            raise ParameterError("source", source, reason=f"its logs differ in {name} ({shown}); import one at a time")
        if first is not None or name not in ("engine", "step"):
            common[name] = values if differ else UNKNOWN if first is None else first
    return common


def _length(answer: Answer, limit: Any) -> tuple[int, str]:
    """Return tokens and finish reason: where a log has no reason, an answer as long as the limit was cut by it."""
    if answer.finish_reason == UNKNOWN and answer.tokens >= 0 and isinstance(limit, int):
        return answer.tokens, "length" if answer.tokens >= limit else "stop"
    return answer.tokens, answer.finish_reason


def _graded_by(grader: str, problems: Mapping[str, Problem]) -> list[Problem]:
    """Return problems with their graders; `grader` for those of a log, or if it is empty, what fits their golds."""
    letters = all(re.fullmatch("[A-Z]", one.answer) for one in problems.values())
    return [replace(one, grader=one.grader or grader or ("choice" if letters else "math")) for one in problems.values()]


class _Matcher:
    """Finds the problem of an answer: among `golds`, if there are any, else what the log says."""

    def __init__(self, golds: Mapping[str, Sequence[Problem]]) -> None:
        self.known = [(name, problem) for name, some in golds.items() for problem in some]
        ids = Counter(problem.id for _, problem in self.known)
        self.by_id = {(name, problem.id): (name, problem) for name, problem in self.known}
        self.by_id |= {("", problem.id): (name, problem) for name, problem in self.known if ids[problem.id] == 1}
        self.questions = [" ".join(problem.question.split()) for _, problem in self.known]
        self.by_prompt: dict[str, tuple[str, Problem] | None] = {}

    def place(self, answer: Answer | None) -> tuple[str, Problem] | str:
        """Return benchmark and problem, or what is missing."""
        if answer is None:
            return "no text"
        prompt, instruction = answer.prompt, None if "\\boxed" in answer.prompt else _NO_BOX
        if self.known:
            if prompt not in self.by_prompt:
                self.by_prompt[prompt] = self._find(" ".join(prompt.split()))
            keys = (answer.benchmark, answer.problem), ("", answer.problem)  # the second where one benchmark has it
            by_id = next((self.by_id[key] for key in keys if key in self.by_id), None)
            name, problem = (self.by_prompt[prompt] if prompt else by_id) or ("", None)
            own = problem and replace(problem, instruction=problem.instruction or instruction)
            return (name, own) if own else "no problem, or no single one, among those that were named"
        if not answer.gold:
            return "no gold answer"
        number = answer.problem or hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest()[:12]
        name = re.sub(r"[^\w.-]+", "_", answer.benchmark).encode()[:100].decode("utf-8", "ignore") or "answers"
        texts = (text.encode("utf-8", "replace").decode() for text in (number, prompt.strip(), answer.gold))
        number, question, gold = texts
        return name, Problem(number, question or number, gold, None, "", instruction)

    def _find(self, prompt: str) -> tuple[str, Problem] | None:
        there = [
            (prompt.rfind(text) + len(text), len(text), i) for i, text in enumerate(self.questions) if text in prompt
        ]
        return self.known[max(there)[-1]] if there else None  # the last one: examples come before


def write_page(store: SampleStore, left_out: Mapping[str, int]) -> tuple[pd.DataFrame, Path]:
    """Write the page of an imported evaluation beside its answers; return its table of scores and its path."""
    from IPython.display import HTML

    problems, counts, origin = stored_problems(store), store.counts(), store.origin
    audited, k = audit_store(store, problems), int(counts["n"].min())
    votes = pass_at_k.benchmark_maj_at_k(store.read(["benchmark", "problem", "verdict", "extracted"]), [k])
    beside = [unread_shares(audited, counts), measured.thinking_table(store)]
    table = measured.evaluation_table(counts, sorted({1, k}), votes=votes, chance=chance_counts(store), beside=beside)
    curves = plots.pass_at_k_grid(pass_at_k.bootstrap_intervals(counts))
    plots.stamp(curves, notebook.evaluation_stamp(str(origin["model"])))
    figure = notebook.show_figure(plots.save_figure(curves, store.path / "figures" / "pass_at_k"))
    page = EvaluationPage(f"{origin['model']}, imported from {origin['engine']}")
    page.keep("Scores", notebook.words(measured.describe_evaluation(table)), figure, measured.show_evaluation(table))
    page.keep("Answers to browse", HTML(answers.browse_answers(store, problems)))
    page.keep("A second grader", HTML(answers.show_audit(audited)))
    facts = [f"- {name}: {value}" for name, value in origin.items()]
    facts += [f"- left out: {count} answers with {reason}" for reason, count in left_out.items()]
    page.keep(MEASURED, notebook.words("\n".join(facts)), notebook.words(notebook.provenance(manifest(origin))))
    return table, page.write(store.path)
