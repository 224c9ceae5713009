"""The reward: 1 for an answer that `quagmire_utils.grading` grades as correct, 0 for all else. verl loads it by path.

It is the grader of the benchmark scores, so what RL maximises is what the evaluation measures. Answers are graded in a
process that is killed on its time limit; one for each of verl's reward workers.
"""

import sys

sys.path.append("ROOT OF THE REPOSITORY")

from quagmire_utils.data import Problem
from quagmire_utils.grading import Grader, Verdict

_grader = Grader(workers=1)  # starts its process with the first answer that needs one


def compute_score(data_source, solution_str, ground_truth, extra_info=None, *, timeout=5.0, **_):
    """Return the score and the verdict behind it (`timeout` in seconds; an undecided answer scores 0)."""
    info = extra_info or {}
    tolerance = info.get("tolerance")
    tolerance = None if tolerance is None else float(tolerance)
    problem = Problem("", "", ground_truth, tolerance, grader=info.get("grader", "math"))
    (grade,) = _grader.grade([solution_str], [problem], timeout=timeout, progress=False)
    score = float(grade.verdict == Verdict.CORRECT)
    return {"score": score, "acc": score, "verdict": grade.verdict.value}
