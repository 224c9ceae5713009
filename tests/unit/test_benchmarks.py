"""Every problem of every benchmark if there is a data folder; hostile and changed files always."""

import json
import math
import re
import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data import (
    BENCHMARKS,
    Problem,
    Trace,
    benchmark_names,
    find_dataset,
    load_benchmark,
    load_datasets,
    load_traces,
)
from quagmire_utils.data import dataset as dataset_module
from quagmire_utils.data.golds import boxed_answer, single
from quagmire_utils.data.rows import to_problem


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_the_catalogue_names_every_dataset_and_pins_it():
    assert BENCHMARKS == ("math500", "aime", "gsm8k", "aime2025", "amc", "olympiad", "minerva")  # the paper's order
    assert benchmark_names()[:7] == list(BENCHMARKS)
    assert sum(find_dataset(name).count for name in BENCHMARKS) == 3812
    for name, dataset in load_datasets().items():
        assert dataset.name == name
        assert dataset.hub_id.count("/") == 1 or re.search(r"/blob/[0-9a-f]{40}/", dataset.address)
        assert dataset.licence
        assert dataset.files
        assert name == "acereason" or dataset.address or re.fullmatch(r"[0-9a-f]{40}", dataset.revision)
        assert dataset.digest or name not in (*BENCHMARKS, "gsm8k_train", "math_train")


@pytest.mark.parametrize("name", [*BENCHMARKS, "gsm8k_train", "math_train"])
def test_counts_ids_and_questions(name, data_dir):
    problems = load_benchmark(name, data_dir=data_dir)
    assert len(problems) == find_dataset(name).count == len({problem.id for problem in problems})
    assert all(problem.id.startswith(f"{name}/") and problem.question.strip() for problem in problems)
    assert load_benchmark(name, data_dir=data_dir, limit=3) == problems[:3]
    if name == "gsm8k_train":
        assert all(re.fullmatch(r"-?\d+(\.\d+)?", problem.answer) for problem in problems)
    if name == "math_train":  # four rows have no answer; the others keep the row's number as their id
        numbers = {int(problem.id.partition("/")[2]) for problem in problems}
        assert set(range(7474)) - numbers == {886, 1009, 5328, 5330}


# One problem of each benchmark and each kind of gold, read off the published rows by hand.
GOLDS = {
    "math500/precalculus/807": ("\\left( 3, \\frac{\\pi}{2} \\right)", None),
    "math500/algebra/2626": ("32348", None),  # \$32,\!348
    "math500/number_theory/417": ("11111111100", None),  # 11,\! 111,\! 111,\! 100
    "aime/1983-1": ("60", None),
    "aime/2022-II-8": ("80.5", 0.5),  # "080 or 081 (both were accepted)"
    "gsm8k/0": ("18", None),
    "aime2025/0": ("70", None),  # 70.0
    "amc/0": ("142", None),  # 142.0
    "olympiad/1606": ("2", None),
    "olympiad/1664": ("69,84", None),  # $69$,$84$
    "olympiad/2349": ("221,8", None),  # $221,$8$
    "olympiad/2255": ("62.5\\%", None),  # 62.5%
    "olympiad/2592": ("4.2", 0.1),  # error 1e-1
    "olympiad/1970": ("(-\\infty, 0) \\cup\\{1\\}", None),  # with a full stop
    "minerva/0": ("1.6", None),
    "minerva/1": ("4.5 \\times 10^{33}", None),  # 4.5e33
    "minerva/44": ("1 \\times 10^{-5}", None),  # 1e-5
    "minerva/5": ("\\arcsin(10/13)", None),  # np.arcsin(10/13)
    "minerva/38": ("-1/3", None),  # -1./3
    "minerva/72": ("x_{0} \\cos (\\omega t)+ \\dot{x}_{0} \\sin (\\omega t) / \\omega", None),  # with $ $ inside
    "minerva/86": ("I(0) e^{-\\frac{t}{R C}}", None),  # nested braces
}


def test_golds_read_by_hand(data_dir):
    problems = {problem.id: problem for name in BENCHMARKS for problem in load_benchmark(name, data_dir=data_dir)}
    assert {key: (problems[key].answer, problems[key].tolerance) for key in GOLDS} == GOLDS
    assert sum(problem.tolerance is not None for problem in problems.values()) == 2


OLYMPIAD = {"id": 1, "context": None, "question": "?", "final_answer": ["$2 n$"], "error": None}


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("olympiad", OLYMPIAD, Problem("olympiad/1", "?", "2 n")),
        ("olympiad", {**OLYMPIAD, "context": "Let $x=2$."}, Problem("olympiad/1", "Let $x=2$.\n\n?", "2 n")),
        (
            "olympiad",
            {**OLYMPIAD, "final_answer": ["$2$", "$-\\frac{1}{2}$."], "error": "1e-2"},
            Problem("olympiad/1", "?", "2,-\\frac{1}{2}", 0.01),
        ),
        # columns of the hub that differ from those of the local copy
        ("minerva", {"question": "q", "answer": "7e37"}, Problem("minerva/0", "q", "7 \\times 10^{37}")),
        ("aime2025", {"id": "3", "problem": "q", "answer": "588"}, Problem("aime2025/3", "q", "588")),
        ("math_train", {"problem": "p", "solution": "$\\boxed{\\frac12}$."}, Problem("math_train/0", "p", "\\frac12")),
    ],
)
def test_rows_of_the_catalogue(name, row, expected):
    assert to_problem(find_dataset(name), 0, row) == expected


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"So $x = \boxed 5$.", "5"),
        (r"Hence \fbox{7}.", "7"),
        (r"\boxed {\{1, 2\}}", r"\{1, 2\}"),
        (r"First \boxed{3}. Then \boxed{\frac{a}{b}}.", r"\frac{a}{b}"),
        (r"\boxed{1} or \boxed{2}", "1,2"),
        (r"$\boxed{1}$, $\boxed{2}$ and $\boxed{3}$.", "1,2,3"),
        (r"From \boxed{3} we get x = \boxed{4}.", None),  # one, or both?
        (r"First \boxed{3}. Then \boxed{4", None),
        (r"-(ab + ac + bc)", "-(ab + ac + bc)"),
    ],
)
def test_the_answer_of_a_solution_is_what_it_boxes_at_its_end(solution, answer):
    assert boxed_answer(solution) == answer


@pytest.mark.parametrize(
    ("published", "answer"),
    [
        (["5"], "5"),
        ("['5']", "5"),
        (r'["\\frac{1}{2}"]', r"\frac{1}{2}"),
        ("[1, 2]", "[1, 2]"),  # an interval
        *((nothing, None) for nothing in ([], [None, ""], "", " ", math.nan, "NaN", [math.nan])),
    ],
)
def test_lists_around_an_answer_are_taken_apart(published, answer):
    assert single(published) == answer
    with pytest.raises(ValueError, match="answer_format: list"):
        single([published, "7", "8"])
    assert single([published, "7"], several=True) == ("7" if answer is None else f"{answer},7")


def test_files_as_other_programs_write_them(tmp_path):
    for file, text, expected in (
        ("a.csv", '\ufeff"q","a"\nx,5\n', "5"),  # as a spreadsheet writes it
        ("a.csv", 'q,a,long\nx,5,"' + "y" * 140_000 + '"\n', "5"),
        ("a.csv", "q,a\nx,9007199254740993.0\n", "9007199254740993.0"),
        ("a.csv", "q,a\nx,5,6\n", None),
        ("a.jsonl", '\ufeff{"q": "x", "a": 9007199254740993.0}', "9007199254740993"),
        ("a.jsonl", '{"q": "x", "a": 9.007199254740993e15}', "9007199254740993"),
        ("a.jsonl", '{"q": [{"role": "user", "content": "x"}], "a": ["5"]}', "5"),
        ("a.jsonl", json.dumps({"q": '[{"role": "user", "content": [{"type": "text", "text": "x"}]}]', "a": "5"}), "5"),
        ("a.jsonl", json.dumps({"q": '[{"role": "user", "content": "x"', "a": "5"}), None),
    ):
        (tmp_path / file).write_text(text, encoding="utf-8")
        (tmp_path / "mine.yaml").write_text(f"kind: benchmark\nfiles: {file}\nquestion: q\nanswer: a\n")
        with nullcontext() if expected else pytest.raises(ParameterError):
            assert load_benchmark(tmp_path / "mine.yaml") == [Problem("mine/0", "x", expected)]


def copied(name: str, data_dir: Path, folder: Path) -> Path:
    target = folder / find_dataset(name).files[0]
    target.parent.mkdir(parents=True)
    shutil.copyfile(data_dir / find_dataset(name).files[0], target)
    return target


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda text: text + text.splitlines()[0].replace('"id": 0', '"id": 999') + "\n", "84 problems, expected 83"),
        (lambda text: "", "0 problems, expected 83"),
        (lambda text: text.replace("Irreducible", "irreducible"), "changed text"),
        (lambda text: text.replace('"problem"', '"prompt"'), "row 1 of .*no column 'problem'"),
        (lambda text: text[: len(text) // 2], "is not JSON"),
        (lambda text: text.replace('"id": 1,', '"id": 0,'), "'amc/0' occurs twice"),
    ],
)
def test_a_changed_copy_is_one_clear_sentence(tmp_path, data_dir, change, found):
    path = copied("amc", data_dir, tmp_path)
    assert len(load_benchmark("amc", data_dir=tmp_path)) == 83
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ParameterError, match=found) as error:
        load_benchmark("amc", data_dir=tmp_path)
    assert "amc" in str(error.value)
    assert "\n" not in str(error.value)


def test_formatting_of_a_copy_does_not_matter(tmp_path, data_dir):
    path = copied("amc", data_dir, tmp_path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps({**dict(reversed(row.items())), "answer": str(int(row["answer"]))}) for row in rows]
    path.write_text("\n\n".join(lines), encoding="utf-8")
    assert load_benchmark("amc", data_dir=tmp_path) == load_benchmark("amc", data_dir=data_dir)


def test_missing_everywhere_fails_fast_with_both_remedies(tmp_path, monkeypatch, refused):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(dataset_module, "CACHE", tmp_path / "cache")
    monkeypatch.delenv("QUAGMIRE_DATA_DIR", raising=False)
    start = time.monotonic()
    with refused("math500") as error:
        load_benchmark("math500", data_dir=tmp_path)
    assert time.monotonic() - start < 10
    assert re.search(r"gave no answer.*QUAGMIRE_DATA_DIR.*math500.jsonl.*hub", str(error.value))
    with refused("aime"):
        load_benchmark("aime")


def test_a_pinned_hub_is_read_once_and_counted(monkeypatch, tmp_path):
    """The first use copies the files of the commit, whatever their format; later ones need no hub."""
    rows = [{"id": i, "problem": f"q{i}", "answer": float(i)} for i in range(84)]
    pd.DataFrame(rows[:50]).to_parquet(tmp_path / "a.parquet")
    write_jsonl(tmp_path / "b.jsonl", rows[50:83])
    named, asked = [(str(tmp_path / name), None) for name in ("a.parquet", "b.jsonl")], []
    monkeypatch.setattr(dataset_module, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(dataset_module, "_hub_files", lambda one: asked.append(one.revision) or named)
    for _ in range(2):
        problems = load_benchmark("amc", data_dir=tmp_path)
        assert (len(problems), problems[3]) == (83, Problem("amc/3", "q3", "3"))
    assert asked == [find_dataset("amc").revision]
    shutil.rmtree(tmp_path / "cache")
    write_jsonl(tmp_path / "b.jsonl", rows[50:82])
    with pytest.raises(ParameterError, match="82 problems, expected 83"):
        load_benchmark("amc", data_dir=tmp_path)


def test_unknown_names_and_limits(refused):
    for name, options, parameter in (
        ("math", {}, "benchmark"),
        *(("math500", {"limit": limit}, "limit") for limit in (0, True)),
        ("math500", {"data_dir": "/no/such/folder"}, "data_dir"),
    ):
        with refused(parameter):
            load_benchmark(name, **options)


def test_own_jsonl_file(tmp_path):
    rows = [
        {"id": 1, "question": "1+1?", "answer": 2},
        "",
        {"id": "b", "question": "half?", "answer": 0.5, "tolerance": 0.01, "source": "me"},
        {"id": "c", "question": "Größe \ud83c\udfb2?", "answer": "3.0 "},
        *({"id": i, "question": "q", "answer": answer} for i, answer in enumerate((1e-7, 142.0, 1e20), start=2)),
    ]
    path = write_jsonl(tmp_path / "mine.jsonl", rows)
    expected = [Problem("1", "1+1?", "2"), Problem("b", "half?", "0.5", 0.01), Problem("c", "Größe 🎲?", "3.0")]
    golds = ("0.0000001", "142", "1" + "0" * 20)  # no exponents
    expected += [Problem(str(i), "q", gold) for i, gold in enumerate(golds, start=2)]
    assert load_benchmark(path) == load_benchmark(str(path)) == expected
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a byte order mark
    assert load_benchmark(path, limit=1) == expected[:1]


GOOD = {"id": 1, "question": "1+1?", "answer": "2"}


def test_bad_jsonl_file_is_refused_with_its_line(tmp_path):
    for rows, message in (
        ([], "has no problems"),
        ([GOOD, {"id": 2, "question": "?"}], "line 2: it has no answer"),
        ([{**GOOD, "question": "  "}], "line 1: has no 'question'"),
        ([GOOD, "", GOOD], "'1' occurs twice"),
        ([GOOD, "{"], "line 2 is not JSON"),
        ([GOOD, '{"id": 2, "question": "?", "answer": ' + "1" * 5000 + "}"], r"line 2 is not JSON.*4300 digits"),
        ([GOOD, {**GOOD, "question": "1+1? \ud83c"}], "line 2: has half of a character .* in 'question'"),
        ([{**GOOD, "tolerance": -1}], "tolerance -1"),
        *(([{**GOOD, "answer": odd}], "line 1: its answer") for odd in (math.nan, math.inf, True, ["1"], {"a": 1})),
    ):
        with pytest.raises(ParameterError, match=message) as refused:
            load_benchmark(write_jsonl(tmp_path / "bad.jsonl", rows))
        assert len(str(refused.value)) < 400


def test_traces_survive_the_file(tmp_path):
    traces = [
        Trace("1", "p", "q\n", "line\u2028separator\r\n\x00 \U0001f3b2 \\boxed{1}", "1", "me"),
        Trace("2", "p", "q", "r"),
    ]
    path = tmp_path / "traces.jsonl"
    assert load_traces(write_jsonl(path, [asdict(trace) for trace in traces])) == traces
    rows = [{"question": "q", "response": "r", "model": "m"}, {"id": 7, "question": "q", "response": "s"}]
    assert load_traces(write_jsonl(path, rows)) == [Trace("1", "1", "q", "r"), Trace("7", "7", "q", "s")]


def test_bad_traces_are_refused(tmp_path):
    for row, message in (
        ({"id": "1", "problem_id": "p", "question": "q"}, "line 1 has no 'response'"),
        ({"prompt": "q", "completion": "r"}, "line 1 has no 'question' and no 'response'"),
        ({"id": "1", "problem_id": "p", "question": "q", "response": "\ud800"}, "line 1 has half of a character"),
        *(
            ({"id": "1", "problem_id": "p", "question": "q", "response": "r", name: bad}, f"line 1 has a {name}")
            for name in ("question", "response")
            for bad in (math.nan, " ", 5, [{"role": "user", "content": "q"}])
        ),
    ):
        with pytest.raises(ParameterError, match=message):
            load_traces(write_jsonl(tmp_path / "traces.jsonl", [row]))
