"""The command line itself: its errors, its panels of help, and what several commands share."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from quagmire_utils.core.errors import ParameterError

if TYPE_CHECKING:
    import click

REPRODUCE, OWN, DATA, LARGE = "Reproduce the paper", "Your own models", "Data", "Large runs"


class _Commands(TyperGroup):
    """Turn the errors that users meet into one sentence and an exit status."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        again = shlex.join(["quagmire", *(context.obj or [])])
        try:
            return super().invoke(context)
        except ParameterError as error:
            stop(str(error), 2)
        except KeyboardInterrupt as interrupt:
            stop(str(interrupt) or f"interrupted; what is finished is kept; resume with: {again}", 130)
        except BrokenPipeError:  # the reader of the output has seen enough, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                stop(f"a name in {str(error.filename)[:60]}... is too long for this system", 2)
            stop(f"{error}; resume with: {again}", 1)
        except RuntimeError as error:
            if type(error).__name__ not in ("NotebookError", "SweepError", "EngineError", "GradingError"):
                raise
            stop(str(error), 1)


def stop(sentence: str, status: int) -> None:
    """Print a sentence and end the command with this exit status."""
    print(f"quagmire: {sentence}", file=sys.stderr)
    raise typer.Exit(status)


app = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _about() -> None:
    """Measure SFT checkpoints, rank them, and forecast what RL makes of them (arXiv 2510.01624)."""


Assignments = Annotated[list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help="Set a parameter; repeatable.")]


def assignments(texts: Sequence[str] | None) -> dict[str, str]:
    """Return the pairs of `-p NAME=VALUE`."""
    values: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ParameterError("-p", text, "NAME=VALUE")
        if name in values:
            raise ParameterError("-p", text, reason=f"{name} is given twice")
        values[name] = value
    return values


def place(text: str) -> str:
    """Return a path of the user's folder in full; anything else (a name, an address, a pattern) unchanged."""
    return str(Path(text).resolve()) if Path(text).exists() else text
