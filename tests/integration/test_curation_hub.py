"""Curation from a hub over HTTP and from files of every kind; killed, on a full disk, two at once, asked nonsense."""

import gzip
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import yaml
from fake_hub import COMMIT, serve

from quagmire_utils import cli
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json
from quagmire_utils.data import BENCHMARKS, Problem, Trace, load_benchmark
from quagmire_utils.data.curation import BenchmarkIndex, Recipe, build, decontaminate, load_set, load_source
from quagmire_utils.data.curation.contamination import same_question
from quagmire_utils.data.curation.files import read_unit, units
from quagmire_utils.data.curation.sources import Dropped, Record, expand
from quagmire_utils.training.microlab import build_tokenizer


def main(arguments: list[str]) -> int:
    """Run `quagmire curate`."""
    return cli.main(["curate", *arguments])


REPO = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPO)}
COMMAND = [sys.executable, "-m", "quagmire_utils", "curate"]


def rows_of(n: int) -> list[dict]:
    """Traces of a third as many problems, some of them repeated."""
    rng = random.Random(0)
    rows = [
        {
            "category": "math",
            "source": "s",
            "input": f"What is ${i % (n // 3)}+1$?",
            "output": "x" * rng.randrange(1, 80),
        }
        for i in range(n)
    ]
    return rows + rows[: n // 10]


def write(path: Path, rows: list[dict]) -> Path:
    """The rows in the format that the file's name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.name.endswith(".parquet"):
        pd.DataFrame(rows).to_parquet(path, row_group_size=17)
    elif path.name.endswith(".arrow"):
        table = pa.Table.from_pylist(rows)
        new = pa.ipc.new_file if "file" in path.name else pa.ipc.new_stream
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=13)
    elif path.name.endswith(".gz"):
        path.write_bytes(gzip.compress((json.dumps(rows) if "list" in path.name else lines).encode()))
    else:
        path.write_text(json.dumps(rows) if "list" in path.name else lines)
    return path


def read(source) -> list[Record | Dropped]:
    return [record for unit in units(source) for _, _, record in read_unit(source, unit)]


# --- every kind of file, in any number and order ----------------------------------------------------------------------

KINDS = ("a.parquet", "b.jsonl", "list.json", "lines.json", "c.jsonl.gz", "list.json.gz", "stream.arrow", "file.arrow")


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 8])
def test_a_set_does_not_depend_on_files_formats_or_order(tmp_path, shards, monkeypatch):
    rows = rows_of(300)
    expected = build(
        Recipe(
            "acereason", n=90, validation_problems=9, benchmarks=(), files=(str(write(tmp_path / "a.jsonl", rows)),)
        ),
        *(tmp_path / "expected",),
        cache=tmp_path / "cache",
        progress=False,
    )
    monkeypatch.setattr("quagmire_utils.data.curation.files.UNIT_BYTES", 3000)
    random.Random(shards).shuffle(rows)
    for k in range(shards):
        write(tmp_path / f"in/{9 - k}/{KINDS[(k + shards) % len(KINDS)]}", rows[k::shards])
    recipe = Recipe("acereason", n=90, validation_problems=9, benchmarks=(), files=(str(tmp_path / "in"),))
    made = build(recipe, tmp_path / "out", cache=tmp_path / "cache", progress=False)
    assert made["sets"] == expected["sets"]
    for name in ("train.jsonl", "validation.jsonl", "removed.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_chosen_rows_are_read_again_from_every_kind_of_file(tmp_path, kind):
    rows = [{"category": "math", "source": "s", "input": f"q{i}", "output": f"é{i}\n"} for i in range(100)]
    source = load_source("acereason", files=[str(write(tmp_path / kind, rows))])
    for unit in units(source):
        found = {(position, part): record for position, part, record in read_unit(source, unit)}
        chosen = list(found)[::7]
        again = {(p, part): record for p, part, record in read_unit(source, unit, {p for p, _ in chosen})}
        assert again == {place: found[place] for place in chosen}


def test_a_folder_as_datasets_saves_it_and_as_the_hubs_client_copies_it(tmp_path):
    # AceReason-1.1-SFT lies on its hub as Arrow files with two .json beside them, in a folder called sft_data.parquet
    datasets = pytest.importorskip("datasets")
    copy = tmp_path / "copy"
    datasets.Dataset.from_list(rows_of(90)).save_to_disk(str(copy / "sft_data.parquet"), num_shards=2)
    write(copy / ".cache/huggingface/download/x.jsonl", [{"half": 1}])
    (copy / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    (copy / "empty.jsonl").write_text("")
    names = [Path(name).name for name in expand([str(copy)])]
    assert names == ["empty.jsonl", "data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    assert len(read(load_source("acereason", files=[str(copy)]))) == 99
    (copy / "empty.jsonl").unlink()
    registry = tmp_path / "mine.yaml"
    entry = {"hub_id": str(copy), "question": "input", "response": "output"}
    registry.write_text(yaml.safe_dump({"sources": {"mine": entry}}))
    assert len(read(load_source("mine", registry=registry))) == 99


def test_a_cut_off_or_damaged_file_is_a_sentence(tmp_path):
    rows = rows_of(300)
    for name, message in (
        ("a.jsonl", "is no JSON"),
        ("list.json", "is no JSON"),
        ("a.jsonl.gz", "cannot be read"),
        ("a.parquet", "cannot be read as parquet"),
        ("stream.arrow", "cannot be read"),
    ):
        path = write(tmp_path / name, rows)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.raises(ParameterError, match=f"{re.escape(name)}.*{message}"):
            read(load_source("acereason", files=[str(path)]))
    path = write(tmp_path / "deep.jsonl", rows[:1])
    path.write_text(path.read_text() + "[" * 100_000 + "\n")
    with pytest.raises(ParameterError, match="no JSON"):
        read(load_source("acereason", files=[str(path)]))
    path.write_text(json.dumps(rows[0]) + "\n[1]\n")
    with pytest.raises(ParameterError, match="no mapping of columns"):
        read(load_source("acereason", files=[str(path)]))


def test_rows_with_holes_are_left_out_and_counted(tmp_path):
    good = {"category": "math", "source": "s", "input": "q", "output": "r"}
    rows = [good, {**good, "input": None}, {**good, "output": None}, {**good, "output": 7}, {**good, "category": None}]
    rows += [{"category": "math", "source": "s", "input": "only a question"}, {**good, "output": "x" * 5_000_000}]
    found = read(load_source("acereason", files=[str(write(tmp_path / "a.jsonl", rows))]))
    assert found[:6] == [
        Record("q", "r", "", "DeepSeek-R1"),
        *[Dropped("empty")] * 3,
        Dropped("category is None"),
        Dropped("no output"),
    ]
    assert len(found[6].response) == 5_000_000


def test_chats_in_either_spelling(tmp_path):
    def chat(role, content, *turns):
        return [{role: who, content: text} for who, text in turns]

    rows = [
        {"c": chat("role", "content", ("system", "Be brief."), ("user", "1+1?"), ("assistant", "2"))},
        {"c": chat("from", "value", ("system", "Be brief."), ("human", "1+1?"), ("gpt", "2"))},
        {"c": chat("role", "content", ("user", "1+1?"), ("assistant", "3"), ("user", "Sure?"), ("assistant", "2"))},
        {"c": chat("role", "content", ("user", "1+1?"))},
        {"c": [None, {"role": "user", "content": None}, {"role": "assistant", "content": "2"}]},
        {"c": None},
    ]
    registry = tmp_path / "mine.yaml"
    files = str(write(tmp_path / "a.jsonl", rows))
    registry.write_text(yaml.safe_dump({"sources": {"mine": {"files": files, "question": "c", "response": "c"}}}))
    assert read(load_source("mine", registry=registry)) == [
        *[Record("1+1?", "2", "", "")] * 2,
        Dropped("a chat of several answers"),
        *[Dropped("empty")] * 3,
    ]


# --- a hub ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_set(tmp_path):
    """A repository laid out as Llama-Nemotron's, a YAML file with sets from it, and the same rows on this machine."""
    entry = yaml.safe_load((REPO / "quagmire_utils/data/curation/sources.yaml").read_text())["sources"][
        "llama_nemotron"
    ]
    instruction = entry["strip"][0]
    rows = [
        {
            "input": [{"role": "user", "content": f"{instruction}\n\nWhat is {i // 3}+1?"}],
            "output": "<think>" + "so " * (i % 400) + str(i),
            "category": "math",
            "generator": "Qwen-2.5-32B-Instruct, DeepSeek-R1",
        }
        for i in range(6000)
    ]
    repository = tmp_path / "hub/nvidia/Llama-Nemotron-Post-Training-Dataset"
    write(repository / "SFT/math/math_v1.jsonl", [{"wrong": "file"}])
    file = write(repository / entry["hub_files"][0], rows)
    splits = [{"split": "math", "path": "SFT/math/*.jsonl"}]
    card = yaml.safe_dump({"configs": [{"config_name": "SFT", "data_files": splits, "default": True}]})
    (repository / "README.md").write_text(f"---\n{card}---\n")
    sets = {"s": {"source": "llama_nemotron", "n": 40, "benchmarks": [], "validation_problems": 5}}
    registry = tmp_path / "sets.yaml"
    registry.write_text(yaml.safe_dump({"sets": sets}))
    local = Recipe("llama_nemotron", n=40, benchmarks=(), validation_problems=5, files=(str(file),))
    expected = build(local, tmp_path / "expected", cache=tmp_path / "local", progress=False)
    return registry, file, expected


SMALL_UNITS = "import sys, quagmire_utils.data.curation.files as f; f.UNIT_BYTES = 2**18; f._SPARSE = 2**13\n"
SMALL_UNITS += "from quagmire_utils.cli import main; sys.exit(main(['curate', *sys.argv[1:]]))"


def test_a_hub_is_streamed_in_pieces_goes_on_after_a_kill_and_forgives_an_error(tmp_path, hub_set):
    registry, file, expected = hub_set
    cache = tmp_path / "cache"
    arguments = [str(registry), "--output", str(tmp_path / "out"), "--cache", str(cache), "--workers", "1"]
    with serve(tmp_path / "hub") as hub:
        environment = {**ENVIRONMENT, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
        environment |= {"HF_HUB_OFFLINE": "0", "QUAGMIRE_DATA_DIR": ""}
        # pieces of 256 kB, so that a small file has some
        command = [sys.executable, "-c", SMALL_UNITS, *arguments]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while len(list(cache.glob("rows-*"))) < 2 and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        done = {path: path.stat().st_mtime_ns for path in cache.glob("rows-*.parquet")}
        pieces = -(-file.stat().st_size // 2**18)
        assert 2 <= len(done) < pieces
        hub.failures = 2
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert hub.failures == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    manifest = read_json(tmp_path / "out/s/manifest.json")
    assert manifest["sets"] == expected["sets"]
    assert load_set(tmp_path / "out/s") == load_set(tmp_path / "expected")
    inputs = manifest["configuration"]["inputs"]
    assert len(inputs) == pieces
    assert {(unit[1], unit[4]) for unit in inputs} == {("math_v1.1.jsonl", COMMIT)}
    assert set(hub.sent) <= {"README.md", "SFT/math/math_v1.1.jsonl"}


def test_a_hub_without_the_file_or_out_of_reach_is_a_sentence(tmp_path, hub_set):
    registry, file, _ = hub_set
    file.unlink()
    arguments = [str(registry), "--output", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    with serve(tmp_path / "hub") as hub:
        environment = {**ENVIRONMENT, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
        environment |= {"HF_HUB_OFFLINE": "0", "QUAGMIRE_DATA_DIR": ""}
        result = subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, text=True)
        assert (result.returncode, result.stdout) == (2, "")
        assert re.fullmatch(
            r"error: source llama_nemotron: .* gave no answer \(.*\); give the files .*\n", result.stderr
        )
    gone = subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, text=True)
    assert gone.returncode == 2
    assert "Traceback" not in gone.stderr
    assert "gave no answer" in gone.stderr


# --- which questions are the same -------------------------------------------------------------------------------------


def other_delimiters(text: str) -> str:
    text = re.sub(r"\$\$(.+?)\$\$", r"\\[\1\\]", text, flags=re.S)
    return re.sub(r"\$(.+?)\$", r"\\(\1\\)", text, flags=re.S)


SPELLINGS = {
    "delimiters": other_delimiters,
    "fractions": lambda text: text.replace("\\frac", "\\dfrac"),
    "no sizes": lambda text: re.sub(r"\\(left|right)(?![a-zA-Z])", "", text),
    "sizes": lambda text: text.replace("(", "\\left(").replace(")", "\\right)"),
    "relations": lambda text: re.sub(r"\\(le|ge|ne)(?![a-zA-Z])", r"\\\1q", text),
    "braces": lambda text: re.sub(r"\^(\d)", r"^{\1}", text),
    "fonts": lambda text: text.replace("\\text{", "\\mathrm{"),
    "spacing": lambda text: text.replace(" ", "\n ~"),
    "case": str.upper,
    "full stop": lambda text: text.removesuffix("."),
    "signs": lambda text: re.sub(r"\\le(?![a-zA-Z])", "≤", text).replace("'", "\u2019"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_benchmark_question_is_found_in_another_spelling(spelling):
    try:
        problems = [problem for name in BENCHMARKS for problem in load_benchmark(name)]
    except ParameterError as error:
        pytest.skip(str(error))
    index = BenchmarkIndex(problems)
    missed = [problem.id for problem in problems if not index.meets(SPELLINGS[spelling](problem.question))]
    assert missed == []


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (r"Simplify $\dfrac12$.", r"simplify \(\frac{1}{2}\)", True),
        (r"Find $\left( x \right)$", r"Find $(x)$.", True),
        (r"Is $x \leq 1{,}000$?", r"Is $x\le 1000$?", True),
        ("Is $x ≤ 2²$?", r"Is $x \le 2^{2}$?", True),
        (r"Simplify $\frac{12}{3}$", r"Simplify $\frac{1}{23}$", False),
        ("Compute $5!$", "Compute $5$", False),
        ("Compute $1+2$", "Compute $1*2$", False),
        ("Compute $-3$", "Compute $3$", False),
        (r"Compute $\sqrt{2}$", r"Compute $\sqrt[3]{2}$", False),
        (r"Find $\leftarrow$", r"Find $arrow$", False),
        (r"Is $x < 2$?", r"Is $x \le 2$?", False),
        ("?", ".", False),
    ],
)
def test_the_same_question(one, other, same):
    assert (same_question(one) == same_question(other)) == same


def test_a_short_question_inside_another_is_found_from_eight_words_on():
    problems = [
        Problem("b/1", "What is the greatest common factor of $32$ and $48$?", "16"),  # ten words
        Problem("b/2", r"Evaluate $\log_2 8 + 1$.", "4"),
    ]
    questions = {
        "Problem 7. What is the greatest common factor of 32 and 48? Answer in a box.": True,
        "What is the greatest common factor of 32 and 84?": False,
        r"Warm-up: evaluate $\log_2 8 + 1$.": False,  # five words are in too many questions
        r"Evaluate $\log_2 8 - 1$.": False,
    }
    clean, _ = decontaminate([Trace(q, q, q, "r") for q in questions], problems)
    assert [trace.id for trace in clean] == [q for q, met in questions.items() if not met]


def test_a_problem_in_two_spellings_is_never_on_both_sides(tmp_path):
    spellings = (r"Simplify $\dfrac{%d}{7}$.", r"Simplify \(\frac{%d}7\)", r"  simplify $ \left.\frac{%d}{7}\right. $")
    rows = [
        {"category": "math", "source": "s", "input": text % i, "output": f"trace {k}"}
        for i in range(40)
        for k, text in enumerate(spellings[::2])
    ]
    for seed in range(5):
        recipe = Recipe(
            "acereason",
            files=(str(write(tmp_path / "a.jsonl", rows)),),
            benchmarks=(),
            validation_problems=13,
            seed=seed,
        )
        manifest = build(recipe, tmp_path / f"{seed}", cache=tmp_path / "cache", progress=False)
        train, validation = load_set(tmp_path / f"{seed}")
        numbers = [{re.search(r"\d+", trace.question)[0] for trace in side} for side in (train, validation)]
        assert not numbers[0] & numbers[1]
        assert (len(train), len(validation), manifest["problems"]["pool"]) == (54, 26, 40)


# --- parameters that cannot work --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"token_budget": 3, "selection": "longest"},
            "longest: 3 tokens were asked for, and its first trace has 80",
        ),
        ({"budgets": {"longest": 3, "shortest": 300}}, "longest: 3 tokens were asked for"),
        ({"mixture": {"middle": 3}}, "mixture must be of shortest, longest, random"),
        ({"budgets": {"middle": 3}}, "budgets must be of shortest, longest, random"),
    ],
)
def test_a_part_that_would_be_empty_is_refused(tmp_path, tokenizer, asked, message):
    files = (str(write(tmp_path / "a.jsonl", rows_of(300))),)
    with pytest.raises(ParameterError, match=message):
        build(
            Recipe("acereason", tokenizer, **asked, files=files, benchmarks=()), tmp_path / "out", cache=tmp_path / "c"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sets": [1]}, "sets must be a mapping"),
        ({"sets": {"a": [1]}}, "set a must be a mapping"),
        ({"sets": {"a": {"source": "acereason"}}, "defaults": [1]}, "defaults must be a mapping"),
        ({"sets": {"a": {"source": "acereason"}}, "sources": [1]}, "sources must be a mapping"),
        ({"sets": {"a": {"source": 5}}}, "source must be text"),
        ({"sets": {"a": {"source": "acereason", "selection": 5}}}, "selection must be text"),
        ({"sets": {"a": {"source": "acereason", "tokenizer": 5}}}, "tokenizer must be text"),
        ({"sets": {"a": {"source": "acereason", "validation_fraction": "x"}}}, "validation_fraction must be a number"),
        ({"sets": {"../a": {"source": "acereason"}}}, "without a path"),
        ({"sets": {"a": {"source": "m"}}, "sources": {"m": {"question": 5}}}, "question must be text"),
        ({"sets": {"a": {"source": "m"}}, "sources": {"m": {"where": ["x"]}}}, "where must be a mapping"),
        ({"sets": {"a": {"source": "m"}}, "sources": {"m": {"response": None, "answer": None}}}, "an answer column"),
        # the second set is wrong, and the first is not made before that is said
        ({"sets": {"a": {"source": "acereason", "n": 3}, "b": {"source": "nope"}}}, "unknown source 'nope'"),
    ],
)
def test_a_yaml_file_that_says_nothing_is_a_sentence(tmp_path, capsys, content, message):
    path = tmp_path / "sets.yaml"
    files = str(write(tmp_path / "a.jsonl", rows_of(30)))
    common = content.get("defaults", {"files": files, "benchmarks": []})
    path.write_text(yaml.safe_dump({**content, "defaults": common}))
    assert main([str(path), "--output", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(f"error: .*{message}.*\n", said)
    assert not (tmp_path / "out").exists()


def test_what_is_in_the_folder_already_is_not_touched(tmp_path, capsys):
    arguments = [
        "--source",
        "acereason",
        "--files",
        str(write(tmp_path / "a.jsonl", rows_of(30))),
        "-p",
        "benchmarks=[]",
    ]
    arguments += ["--cache", str(tmp_path / "cache"), "--workers", "1", "--output"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/train.jsonl").write_text("mine")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/manifest.json").write_text("{}")
    for folder, message in (
        ("mine", "has a train.jsonl that is no set's"),
        ("file", "is no folder that may be written to"),
        ("file/x", "is no folder that may be written to"),
        ("other", "is no set's manifest"),
    ):
        assert main([*arguments, str(tmp_path / folder)]) == 2
        assert message in capsys.readouterr().err
    assert (tmp_path / "mine/train.jsonl").read_text() == "mine"
    assert not (tmp_path / "cache").exists()  # nothing was read before it was said


# --- full disks and two at once ---------------------------------------------------------------------------------------


def test_a_full_disk_is_a_sentence_and_the_same_command_goes_on(tmp_path):
    files = [str(write(tmp_path / f"in/{k}.jsonl", rows_of(3000)[k::4])) for k in range(4)]
    arguments = ["--source", "acereason", "-p", "benchmarks=[]", "--workers", "1", "--files", *files, "--n", "2500"]
    arguments += ["--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "out")]

    def no_file_beyond(size):
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    for size in (2_000, 100_000):  # full while the source is read, and while the set is written
        full = subprocess.run(
            [*COMMAND, *arguments], env=ENVIRONMENT, capture_output=True, text=True, preexec_fn=no_file_beyond(size)
        )
        assert full.returncode == 1
        assert "Traceback" not in full.stderr
        assert re.search(r"error: .*File too large.*what was read is kept", full.stderr)
        assert not (tmp_path / "out/manifest.json").exists()
        assert not list(tmp_path.rglob("*.tmp"))
    assert len(list((tmp_path / "cache").glob("rows-*"))) == 4
    subprocess.run([*COMMAND, *arguments], env=ENVIRONMENT, check=True, capture_output=True)
    assert main([*arguments[:-3], str(tmp_path / "cache2"), "--output", str(tmp_path / "unbroken")]) == 0
    for name in ("train.jsonl", "removed.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["manifest.json", "removed.jsonl", "train.jsonl"]


def test_two_at_once_make_one_set(tmp_path):
    arguments = ["--source", "acereason", "-p", "benchmarks=[]", "--workers", "1", "--n", "900"]
    arguments += ["--files", str(write(tmp_path / "a.jsonl", rows_of(3000)))]
    arguments += ["--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "out")]
    both = [subprocess.Popen([*COMMAND, *arguments], env=ENVIRONMENT, stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        assert process.wait() == 0, process.stderr.read()
        process.stderr.close()
    assert len(load_set(tmp_path / "out")[0]) == 900
    assert not (tmp_path / "out/.unfinished").exists()
