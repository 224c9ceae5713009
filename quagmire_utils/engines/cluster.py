"""A Ray cluster: connecting to it, and whether its nodes compute with what this machine has.

    ray start --head --disable-usage-stats --include-dashboard=false    # on one node
    ray start --address=THAT_NODE:6379 --disable-usage-stats            # on each other one

`sampling` and `generalization_loss` take `ray="auto"` on any of them.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Sequence

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.provenance import package_versions

CONNECT_TIMEOUT = 5.0  # seconds; Ray itself tries for minutes
REMEDY = "start one with `ray start --head --disable-usage-stats --include-dashboard=false`"


def connect(address: str) -> bool:
    """Connect this process to the cluster at `address` ("auto": this machine's); False where it already was connected.

    Raises ParameterError, within seconds, where ray is not installed or no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray._private.services import canonicalize_bootstrap_address_or_die
    except ImportError as error:
        raise ParameterError(
            "ray: it is not installed; `pip install -e '.[ray]' -c constraints.txt` does it"
        ) from error
    if ray.is_initialized():
        return False
    if "://" in address:
        raise ParameterError(f"ray: {address} is no address; run this on a node of the cluster, with ray=auto")
    try:
        place = canonicalize_bootstrap_address_or_die(address)
        host, port = place.rsplit(":", 1)
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT).close()
        ray.init(address=place, log_to_driver=False, logging_level="warning")
    except (OSError, ValueError) as error:  # ConnectionError is an OSError
        raise ParameterError(f"ray: no cluster answers at {address}; {REMEDY}") from error
    except RuntimeError as error:  # other versions of Ray or Python
        raise ParameterError(f"ray: {' '.join(str(error).split())}") from error
    return True


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of those of `packages` that are installed here."""
    return {"python": platform.python_version(), **package_versions(packages)}


def different_versions(here: dict[str, str], there: dict[str, str]) -> str:
    """What `there` has in another version than `here`, in words; empty if nothing."""
    return ", ".join(
        f"{name} {there.get(name)}, not {here.get(name)}"
        for name in sorted({*here, *there})
        if here.get(name) != there.get(name)
    )
