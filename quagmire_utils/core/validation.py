"""Checked settings: frozen pydantic models whose errors name one parameter, and YAML files read into them.

class PageSettings(Settings):
    width: Count = 80

PageSettings(width=0)                         # ParameterError: page.width must be greater than or equal to 1, not 0
PageSettings.load({"widht": 60}, "page")      # ParameterError: page.widht: not a parameter; known here: width
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError, model_validator

from quagmire_utils.core.errors import ParameterError


def _from_text(value: object) -> object:
    """Read a number from text: YAML takes 1e-5 for text."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


Integer = Annotated[int, Strict()]  # neither 2.0 nor true
Count = Annotated[int, Strict(), Field(ge=1)]
Flag = Annotated[bool, Strict()]
Positive = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0), BeforeValidator(_from_text)]
NonNegative = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0), BeforeValidator(_from_text)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1), BeforeValidator(_from_text)]
Share = Annotated[float, Field(strict=True, gt=0, le=1), BeforeValidator(_from_text)]


class Settings(BaseModel):
    """Base of all settings: immutable, without unknown keys, and with ParameterError for what cannot work.

    Subclasses define `_check` for conditions on several fields; what it raises becomes an error about the dotted name.
    """

    model_config = ConfigDict(frozen=True)

    def __init__(self, **values: Any) -> None:
        """Raise ParameterError for values that cannot work; RLSettings(steps=0) calls the parameter rl.steps."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            stem, ending, _ = type(self).__name__.rpartition("Settings")
            raise parameter_error(error, values, stem.lower() if ending else "") from None

    __init__.__pydantic_base_init__ = True  # let pydantic validate nested settings itself, so that it knows their place

    @classmethod
    def load(cls, values: object, where: str = "") -> Self:
        """Make settings of a mapping; `where` is its dotted name in errors. Raises ParameterError."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise parameter_error(error, values, where) from None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: object) -> object:
        if isinstance(values, Mapping):
            for key in values:
                if key not in cls.model_fields:
                    known = ", ".join(cls.model_fields)
                    raise ParameterError(str(key), values[key], reason=f"not a parameter; known here: {known}")
        return values

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        self._check()
        return self

    def _check(self) -> None:
        pass

    def _require(self, name: str, holds: object, allowed: str) -> None:
        """Raise ParameterError about a field unless a condition holds."""
        if not holds:
            raise ParameterError(name, getattr(self, name), allowed)

    def replace(self, **changes: Any) -> Self:
        """Return a checked copy with `changes`."""
        return type(self)(**{**dict(self), **changes})


def parameter_error(error: ValidationError, values: object, where: str = "") -> ParameterError:
    """Turn pydantic's first complaint about `values` into a ParameterError that gives the dotted name of the parameter.

    Entries of a list that have a `name` are called by it: families.micro-llama.sources.main.pool.
    """
    first = error.errors(include_url=False)[0]
    name = where
    for step in first["loc"]:
        if step == "[key]":
            continue
        in_list = isinstance(values, list | tuple)
        values = _item(values, step)
        label = _item(values, "name") if in_list else str(step)
        if isinstance(label, str):
            name = f"{name}.{label}" if name else label
        else:
            name = f"{name}[{step}]"
    own = first.get("ctx", {}).get("error")
    if isinstance(own, ParameterError):
        if name.rpartition(".")[2] != own.parameter:  # else the field names itself
            name = f"{name}.{own.parameter}" if name else own.parameter
        return ParameterError(name, own.value, own.allowed, reason=own.reason)
    name = name or "settings"
    if first["type"] == "missing":
        return ParameterError(name, reason="is missing")
    message = re.sub("^(Value error,|Tuple|Dictionary) | after validation", "", first["msg"])
    _, technical, allowed = message.partition("Input should be ")
    if not technical:
        return ParameterError(name, first["input"], reason=message)
    allowed = re.sub("a valid (dictionary|mapping).*", "a mapping", allowed).replace("a valid tuple", "a list")
    return ParameterError(name, first["input"], allowed)


def _item(values: object, step: object) -> object:
    """Return an entry of a list, a mapping or settings; None if there is none."""
    try:
        return values[step]
    except (TypeError, LookupError):
        return getattr(values, str(step), None)


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Refuse a key that is there twice: YAML would drop its first value without a word."""
        node = super().compose_mapping_node(anchor)
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.MarkedYAMLError(problem=f"the key {twice[0][1]} is there twice", problem_mark=node.start_mark)
        return node


def parse_yaml(source: str | Path, what: str) -> Any:
    """Return the value of a YAML text or file. Raises ParameterError, naming `what` it should be, for a bad one."""
    try:
        return yaml.load(source.read_text(encoding="utf-8") if isinstance(source, Path) else source, _Loader)
    except Exception as error:  # dates, numbers and deep lists raise other kinds than YAMLError
        reason = f"{str(source)[:200]} cannot be read as YAML ({' '.join(str(error).split())})"
        raise ParameterError(what, str(source), reason=reason) from error


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises ParameterError, naming `what` it should be, for anything else."""
    values = parse_yaml(path, what)
    if not isinstance(values, dict):
        raise ParameterError(what, str(path), reason=f"{path} must be a mapping, not {type(values).__name__}")
    return values
