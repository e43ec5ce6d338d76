"""How error enters the graph: added to an output, or to a gradient on its way back.

Error is a disturbance of the hardware, not a function the model computes: gradients pass it
unchanged (straight through), as they would on the machine that is being imitated.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from noisescope.noise import (
    AbsoluteGaussian,
    Address,
    Bias,
    BitFlips,
    DeadZone,
    ErrorModel,
    RelativeGaussian,
    Saturation,
    StuckChannels,
    random_words,
    tally,
)
from noisescope.noise.rounding import round_to

TensorMap = Callable[[Tensor], Tensor]

# Error models of which an element's error depends on no other element.
_BY_ELEMENT: frozenset[type[ErrorModel]] = frozenset(
    {
        RelativeGaussian,
        AbsoluteGaussian,
        BitFlips,
        StuckChannels,
        DeadZone,
        Saturation,
        Bias,
    }
)


class _AddError(torch.autograd.Function):
    """Forward: the perturbed value. Backward: the identity."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, perturb: TensorMap) -> Tensor:
        return perturb(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _NoisyGradient(torch.autograd.Function):
    """Forward: the identity. Backward: the perturbed gradient; the site travels with the graph."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, perturb: TensorMap) -> Tensor:
        ctx.perturb = perturb
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.perturb(gradient), None


def add_error(value: Tensor, perturb: TensorMap) -> Tensor:
    """Returns `perturb(value)`, differentiable as the identity where a gradient is wanted."""
    if torch.is_grad_enabled() and value.requires_grad:
        result: Tensor = _AddError.apply(value, perturb)  # type: ignore[no-untyped-call]
        return result
    return perturb(value)


def with_noisy_gradient(value: Tensor, perturb: TensorMap) -> Tensor:
    """Returns the same value; its gradient passes through `perturb` on the way back."""
    result: Tensor = _NoisyGradient.apply(value, perturb)  # type: ignore[no-untyped-call]
    return result


def perturb_rows(
    error_model: ErrorModel,
    clean: Tensor,
    at: Address,
    mask: Tensor | None = None,
    in_place: bool = False,
) -> tuple[Tensor, Tensor]:
    """Perturbs a tensor of any shape, row by row; its memory layout is kept.

    Args:
        error_model: What is added.
        clean: Any shape and strides; the last axis holds the channels of the address.
        at: Where the elements lie.
        mask: bool [R, D] or [R, 1], the elements that are meant; None: all. The others keep their
            value to the last bit.
        in_place: Whether `clean` may be written into.

    Returns:
        The noisy values, a tensor of its own unless `in_place`, and the tally of the elements that
        are meant.
    """
    rows = len(at)
    flat_RD = clean.reshape(rows, clean.numel() // max(1, rows))
    if mask is None:
        in_place = in_place and clean.is_contiguous()
        noisy_RD, counted = error_model.perturb(flat_RD, at, in_place)
    else:
        noisy_RD, counted = _perturb_where(mask, error_model, flat_RD, at)
    if noisy_RD is flat_RD:
        return (clean if in_place else clean.clone()), counted
    return _shaped_like(clean, noisy_RD), counted


def _perturb_where(
    mask: Tensor, error_model: ErrorModel, y_RD: Tensor, at: Address
) -> tuple[Tensor, Tensor]:
    """Returns `ErrorModel.perturb` of the elements that are meant, and its tally of these alone."""
    if error_model.is_null:
        return y_RD, _tally_where(mask, y_RD, y_RD, torch.zeros_like(y_RD))
    if type(error_model) in _BY_ELEMENT:
        # A tally leaves NaN out: the fused kernel then does all in one pass.
        noisy_RD, counted = error_model.perturb(y_RD.masked_fill(~mask, math.nan), at)
        counted = _with_elements(counted, mask, y_RD)
    else:
        noisy_RD, _ = error_model.perturb(y_RD, at)
        wide_RD = y_RD.to(torch.promote_types(y_RD.dtype, torch.float32))
        counted = _tally_where(mask, y_RD, noisy_RD, error_model.error(wide_RD, at))
    return torch.where(mask, noisy_RD, y_RD), counted


def _tally_where(mask: Tensor, clean: Tensor, noisy: Tensor, error: Tensor) -> Tensor:
    """Returns the tally of the elements that are meant; all four are [R, D]."""
    return _with_elements(tally(clean.masked_fill(~mask, math.nan), noisy, error), mask, clean)


def _with_elements(counted: Tensor, mask: Tensor, like: Tensor) -> Tensor:
    """Puts the number of elements that are meant into a tally."""
    elements = mask.expand(like.shape).sum(dtype=torch.float64)
    return torch.cat([elements[None], counted[1:]])


def perturb_probabilities(
    error_model: ErrorModel, clean: Tensor, at: Address, dim: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Perturbs the output of a softmax and makes it a distribution again.

    The error is added in float32, entries are clamped at 0 and divided by their sum, and the result
    is rounded once. An entry that is exactly 0 (a masked key) stays 0, so error never lets a row
    see what was masked; a row whose every entry was clamped away keeps its clean values.

    Args:
        error_model: What is added.
        clean: Probabilities of any shape; the last axis holds the channels of the address.
        at: Where the elements lie.
        dim: The axis that the softmax ran over.
        mask: bool [R, D] or [R, 1], the elements that error is added to; None: all. A distribution
            with none of them keeps its values to the last bit.

    Returns:
        The noisy probabilities in the dtype of `clean`, and the tally. The error that was asked for
        is what remains of it after the division: the part that a softmax takes back is not lost.

    Source: reference implementation of the noisy operators (clamp, then divide by the sum).
    """
    wide = clean.to(torch.promote_types(clean.dtype, torch.float32))
    flat_RD = wide.reshape(-1, clean.shape[-1])
    noisy_RD, _ = error_model.perturb(flat_RD, at)
    if mask is not None:
        noisy_RD = torch.where(mask, noisy_RD, flat_RD)
    kept = noisy_RD.reshape(clean.shape).clamp_min(0).masked_fill(wide == 0, 0)
    total = kept.sum(dim=dim, keepdim=True)
    # Dividing what nothing fell on by its sum would be rounding, counted as error.
    is_hit = (kept != wide).any(dim=dim, keepdim=True)
    asked = torch.where((total > 0) & is_hit, kept / total, wide)
    if mask is not None:
        is_meant = mask.expand(flat_RD.shape).reshape(clean.shape).any(dim=dim, keepdim=True)
        asked = torch.where(is_meant, asked, wide)
    rounded_RD = round_to(
        asked.reshape(flat_RD.shape),
        clean.dtype,
        error_model.rounding,
        lambda: random_words(at, flat_RD.shape[1], stream=1),
    )
    noisy = _shaped_like(clean, rounded_RD)
    if mask is None:
        return noisy, tally(clean, noisy, asked - wide)
    flat = (t.reshape(flat_RD.shape) for t in (clean, noisy, asked - wide))
    return noisy, _tally_where(mask, *flat)


def _shaped_like(clean: Tensor, noisy_RD: Tensor) -> Tensor:
    """Gives noisy rows the shape and the strides of the clean tensor."""
    # No view: models add to outputs in place, which autograd forbids on views from our function.
    noisy: Tensor = torch.ops.aten._unsafe_view(noisy_RD, list(clean.shape))
    if noisy.stride() == clean.stride():
        return noisy
    return torch.empty_like(clean).copy_(noisy)
