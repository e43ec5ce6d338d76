"""Gaussian error: relative to each value, or absolute.

The formula is written in `error`; on the CPU a fused kernel does the same in one pass. Other
distributions are other files.
"""

import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch

from noisescope.errors import InputError
from noisescope.noise.address import Address
from noisescope.noise.error_model import ErrorModel
from noisescope.noise.fused import has_kernel, perturb_gaussian
from noisescope.noise.philox import standard_normal
from noisescope.noise.rounding import Rounding, check_rounding


@dataclass(frozen=True)
class _Gaussian(ErrorModel):
    """What both kinds share: a checked scale, and the fused kernel where it applies."""

    is_relative: ClassVar[bool]
    scale: float
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        _check_scale(self.scale)
        check_rounding(self.rounding)

    @property
    def is_null(self) -> bool:
        """Whether the scale is 0."""
        return self.scale == 0

    def _perturb(
        self, y_RD: torch.Tensor, at: Address, in_place: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not has_kernel(y_RD):
            return super()._perturb(y_RD, at, in_place)
        out = y_RD if in_place and y_RD.is_contiguous() else None
        return perturb_gaussian(y_RD, at, self.scale, self.is_relative, self.rounding, out)


@dataclass(frozen=True)
class RelativeGaussian(_Gaussian):
    """Adds N(0, 1) * abs(y) * scale.

    Attributes:
        scale: Standard deviation of the error as a share of each value, at least 0.
        rounding: 'nearest' or 'stochastic', to the tensor's dtype.
    """

    is_relative: ClassVar[bool] = True

    def error(self, y_RD: torch.Tensor, at: Address) -> torch.Tensor:
        """Returns N(0, 1) * abs(y) * scale."""
        # Scale first: N(0, 1) * abs(y) could overflow where the error itself does not.
        return standard_normal(at, y_RD.shape[1]).to(y_RD.dtype) * self.scale * y_RD.abs()

    def mean_square(self, y: torch.Tensor) -> torch.Tensor:
        """Returns (scale * y)^2."""
        return (self.scale * y).square_()


@dataclass(frozen=True)
class AbsoluteGaussian(_Gaussian):
    """Adds N(0, 1) * scale.

    Attributes:
        scale: Standard deviation of the error, in the tensor's own unit, at least 0.
        rounding: 'nearest' or 'stochastic', to the tensor's dtype.
    """

    is_relative: ClassVar[bool] = False

    def error(self, y_RD: torch.Tensor, at: Address) -> torch.Tensor:
        """Returns N(0, 1) * scale."""
        return standard_normal(at, y_RD.shape[1]).to(y_RD.dtype) * self.scale

    def mean_square(self, y: torch.Tensor) -> torch.Tensor:
        """Returns scale^2."""
        return torch.full((), self.scale, dtype=y.dtype, device=y.device).square()


def _check_scale(scale: float) -> None:
    is_number = isinstance(scale, Real) and not isinstance(scale, bool)
    if not is_number or not math.isfinite(scale) or scale < 0:
        raise InputError(
            f"noise scale {scale!r}: a finite number of at least 0 is needed; try 0.05"
        )
    if scale > torch.finfo(torch.float32).max:
        raise InputError(f"noise scale {scale!r} is infinite in float32; try 0.05")
