"""The grader's verdict as the reward of other trainers: killable, safe for hostile answers, and never silent.

| trainer | what it is given | its gold answer |
| --- | --- | --- |
| TRL | `GRPOTrainer(reward_funcs=trl_reward, ...)` | column `answer` |
| verl | the path of this file and the name `compute_score` | `reward_model.ground_truth` |
| OpenRLHF | `--reward.remote_url` with the path of this file | column `--data.label_key` |
| verifiers, prime-rl | `"quagmire_utils.training.rewards:verifiers_reward"` as a plugged reward | task field `answer` |
| NeMo Gym | a server's `app.py` that ends with `nemo_gym_server().run_webserver()` | row field `expected_answer` |

A correct answer earns 1, all else 0. An answer that could not be judged (a timeout, an error) earns 0 too, but not in
silence: each trainer gets `undecided` beside the reward, the verdicts of each step are logged, and a step with too many
such answers warns. docs/tools.md has an example for each trainer.
"""

# Annotations are evaluated here, not strings: FastAPI reads those of NeMo Gym's classes.
import asyncio
import logging
import math
import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # verl and OpenRLHF load this file by its path

from quagmire_utils.data import Problem
from quagmire_utils.grading import UNDECIDED, Grade, Grader, Verdict

MOST_UNDECIDED = 0.05  # share of a step's answers above which it warns
_log = logging.getLogger("quagmire.rewards")


def rewards_of(grades: Sequence[Grade]) -> list[float]:
    """Return the rewards of a step's answers: 1 for CORRECT, else 0. Log their verdicts; warn if many are undecided."""
    verdicts = Counter(str(grade.verdict) for grade in grades)
    undecided = sum(map(_undecided, grades))
    said = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    _log.info("%d answers: %s", len(grades), said)
    if undecided > MOST_UNDECIDED * len(grades):
        share = 100 * undecided / len(grades)
        _log.warning("%.0f %% of a step's answers could not be judged and earn 0 like wrong ones (%s)", share, said)
    return [float(grade.verdict == Verdict.CORRECT) for grade in grades]


def _undecided(grade: Grade) -> float:
    return float(grade.verdict in UNDECIDED)


class Reward:
    """A `Grader` for a trainer. workers, timeout: as for `Grader`."""

    step = 256  # answers of a step, where the trainer asks for one at a time

    def __init__(self, workers: int | None = None, *, timeout: float = 5.0) -> None:
        self.grader = Grader(workers, timeout=timeout)
        self._waiting: deque[tuple[object, Problem, Future[Grade]]] = deque()
        self._turn = threading.Lock()
        self._begun: list[Grade] = []  # answers of the present step, of those that came one at a time

    def grade(self, responses: Sequence[object], problems: Sequence[Problem]) -> list[Grade]:
        """Grade n responses to n problems. What is no text, or has no gold answer, is an ERROR."""
        pairs = list(zip(responses, problems, strict=True))
        usable = [isinstance(response, str) and bool(problem.answer.strip()) for response, problem in pairs]
        chosen = [pair for pair, good in zip(pairs, usable, strict=True) if good]
        found = iter(self.grader.grade(*zip(*chosen, strict=True), progress=False) if chosen else ())
        return [next(found) if good else Grade(Verdict.ERROR, "") for good in usable]

    def grade_one(self, response: object, problem: Problem) -> Grade:
        """Grade one response. Those that other threads ask for meanwhile are graded together, by all workers."""
        answer: Future[Grade] = Future()
        self._waiting.append((response, problem, answer))
        with self._turn:
            if not answer.done():
                responses, problems, answers = zip(*[self._waiting.popleft() for _ in list(self._waiting)], strict=True)
                try:
                    grades = self.grade(responses, problems)
                except BaseException as error:
                    for one in answers:
                        one.set_exception(error)
                    raise
                for one, grade in zip(answers, grades, strict=True):
                    one.set_result(grade)
                self._begun += grades
                if len(self._begun) >= self.step:
                    rewards_of(self._begun)
                    self._begun = []
        return answer.result()


@lru_cache
def shared(workers: int | None = None, timeout: float = 5.0) -> Reward:
    """Return the `Reward` that the functions below share in this process."""
    return Reward(workers, timeout=timeout)


os.register_at_fork(after_in_child=shared.cache_clear)  # a fork may copy locks that a thread of its parent held


def _problem(gold: object, tolerance: object = None, grader: str | None = None) -> Problem:
    missing = gold is None or (isinstance(gold, float) and math.isnan(gold))  # the text nan is a product of letters
    gold = "" if missing else str(gold)
    return Problem("", "", gold, None if tolerance is None else float(tolerance), grader=grader or "math")


def trl_reward(
    completions: Sequence[Any], answer: Sequence[object], log_metric: Any = None, log_extra: Any = None, **columns: Any
) -> list[float]:
    """Return rewards of TRL's `completions`, texts or conversations; `columns` may hold `tolerance` and `grader`.

    TRL logs the metric `undecided` and, with the completions, answers and verdicts, which `quagmire import` reads.
    """
    turns = [done if isinstance(done, str) or not done else done[-1] for done in completions]
    texts = [turn.get("content") if isinstance(turn, Mapping) else turn for turn in turns]
    none = [None] * len(texts)
    problems = list(map(_problem, answer, columns.get("tolerance", none), columns.get("grader", none)))
    grades = shared().grade(texts, problems)
    if log_metric is not None:
        log_metric("undecided", sum(map(_undecided, grades)) / max(1, len(grades)))
    if log_extra is not None:
        log_extra("answer", [problem.answer for problem in problems])
        log_extra("verdict", [str(grade.verdict) for grade in grades])
    return rewards_of(grades)


def compute_score(data_source, solution_str, ground_truth, extra_info=None, *, timeout=5.0, **_):
    """Return verl's score, with the verdict behind it. `timeout`: seconds for one answer, of `reward_kwargs`.

    `extra_info` may hold `tolerance` and `grader` (see `Problem`). Each of verl's reward workers has one process.
    """
    info = extra_info or {}
    problem = _problem(ground_truth, info.get("tolerance"), info.get("grader"))
    grade = shared(1, timeout).grade_one(solution_str, problem)
    score = float(grade.verdict == Verdict.CORRECT)
    return {"score": score, "acc": score, "verdict": grade.verdict.value, "undecided": _undecided(grade)}


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[object]) -> dict[str, Any]:
    """Return OpenRLHF's rewards. A query is a prompt with the answer to it."""
    import torch

    texts = [query.removeprefix(prompt) for query, prompt in zip(queries, prompts, strict=True)]
    grades = [shared().grade_one(text, _problem(label)) for text, label in zip(texts, labels, strict=True)]
    rewards = torch.tensor([float(grade.verdict == Verdict.CORRECT) for grade in grades])
    undecided = torch.tensor([_undecided(grade) for grade in grades])
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"undecided": undecided}}


async def verifiers_reward(task, trace) -> float:
    """Reward the last reply of a rollout of verifiers, whose task has an `answer`."""
    problem = _problem(task.answer, getattr(task, "tolerance", None), getattr(task, "grader", None))
    grade = await asyncio.to_thread(shared().grade_one, trace.last_reply, problem)
    trace.record_metric("undecided", _undecided(grade))
    return float(grade.verdict == Verdict.CORRECT)


def nemo_gym_server() -> type:
    """Return a resources server of NeMo Gym, which verifies a response against the row's `expected_answer`."""
    from nemo_gym.base_resources_server import BaseVerifyRequest, BaseVerifyResponse, SimpleResourcesServer

    class VerifyRequest(BaseVerifyRequest):
        expected_answer: str

    class VerifyResponse(BaseVerifyResponse):
        verdict: str
        undecided: float

    class QuagmireServer(SimpleResourcesServer):
        async def verify(self, body: VerifyRequest) -> VerifyResponse:
            parts = [part for output in body.response.output if output.type == "message" for part in output.content]
            text = "".join(part.text for part in parts if part.type == "output_text")
            grade = await asyncio.to_thread(shared().grade_one, text, _problem(body.expected_answer))
            reward = float(grade.verdict == Verdict.CORRECT)
            verdict = {"verdict": grade.verdict.value, "undecided": _undecided(grade)}
            return VerifyResponse(**body.model_dump(), reward=reward, **verdict)

    return QuagmireServer
