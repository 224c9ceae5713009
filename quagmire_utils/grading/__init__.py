"""Grading: does a response end in the gold answer? One grader for benchmark scores, curation and RL rewards.

Implements the paper's grading (Sec. 4, App. B): math-verify decides, gold first. It runs in worker processes that are
killed on their time limit, so that no response, however hostile, hangs or crashes the caller; undecided is not wrong.

    from quagmire_utils.grading import Grader, grade
    grades = grade([r"so it is \\boxed{\\frac{1}{2}}", "no idea"], ["0.5", "7"])     # CORRECT, NO_ANSWER
    with Grader(workers=4, timeout=2.0) as grader:                                   # a pool of one's own
        grades = grader.grade(responses, problems)                                   # golds: strings or Problems

Speed (`python tests/speed/bench_grading.py`) comes from three steps, none of which changes a verdict; the tests hold
each against plain math-verify. Equal (gold, response) pairs are graded once. A response of which math-verify would read
the only box and nothing else (`_only_box` has the argument) is graded by the content of that box, once for all that
share it. If that content and the gold are both integers, they are compared here, without any worker.

Processes: a Grader starts one fresh Python, by a plain subprocess: nothing is forked off a caller that may hold
threads, torch or CUDA, and the caller's `__main__` is not imported. That Python imports math-verify once, forks the
workers, and forks another whenever one dies. A worker's clock is a kernel timer that it starts as it begins a response
and whose signal nothing catches: when it runs out, the kernel ends the worker, whatever it is doing. POSIX only.
"""

from quagmire_utils.grading.pool import Grader, grade
from quagmire_utils.grading.verdicts import Grade, Verdict

__all__ = ["Grade", "Grader", "Verdict", "grade"]
