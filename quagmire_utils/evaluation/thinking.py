"""How long a reasoning model thinks and answers, and how often the token limit cuts its thinking.

thinking_table(SampleStore("samples/mine"))      # one row per benchmark with answers that hold <think>
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from quagmire_utils.evaluation.store import SampleStore

OPEN, CLOSE = "<think>", "</think>"


def opened(store: SampleStore) -> set[tuple[str, str]]:
    """Return the (benchmark, problem) whose prompt ends with an open <think>: their answers begin with thinking."""
    prompts = store.prompts()
    ends = prompts["prompt"].str.rstrip().str.endswith(OPEN)
    return set(prompts[ends][["benchmark", "problem"]].itertuples(index=False, name=None))


def thinking_table(store: SampleStore) -> pd.DataFrame:
    """Return benchmark (index), cut_thinking, thinking_length and answer_length, over the answers with thinking.

    An answer has thinking if it holds <think> or </think>, or if its prompt ends with an open <think>. It is cut if
    </think> is missing (share of these answers). Lengths are mean characters, before and after </think>. The store is
    read one part at a time. Empty if no answer has thinking.
    """
    thinking, rows = opened(store), []
    for part in store.parts():
        frame = store.read_part(part, ["benchmark", "problem", "text"])
        for benchmark, problem, text in () if frame is None else frame.itertuples(index=False, name=None):
            if OPEN in text or CLOSE in text or (benchmark, problem) in thinking:
                thought, closed, answer = text.rpartition(CLOSE) if CLOSE in text else (text, "", "")
                rows.append((benchmark, not closed, len(thought.replace(OPEN, "", 1).strip()), len(answer.strip())))
    columns = ["benchmark", "cut_thinking", "thinking_length", "answer_length"]
    return pd.DataFrame(rows, columns=columns).groupby("benchmark").mean()
