"""Sees every operator, in any spelling, while a selected region runs; the injector acts."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode_stack,
    _pop_mode,
    _push_mode,
)

from noisescope.inject.dose import SiteRecord
from noisescope.inject.injector import Injector
from noisescope.inject.operators import is_fused_attention, spelling_of
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
        if is_fused_attention(func):
            return self.injector.run_attention(place, func, args, kwargs)
        if func is F.multi_head_attention_forward:
            with self:
                return _OPEN_MULTI_HEAD_ATTENTION(*args, **kwargs)
        spelling = spelling_of(func, args, kwargs)
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
        return tuple(
            self._wrapped(place, record, a)
            if isinstance(a, nn.Parameter) and a.requires_grad
            else a
            for a in args
        )

    def _wrapped(self, place: Place, record: SiteRecord, parameter: nn.Parameter) -> Tensor:
        known = len(place.parameters)
        number = place.parameter_index(parameter)
        if self.injector.error_model.is_null and len(place.parameters) == known:
            return parameter  # counted already: `weight.float()` may give back the weight itself
        return self.injector.wrap_input(record, place.rows, parameter, number)


def _opened(function: Any) -> Callable[..., Any]:
    """Returns a copy of a composite function that does not offer itself to modes as a whole.

    What it calls then meets the modes one by one. Nothing is patched: the copy has its own globals.
    """
    own_globals = {**function.__globals__, "has_torch_function": lambda tensors: False}
    copy = FunctionType(function.__code__, own_globals, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_OPEN_MULTI_HEAD_ATTENTION = _opened(F.multi_head_attention_forward)


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
