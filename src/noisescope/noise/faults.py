"""Faults of hardware as errors: dead zone, saturation, bias, stuck channels; bit flips beside them.

Each changes an element by itself, whatever its neighbours are. Their errors have a mean, and depend
on each other where a channel is stuck, so predictions from `mean_square` are rough guides here.
"""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch

from noisescope.errors import InputError
from noisescope.noise.address import Address
from noisescope.noise.error_model import ErrorModel, Replacing
from noisescope.noise.philox import random_words
from noisescope.noise.rounding import Rounding, check_rounding


@dataclass(frozen=True)
class DeadZone(Replacing):
    """Puts 0 in place of values below a threshold, as a converter does that does not see them.

    Attributes:
        threshold: Magnitudes below it become 0; in the tensor's own unit, at least 0.
        rounding: As in every error model; nothing is rounded here.
    """

    threshold: float
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        check_number("dead zone threshold", self.threshold, 0.0, math.inf, "0.01")
        check_rounding(self.rounding)

    @property
    def is_null(self) -> bool:
        """Whether the threshold is 0."""
        return self.threshold == 0

    @property
    def is_random(self) -> bool:
        """Never."""
        return False

    def replaced(self, y_RD: torch.Tensor, at: Address) -> torch.Tensor:
        """Returns 0 where abs(y) < threshold, and y elsewhere."""
        return torch.where(y_RD.abs() < self.threshold, 0.0, y_RD)

    def mean_square(self, y: torch.Tensor) -> torch.Tensor:
        """Returns y^2 where abs(y) < threshold, and 0 elsewhere."""
        return torch.where(y.abs() < self.threshold, y, 0.0).square_()


@dataclass(frozen=True)
class Saturation(Replacing):
    """Clamps values to a range, as an amplifier or accumulator at its limit does.

    Attributes:
        limit: Largest magnitude that passes, in the tensor's own unit, above 0.
        rounding: 'nearest' or 'stochastic', of the limit to the tensor's dtype.
    """

    limit: float
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        check_number("saturation limit", self.limit, 0.0, math.inf, "10", is_open=True)
        check_rounding(self.rounding)

    @property
    def is_random(self) -> bool:
        """Whether the limit is rounded stochastically."""
        return self.rounding == "stochastic"

    def replaced(self, y_RD: torch.Tensor, at: Address) -> torch.Tensor:
        """Returns y between -limit and limit; NaN stays."""
        return y_RD.clamp(-self.limit, self.limit)

    def mean_square(self, y: torch.Tensor) -> torch.Tensor:
        """Returns (abs(y) - limit)^2 where abs(y) > limit, and 0 elsewhere."""
        return (y.abs() - self.limit).clamp_(min=0).square_()


@dataclass(frozen=True)
class Bias(ErrorModel):
    """Adds a constant, or a share of each value.

    Attributes:
        offset: What is added; in the tensor's own unit, or as a share of each value. Any sign.
        is_relative: Whether it is a share: a gain error.
        rounding: 'nearest' or 'stochastic', to the tensor's dtype.
    """

    offset: float
    is_relative: bool = False
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        check_number("bias offset", self.offset, -math.inf, math.inf, "0.01")
        check_rounding(self.rounding)

    @property
    def is_null(self) -> bool:
        """Whether the offset is 0."""
        return self.offset == 0

    @property
    def is_random(self) -> bool:
        """Whether the sum is rounded stochastically."""
        return self.rounding == "stochastic"

    def error(self, y_RD: torch.Tensor, at: Address) -> torch.Tensor:
        """Returns the offset, times y where it is relative."""
        return y_RD * self.offset if self.is_relative else torch.full_like(y_RD, self.offset)

    def mean_square(self, y: torch.Tensor) -> torch.Tensor:
        """Returns offset^2, times y^2 where it is relative."""
        if self.is_relative:
            return (y * self.offset).square_()
        return torch.full((), self.offset, dtype=y.dtype, device=y.device).square()


@dataclass(frozen=True)
class StuckChannels(Replacing):
    """Puts one value in place of whole channels: the same ones in every token of every sample.

    Attributes:
        share: Chance of each channel to be stuck, 0 to 1; which are is a function of seed, draw,
            site and channel.
        value: What they are stuck at.
        channels: Instead of a share, the numbers of those that are; those beyond the width of a
            site name nothing there.
        rounding: 'nearest' or 'stochastic', of the value to the tensor's dtype.
    """

    share: float = 0.0
    value: float = 0.0
    channels: tuple[int, ...] = ()
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        check_number("share of stuck channels", self.share, 0.0, 1.0, "0.01")
        check_number("value of stuck channels", self.value, -math.inf, math.inf, "0")
        check_rounding(self.rounding)
        object.__setattr__(self, "channels", _channels(self.channels))
        if self.share and self.channels:
            raise InputError(
                f"stuck channels: a share ({self.share!r}) and channels {self.channels!r}; "
                "give one of them"
            )

    @property
    def is_null(self) -> bool:
        """Whether no channel can be stuck."""
        return self.share == 0 and not self.channels

    @property
    def is_random(self) -> bool:
        """Whether chance picks the channels, or rounds their value."""
        return self.share > 0 or self.rounding == "stochastic"

    def replaced(self, y_RD: torch.Tensor, at: Address) -> torch.Tensor:
        """Returns the value in stuck channels, and y elsewhere."""
        return torch.where(self._is_stuck(at, y_RD.shape[1]), self.value, y_RD)

    def mean_square(self, y: torch.Tensor) -> torch.Tensor:
        """Returns (y - value)^2 times the share, or where channels of the last axis are stuck."""
        square = (y - self.value).square_()
        if not self.channels:
            return square.mul_(self.share)
        own = self._is_listed(torch.arange(y.shape[-1], device=y.device))
        return torch.where(own, square, 0.0)

    def _is_stuck(self, at: Address, width: int) -> torch.Tensor:
        """Returns bool [R, D]."""
        # Rows that begin at one channel are alike: most tensors have one such row, heads some.
        first_F, row_R = torch.unique(at.channel_R, return_inverse=True)
        if self.channels:
            channel_D = torch.arange(width, device=first_F.device)
            return self._is_listed(first_F[:, None] + channel_D)[row_R]
        zero_F = torch.zeros_like(first_F)
        shared = Address(at.seed, at.draw, at.site, zero_F, zero_F, first_F)
        word_FD = random_words(shared, width).to(torch.float64)
        return ((word_FD + 0.5) / 2.0**32 < self.share)[row_R]

    def _is_listed(self, channel: torch.Tensor) -> torch.Tensor:
        return torch.isin(channel, torch.tensor(self.channels, device=channel.device))


def check_number(
    what: str, value: float, low: float, high: float, example: str, is_open: bool = False
) -> None:
    """Raises InputError unless a value is a finite number from low to high that float32 holds.

    Args:
        what: Names the value.
        value: The value.
        low: The least that is accepted.
        high: The largest that is accepted.
        example: A value to try.
        is_open: Whether the least itself is not accepted.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    is_held = is_number and math.isfinite(value) and abs(value) <= torch.finfo(torch.float32).max
    if not is_held or not low <= value <= high or (is_open and value == low):
        least = f" above {low:g}" if is_open else f" of at least {low:g}"
        between = f" from {low:g} to {high:g}" if high < math.inf else least
        accepted = "" if low == -math.inf else between
        raise InputError(
            f"{what} {value!r}: a finite number{accepted} that float32 holds is needed; "
            f"try {example}"
        )


def check_integer(what: str, value: Any, high: float, example: str) -> int:
    """Returns an integer from 0 to high as Python's own, which JSON takes; else InputError."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_integer or not 0 <= value <= high:
        between = f"from 0 to {high}" if high < math.inf else "of at least 0"
        raise InputError(f"{what} {value!r}: an integer {between} is needed; try {example}")
    return int(value)


def _channels(channels: Any) -> tuple[int, ...]:
    listed = list(channels) if isinstance(channels, (tuple, list, range)) else [channels]
    return tuple(sorted({check_integer("stuck channel", c, math.inf, "0") for c in listed}))
