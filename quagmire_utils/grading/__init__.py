"""Grading: does a response end in the gold answer? The same for benchmark scores, curation and RL rewards (App. B).

    grades = grade([r"so it is \\boxed{\\frac{1}{2}}", "no idea"], ["0.5", "7"])     # CORRECT, NO_ANSWER
    with Grader(workers=4, timeout=2.0) as grader:                                 # processes of your own
        grades = grader.grade(responses, problems)                                 # golds: strings or Problems

| `grader`, `pool`, `worker` | hand responses to processes that the kernel ends on their limits |
| `mathematics` | the first grader: math-verify, gold first |
| `choice`, `code`, `registry` | the graders of other domains, and your own |
| `sandbox` | what these processes cannot do |
| `second`, `notation`, `quantities`, `arithmetic` | proofs that two answers are equal or different |

Speed comes from grading equal (gold, response) pairs once, a response with a single box by the content of that box, and
integers without a worker; no verdict depends on it.
"""

from quagmire_utils.grading.grader import Grader, grade
from quagmire_utils.grading.registry import AnswerGrader, prepare_problems
from quagmire_utils.grading.verdicts import UNDECIDED, Grade, Verdict

__all__ = ["UNDECIDED", "AnswerGrader", "Grade", "Grader", "Verdict", "grade", "prepare_problems"]
