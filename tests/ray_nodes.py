"""Ray clusters of several nodes on one machine, for tests."""

import os
from collections.abc import Iterable, Mapping
from typing import Any


def start_cluster(nodes: Iterable[Mapping[str, Any]]) -> Any:
    """A cluster of these nodes, the head first."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for node in nodes:
        add_node(cluster, node)
    return cluster


def add_node(cluster: Any, node: Mapping[str, Any]) -> None:
    """Ray gives a node 30 seconds to start, which a busy machine may exceed."""
    for attempts_left in (2, 1, 0):
        try:
            cluster.add_node(**node)
        except Exception as error:
            if not attempts_left or "timed out during startup" not in str(error):
                raise
        else:
            return
