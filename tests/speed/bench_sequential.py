"""Tokens that sequential decisions save against 64 answers to every problem, drawn from recorded shares (`[pairs]`)."""

import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from quagmire_utils.core.records import load_records
from quagmire_utils.evaluation.pass_at_k.sequential import Design, looks

MINI = Path(__file__).resolve().parents[2] / "results" / "mini-v1"


class Fixed(Design):
    @property
    def sizes(self):
        return [self.most]


class World:
    """The candidates of a family before RL."""

    def __init__(self, counts):
        counts = counts.sort_values(["benchmark", "problem"])
        self.candidates = dict(list(counts.assign(share=counts["correct"] / counts["n"]).groupby("candidate")))
        self.benchmarks = next(iter(self.candidates.values()))["benchmark"].to_numpy()
        self.truth = {name: own.groupby("benchmark")["share"].mean().mean() for name, own in self.candidates.items()}
        self.rng = np.random.default_rng(0)

    def draw(self, name, first, last):
        own = self.candidates[name]
        return self.rng.binomial(last - first, own["share"]), np.rint((last - first) * own["mean_tokens"]).astype(int)

    def compare(self, a, b, design):
        """Verdict, share of the tokens of 64 answers to every problem, and whether the verdict is wrong."""
        for look in looks([a, b], self.draw, self.benchmarks, design):
            if (verdict := look.verdict(a, b)) or look.hopeless:
                break
        lead = self.truth[a] - self.truth[b]
        right = {a: lead > 0, b: lead < 0, "equal": abs(lead) <= design.within, "": True}[verdict]
        cost = 64 * sum(self.candidates[name]["mean_tokens"].sum() for name in (a, b))
        return verdict, sum(look.tokens.values()) / cost, not right


def main(pairs=60):
    rows, counts = [], load_records(MINI).counts
    for family, own in counts[counts["stage"] != "rl"].groupby("family"):
        world = World(own)
        every = list(combinations(world.candidates, 2))
        chosen = [every[i] for i in world.rng.permutation(len(every))[:pairs]]
        for these in (False, True):
            design, fixed = Design(these_problems=these), Fixed(these_problems=these, most=64)
            verdicts, used, wrong = zip(*(world.compare(a, b, design) for a, b in chosen), strict=True)
            row = {"family": family, "these problems": these, "pairs": len(chosen), "tokens used": np.mean(used)}
            row |= {"decided": np.mean([v != "" for v in verdicts]), "equal": np.mean([v == "equal" for v in verdicts])}
            row["decided by 64"] = np.mean([world.compare(a, b, fixed)[0] != "" for a, b in chosen])
            rows.append(row | {"wrong": sum(wrong)})
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
