"""Summaries of a sweep's records: candidates, checkpoints and answers by family, and where the time went."""

from __future__ import annotations

import pandas as pd

from quagmire_utils.core.records import CHECKPOINT, Records


def show_candidates(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers behind a figure or table, one row per candidate, rounded."""
    columns = ["family", "candidate", *(["budget"] if "budget" in frame else [])]
    columns += ["pass1", "pass_k", "gen_loss", "outcome", "outcome_last", "n_runs"]
    shown = frame[columns].rename(columns={"pass_k": f"pass{frame['k'].iloc[0]}"} if len(frame) else {})
    return shown.set_index(["family", "candidate"]).round(3)


def records_summary(records: Records) -> pd.DataFrame:
    """Return one row per family: candidates, measured checkpoints, graded answers, and shares of undecided ones."""
    rows = []
    for family, counts in records.counts.groupby("family", sort=False):
        candidates = records.candidates[records.candidates["family"] == family]
        stages = counts.groupby(CHECKPOINT, sort=False).size().reset_index()
        answers = int(counts["n"].sum())
        row = {
            "family": family,
            "stands for": candidates["stands_for"].iloc[0],
            "SFT candidates": int((candidates["selection"] != "none").sum()),
            "measured before RL": int((stages["stage"] != "rl").sum()),
            "RL runs": len(stages.loc[stages["stage"] == "rl", ["candidate", "rl_run"]].drop_duplicates()),
            "checkpoints": len(stages),
            "benchmarks": counts["benchmark"].nunique(),
            "answers graded": answers,
        }
        row |= {f"{name} %": round(100 * counts[name].sum() / answers, 2) for name in ("no_answer", "truncated")}
        row["timeout or error %"] = round(100 * (counts["timeout"].sum() + counts["error"].sum()) / answers, 3)
        rows.append(row)
    return pd.DataFrame(rows).set_index("family")


def time_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the minutes of a sweep by kind of cell and by part; wall time of the cells, which run side by side."""
    columns = [name for name in cells if name.startswith("seconds_") and name != "seconds_total"]
    spent = cells.groupby("kind", sort=False)[[*columns, "seconds_total"]].sum()
    spent["seconds_rest"] = spent["seconds_total"] - spent[columns].sum(axis=1)
    minutes = (spent / 60).rename(columns=lambda name: name.removeprefix("seconds_").replace("_", " "))
    minutes.insert(0, "cells", cells.groupby("kind", sort=False).size())
    minutes.loc["total"] = minutes.sum()
    minutes["cells"] = minutes["cells"].astype(int)
    return minutes[[c for c in minutes if c not in ("rest", "total")] + ["rest", "total"]].round(2)
