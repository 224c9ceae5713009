"""What vLLM's worker processes import first, so that they end with the process that started them.

vLLM 0.32 watches for that only when a worker is ready; killed earlier, its workers went on for minutes.
"""

from __future__ import annotations

import multiprocessing

from quagmire_utils.core.processes import end_with_parent


class EndsWithParent:
    """A `worker_extension_cls` of vLLM that adds nothing: importing it is what counts."""


if (_parent := multiprocessing.parent_process()) is not None:
    end_with_parent(_parent.pid)
