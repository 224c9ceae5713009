"""Small real benchmarks: public files and mirrors alike, and the grader of short texts."""

import json
import random
import re

import pytest

from quagmire_utils.data import benchmark_names, dataset, find_dataset, load_benchmark
from quagmire_utils.data.dataset import CATALOGUE
from quagmire_utils.data.rows import to_problem
from quagmire_utils.grading import text
from quagmire_utils.grading.verdicts import Verdict

PUBLIC = [name for name in benchmark_names() if find_dataset(name).address]
TEXTS = [name for name in PUBLIC if find_dataset(name).grader == "text"]
ROWS = {  # as the public files have them, and the problem that they are
    "addsub": ({"sQuestion": "3 cups . She has 2 . How many ? ", "lSolutions": ["14696.0"]}, "14696"),
    "svamp": ({"ID": "chal-7", "Body": "3 cups..", "Question": "How many?", "Answer": 51.0}, "51"),
    "asdiv_grade1_2": ({"ID": "n-1", "Grade": "2", "Body": "A.", "Question": "B?", "Answer": "9 (apples)"}, "9"),
    "strategyqa": ({"input": "Frost ?", "target": "Yes. It snows in May."}, "yes"),
    "bbh_tracking_shuffled_objects": ({"input": "Who?\n(A) x\n(B) y", "target": "(B)"}, "B"),
    "gsm_hard": ({"input": "Eggs?", "target": -9867630.0}, "-9867630"),
    "aqua": ({"question": "How long?", "options": ["A)5", "B)6"], "correct": "B"}, "B"),
}


@pytest.mark.parametrize("name", ROWS)
def test_public_rows_are_problems(name):
    row, answer = ROWS[name]
    problem = to_problem(find_dataset(name), 0, row)
    assert (problem.answer, problem.grader) == (answer, find_dataset(name).grader)
    assert " ." not in problem.question
    assert ".." not in problem.question


def test_only_easy_problems_with_one_number_are_left(tmp_path, monkeypatch):
    parts = "<Body>{}</Body><Question>How many?</Question><Answer>{}</Answer>"
    rows = [("1", "Two.", "2 (cups)"), ("3", "Hard.", "5"), ("2", "Two.", "2 (cups); 3 (jars)"), ("2", "One.", "0.46")]
    text = "".join(f'<Problem ID="n{i}" Grade="{g}">{parts.format(b, a)}</Problem>' for i, (g, b, a) in enumerate(rows))
    (tmp_path / "set.xml").write_text(f"<File>{text}</File>")
    recipe = (CATALOGUE / "asdiv_grade1_2.yaml").read_text().replace("count: 519", "count: 2")
    recipe = re.sub("address: .*", f"address: {(tmp_path / 'set.xml').as_uri()}", recipe)
    (tmp_path / "mine.yaml").write_text(recipe)
    monkeypatch.setattr(dataset, "CACHE", tmp_path / "cache")
    found = load_benchmark(tmp_path / "mine.yaml", data_dir=tmp_path)
    (tmp_path / "set.xml").unlink()
    assert load_benchmark(tmp_path / "mine.yaml", data_dir=tmp_path) == found  # from the cache
    kept = [(one.id, one.question, one.answer) for one in found]
    assert kept == [("mine/n0", "Two. How many?", "2"), ("mine/n3", "One. How many?", "0.46")]


@pytest.mark.requires_data
@pytest.mark.parametrize("name", PUBLIC)
def test_the_mirror_has_every_problem(name, data_dir):
    recipe = find_dataset(name)
    if not (data_dir / recipe.files[0]).is_file():
        pytest.skip(f"the mirror lacks {recipe.files[0]}")
    problems = load_benchmark(name, data_dir=data_dir)
    assert len(problems) == recipe.count == len({problem.id for problem in problems})
    rows = [json.loads(line) for line in (data_dir / recipe.files[0]).open()]
    assert [problem.question for problem in problems][-1].startswith(rows[-1]["question"])
    if recipe.grader == "math":
        assert all(float(problem.answer) == float(row["answer"]) for problem, row in zip(problems, rows, strict=True))


CASES = [  # response, gold, verdict; read by hand
    (r"So it is \boxed{No}.", "no", "correct"),
    (r"\boxed{\text{Yes, it is}}", "yes", "correct"),
    (r"\boxed{yes or no}", "yes", "wrong"),
    (r"\boxed{Not true}", "True", "wrong"),
    (r"First \boxed{yes}, but then \boxed{no}", "no", "correct"),
    ("The answer is: **barn, damp, delmarva**.\nThat is all.", "barn damp delmarva", "correct"),
    ("The answer is barn delmarva damp", "barn damp delmarva", "wrong"),
    (r"\boxed{\text{barn damp it\&t}}", "barn damp it&t", "correct"),
    ("<think>\nThe answer is yes.\n</think>\nThe answer is no. Or yes?", "no", "correct"),
    ("<think> The answer is yes.", "yes", "no_answer"),
    (r"The answer is yes. \boxed{", "yes", "no_answer"),
    ("Answer: YAJO", "yajo", "correct"),
    ("Yes, it is.", "yes", "no_answer"),  # the prompt asks for a box
    ("The answer is", "no", "no_answer"),
    (r"\boxed{nobody}", "no", "wrong"),
    ("The answer is no" + "o" * 10_000, "no", "wrong"),
]


@pytest.mark.parametrize(("response", "gold", "verdict"), CASES)
def test_a_short_text_is_found_and_judged(response, gold, verdict):
    place = text.extract(response)
    found = "no_answer" if place is None else text.judge(response[slice(*place)], gold, None)
    assert found == verdict


@pytest.mark.requires_data
@pytest.mark.parametrize("name", TEXTS)
def test_every_gold_is_its_own_answer_and_no_others(name, data_dir):
    golds = [problem.answer for problem in load_benchmark(name, data_dir=data_dir)]
    shuffled = random.Random(0).sample(golds, len(golds))
    for gold, other in zip(golds, shuffled, strict=True):
        text.check(gold)
        for response in (rf"\boxed{{{gold}}}", f"So the answer is {gold}."):
            said = response[slice(*text.extract(response))]
            assert text.judge(said, gold, None) == Verdict.CORRECT
            assert (text.judge(said, other, None) == Verdict.CORRECT) == (gold == other)
