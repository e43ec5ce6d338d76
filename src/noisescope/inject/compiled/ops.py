"""What a compiled model calls where noise falls: operators of our own, opaque to the compiler.

The graph holds a site's number and nothing of a session: error model, seed, draw and rows are
looked up when the operator runs, so a compiled model serves every session of its shape. Importing
this registers the operators.
"""

import itertools
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from noisescope.errors import InputError
from noisescope.inject.operands import Input
from noisescope.inject.rows import Layout, Rows
from noisescope.inject.sites import SiteKey

# A captured graph of kernels would run without the Python that these are.
_UNSAFE = (torch.Tag.cudagraph_unsafe,)
# Passes whose backward pass may still come.
_REMEMBERED_PASSES = 4096


class Perturber(Protocol):
    """What perturbs at a site while a compiled model runs; a session and a ride are some."""

    def perturb_at(
        self, key: SiteKey, rows: Rows | None, value: Tensor, layout: Layout, dim: int
    ) -> Tensor:
        """Returns the perturbed output of a site, a new tensor, and notes the dose."""

    def perturb_gradient_at(
        self,
        key: SiteKey,
        rows: Rows | None,
        gradient: Tensor,
        argument: int,
        layout: Layout,
        is_parameter: bool,
    ) -> Tensor:
        """Returns the perturbed gradient of a site's input."""

    def attend_at(
        self,
        keys: list[SiteKey],
        rows: Rows | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Returns fused attention, a new tensor, with error at its three sites."""

    def disturb_input_at(
        self, key: SiteKey, rows: Rows | None, value: Tensor, number: int, one: Input, is_last: bool
    ) -> Tensor:
        """Returns a disturbed weight or activation, a new tensor; the last one ends the call."""


@dataclass(frozen=True)
class Pass:
    """One forward pass of a compiled model in one session.

    Attributes:
        perturber: The session.
        rows: Which sample and position each row is.
        keys: The sites by their numbers.
        handle: int64 tensor without axes, by which a graph names this pass.
    """

    perturber: Perturber
    rows: Rows | None
    keys: list[SiteKey]
    handle: Tensor


_numbers = itertools.count()
_passes: OrderedDict[int, Pass] = OrderedDict()


def begin_pass(perturber: Perturber, rows: Rows | None, keys: list[SiteKey]) -> Pass:
    """Registers a pass that is about to run."""
    number = next(_numbers)
    # A plain tensor, also where the model runs in inference mode: a graph takes it as an input.
    with torch.inference_mode(False):
        handle = torch.tensor(number, device="cpu")
    _passes[number] = begun = Pass(perturber, rows, keys, handle)
    if len(_passes) > _REMEMBERED_PASSES:
        _passes.popitem(last=False)
    return begun


def end_pass(ended: Pass, may_have_gradients: bool) -> None:
    """Forgets a pass, unless its backward pass may come."""
    if not may_have_gradients:
        _passes.pop(int(ended.handle), None)


def forget_passes(perturber: Perturber) -> None:
    """Forgets every pass of a session that is closed."""
    for number in [n for n, p in _passes.items() if p.perturber is perturber]:
        del _passes[number]


def _rows(of: Pass, is_mixed: bool) -> Rows | None:
    return of.rows.mixed() if is_mixed and of.rows is not None else of.rows


@torch.library.custom_op("noisescope::perturb", mutates_args=(), tags=_UNSAFE)
def perturb(
    value: Tensor, handle: Tensor, site: int, layout: str, dim: int, is_mixed: bool
) -> Tensor:
    """Returns an operator's output with error on it."""
    of = _passes[int(handle)]
    return of.perturber.perturb_at(of.keys[site], _rows(of, is_mixed), value, layout, dim)  # type: ignore[arg-type]


@torch.library.custom_op("noisescope::with_noisy_gradient", mutates_args=(), tags=_UNSAFE)
def with_noisy_gradient(
    value: Tensor,
    handle: Tensor,
    site: int,
    argument: int,
    layout: str,
    is_parameter: bool,
    is_mixed: bool,
) -> Tensor:
    """Returns the same values; the gradient is perturbed on the way back."""
    return value.clone()


@torch.library.custom_op("noisescope::perturb_gradient", mutates_args=(), tags=_UNSAFE)
def perturb_gradient(
    gradient: Tensor,
    handle: Tensor,
    site: int,
    argument: int,
    layout: str,
    is_parameter: bool,
    is_mixed: bool,
) -> Tensor:
    """Returns a gradient with error on it."""
    of = _passes.get(int(handle))
    if of is None:
        raise InputError(
            "the backward pass of a compiled model ran when its session was closed: call "
            "backward() inside the 'with' block."
        )
    return of.perturber.perturb_gradient_at(
        of.keys[site],
        _rows(of, is_mixed),
        gradient,
        argument,
        layout,  # type: ignore[arg-type]
        is_parameter,
    )


@torch.library.custom_op("noisescope::disturb_input", mutates_args=(), tags=_UNSAFE)
def disturb_input(
    value: Tensor,
    handle: Tensor,
    site: int,
    number: int,
    role: str,
    axis: int,
    layout: str,
    is_last: bool,
    is_mixed: bool,
) -> Tensor:
    """Returns a weight or an activation with error on it."""
    of = _passes[int(handle)]
    one = Input(number, role, axis, layout)  # type: ignore[arg-type]
    return of.perturber.disturb_input_at(
        of.keys[site], _rows(of, is_mixed), value, number, one, is_last
    )


@torch.library.custom_op("noisescope::attend", mutates_args=(), tags=_UNSAFE)
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    handle: Tensor,
    sites: list[int],
    is_mixed: bool,
) -> Tensor:
    """Returns fused attention with error in it, in rows that share it with clean ones."""
    of = _passes[int(handle)]
    keys = [of.keys[site] for site in sites]
    arguments = (query, key, value, mask, dropout, is_causal)
    options = {"scale": scale, "enable_gqa": enable_gqa}
    output = of.perturber.attend_at(keys, _rows(of, is_mixed), arguments, options)
    return output.contiguous()


@attend.register_fake
def _like_attention(query: Tensor, key: Tensor, value: Tensor, *arguments: Any) -> Tensor:
    return query.new_empty(*query.shape[:-1], value.shape[-1])


@perturb.register_fake
@with_noisy_gradient.register_fake
@perturb_gradient.register_fake
@disturb_input.register_fake
def _one_like(value: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(value)


def _straight_through(ctx: Any, gradient: Any) -> tuple[Any, ...]:
    return gradient, *(None,) * 5


def _straight_through_input(ctx: Any, gradient: Any) -> tuple[Any, ...]:
    return gradient, *(None,) * 8


def _keep_place(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, handle, *ctx.place = inputs
    ctx.save_for_backward(handle)


def _perturb_on_the_way_back(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    (handle,) = ctx.saved_tensors
    noisy = torch.ops.noisescope.perturb_gradient(gradient, handle, *ctx.place)
    return noisy, *(None,) * 6


perturb.register_autograd(_straight_through)
disturb_input.register_autograd(_straight_through_input)
with_noisy_gradient.register_autograd(_perturb_on_the_way_back, setup_context=_keep_place)
