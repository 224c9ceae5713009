"""Errors that users meet: each has fields, and one sentence made from them.

raise ParameterError("k", 0, "at least 1")                                     # k must be at least 1, not 0
raise ParameterError("model", path, reason=f"{path} has no tokenizer.json")    # model: ... has no tokenizer.json
"""

from __future__ import annotations

import re
from numbers import Integral


class ParameterError(ValueError):
    """A parameter that cannot work: `parameter` names it, `value` is what was given, `allowed` is what would work."""

    def __init__(self, parameter: str, value: object = None, allowed: str = "", *, reason: str = "") -> None:
        """Make the sentence: "<parameter> must be <allowed>, not <value>", or "<parameter>: <reason>"."""
        if allowed:
            shown = re.sub(r"\s*\n\s*", " ", repr(value))  # a table's takes several lines
            sentence = f"{parameter} must be {allowed}, not {shown}"
        elif reason:
            sentence = f"{parameter}: {reason}"
        else:  # a whole sentence that begins with the parameter, from a notebook's kernel
            sentence, parameter = parameter, re.split(r"[\s:]", parameter, maxsplit=1)[0]
        super().__init__(sentence)
        self.parameter, self.value, self.allowed, self.reason = parameter, value, allowed, reason


def check_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise ParameterError unless `value` is a whole number in this range; True and 2.0 are not."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        limit = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ParameterError(name, value, f"a whole number {limit}")
