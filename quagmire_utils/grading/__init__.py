"""Grading: does a response end in the gold answer? The same grades for benchmark scores, curation and RL rewards.

Implements the paper's grading (Sec. 4, App. B): math-verify decides, gold first. It runs in worker processes that are
killed on their time limit, so that no response, however hostile, hangs or crashes the caller; undecided is not wrong.

    from quagmire_utils.grading import Grader, grade
    grades = grade([r"so it is \\boxed{\\frac{1}{2}}", "no idea"], ["0.5", "7"])     # CORRECT, NO_ANSWER
    with Grader(workers=4, timeout=2.0) as grader:                                   # a pool of one's own
        grades = grader.grade(responses, problems)                                   # golds: strings or Problems

The grader is a parameter of a benchmark: `Problem.grader` is math, choice (one letter), code (a program against unit
tests, in a process shut in for it) or one's own (`graders`). What follows is about math; limits and confinement hold
for all of them.

Speed (`python tests/speed/bench_grading_peers.py`) comes from four steps, none of which changes a verdict; the tests
hold each against plain math-verify. Equal (gold, response) pairs are graded once. A response of which math-verify would
read the only box and nothing else (`_only_box` has the argument) is graded by the content of that box, once for all
that share it. If that content and the gold are both integers, they are compared here, without any worker. A worker
compares a number that it has read with each gold once, and takes a short way to what math-verify does slowly (`judge`).

Processes: a Grader starts one fresh Python, by a plain subprocess: nothing is forked off a caller that may hold
threads, torch or CUDA, and the caller's `__main__` is not imported. That Python imports math-verify once, and forks a
worker when there is work for one and whenever one died. A worker's clocks, of wall time and of processor time, are
kernel timers that it starts as it begins a response and whose signals nothing catches: when one runs out, the kernel
ends the worker, whatever it is doing. Slow responses wait until the others are graded; then up to three of them share a
worker's core, while the limit of wall time stays that of each: one that needs two seconds of processor time may need
six of wall time. Where that matters, give a longer `timeout` and a short `processor_limit`. A worker's memory is
limited, and it can make no connection, start no process and write no file: `sandbox` says what is guaranteed on which
system. POSIX only.

Checking it: `audit` has a second grader, which shares no code with math-verify, judge graded responses again, and lists
where the two disagree (`evaluation.audit` does so for a store).
From the shell, without model or GPU: `quagmire grade score|regrade|audit STORE`.
"""

from quagmire_utils.grading.graders import GRADERS, AnswerGrader, find_grader, grader_version
from quagmire_utils.grading.pool import Grader, grade
from quagmire_utils.grading.second import AUDIT_KINDS, audit, read_answer, second_grade, second_opinion
from quagmire_utils.grading.verdicts import UNDECIDED, Grade, Verdict

__all__ = [
    "AUDIT_KINDS",
    "GRADERS",
    "UNDECIDED",
    "AnswerGrader",
    "Grade",
    "Grader",
    "Verdict",
    "audit",
    "find_grader",
    "grade",
    "grader_version",
    "read_answer",
    "second_grade",
    "second_opinion",
]
