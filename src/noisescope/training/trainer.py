"""Reaches into a transformers `Trainer` from one of its callbacks.

A callback hears of the beginning and the end of a step, but of no exception between them; and of
rollouts nothing. So the callback wraps methods of the trainer that calls it, on that instance
alone: what was opened is closed as the method is left, however it is left.
"""

import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from noisescope.errors import InputError

# Given the arguments of a call, the context that it runs in.
Around = Callable[..., AbstractContextManager[None]]


def calling_trainer(name: str) -> Any:
    """Returns the `Trainer` that runs now, for one of its callbacks.

    Trainer gives its callbacks the model and the optimizer, but not itself: it is found among the
    callers.

    Args:
        name: The callback's, for the error.

    Raises:
        InputError: No Trainer runs.
    """
    from transformers import Trainer

    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer):
            return caller
        frame = frame.f_back  # type: ignore[assignment]
    raise InputError(
        f"{name} was called outside a transformers Trainer: give it to one, as callbacks=[{name}"
        "(...)], or use noisescope.inject around your own step"
    )


def wrap(trainer: Any, method: str, around: Around) -> None:
    """Runs a method of one trainer inside a context; `unwrap` takes it off.

    A method that was wrapped before for the same owner is wrapped on top: contexts nest.
    """
    original = getattr(trainer, method)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with around(*args, **kwargs):
            return original(*args, **kwargs)

    wrapped.__noisescope__ = (around, original)  # type: ignore[attr-defined]
    setattr(trainer, method, wrapped)


def unwrap(trainer: Any, method: str, around: Around) -> None:
    """Takes a wrapper off again, from wherever it lies among others; harmless where none is."""
    kept: list[Around] = []
    current = getattr(trainer, method)
    while (held := getattr(current, "__noisescope__", None)) is not None:
        outer, current = held
        if outer != around:
            kept.append(outer)
    trainer.__dict__.pop(method, None)
    if getattr(trainer, method) != current:
        setattr(trainer, method, current)  # somebody else's wrapper lies below
    for other in reversed(kept):
        wrap(trainer, method, other)


def bare_model(trainer: Any) -> Any:
    """Returns the model that a trainer trains, out of the wrappers of accelerate."""
    return trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)


def generates(trainer: Any) -> bool:
    """Tells whether a trainer makes rollouts, as TRL's GRPOTrainer and RLOOTrainer do."""
    return callable(getattr(trainer, "_generate", None))
