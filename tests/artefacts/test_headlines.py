"""The headlines of the analyses of results/mini, recomputed from its records by pandas and scipy alone."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import comb

MINI = Path(__file__).resolve().parents[2] / "results" / "mini"
WHO = ["family", "candidate"]


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    """Pass@k before RL, the losses, and Pass@1 at the first and last step of RL, a row for each SFT candidate."""
    counts = pd.read_parquet(MINI / "counts.parquet")
    n, correct = counts["n"], counts["correct"]
    table = counts[WHO].assign(benchmark=counts["benchmark"], step=counts["checkpoint"])
    for k in (1, 2, 12, 64):
        table[k] = 1 - comb(n - correct, k) / comb(np.maximum(n, k), k)  # after RL, with 16 answers, k = 1 is used
    means = table.groupby([*WHO, "step", "benchmark"]).mean().groupby([*WHO, "step"]).mean()
    after = means.pivot_table(index=WHO, columns="step", values=1)[[32, 512]]
    losses = pd.read_parquet(MINI / "generalization_loss.parquet")
    losses = losses.pivot_table(index=WHO, columns="validation_set", values="nll")
    found = means.xs(0, level="step").join(after).join(losses)
    named = pd.read_parquet(MINI / "candidates.parquet").set_index(WHO)[["scenario", "selection"]]
    return found.join(named).query("selection != 'none'")


def over_sets(scores: pd.DataFrame, judge) -> float:
    """The mean of a figure over the six sets of candidates: a family at one level."""
    levels = [scores[scores["scenario"].str.split("+").map(lambda x, y=y: y in x)] for y in ("dataset", "instance")]
    return float(np.mean([judge(group) for level in levels for _, group in level.groupby("family")]))


def headline(name: str) -> str:
    cells = json.loads((MINI / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    (cell,) = (cell for cell in cells if "headline" in cell["metadata"].get("tags", []))
    return "".join(cell["outputs"][0]["data"]["text/plain"])


def rank(group: pd.DataFrame, predictor: object, step: int = 512) -> float:
    return group[predictor].corr(group[step], method="spearman")


def lost(group: pd.DataFrame, predictor: pd.Series) -> float:
    return 100 * (group[512].max() - group.loc[predictor.idxmax(), 512])


def test_when_pass_at_k_takes_over(scores):
    gap = {step: over_sets(scores, lambda group, s=step: rank(group, 64, s) - rank(group, 1, s)) for step in (32, 512)}
    said = headline("when_pass_k_takes_over")
    assert f"changes by {gap[512] - gap[32]:+.2f} [" in said
    assert f"It ends at {gap[512]:+.2f} [" in said


def test_which_predictor_loses_least(scores):
    points = {
        "Pass@1": over_sets(scores, lambda group: lost(group, group[1])),
        "Pass@64": over_sets(scores, lambda group: lost(group, group[64])),
        "generalization loss": over_sets(scores, lambda group: lost(group, -group["validation"])),
        "a random choice": over_sets(scores, lambda group: 100 * (group[512].max() - group[512].mean())),
    }
    assert all(f"by {name} {value:.1f} [" in headline("predictors") for name, value in points.items())


def test_which_k_ranks_best(scores):
    rho = {
        (k, step): over_sets(scores, lambda g, k=k, s=step: rank(g, k, s)) for k in (1, 2, 12, 64) for step in (32, 512)
    }
    assert "k = 12 [" in headline("which_k")
    assert max((1, 2, 12, 64), key=lambda k: rho[k, 512]) == 12
    assert "k = 2 [" in headline("which_k").split("ranks best")[1]
    assert max((1, 2, 12, 64), key=lambda k: rho[k, 32]) == 2


def test_on_which_traces_the_loss_is_measured(scores):
    change = over_sets(scores, lambda group: rank(group, "validation") - rank(group, "easy"))
    assert f"`easy` traces instead of `validation` change it by {change:+.2f} [" in headline("validation_sets")
