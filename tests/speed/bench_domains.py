"""Graders of other domains beside the obvious ways, per second: python tests/speed/bench_domains.py (half a minute).

Beside `code`: a new interpreter for each program, and a fork that runs tests and program, as HumanEval's harness does.
Beside `choice`: the pattern "answer is (X)" of many harnesses, and our own reading without a process."""

import os
import re
import signal
import subprocess
import sys

from timing import best_of

from quagmire_utils.data.rows import code_gold
from quagmire_utils.grading import Grader, Verdict
from quagmire_utils.grading.choice import extract

REPEATS = 50  # of each program
RESPONSES = 20_000
OWN = (  # program, tests
    ("def add(a, b):\n    return a + b", "assert add(1, 2) == 3\nassert add([1], [2]) == [1, 2]"),
    ("def add(a, b):\n    return a - b", "assert add(1, 2) == 3"),
    ("from collections import Counter\ndef top(words):\n    return Counter(words).most_common(1)[0][0]",
     "assert top(['a', 'b', 'a']) == 'a'\nassert top([3]) == 3"),
    ("def primes(n):\n    return [p for p in range(2, n) if all(p % q for q in range(2, p))]",
     "assert primes(12) == [2, 3, 5, 7, 11]\nassert len(primes(1000)) == 168"),
)  # fmt: skip


def fresh(program: str, tests: str) -> bool:
    done = subprocess.run([sys.executable, "-I", "-c", f"{program}\n{tests}"], capture_output=True, timeout=60)
    return done.returncode == 0


def forked(program: str, tests: str) -> bool:
    pid = os.fork()
    if not pid:
        signal.alarm(60)
        try:
            exec(f"{program}\n{tests}", {})
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def show(name: str, call, count: int) -> list:
    seconds, result = best_of(3, call)
    print(f"  {name:44s} {count / seconds:10,.0f} /s")
    return result


def show_grading(name: str, responses: list[str], golds: list, expected: list[bool]) -> None:
    """Print a row for one worker and one for all cores; stop if a verdict is not the expected one."""
    for workers in sorted({1, os.cpu_count() or 1}):
        with Grader(workers) as grader:
            grader.grade(responses[:1], golds[:1], grader=name)
            run = lambda grader=grader: grader.grade(responses, golds, grader=name)  # noqa: E731
            grades = show(f"grade, {workers} worker(s), confined", run, len(responses))
        if [grade.verdict == Verdict.CORRECT for grade in grades] != expected:
            sys.exit(f"verdicts of {name} differ from the expected ones")


def compare_code() -> None:
    """Print the table for some programs; stop if a verdict differs from the forks'."""
    cases = OWN * REPEATS
    print(f"\ncode: {len(cases)} programs")
    expected = show("a fork for each, tests within", lambda: [forked(*case) for case in cases], len(cases))
    show("a new interpreter for each, tests within", lambda: [fresh(*case) for case in cases[:50]], 50)
    responses = [f"```python\n{program}\n# {i}\n```" for i, (program, _) in enumerate(cases)]
    show_grading("code", responses, [code_gold(tests, "", "") for _, tests in cases], expected)


def compare_choice() -> None:
    thought = "Iron oxidises in moist air, wood does not. " * 40
    responses = [f"{i}. {thought}\nThe answer is ({'ABCD'[i % 4]})." for i in range(RESPONSES)]
    print(f"\nchoice: {len(responses)} responses of {len(responses[0])} characters")
    pattern = re.compile(r"answer is \(?([A-J])\)?")
    show("one pattern", lambda: [pattern.search(text) for text in responses], RESPONSES)
    show("extract, in the caller's process", lambda: [extract(text) for text in responses], RESPONSES)
    show_grading("choice", responses, ["B"] * RESPONSES, ["ABCD"[i % 4] == "B" for i in range(RESPONSES)])


if __name__ == "__main__":
    compare_code()
    compare_choice()
