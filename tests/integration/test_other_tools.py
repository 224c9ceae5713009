"""Import of logs that the real tools wrote (tests/logs; slow tests run the tools in QUAGMIRE_TOOLS), and export."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from fake_hub import serve

from quagmire_utils.analysis.measurements import load_measurements
from quagmire_utils.cli import main
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_parquet
from quagmire_utils.core.paths import ROOT
from quagmire_utils.data import Problem, load_benchmark
from quagmire_utils.evaluation.evaluate import compare_outputs
from quagmire_utils.evaluation.measured import evaluation_table, show_evaluation
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.evaluation.store_files import COLUMNS, COUNTS
from quagmire_utils.exchange.exporting import export, push
from quagmire_utils.exchange.importing import import_logs, stored_problems, write_page

LOGS = ROOT / "tests" / "logs"
SUMS = LOGS / "sums2.jsonl"  # the problems, without the instruction that problems.jsonl adds
GOLDS = {row["answer"]: row["question"] for row in map(json.loads, SUMS.read_text().splitlines())}
SAMPLED = {"temperature": 1.0, "max_tokens": 48}
MODULES = {"lm-eval": "lm_eval", "inspect": "inspect_ai", "nemo-skills": "litellm", "openai": "vllm"}
TOOLS = {  # what the logs say of how the answers were drawn; all else is unknown
    "lm-eval": {**SAMPLED, "engine": "lm-eval 0.4.13", "model": "model", "template": "chat"},
    "lighteval": {**SAMPLED, "engine": "lighteval", "model": "model"},
    "evalscope": {**SAMPLED, "engine": "evalscope 1.14.1", "model": "model", "seed": 7},
    "inspect": {**SAMPLED, "engine": "inspect_ai 0.3.285", "model": "model", "seed": 7},
    "openai": {**SAMPLED, "engine": "OpenAI batch", "model": "model", "seed": 7},
    "nemo-skills": {"engine": "nemo-skills"},
    "verl": {"engine": "verl", "step": 1},
    "trl": {"engine": "trl", "step": 1},
}


def python_of(tool: str) -> str:
    """The interpreter that has a tool; the test skips without one."""
    own = Path(os.environ.get("QUAGMIRE_TOOLS") or "/nowhere") / tool / "bin" / "python"
    if own.exists():
        return str(own)
    if importlib.util.find_spec(MODULES.get(tool, tool)) is None:
        pytest.skip(f"needs {tool}, in QUAGMIRE_TOOLS/{tool}")
    return sys.executable


def run(python: str, *arguments: str | Path) -> str:
    """Call `quagmire` with another interpreter."""
    command = [python, "-m", "quagmire_utils", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def boxes_decide(store: SampleStore, problems: int = 4, n: int = 4) -> None:
    """Check counts and verdicts: an answer is right if its last box holds the gold of the question in its prompt."""
    counts, frame = store.counts(), store.read()
    assert len(counts) == problems
    assert counts["n"].tolist() == [n] * problems
    assert frame["index"].tolist() == list(range(n)) * problems
    golds = {key: gold[0] for key, gold in store.golds().items()}
    prompts = store.prompts().set_index(["benchmark", "problem"])["prompt"]
    for row in frame.itertuples():
        key = row.benchmark, row.problem
        assert GOLDS[golds[key]] in prompts[key]
        boxes = re.findall(r"\\boxed\{([^{}]*)\}", row.text)
        assert row.verdict == ("no_answer" if not boxes else "correct" if boxes[-1] == golds[key] else "wrong")


def golds_for(tool: str) -> dict | None:
    """A batch has no golds: they come from the problems, by their questions."""
    return {"sums2": load_benchmark(SUMS)} if tool == "openai" else None


@pytest.mark.parametrize("tool", sorted(TOOLS.keys() - {"inspect"}))
def test_a_log_of_the_real_tool_is_imported_and_graded(tool, tmp_path):
    store, left_out = import_logs(LOGS / tool / "out", tmp_path / "imported", golds=golds_for(tool))
    assert not left_out
    boxes_decide(store)
    origin = {name: value for name, value in store.origin.items() if name != "log"}
    assert {name: value for name, value in origin.items() if value != "unknown"} == TOOLS[tool]
    counts = store.counts()
    told = tool in ("lighteval", "evalscope", "openai", "nemo-skills")  # why an answer ended, and its length
    assert counts["truncated"].notna().all() == told
    assert counts["mean_tokens"].notna().all() == (told and tool != "openai")  # a batch counts those of all n together
    shown = show_evaluation(evaluation_table(counts, [1, 4]))
    assert (shown["truncated %"].iloc[0] == "unknown") != told


@pytest.mark.slow
def test_an_imported_folder_works_like_an_evaluation(tmp_path, capsys):
    """Scores, regrading, audit, page, comparison of two tools on the same problems, ranking: without naming golds."""
    for tool in ("lm-eval", "lighteval"):
        output = ["--output", str(tmp_path / "runs" / tool), "--benchmark", str(SUMS)]
        assert main(["import", str(LOGS / tool / "out"), *output]) == 0
    a, b = (tmp_path / "runs" / tool for tool in ("lm-eval", "lighteval"))
    assert "62.5 ± 13.5" in capsys.readouterr().out
    before = SampleStore(a).counts()
    for command in (["grade", "score", str(a), "-k", "1,4"], ["grade", "regrade", str(a)], ["grade", "audit", str(a)]):
        assert main(command) == 0
    assert "disagrees on 0 of 16 answers" in capsys.readouterr().out
    pd.testing.assert_frame_equal(SampleStore(a).counts(), before)
    table = compare_outputs(a, b, [1])
    rates = [SampleStore(folder).counts()["correct"].sum() / 16 for folder in (a, b)]
    assert table["difference"].iloc[0] == pytest.approx(rates[0] - rates[1])
    assert table.attrs["problems_a"] == table.attrs["problems_b"] == 4
    page = (a / "evaluation.html").read_text()
    assert "62.5 ± 13.5" in page
    assert "model, imported from lm-eval 0.4.13" in page
    assert load_measurements(tmp_path / "runs", k=4).table["candidate"].tolist() == ["lighteval", "lm-eval"]


def test_a_second_import_continues_and_another_log_is_refused(tmp_path, refused):
    folder = tmp_path / "imported"
    store, _ = import_logs(LOGS / "lm-eval" / "out", folder)
    before = store.read()
    for file in folder.glob("verdicts-*"):
        file.unlink()  # as if killed before grading
    pd.testing.assert_frame_equal(import_logs(LOGS / "lm-eval" / "out", folder)[0].read(), before)
    with refused("store"):
        import_logs(LOGS / "lighteval" / "out", folder)


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def test_rows_of_ones_own_are_read(tmp_path):
    """Chats, lists of answers, golds with their solution, thinking, letters, cut answers, and one without a gold."""
    said = {"user": "Is 4 even? (A) yes (B) no", "assistant": "The answer is A."}
    chat = [{"role": role, "content": text} for role, text in said.items()]
    file = jsonl(
        tmp_path / "mine.jsonl",
        {"question": "2+3?", "responses": [r"\boxed{5}", r"so \boxed{6}"], "answer": "2+3=5\n#### 5", "model": "m"},
        {"question": "half?", "response": "it is 1/2", "answer": r"thus \boxed{\frac12}", "finish_reason": "length"},
        {"question": "none?", "response": "3"},
        {"messages": chat, "answer": "A", "dataset": "letters"},
    )
    store, left_out = import_logs(file, tmp_path / "imported", log_format="jsonl")
    assert left_out == Counter({"no gold answer": 1})
    frame = store.read().set_index("text")
    assert frame["verdict"].to_dict() == {
        r"\boxed{5}": "correct",
        r"so \boxed{6}": "wrong",
        "it is 1/2": "correct",  # the prompt asks for no box, so any answer counts
        "The answer is A.": "correct",
    }
    assert frame["finish_reason"].tolist().count("length") == 1
    assert store.origin["model"] == "m"
    assert stored_problems(store)["letters"][0].grader == "choice"


MINE = {"id": "a", "question": "2+3?", "response": "5", "answer": "5"}
LM_EVAL = {"doc_id": 0, "target": "5", "arguments": [["2+3", {"until": []}]], "resps": [["5"]], "filter": "none"}


def test_golds_are_found_by_the_last_question_of_a_prompt_and_without_prompts_by_id(tmp_path):
    """Examples of other problems come before; an id that another numbering gives too decides nothing."""
    golds = [Problem("0", "What is 2+3?", "5"), Problem("1", "What is 4+4?", "8")]
    prompt = "What is 2+3?\n5\n\nWhat  is 4+4?\n"
    for name, row in (("a", {"id": 0, "prompt": prompt}), ("b", {"custom_id": "1"})):
        body = {"choices": [{"message": {"role": "assistant", "content": "8"}}]}
        (tmp_path / name).mkdir()
        row |= {"response": {"body": body} if name == "b" else "8"}
        store, _ = import_logs(jsonl(tmp_path / name / "x.jsonl", row), tmp_path / f"of-{name}", golds={"sums": golds})
        assert store.read(["problem", "verdict"]).to_numpy().tolist() == [["1", "correct"]]
    two, bare = {"sums": golds, "others": [Problem("1", "What is 5+5?", "10")]}, {"prompt": "", "response": "8"}
    rows = ({"id": "1", "benchmark": "sums", **bare}, {"id": "0", **bare}, {"id": "1", **bare})
    store, left_out = import_logs(jsonl(tmp_path / "mine.jsonl", *rows), tmp_path / "two", golds=two)
    assert store.read(["benchmark", "problem"]).to_numpy().tolist() == [["sums", "0"], ["sums", "1"]]
    assert left_out.total() == 1  # an id of two benchmarks, where the log does not say which


def test_a_bad_log_is_refused_with_its_file_and_field(tmp_path, refused):
    for name, rows, parameter, words in (
        ("samples_x_1.jsonl", [{**LM_EVAL, "arguments": [["2+3", " 5"]]}], None, "log-likelihoods"),
        ("1.jsonl", [{"input": "2+3", "output": "5", "gts": None}], "source", "1 have no gold answer; name a bench"),
        ("mine.csv", [{"question": "2+3?"}], "source", "holds no file with the fields of a log"),
        ("mine.jsonl", [MINE, {**MINE, "answer": "6"}], "source", "problem a of answers differ in question or gold"),
        ("mine.jsonl", [{**MINE, "model": "m1"}, {**MINE, "model": "m2"}], None, "differ in model (m1, m2)"),
        ("samples_x_1.jsonl", [{**LM_EVAL, "resps": ["15"]}], None, "filtered"),
    ):
        file = jsonl(tmp_path / name, *rows)
        with refused(parameter or str(file)) as caught:
            import_logs(file, tmp_path / "imported")
        assert words in str(caught.value)
        assert not (tmp_path / "imported" / "store.json").exists()


def test_logs_of_two_models_steps_or_tools_are_not_mixed_and_copies_refused(tmp_path, refused):
    def refuse(folder: str, parameter: str, words: str) -> None:
        with refused(parameter) as caught:
            import_logs(tmp_path / folder, tmp_path / "imported")
        assert words in str(caught.value)

    for place in ("steps", "models/a", "models/b"):
        (tmp_path / place).mkdir(parents=True)
    for step in (1, 2):
        jsonl(tmp_path / f"steps/{step}.jsonl", {"input": "2+3", "output": "5", "gts": "5", "step": step})
    refuse("steps", "source", "differ in step (1, 2)")
    jsonl(tmp_path / "steps/output.jsonl", {"problem": "2+3", "generation": "5", "expected_answer": "5"})
    refuse("steps", "--format", "")
    refuse("nothing", "source", "")
    for model in ("a", "b"):  # files of one name are told apart
        jsonl(tmp_path / f"models/{model}/samples_x_1.jsonl", LM_EVAL)
        jsonl(tmp_path / f"models/{model}/results_1.json", {"model_name": model})
    refuse("models", "source", "differ in model (a, b)")
    jsonl(tmp_path / "models/b/results_1.json", {"model_name": "a"})
    refuse("models", "source", "a copy of")


def test_hostile_answers_pass_through_import_page_and_export(tmp_path):
    hostile = ["<script>alert(1)</script>", "\ud800 \x00 \u202e", "9" * 5000 + r"\boxed{", "| # ` *"]
    file = jsonl(tmp_path / "mine.jsonl", {"id": "<b>", "question": "<i>?", "responses": hostile, "answer": "5"})
    store, left_out = import_logs(file, tmp_path / "imported")
    assert set(store.read()["text"]) == set(hostile)
    assert "<script>alert" not in write_page(store, left_out)[1].read_text()
    parts = list((export([store.path], tmp_path / "out") / "samples" / "imported").glob("*.parquet"))
    assert pd.read_parquet(parts[0])["text"].str.contains("script").sum() == 1  # by any reader of parquet


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    tools = ("lm-eval", "lighteval")
    return [import_logs(LOGS / tool / "out", folder / tool, golds=golds_for("openai"))[0].path for tool in tools]


def test_export_holds_every_count_and_answer_and_its_card_every_column(runs, tmp_path, refused):
    out = export(runs, tmp_path / "out")
    counts = read_parquet(out / "counts.parquet")
    assert list(counts) == ["candidate", *COUNTS]
    samples = pd.concat(read_parquet(part) for part in out.glob("samples/*/*.parquet"))
    assert list(samples) == ["candidate", *COLUMNS]
    for folder in runs:
        store = SampleStore(folder)
        mine = counts[counts["candidate"] == folder.name].drop(columns="candidate").reset_index(drop=True)
        pd.testing.assert_frame_equal(mine, store.counts(), check_dtype=False)
        own = samples[samples["candidate"] == folder.name].drop(columns="candidate").sort_values(["problem", "index"])
        pd.testing.assert_frame_equal(own.reset_index(drop=True), store.read(), check_dtype=False)
    rows = re.findall(r"^\| ([a-z_, ]+) \| ", (out / "README.md").read_text(), re.MULTILINE)
    assert {*counts, *samples} <= {name for names in rows for name in names.split(", ")}
    rates = [SampleStore(folder).counts()["correct"].sum() / 16 for folder in runs]
    assert load_measurements(out / "candidates.csv").table["pass1"].tolist() == pytest.approx(rates)
    (out / "samples" / "lm-eval" / "part-old.parquet").touch()
    assert not list((export(runs, out) / "samples").rglob("part-old.parquet"))
    with pytest.raises(ParameterError, match="holds answers of lm-eval"):
        export(runs[1:], out)
    with pytest.raises(ParameterError, match="one name"):
        export([runs[0], runs[0]], tmp_path / "twice")
    own = shutil.copytree(runs[0], tmp_path / "own" / "samples" / runs[0].name)
    with refused("output"):  # it would replace what it reads
        export([own], tmp_path / "own")
    assert SampleStore(own).counts().equals(SampleStore(runs[0]).counts())


def test_the_hub_s_own_library_uploads_and_reads_the_export(runs, tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="needs the extra train")
    export(runs, tmp_path / "out")
    read = (
        "import sys; from datasets import load_dataset\n"
        "from quagmire_utils.exchange.exporting import push\n"
        "print(push(sys.argv[1], 'me/mine'))\n"
        "print({name: load_dataset('me/mine', name, split='train').num_rows for name in ('counts', 'samples')})"
    )
    (tmp_path / "hub").mkdir()
    with serve(tmp_path / "hub") as hub:
        own = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_test", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", read, str(tmp_path / "out")]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [f"{hub.endpoint}/datasets/me/mine", "{'counts': 8, 'samples': 32}"]
        assert hub.made["me/mine"]["visibility"] == "private"
    with pytest.raises(ParameterError, match="could not be written"):
        push(tmp_path / "out", "no name of a repository")


@pytest.mark.slow
def test_inspect_reads_what_we_write_and_we_what_it_writes(runs, tmp_path):
    python = python_of("inspect")
    run(python, "import", LOGS / "inspect" / "out", "--output", tmp_path / "theirs")
    boxes_decide(SampleStore(tmp_path / "theirs"))
    assert TOOLS["inspect"].items() <= SampleStore(tmp_path / "theirs").origin.items()
    run(python, "export", *runs, "--output", tmp_path / "out", "--inspect")
    log = tmp_path / "out" / "inspect" / "lighteval-sums2.eval"
    run(python, "import", log, "--output", tmp_path / "again")
    ours, again = SampleStore(runs[1]), SampleStore(tmp_path / "again")
    columns = ["problem", "index", "text", "tokens", "verdict"]
    pd.testing.assert_frame_equal(again.read(columns), ours.read(columns))
    assert again.origin["temperature"] == 1.0
    shown = subprocess.run([python, "-m", "inspect_ai", "log", "dump", str(log)], capture_output=True, text=True)
    found, correct = json.loads(shown.stdout), ours.counts()["correct"].sum()
    assert found["results"]["scores"][0]["metrics"]["accuracy"]["value"] == correct / 16
    assert [sample["scores"]["quagmire"]["value"] for sample in found["samples"]].count("C") == correct


def test_without_inspect_one_sentence_says_what_to_install(runs, tmp_path, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    with refused("--format"):
        import_logs(LOGS / "inspect" / "out", tmp_path / "imported")
    with refused("--inspect"):
        export(runs, tmp_path / "out", inspect_logs=True)


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_the_tool_still_writes_what_we_read(tool, tmp_path):
    python = python_of(tool)
    shutil.copytree(ROOT / "results" / "mini-v1" / "bases" / "micro-llama", tmp_path / "model")
    shutil.copy(LOGS / "problems.jsonl", tmp_path)
    if tool == "nemo-skills" and not os.environ.get("NEMO_SKILLS"):
        pytest.skip("needs NEMO_SKILLS, a checkout of github.com/NVIDIA-NeMo/Skills")
    own = {"PYTHON": python, "SERVER": sys.executable, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command = ["bash", "-e", str(LOGS / tool / "make.sh")]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **own}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    golds = ["--benchmark", SUMS] if tool == "openai" else []
    reader = python if tool == "inspect" else sys.executable
    run(reader, "import", tmp_path / "out", "--output", tmp_path / "made", *golds)
    boxes_decide(SampleStore(tmp_path / "made"))
