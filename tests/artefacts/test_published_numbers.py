"""Every number of the notebooks on published numbers, computed a second way from the CSV files and the counts."""

import itertools
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from notebook_cells import run_cells
from scipy import stats

from quagmire_utils.analysis import public_evidence

RESAMPLES = 60
COLUMNS = {"Pass@1": "pass1_pre", "Pass@8": "pass_k_mid_pre", "Pass@k": "pass_k_pre", "loss": "val_loss_pre"}
MEASURES = ("spearman", "r2", "regret")
TRUST = {"all": ("A", "A-", "B", "C"), "without C": ("A", "A-", "B"), "A and A- alone": ("A", "A-")}
Numbers = np.ndarray

pytestmark = pytest.mark.slow


def executed(name: str, folder: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUAGMIRE_OUTPUT", str(folder))
        return run_cells(name, n_resamples=RESAMPLES)


def measure(x: Numbers, y: Numbers) -> dict[str, float]:
    """Rank correlation, R² and regret of a predictor; NaN where they are not defined."""
    flat = len(set(x)) == 1 or len(set(y)) == 1
    correlate = lambda a, b: math.nan if flat else float(np.corrcoef(a, b)[0, 1])  # noqa: E731
    top = [after for before, after in zip(x, y, strict=True) if before == max(x)]
    values = correlate(stats.rankdata(x), stats.rankdata(y)), correlate(x, y) ** 2, max(y) - sum(top) / len(top)
    return dict(zip(MEASURES, values, strict=True))


def draws(n: int) -> Numbers:
    return np.random.default_rng(0).integers(n, size=(RESAMPLES, n))


def ends(values: list[float]) -> tuple[float, float]:
    defined = [value for value in values if not math.isnan(value)]
    return tuple(np.quantile(defined, [0.025, 0.975])) if defined else (math.nan, math.nan)


def verdict(low: float, high: float, below: bool = False) -> str:
    low, high = (-high, -low) if below else (low, high)
    return "for" if low > 0 else "against" if high < 0 else "undecided"


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> dict[str, Any]:
    return executed("real_models", tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def by_hand() -> dict[tuple[str, str], dict[str, Any]]:
    """For each choice of grades, group and predictor: n, the measures, their intervals, and gains over Pass@1."""
    frame, found = pd.read_csv(public_evidence.FOLDER / "pre_post_rl.csv"), {}
    frame["base"] = frame["pre_stage"] == "base"
    for trust, grades in TRUST.items():
        rows = frame[frame["pass1_post"].notna() & frame["grade"].isin(grades)]
        for (group, *_), part in rows.groupby(["group", "rl_run", "benchmark", "base"]):
            for label, column in COLUMNS.items():
                known = part.dropna(subset=[column])
                if part["candidate"].nunique() < 2 or len(known) < 2:
                    continue
                x, base, y = (known[name].to_numpy() for name in (column, "pass1_pre", "pass1_post"))
                x = -x if label == "loss" else x
                samples = [np.arange(len(y)), *draws(len(y))]
                mine, theirs = ([measure(one[rows], y[rows]) for rows in samples] for one in (x, base))
                gains = {name: [a[name] - b[name] for a, b in zip(mine, theirs, strict=True)] for name in MEASURES}
                models = len(set(known["base_model"])) > 1
                kind = "different models" if models else "base checkpoints" if "base" in group else "SFT checkpoints"
                drawn = {name: [one[name] for one in mine] for name in MEASURES}
                found[trust, group, label] = {"n": len(y), "kind": kind, "drawn": drawn, "gains": gains}
    return found


def test_every_group(real, by_hand):
    values = real["values"].set_index(["trust", "group", "predictor"])
    assert set(values.index) == set(by_hand)
    for key, mine in by_hand.items():
        row = values.loc[key]
        assert (row["n"], row["kind"]) == (mine["n"], mine["kind"])
        for name in MEASURES:
            assert row[name] == pytest.approx(mine["drawn"][name][0], nan_ok=True)
            wanted = ends(mine["drawn"][name][1:])
            assert (row[f"{name} low"], row[f"{name} high"]) == pytest.approx(wanted, nan_ok=True)
            sure = verdict(*ends(mine["gains"][name][1:]), name == "regret") if mine["n"] >= 6 else "too few"
            assert row[f"by {name}"] == ("" if key[2] == "Pass@1" else sure)


def test_groups_together(real, by_hand):
    judged = real["judged"].set_index(["trust", "kind", "predictor", "measure"])
    order = real["values"].drop_duplicates(["trust", "kind", "group"])
    assert len(judged) == 63
    for (trust, kind, label, name), row in judged.iterrows():
        names = order.loc[(order["trust"] == trust) & (order["kind"] == kind), "group"]
        mine = [by_hand[trust, one, label] for one in names if (trust, one, label) in by_hand]
        mine = [one for one in mine if one["n"] >= 4]
        assert (row["groups"], row["checkpoints"]) == (len(mine), sum(one["n"] for one in mine))
        assert row["gain"] == pytest.approx(np.mean([one["gains"][name][0] for one in mine]))
        assert row["verdict"] == (verdict(row["low"], row["high"], name == "regret") if len(mine) > 2 else "undecided")


def test_the_loss_after_equal_rl_and_pairs_of_recipes(real):
    frame = pd.read_csv(public_evidence.FOLDER / "pre_post_rl.csv")
    retu = frame[(frame["group"] == "RETU Qwen2.5-7B") & (frame["pre_stage"] == "SFT")]
    for row in real["equal"].itertuples():
        y = retu[{"best of each run": "pass1_post", "after equal RL": "pass1_post_equal"}[row.outcome]].to_numpy()
        series = -retu["val_loss_pre"].to_numpy(), retu["pass1_pre"].to_numpy()
        drawn = [np.arange(len(y)), *draws(len(y))]
        loss, score = ([measure(x[rows], y[rows])["spearman"] for rows in drawn] for x in series)
        low, high = ends([a - b for a, b in zip(loss[1:], score[1:], strict=True)])
        assert row[2:] == pytest.approx((33, score[0], loss[0], low, high, verdict(low, high)))
    recipes = defaultdict(list)
    for row in frame[frame["source_id"].str.startswith("rl_excursions") & (frame["pre_stage"] == "SFT")].itertuples():
        recipes[row.benchmark, row.candidate.split(" at ")[1]].append(row)
    pairs = [pair for rows in recipes.values() for pair in itertools.combinations(rows, 2)]
    assert len(real["pairs"]) == len(pairs) == 12
    for label in ("Pass@1", "Pass@8", "Pass@k"):
        right = [(getattr(a, COLUMNS[label]) > getattr(b, COLUMNS[label])) == (a.pass1_post > b.pass1_post)
                 for a, b in pairs]  # fmt: skip
        assert real["pairs"][label].sum() == sum(right)


@pytest.fixture(scope="module")
def tries(tmp_path_factory) -> dict[str, Any]:
    return executed("rl_is_worth_k_tries", tmp_path_factory.mktemp("tries"))


def reach(ks: Numbers, curve: Numbers, after: float) -> float:
    """The k at which the curve reaches `after`, by its pieces."""
    if after < curve[0] or after > curve[-1]:
        return 0.0 if after < curve[0] else math.inf
    for (k, low), (next_k, high) in itertools.pairwise(zip(ks, curve, strict=True)):
        if low <= after <= high and high > low:
            return float(k * (next_k / k) ** ((after - low) / (high - low)))
    return float(ks[list(curve).index(after)])


def test_published_pairs(tries):
    frame, curves = pd.read_csv(public_evidence.FOLDER / "limit_of_rlvr_curves.csv"), {}
    for (*name, stage), part in frame.groupby(["base_model", "rl_run", "benchmark", "stage"]):
        curves.setdefault(tuple(name), {})[stage] = part.sort_values("k")[["k", "pass_k"]].to_numpy().T
    pairs = tries["pairs"].set_index(public_evidence.CURVE)
    assert len(pairs) == len(curves) == 33
    for name, row in pairs.iterrows():
        (ks, base), (_, after) = curves[name]["base"], curves[name]["rl"]
        assert row["tries"] == pytest.approx(reach(ks, base, after[0]))
        assert (row["before"], row["after"]) == (base[0], after[0])
    assert tries["median"] == pytest.approx(np.median(pairs["tries"]))
    assert tries["low"] < tries["median"] < tries["high"]


def test_which_k_predicts_best(tries):
    pairs = tries["pairs"]
    pairs = pairs[pairs["base_model"] != "DeepSeek-R1-Distill-Qwen-14B"]  # its curve ends at k = 59
    for label, found in tries["best"].groupby("pairs"):
        table = pairs[pairs["rl_run"] == "SimpleRL-Zoo"].copy() if label == "within benchmark" else pairs
        if label == "within benchmark":
            columns = [*tries["ks"], "after"]
            table[columns] -= table.groupby("benchmark")[columns].transform("mean")
        assert set(found["n"]) == {len(table)} == {{"all pairs": 32, "within benchmark": 24}[label]}
        r2 = [stats.linregress(table[k], table["after"]).rvalue ** 2 for k in found["k"]]
        assert found["R²"].tolist() == pytest.approx(r2)
        assert (found["low"] <= found["R²"]).all()
        assert (found["R²"] <= found["high"]).all()
        best = found.loc[found["R²"].idxmax()]
        assert best["over k = 64, value"] == pytest.approx(max(r2) - r2[list(found["k"]).index(64)], abs=1e-9)


def test_our_own_records(tries):
    counts, grid, chances = tries["records"].counts, tries["grid"], {}
    keys = ["family", "candidate", "stage", "rl_run", "checkpoint"]
    for k in grid:
        chance = [1 - math.comb(128 - c, int(k)) / math.comb(128, int(k)) for c in range(129)]
        chances[k] = np.where(counts["stage"] == "rl", np.nan, np.take(chance, counts["correct"]))
    score = counts[[*keys, "benchmark"]].assign(rate=counts["correct"] / counts["n"]).join(pd.DataFrame(chances))
    means = score.groupby([*keys, "benchmark"]).mean().groupby(keys).mean().reset_index()
    before = means[means["stage"] != "rl"].set_index(["family", "candidate"])
    after = means[means["stage"] == "rl"].groupby(["family", "checkpoint", "candidate"])["rate"].mean()
    for (family, checkpoint), row in tries["table"].iterrows():
        mine = after.loc[family, checkpoint]
        curves = before.loc[family].loc[mine.index, list(grid)].to_numpy()
        reached = np.array([reach(grid, curve, one) for curve, one in zip(curves, mine, strict=True)])
        assert row["candidates"] == len(reached)
        assert row["median"] == pytest.approx(np.median(reached))
        assert (row["beyond the largest k"], row["no try"]) == (np.isinf(reached).sum(), (reached == 0).sum())
        r2 = {k: np.corrcoef(curves[:, list(grid).index(k)], mine)[0, 1] ** 2 for k in tries["ks"]}
        assert row["best k"] == max(r2, key=r2.get)
        assert (row["R² there"], row["R², k = 1"]) == pytest.approx((max(r2.values()), r2[1]))
