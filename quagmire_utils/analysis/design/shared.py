"""What the tables share."""

from __future__ import annotations

import pandas as pd

from quagmire_utils.core.records import Records


def last_checkpoints(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last checkpoint of each RL run."""
    keys = ["family", "candidate", "rl_run"]
    return rows[rows["checkpoint"] == rows.groupby(keys)["checkpoint"].transform("max")]


def profile_k(records: Records) -> int:
    """The profile's k (64 where it names none), or the most that the answers before RL allow."""
    before = records.counts.loc[records.counts["stage"] != "rl", "n"]
    k = int(records.manifest["configuration"].get("evaluation", {}).get("k", 64))
    return min(k, int(before.min())) if len(before) else k
