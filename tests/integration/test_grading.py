"""Grading against truth: real labelled responses, plain math-verify, and processes that are really killed."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from verdicts import CORRECT, ERROR, NO_ANSWER, TIMEOUT, TOWER, WRONG, gone, on_linux, verdicts, wait_until

from quagmire_utils.core.paths import ROOT
from quagmire_utils.data import Problem
from quagmire_utils.grading import Grade, Grader, grade, parity, pool
from quagmire_utils.grading.verdicts import MATH_VERIFY, Job

both_graders = pytest.mark.parametrize("name", ["math", "math_verify"])


@pytest.fixture(autouse=True)
def quiet_math_verify():
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timers are off


def plain(response, gold):
    """Return what a serial loop of math-verify does: True, False, or None where it finds no answer."""
    from math_verify import parse, verify

    answer = parse(response, parsing_timeout=None)
    return verify(parse(f"\\boxed{{{gold}}}", parsing_timeout=None), answer, timeout_seconds=None) if answer else None


def later(seconds, action):
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


@both_graders
def test_agrees_with_the_labels_of_real_responses(grader, labelled, name):
    responses, golds, labels = labelled("gsm8k_gpt3")
    assert len(labels) == 1600
    assert verdicts(grader.grade(responses, golds, grader=name)) == [CORRECT if label else WRONG for label in labels]

    responses, golds, labels = labelled("math_cot")
    grades = grader.grade(responses, golds, grader=name)
    assert len(labels) == 400
    assert [grade.verdict == CORRECT for grade in grades] == labels
    # one gold, `4:30p..`, is a corrupt `4:30\text{ p.m.}`; all eight responses to it are right, and undecided
    undecided = [i for i, grade in enumerate(grades) if grade.verdict not in (CORRECT, WRONG)]
    assert [(grades[i].verdict, golds[i]) for i in undecided] == [(ERROR, "4:30p..")] * 8
    assert all("4:30 \\text{ p.m.}" in responses[i] for i in undecided)


# fmt: off
PIECES = [
    "\\boxed", "\\boxed{", "\\fbox{", "}", "{", "$", "$$", "\\(", "\\)", "\\[", "\\]", "[", "]", "\\", "%", "\\%",
    " percent", "final answer is ", "Final Answer", "f\u0131nal answer", "answer: ", "answer", " is ", "\tIS ", " ",
    "\n", ", and ", "I hope", "5", "12", "-7", "0.5", "1,234", "007", "\u0661", "\\frac{1}{2}", "\\sqrt{2}", "(1,2)",
    "x", "x=3", "-", "+", "=", "\\text{cm}",
]
CONTENTS = [
    "5", "12", "-7", "-0", "007", " ", "\n9 ", "\u00a08", "\u0663", "123456789012345678", "0.5", "1,234", "5.", "1 2",
    "5\\%", "50 percent", "7 \\text{ cm}", "\\frac{1}{2}", "\\frac12", "1\\frac{1}{2}", "\\sqrt{2}", "\\pi", "x", "x=3",
    "x^2+1", "(1,2)", "[1,2)", "\\{1,2\\}", "{", "}", "\\", "$", "]", "\\(", "\\)", "final answer is 3",
    "answer: \\frac{1}{2}",
]
# fmt: on
GOLDS = ["5", "-7", "007", "0", "12", "123456789012345"]


@st.composite
def texts(draw):
    """Texts of what math-verify's patterns look for, most of them with a single box."""
    before, after = ("".join(draw(st.lists(st.sampled_from(PIECES), max_size=6))) for _ in range(2))
    if draw(st.integers(0, 4)):
        before, after = (part.replace("\\boxed", "").replace("\\fbox", "") for part in (before, after))
    box = "\\boxed{" + "".join(draw(st.lists(st.sampled_from(CONTENTS), min_size=1, max_size=3))) + "}"
    return before + (box if draw(st.integers(0, 5)) else "") + after


def test_what_is_decided_without_math_verify_is_its_verdict():
    decided = []

    @settings(max_examples=1500, deadline=None, derandomize=True)
    @given(texts(), st.sampled_from(GOLDS))
    def check(text, gold):
        found = parity.decide(Job(MATH_VERIFY, gold, None, text, False, 5.0))
        if isinstance(found, Grade):
            assert found.verdict == {True: CORRECT, False: WRONG, None: NO_ANSWER}[plain(text, gold)]
            decided.append(found.verdict)

    check()
    assert set(decided) == {CORRECT, WRONG, NO_ANSWER}


MUTATIONS = [
    lambda text: text,
    lambda text: text.replace("\\boxed", "\\fbox"),
    lambda text: text + "\n\nThe final answer is $7$. I hope it is correct.",
    lambda text: text + " and also \\boxed{2}",
    lambda text: text[: len(text) * 9 // 10],  # cut off
    lambda text: text.replace("\\(", "$").replace("\\)", "$").replace("\\[", "$$").replace("\\]", "$$"),
    lambda text: text.replace("\\boxed{", "\\boxed{ 0"),
    lambda text: "\\boxed{3}. Wait, no. " + text,
    lambda text: text.replace("A: ", "\\boxed{") + "}",
    lambda text: re.sub("[^a-z ]", "", text),
]


def test_verdicts_are_those_of_a_plain_loop(grader, labelled):
    rows = [*zip(*labelled("math_cot"), strict=True)][::4] + [*zip(*labelled("gsm8k_gpt3"), strict=True)][::12]
    pairs = [(mutate(response), gold) for i, (response, gold, _) in enumerate(rows) for mutate in MUTATIONS[i % 2 :: 2]]
    responses, golds = zip(*pairs, strict=True)
    grades = grader.grade(responses, golds, timeout=20, grader="math_verify")
    for (response, gold), graded in zip(pairs, grades, strict=True):
        expected = {True: (CORRECT,), False: (WRONG, ERROR), None: (NO_ANSWER,)}[plain(response, gold)]
        assert graded.verdict in expected, (response, gold)
        if graded.verdict == ERROR:
            assert gold == "4:30p.."  # see the labels of math_cot
    assert len(set(verdicts(grades))) == 4


UNREADABLE = "\\hbar \\omega(v+1 / 2)-\\frac{E_{0}^{2} e^{2}}{2 m \\omega^{2}}"
CASES = [  # gold, response, verdict, extracted
    ("\\frac{1}{2}", "\\boxed{0.5}", CORRECT, "\\frac{1}{2}"),
    ("7", "\\boxed{007}", CORRECT, "007"),
    ("2,3", "$\\boxed{2}$ and $\\boxed{3}$", CORRECT, "2 and 3"),
    ("3", "The final answer is $3$, not \\boxed{4}.", WRONG, "4"),
    ("3", "\\boxed{4}. The final answer is $3$. I hope it is correct.", CORRECT, "3"),
    ("50", "$\\boxed{50}$%", CORRECT, "50"),
    ("26", "thus 13 * 2 = 26\nA: 26", CORRECT, "26"),
    ("3", "\\boxed{5.}, that is 3", CORRECT, "5."),  # a box that is not LaTeX: the whole text counts, as ever
    ("3", "I do not know.", NO_ANSWER, ""),
    ("3", "\\boxed{", NO_ANSWER, ""),
    # the gold comes first: math-verify lets an interval answer an inequality, not the other way round
    ("1 < x < 2", "\\boxed{(1,2)}", CORRECT, "(1,2)"),
    ("(1,2)", "\\boxed{1 < x < 2}", WRONG, "1 < x < 2"),
    # an unreadable gold is never wrong, and not left to math-verify's search for numbers
    (UNREADABLE, "\\boxed{2}", ERROR, "2"),
    (UNREADABLE, f"\\boxed{{{UNREADABLE}}}", CORRECT, UNREADABLE),
    (UNREADABLE, "\\boxed{x}", ERROR, "x"),
    (UNREADABLE, "no idea", NO_ANSWER, ""),
]


def test_cases(grader):
    grades = grader.grade([case[1] for case in CASES], [case[0] for case in CASES], grader="math_verify")
    assert grades == [Grade(verdict, extracted) for _, _, verdict, extracted in CASES]


def test_tolerance_is_absolute_and_inclusive(grader):
    within = ["4.2", "4.1", "4.3", "4.15", "4.25\\%", "x = 4.25", "\\frac{17}{4}"]
    beyond = ["4.31", "4.09", "x", "\\{4.2,4.3\\}"]
    responses = [f"\\boxed{{{answer}}}" for answer in within + beyond]
    for tolerance, correct in ((0.1, 7), (None, 1)):
        found = grader.grade(responses, [Problem("a", "?", "4.2", tolerance)] * 11)
        assert verdicts(found) == [CORRECT] * correct + [WRONG] * (11 - correct)
    problems = [Problem("a", "?", "4.2", tolerance) for tolerance in (0.1, None, 0.001)]
    assert verdicts(grader.grade(["\\boxed{4.25}"] * 3, problems)) == [CORRECT, WRONG, WRONG]


@pytest.fixture(scope="module")
def steady():
    """A Grader that limits processor time, not wall time: tests may run on a busy machine."""
    with Grader(2, timeout=300, processor_limit=0.6) as grader:
        yield grader


@both_graders
def test_hostile_responses_neither_hang_nor_crash_nor_run(steady, tmp_path, name):
    marker = tmp_path / "ran"
    code = f"__import__('os').system('touch {marker}')"
    cases = {
        "": NO_ANSWER,
        "{" * 10**6: NO_ANSWER,
        "\\boxed{" + "{" * 10**6: NO_ANSWER,
        "\\boxed{" + "{" * 400 + "5" + "}" * 400 + "}": TIMEOUT,
        "\\boxed{" + "(" * 400 + "5" + ")" * 400 + "}": TIMEOUT,
        "\\[" * 10**5: TIMEOUT,
        "final answer" + " " * 10**5 + "\\boxed{7}": WRONG,
        TOWER: TIMEOUT,
        "The answer is 9^9^9^9": TIMEOUT,
        "\\boxed{100000000!}": TIMEOUT,
        "1" * 10**4: ERROR,  # Python refuses to read an integer that long, and so math-verify raises
        code: NO_ANSWER,
        f"\\boxed{{{code}}}": WRONG,
        f"answer: 1+{code}": WRONG,
        "\x00\\boxed{\x005}\x00": WRONG,
        "\x00\\boxed{5}\x00": CORRECT,
        "\ud800 is \\boxed{\udfff}": WRONG,
        "\ud800\\boxed{5}": CORRECT,
    }
    start, grades = time.monotonic(), steady.grade(list(cases), ["5"] * len(cases), grader=name)
    assert time.monotonic() - start < 200
    assert verdicts(steady.grade(["\\boxed{x+1}"], ["1+x"])) == [CORRECT]
    assert not marker.exists()
    for (response, expected), graded in zip(cases.items(), grades, strict=True):
        if name == "math_verify":
            assert graded.verdict == expected, response[:80]
        else:  # it may settle more of them, but calls no other one right
            assert (graded.verdict == CORRECT) == (expected == CORRECT), response[:80]
        assert len(graded.extracted) <= 500
        assert "\x00" not in graded.extracted
        assert json.loads(json.dumps(graded.extracted, ensure_ascii=False).encode("utf-8")) == graded.extracted
    assert grades[list(cases).index(TOWER)].extracted == "9^{9^{9^9}}"


@on_linux
def test_a_lost_pool_is_replaced(monkeypatch):
    monkeypatch.setattr(pool, "_GRACE", 1.0)
    with Grader(1) as grader:
        grader.grade(["\\boxed{x}"], ["y"])
        server = grader.pools["math"]

        def lose(how):
            while not server._ready:  # the loss before may have left a server that is still starting
                time.sleep(0.01)
            os.killpg(server.process.pid, how)

        for lost in (signal.SIGKILL, signal.SIGSTOP):
            later(0.5, lambda lost=lost: lose(lost))
            responses = [TOWER, "\\boxed{x+1}", "\\boxed{x+2}"]
            assert verdicts(grader.grade(responses, ["1+x"] * 3, timeout=1))[1:] == [CORRECT, WRONG]


def test_an_interrupt_leaves_the_grader_usable(grader):
    grader.grade(["\\boxed{x}"], ["y"])
    later(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        grader.grade([TOWER], ["5"], timeout=60)
    assert verdicts(grader.grade(["\\boxed{x+1}", "\\boxed{2x}"], ["1+x"] * 2)) == [CORRECT, WRONG]


def test_bad_parameters(refused):
    for responses, golds, options, named in (
        (["a"], ["1", "2"], {}, "golds"),
        ([Problem("p", "?", "5")], ["\\boxed{5}"], {}, "responses[0]"),  # exchanged
        ([None], ["5"], {}, "responses[0]"),
        (["5", "6"], ["5", " "], {}, "golds[1]"),
        (["5"], ["5"], {"timeout": float("nan")}, "timeout"),
        (["5"], ["5"], {"answer": "last"}, "answer"),
    ):
        with refused(named):
            grade(responses, golds, **options)
    with refused("memory_limit"):
        Grader(memory_limit=10**6)


def test_no_processes_where_none_is_needed():
    with Grader(1) as grader:
        assert verdicts(grader.grade(["\\boxed{5}", "\\boxed{6}", "none"], ["5"] * 3)) == [CORRECT, WRONG, NO_ANSWER]
        assert grader.grade([], []) == []
        assert grader.pools == {}


def test_a_pool_that_cannot_start_says_so(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Grader(1) as grader, pytest.raises(pool.GradingError, match="/bin/false"):
        grader.grade(["\\boxed{x}"], ["y"])
    monkeypatch.undo()
    monkeypatch.setattr(pool, "_STARTUP", 0.0)
    with Grader(1) as grader, pytest.raises(pool.GradingError, match="not ready"):
        grader.grade(["\\boxed{x}"], ["y"])


def test_threads_share_a_grader(grader):
    found = {}

    def run(i):
        responses = [f"\\boxed{{{i}x+{j}}}" for j in range(30)]
        found[i] = verdicts(grader.grade(responses, [f"{j}+{i}x" for j in range(29)] + ["z"]))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [CORRECT] * 29 + [WRONG] for i in range(2, 6)}


SCRIPT = """
import os, sys
from quagmire_utils.grading import grade
grades = grade(["\\\\boxed{x+1}", "\\\\boxed{x}"], ["1+x", "y"], workers=1)
print([str(g.verdict) for g in grades], flush=True)
if "fork" in sys.argv:
    if os.fork() == 0:
        print([str(g.verdict) for g in grade(["\\\\boxed{x+2}"], ["2+x"], workers=1)], flush=True)
        os._exit(0)
    os.wait()
    print([str(g.verdict) for g in grade(["\\\\boxed{x+3}"], ["3+x"], workers=1)], flush=True)
if "hang" in sys.argv:
    from quagmire_utils.grading.grader import _shared
    print(_shared(1).pools["math"].process.pid, flush=True)
    grade(["\\\\boxed{9^{9^{9^9}}}"], ["5"], workers=1, timeout=1)
"""


def run_script(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    )


def test_a_script_without_a_main_guard_and_a_forked_copy_of_it():
    out, _ = run_script("fork").communicate(SCRIPT, timeout=60)
    assert out.split("\n")[:3] == ["['correct', 'wrong']", "['correct']", "['correct']"]


@on_linux
def test_workers_end_with_their_caller():
    caller = run_script("hang")
    caller.stdin.write(SCRIPT)
    caller.stdin.close()
    assert caller.stdout.readline() == "['correct', 'wrong']\n"
    server = int(caller.stdout.readline())
    time.sleep(0.3)
    caller.kill()
    caller.wait()
    caller.stdout.close()
    wait_until(lambda: gone(server), "the workers live")
