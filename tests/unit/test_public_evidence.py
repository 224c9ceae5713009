"""Published numbers: every row is whole; groups, statistics and notebooks agree with a second computation."""

import csv
import math
import re
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from quagmire_utils.analysis import claims, public_evidence


def read(name: str) -> list[dict[str, str]]:
    with (public_evidence.FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


ROWS, POINTS = read("pre_post_rl"), read("limit_of_rlvr_curves")


def test_every_row_is_whole_and_leads_to_its_source():
    assert len(public_evidence.load_rows()) == len(ROWS) == 522
    assert len(public_evidence.load_curves()) == len(POINTS) == 1736
    address = re.compile(r"https://(github\.com/\S+/(blob|tree)/[0-9a-f]{40}/|arxiv\.org/abs/)\S+")
    assert all(address.fullmatch(row["url"]) for row in ROWS + POINTS)
    assert not [row["row"] for row in ROWS if row["rl_run"].removesuffix(" (RL)") == row["candidate"]]
    card = (public_evidence.FOLDER / "README.md").read_text(encoding="utf-8")
    for name in {*ROWS[0], *POINTS[0], *(row["source_id"] for row in ROWS)}:
        assert f"`{name}`" in card
    frame = public_evidence.comparable(public_evidence.load_rows())
    assert f"Of 522 rows {len(frame)} are in" in card.replace("\n", " ")


@pytest.mark.parametrize(
    "broken",
    [{"url": "arXiv 2512.11470"}, {"grade": "D"}, {"pass1_post": np.nan, "pass_k_post": np.nan}, {"row": 0}],
    ids=str,
)
def test_a_broken_row_is_refused(tmp_path, monkeypatch, broken, refused):
    rows = pd.read_csv(public_evidence.FOLDER / "pre_post_rl.csv").head(3).astype(object)
    rows.loc[0, list(broken)] = list(broken.values())
    rows.to_csv(tmp_path / "pre_post_rl.csv", index=False)
    monkeypatch.setattr(public_evidence, "FOLDER", tmp_path)
    with refused("pre_post_rl.csv"):
        public_evidence.load_rows()


@pytest.fixture(scope="module")
def groups() -> dict[str, list[dict[str, str]]]:
    """The groups that compare candidates, by hand."""
    found = defaultdict(list)
    for row in ROWS:
        if row["pass1_post"]:
            found[row["group"], row["rl_run"], row["benchmark"], row["pre_stage"] == "base"].append(row)
    return {key[0]: rows for key, rows in found.items() if len({row["candidate"] for row in rows}) > 1}


def test_groups_share_rl_benchmark_and_stage(groups):
    parts = dict(list(public_evidence.comparable(public_evidence.load_rows()).groupby("family")))
    assert parts.keys() == groups.keys()
    for name, rows in groups.items():
        part, several = parts[name], len({row["base_model"] for row in rows}) > 1
        assert part["row"].tolist() == [int(row["row"]) for row in rows]
        kind = "different models" if several else "base checkpoints" if "base" in name else "SFT checkpoints"
        assert set(part["kind"]) == {kind}
        assert part["outcome"].tolist() == pytest.approx([float(row["pass1_post"]) / 100 for row in rows])


def test_tries_worth():
    ks, curve = [1, 2, 4, 8], [0.1, 0.2, 0.4, 0.5]
    assert public_evidence.tries_worth(ks, curve, 0.2) == pytest.approx(2)
    assert public_evidence.tries_worth(ks, curve, 0.3) == pytest.approx(2 * math.sqrt(2))
    assert public_evidence.tries_worth(ks, curve, 0.05) == 0
    assert math.isinf(public_evidence.tries_worth(ks, curve, 0.6))


def numbers(rows: list[dict[str, str]], *columns: str) -> list[np.ndarray]:
    """Columns of a group, of the rows that have all of them."""
    known = [row for row in rows if all(row[column] for column in columns)]
    return [np.array([float(row[column]) for row in known]) for column in columns]


def test_published_verdicts_are_those_of_the_statistics_on_each_group(groups):
    found = claims.published_results()
    assert {name for name, results in found.items() if results} < {c.id for c in claims.all_claims() if c.public}
    loss, score, after = numbers(groups["RETU Qwen2.5-7B"], "val_loss_pre", "pass1_pre", "pass1_post")
    dominated = np.less.outer(score, score) & np.greater.outer(loss, loss)
    lower = (np.less.outer(after, after) + 0.5 * np.equal.outer(after, after))[dominated]
    of_gain, of_loss, of_score = (
        stats.spearmanr(x, y).statistic for x, y in ((loss, (after - score).round(6)), (-loss, after), (score, after))
    )
    expected = {
        "loss_tracks_gain": of_gain,
        "table01_gen_loss": of_loss - of_score,
        "dominated_candidates_end_lower": lower.mean(),
    }
    for name, value in expected.items():
        (result,) = [result for result in found[name] if result.estimate.n >= 6]
        assert (result.family, result.estimate.n) == ("RETU Qwen2.5-7B", 33)
        assert result.estimate.value == pytest.approx(value)
    for result in found["score_explains_part"]:
        score, after = numbers(groups[result.family], "pass1_pre", "pass1_post")
        assert result.estimate.n == len(score)
        if len(score) >= 6:
            assert result.estimate.value == pytest.approx(np.corrcoef(score, after)[0, 1] ** 2)
    count = Counter(result.verdict for result in found["score_explains_part"])
    assert count == {"holds": 1, "fails": 2, "undecided": 1, "too few candidates": 4}
    assert Counter(result.verdict for result in found["table01_pass_k"]) == {"undecided": 2, "too few candidates": 2}
    assert not found["table01_avg_genloss_pass_k"]
    assert not found["mixture_ends_best"]
