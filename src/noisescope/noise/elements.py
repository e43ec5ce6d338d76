"""Number formats of single elements: what each code means, and rounding float32 values onto them.

Powers of two come from exponent bits, so every step is exact on any device and nothing waits for
the device. Scales, and which elements share one, are formats.py's.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from noisescope.noise.rounding import round_to

_MANTISSA = 23
_BIAS = 127


@dataclass(frozen=True)
class FloatElement:
    """A binary floating-point format with subnormals; its values all are float32 values.

    Source: OCP 8-bit Floating Point Specification 1.0, table 1; OCP Microscaling Formats (MX)
    Specification 1.0, section 5.3.

    Attributes:
        name: For example ``fp8_e4m3``.
        exponent_bits: Bits of the exponent.
        mantissa_bits: Stored bits of the mantissa.
        specials: Which codes are no finite numbers: ``ieee``, all with the top exponent;
            ``nan``, only the topmost; ``none``.
        dtype: The dtype whose plain cast rounds to nearest, overflow to infinity included; None:
            values beyond the largest become the largest, infinities too.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    specials: Literal["ieee", "nan", "none"]
    dtype: torch.dtype | None = None

    @property
    def bits(self) -> int:
        """Bits of one element."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """What is taken from a stored exponent."""
        return int(2 ** (self.exponent_bits - 1)) - 1

    @property
    def top_exponent(self) -> int:
        """The exponent of the largest finite value."""
        stored = 2**self.exponent_bits - (2 if self.specials == "ieee" else 1)
        return int(stored) - self.bias

    @property
    def largest(self) -> float:
        """The largest finite value."""
        steps = 2 ** (self.mantissa_bits + 1) - (2 if self.specials == "nan" else 1)
        return float(steps * 2.0 ** (self.top_exponent - self.mantissa_bits))

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        """Returns the float32 value of each code, an integer from 0 to 2**bits - 1."""
        code = code.to(torch.int64)
        top_mantissa, top_stored = 2**self.mantissa_bits - 1, 2**self.exponent_bits - 1
        mantissa = code & top_mantissa
        stored = (code >> self.mantissa_bits) & top_stored
        steps = torch.where(stored > 0, mantissa + top_mantissa + 1, mantissa).to(torch.float64)
        exponent = stored.clamp(min=1) - self.bias - self.mantissa_bits
        value = steps * ((exponent + 1023) << 52).view(torch.float64)
        if self.specials == "ieee":
            value = torch.where(stored == top_stored, torch.inf, value)
            value = torch.where((stored == top_stored) & (mantissa > 0), torch.nan, value)
        elif self.specials == "nan":
            is_top = (stored == top_stored) & (mantissa == top_mantissa)
            value = torch.where(is_top, torch.nan, value)
        return torch.where(code >> (self.bits - 1) == 1, -value, value).to(torch.float32)

    def round(self, x: torch.Tensor, words: torch.Tensor | None = None) -> torch.Tensor:
        """Returns float32 values of this format: nearest, ties to even, or by random words.

        Stochastic rounding goes to the upper of two neighbours with probability (value - lower) /
        (upper - lower), so the mean is the value. NaN stays NaN.

        Args:
            x: float32, any shape.
            words: int64 random words of x's shape, 0 to 2**32 - 1; None: to nearest.
        """
        if self.dtype is not None:
            how: Literal["nearest", "stochastic"] = "nearest" if words is None else "stochastic"
            given = x if words is None else words
            return round_to(x, self.dtype, how, lambda: given).to(torch.float32)
        magnitude = x.abs()
        step = self._step(magnitude)
        rounded = round_to_steps(magnitude / step, words) * step
        return torch.copysign(rounded.clamp_(max=self.largest), x)

    def stochastic_mean_square(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the mean square of the error of stochastic rounding, p (1 - p) step^2.

        Beyond the largest value, where nothing is random: the square of the error.
        """
        magnitude = x.abs()
        step = self._step(magnitude)
        square = chance_square(magnitude / step) * step.square()
        return torch.where(magnitude > self.largest, (self.round(x) - x).square(), square)

    def _step(self, magnitude: torch.Tensor) -> torch.Tensor:
        """Returns the gap between neighbours at each value."""
        exponent = floor_exponent(magnitude).clamp_(min=1 - self.bias)
        # float32's normal numbers end at -126: only bfloat16's subnormals lie closer.
        return power_of_two((exponent - self.mantissa_bits).clamp_(min=1 - _BIAS))


@dataclass(frozen=True)
class IntElement:
    """An integer in two's complement; symmetric use leaves the lowest code out.

    Attributes:
        bits: Bits of one element, at least 2.
    """

    bits: int

    @property
    def name(self) -> str:
        """For example ``int4``."""
        return f"int{self.bits}"

    @property
    def largest(self) -> float:
        """The largest value, 2**(bits - 1) - 1; the smallest is its negative."""
        return float(2 ** (self.bits - 1) - 1)

    @property
    def top_exponent(self) -> int:
        """The exponent of the largest power of two among the values."""
        return self.bits - 2

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        """Returns the float32 value of each code, an integer from 0 to 2**bits - 1."""
        code = code.to(torch.int64)
        return torch.where(code > self.largest, code - 2**self.bits, code).to(torch.float32)

    def round(self, x: torch.Tensor, words: torch.Tensor | None = None) -> torch.Tensor:
        """Returns whole numbers from -largest to largest; see `FloatElement.round`."""
        return round_to_steps(x, words).clamp_(-self.largest, self.largest)

    def stochastic_mean_square(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the mean square of the error of stochastic rounding, p (1 - p)."""
        beyond = (x.abs() - self.largest).clamp_(min=0)
        return torch.where(beyond > 0, beyond.square(), chance_square(x))


Element = FloatElement | IntElement

_ALL: tuple[Element, ...] = (
    FloatElement("bf16", 8, 7, "ieee", torch.bfloat16),
    FloatElement("fp16", 5, 10, "ieee", torch.float16),
    FloatElement("fp8_e4m3", 4, 3, "nan"),
    FloatElement("fp8_e5m2", 5, 2, "ieee"),
    FloatElement("fp6_e3m2", 3, 2, "none"),
    FloatElement("fp6_e2m3", 2, 3, "none"),
    FloatElement("fp4_e2m1", 2, 1, "none"),
    *(IntElement(bits) for bits in range(8, 1, -1)),
)
ELEMENTS: dict[str, Element] = {element.name: element for element in _ALL}


def round_to_steps(steps: torch.Tensor, words: torch.Tensor | None) -> torch.Tensor:
    """Returns whole numbers: the nearest, ties to even, or one of both neighbours by words.

    Args:
        steps: float32, any shape.
        words: int64 random words of the same shape, 0 to 2**32 - 1; None: to nearest.

    Source: Gupta et al. 2015, Deep learning with limited numerical precision, section 3.1.
    """
    if words is None:
        return steps.round()
    below = steps.floor()
    # In float64, or the chances would be multiples of 2**-24; an infinity's remainder is NaN.
    return below + ((words.to(torch.float64) + 0.5) / 2.0**32 < steps - below)


def floor_exponent(magnitude: torch.Tensor) -> torch.Tensor:
    """Returns floor(log2(magnitude)) of float32 values of at least 0, int32; -127 below 2**-126."""
    return (magnitude.view(torch.int32) >> _MANTISSA) - _BIAS


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """Returns 2**exponent as float32, exactly; int32 from -127 to 127, the values of E8M0."""
    normal = (exponent + _BIAS) << _MANTISSA
    return torch.where(exponent < 1 - _BIAS, 1 << (_MANTISSA - 1), normal).view(torch.float32)


def chance_square(steps: torch.Tensor) -> torch.Tensor:
    """Returns p (1 - p), the mean square error of stochastic rounding to whole numbers."""
    chance = steps - steps.floor()
    return chance * (1 - chance)
