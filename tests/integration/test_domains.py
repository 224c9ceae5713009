"""Other domains than mathematics: multiple choice, and programs, hostile ones too, that are really run, confined."""

import contextlib
import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from verdicts import CORRECT, ERROR, NO_ANSWER, TIMEOUT, WRONG, verdicts, wait_until

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.paths import ROOT
from quagmire_utils.data import BENCHMARKS, Problem, benchmark_names, find_dataset, load_benchmark
from quagmire_utils.data.prompts import INSTRUCTION, INSTRUCTIONS, STDIN_INSTRUCTION, instruction_of
from quagmire_utils.data.rows import code_gold, shuffled, to_problem
from quagmire_utils.evaluation.audit import audit_store
from quagmire_utils.evaluation.marking import grade_store
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.grading import AnswerGrader, Grade, Grader, code, prepare_problems
from quagmire_utils.grading.choice import extract
from quagmire_utils.grading.registry import find_grader, grader_version
from quagmire_utils.grading.sandbox import check_bubblewrap

ADD = code_gold(["assert add(1, 2) == 3", "assert add([1], [2]) == [1, 2]"])
SUM = code_gold([{"input": "3 4\n", "output": "7\n"}, {"input": "10 -1\n", "output": "9"}])
REAL_ADD = "def add(a, b):\n    return a + b"
REAL_SUM = "print(sum(map(int, input().split())))"


def fenced(program):
    return f"First I think.\n```python\n{program}\n```\nDone."


@pytest.fixture(scope="module")
def grader():
    with pytest.MonkeyPatch.context() as patch, Grader(1, timeout=2.0, processor_limit=1.0) as pool:
        patch.setenv("HF_TOKEN", "secret-token")  # no program may see it
        yield pool


@pytest.fixture(scope="module")
def programs(grader):
    try:
        check_bubblewrap()
    except ParameterError as error:
        pytest.skip(str(error))
    return grader


CHOSEN = {  # None: several letters, or none; in Chinese too, with wide letters and signs
    "C": [
        r"\boxed{C}", r"\boxed{c}", r"Thus $\boxed{\text{(C)}}$.", r"\boxed{\textbf{(C) } 5\text{ kg}}",
        r"\boxed{C. Iron}", r"\boxed{\mathrm{C}} so again \boxed{C}", "Answer: C", "**Answer:** (C) the mitochondrion",
        "**Final Answer: C**", "The correct answer is (C).",
        "I first thought the answer is B. But no: the answer is C, since iron rusts.",
        "So option C is correct, and A is not.", "Everything else fails.\n\n(C)", "C", "C. 5 kg",
        "which leaves only (C).", "The correct answer would be C.", "The answer must be **C** because iron rusts.",
        "The answer is therefore C.", "My answer: C", "A is wrong, B too. So C.", "A is wrong and B is wrong, so C",
        "I would go with option C.", "Hence **C** is the correct answer.", "The answer is C (not D).",
        "The answer is (C) iron, since (A) wood does not rust", r"\boxed{C\text{ (iron)}}", r"\boxed{\text{C (iron)}}",
        "<answer>C</answer>", "The answer is <b>C</b>.", "\u7b54\u6848\uff1aC", "The answer is \uff08C\uff09",
        "\\boxed{A}\n\nWait, that is wrong.\n\n\\boxed{C}", "Answer: A\n\nOn reflection it rusts.\n\nAnswer: C",
    ],
    "D": [
        r"The mass is \boxed{9.8} newtons. The answer is (D)", "I ruled out (A). Final answer: D.", r"So \boxed D.",
        "We get 45 kg. **Final Answer: D**", "1. ... 2. ... \u21d2 Answer: D", "work\n#### D", "work\n#### (D) 5 kg",
        "The answer is not A but D.", "Ans: D", "Answer - D", "The answer is D rather than B.", "```\n(D)\n```",
        "The answer is not (A), but (D).", "The answer is clear: it is D.",
        "\u6240\u4ee5\u7b54\u6848\u9009D\u3002", "\u6545\u9009\uff1aD", "\u9009 D",  # Chinese
        "La respuesta correcta es D.", "Die richtige Antwort ist (D).", "Antwort: D", "R\u00e9ponse : D",
        "La r\u00e9ponse est D.", "A resposta \u00e9 D.", "Ich w\u00e4hle D.", "Elijo D.",
        "\u041e\u0442\u0432\u0435\u0442: D",
        "\u7b54\u3048\uff1aD", "\uc815\ub2f5: D",
    ],
    "B": ["<think>the answer is A. \\boxed{A}</think>The answer is B."],
    "J": ["Answer: J"],
    None: [
        r"\boxed{A} or maybe \boxed{C}", r"\boxed{A, C}", r"\boxed{\text{A and C}}", r"\boxed{AC}",
        r"\boxed{(A) or (C)}", r"\boxed{(A) 5 kg or (C) 6 kg}", r"\boxed{ABCD}",
        r"\boxed{A}, \boxed{B}, \boxed{C}, \boxed{D}. Answer: C", "Answer: A or C", "Answer: A\nAnswer: C",
        "The answer is (A) or (C).", "The answer is not A.", "A. iron\nB. zinc\nC. lead\nD. tin", r"\boxed{C^2}",
        r"\boxed{x = C}", "The answer is A function of time", "I think it is iron.", r"\boxed{A function of time}",
        r"\boxed{P(A)}", r"\boxed{A \cap B}", "Neither A nor C is correct.", "I would not choose C.",
        "Each of them reacts with A.", "Answer: A. No, wait. Final answer: D.", "\u4e0d\u9009 A",
        "Option: A is heavy; option: B is light.", "The answer is not A but both B and C.", "#### 45", r"\boxed 45",
        "It is a matter of A and what it does", "The answer is I think iron", "",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("letter", "response"), [(key, text) for key, texts in CHOSEN.items() for text in texts])
def test_a_letter_is_read_where_one_is_chosen(letter, response):
    span = extract(response)
    assert (span and response[slice(*span)].upper()) == letter


def test_choices_are_graded_with_the_same_verdicts(grader):
    responses = [r"\boxed{c}", "Answer: (B)", r"\boxed{A} \boxed{C}", "no idea"]
    grades = grader.grade(responses, ["C"] * 4, grader="choice")
    assert grades == [Grade(CORRECT, "C"), Grade(WRONG, "B"), Grade(NO_ANSWER, ""), Grade(NO_ANSWER, "")]
    assert verdicts(grader.grade(["Answer: B"], ["both A and B"], grader="choice")) == [ERROR]
    assert verdicts(grader.grade(["\uff23", "\uff22"], ["C"] * 2, grader="choice")) == [CORRECT, WRONG]  # wide letters


def test_long_hostile_texts_are_read_in_time(grader):
    pieces = {"\\boxed{": 50_000, "answer is ": 50_000, "(A": 200_000, "so *B ": 50_000, "<b": 150_000}
    texts = [piece * count for piece, count in pieces.items()] + ["Answer:" + " " * 300_000]
    assert set(verdicts(grader.grade(texts, ["C"] * 6, grader="choice"))) <= {NO_ANSWER, WRONG}


def test_domains_mix_in_one_call_and_golds_are_not_mixed_up(programs):
    problems = [
        Problem("m", "1/2?", "0.5"),
        Problem("c", "which?", "C", grader="choice"),
        Problem("d", "which?", "D", grader="choice"),
        Problem("p", "add?", ADD, grader="code"),
    ]
    same = "so \\boxed{C}"
    assert verdicts(programs.grade([same] * 4, problems)) == [WRONG, CORRECT, WRONG, NO_ANSWER]
    half = programs.grade([r"\boxed{\frac12}", same, same, fenced(REAL_ADD)], problems)
    assert verdicts(half) == [CORRECT, CORRECT, WRONG, CORRECT]


ONE, TWO = "def f(): return 1", "def f(): return 2"
FOUND = [  # response, and the program in it
    ("```python\na = 1\n```", "a = 1"),
    ("```py\na = 1\n```\nand better\n```Python\nb = 2\n```\nprints\n```\n2\n```", "b = 2"),
    ("```\na = 1\n```\n```text\n1\n```", "a = 1"),
    ("```bash\npip install x\n```", None),
    ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''"),
    ("1. so\n   ```python\n   a = 1\n   ```", "   a = 1"),
    ("```python\na = 1", "a = 1"),
    ("a = 1", None),
    ("```python\n```", None),
    ("<think>\n```python\na = 1\n```\n</think>\n```python\nb = 2\n```", "b = 2"),
    ("<think>\n```python\na = 1\n```\n</think>\nI give up.", None),
    (f"Here it is: ```python\n{ONE}\n```", ONE),
    (f"<answer>```python\n{ONE}\n```</answer>", ONE),
    (f"```python\n{ONE}```", ONE),
    ("```python\ndef f(:\n```\n```python\nf(\n```", "f("),
    *(  # other blocks follow: an example of its use, what it prints, what it needs
        (f"```python\n{ONE}\n```\nThen:\n```python\n{after}\n```", ONE)
        for after in (
            "print(f())", ">>> f()\n1", "0.5", "[0.5, -0.25, 'a']", "import math", "# O(1)", "Time: O(n)",
            "def check(x):\n    return x",
        )
    ),
    *(  # a program of its own
        (f"```python\n{ONE}\n```\nBetter:\n```python\n{after}\n```", after) for after in (TWO, "print(input())")
    ),
]  # fmt: skip


@pytest.mark.parametrize(("response", "program"), FOUND)
def test_the_last_python_block_is_the_program(response, program):
    span = code.extract(response)
    assert (span and response[slice(*span)].rstrip("\n ").removesuffix("\n")) == program


def sections(text):
    parts = re.split(r"^# (.*)\n", text.strip("\n"), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


SQUARE_ROOT = code_gold(  # helpers of the setup are the benchmark's own
    ["def check(candidate):\n    assert near(candidate(4), 2)\n", "check(root)"],
    "def near(a, b): return abs(a - b) < 1e-6\ndef root(x): '''The square root.'''",
    "root",
)
TWICE = code_gold(["assert twice(lambda x: x + 1, 1) == 3"])
SWALLOWING = code_gold(["try:\n    assert add(1, 2) == 3\nexcept BaseException:\n    pass"])
THIRD = code_gold([{"input": "", "output": "0.3333 a"}])
NEAR = Problem("p", "?", THIRD, tolerance=1e-3, grader="code")
THREADS = """
import threading
def add(a, b):
    out = []
    thread = threading.Thread(target=lambda: out.append(a + b))
    thread.start()
    thread.join()
    return out[0]
"""
RECURSION = """
import sys
sys.setrecursionlimit(10**5)
def down(n): return n and 1 + down(n - 1)
def add(a, b): return a + b if down(5000) == 5000 else None
"""
ENDS = [  # program, gold, verdict
    (REAL_SUM, SUM, CORRECT),
    (f"if __name__ == '__main__':\n    {REAL_SUM}\n    exit()", SUM, CORRECT),
    ("import sys, atexit\natexit.register(lambda: print(sum(map(int, sys.stdin.read().split()))))", SUM, CORRECT),
    *((program, SUM, WRONG) for program in ("print(7)", f"{REAL_SUM}\nraise SystemExit(1)", f"{REAL_SUM}\n1 / 0")),
    *((program, SUM, WRONG) for program in ("print(", "import os\nos._exit(0)", "raise SystemExit(0)", "print('OK')")),
    ("while True: print('7' * 1000)", SUM, WRONG),
    ("print(1 / 3, 'a')", THIRD, WRONG),
    ("print(1 / 3, 'a')", NEAR, CORRECT),
    ("print(1 / 3, 'b')", NEAR, WRONG),
    ("def root(x): return x ** 0.5", SQUARE_ROOT, CORRECT),
    ("x = 1", SQUARE_ROOT, WRONG),
    ("near = abs = lambda *_: 0\ndef root(x): return 7", SQUARE_ROOT, WRONG),
    ("def twice(f, x): return f(f(x))", TWICE, CORRECT),
    (THREADS, ADD, CORRECT),
    (RECURSION, ADD, CORRECT),
    ("import os\ndef add(a, b): os._exit(0)", SWALLOWING, WRONG),
    ("while True: pass", ADD, TIMEOUT),
    ("import time\ntime.sleep(60)", ADD, TIMEOUT),
    ("def add(a, b):\n    while True: pass", ADD, TIMEOUT),
    ("x = bytearray(2**31)", ADD, ERROR),
    ("def add(a, b): return [0] * 2**40", ADD, ERROR),
    ("import ctypes\nctypes.string_at(0)", ADD, ERROR),  # crashes the interpreter
]


def test_programs_end_with_their_verdict(programs):
    grades = programs.grade([fenced(program) for program, *_ in ENDS], [gold for _, gold, _ in ENDS], grader="code")
    found = [(program, gold, verdict) for (program, gold, _), verdict in zip(ENDS, verdicts(grades), strict=True)]
    assert found == ENDS
    assert grades[0].extracted == REAL_SUM


def test_programs_may_use_numpy(programs):
    program = "import numpy as np\ndef f(x): return np.sum(x), np.float32(0.5), np.sum(x) > 2"
    gold = code_gold(["assert f([1, 2]) == (3, 0.5, True)"])
    (grade,) = programs.grade([fenced(program)], [gold], grader="code", timeout=60)  # the import takes long
    assert grade.verdict == CORRECT


FORGERIES = r"""
# ends before the tests
import os
os._exit(0)
# ends in a call
import os
def add(a, b): os._exit(0)
# prints success
print('OK', 'passed')
def add(a, b):
    print('correct')
# writes into the channel
import os
for fd in range(64):
    try: os.write(fd, b'correct' * 9)
    except OSError: pass
os._exit(0)
# changes the builtins
import builtins
builtins.AssertionError = Exception
builtins.compile = builtins.exec = lambda *a: None
def add(a, b): return 0
# searches memory for the answers
import gc
def add(a, b):
    for o in gc.get_objects():
        if isinstance(o, dict) and 'tests' in o: return 3 if a == 1 else [1, 2]
# a thread bomb
import threading, time
while True: threading.Thread(target=time.sleep, args=(99,), daemon=True).start()
# infinite output
def add(a, b):
    while True: print('x' * 10**6)
# a large answer
def add(a, b): return 'x' * 10**8
"""


def test_forged_successes_and_bombs_are_not_correct(programs):
    cases = sections(FORGERIES)
    assert len(cases) == 9
    responses = [fenced(program) for program in (*cases.values(), REAL_ADD)]
    *forged, last = verdicts(programs.grade(responses, [ADD] * 10, grader="code"))
    found = dict(zip(cases, forged, strict=True))
    assert CORRECT not in forged, found
    assert found["ends before the tests"] == found["ends in a call"] == WRONG
    assert last == CORRECT


def attempt(action):
    """A program that prints what came of an action."""
    caught = "except (OSError, ValueError, KeyError):\n    print('refused')"
    return f"import os, socket\ntry:\n    {action}\n    print('done')\n{caught}"


REFUSED = {
    "a fork bomb": "[os.fork() for _ in iter(int, 1)]",
    "a process": "__import__('subprocess').run(['true'])",
    "a socket": "socket.socket()",
    "a file in the temporary folder": "open('/tmp/made-by-a-program', 'w')",
    "the parent's memory": "open(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
    "the parent's environment": "open(f'/proc/{os.getppid()}/environ').read()",
    "a signal to the parent": "os.kill(os.getppid(), 9)",
    "a session of its own": "os.setsid()",
    "the system's accounts": "open('/etc/passwd').read()",
    "a benchmark's file": f"open({str(Path(__file__))!r}).read()",
    "the priority of the parent": "os.setpriority(os.PRIO_PROCESS, os.getppid(), 5)",
    "the parent's processors": "os.sched_setaffinity(os.getppid(), {0})",
    "the parent's limits": "__import__('resource').prlimit(os.getppid(), __import__('resource').RLIMIT_CPU)",
    "a signal that the kernel sends": "__import__('fcntl').fcntl(os.pipe()[0], 8, os.getppid())",
    "memory with a name": "os.memfd_create('x')",
    "shared memory": "__import__('multiprocessing.shared_memory').shared_memory.SharedMemory('x', True, 99)",
    "more processor time": "__import__('resource').setrlimit(__import__('resource').RLIMIT_CPU, (999, 999))",
    "a key of the caller": "os.environ['HF_TOKEN']",
}
NATIVE = (
    "import ctypes\nlibc = ctypes.CDLL(None)\n"
    "print(libc.socket(2, 1, 0), libc.fork(), libc.syscall(57), libc.open(b'/etc/passwd', 0), "
    "libc.open(b'/tmp/made-by-a-program', 65, 384), libc.syscall(435, 0, 0), libc.ptrace(16, libc.getppid(), 0, 0))"
)


def test_programs_are_shut_in(programs):
    """No network, processes, files or keys, neither by Python nor by native code."""
    gold = {text: code_gold([{"input": "", "output": text}]) for text in ("refused", "-1 -1 -1 -1 -1 -1 -1")}
    cases = {name: (attempt(action), gold["refused"]) for name, action in REFUSED.items()}
    cases["native code"] = (NATIVE, gold["-1 -1 -1 -1 -1 -1 -1"])
    responses = [fenced(program) for program, _ in cases.values()]
    grades = programs.grade(responses, [gold for _, gold in cases.values()], grader="code")
    assert dict(zip(cases, verdicts(grades), strict=True)) == dict.fromkeys(cases, CORRECT)
    assert not Path("/tmp/made-by-a-program").exists()


@pytest.mark.usefixtures("programs")
def test_no_program_outlives_its_worker():
    with Grader(1) as grader:
        grader.grade([fenced("import time\ntime.sleep(77)")], [ADD], timeout=0.5, grader="code")
        session = grader.pools["programs"].process.pid

        def running():
            """Count the processes of the pool: bwrap and its init, and the server; no worker or program."""
            count = 0
            for path in Path("/proc").glob("[0-9]*/stat"):
                with contextlib.suppress(OSError):
                    fields = path.read_text().rpartition(")")[2].split()
                    count += int(fields[3]) == session and fields[0] != "Z"
            return count

        wait_until(lambda: running() == 3, "a program lives")


@pytest.mark.parametrize("broken", [None, "#!/bin/sh\necho no namespaces here >&2; exit 1"])
def test_a_system_without_bubblewrap_runs_no_program(monkeypatch, tmp_path, broken):
    if broken:
        (tmp_path / "bwrap").write_text(broken)
        (tmp_path / "bwrap").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    check_bubblewrap.cache_clear()
    with Grader(1) as grader, pytest.raises(ParameterError) as refused:
        grader.grade([fenced(REAL_ADD)], [ADD], grader="code")
    check_bubblewrap.cache_clear()
    assert (refused.value.parameter, refused.value.value) == ("grader", "code")
    assert ("no namespaces here" if broken else "install") in refused.value.reason
    assert grader.pools == {}


def write(folder, name, rows):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_an_own_file_names_its_grader(tmp_path):
    rows = [
        {"id": 1, "question": "Which is a metal?", "grader": "choice", "choices": ["wood", "iron"], "answer": "b"},
        {"id": 2, "question": "Add.", "grader": "code", "tests": ["assert add(1, 2) == 3"]},
        {"id": 3, "question": "Sum.", "grader": "code", "tests": [{"input": "1 2", "output": "3"}]},
        {"id": 4, "question": "1+1?", "answer": 2},
    ]
    which, add, total, plain = load_benchmark(write(tmp_path, "mine.jsonl", rows))
    assert which == Problem("1", "Which is a metal?\n\nA. wood\nB. iron", "B", None, "choice")
    assert (add.grader, json.loads(add.answer)["tests"]) == ("code", ["assert add(1, 2) == 3"])
    said = [INSTRUCTIONS["choice"], INSTRUCTIONS["code"], STDIN_INSTRUCTION, INSTRUCTION]
    assert [instruction_of(problem) for problem in (which, add, total, plain)] == said
    with pytest.raises(ParameterError, match="problem x needs one"):
        instruction_of(Problem("x", "?", "1", grader="some.module:GRADER"))
    assert plain == Problem("4", "1+1?", "2")


def test_bad_rows_are_refused_with_their_line(tmp_path):
    for row, message in (
        ({"grader": "choice", "answer": "C", "choices": ["x", "y"]}, "not the letter of one of its 2"),
        ({"grader": "choice", "answer": "A", "choices": ["x"]}, "2 to 26"),
        ({"grader": "code", "tests": [{"input": "", "output": "x" * (2**22 + 1)}]}, "at most 4194304"),
        ({"grader": "code", "answer": "3"}, "no tests"),
        ({"grader": "code", "tests": ["assert add("]}, "not Python"),
        ({"grader": "poetry", "answer": "A"}, "not one of math, math_verify, choice, text, code"),
        ({"grader": "os:system", "answer": "A"}, "not one of"),
    ):
        path = write(tmp_path, "bad.jsonl", [{"id": 1, "question": "?"} | row])
        with pytest.raises(ParameterError, match=message):
            prepare_problems({"bad": load_benchmark(path)})


def test_a_benchmark_is_a_few_lines_of_yaml(tmp_path):
    others = {"w1": "zero", "w2": "none", "w3": "-1"}
    rows = [{"n": i, "text": f"Which is {i}?", "right": f"it is {i}", **others} for i in range(1, 9)]
    write(tmp_path, "rows.jsonl", rows)
    recipe = tmp_path / "numbers.yaml"
    recipe.write_text(
        "files: rows.jsonl\ngrader: choice\nid: n\nquestion: 'In words. {text}'\nchoices: [right, w1, w2, w3]\n"
        "answer: right\nanswer_as: text\nshuffle: true\ncount: 8\ninstruction: Give one letter in \\boxed{}.\n"
    )
    problems = load_benchmark(recipe)
    assert [problem.id for problem in problems] == [f"numbers/{i}" for i in range(1, 9)]
    assert len({problem.answer for problem in problems}) > 1  # shuffled
    for i, problem in enumerate(problems, start=1):
        assert f"\n{problem.answer}. it is {i}" in problem.question
        assert problem.question.startswith(f"In words. Which is {i}?\n\nA. ")
        assert instruction_of(problem) == "Give one letter in \\boxed{}."
    assert problems == load_benchmark(str(recipe))
    assert load_benchmark(recipe, limit=2) == problems[:2]
    assert shuffled("numbers/1", 4) == shuffled("numbers/1", 4)
    recipe.write_text(recipe.read_text().replace("count: 8", "count: 9"))
    with pytest.raises(ParameterError, match="8 problems, expected 9"):
        load_benchmark(recipe)


def test_bad_recipes_are_refused_in_a_sentence(tmp_path):
    for text, message in (
        ("question: q\nfiles: x.jsonl", "the column with the answer"),
        ("question: q\nfiles: x.jsonl\ngrader: code", "the column with the tests"),
        ("question: q\nfiles: x.jsonl\nanswer: a", "at x.jsonl in"),
        ("question: q\nfiles: rows.jsonl\nanswer: b", "row 1 of .*rows.jsonl: it has no column 'b', but 'a', 'c', 'i'"),
        ("question: q\nfiles: rows.jsonl\nanswer: c", "its answer must be a text or a number"),
        ("question: q\nfiles: rows.jsonl\nanswer: a\ntolerance: q", "it has the tolerance 'Which"),
        (
            "question: q\nfiles: rows.jsonl\ngrader: choice\nchoices: c\nanswer: i\nanswer_as: index",
            "not exactly one of its 2",
        ),
        ("question: q\nfiles: latin.csv\nanswer: a", "cannot be read: 'utf-8' codec"),
    ):
        row = {"q": "Which?", "a": "B", "c": ["wood", "iron"], "i": 1.5, "nothing": None}
        write(tmp_path, "rows.jsonl", [row])
        (tmp_path / "latin.csv").write_bytes("q,a\nfa\xe7ade,1\n".encode("latin-1"))
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(ParameterError, match=message):
            load_benchmark(path)


def test_the_page_on_own_benchmarks_shows_what_works(tmp_path, programs):
    page = (ROOT / "docs" / "new_benchmark.md").read_text(encoding="utf-8")
    rows, recipe = (page.split(f"```{language}\n")[1].split("```")[0] for language in ("json", "yaml"))
    (tmp_path / "own.jsonl").write_text(rows)
    problems = load_benchmark(tmp_path / "own.jsonl")
    answers = ["It is iron: \\boxed{B}", fenced(REAL_ADD), fenced(REAL_SUM)]
    assert verdicts(programs.grade(answers, problems)) == [CORRECT] * 3
    assert verdicts(programs.grade(answers[1:] + answers[:1], problems)) == [NO_ANSWER, WRONG, NO_ANSWER]
    write(tmp_path, "rows.jsonl", [{"question": "Which rusts?", "options": ["wood", "iron"], "answer": "B"}] * 198)
    (tmp_path / "my_set.yaml").write_text(f"files: rows.jsonl\n{recipe}")
    science = load_benchmark(tmp_path / "my_set.yaml")
    assert (len(science), science[0].question, science[0].answer) == (198, "Which rusts?\n\nA. wood\nB. iron", "B")
    for name in set(benchmark_names()) - set(BENCHMARKS):
        assert f"`{name}`" in page


WHICH = {"question": "Which rusts?"}
GPQA = {"Correct Answer": "iron"} | {f"Incorrect Answer {i}": name for i, name in enumerate(("wood", "gold", "ice"), 1)}
ROWS = {  # in each hub's schema; the contents are ours
    "arc_challenge": WHICH | {"id": "X1", "answerKey": "2", "choices": {"text": ["wood", "iron"], "label": ["1", "2"]}},
    "gpqa_diamond": {"Record ID": "rec1", "Question": "Which rusts?", **GPQA},
    "mmlu": WHICH | {"choices": ["wood", "iron", "gold", "glass"], "answer": 1, "subject": "x"},
    "mmlu_pro": WHICH | {"question_id": 7, "options": ["wood", "iron", "gold"], "answer": "B"},
    "humaneval": {
        "task_id": "HumanEval/0",
        "entry_point": "add",
        "prompt": "def add(a, b):\n    '''Sum.'''\n",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n",
    },
    "mbpp": {
        "task_id": 11,
        "text": "Write add.",
        "test_setup_code": "",
        "test_list": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"],
    },
}


def test_shipped_recipes_read_their_hubs_schemas(programs):
    assert set(benchmark_names()) == {*BENCHMARKS, *ROWS, *(n for n in benchmark_names() if find_dataset(n).address)}
    twice = ROWS["gpqa_diamond"] | {"Incorrect Answer 2": "iron"}  # one bad row costs no benchmark
    assert to_problem(find_dataset("gpqa_diamond"), 0, twice).answer in "ABCD"
    for name, row in ROWS.items():
        recipe = find_dataset(name)
        assert recipe.hub_id
        assert len(recipe.revision) == 40
        assert recipe.count > 100
        problem = to_problem(recipe, 0, row)
        if problem.grader == "choice":
            right = [line for line in problem.question.splitlines() if line.endswith("iron")]
            assert right == [f"{problem.answer}. iron"]
            assert verdicts(programs.grade([f"\\boxed{{{problem.answer}}}"], [problem])) == [CORRECT]
        else:
            answers = [fenced(REAL_ADD), fenced("def add(a, b): return 3")]
            assert verdicts(programs.grade(answers, [problem] * 2)) == [CORRECT, WRONG]


def test_the_setup_of_mbpp_may_use_what_the_answer_defines(programs):
    own = {"test_setup_code": "pair = Pair(1, 2)\r\npair.b = 5", "test_list": ["assert total(pair) == 6"]}
    problem = to_problem(find_dataset("mbpp"), 0, ROWS["mbpp"] | own)
    answer = "class Pair:\n    def __init__(self, a, b): self.a, self.b = a, b\ndef total(p): return p.a + p.b"
    assert verdicts(programs.grade([fenced(answer), fenced(answer + " + 1")], [problem] * 2)) == [CORRECT, WRONG]


@pytest.mark.requires_data
def test_humaneval_calls_its_own_solutions_correct_and_none_without_a_body(programs, data_dir):
    file = data_dir / "benchmarks" / "small" / "humaneval.jsonl"
    if not file.is_file():
        pytest.skip(f"needs {file}")
    rows = [json.loads(line) for line in file.open(encoding="utf-8")]
    problems = load_benchmark("humaneval", data_dir=data_dir)
    solved = programs.grade([fenced(row["question"] + row["answer"]) for row in rows], problems, timeout=9)
    empty = programs.grade([fenced(row["question"] + "    return None") for row in rows], problems, timeout=9)
    assert (verdicts(solved), verdicts(empty)) == ([CORRECT] * 164, [WRONG] * 164)


def fill(store, name, texts):
    frame = pd.DataFrame({"benchmark": name, "problem": list(texts), "index": 0, "text": list(texts.values())})
    store.append(frame.assign(tokens=1, finish_reason="stop"))


def test_a_store_notes_the_grader_and_grades_anew_when_it_changes(tmp_path, grader, monkeypatch):
    store = SampleStore(tmp_path / "store")
    fill(store, "which", {"p": "Answer: C", "q": "Answer: B"})
    fill(store, "sums", {"m": "\\boxed{2}"})
    problems = [Problem("p", "?", "C", grader="choice"), Problem("q", "?", "C", grader="choice")]
    everything = {"which": problems, "sums": [Problem("m", "1+1?", "2")]}
    grade_store(store, everything, grader.grade, progress=False)
    assert store.counts().set_index("problem")["correct"].to_dict() == {"m": 1, "p": 1, "q": 0}
    assert sorted(gold[2] for gold in store.golds().values()) == [*[grader_version("choice")] * 2, "math 3"]
    table = audit_store(store, everything, progress=False)
    assert (table.attrs["samples"], table.attrs["not_math"]) == (1, 2)

    calls = []

    def counting(responses, golds, answer):
        calls.extend(responses)
        return grader.grade(responses, golds, answer=answer)

    grade_store(store, everything, counting, progress=False)
    assert calls == []
    newer = AnswerGrader(**{**vars(find_grader("choice")), "version": "99"})
    monkeypatch.setattr("quagmire_utils.grading.registry.GRADERS", {"choice": newer})
    find_grader.cache_clear()
    grade_store(store, everything, counting, progress=False)
    find_grader.cache_clear()
    assert sorted(calls) == ["Answer: B", "Answer: C"]
    assert store.golds()["which", "p"][2] == "choice 99"


def test_a_grader_of_ones_own_is_named_in_yaml(tmp_path, monkeypatch):
    """The module lies beside the file that names it; the code is the page's on benchmarks of one's own."""
    page = (ROOT / "docs" / "new_benchmark.md").read_text(encoding="utf-8")
    own = re.search(r"```python\n(# yes_no\.py.*?)```", page, re.DOTALL)[1]
    (tmp_path / "own_grader_of_a_test.py").write_text(own)
    monkeypatch.setattr(sys, "path", list(sys.path))
    write(tmp_path, "rows.jsonl", [{"q": "Is iron a metal?", "a": "yes"}])
    (tmp_path / "metals.yaml").write_text(
        "files: rows.jsonl\nquestion: q\nanswer: a\ngrader: own_grader_of_a_test:YES_NO\n"
    )
    (problem,) = prepare_problems({"metals": load_benchmark(tmp_path / "metals.yaml")})["metals"]
    assert instruction_of(problem) == "Say yes or no."
    assert (grader_version("math"), grader_version("math_verify")) == ("math 3", None)
    assert grader_version(problem.grader) == "own_grader_of_a_test:YES_NO 1"
    with Grader(1) as grader:
        assert verdicts(grader.grade(["yes, it is", "no", "hm"], [problem] * 3)) == [CORRECT, WRONG, NO_ANSWER]
    for kind in ("raise SystemExit(3)", "def (", "x = undefined", "import no_such_module_anywhere"):
        (tmp_path / "broken_grader_of_a_test.py").write_text(kind)
        with pytest.raises(ParameterError, match="X' cannot be imported"):
            find_grader("broken_grader_of_a_test:X")
    for name in ("own_grader_of_a_test:NONE", "no_such_module_anywhere:X", "own_grader_of_a_test:judge", "a;b:c"):
        with pytest.raises(ParameterError, match="grader"):
            find_grader(name)


FAULTY = """
import time
from quagmire_utils.grading import AnswerGrader, Verdict
whole = lambda response: (0, len(response))
fails = lambda *_: 1 / 0
right = lambda *_: Verdict.CORRECT
RAISES, NONSENSE = AnswerGrader("1", whole, fails), AnswerGrader("1", whole, lambda *_: "perhaps")
OBJECT, SLOW = AnswerGrader("1", whole, lambda *_: object()), AnswerGrader("1", whole, lambda *_: time.sleep(60))
NOWHERE, TEXTS = AnswerGrader("1", lambda r: (0, 10**30), right), AnswerGrader("1", lambda r: ("a", "b"), right)
LOST, HUGE = AnswerGrader("1", fails, right), AnswerGrader("1", whole, lambda *_: bytearray(2**33))
SILENT, GOOD = AnswerGrader("1", lambda r: None, right), AnswerGrader("1", whole, right)
"""


def test_a_faulty_grader_of_ones_own_costs_its_own_answers_only(tmp_path, monkeypatch):
    (tmp_path / "faulty_grader_of_a_test.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(str(tmp_path))
    wanted = dict.fromkeys(("RAISES", "NONSENSE", "OBJECT", "NOWHERE", "TEXTS", "LOST", "HUGE"), ERROR)
    wanted |= {"SLOW": TIMEOUT, "SILENT": NO_ANSWER, "GOOD": CORRECT}
    problems = [Problem(name, "?", "g", grader=f"faulty_grader_of_a_test:{name}") for name in wanted]
    with Grader(1, timeout=1.0) as grader:
        assert dict(zip(wanted, verdicts(grader.grade(["yes"] * len(wanted), problems)), strict=True)) == wanted
