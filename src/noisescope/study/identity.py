"""What a study's numbers stem from: model, configuration, data, and the function that scores.

Two studies of the same identity may share their records.
"""

import functools
import hashlib
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

from noisescope.measure.steps import end_tokens
from noisescope.models import LoadedModel
from noisescope.models.fingerprint import configuration_fingerprint
from noisescope.tasks import Task

_DIGITS = 12
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...))


def fingerprints_of(loaded: LoadedModel, task: Task) -> dict[str, str]:
    """Returns the fingerprints that a study keeps: ``model``, ``configuration`` and ``data``."""
    model = loaded.model
    ends = end_tokens(model) if model.can_generate() else ()
    return {
        "model": loaded.fingerprint,
        "configuration": configuration_fingerprint(model, ends),
        "data": task.fingerprint,
    }


def scoring_of(task: Task) -> dict[str, str | None] | None:
    """Returns the name of a task's scoring function, and a digest of its code.

    The functions that it calls are not followed. One of this package goes by its name alone: its
    code changes with the package's version, which a study compares, and with Python's, which it
    does not.

    Returns:
        `function` and `code`; None where nothing is scored.
    """
    if task.score is None:
        return None
    score: Any = task.score
    while isinstance(score, functools.partial):
        score = score.func
    named = score if hasattr(score, "__qualname__") else type(score)
    name = f"{named.__module__}.{named.__qualname__}"
    if name.startswith("noisescope.") and score is task.score:
        return {"function": name, "code": None}
    text = "\n".join(_texts(task.score))
    return {"function": name, "code": hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]}


def _texts(value: Any, around: tuple[Any, ...] = ()) -> Iterator[str]:
    """Yields what makes a function, or a value in its code, what it is; the same in any process.

    Args:
        value: The function or value.
        around: The values that hold it; one that holds itself is met once.
    """
    if any(value is outer for outer in around):
        return
    around = (*around, value)
    if isinstance(value, _PLAIN):
        yield repr(value)
    elif isinstance(value, frozenset):  # its order is another one in each process
        yield from sorted(text for inner in value for text in _texts(inner, around))
    else:
        parts = _parts(value)
        yield f"{type(value).__name__} of {len(parts)}"
        for part in parts:
            yield from _texts(part, around)


def _parts(value: Any) -> tuple[Any, ...]:
    if isinstance(value, (tuple, list)):
        return tuple(value)
    if isinstance(value, functools.partial):
        return value.func, value.args, sorted(value.keywords.items())
    if isinstance(value, MethodType):
        return (value.__func__,)
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        named = sorted((value.__kwdefaults__ or {}).items())
        return value.__code__, value.__defaults__, named, cells
    if isinstance(value, CodeType):
        return value.co_code, value.co_consts, value.co_names
    call = getattr(type(value), "__call__", None)  # noqa: B004, its code is wanted
    return (call,) if isinstance(call, FunctionType) else ()
