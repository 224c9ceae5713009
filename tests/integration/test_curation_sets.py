"""Sets from the hub's schemas: against in-memory truth, in any order of files, through kills; small files made here."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from quagmire_utils import cli
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json
from quagmire_utils.data import Problem, Trace, load_benchmark
from quagmire_utils.data.curation import (
    Recipe,
    build,
    decontaminate,
    load_recipes,
    load_set,
    load_source,
    load_sources,
    response_lengths,
    select,
    split_by_problem,
)
from quagmire_utils.data.curation import build as build_function
from quagmire_utils.data.curation.contamination import normalise
from quagmire_utils.data.curation.counting import QWEN, TokenCounter
from quagmire_utils.data.curation.files import read_unit, units
from quagmire_utils.data.curation.scan import problem_digest, tokenizer_json, trace_id
from quagmire_utils.data.curation.sources import Dropped, Record, made_by
from quagmire_utils.training.microlab import build_tokenizer


def main(arguments: list[str]) -> int:
    """Run `quagmire curate`."""
    return cli.main(["curate", *arguments])


REPO = Path(__file__).resolve().parents[2]
TOKENIZER = build_tokenizer()
PROMPT = "Solve the following math problem. Make sure to put the answer (and only answer) inside \\boxed{}."
RIGHT = "<think>\nAdd them.\n</think>\n\nIt is \\boxed{%d}."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _no_mirror(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[dict], row_group_size: int = 50) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(path, row_group_size=row_group_size)
    return path


def nemotron_row(question: str, output: str, generator: str = "DeepSeek-R1", **other) -> dict:
    return {
        "input": [{"role": "user", "content": f"{PROMPT}\n\n{question}"}],
        "output": output,
        "category": "math",
        "license": "cc-by-4.0",
        "reasoning": "on",
        "generator": generator,
        "used_in_training": "Ultra, Super, Nano",
        "version": "v1.1",
        "system_prompt": "detailed thinking on",
        **other,
    }


def read(source) -> list[Record | Dropped]:
    return [record for unit in units(source) for _, _, record in read_unit(source, unit)]


# --- the hub's schemas ------------------------------------------------------------------------------------------------


def test_llama_nemotron_rows(tmp_path):
    rows = [
        nemotron_row("What is 1+1?", RIGHT % 2, "Qwen-2.5-32B-Instruct, DeepSeek-R1"),
        nemotron_row("What is 1+2?", RIGHT % 3, "QwQ-32B"),
        nemotron_row("What is 1+3?", "4", "Llama-3.3-70B-Instruct"),
        nemotron_row("Write a sort.", "def sort", category="code"),
        nemotron_row("What is 1+4?", "  "),
        {**nemotron_row("", RIGHT % 6), "input": "What is 1+5?"},  # version 1 had text here
        nemotron_row("What is 1+6?", "\ud800"),
    ]
    source = load_source("llama_nemotron", files=[str(write_jsonl(tmp_path / "math.jsonl", rows))])
    assert read(source) == [
        Record("What is 1+1?", RIGHT % 2, "", "Qwen-2.5-32B-Instruct, DeepSeek-R1"),
        Record("What is 1+2?", RIGHT % 3, "", "QwQ-32B"),
        Dropped("generator", "Llama-3.3-70B-Instruct"),
        Dropped("category is code"),
        Dropped("empty"),
        Record("What is 1+5?", RIGHT % 6, "", "DeepSeek-R1"),
        Dropped("not Unicode text"),
    ]


def test_acereason_rows(tmp_path):
    rows = [
        {"category": "math", "source": "numina", "input": "A train\npasses.", "output": "<think>Okay</think> 27"},
        {"category": "code", "source": "taco", "input": "Sort.", "output": "def sort"},
    ]
    source = load_source("acereason", files=[str(write_parquet(tmp_path / "a.parquet", rows))])
    assert read(source) == [
        Record("A train\npasses.", "<think>Okay</think> 27", "", "DeepSeek-R1"),
        Dropped("category is code"),
    ]


def test_openr1_has_several_traces_a_row(tmp_path):
    row = {
        "problem": "What is 2+2?",
        "solution": "4",
        "answer": "4",
        "problem_type": "Algebra",
        "question_type": "math-word-problem",
        "source": "olympiads",
        "uuid": "c2d9",
        "is_reasoning_complete": [True, True, False, True],
        "generations": ["four", "five", "fo", "IV"],
        "correctness_math_verify": [True, False, True, None],
        "correctness_llama": None,
        "finish_reasons": None,
        "correctness_count": 1,
        "messages": [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "four"}],
    }
    shorter = {**row, "problem": "What is 3+3?", "generations": ["six", "seven"], "correctness_math_verify": [True]}
    source = load_source("openr1_math", files=[str(write_parquet(tmp_path / "o.parquet", [row, shorter]))])
    wrong = Dropped("not correctness_math_verify and is_reasoning_complete")
    assert read(source) == [
        Record("What is 2+2?", "four", "4", "DeepSeek-R1"),
        *[wrong] * 3,
        Record("What is 3+3?", "six", "4", "DeepSeek-R1"),
        wrong,
    ]


def test_problems_for_rl(tmp_path):
    (tmp_path / "deepscaler.json").write_text(
        json.dumps([{"problem": "p", "answer": "-\\frac{2}{3}", "solution": "..."}, {"problem": "q", "answer": ""}])
    )
    deepscaler = load_source("deepscaler", files=[str(tmp_path / "deepscaler.json")])
    assert read(deepscaler) == [Record("p", "", "-\\frac{2}{3}", ""), Dropped("empty")]
    rows = [{"problem": "p", "level": "Level 1", "type": "Algebra", "solution": "So $\\boxed{\\frac12}$."}]
    math = load_source("math_train", files=[str(write_parquet(tmp_path / "m.parquet", rows))])
    assert read(math) == [Record("p", "", "\\frac12", "")]
    rows = [{"question": "q", "answer": "1 + 1,000 = 1001\n#### 1,001"}]
    gsm8k = load_source("gsm8k_train", files=[str(write_jsonl(tmp_path / "g.jsonl", rows))])
    assert read(gsm8k) == [Record("q", "1 + 1,000 = 1001\n#### 1,001", "1001", "human")]


@pytest.mark.parametrize(
    ("generator", "wanted", "yes"),
    [
        ("Qwen/QwQ-32B", "QwQ-32B", True),
        ("qwen-qwq-32b", "QwQ-32B", True),
        ("Qwen-2.5-32B-Instruct, DeepSeek-R1", "DeepSeek-R1", True),
        ("DeepSeek-R1-Distill-Qwen-7B", "DeepSeek-R1", False),
        ("QwQ-32B-Preview", "QwQ-32B", False),
        ("", "QwQ-32B", False),
    ],
)
def test_generators_are_told_apart(generator, wanted, yes):
    assert made_by(generator, [wanted]) == yes


def test_every_source_names_its_dataset_and_a_pinned_commit():
    for source in load_sources().values():
        assert source.hub_id.count("/") == 1
        assert source.licence
        assert source.revision is None or len(source.revision) == 40
    assert [s.name for s in load_sources().values() if s.revision is None] == ["acereason"]


def test_a_hub_dataset_is_streamed_like_its_files(tmp_path, tokenizer):
    # A folder laid out as the hub's repository, read by `datasets` itself: configurations, splits, several files.
    rows = [nemotron_row(f"What is {i}+{i}?", RIGHT % (2 * i) + "x" * (i % 7)) for i in range(300)]
    hub = tmp_path / "hub"
    files = [write_jsonl(hub / f"SFT/math/math_v{k}.jsonl", rows[k::3]) for k in range(3)]
    named = {"hub_id": str(hub), "hub_files": ["SFT/math/math_v0.jsonl"]}
    write_jsonl(hub / "SFT/code/code_v1.jsonl", [nemotron_row("Sort.", "def", category="code")])
    splits = [{"split": name, "path": f"SFT/{name}/*.jsonl"} for name in ("code", "math")]
    card = yaml.safe_dump({"configs": [{"config_name": "SFT", "data_files": splits}]})
    (hub / "README.md").write_text(f"---\n{card}---\n")
    entry = yaml.safe_load((REPO / "quagmire_utils/data/curation/sources.yaml").read_text())["sources"][
        "llama_nemotron"
    ]
    registry = tmp_path / "mine.yaml"
    registry.write_text(
        yaml.safe_dump(
            {
                "sources": {
                    "llama_nemotron": {**entry, **named},
                    "whole": {**entry, "hub_id": str(hub), "configs": ["SFT"], "split": "math", "hub_files": []},
                }
            }
        )
    )
    recipe = Recipe("llama_nemotron", tokenizer, "shortest", n=40, validation_problems=5, benchmarks=())
    streamed = build(recipe, tmp_path / "a", registry=registry, cache=tmp_path / "cache", progress=False)
    assert [unit[1] for unit in streamed["configuration"]["inputs"]] == ["math_v0.jsonl"]  # the source's file alone
    local = Recipe(**{**vars(recipe), "files": (str(files[0]),)})
    from_files = build(local, tmp_path / "b", cache=tmp_path / "cache", progress=False)
    assert streamed["sets"] == from_files["sets"]
    assert load_set(tmp_path / "a") == load_set(tmp_path / "b")
    # all files of a configuration and split; an unknown one is named
    assert sorted(unit.name for unit in units(load_source("whole", registry=registry))) == sorted(map(str, files))
    registry.write_text(
        yaml.safe_dump({"sources": {"whole": {"hub_id": str(hub), "configs": ["SFT"], "split": "mth"}}})
    )
    with pytest.raises(ParameterError, match=r"split 'mth' \(its splits: code, math\)"):
        units(load_source("whole", registry=registry))


# --- the sets ---------------------------------------------------------------------------------------------------------


def pool_rows(n: int, seed: int = 0) -> list[dict]:
    """Problems with one to four traces, some repeated, some spaced differently, some that a benchmark has."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        problem = rng.randrange(n // 3)
        question = f"Find the sum of {problem} and {problem + 1}."
        if rng.random() < 0.1:
            question = question.replace(" ", "  ")
        response = f"The sum is \\boxed{{{2 * problem + 1}}}" + "!" * rng.randrange(40)
        rows.append({"category": "math", "source": "s", "input": question, "output": response})
    rows += [{**row, "output": row["output"].replace(" ", "\n")} for row in rows[: n // 20]]  # near duplicates
    rows += rows[: n // 10]  # exact ones
    return rows


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("benchmark") / "b.jsonl"
    rows = [{"id": f"b/{i}", "question": f"find the SUM of ${i}$ and {i + 1}.", "answer": "1"} for i in range(0, 90, 9)]
    return str(write_jsonl(path, rows))


def in_memory(rows: list[dict], recipe: Recipe) -> tuple[list[Trace], list[Trace]]:
    """The same set by the plain functions on lists of traces."""
    traces = {}
    for row in rows:
        record = Record(row["input"], row["output"], "", "DeepSeek-R1")
        problem = problem_digest(record.question).hex()
        trace = Trace(f"{trace_id(record):016x}", problem, record.question, record.response, source="acereason")
        traces[trace.id] = trace
    clean, _ = decontaminate(list(traces.values()), load_benchmark(recipe.benchmarks[0]))
    lengths = dict(zip([t.id for t in clean], response_lengths(clean, TOKENIZER), strict=True))
    clean = [t for t in clean if lengths[t.id] <= (recipe.max_tokens or 10**9)]
    kept: dict[str, Trace] = {}
    for trace in sorted(clean, key=lambda t: t.id):
        kept.setdefault(normalise(trace.question) + "\n" + normalise(trace.response), trace)
    train, validation = split_by_problem(list(kept.values()), n_validation=recipe.validation_problems, seed=recipe.seed)
    how = dict(recipe.mixture) or recipe.selection
    return select(train, how, recipe.n, tokenizer=TOKENIZER, seed=recipe.seed), validation


@pytest.mark.parametrize(
    "asked",
    [
        {"selection": "random", "n": 100},
        {"selection": "shortest", "n": 100},
        {"selection": "longest+shortest", "n": 101, "max_tokens": 50},
        {"mixture": {"longest": 30, "random": 50, "shortest": 20}, "seed": 7},
    ],
)
@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_set_is_what_the_plain_functions_choose(tmp_path, tokenizer, benchmark, asked, format):
    rows = pool_rows(600)
    recipe = Recipe(
        "acereason",
        tokenizer,
        **asked,
        files=(str(write_parquet(tmp_path / "in/a.parquet", rows)),),
        benchmarks=(benchmark,),
        validation_problems=20,
        format=format,
    )
    manifest = build(recipe, tmp_path / "out", cache=tmp_path / "cache", progress=False)
    train, validation = load_set(tmp_path / "out")
    expected, held_out = in_memory(rows, recipe)
    assert train == expected
    assert sorted(validation, key=lambda t: t.id) == sorted(held_out, key=lambda t: t.id)
    assert manifest["sets"]["train"]["tokens"] == sum(response_lengths(train, TOKENIZER))
    assert manifest["counts"]["read"] == len(rows)
    assert not {t.problem_id for t in train} & {t.problem_id for t in validation}


@pytest.mark.parametrize("shards", [1, 4, 13])
def test_the_same_set_from_any_shards_in_any_order(tmp_path, tokenizer, benchmark, shards, monkeypatch):
    rows = pool_rows(500)
    random.Random(shards).shuffle(rows)
    files = []
    for k in range(shards):
        write = write_jsonl if k % 2 or shards == 1 else write_parquet
        files.append(write(tmp_path / f"in/{(k * 7) % shards:02d}.{write.__name__[6:]}", rows[k::shards]))
    recipe = Recipe(
        "acereason",
        tokenizer,
        "shortest+random",
        n=120,
        files=(str(tmp_path / "in"),),
        benchmarks=(benchmark,),
        validation_problems=10,
    )
    one_file = Recipe(**{**vars(recipe), "files": (str(write_jsonl(tmp_path / "one.jsonl", pool_rows(500))),)})
    expected = build(one_file, tmp_path / "expected", cache=tmp_path / "cache", progress=False)
    monkeypatch.setattr("quagmire_utils.data.curation.files.UNIT_BYTES", 4000)
    monkeypatch.setattr(sys.modules[build_function.__module__], "_PIECE_BYTES", 3000)
    manifest = build(recipe, tmp_path / "out", cache=tmp_path / "cache", progress=False)
    assert len(manifest["configuration"]["inputs"]) > 5 * len(expected["configuration"]["inputs"])
    for key in ("sets", "counts", "not_taken", "problems", "generators"):
        assert manifest[key] == expected[key]
    for name in ("train.jsonl", "validation.jsonl", "removed.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
    assert manifest["counts"]["met a benchmark"] > 20
    assert manifest["counts"]["duplicates"] > 50


def test_workers_and_tokenizer_threads_change_nothing(tmp_path, tokenizer):
    rows = pool_rows(300)
    for k in range(4):
        write_jsonl(tmp_path / f"in/{k}.jsonl", rows[k::4])
    recipe = Recipe("acereason", tokenizer, "longest", n=50, files=(str(tmp_path / "in"),), benchmarks=())
    sets = [
        build(recipe, tmp_path / f"out{w}", cache=tmp_path / f"cache{w}", workers=w, progress=False)["sets"]
        for w in (1, 2)
    ]
    assert sets[0] == sets[1]


@pytest.mark.parametrize("asked", [{"selection": "shortest"}, {"selection": "longest+random"}])
def test_a_token_budget_is_filled_and_never_exceeded(tmp_path, tokenizer, asked):
    files = (str(write_jsonl(tmp_path / "a.jsonl", pool_rows(300))),)
    recipe = Recipe("acereason", tokenizer, **asked, token_budget=3001, files=files, benchmarks=())
    whole = Recipe("acereason", files=files, benchmarks=())
    build(recipe, tmp_path / "out", cache=tmp_path / "cache", progress=False)
    build(whole, tmp_path / "all", cache=tmp_path / "cache", progress=False)
    train, rest = load_set(tmp_path / "out")[0], load_set(tmp_path / "all")[0]
    parts = asked["selection"].split("+")
    start = 0
    for part, budget in zip(parts, [3001] if len(parts) == 1 else [1501, 1500], strict=True):
        order = select(rest, part, len(rest), tokenizer=TOKENIZER, seed=0)
        spent, taken = 0, []
        for trace, length in zip(order, response_lengths(order, TOKENIZER), strict=True):
            if spent + length > budget:
                break
            spent, taken = spent + length, [*taken, trace]
        assert train[start : start + len(taken)] == taken
        start += len(taken)
        rest = [trace for trace in rest if trace not in taken]
    assert start == len(train)


def test_smaller_sets_are_part_of_larger_ones_and_hold_out_the_same_problems(tmp_path):
    files = (str(write_jsonl(tmp_path / "a.jsonl", pool_rows(300))),)
    small, large = (
        build(
            Recipe("acereason", n=n, files=files, benchmarks=(), validation_fraction=0.1),
            tmp_path / f"{n}",
            cache=tmp_path / "cache",
            progress=False,
        )
        for n in (20, 100)
    )
    assert load_set(tmp_path / "100")[0][:20] == load_set(tmp_path / "20")[0]
    assert small["sets"]["validation"] == large["sets"]["validation"]
    assert small["sets"]["train"]["tokens"] is None  # no tokenizer was named


def test_what_was_removed_is_listed(tmp_path, benchmark):
    rows = [
        {"category": "math", "source": "s", "input": "Find the sum of 9 and 10.", "output": "19"},
        {"category": "math", "source": "s", "input": "Find  the sum of 9 and 10.", "output": "19!"},
        {"category": "math", "source": "s", "input": "Find the sum of 1 and 10.", "output": "It is 11"},
        {"category": "math", "source": "s", "input": "Find the sum of 1 and 10.", "output": "it is  11"},
        {"category": "math", "source": "s", "input": "Find the sum of 1 and 10.", "output": "It is 11"},
        {"category": "code", "source": "s", "input": "Sort.", "output": "def"},
    ]
    files = (str(write_jsonl(tmp_path / "a.jsonl", rows)),)
    recipe = Recipe("acereason", files=files, benchmarks=(benchmark,))
    manifest = build(recipe, tmp_path / "out", cache=tmp_path / "cache", progress=False)
    removed = [json.loads(line) for line in (tmp_path / "out/removed.jsonl").read_text().splitlines()]
    assert removed[0]["reason"] == "equals a benchmark's question"
    assert (removed[0]["benchmark_problem"], removed[0]["traces"]) == ("b/9", 2)
    assert sorted(r["reason"] for r in removed[1:]) in (
        ["repeats a trace", "repeats a trace up to spacing and case"],
        ["repeats a trace up to spacing and case"] * 2,  # where the spelling that stands twice has the larger id
    )
    assert manifest["counts"] == {"read": 5, "met a benchmark": 2, "duplicates": 2, "pool": 1, "held out": 0}
    assert manifest["not_taken"] == {"category is code": 1}
    exact = Recipe("acereason", files=files, benchmarks=(benchmark,), deduplicate="exact")
    assert build(exact, tmp_path / "exact", cache=tmp_path / "cache", progress=False)["counts"]["pool"] == 2


def test_a_problem_goes_with_all_its_spellings(tmp_path):
    # The first spelling shares 13 words with the benchmark, the second glues them together; it is the same problem.
    words = "find how many of the ten red marbles are left over in her box"
    path = write_jsonl(tmp_path / "b.jsonl", [{"id": "b/1", "question": f"Ann: {words}", "answer": "1"}])
    rows = [
        {"category": "math", "source": "s", "input": question, "output": f"answer {i}"}
        for i, question in enumerate([f"Bob: {words}?", f"Bob: {words}?".replace(" ", ""), "Another?"])
    ]
    files = (str(write_jsonl(tmp_path / "a.jsonl", rows)),)
    build(Recipe("acereason", files=files, benchmarks=(str(path),)), tmp_path / "out", cache=tmp_path / "c")
    assert [trace.question for trace in load_set(tmp_path / "out")[0]] == ["Another?"]


def test_an_rl_set_is_a_benchmark_file(tmp_path):
    rows = [{"problem": f"p{i}", "answer": str(i), "solution": ""} for i in range(20)]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    recipe = Recipe("deepscaler", n=5, files=(str(tmp_path / "d.json"),), benchmarks=())
    build(recipe, tmp_path / "out", cache=tmp_path / "cache", progress=False)
    problems = load_benchmark(tmp_path / "out/train.jsonl")
    assert len(problems) == 5
    assert all(isinstance(p, Problem) and p.question == f"p{p.answer}" for p in problems)


def test_math_training_problems_that_are_benchmark_questions(tmp_path):
    try:
        load_benchmark("aime")
        source = load_source("math_train", data_dir=os.environ.get("QUAGMIRE_DATA_DIR") or REPO.parent / "shared/data")
        recipe = Recipe("math_train", files=source.files)
        manifest = build(recipe, tmp_path / "out", cache=tmp_path / "cache", progress=False)
    except ParameterError as error:
        pytest.skip(str(error))
    assert manifest["counts"] == {"read": 7470, "met a benchmark": 573, "duplicates": 4, "pool": 6893, "held out": 0}
    removed = [json.loads(line) for line in (tmp_path / "out/removed.jsonl").read_text().splitlines()]
    equal = [r for r in removed if r["reason"].startswith("equals")]
    assert sum(r["traces"] for r in equal) == 260
    assert {r["benchmark_problem"].split("/")[0] for r in equal} == {"aime", "olympiad"}


# --- going on, refusing -----------------------------------------------------------------------------------------------


def test_a_killed_scan_goes_on_and_ends_in_the_same_set(tmp_path):
    rows = pool_rows(20_000)
    for k in range(40):
        write_jsonl(tmp_path / f"in/{k:02d}.jsonl", rows[k::40])
    arguments = ["--source", "acereason", "--files", str(tmp_path / "in")]
    arguments += ["--n", "500", "-p", "benchmarks=[]", "--workers", "1"]
    command = [sys.executable, "-m", "quagmire_utils", "curate", *arguments, "--cache", str(tmp_path / "cache")]
    command += ["--output", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "cache").glob("rows-*"))) < 3 and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out/manifest.json").exists()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.parquet")}
    assert 3 <= len(done) < 40
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "500 traces" in output.stdout
    assert {path: path.stat().st_mtime_ns for path in done} == done
    again = ["--cache", str(tmp_path / "other"), "--output", str(tmp_path / "unbroken")]
    assert main([*arguments, *again]) == 0
    unbroken, resumed = (read_json(tmp_path / name / "manifest.json")["sets"] for name in ("unbroken", "out"))
    assert unbroken == resumed


def test_a_finished_set_is_left_alone_and_another_is_not_overwritten(tmp_path):
    files = (str(write_jsonl(tmp_path / "a.jsonl", pool_rows(60))),)
    recipe = Recipe("acereason", n=10, files=files, benchmarks=())
    first = build(recipe, tmp_path / "out", cache=tmp_path / "cache", progress=False)
    written = (tmp_path / "out/train.jsonl").stat().st_mtime_ns
    assert build(recipe, tmp_path / "out", cache=tmp_path / "empty", progress=False) == first
    assert (tmp_path / "out/train.jsonl").stat().st_mtime_ns == written
    assert not (tmp_path / "empty").exists()
    with pytest.raises(ParameterError, match="holds another set"):
        build(Recipe("acereason", n=11, files=files, benchmarks=()), tmp_path / "out", cache=tmp_path / "cache")


def test_nothing_of_an_unfinished_set_is_left_in_the_next(tmp_path, monkeypatch):
    files = (str(write_jsonl(tmp_path / "a.jsonl", pool_rows(60))),)
    module = sys.modules[build_function.__module__]
    first = Recipe("acereason", n=10, files=files, benchmarks=(), validation_problems=3)
    monkeypatch.setattr(module, "_write_removed", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    if (child := os.fork()) == 0:
        build(first, tmp_path / "out", cache=tmp_path / "cache", progress=False)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    monkeypatch.undo()
    assert (tmp_path / "out/validation.jsonl").is_file()
    second = Recipe("acereason", n=12, files=files, benchmarks=(), format="parquet")
    build(second, tmp_path / "out", cache=tmp_path / "cache", progress=False)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["manifest.json", "removed.jsonl", "train.parquet"]
    assert [len(side) for side in load_set(tmp_path / "out")] == [12, 0]


def test_another_tokenizer_only_counts_again(tmp_path, tokenizer):
    files = (str(write_jsonl(tmp_path / "a.jsonl", pool_rows(60))),)
    build(Recipe("acereason", files=files, benchmarks=()), tmp_path / "a", cache=tmp_path / "cache", progress=False)
    assert [p.name[:4] for p in (tmp_path / "cache").iterdir()] == ["rows"]
    recipe = Recipe("acereason", tokenizer, "longest", n=5, files=files, benchmarks=())
    build(recipe, tmp_path / "b", cache=tmp_path / "cache", progress=False)
    assert sorted(p.name[:4] for p in (tmp_path / "cache").iterdir()) == ["leng", "rows"]


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "json"])
def test_a_missing_column_names_those_that_there_are(tmp_path, ending):
    path, row = tmp_path / f"a.{ending}", {"prompt": "q", "output": "r", "category": "math"}
    if ending == "json":
        path.write_text(json.dumps([row]))
    else:
        {"jsonl": write_jsonl, "parquet": write_parquet}[ending](path, [row])
    with pytest.raises(ParameterError, match="has no column 'input'; it has category, output, prompt"):
        read(load_source("acereason", files=[str(path)]))


def test_a_missing_column_on_the_hub(tmp_path):
    hub = tmp_path / "hub"
    write_jsonl(hub / "train.jsonl", [{"prompt": "q", "output": "r", "category": "math"}])
    registry = tmp_path / "mine.yaml"
    registry.write_text(yaml.safe_dump({"sources": {"mine": {"hub_id": str(hub), "question": "input"}}}))
    with pytest.raises(ParameterError, match=r"mine.*no column 'input'; it has category, output, prompt"):
        read(load_source("mine", registry=registry))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"n": 10_000}, r"random: 10,000 traces were asked for, but there are only 60 traces.*duplicates"),
        ({"token_budget": 10**9, "tokenizer": True}, "tokens were asked for, but there are only"),
        ({"selection": "shortest", "n": 5}, "tokenizer is needed"),
        ({"selection": "shortest", "tokenizer": True}, "n or token_budget must be given"),
        ({"selection": "middle", "n": 5}, "must be of shortest, longest, random"),
        ({"n": 5, "token_budget": 5}, "n and token_budget cannot both be given"),
        ({"n": 0}, "n must be at least 1"),
        ({"max_tokens": 3, "min_tokens": 4, "tokenizer": True}, "max_tokens"),
        ({"validation_problems": 10_000}, "validation_problems=10000 must leave at least one"),
        ({"validation_fraction": 1.5}, "between 0 and 1"),
        ({"generators": ("QwQ-32B",)}, r"no trace passes its filters \(generator is DeepSeek-R1: 60"),
        ({"where": {"category": ("physics",)}}, r"no trace passes its filters \(category is math: 60"),
        ({"format": "csv"}, "format must be one of"),
        ({"deduplicate": "minhash"}, "deduplicate must be one of"),
        ({"tokenizer": "/no/such", "selection": "longest", "n": 1}, "tokenizer='/no/such' cannot be loaded"),
        ({"source": "no_such"}, "unknown source 'no_such'"),
        ({"files": ("no/such/*.jsonl",)}, "there is nothing at no/such"),
        ({"files": (__file__,)}, "is none of .parquet, .arrow, .jsonl, .json"),
        ({"benchmarks": ("no_such",)}, "unknown benchmark"),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence(tmp_path, tokenizer, asked, message):
    files = (str(write_jsonl(tmp_path / "a.jsonl", pool_rows(600)[:60])),)
    asked = {"source": "acereason", "files": files, "benchmarks": (), **asked}
    if asked.get("tokenizer") is True:
        asked["tokenizer"] = tokenizer
    with pytest.raises(ParameterError, match=message):
        build(Recipe(**asked), tmp_path / "out", cache=tmp_path / "cache", progress=False)
    assert not (tmp_path / "out").exists()


def test_files_that_are_broken_or_change(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text('{"category": "math", "input": "q", "output": "r"}\n{"category": \n')
    with pytest.raises(ParameterError, match="the line at byte 50 is no JSON"):
        read(load_source("acereason", files=[str(path)]))
    (tmp_path / "b.parquet").write_text("no parquet")
    with pytest.raises(ParameterError, match="cannot be read as parquet"):
        read(load_source("acereason", files=[str(tmp_path / "b.parquet")]))
    rows = [{"category": "math", "input": f"q{i}", "output": "r"} for i in range(9)]
    recipe = Recipe("acereason", files=(str(write_jsonl(path, rows)),), benchmarks=())
    module = sys.modules[build_function.__module__]
    choose = module.choose

    def edit(*arguments):
        write_jsonl(path, [{**row, "output": "s"} for row in rows])
        return choose(*arguments)

    monkeypatch.setattr(module, "choose", edit)
    with pytest.raises(ParameterError, match="changed while it was read"):
        build(recipe, tmp_path / "out", cache=tmp_path / "cache", progress=False)
    assert not (tmp_path / "out/manifest.json").exists()


def test_an_unreachable_hub_says_what_to_do(monkeypatch):
    monkeypatch.delenv("QUAGMIRE_DATA_DIR", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ParameterError, match=r"openr1_math: open-r1/OpenR1-Math-220k gave no answer.*local copy"):
        units(load_source("openr1_math"))


# --- counting tokens --------------------------------------------------------------------------------------------------


def byte_level(expression: str | None, corpus: list[str], added: tuple = (), normalizer=None) -> str:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if expression:
        cut = pre_tokenizers.Split(Regex(expression), "isolated")
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        bpe.pre_tokenizer = pre_tokenizers.Sequence([cut, last])
    if normalizer:
        bpe.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=700, show_progress=False, initial_alphabet=alphabet))
    bpe.add_tokens(list(added))
    return bpe.to_str()


CORPUS = [
    "So, the answer isn't 12; it's $\\frac{1}{2}$.\n\nWait, let me check: x = 3 + 45.\n  - step 1: the sum  of two"
] * 5
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
REAL_EXPRESSIONS = {  # as the tokenizer.json files of these models have them
    "llama3": CONTRACTIONS + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + SPACES,
    "qwen2": CONTRACTIONS + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + SPACES,
    "nemo": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + SPACES,
}
COUNTERS = {name: TokenCounter(byte_level(e, CORPUS, ("<think>",))) for name, e in REAL_EXPRESSIONS.items()}
PIECES = st.sampled_from(
    [
        *"  \n\t\r.,'$\\{}1a",
        *("  ", " \n", "\n ", "the", " The", "12345", "'s", "'LL", "<think>", "\u00a0", "\u3000", " \u0301"),
        *(
            "/",
            "//\n",
            ".\n\n",
            "\n/",
            "\r\n",
            "e\u0301",
            "\u2028 ",
            "\x1f ",
            "\x85",
            "\x00",
            "²",
            "ǅ",
            "\u4e2d",
            "🙂",
            "isn't",
            "\\frac{1}{2}",
        ),
    ]
)


@pytest.mark.parametrize("name", REAL_EXPRESSIONS)
@settings(max_examples=300, deadline=None)
@given(texts=st.lists(st.lists(PIECES, max_size=25).map("".join), max_size=4))
def test_counting_by_words_is_counting(name, texts):
    counter = COUNTERS[name]
    assert counter(texts) == counter._whole(texts)
    assert counter.by_words


@pytest.mark.parametrize(
    "make",
    [
        lambda: tokenizer_json(TOKENIZER),
        lambda: byte_level(r"\p{L}+ \p{L}+|.", CORPUS),  # matches across a space
        lambda: byte_level(None, CORPUS),  # GPT-2
        lambda: byte_level(QWEN, CORPUS, (AddedToken("<a b>"),)),
        lambda: byte_level(QWEN, CORPUS, (AddedToken("<a>", rstrip=True),)),
        lambda: byte_level(QWEN, CORPUS, normalizer=normalizers.Strip()),
    ],
)
def test_other_tokenizers_count_whole_texts(make):
    counter = TokenCounter(make())
    assert not counter.by_words
    texts = ["the sum of two <a b> c <a>  x", " two of  the sum ", ""]
    assert counter(texts) == counter._whole(texts)


def test_lengths_are_those_of_select():
    texts = ["\\boxed{12}", "", "a ünï²", " \n\n "]
    traces = [Trace(str(i), "p", "q", text) for i, text in enumerate(texts)]
    counted = TokenCounter(tokenizer_json(TOKENIZER))(texts)
    assert [count + 1 for count in counted] == response_lengths(traces, TOKENIZER)


# --- command line -----------------------------------------------------------------------------------------------------


def test_sets_from_a_yaml_file(tmp_path, capsys):
    files = str(write_jsonl(tmp_path / "a.jsonl", [{"q": f"q{i}", "r": "x" * i} for i in range(1, 40)]))
    path = tmp_path / "sets.yaml"
    content = {
        "sources": {"mine": {"files": files, "question": "q", "response": "r"}},
        "defaults": {"source": "mine", "benchmarks": []},
        "sets": {"r5": {"n": 5}, "r9": {"n": 9, "seed": 1}},
    }
    path.write_text(yaml.safe_dump(content))
    assert load_recipes(path)["r9"] == Recipe("mine", n=9, seed=1, benchmarks=())
    common = ["--output", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--workers", "1"]
    assert main([str(path), "r9", *common]) == 0
    assert "train: 9 traces of 9 problems" in capsys.readouterr().out
    assert main([str(path), *common]) == 0
    assert [len(load_set(tmp_path / "out" / name)[0]) for name in ("r5", "r9")] == [5, 9]
    assert main([str(path), "r7", *common]) == 2
    assert "has no set 'r7'; it has r5, r9" in capsys.readouterr().err
    for entry, message in (({"m": 5}, "unknown key 'm'"), ({"n": "five"}, "n must be a whole number")):
        path.write_text(yaml.safe_dump({**content, "sets": {"bad": entry}}))
        assert main([str(path), *common]) == 2
        assert message in capsys.readouterr().err


def test_command_line_options(tmp_path, capsys, tokenizer):
    files = str(write_jsonl(tmp_path / "a.jsonl", pool_rows(100)))
    common = ["--output", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--workers", "1"]
    arguments = ["--source", "acereason", "--files", files, "--tokenizer", tokenizer, "-p", "benchmarks=[]"]
    assert (
        main([*arguments, "-p", "mixture={longest: 7, shortest: 5}", "-p", "where={category: [math, code]}", *common])
        == 0
    )
    assert "train: 12 traces" in capsys.readouterr().out
    assert main(["--list"]) == 0
    assert "open-r1/OpenR1-Math-220k" in capsys.readouterr().out
    assert main(["--source", "acereason"]) == 2
    assert "--output must be given" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert "examples:" in capsys.readouterr().out


def test_the_sets_of_the_page_on_curation_are_made(tmp_path, tokenizer, monkeypatch, capsys):
    """With fewer traces: the numbers are a hundredth of the page's."""
    page = (REPO / "docs" / "curation.md").read_text(encoding="utf-8")
    recipes = yaml.safe_load(page.split("```yaml")[1].split("```")[0])
    recipes["defaults"]["validation_problems"] //= 100
    for recipe in recipes["sets"].values():
        recipe["tokenizer"] = tokenizer
        recipe |= {"n": recipe["n"] // 100} if "n" in recipe else {}
        recipe |= {"token_budget": 500} if "token_budget" in recipe else {}
        recipe |= {"mixture": {part: n // 100 for part, n in recipe.get("mixture", {}).items()}}
    monkeypatch.chdir(tmp_path)
    Path("sets.yaml").write_text(yaml.safe_dump(recipes))
    rows = [{"prompt": f"What is {i} times {i + 7}?", "completion": f"{'1' * i} = {i * (i + 7)}"} for i in range(1, 61)]
    Path("my_traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["sets.yaml", "--output", "data"]) in (0, None)
    lengths = {
        name: [len(TOKENIZER(trace["response"])["input_ids"]) + 1 for trace in map(json.loads, path.open())]
        for name in recipes["sets"]
        for path in [Path("data", name, "train.jsonl")]
    }
    files = {"manifest.json", "removed.jsonl", "train.jsonl", "validation.jsonl"}
    assert all({file.name for file in Path("data", name).iterdir()} == files for name in lengths)
    assert len(lengths["s1k"]) == len(lengths["mixed"]) == 10
    assert 400 < sum(lengths["r50M"]) <= 500
    assert max(lengths["s1k"]) < 20
    assert max(lengths["mixed"]) > 60
    validation = {Path("data", name, "validation.jsonl").read_text() for name in lengths}
    assert len(validation) == 1
    assert len(validation.pop().splitlines()) == 5
