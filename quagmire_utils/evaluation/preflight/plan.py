"""What an evaluation is going to do, in numbers and in plain sentences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class Probe:
    """What a few seconds of sampling showed."""

    tokens_per_second: float  # generated, in the last and largest step
    sequences: int  # in flight in that step
    mean_tokens: float | None  # tokens an answer, estimated; None: no answer ended within the probe
    seconds: float
    load: int = 0  # sequences that the run keeps in flight; 0: as many
    busy: bool = True  # whether the rate is the run's; False: with so few in flight it can only be higher


@dataclass(frozen=True, eq=False)
class Plan:
    """What an evaluation is going to do. `table`: problems, answers, already drawn, to draw; by benchmark, in total."""

    model: str
    engine: str
    template: str  # chat or plain; "" where only the server knows
    context_length: int | None  # prompt and answer together; None where only the server knows
    longest_prompt: int | None  # tokens
    max_tokens: int
    table: pd.DataFrame
    prompt_tokens: int | None  # that the prompts of what is left to draw have, each counted once a problem
    disk_at_most: float  # bytes, if every answer meets max_tokens
    disk_free: float  # bytes
    folder: Path
    gpus: int
    unreadable: tuple[str, ...] = ()  # golds that the grader can't read, each as benchmark/problem (answer)
    probe: Probe | None = None

    @property
    def to_draw(self) -> int:
        """Answers that are not in the store yet."""
        return int(self.table.loc["total", "to draw"])

    @property
    def tokens_at_most(self) -> int:
        """Generated tokens if every answer meets max_tokens."""
        return self.to_draw * self.max_tokens

    @property
    def tokens(self) -> float | None:
        """Generated tokens to be expected; None before a probe, or where no answer of it ended."""
        if self.probe is None or self.probe.mean_tokens is None:
            return None
        return self.to_draw * self.probe.mean_tokens

    @property
    def seconds(self) -> float | None:
        """Seconds of sampling to be expected; None as for `tokens`, and where the engine was never busy."""
        if self.tokens is None or not self.probe.busy:
            return None
        return self.tokens / self.probe.tokens_per_second

    @property
    def text(self) -> str:
        """The plan in a few lines of plain sentences."""
        total = self.table.loc["total"]
        names = [str(name) for name in self.table.index if name != "total"]
        shown = ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:7])} and {len(names) - 7} more"
        held = f", {total['already drawn']:,} of them already drawn" if total["already drawn"] else ""
        lines = [
            f"{total['problems']:,} problems of {len(names)} benchmark{'s' * (len(names) > 1)} ({shown}); "
            f"{total['answers']:,} answers{held}; {self.to_draw:,} to draw with {self.engine}."
        ]
        if self.context_length is not None:
            lines.append(
                f"Template {self.template}; the longest prompt has {self.longest_prompt:,} tokens, which with "
                f"{self.max_tokens:,} for the answer fit into the context of {self.context_length:,}."
            )
        lines += [self.warning] if self.unreadable else []
        if not self.to_draw:
            return "\n".join([*lines, "Nothing is left to draw."])
        lines.append(self.estimate)
        lines.append(
            f"Disk: at most {bytes_in_words(self.disk_at_most)} needed, "
            f"{bytes_in_words(self.disk_free)} free where they go."
        )
        return "\n".join(lines)

    @property
    def warning(self) -> str:
        """The golds that cannot be read, in a sentence; empty where there are none."""
        if not self.unreadable:
            return ""
        more = f" and {len(self.unreadable) - 5} more" if len(self.unreadable) > 5 else ""
        return (
            f"The grader cannot read the gold answer of {', '.join(self.unreadable[:5])}{more}: only an answer spelt "
            "the same will count as correct there, and any other as an error."
        )

    @property
    def estimate(self) -> str:
        """Tokens and time, in two lines; empty where nothing is left to draw."""
        if not self.to_draw:
            return ""
        tokens = f"At most {count(self.tokens_at_most)} generated tokens"
        if self.tokens is not None:
            tokens += f", about {count(self.tokens)} at {self.probe.mean_tokens:,.0f} an answer"
        if self.prompt_tokens is not None:
            tokens += f", after {count(self.prompt_tokens)} prompt tokens"
        return f"{tokens}.\n{self._time()}"

    def _time(self) -> str:
        if self.probe is None:
            return "Time: not measured."
        longest = self.tokens_at_most / self.probe.tokens_per_second
        if not self.probe.busy:
            longest = (self.tokens_at_most if self.tokens is None else self.tokens) / self.probe.tokens_per_second
            text = f"Time: not known, at most {duration(longest)} (the run keeps up to {self.probe.load:,} answers in "
            text += "flight, which is faster)"
        elif self.seconds is None:
            text = (
                f"Time: at most {duration(longest)} (no answer ended within the probe, so the mean length is unknown)"
            )
        else:
            text = f"Time: about {duration(self.seconds)}, at most {duration(longest)}"
        if self.gpus:
            hours = (longest if self.seconds is None else self.seconds) * self.gpus / 3600
            text += f"; {'at most' if self.seconds is None else 'about'} {hours:,.2g} GPU-hours on {self.gpus}"
        speed = f"{self.probe.tokens_per_second:,.0f} tokens/s with {self.probe.sequences} answers in flight"
        return f"{text}; from {speed}, measured for {self.probe.seconds:.1f} s."


def count(value: float) -> str:
    """A large number in words: 12.5 million."""
    for size, unit in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:,.3g} {unit}"
    return f"{value:,.0f}"


def bytes_in_words(value: float) -> str:
    """A size in words: 1.5 GiB."""
    for size, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value / 1024:,.1f} KiB"


def duration(seconds: float) -> str:
    """A time in words: days, hours, minutes or seconds."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{max(seconds, 0.1):,.1f} seconds"
