"""Bit flips: each bit of each stored value flips with a probability, by its address.

One random word per element says whether anything flips at all, which is rare; only those elements
are looked at again. The number of them is data, so a GPU is waited for.
"""

import math
from dataclasses import dataclass, replace

import torch

from noisescope.errors import InputError
from noisescope.noise.address import Address
from noisescope.noise.error_model import ErrorModel, tally
from noisescope.noise.faults import check_integer, check_number
from noisescope.noise.philox import random_words
from noisescope.noise.rounding import Rounding, check_rounding

_INTEGERS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
# Each further flip of an element has words of its own: the site's word with other bits flipped.
_NEXT_FLIP = 0x9E3779B9


@dataclass(frozen=True)
class BitFlips(ErrorModel):
    """Flips bits of the values as they are stored, in the tensor's own dtype.

    A flip may leave an infinity or NaN; the tally counts it as changed, and leaves it out of the
    sums of squares.

    Attributes:
        rate: Probability of each bit to flip, 0 to 1, independent of all others.
        bit: Only this bit of each value may flip, 0 being the least significant; None: all.
        rounding: As in every error model; nothing is rounded here.
    """

    rate: float
    bit: int | None = None
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        check_number("bit flip rate", self.rate, 0.0, 1.0, "1e-6")
        check_rounding(self.rounding)
        if self.bit is not None:
            object.__setattr__(self, "bit", check_integer("bit", self.bit, 63, "14"))

    @property
    def is_null(self) -> bool:
        """Whether the rate is 0."""
        return self.rate == 0

    def error(self, y_RD: torch.Tensor, at: Address) -> torch.Tensor:
        """Returns what flips of y's own bits make of it, less y; it may be infinite or NaN."""
        return self._flipped(y_RD, at) - y_RD

    def mean_square(self, y: torch.Tensor) -> torch.Tensor:
        """There is none to go by: rare flips of exponents carry all of it, and are no small errors.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "what flipped bits do cannot be told from a mean square, as few large flips carry all "
            "of it: they are measured only"
        )

    def _perturb(
        self, y_RD: torch.Tensor, at: Address, in_place: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        noisy_RD = self._flipped(y_RD, at)
        wide = torch.promote_types(y_RD.dtype, torch.float32)
        return noisy_RD, tally(y_RD, noisy_RD, noisy_RD.to(wide) - y_RD.to(wide))

    def _bits(self, dtype: torch.dtype) -> range:
        """Returns the bits of a dtype that may flip."""
        width = torch.finfo(dtype).bits
        if self.bit is None:
            return range(width)
        if self.bit >= width:
            raise InputError(
                f"bit {self.bit}: values of {dtype} have bits 0 to {width - 1}; try {width - 2}"
            )
        return range(self.bit, self.bit + 1)

    def _flipped(self, y_RD: torch.Tensor, at: Address) -> torch.Tensor:
        """Returns a new tensor with flipped bits."""
        bits = self._bits(y_RD.dtype)
        stored_N = y_RD.contiguous().view(_INTEGERS[y_RD.dtype]).flatten().clone()
        width = y_RD.shape[1]
        # Words below this may flip something; all others surely do not.
        most = -math.expm1(len(bits) * math.log1p(-self.rate)) if self.rate < 1 else 1.0
        word_N = random_words(at, width).flatten()
        index = (word_N <= math.floor(most * 2.0**32)).nonzero()[:, 0]
        begin = torch.zeros_like(index)
        for flip in range(len(bits)):
            here = _elements(at, width, index, flip)
            # How many bits are passed over before one flips: geometric, by inversion.
            passed = (_log_survival(here) / _log_stay(self.rate)).floor()
            is_hit = passed < len(bits) - begin
            index, bit = index[is_hit], begin[is_hit] + passed[is_hit].to(torch.int64)
            if not len(index):
                break
            stored_N[index] = _flip(stored_N[index], bit + bits.start)
            begin = bit + 1
        return stored_N.view(y_RD.dtype).reshape(y_RD.shape)


def _log_stay(rate: float) -> float:
    return math.log1p(-rate) if rate < 1 else -math.inf


def _elements(at: Address, width: int, index: torch.Tensor, flip: int) -> Address:
    """Returns single elements of a tensor as rows of their own, for their next flip."""
    row = index // width
    return replace(
        at,
        site=at.site ^ (flip * _NEXT_FLIP & 0xFFFFFFFF),
        sample_R=at.sample_R[row],
        position_R=at.position_R[row],
        channel_R=at.channel_R[row] + index % width,
    )


def _log_survival(at: Address) -> torch.Tensor:
    """Returns log(1 - u) of 64-bit uniform numbers u, one per row."""
    high, low = (random_words(at, 1, stream)[:, 0].to(torch.float64) for stream in (0, 1))
    return torch.log1p(-(high + (low + 0.5) / 2.0**32) / 2.0**32)


def _flip(stored: torch.Tensor, bit: torch.Tensor) -> torch.Tensor:
    """Returns stored integers with one bit of each flipped."""
    mask = torch.bitwise_left_shift(torch.ones_like(bit, dtype=torch.int64), bit.to(torch.int64))
    return stored ^ mask.to(stored.dtype)
