"""What a task's own files, its data or the harness object to, as one line for the user.

A task is loaded and run by code, templates and data of many hands: what each of them may raise
stands here once. What is none of these, such as memory that runs out, goes through as it is.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
import yaml  # type: ignore[import-untyped]

from noisescope.errors import InputError, NoisescopeError
from noisescope.extras import require

_Made = TypeVar("_Made")
_MOST_CHARACTERS = 300
_NOT_HERE = ("offline", "couldn't find", "couldn't reach", "doesn't exist on the hub", "connect")


def in_one_line(what: str, run: Callable[[], _Made]) -> _Made:
    """Runs something of a task.

    Args:
        what: What is done, as the line begins: ``cannot load task 'mine'``.
        run: Does it.

    Raises:
        InputError: The task, its data or the harness objects.
    """
    try:
        return run()
    except (NoisescopeError, torch.OutOfMemoryError):
        raise
    except _errors() as error:
        said = told(error)
        is_far = any(words in said.lower() for words in _NOT_HERE)
        if is_far or isinstance(error, FileNotFoundError):
            raise InputError(
                f"{what}: its data are not on this machine, and nothing is fetched ({said}); fetch "
                "them once with datasets.load_dataset, or give files of your own by --include-path"
            ) from error
        raise InputError(f"{what}: {type(error).__name__}: {said}") from error


def told(error: BaseException) -> str:
    """Returns what an error says, on one line."""
    if isinstance(error, StopIteration):
        return "its data are empty"
    return " ".join(str(error).split())[:_MOST_CHARACTERS] or "no more is said"


def _errors() -> tuple[type[BaseException], ...]:
    datasets = require("datasets.exceptions", "eval", "tasks of lm-evaluation-harness")
    jinja = require("jinja2", "eval", "tasks of lm-evaluation-harness")
    return (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        NameError,
        ArithmeticError,
        AssertionError,
        ImportError,
        SyntaxError,
        RuntimeError,
        StopIteration,
        yaml.YAMLError,
        jinja.TemplateError,
        datasets.DatasetsError,
    )
