"""Sets from the hubs' schemas: against in-memory truth, in any order of files; refusals, counting, command line."""

import json
import re
from pathlib import Path

import pytest
import yaml
from curation_files import ace, make, pool_rows, read, write

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.paths import ROOT
from quagmire_utils.data import Problem, Trace, load_benchmark, load_datasets
from quagmire_utils.data.curation import decontaminate, load_set, response_lengths, select
from quagmire_utils.data.curation.contamination import normalise
from quagmire_utils.data.curation.recipes import seeded_order
from quagmire_utils.data.curation.scan import problem_digest, trace_id
from quagmire_utils.data.dataset import find_dataset
from quagmire_utils.data.rows import Dropped, Record, made_by
from quagmire_utils.training.microlab import build_tokenizer

TOKENIZER = build_tokenizer()
MERGED = "Qwen-2.5-32B-Instruct, DeepSeek-R1"
RIGHT = "<think>\nAdd them.\n</think>\n\nIt is \\boxed{%d}."


def curate(*arguments: object) -> int:
    from quagmire_utils import cli

    return cli.main(["curate", *map(str, arguments)])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("pool") / "a.jsonl", pool_rows(300))


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def nemotron(question: str, output: str, generator: str = "DeepSeek-R1", **other) -> dict:
    prompt = f"{find_dataset('llama_nemotron').strip[0]}\n\n{question}"
    row = {"input": [{"role": "user", "content": prompt}], "output": output, "generator": generator}
    return {**row, "category": "math", "reasoning": "on", "version": "v1.1", **other}


OPENR1 = {
    "problem": "What is 2+2?",
    "answer": "4",
    "source": "olympiads",
    "is_reasoning_complete": [True, True, False, True],
    "generations": ["four", "five", "fo", "IV"],
    "correctness_math_verify": [True, False, True, None],
    "correctness_llama": None,
    "messages": [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "four"}],
}
UNKEPT = Dropped("not correctness_math_verify and is_reasoning_complete")
SCHEMAS = {
    ("llama_nemotron", "a.jsonl"): [
        (nemotron("What is 1+1?", RIGHT % 2, MERGED), Record("What is 1+1?", RIGHT % 2, "", MERGED)),
        (nemotron("What is 1+2?", RIGHT % 3, "QwQ-32B"), Record("What is 1+2?", RIGHT % 3, "", "QwQ-32B")),
        (nemotron("1+3?", "4", "Llama-3.3-70B-Instruct"), Dropped("generator is Llama-3.3-70B-Instruct")),
        (nemotron("Sort.", "def sort", category="code"), Dropped("category is code")),
        (nemotron("What is 1+4?", "  "), Dropped("empty")),
        # version 1 had text here
        ({**nemotron("", RIGHT % 6), "input": "1+5?"}, Record("1+5?", RIGHT % 6, "", "DeepSeek-R1")),
        (nemotron("What is 1+6?", "\ud800"), Dropped("not Unicode text")),
    ],
    ("acereason", "a.parquet"): [
        (ace("A\ntrain.", "<think>O</think> 27"), Record("A\ntrain.", "<think>O</think> 27", "", "DeepSeek-R1")),
        (ace("Sort.", "def sort", category="code"), Dropped("category is code")),
    ],
    ("openr1_math", "a.parquet"): [
        (OPENR1, Record("What is 2+2?", "four", "4", "DeepSeek-R1"), *[UNKEPT] * 3),
        (
            {**OPENR1, "problem": "3+3?", "generations": ["six", "seven"], "correctness_math_verify": [True]},
            *(Record("3+3?", "six", "4", "DeepSeek-R1"), UNKEPT),
        ),
    ],
    ("deepscaler", "list.json"): [
        ({"problem": "p", "answer": "-\\frac{2}{3}", "solution": "..."}, Record("p", "", "-\\frac{2}{3}", "")),
        ({"problem": "q", "answer": "", "solution": ""}, Dropped("empty")),
    ],
    ("math_train", "a.parquet"): [
        ({"problem": "p", "level": "Level 1", "solution": "So $\\boxed{\\frac12}$."}, Record("p", "", "\\frac12", ""))
    ],
    ("gsm8k_train", "a.jsonl"): [
        ({"question": "q", "answer": "1 + 1,000\n#### 1,001"}, Record("q", "1 + 1,000\n#### 1,001", "1001", "human"))
    ],
}


@pytest.mark.parametrize(("name", "file"), SCHEMAS)
def test_every_hubs_schema_is_read(tmp_path, name, file):
    rows = SCHEMAS[name, file]
    found = read(name, write(tmp_path / file, [row for row, *_ in rows]))
    assert found == [record for _, *expected in rows for record in expected]


CHAT = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
SYSTEM = {"role": "system", "content": "Be brief."}
OTHER = {"system": "system", "user": "human", "assistant": "gpt"}
PARTS = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in CHAT]
PICTURE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "1+1?"}]}, CHAT[1]]


@pytest.mark.parametrize(
    ("chat", "expected"),
    [
        ([SYSTEM, *CHAT], "2"),
        ([{"from": OTHER[turn["role"]], "value": turn["content"]} for turn in [SYSTEM, *CHAT]], "2"),
        (repr(CHAT), "2"),
        (PARTS, "2"),
        ([CHAT[0], {**CHAT[1], "reasoning_content": "One and one."}], "<think>\nOne and one.\n</think>\n\n2"),
        (CHAT * 2, Dropped("a chat of several answers")),
        (CHAT[:1], Dropped("empty")),
        (json.dumps(CHAT)[:-4], Dropped("a chat that cannot be read")),
        (PICTURE, Dropped("a chat with more than text")),
    ],
)
def test_chats_in_any_spelling_and_with_reasoning(tmp_path, chat, expected):
    entry = {"files": str(write(tmp_path / "a.jsonl", [{"c": chat}])), "question": "c", "response": "c"}
    record = Record("1+1?", expected, "", "") if isinstance(expected, str) else expected
    assert read(load_datasets({"mine": entry})["mine"]) == [record]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "list.json", "a.csv"])
def test_fields_of_a_column_flags_and_answers_in_any_spelling(tmp_path, name):
    rows = [
        {"reward_model": {"ground_truth": answer}, "q": f"q{i}", "r": "r", "ok": flag}
        for i, (answer, flag) in enumerate([("5", 1), ("7", 0), ("nan", 1), ("", 1)])
    ]
    if name == "a.csv":
        rows = [{**row, "reward_model": json.dumps(row["reward_model"])} for row in rows]
    entry = {"files": str(write(tmp_path / name, rows)), "question": "q", "answer": "reward_model.ground_truth"}
    found = read(load_datasets({"mine": entry})["mine"])
    assert found == [Record("q0", "", "5", ""), Record("q1", "", "7", ""), *[Dropped("empty")] * 2]
    traces = read(load_datasets({"mine": {**entry, "response": "r", "keep": "ok"}})["mine"])
    assert [isinstance(record, Record) for record in traces] == [True, False, True, True]
    with pytest.raises(ParameterError, match=r"no column 'reward_model\.truth'"):
        read(load_datasets({"mine": {**entry, "answer": "reward_model.truth"}})["mine"])


@pytest.mark.parametrize(
    ("generator", "wanted", "yes"),
    [
        ("Qwen/QwQ-32B", "QwQ-32B", True),
        (MERGED, "DeepSeek-R1", True),
        ("DeepSeek-R1-Distill-Qwen-7B", "DeepSeek-R1", False),
    ],
)
def test_generators_are_told_apart(generator, wanted, yes):
    assert made_by(generator, [wanted]) == yes


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory) -> str:
    rows = [{"id": f"b/{i}", "question": f"find the SUM of ${i}$ and {i + 1}.", "answer": "1"} for i in range(0, 90, 9)]
    return str(write(tmp_path_factory.mktemp("benchmark") / "b.jsonl", rows))


def in_memory(rows: list[dict], benchmark: str, asked: dict) -> tuple[list[Trace], list[Trace]]:
    traces = {}
    for row in rows:
        record = Record(row["input"], row["output"], "", "DeepSeek-R1")
        problem = problem_digest(record.question).hex()
        trace = Trace(f"{trace_id(record):016x}", problem, record.question, record.response, source="acereason")
        traces[trace.id] = trace
    clean, _ = decontaminate(list(traces.values()), load_benchmark(benchmark))
    lengths = dict(zip([t.id for t in clean], response_lengths(clean, TOKENIZER), strict=True))
    clean = [t for t in clean if lengths[t.id] <= asked.get("max_tokens", 10**9)]
    kept: dict[str, Trace] = {}
    for trace in sorted(clean, key=lambda t: t.id):
        kept.setdefault(normalise(trace.question) + "\n" + normalise(trace.response), trace)
    seed = asked.get("seed", 0)
    problems = list({trace.problem_id for trace in kept.values()})
    held = {problems[i] for i in seeded_order(problems, seed)[:20]}
    train, validation = ([t for t in kept.values() if (t.problem_id in held) == side] for side in (False, True))
    how = asked.get("mixture") or asked["selection"]
    return select(train, how, asked.get("n"), tokenizer=TOKENIZER, seed=seed), validation


@pytest.mark.parametrize(
    "asked",
    [
        {"selection": "random", "n": 100},
        {"selection": "shortest", "n": 100},
        {"selection": "longest+shortest", "n": 101, "max_tokens": 50},
        {"mixture": {"longest": 30, "random": 50, "shortest": 20}, "seed": 7},
    ],
)
def test_a_set_is_what_the_plain_functions_choose(tmp_path, tokenizer, benchmark, asked):
    rows = pool_rows(600)
    asked = {"tokenizer": tokenizer, "benchmarks": benchmark, "validation_problems": 20, **asked}
    manifest = make(tmp_path / "out", write(tmp_path / "in/a.parquet", rows), **asked)
    train, validation = load_set(tmp_path / "out")
    expected, held_out = in_memory(rows, benchmark, asked)
    assert train == expected
    assert sorted(validation, key=lambda t: t.id) == sorted(held_out, key=lambda t: t.id)
    assert manifest["sets"]["train"]["tokens"] == sum(response_lengths(train, TOKENIZER))
    assert manifest["counts"]["read"] == len(rows)
    assert not {t.problem_id for t in train} & {t.problem_id for t in validation}


@pytest.mark.parametrize("selection", ["shortest", "longest+random"])
def test_a_token_budget_is_filled_and_never_exceeded(tmp_path, tokenizer, pool, selection):
    make(tmp_path / "out", pool, tokenizer=tokenizer, selection=selection, token_budget=3001)
    make(tmp_path / "all", pool)
    train, rest = load_set(tmp_path / "out")[0], load_set(tmp_path / "all")[0]
    parts = selection.split("+")
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


def test_smaller_sets_are_part_of_larger_ones_and_hold_out_the_same_problems(tmp_path, pool):
    small, large = (make(tmp_path / f"{n}", pool, n=n, validation_problems=9) for n in (20, 100))
    assert load_set(tmp_path / "100")[0][:20] == load_set(tmp_path / "20")[0]
    assert small["sets"]["validation"] == large["sets"]["validation"]
    assert small["sets"]["train"]["tokens"] is None  # no tokenizer was named


def test_what_was_removed_is_listed(tmp_path, benchmark):
    questions = ["9 and 10", "9  and 10", "1 and 10", "1 and 10", "1 and 10"]
    answers = ["19", "19!", "It is 11", "it is  11", "It is 11"]
    rows = [ace(f"Find the sum of {question}.", answer) for question, answer in zip(questions, answers, strict=True)]
    path = write(tmp_path / "a.jsonl", [*rows, ace("Sort.", "def", category="code")])
    manifest = make(tmp_path / "out", path, benchmarks=benchmark)
    removed = [json.loads(line) for line in (tmp_path / "out/removed.jsonl").read_text().splitlines()]
    assert removed[0]["reason"] == "equals a benchmark's question"
    assert (removed[0]["benchmark_problem"], removed[0]["traces"]) == ("b/9", 2)
    assert sorted(r["reason"] for r in removed[1:]) in (
        ["repeats a trace", "repeats a trace up to spacing and case"],
        ["repeats a trace up to spacing and case"] * 2,  # if the spelling that stands twice has the larger id
    )
    assert manifest["counts"] == {"read": 5, "met a benchmark": 2, "duplicates": 2, "pool": 1, "held out": 0}
    assert manifest["not_taken"] == {"category is code": 1}


def test_a_problem_goes_with_all_its_spellings(tmp_path):
    # The first spelling shares 13 words with the benchmark, the second glues them together; it is the same problem.
    words = "find how many of the ten red marbles are left over in her box"
    path = write(tmp_path / "b.jsonl", [{"id": "b/1", "question": f"Ann: {words}", "answer": "1"}])
    questions = [f"Bob: {words}?", f"Bob: {words}?".replace(" ", ""), "Another?"]
    rows = [ace(question, f"answer {i}") for i, question in enumerate(questions)]
    make(tmp_path / "out", write(tmp_path / "a.jsonl", rows), benchmarks=str(path))
    assert [trace.question for trace in load_set(tmp_path / "out")[0]] == ["Another?"]


def test_a_problem_in_two_spellings_is_never_on_both_sides(tmp_path):
    spellings = (r"Simplify $\dfrac{%d}{7}$.", r"  simplify $ \left.\frac{%d}{7}\right. $")
    rows = [ace(text % i, f"trace {k}") for i in range(40) for k, text in enumerate(spellings)]
    path = write(tmp_path / "a.jsonl", rows)
    for seed in range(5):
        manifest = make(tmp_path / f"{seed}", path, validation_problems=13, seed=seed)
        train, validation = load_set(tmp_path / f"{seed}")
        numbers = [{re.search(r"\d+", trace.question)[0] for trace in side} for side in (train, validation)]
        assert not numbers[0] & numbers[1]
        assert (len(train), len(validation), manifest["problems"]["pool"]) == (54, 26, 40)


def test_an_rl_set_is_a_benchmark_file(tmp_path):
    rows = [{"problem": f"p{i}", "answer": str(i), "solution": ""} for i in range(20)]
    make(tmp_path / "out", write(tmp_path / "list.json", rows), source="deepscaler", n=5)
    problems = load_benchmark(tmp_path / "out/train.jsonl")
    assert len(problems) == 5
    assert all(isinstance(p, Problem) and p.question == f"p{p.answer}" for p in problems)


def test_a_finished_set_is_left_alone_and_another_is_not_overwritten(tmp_path, pool):
    first = make(tmp_path / "out", pool, n=10)
    written = (tmp_path / "out/train.jsonl").stat().st_mtime_ns
    assert make(tmp_path / "out", pool, tmp_path / "empty", n=10) == first
    assert (tmp_path / "out/train.jsonl").stat().st_mtime_ns == written
    assert not (tmp_path / "empty").exists()
    with pytest.raises(ParameterError, match="holds another set"):
        make(tmp_path / "out", pool, n=11)


def test_what_is_in_the_folder_already_is_not_touched(tmp_path, pool):
    for name, text in {"mine/train.jsonl": "mine", "other/manifest.json": "{}", "file": "a file"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for folder in ("mine", "other", "file", "file/x"):
        with pytest.raises(ParameterError) as error:
            make(tmp_path / folder, pool, tmp_path / "cache")
        assert error.value.parameter == "output"
    assert (tmp_path / "mine/train.jsonl").read_text() == "mine"
    assert not (tmp_path / "cache").exists()  # nothing was read before the error


def test_what_cannot_work_is_said_in_a_sentence(tmp_path, tokenizer, pool):
    for asked, parameter, message in (
        ({"n": 10_000}, "random", "10,000 traces were asked for, but there are only 2.*duplicates"),
        ({"token_budget": 10**9, "tokenizer": True}, "random", "tokens were asked for, but there are only"),
        ({"token_budget": 3, "selection": "longest", "tokenizer": True}, "longest", "the 56 tokens of its first trace"),
        ({"selection": "shortest", "n": 5}, "tokenizer", "select by length"),
        ({"selection": "shortest", "tokenizer": True}, "n", "n or token_budget"),
        ({"validation_problems": 10_000}, "validation_problems", "less than the number of problems"),
        ({"files": "no/such/*.jsonl"}, "acereason.files", "no/such"),
        ({"files": __file__}, "acereason.files", "no .parquet, .arrow, .jsonl, .json"),
    ):
        asked = {"files": pool, **asked}
        if asked.get("tokenizer") is True:
            asked["tokenizer"] = tokenizer
        with pytest.raises(ParameterError, match=message) as error:
            make(tmp_path / "out", asked.pop("files"), **asked)
        assert error.value.parameter == parameter
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "parameter"),
    [
        ({"sets": {"a": {"source": "acereason"}}, "sources": {}}, "sources"),
        ({"sets": {"a": {"m": 5}}}, "sets.a.m"),
        ({"sets": {"../a": {"source": "acereason"}}}, "sets.../a"),
        ({"sets": {"a": {"source": "m"}}, "datasets": {"m": {"files": "x", "question": "q"}}}, "datasets.m.answer"),
        # the second set is wrong: the error comes before the first set is made
        ({"sets": {"a": {"source": "acereason", "n": 3}, "b": {"source": "nope"}}}, "source"),
    ],
)
def test_a_bad_yaml_file_is_a_sentence(tmp_path, pool, capsys, content, parameter):
    path = tmp_path / "sets.yaml"
    common = content.get("defaults", {"files": str(pool), "benchmarks": []})
    path.write_text(yaml.safe_dump({**content, "defaults": common}))
    assert curate(path, "--output", tmp_path / "out", "--cache", tmp_path / "cache") == 2
    assert re.search(rf"(^|: ){re.escape(parameter)}( must be|:)", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_sets_from_a_yaml_file_and_from_options(tmp_path, capsys, tokenizer, pool):
    write(tmp_path / "a.jsonl", [{"q": f"q{i}", "r": "x" * i} for i in range(1, 40)])
    content = {
        "datasets": {"mine": {"files": "a.jsonl", "question": "q", "response": "r"}},  # beside the YAML file
        "defaults": {"source": "mine", "benchmarks": []},
        "sets": {"r5": {"n": 5}, "r9": {"n": 9, "seed": 1}},
    }
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump(content))
    common = ["--output", tmp_path / "out", "--cache", tmp_path / "cache"]
    assert curate(tmp_path / "sets.yaml", "r9", *common) == 0
    assert "train: 9 traces of 9 problems" in capsys.readouterr().out
    assert curate(tmp_path / "sets.yaml", *common) == 0
    assert [len(load_set(tmp_path / "out" / name)[0]) for name in ("r5", "r9")] == [5, 9]
    assert curate(tmp_path / "sets.yaml", "r7", *common) == 2
    assert "r5, r9" in capsys.readouterr().err
    options = ["--source", "acereason", "--files", pool, "--tokenizer", tokenizer, "-p", "benchmarks=[]"]
    common[1] = tmp_path / "mixed"
    options += ["-p", "mixture={longest: 7, shortest: 5}", "-p", "where={category: [math, code]}"]
    assert curate(*options, *common) == 0
    assert "train: 12 traces" in capsys.readouterr().out
    assert curate("--list") == 0
    assert "open-r1/OpenR1-Math-220k" in capsys.readouterr().out


def test_the_sets_of_the_page_on_curation_are_made(tmp_path, tokenizer, monkeypatch):
    """With fewer traces (the numbers are a hundredth of the page's), and without the benchmarks' files."""
    page = (ROOT / "docs" / "curation.md").read_text(encoding="utf-8")
    recipes = yaml.safe_load(page.split("```yaml")[1].split("```")[0])
    recipes["defaults"] |= {"benchmarks": [], "validation_problems": recipes["defaults"]["validation_problems"] // 100}
    for recipe in recipes["sets"].values():
        recipe["tokenizer"] = tokenizer
        recipe |= {"n": recipe["n"] // 100} if "n" in recipe else {}
        recipe |= {"token_budget": 500} if "token_budget" in recipe else {}
        recipe |= {"mixture": {part: n // 100 for part, n in recipe.get("mixture", {}).items()}}
    monkeypatch.chdir(tmp_path)
    Path("sets.yaml").write_text(yaml.safe_dump(recipes))
    rows = [{"prompt": f"What is {i} times {i + 7}?", "completion": f"{'1' * i} = {i * (i + 7)}"} for i in range(1, 61)]
    write(Path("my_traces.jsonl"), rows)
    assert curate("sets.yaml", "--output", "data") == 0
    sets = {name: load_set(Path("data", name)) for name in recipes["sets"]}
    lengths = {name: response_lengths(train, TOKENIZER) for name, (train, _) in sets.items()}
    files = {"manifest.json", "removed.jsonl", "train.jsonl", "validation.jsonl"}
    assert all({file.name for file in Path("data", name).iterdir()} == files for name in sets)
    assert len(lengths["s1k"]) == len(lengths["mixed"]) == 10
    assert 400 < sum(lengths["r50M"]) <= 500
    assert max(lengths["s1k"]) < 20
    assert max(lengths["mixed"]) > 60
    held_out = [validation for _, validation in sets.values()]
    assert held_out[0] == held_out[1] == held_out[2]
    assert len(held_out[0]) == 5
