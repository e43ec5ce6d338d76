"""Sees every operator, in any spelling, while a selected region runs; a runner acts."""

from collections.abc import Callable
from types import (
    BuiltinFunctionType,
    FunctionType,
    GetSetDescriptorType,
    MethodDescriptorType,
    MethodWrapperType,
    WrapperDescriptorType,
)
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode_stack,
    _pop_mode,
    _push_mode,
)

from noisescope.inject.frames import run_as_is
from noisescope.inject.operators import Spelling, is_fused_attention, spelling_of
from noisescope.inject.tracker import Place

# Functions that are known to be no operators: most calls of a model are of these. Only kinds that
# live as long as their library are kept.
_PLAIN: set[Any] = set()
_LASTING = (BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType)


def _is_lasting(function: Any) -> bool:
    if isinstance(function, MethodWrapperType):  # of an attribute, such as Tensor.shape.__get__
        return isinstance(function.__self__, GetSetDescriptorType)
    return isinstance(function, _LASTING)


class Runner(Protocol):
    """What a mode hands the operators to; an injector is one."""

    phases: tuple[str, ...]

    def run(
        self, place: Place, spelling: Spelling, function: Any, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Runs a call of an operator and returns what the call would."""

    def run_attention(self, place: Place, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Runs fused attention."""

    def wrap_parameters(self, place: Place, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Gives the arguments of a call inside a module that is an operator as a whole."""


class OperatorMode(TorchFunctionMode):
    """A function mode that routes operators to a runner; everything else passes through.

    Args:
        runner: What runs the operators.
        place: Returns where the model is now, or None where nothing is to be touched.
    """

    def __init__(self, runner: Runner, place: Callable[[], Place | None]) -> None:
        super().__init__()
        run_as_is(OperatorMode.__torch_function__)
        self.runner = runner
        self.place = place

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Handles one call; while it runs, this mode is off, so nothing inside is counted twice."""
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break("a part of a model in a noisescope session: compile it whole")
        if func in _PLAIN and "backward" not in self.runner.phases:
            return func(*args) if kwargs is None else func(*args, **kwargs)
        kwargs = kwargs or {}
        place = self.place()
        if place is None:
            return func(*args, **kwargs)
        if place.operator is not None:
            return func(*self.runner.wrap_parameters(place, args), **kwargs)
        if is_fused_attention(func):
            return self.runner.run_attention(place, func, args, kwargs)
        if func is F.multi_head_attention_forward:
            with self:
                return _OPEN_MULTI_HEAD_ATTENTION(*args, **kwargs)
        spelling = spelling_of(func, args, kwargs)
        if spelling is None:
            if _is_lasting(func):
                _PLAIN.add(func)
            return func(*args, **kwargs)
        return self.runner.run(place, spelling, func, args, kwargs)


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
