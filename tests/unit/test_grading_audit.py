"""The audit of real responses by the second grader, scores with their bounds, and `quagmire grade`."""

import csv
import math

import pandas as pd
import pytest

from quagmire_utils import cli
from quagmire_utils.core.files import write_csv
from quagmire_utils.data import Problem
from quagmire_utils.evaluation.audit import audit, audit_store
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.grading import Grade, Verdict

CORRECT, WRONG, NO_ANSWER, TIMEOUT, ERROR = Verdict


@pytest.mark.parametrize(("name", "samples"), [("math_cot", 400), ("gsm8k_gpt3", 1600)])
def test_both_graders_meet_the_labels_of_real_responses(grader, labelled, name, samples):
    responses, golds, labels = labelled(name)
    grades = grader.grade(responses, golds, timeout=60)
    assert len(labels) == samples
    assert [grade.verdict == CORRECT for grade in grades] == labels
    listed = audit(responses, golds, grades)
    unread = golds.count("4:30p..")  # which is corrupt
    counts = {"samples": samples, "disagreements": 0, "unread": unread, "undecided": unread, "not_math": 0}
    assert listed.attrs == counts | {"either": sum(labels), "both": sum(labels), "agreement": 1.0}
    assert set(listed["kind"]) <= {"neither could read it"}


def test_the_audit_finds_what_math_verify_accepts_of_spoilt_answers(grader):
    spoilt = ["\\boxed{3.1\\times 10^{-27}}", "\\boxed{-31}", "\\boxed{1.3\\times 10^{-27}}"]
    problems = [Problem("p", "?", "1.3\\times 10^{-27}", grader="math_verify")] * len(spoilt)
    grades = grader.grade(spoilt, problems, timeout=60)
    assert [grade.verdict for grade in grades] == [CORRECT, WRONG, CORRECT]
    listed = audit(spoilt, problems, grades)
    assert listed[["kind", "index"]].to_numpy().tolist() == [["only the first grader says correct", 0]]


def test_the_audit_of_a_store_groups_and_sorts(tmp_path):
    problems = {"b": [Problem("p", "?", "5"), Problem("q", "?", "7")]}
    rows = [
        ("b", "p", 0, "A: 5", "timeout", ""),
        ("b", "p", 1, "A: 6", "error", ""),
        ("b", "p", 2, "x" * 900 + "\nA: 5", "wrong", "4"),
        ("b", "p", 3, "\\boxed{6}", "correct", "5"),
        ("b", "q", 0, "\\boxed{8}", "correct", "7"),
        ("b", "q", 1, "so \\boxed{8}", "correct", "7"),
        ("b", "q", 2, "\\boxed{7}", "correct", "7"),
        ("b", "q", 3, "\\boxed{8}", "no_answer", ""),
        ("b", "q", 4, "\\boxed{8}", None, None),  # not graded yet
        ("b", "r", 0, "\\boxed{8}", "correct", "7"),  # no such problem
    ]
    names = ["benchmark", "problem", "index", "text", "verdict", "extracted"]
    frame = pd.DataFrame(rows, columns=names).assign(tokens=1, finish_reason="stop")
    store = SampleStore(tmp_path / "store")
    empty = audit_store(store, problems)
    for part in (frame[:5], frame[5:]):
        store.append(part)
    table = audit_store(store, problems)
    assert table.drop(columns=["benchmark", "ending"]).to_numpy().tolist() == [
        ["only the first grader says correct", "q", 0, 2, "7", "correct", "7", "wrong", "8"],
        ["only the first grader says correct", "p", 3, 1, "5", "correct", "5", "wrong", "6"],
        ["only the second grader says correct", "p", 2, 1, "5", "wrong", "4", "correct", "5"],
        ["the first is undecided", "p", 0, 1, "5", "timeout", "", "correct", "5"],
        ["the first is undecided", "p", 1, 1, "5", "error", "", "wrong", "6"],
    ]
    assert table["ending"].str.len().max() == 200
    nothing = {"unread": 0, "undecided": 0, "not_math": 0, "unread_by_benchmark": {}}
    assert table.attrs == nothing | {"samples": 8, "disagreements": 6, "either": 6, "both": 1, "agreement": 1 / 6}
    assert list(empty.columns) == list(table.columns)
    assert math.isnan(empty.attrs["agreement"])


def test_what_the_second_grader_cannot_judge_is_no_agreement(refused):
    gold, text = "4:30p..", "\\boxed{6}"
    first = [Grade(verdict, "") for verdict in (ERROR, TIMEOUT, WRONG)]
    table = audit([text] * 3, [gold] * 3, first)
    assert table["kind"].tolist() == ["neither could read it"] * 3
    assert math.isnan(table.attrs.pop("agreement"))
    counts = {"samples": 3, "disagreements": 0, "unread": 3, "undecided": 3, "not_math": 0, "either": 0, "both": 0}
    assert table.attrs == counts
    table = audit([text] * 4, [gold] * 4, [*first, Grade(CORRECT, "5")])
    assert table.attrs == counts | {"samples": 4, "disagreements": 1, "either": 1, "agreement": 0}
    with refused("grades"):
        audit([text], ["5"], [])


@pytest.fixture
def mine(tmp_path):
    """A store whose verdicts are all wrong, and the benchmark it was sampled from."""
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": "p", "question": "?", "answer": "5"}\n{"id": "q", "question": "?", "answer": "1728"}\n')
    store = SampleStore(tmp_path / "samples")
    store.bind({"model_digest": "none"})
    texts = ["\\boxed{5}", "\\boxed{10/2}", "\\boxed{6}", "1331 and 1728", "\\boxed{1728}", "none"]
    rows = {"benchmark": "mine", "problem": ["p"] * 3 + ["q"] * 3, "index": [0, 1, 2] * 2, "text": texts, "tokens": 9}
    store.append(pd.DataFrame({**rows, "finish_reason": "stop", "verdict": "error", "extracted": ""}))
    return store, path


def test_a_store_is_regraded_and_audited_from_the_shell(mine, capsys):
    store, path = mine

    def grade(command: str, *options: str) -> str:
        assert cli.main(["grade", command, str(store.path), *options]) == 0
        return " ".join(capsys.readouterr().out.split())

    printed = grade("score")
    assert "Pass@1 % 0.0 ± 0.0" in printed
    assert "Pass@1 if undecided were right % 100.0" in printed
    printed = grade("regrade", "--benchmark", str(path), "--timeout", "60")
    assert "Pass@1 % 50.0 ± 23.6" in printed
    assert "Pass@1 by chance % 0.0 [" in printed
    graded = store.read(["verdict"])["verdict"].tolist()
    assert graded == ["correct", "correct", "wrong", "no_answer", "correct", "no_answer"]  # the prompt asks for a box
    output = path.with_name("audit.csv")
    printed = grade("audit", "--benchmark", str(path), "--output", str(output))
    assert "disagrees on 1 of 6 answers" in printed  # 1331 and 1728, without a box
    assert "Of the 4 that either calls correct, 75.00 % are so to both." in printed
    assert pd.read_csv(output)["kind"].tolist() == ["only the second grader says correct"]


FORMULAS = ["=1", "+1", "-1", "@A1", "\n=1", " =1", "\u3000\xa0 +1", "\uff1d1", "\xa0\uff20A1", "\ufeff\u200b=1"]
FORMULAS += ["\t1", "\r1", "\r=1"]


def test_what_a_model_wrote_commands_neither_a_spreadsheet_nor_a_terminal(mine, tmp_path, capsys):
    write_csv(pd.DataFrame({"cell": [*FORMULAS, "1", "x = 1", "", None, 3]}), tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        cells = [row[0] for row in csv.reader(file)]
    assert cells == ["cell", *(f"'{cell}" for cell in FORMULAS), "1", "x = 1", "", "", "3"]
    store, path = mine
    sample = {"benchmark": "mine", "problem": "p", "text": "\\boxed{=1+1}", "tokens": 9, "finish_reason": "stop"}
    for index, extracted in enumerate(("=cmd|'/c calc'!A0", "\x1b]0;title\x07"), start=7):
        store.append(pd.DataFrame({**sample, "index": [index], "verdict": "correct", "extracted": extracted}))
    arguments = ["grade", "audit", str(store.path), "--benchmark", str(path)]
    cli.main(arguments)
    assert "\x1b" not in capsys.readouterr().out
    output = path.with_name("audit.csv")
    cli.main([*arguments, "--output", str(output)])
    assert "'=cmd" in output.read_text()
