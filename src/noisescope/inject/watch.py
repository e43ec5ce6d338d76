"""Follows forward and backward passes and leaves, at every site, what error there would do.

A watch is a runner like a session, but it changes nothing: every output passes as it is, and its
gradient, on the way back, is multiplied with it and added up. Weights get no gradients meanwhile.
Fused attention is taken apart and run again on the way back, so that no probabilities are kept.
"""

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from noisescope.errors import InputError
from noisescope.inject import attention
from noisescope.inject.calls import (
    Arguments,
    Function,
    Layouts,
    layouts_of,
    out_of_place,
    softmax_dim,
    write,
)
from noisescope.inject.effects import SiteEffect, effect_of
from noisescope.inject.injector import for_every_sample
from noisescope.inject.input_effects import (
    WeightCall,
    activation_effect,
    ends_of,
    watched_inputs,
    weight_effect,
)
from noisescope.inject.mode import OperatorMode, remove_mode
from noisescope.inject.operands import (
    Input,
    falls_on_inputs,
    find_inputs,
    reaches_operator,
    value_of,
)
from noisescope.inject.operators import Spelling
from noisescope.inject.residual import watch_residuals
from noisescope.inject.rows import Layout, Rows, known_batch
from noisescope.inject.sites import SiteKey
from noisescope.inject.tokens import TokenReader
from noisescope.inject.tracker import Place, Tracker
from noisescope.inject.weights import DisturbedWeights
from noisescope.models import find_regions
from noisescope.noise import ErrorModel

_KEYS: tuple[Layout, ...] = ("keys", "keys", "channels")
_KEYS_OF_INPUTS: tuple[Layouts, ...] = ({}, {}, {0: "keys"})


class Overwritten(RuntimeError):
    """The model wrote into an output after it was watched: watch copies instead."""


class Watch:
    """Watches every site of a model while it is open.

    Args:
        model: The model.
        error_models: What would be added at each site.
        copies: Whether outputs are copied, for models that write into them afterwards.
        operators: Operators that are watched; None: all. Fused attention stays whole where none of
            its three sites is.
    """

    phases: tuple[str, ...] = ("forward",)

    def __init__(
        self,
        model: nn.Module,
        error_models: Sequence[ErrorModel],
        copies: bool = False,
        operators: Collection[str] | None = None,
    ) -> None:
        self.model = model
        self.error_models = tuple(error_models)
        self.copies = copies
        self.operators = None if operators is None else frozenset(operators)
        self.weights = DisturbedWeights()
        self._is_of_inputs = any(falls_on_inputs(e) for e in self.error_models)
        if len({e.operands for e in self.error_models}) > 1:
            raise InputError("error models of one watch fall on one thing: outputs, or inputs")
        self.seen: dict[SiteKey, bool] = {}  # watched ones; whether a gradient can reach it
        self.boundaries: dict[SiteKey, None] = {}  # of layers, where the residual stream is watched
        self.rows: Rows | None = None  # of the pass, where the pass itself does not tell
        self._effects: dict[SiteKey, SiteEffect] = {}
        self._class_BT: Tensor | None = None
        self._grouped: dict[int, tuple[Rows, Rows]] = {}
        self._regions = find_regions(model)
        self._tracker = Tracker(self, TokenReader(0, 0))
        self._mode = OperatorMode(self, lambda: self._tracker.place)
        self._hooks = ExitStack()

    def begin(self, class_BT: Tensor) -> None:
        """Tells the classes of the positions of the coming batch, int64; see `POSITION_CLASSES`."""
        self._class_BT = class_BT
        self._grouped.clear()
        self._tracker.reader.names = tuple(range(len(class_BT)))

    def take(self) -> dict[SiteKey, SiteEffect]:
        """Returns what the backward passes have left since the last time, and begins anew."""
        taken, self._effects = self._effects, {}
        return taken

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    stack.callback(parameter.requires_grad_, True)
                    parameter.requires_grad_(False)
            names = [region.name for region in self._regions.all]
            self._tracker.attach(self.model, self._regions, names, stack)
            watch_residuals(self._regions, self._see_residual, stack)
            self._hooks = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.close()
        remove_mode(self._mode)
        self._tracker.reset()
        self._grouped.clear()

    # What the mode calls.

    def run(
        self, place: Place, spelling: Spelling, function: Function, args: Any, kwargs: Any
    ) -> Any:
        """Runs a call of an operator and watches its output."""
        key = self._see(place, spelling.operator)
        if not self._is_watched(spelling.operator):
            return function(*args, **kwargs)
        function, args, kwargs, target = out_of_place(spelling, function, args, dict(kwargs))
        batch = known_batch(self._rows(place))
        layouts = layouts_of(spelling.operator, key[3], args, kwargs, batch)
        if self._is_of_inputs:
            result = self._run_on_inputs(self._rows(place), key, function, (args, kwargs), layouts)
            return result if target is None else write(target, result)
        dim = softmax_dim(args, kwargs) if spelling.operator == "softmax" else None
        layout = layouts.get("output", "channels")
        result = self._watch(place, key, function(*args, **kwargs), layout, dim)
        return result if target is None else write(target, result)

    def run_attention(
        self, place: Place, function: Function, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Runs fused attention in its three steps; they run a second time on the way back."""
        keys = [self._see(place, operator) for operator in attention.SITE_OPERATORS]
        if not any(map(self._is_watched, attention.SITE_OPERATORS)):
            return function(*args, **kwargs)
        rows = self._rows(place)

        def run(step: int, compute: Function, *inputs: Any) -> Tensor:
            if self._is_of_inputs and self._is_watched(keys[step][2]):
                made: Tensor = self._run_on_inputs(
                    rows, keys[step], compute, (inputs, {}), _KEYS_OF_INPUTS[step]
                )
                return made
            output: Tensor = compute(*inputs)
            if not self._is_watched(keys[step][2]):
                return output
            if not output.requires_grad:
                output = _beginning(output)
            dim = -1 if step == 1 else None
            return self._passed(rows, keys[step], output, _KEYS[step], dim, is_saved=True)

        def attend(*tensors: Any) -> Tensor:
            return attention.attend(*tensors, **kwargs, run=run)

        return checkpoint(attend, *args, use_reentrant=False, preserve_rng_state=False)

    def wrap_parameters(self, place: Place, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the arguments: weights are not watched."""
        return args

    # What the tracker calls.

    compilable = None

    def enter_region(self) -> None:
        """Turns the mode on."""
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    def leave_region(self) -> None:
        """Turns it off."""
        self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def before_module(self, place: Place, module: nn.Module, args: Any) -> None:
        """Notes a module that is an operator as a whole."""
        place.marks = [self._see(place, str(place.operator))]

    def after_module(self, place: Place, module: nn.Module, output: Any) -> Any:
        """Watches its output."""
        if not self._is_watched(str(place.operator)):
            return None
        dim = -1 if place.operator == "softmax" else None
        return self._watch(place, place.marks[0], output, "channels", dim)

    # Watching.

    def _see(self, place: Place, operator: str) -> SiteKey:
        key = (place.region, place.module, operator, place.next_index(operator))
        if self._is_meant(operator):
            self.seen.setdefault(key, False)
        return key

    def _is_watched(self, operator: str) -> bool:
        return torch.is_grad_enabled() and self._is_meant(operator)

    def _is_meant(self, operator: str) -> bool:
        is_named = self.operators is None or operator in self.operators
        return is_named and all(reaches_operator(e, operator) for e in self.error_models)

    def _see_residual(self, key: SiteKey, stream: Tensor) -> None:
        """Watches the residual stream at a boundary of layers."""
        if torch.is_grad_enabled():
            self.boundaries[key] = None
            self._see_gradient(self._tracker.rows, key, stream, "channels", None)

    def _rows(self, place: Place) -> Rows | None:
        return self.rows if self.rows is not None else place.rows

    def _watch(
        self, place: Place, key: SiteKey, output: Any, layout: Layout, dim: int | None
    ) -> Any:
        """Watches an output; of several, the first."""
        if isinstance(output, tuple) and output:
            return (self._watch(place, key, output[0], layout, dim), *output[1:])
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        rows = self._rows(place)
        if place.region == "embed":
            output = for_every_sample(output, rows)
        if not output.requires_grad:  # nothing before it can be watched
            output = _beginning(output)
        return self._passed(rows, key, output, layout, dim, is_saved=False)

    def _run_on_inputs(
        self,
        rows: Rows | None,
        key: SiteKey,
        function: Function,
        arguments: Arguments,
        layouts: Layouts,
    ) -> Any:
        """Runs a call and watches what goes into it."""
        inputs = find_inputs(function, key[2], *arguments, layouts)
        operands = self.error_models[0].operands

        def watch(value: Tensor, one: Input) -> Tensor:
            def note(x: Tensor, gradient: Tensor) -> None:
                self._note_activation(rows, key, x, gradient, one)

            if not value.requires_grad:
                value = _beginning(value)
            elif self.copies:
                value = value.clone()
            passed: Tensor = _Watched.apply(value, note)  # type: ignore[no-untyped-call]
            return passed

        weight = next((one for one in inputs if one.role == "weights"), None)
        if weight is not None and "weights" in operands:
            args, kwargs = arguments
            first = value_of(inputs[inputs.index(weight) - 1].key, args, kwargs)
            call = WeightCall(
                first.clone() if self.copies else first,
                value_of(weight.key, args, kwargs),
                weight.axis,
                ends_of(kwargs, args) if key[2] == "linear" else None,
                self.weights,
            )
        if "activations" in operands:
            arguments = watched_inputs(inputs, arguments, watch)
        output = function(*arguments[0], **arguments[1])
        self.seen[key] = bool(inputs)
        if weight is None or "weights" not in operands:
            return output
        if key[0] == "embed":
            output = for_every_sample(output, rows)
        if not output.requires_grad:
            output = _beginning(output)
        elif output._is_view():
            output = _without_base(output)  # see `_passed`
        output.register_hook(lambda gradient: self._note_weight(rows, key, call, gradient))
        return output

    @torch.no_grad()
    def _note_activation(
        self, rows: Rows | None, key: SiteKey, value: Tensor, gradient: Tensor, one: Input
    ) -> None:
        if one.axis == -2:
            value, gradient = value.transpose(-2, -1), gradient.transpose(-2, -1)
        grouped = self._group(rows, value.device)
        at, kind = grouped.address(value, key[2], one.layout, 0)
        many = len(self._class_BT) if self._class_BT is not None else 1
        effect = activation_effect(value, gradient, self.error_models, at, kind, many, one.layout)
        self._keep(key, effect)

    @torch.no_grad()
    def _note_weight(
        self, rows: Rows | None, key: SiteKey, call: WeightCall, gradient: Tensor
    ) -> None:
        if call.is_overwritten:
            raise Overwritten(f"the input of {':'.join(map(str, key))} is written into after it")
        grouped = self._group(rows, gradient.device)
        at, kind = grouped.address(gradient, key[2], "channels", 0)
        many = len(self._class_BT) if self._class_BT is not None else 1
        self._keep(key, weight_effect(call, gradient, self.error_models, at, kind, many))

    def _keep(self, key: SiteKey, effect: SiteEffect) -> None:
        """Adds an effect to those of its site."""
        held = self._effects.get(key)
        if held is None:
            self._effects[key] = effect
        else:
            held.add(effect)

    def _passed(
        self,
        rows: Rows | None,
        key: SiteKey,
        output: Tensor,
        layout: Layout,
        dim: int | None,
        is_saved: bool,
    ) -> Tensor:
        """Returns the output, whose gradient will be seen.

        Args:
            rows: Of the pass.
            key: The site.
            output: Its output.
            layout: What the last axis holds.
            dim: The axis of a softmax.
            is_saved: Whether the value is handed to autograd, which a checkpoint computes again.
        """
        self.seen[key] = True
        if is_saved:

            def note(value: Tensor, gradient: Tensor) -> None:
                self._note(rows, key, value, gradient, layout, dim)

            passed: Tensor = _Watched.apply(output, note)  # type: ignore[no-untyped-call]
            return passed
        if self.copies:
            passed = output.clone()
        else:
            # A view that is written into forgets its hooks; F.linear returns views.
            passed = _without_base(output) if output._is_view() else output
        self._see_gradient(rows, key, passed, layout, dim)
        return passed

    def _see_gradient(
        self, rows: Rows | None, key: SiteKey, value: Tensor, layout: Layout, dim: int | None
    ) -> None:
        """Notes what error on a value does, when its gradient comes."""
        # Detached: a tensor would hold its own hook and never be freed.
        held = value.detach().clone() if self.copies else value.detach()
        version = held._version

        def on_gradient(gradient: Tensor) -> None:
            if held._version != version:
                raise Overwritten(f"{':'.join(map(str, key))} is written into after it ran")
            self._note(rows, key, held, gradient, layout, dim)

        value.register_hook(on_gradient)

    @torch.no_grad()
    def _note(
        self,
        rows: Rows | None,
        key: SiteKey,
        value: Tensor,
        gradient: Tensor,
        layout: Layout,
        dim: int | None,
    ) -> None:
        grouped = self._group(rows, value.device)
        at, kind = grouped.address(value, key[2], layout, 0)
        effect = effect_of(
            value,
            gradient,
            self.error_models,
            at,
            kind,
            len(self._class_BT) if self._class_BT is not None else 1,
            is_keys=layout == "keys",
            softmax_dim=dim,
        )
        self._keep(key, effect)

    def _group(self, rows: Rows | None, device: torch.device) -> Rows:
        """Returns rows whose samples are numbered by the batch and whose positions are classes."""
        if rows is None or self._class_BT is None:
            return Rows.of_nothing(0, 0, device)
        known = self._grouped.get(id(rows))
        if known is None:
            class_BT = self._class_BT
            B, T = rows.sample_BT.shape
            if rows is self.rows:  # tokens one by one: they know their row and class already
                made = rows
            else:
                row_BT = torch.arange(B, device=rows.sample_BT.device)[:, None].expand(B, T)
                made = replace(
                    rows,
                    sample_BT=row_BT,
                    position_BT=class_BT[:, :T].to(rows.sample_BT.device),
                    is_named=True,
                    _maps={},
                    _parts={},
                )
            known = self._grouped[id(rows)] = (rows, made)
        return known[1]


def _beginning(output: Tensor) -> Tensor:
    """Returns a copy from which gradients are followed; not a leaf: models may write into it."""
    return output.detach().requires_grad_().clone()


def _without_base(output: Tensor) -> Tensor:
    """Returns the same values in the same memory, as no view of anything."""
    same: Tensor = torch.ops.aten._unsafe_view(output, list(output.shape))
    return same


class _Watched(torch.autograd.Function):
    """The identity; the gradient is shown, with the value, on its way back."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, note: Any) -> Tensor:
        ctx.note = note
        ctx.save_for_backward(value)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        try:
            saved = ctx.saved_tensors
        except RuntimeError as error:
            if "inplace operation" in str(error):
                raise Overwritten("an input is written into after it was read") from error
            raise
        ctx.note(*saved, gradient)
        return gradient, None
