"""Sees every operator, in any spelling, while a selected region runs; the injector acts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode_stack,
    _pop_mode,
    _push_mode,
)

from noisescope.inject.injector import Injector
from noisescope.inject.operators import FUSED_ATTENTION, spelling_of
from noisescope.inject.tracker import Place


class OperatorMode(TorchFunctionMode):
    """A function mode that routes operators to an injector; everything else passes through.

    Args:
        injector: What runs the operators.
        place: Returns where the model is now, or None where nothing is to be touched.
    """

    def __init__(self, injector: Injector, place: Callable[[], Place | None]) -> None:
        super().__init__()
        self.injector = injector
        self.place = place

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Handles one call; while it runs, this mode is off, so nothing inside is counted twice."""
        kwargs = kwargs or {}
        place = self.place()
        if place is None:
            return func(*args, **kwargs)
        if place.operator is not None:
            return func(*self._parameters_wrapped(place, args), **kwargs)
        if func is FUSED_ATTENTION:
            return self.injector.run_attention(place, func, args, kwargs)
        spelling = spelling_of(func, args)
        if spelling is None:
            return func(*args, **kwargs)
        return self.injector.run(place, spelling, func, args, kwargs)

    def _parameters_wrapped(self, place: Place, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Gives the weights of a norm that is written out by hand their noise on the way back."""
        record = place.record
        if record is None or not record.is_selected or "backward" not in self.injector.phases:
            return args
        if not torch.is_grad_enabled():
            return args
        wrapped = []
        for n, value in enumerate(args):
            if isinstance(value, nn.Parameter) and value.requires_grad:
                value = self.injector.wrap_input(record, place.rows, value, 1 + n)
            wrapped.append(value)
        return tuple(wrapped)


def remove_mode(mode: TorchFunctionMode) -> None:
    """Takes every entry of a mode off the stack, wherever an interrupt left it."""
    above: list[Any] = []
    count = sum(m is mode for m in _get_current_function_mode_stack())
    while count:
        top = _pop_mode()
        if top is mode:
            count -= 1
        else:
            above.append(top)
    for other in reversed(above):
        _push_mode(other)


__all__ = ["OperatorMode", "remove_mode"]
