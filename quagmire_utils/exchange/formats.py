"""What other tools write: a row of `FORMATS` for each, with the columns that tell it and a function that reads a file.

(path, name), *_ = find(Path("lm_eval_output"))
log = read(path, name)
settings = next(log)            # model, temperature, ...; None or missing where the log does not have them
for answer in log: ...          # an `Answer`, or None for a request that failed
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data.golds import boxed_answer, math_gold, plain, single
from quagmire_utils.data.reading import Row, parse_json, read_rows

UNKNOWN = "unknown"
_FINISHED = {"eos": "stop", "eos_token": "stop", "end_turn": "stop", "stop": "stop"}
_FINISHED |= dict.fromkeys(("length", "max_tokens", "model_length"), "length")
SAMPLING = {  # our names of sampling parameters, and those that other tools give them
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "max_tokens": ("max_tokens", "max_gen_toks", "max_new_tokens", "max_completion_tokens", "generation_size"),
    "seed": ("seed",),
}


class Answer(NamedTuple):
    """An answer as a log has it."""

    benchmark: str
    problem: str  # empty: the log does not name it
    prompt: str
    gold: str  # empty: the log has none
    text: str
    tokens: int = -1
    finish_reason: str = UNKNOWN


class Format(NamedTuple):
    """How the files of a tool are recognised and read."""

    pattern: str  # of a file's name
    columns: tuple[str, ...]  # that its first row has
    read: Callable[[Path], Iterator[Any]]  # yields the settings first, then answers


def find(source: Path, name: str = "") -> list[tuple[Path, str]]:
    """Return the logs in a file or folder with the names of their formats; of format `name` alone, if that is given.

    Raise ParameterError for a source without logs, and for logs of several formats.
    """
    if name and name not in FORMATS:
        raise ParameterError("--format", name, f"one of {', '.join(FORMATS)}")
    if not source.exists():
        raise ParameterError("source", source, reason=f"there is no file or folder {source}")
    if name and source.is_file():
        return [(source, name)]
    paths = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    names = [name] if name else list(FORMATS)[: None if source.is_file() else -1]  # any JSONL file fits the last
    fitting = [(path, kind) for path in paths for kind in names if path.match(FORMATS[kind].pattern)]
    found: dict[Path, str] = {}
    for path, kind in fitting:
        if path not in found and all(column in _first(path) for column in FORMATS[kind].columns):
            found[path] = kind
    kinds = sorted({*found.values()})
    if len(kinds) > 1:
        raise ParameterError("--format", reason=f"{source} holds logs of {' and '.join(kinds)}; name one of them")
    if not found:
        known = "; ".join(f"{kind}: {', '.join((FORMATS[kind].pattern, *FORMATS[kind].columns))}" for kind in names)
        raise ParameterError("source", source, reason=f"{source} holds no file with the fields of a log ({known})")
    return list(found.items())


def read(path: Path, name: str) -> Iterator[Any]:
    """Yield the settings of a log, then its answers; raise ParameterError with the file and the field in error."""
    try:
        for row in FORMATS[name].read(path):
            if isinstance(row, Answer) and not isinstance(row.text, str):
                raise TypeError(f"an answer is {type(row.text).__name__}, not text")
            if isinstance(row, Answer) and not -1 <= row.tokens < 2**31:
                raise ValueError(f"an answer has {row.tokens} tokens")
            yield row
    except ParameterError:
        raise
    except KeyError as error:
        raise ParameterError(str(path), reason=f"a row has no field {error.args[0]!r}, which {name} writes") from error
    except Exception as error:  # YAML, zip and inspect's reader have errors of their own
        reason = f"not readable as a log of {name}: {' '.join(str(error).split())}"
        raise ParameterError(str(path), reason=reason) from error


def rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSONL or parquet file. Raise ParameterError with the line of a bad one."""
    return (row for _, row in read_rows(path))


def _first(path: Path) -> Row:
    """Return the first row of a file; empty for a file that has none."""
    try:
        return next(rows(path), {}) if path.suffix in (".jsonl", ".parquet") else {}
    except ParameterError:
        return {}


def _beside(path: Path, pattern: str) -> dict[str, Any]:
    """Return the JSON or YAML file of that pattern in one of the four folders above a log; empty if there is none."""
    import yaml

    found = next((file for folder in path.parents[:4] for file in sorted(folder.glob(pattern))), None)
    read_text = parse_json if pattern.endswith(".json") else yaml.safe_load
    return read_text(found.read_text("utf-8")) if found else {}


def _sampling(*held: Row | None) -> dict[str, Any]:
    """Return the sampling parameters in mappings, the first that has one counts."""
    there = [one for one in held if one]
    values = {
        ours: next((one[name] for one in there for name in names if one.get(name) is not None), None)
        for ours, names in SAMPLING.items()
    }
    if any(one.get("do_sample") is False for one in there):
        values["temperature"] = 0
    return values


def _said(value: Any, role: str) -> str:
    """Return a text, or what `role` says last in a chat, with its thinking in <think> tags."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        thought = value.get("reasoning_content") or value.get("reasoning")
        before = f"<think>{thought}</think>" if isinstance(thought, str) and thought else ""
        return before + _said(value.get("content") or "", role)
    if any("role" in part for part in value):
        return _said(([part for part in value if part["role"] == role] or [""])[-1], role)
    return "".join(_said(part.get("text") or part, role) for part in value)


def gold(value: Any) -> str:
    """Return a gold answer without its worked solution: after ####, or from its box. Empty if there is none."""
    value = single(value)
    if value is None:
        return ""
    if isinstance(value, Mapping):
        raise TypeError(f"a gold answer is an object with {', '.join(map(str, value))}, not text")
    text = plain(value)
    if "####" in text:
        text = text.rpartition("####")[2].replace(",", "")
    elif "\\boxed" in text:
        text = boxed_answer(text) or text
    return math_gold(text.strip())[0]


def _lm_eval(path: Path) -> Iterator[Any]:
    benchmark, _, stamp = path.stem.removeprefix("samples_").rpartition("_")  # samples_gsm8k_2026-11-30T05-46-28
    run, first = _beside(path, f"results_{stamp}.json"), _first(path)
    asked = _lm_eval_request(first)[1]
    if not isinstance(asked, Mapping):
        raise ValueError("resps holds log-likelihoods of given answers, not answers")
    facts = {"engine": f"lm-eval {run.get('lm_eval_version', UNKNOWN)}", "model": run.get("model_name")}
    facts["template"] = ("chat" if run["chat_template"] else "plain") if "chat_template" in run else None
    yield facts | _sampling({"do_sample": False} | asked)  # it is greedy unless it is told to sample
    for row in rows(path):
        if row.get("filter") == first.get("filter"):  # every filter has the same answers again
            if isinstance(row["resps"][0], str):
                raise TypeError("resps holds filtered answers, not the answers of each request")
            for text in row["resps"][0]:
                yield Answer(benchmark, str(row["doc_id"]), _lm_eval_request(row)[0], gold(row["target"]), text)


def _lm_eval_request(row: Row) -> list[Any]:
    """Return the prompt and its generation parameters; for a log-likelihood, context and continuation."""
    request = row["arguments"]
    first = next(iter(request.values())) if isinstance(request, Mapping) else request[0]
    return list(first.values()) if isinstance(first, Mapping) else list(first)


def _inspect(path: Path) -> Iterator[Any]:
    try:
        from inspect_ai.log import read_eval_log
    except ModuleNotFoundError as error:
        reason = f"inspect_ai itself reads {path}: pip install inspect-ai"
        raise ParameterError("--format", "inspect", reason=reason) from error
    log = read_eval_log(str(path))
    facts = {"engine": f"inspect_ai {log.eval.packages.get('inspect_ai', UNKNOWN)}"}
    facts["model"] = log.eval.model_args.get("model_path", log.eval.model)
    yield facts | _sampling(log.plan.config.model_dump(), log.eval.model_generate_config.model_dump())
    for sample in log.samples or ():
        choice, usage = next(iter(sample.output.choices), None), sample.output.usage
        if choice is None:
            yield None
            continue
        asked = sample.input if isinstance(sample.input, str) else [turn.model_dump() for turn in sample.input]
        prompt, text = _said(asked, "user"), _said(choice.message.model_dump(), "assistant")
        tokens, finished = usage.output_tokens if usage else -1, _FINISHED.get(choice.stop_reason, UNKNOWN)
        yield Answer(log.eval.task, str(sample.id), prompt, gold(sample.target), text, tokens, finished)


def _lighteval(path: Path) -> Iterator[Any]:
    task, _, stamp = path.stem.removeprefix("details_").rpartition("_")
    run = _beside(path, f"results/**/results_{stamp}.json").get("config_general", {})
    drawn = (run.get("model_config") or {}).get("generation_parameters")
    yield {"engine": "lighteval", "model": run.get("model_name")} | _sampling(drawn, _first(path)["doc"])
    for row in rows(path):
        doc, said = row["doc"], row["model_response"]
        right = doc["gold_index"] if isinstance(doc["gold_index"], list) else [doc["gold_index"]]
        if not said["text"]:
            raise ValueError("model_response.text is empty: it holds log-likelihoods of given answers, not answers")
        lengths = [len(tokens) for tokens in said.get("output_tokens") or ()] or [-1] * len(said["text"])
        facts = task.partition("|")[0], str(doc["id"]), _said(said.get("input") or doc["query"], "user")
        for text, tokens in zip(said["text"], lengths, strict=True):
            yield Answer(*facts, gold([doc["choices"][index] for index in right]), text, tokens)


def _evalscope(path: Path) -> Iterator[Any]:
    """Read a file of reviews, which has the golds, with that of predictions, which has tokens and reasons to stop."""
    run = _beside(path, "configs/task_config*.yaml")
    facts = {"engine": f"evalscope {run.get('evalscope_version', UNKNOWN)}", "model": run.get("model")}
    yield facts | _sampling(run.get("generation_config"))
    other = Path(*("predictions" if part == "reviews" else part for part in path.parts))
    drawn = {row["index"]: row["model_output"] or {} for row in (rows(other) if other.is_file() else ())}
    for row in rows(path):
        output, number = drawn.get(row["index"], {}), row["sample_score"].get("group_id")
        choice, usage = (output.get("choices") or [{}])[0], output.get("usage") or {}
        prompt, text = (_said(row["messages"], role) for role in ("user", "assistant"))
        found = str(row["index"] if number is None else number), prompt, gold(row["target"]), text
        finished = _FINISHED.get(choice.get("stop_reason"), UNKNOWN)
        yield Answer(path.stem, *found, usage.get("output_tokens") or -1, finished)


def _openai(path: Path) -> Iterator[Any]:
    """Read the answers of a batch, with the requests in the files beside it."""
    files = [
        file for file in path.parent.glob("*.jsonl") if all(name in _first(file) for name in ("custom_id", "body"))
    ]
    requests = {row["custom_id"]: row["body"] for file in files for row in rows(file)}
    asked = requests.get(_first(path)["custom_id"], {})
    body = (_first(path)["response"] or {}).get("body") or {}
    model = body.get("model") or asked.get("model")
    yield {"engine": "OpenAI batch", "model": model} | _sampling(asked)
    for row in rows(path):
        asked, body = requests.get(row["custom_id"], {}), (row["response"] or {}).get("body") or {}
        prompt, choices = _said(asked.get("messages") or asked.get("prompt") or "", "user"), body.get("choices") or []
        if not choices:
            yield None
        if (body.get("model") or model) != model:
            raise ValueError(f"its rows differ in model ({model}, {body['model']}); import one at a time")
        tokens = (body.get("usage") or {}).get("completion_tokens") or -1 if len(choices) == 1 else -1
        for choice in choices:
            text = _said(choice["message"] if "message" in choice else choice["text"], "assistant")
            finished = _FINISHED.get(choice.get("finish_reason"), UNKNOWN)
            yield Answer("answers", row["custom_id"], prompt, "", text, tokens, finished)


_COLUMNS = {  # of a file with one problem or answer a row; the first name that a row has counts
    "benchmark": ("benchmark", "dataset", "data_source", "task"),
    "problem": ("id", "problem_id", "uid"),
    "prompt": ("problem", "question", "prompt", "input", "messages"),
    "gold": ("expected_answer", "answer", "gts", "ground_truth", "gold", "target", "solution"),
    "text": ("generation", "response", "responses", "completion", "output", "messages"),
    "tokens": ("num_generated_tokens", "completion_tokens", "tokens"),
    "finished": ("finish_reason", "stop_reason"),
}


def _facts(row: Row) -> dict[str, Any]:
    return {name: row.get(name) for name in ("model", "step")} | _sampling(row)


def _plain(path: Path) -> Iterator[Any]:
    """Read rows of prompt, answer and gold: NeMo-Skills, the rollouts of verl and TRL, JSONL of one's own."""
    facts = _facts(_first(path))
    yield facts
    usual = path.parent.name if path.name.startswith("output") else "answers"  # NeMo-Skills: gsm8k/output-rs0.jsonl
    for row in rows(path):
        own = _facts(row)
        if name := next((name for name in facts if name != "seed" and own[name] not in (None, facts[name])), ""):
            raise ValueError(f"its rows differ in {name} ({facts[name]}, {own[name]}); import one at a time")
        there = {
            ours: next((row[name] for name in names if row.get(name) is not None), None)
            for ours, names in _COLUMNS.items()
        }
        for needed in ("prompt", "text"):
            if there[needed] is None:
                raise KeyError(" or ".join(_COLUMNS[needed]))
        texts = there["text"]
        several = isinstance(texts, list) and all(isinstance(text, str) for text in texts)  # else it is a chat
        place = str(there["benchmark"] or usual), str("" if there["problem"] is None else there["problem"])
        how = int(-1 if there["tokens"] is None else there["tokens"]), _FINISHED.get(there["finished"], UNKNOWN)
        for text in texts if several else [texts]:
            said = _said(there["prompt"], "user"), gold(there["gold"]), _said(text, "assistant")
            yield Answer(*place, *said, *how)


# A file is of the first format whose pattern and columns it has.
FORMATS = {
    "lm-eval": Format("samples_*.jsonl", ("doc_id", "resps", "target"), _lm_eval),
    "inspect": Format("*.eval", (), _inspect),
    "lighteval": Format("details_*.parquet", ("doc", "model_response"), _lighteval),
    "evalscope": Format("*.jsonl", ("target", "sample_score"), _evalscope),
    "openai": Format("*.jsonl", ("custom_id", "response"), _openai),
    "nemo-skills": Format("*.jsonl", ("problem", "generation"), _plain),
    "verl": Format("*.jsonl", ("input", "output", "gts"), _plain),
    "trl": Format("completions_*.parquet", ("prompt", "completion"), _plain),
    "jsonl": Format("*.jsonl", (), _plain),
}
