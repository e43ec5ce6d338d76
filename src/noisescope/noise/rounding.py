"""Rounding to a narrower dtype: to nearest, or stochastically so that the dose survives on average.

A function of the tensor and of given random words; it draws nothing itself. Works in float64, where
every step is exact.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch

from noisescope.errors import InputError, near_names

Rounding = Literal["nearest", "stochastic"]

# Mantissa bits that are stored, and the exponent of the smallest subnormal.
_FORMATS = {torch.float16: (10, -24), torch.bfloat16: (7, -133)}


def check_rounding(rounding: str) -> None:
    """Raises InputError unless the name is one of `Rounding`."""
    accepted = get_args(Rounding)
    if rounding not in accepted:
        raise InputError(
            f"rounding {rounding!r}: {' or '.join(repr(a) for a in accepted)} is needed"
            f"{near_names(str(rounding), accepted)}"
        )


def round_to(
    x: torch.Tensor, dtype: torch.dtype, rounding: Rounding, words: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """Returns x in a dtype that is as wide as its own or narrower.

    Stochastic: of the two neighbours a value goes to the upper with probability (value - lower) /
    (upper - lower), to one part in 2**32; so the mean is the value, and values that the dtype holds
    stay as they are, subnormals included. Beyond the dtype's largest finite value there is no upper
    neighbour: such a value, and inf and NaN, are rounded to nearest, as a plain cast does. Nothing
    up to that largest value becomes infinite.

    Args:
        x: float32 or float64 tensor of any shape.
        dtype: float16, bfloat16, or x's own.
        rounding: 'nearest' or 'stochastic'.
        words: Gives the random words, int64 of x's shape; called only where they are needed.

    Source: Gupta et al. 2015, Deep learning with limited numerical precision, section 3.1.
    """
    if rounding == "nearest" or dtype not in _FORMATS:
        return x.to(dtype)
    mantissa_bits, least_exponent = _FORMATS[dtype]
    magnitude = x.abs().to(torch.float64)
    # frexp counts from a mantissa in [1/2, 1): the leading bit is one below its exponent.
    exponent = torch.frexp(magnitude).exponent - 1
    step = torch.exp2((exponent - mantissa_bits).clamp(min=least_exponent).to(torch.float64))
    steps = magnitude / step
    below = steps.floor()
    is_up = (words().to(torch.float64) + 0.5) / 2.0**32 < steps - below
    rounded = torch.copysign((below + is_up) * step, x).to(dtype)
    return torch.where(magnitude <= torch.finfo(dtype).max, rounded, x.to(dtype))
