"""What an error model is, and the tally of the error that really arrived.

A new error model is one frozen dataclass with an `error`; adding in float32, rounding and tallying
are here once for all. Where the error goes, and autograd, belong to inject/.
"""

from abc import ABC, abstractmethod

import torch

from noisescope.errors import InputError
from noisescope.noise.address import Address
from noisescope.noise.philox import random_words
from noisescope.noise.rounding import Rounding, round_to

TALLY_FIELDS = (
    "elements",
    "asked",
    "changed",
    "error_square",
    "clean_square",
    "asked_square",
)


_TALLIED_AT_ONCE = 2**15


class ErrorModel(ABC):
    """What is added to a tensor: a pure function of its values and of where they lie.

    Subclasses are frozen dataclasses.

    Attributes:
        rounding: How the sum is rounded to the tensor's dtype.
    """

    rounding: Rounding

    @property
    def is_null(self) -> bool:
        """Whether it changes nothing, whatever the input."""
        return False

    @property
    def is_random(self) -> bool:
        """Whether one draw differs from another; else seed, draw, sample and position are idle.

        The channels of an address may count all the same.
        """
        return True

    @property
    def operands(self) -> frozenset[str]:
        """What of a site is perturbed: ``output``, or ``weights`` and ``activations`` it reads."""
        return frozenset({"output"})

    def at_module(self, module: str) -> "ErrorModel":
        """Returns what is added at a module of this dotted name; by default the same everywhere."""
        return self

    @abstractmethod
    def error(self, y_RD: torch.Tensor, at: Address) -> torch.Tensor:
        """Returns the error to be added to the values.

        Args:
            y_RD: float32 or float64 [R, D]; not to be changed.
            at: Where the elements lie.

        Returns:
            [R, D] of y's dtype.
        """

    def mean_square(self, y: torch.Tensor) -> torch.Tensor:
        """Returns the mean square of the error at each value, by which its effect is predicted.

        The error is taken to be independent from element to element, with mean 0.

        Args:
            y: float32 or float64, any shape.

        Returns:
            Of y's dtype; any shape that broadcasts to y's.

        Raises:
            InputError: It is not known for this error model.
        """
        raise InputError(
            f"the mean square of {type(self).__name__} is not known, so nothing can be predicted "
            "from it: give the class a method mean_square(y)"
        )

    def perturb(
        self, y_RD: torch.Tensor, at: Address, in_place: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds the error in float32 (float64 for float64) and rounds once to y's dtype.

        Args:
            y_RD: float tensor [R, D], detached; it is left as it is unless `in_place`.
            at: Where the elements lie, on y's device.
            in_place: Whether the noisy values may be written into y, where that is faster.

        Returns:
            The noisy values, a new tensor of y's dtype (y itself where the model is null, or was
            written into), and the tally: float64 [6] on y's device, see `tally`.
        """
        if y_RD.dim() != 2 or y_RD.shape[0] != at.sample_R.shape[0]:
            raise ValueError(f"tensor of {list(y_RD.shape)} with an address of {len(at)} rows")
        if self.is_null:
            return y_RD, tally(y_RD, y_RD, torch.zeros_like(y_RD))
        return self._perturb(y_RD, at, in_place)

    def perturb_weight(self, w_OK: torch.Tensor, at: Address) -> tuple[torch.Tensor, torch.Tensor]:
        """`perturb` of a whole weight matrix [O, K], whose last axis is summed over."""
        return self.perturb(w_OK, at)

    def _perturb(
        self, y_RD: torch.Tensor, at: Address, in_place: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`perturb` for a model that is not null; a model with a fused kernel overrides this."""
        wide_RD = y_RD if y_RD.dtype == torch.float64 else y_RD.to(torch.float32)
        error_RD = self.error(wide_RD, at)
        noisy_RD = round_to(
            wide_RD + error_RD,
            y_RD.dtype,
            self.rounding,
            lambda: random_words(at, y_RD.shape[1], stream=1),
        )
        return noisy_RD, tally(y_RD, noisy_RD, error_RD)


class Replacing(ErrorModel):
    """An error model that puts other values in place of the clean ones.

    What is written is the new value, rounded once: clean + error would not always give it back.
    """

    @abstractmethod
    def replaced(self, y_RD: torch.Tensor, at: Address) -> torch.Tensor:
        """Returns the new values, of the dtype of y_RD, which is float32 or float64 [R, D]."""

    def error(self, y_RD: torch.Tensor, at: Address) -> torch.Tensor:
        """Returns the new values less the clean ones."""
        return self.replaced(y_RD, at) - y_RD

    def _perturb(
        self, y_RD: torch.Tensor, at: Address, in_place: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wide_RD = y_RD if y_RD.dtype == torch.float64 else y_RD.to(torch.float32)
        new_RD = self.replaced(wide_RD, at)
        noisy_RD = round_to(
            new_RD,
            y_RD.dtype,
            self.rounding,
            lambda: random_words(at, y_RD.shape[1], stream=1),
        )
        return noisy_RD, tally(y_RD, noisy_RD, new_RD - wide_RD)


def tally(clean: torch.Tensor, noisy: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """Returns what arrived: float64 [6] on the tensors' device, without waiting for the device.

    The fields are `TALLY_FIELDS`: elements, those that were asked to change, those that did, sum of
    (noisy - clean)^2, sum of clean^2, and sum of error^2. Sums of tallies are tallies. Elements
    where clean or noisy is infinite or NaN are left out of the sums of squares, or one of them
    would poison all. An element changed when it was finite and has another value now.

    Args:
        clean: The values before, any shape and float dtype.
        noisy: The values after, same shape.
        error: The error that was asked for, before rounding, same shape.
    """
    if clean.device.type != "cpu" or clean.numel() <= 2 * _TALLIED_AT_ONCE:
        return _tally(clean, noisy, error)
    # Float64 copies of all would leave the processor's cache, and take new memory each time.
    flat = (t.reshape(-1).split(_TALLIED_AT_ONCE) for t in (clean, noisy, error))
    return torch.stack([_tally(*part) for part in zip(*flat, strict=True)]).sum(dim=0)


def _tally(clean: torch.Tensor, noisy: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    clean_wide, noisy_wide, asked = (t.to(torch.float64) for t in (clean, noisy, error))
    was_finite = clean_wide.isfinite()
    is_finite = was_finite & noisy_wide.isfinite()
    fields = (
        torch.full((), clean.numel(), dtype=torch.float64, device=clean.device),
        (is_finite & (asked != 0)).sum().to(torch.float64),
        (was_finite & (clean_wide != noisy_wide)).sum().to(torch.float64),
        _sum_of_squares(noisy_wide - clean_wide, is_finite),
        _sum_of_squares(clean_wide, is_finite),
        _sum_of_squares(asked, is_finite),
    )
    return torch.stack(fields)


def _sum_of_squares(x: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    return torch.where(counted, x, 0.0).square().sum()
