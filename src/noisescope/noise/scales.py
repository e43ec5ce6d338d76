"""Scales that elements share: float32, powers of two (E8M0), or E4M3 with a scale of the tensor.

A scale may be 0, where there is nothing to scale or where it is too small to be stored: the
elements are zeros then. Legend: R rows, N blocks of a row; a range is the last axis (low, high).
"""

from typing import Literal

import torch
from torch import Tensor

from noisescope.noise.elements import (
    ELEMENTS,
    Element,
    floor_exponent,
    power_of_two,
)

Scale = Literal["none", "float32", "e8m0_floor", "e8m0_ceil", "e4m3", "e4m3_tensor"]

SCALE_BITS: dict[Scale, int] = {
    "none": 0,
    "float32": 32,
    "e8m0_floor": 8,
    "e8m0_ceil": 8,
    "e4m3": 8,
    "e4m3_tensor": 8,
}
_E4M3 = ELEMENTS["fp8_e4m3"]
# The least normal number of E4M3: without a tensor's scale, torchao stores none below it.
_LEAST_E4M3 = 2.0**-6


def low_and_high(x: Tensor) -> Tensor:
    """Returns the smallest and largest finite value along the last axis, [..., 2]; 0 counts."""
    finite = torch.where(x.isfinite(), x, 0.0)
    low, high = torch.aminmax(finite, dim=-1)
    return torch.stack((low.clamp_(max=0), high.clamp_(min=0)), dim=-1)


def absmax(range_RN2: Tensor) -> Tensor:
    """Returns the largest magnitude of a range, [R, N, 1]."""
    return torch.maximum(-range_RN2[..., :1], range_RN2[..., 1:])


def at_least_tiny(scale: Tensor) -> Tensor:
    """Returns a scale that can be divided by: 1 in place of 0."""
    return torch.where(scale > 0, scale, 1.0)


def symmetric_scale(scale: Scale, element: Element, range_RN2: Tensor, whole: Tensor) -> Tensor:
    """Returns the scale of each block, float32 [R, N, 1], at least 0.

    Args:
        scale: What it is stored as, not ``none``.
        element: What it scales.
        range_RN2: Of each block.
        whole: Of the tensor or row that shares one float32 scale, for ``e4m3_tensor``; its shape
            broadcasts to that of the blocks' ranges.

    Source: OCP Microscaling Formats (MX) Specification 1.0, section 6.3; NVIDIA, Introducing NVFP4
    (2025): tensor scale = absmax / (6 * 448), block scale = e4m3(absmax / 6 / tensor scale).
    """
    absmax_RN1 = absmax(range_RN2)
    if scale in ("e8m0_floor", "e8m0_ceil"):
        return _e8m0_scale(absmax_RN1, element, is_ceil=scale == "e8m0_ceil")
    exact = _divide(absmax_RN1, element.largest)
    if scale == "float32":
        return exact
    if scale == "e4m3":
        return _E4M3.round(exact).clamp_(min=_LEAST_E4M3)
    tensor_scale = _divide(absmax(whole), element.largest * _E4M3.largest)
    return _E4M3.round(exact / at_least_tiny(tensor_scale)) * tensor_scale


def asymmetric_scale(range_RN2: Tensor, intervals: int) -> tuple[Tensor, Tensor]:
    """Returns the scale of each block and its zero point, from 0 to the number of intervals.

    A code is round(x / scale) + zero point.

    Source: ONNX DynamicQuantizeLinear: scale = (high - low) / intervals, zero point =
    round(-low / scale).
    """
    low, high = range_RN2[..., :1], range_RN2[..., 1:]
    scale = _divide(high - low, intervals)
    return scale, (-low / at_least_tiny(scale)).round().clamp(0, intervals)


def _divide(x: Tensor, number: float) -> Tensor:
    # By a tensor: CUDA multiplies by the reciprocal of a number, and its last bit may be another.
    return x / torch.full_like(x, number)


def _e8m0_scale(absmax_RN1: Tensor, element: Element, is_ceil: bool) -> Tensor:
    """Returns powers of two from 2**-127 to 2**127, and 0 for a block of zeros.

    Floor, the OCP MX rule: the top exponents meet, and what lies above the largest element
    saturates. Ceil: the smallest power of two with which nothing saturates.
    """
    if is_ceil:
        least = _divide(absmax_RN1, element.largest)
        exponent = floor_exponent(least)
        exponent = exponent + (power_of_two(exponent) < least)
    else:
        exponent = floor_exponent(absmax_RN1) - element.top_exponent
    return torch.where(absmax_RN1 > 0, power_of_two(exponent.clamp(-127, 127)), 0.0)
