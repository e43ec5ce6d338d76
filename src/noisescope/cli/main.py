"""Runs the command line: every mistake of a user is one line on standard error and status 2."""

import io
import itertools
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import typer
from rich.console import Console

import noisescope.cli.comparing
import noisescope.cli.evaluating
import noisescope.cli.recommending  # noqa: F401, their commands join the others
from noisescope.cli.commands import Interrupted, app
from noisescope.errors import DoseWarning, NoisescopeError, NoisescopeWarning

# The parser's base class of wrong usage has no public name of its own.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
_INTERRUPTED = 130


def main() -> None:
    """Runs the command line and leaves with its status.

    It is 0, 1 where units were given up, 2 for a user's mistake, 130 when interrupted; gates have
    their own.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal of ASCII shows '?' for a bar
    sys.exit(run())


def run(arguments: list[str] | None = None) -> int:
    """Runs the command line on these arguments and returns the exit status."""
    stderr = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
    with warnings.catch_warnings():
        warnings.simplefilter("default", NoisescopeWarning)
        warnings.simplefilter("ignore", DoseWarning)  # said among the diagnosis's notes
        warnings.showwarning = _show_warning(warnings.showwarning, stderr)
        try:
            status = app(arguments, prog_name="noisescope", standalone_mode=False) or 0
        except (NoisescopeError, torch.OutOfMemoryError, _USAGE_ERROR) as error:
            line = _error_line(error, sys.argv[1:] if arguments is None else arguments)
            if line:  # without a command the help has been printed already
                stderr.print(f"Error: {line}")
            return 2
        except Interrupted as end:
            stderr.print(str(end))
            return _INTERRUPTED
        except (KeyboardInterrupt, typer.Abort):
            status = _INTERRUPTED
        if status == _INTERRUPTED:  # the parser turns Ctrl-C inside a command into this status
            stderr.print("Interrupted: nothing was written.")
        return int(status)


def _error_line(error: Exception, words: Sequence[str]) -> str:
    """Returns what to tell the user, on one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the device's memory is full: give a smaller --batch-size, or --dtype bfloat16"
    if not isinstance(error, _USAGE_ERROR):
        return " ".join(str(error).splitlines())
    said = " ".join(error.format_message().split()).removesuffix(".")
    if not said:
        return ""
    value = _given_value(getattr(error, "param", None), words)
    command = getattr(error.ctx, "command_path", "noisescope")
    return (
        f"{said}{'' if value is None else f' (given: {value!r})'}"
        f"{'' if said.endswith('?') else '.'} Try '{command} --help'."
    )


def _given_value(parameter: Any, words: Sequence[str]) -> str | None:
    """Returns the value of an option on the command line; the parser's message leaves it out."""
    for option in getattr(parameter, "opts", ()):
        for word, following in itertools.pairwise([*words, ""]):
            if word == option:
                return following
            if word.startswith(f"{option}="):
                return word.removeprefix(f"{option}=")
    return None


def _show_warning(otherwise: Callable[..., Any], console: Console) -> Callable[..., None]:
    """Returns a `warnings.showwarning` that prints our own warnings as one line."""

    def show(message: Any, category: type[Warning], *rest: Any, **options: Any) -> None:
        if issubclass(category, NoisescopeWarning):
            console.print(f"Warning: {message}")
        else:
            otherwise(message, category, *rest, **options)

    return show
