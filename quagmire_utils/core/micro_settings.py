"""Settings of a micro base model; `core.settings` holds all others."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.validation import Count, Flag, Fraction, Integer, Positive, Settings, Share

Architecture = Literal["llama", "mistral", "qwen3"]  # of a micro model
# of the microlab; repeated entries weigh more
Styles = Annotated[tuple[Literal["stepwise", "restated"], ...], Field(min_length=1)]
Terms = Annotated[tuple[Annotated[Integer, Field(ge=2, le=14)], ...], Field(min_length=1)]


class PretrainingSettings(Settings):
    """How a micro base model is made: its corpus decides what it knows before any SFT."""

    architecture: Architecture = "llama"
    hidden_size: Annotated[Count, Field(multiple_of=32)] = 96  # heads are 32 wide
    layers: Count = 4
    chat_template: Flag = True  # an "instruct" model; false for a plain base model
    terms: Terms = (2, 2, 3, 3, 4, 4, 5)
    styles: Styles = ("stepwise",)
    examples: Annotated[Integer, Field(ge=0)] = 22400  # first phase: correct worked solutions
    learning_rate: Positive = 3e-3
    fallible_examples: Count = 3200  # second phase: what makes the base unreliable
    fallible_learning_rate: Positive = 5e-4
    slip: Fraction = 0.25  # chance that a digit of a result is replaced by a random one
    direct_fraction: Fraction = 0.15  # share of examples that answer without working
    # operator -> [low, high]: each of its 100 digit facts is misremembered with a chance drawn from that range
    misconceptions: dict[Literal["+", "-", "*"], tuple[Fraction, Fraction]] = Field(default_factory=dict)
    # task tables: share of uncertain facts in the most and in the least common table; of these, the share that never
    # comes out right, and the bounds of the log-uniform chance that another one does
    uncertain: tuple[Fraction, Fraction] = (0.12, 0.24)
    unknown: Fraction = 0.4
    knowledge: tuple[Share, Share] = (0.01, 0.9)
    gives_up: dict[Integer, Fraction] = Field(default_factory=dict)  # number of terms -> chance of stopping half-way
    batch_size: Count = 32
    seed: Integer = 0  # another draw of weights and corpus, if one did not learn the task

    def _check(self) -> None:
        for operator, bounds in self.misconceptions.items():
            if bounds[0] > bounds[1]:
                raise ParameterError(f"misconceptions.{operator}", list(bounds), "[low, high]")
        if self.knowledge[0] > self.knowledge[1]:
            raise ParameterError("knowledge", list(self.knowledge), "[low, high]")
