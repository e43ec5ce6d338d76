"""Number formats of tensors: elements that share scales, as inference engines store them.

Values are rounded and given back in float32, none are packed. Scales are taken from finite values
only, so an infinity or NaN spoils no other element; an infinity saturates unless a plain cast keeps
it, a NaN stays. Legend: R rows, K the reduction axis, N blocks of B elements along it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from noisescope.errors import InputError, near_names
from noisescope.noise.elements import (
    ELEMENTS,
    Element,
    FloatElement,
    IntElement,
    chance_square,
    round_to_steps,
)
from noisescope.noise.scales import (
    SCALE_BITS,
    Scale,
    asymmetric_scale,
    at_least_tiny,
    low_and_high,
    symmetric_scale,
)

# The temporaries of one piece of rows are several times its size.
_ELEMENTS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Format:
    """Elements, what they share a scale with, and what the scale is stored as.

    Attributes:
        name: As it was asked for.
        element: What each element is stored as.
        scale: ``none``; ``float32``, largest magnitude / largest element; ``e8m0_floor`` and
            ``e8m0_ceil``, a power of two; ``e4m3``, 8 bits, none below 2**-6; ``e4m3_tensor``,
            8 bits times one float32 per tensor.
        block: Neighbours along the reduction axis that share a scale; None: the whole row.
        is_per_tensor: Whether a weight matrix has one scale in all. Activations have one per row
            (token) then: a scale over a batch would depend on what else is in it.
        is_asymmetric: Whether integers have a zero point per scale.
    """

    name: str = field(compare=False)
    element: Element
    scale: Scale = "none"
    block: int | None = None
    is_per_tensor: bool = False
    is_asymmetric: bool = False

    def round(
        self, x_RK: Tensor, *, is_weight: bool, words: Callable[[], Tensor] | None = None
    ) -> Tensor:
        """Returns the values that are stored, as float32 [R, K].

        Args:
            x_RK: float32 [R, K]; scales are shared along K, the reduction axis. It is left as it
                is. The last block may be shorter than the others.
            is_weight: Whether scales of a tensor are of the whole matrix; else one per row.
            words: Gives random words, int64 [R, K] from 0 to 2**32 - 1, for stochastic rounding;
                None: to nearest, ties to even.
        """
        return self._by_rows(x_RK, is_weight, self._round, None if words is None else words())

    def mean_square(self, x_RK: Tensor, *, is_weight: bool, is_stochastic: bool) -> Tensor:
        """Returns the square of the rounding error, its mean where rounding is stochastic.

        Args:
            x_RK: float32 [R, K].
            is_weight: As in `round`.
            is_stochastic: Stochastic rounding: p (1 - p) step^2; else the error itself is known.
        """
        if is_stochastic:
            return self._by_rows(x_RK, is_weight, self._chance_square)
        return (self.round(x_RK, is_weight=is_weight) - x_RK).square_()

    def bits(self, out: int, in_: int) -> float:
        """Returns the bits per weight of a matrix `[out, in_]`, scales and zero points counted."""
        if self.scale == "none":
            return float(self.element.bits)
        per_scale = SCALE_BITS[self.scale] + (self.element.bits if self.is_asymmetric else 0)
        blocks = 1 if self.is_per_tensor else out * (-(-in_ // self.block) if self.block else 1)
        per_tensor = 32 if self.scale == "e4m3_tensor" else 0
        return self.element.bits + (per_scale * blocks + per_tensor) / (out * in_)

    def _by_rows(
        self,
        x_RK: Tensor,
        is_weight: bool,
        function: Callable[[Tensor, Tensor | None, Tensor | None], Tensor],
        words_RK: Tensor | None = None,
    ) -> Tensor:
        """Returns a function of blocks and their scales, of some rows at a time."""
        rows, width = x_RK.shape
        if x_RK.numel() == 0:
            return x_RK.clone()
        is_shared = self.is_per_tensor or self.scale == "e4m3_tensor"
        whole_112 = low_and_high(x_RK.reshape(1, 1, -1)) if is_shared and is_weight else None
        pieces = []
        at_once = max(1, _ELEMENTS_AT_ONCE // width)
        for begin in range(0, rows, at_once):
            piece_RK, words_RNB = x_RK[begin : begin + at_once], None
            if words_RK is not None:
                words_RNB = self._in_blocks(words_RK[begin : begin + at_once])
            whole_R12 = whole_112
            if is_shared and not is_weight:
                whole_R12 = low_and_high(piece_RK[:, None])
            done_RNB = function(self._in_blocks(piece_RK), whole_R12, words_RNB)
            pieces.append(done_RNB.flatten(1)[:, :width])
        return torch.cat(pieces)

    def _in_blocks(self, x_RK: Tensor) -> Tensor:
        """Returns [R, N, B], zeros behind a short last block."""
        block = self.block or x_RK.shape[1]
        padded: Tensor = functional.pad(x_RK, (0, -x_RK.shape[1] % block))
        return padded.reshape(len(x_RK), -1, block)

    def _round(self, x_RNB: Tensor, whole_R12: Tensor | None, words_RNB: Tensor | None) -> Tensor:
        if self.scale == "none":
            return self.element.round(x_RNB, words_RNB)
        scale, zero = self._scale(x_RNB, whole_R12)
        steps = x_RNB / at_least_tiny(scale)
        if zero is None:
            return self.element.round(steps, words_RNB) * scale
        return self._saturated(round_to_steps(steps, words_RNB), zero) * scale

    def _chance_square(self, x_RNB: Tensor, whole_R12: Tensor | None, _: Tensor | None) -> Tensor:
        """Returns the mean square of the error of stochastic rounding."""
        if self.scale == "none":
            return self.element.stochastic_mean_square(x_RNB)
        scale, zero = self._scale(x_RNB, whole_R12)
        steps = x_RNB / at_least_tiny(scale)
        if zero is None:
            square = self.element.stochastic_mean_square(steps)
        else:
            beyond = steps - self._saturated(steps, zero)
            square = torch.where(beyond != 0, beyond.square(), chance_square(steps))
        return torch.where(scale > 0, square * scale.square(), x_RNB.square())

    def _scale(self, x_RNB: Tensor, whole_R12: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Returns the scales [R, N, 1] and zero points, if any."""
        whole = low_and_high(x_RNB) if whole_R12 is None else whole_R12
        range_RN2 = whole if whole_R12 is None or self.is_per_tensor else low_and_high(x_RNB)
        if self.is_asymmetric:
            return asymmetric_scale(range_RN2, self._intervals)
        return symmetric_scale(self.scale, self.element, range_RN2, whole), None

    def _saturated(self, steps: Tensor, zero: Tensor) -> Tensor:
        """Returns steps of which steps + zero point is a code."""
        return steps.clamp(-zero, self._intervals - zero)

    @property
    def _intervals(self) -> int:
        """How many steps lie between the lowest and the highest code of an integer."""
        return int(2**self.element.bits) - 1


def _mx_formats() -> dict[str, Format]:
    """OCP Microscaling Formats (MX) Specification 1.0, section 6: 32 elements, E8M0 scale."""
    elements = {
        "mxfp8": "fp8_e4m3",
        "mxfp8_e4m3": "fp8_e4m3",
        "mxfp8_e5m2": "fp8_e5m2",
        "mxfp6": "fp6_e2m3",
        "mxfp6_e2m3": "fp6_e2m3",
        "mxfp6_e3m2": "fp6_e3m2",
        "mxfp4": "fp4_e2m1",
    }
    formats = {}
    for name, element in elements.items():
        formats[name] = Format(name, ELEMENTS[element], "e8m0_floor", 32)
        ceil = f"{name}_ceil"
        formats[ceil] = Format(ceil, ELEMENTS[element], "e8m0_ceil", 32)
    return formats


def _nvfp4_format() -> Format:
    """NVIDIA, Introducing NVFP4 (2025): 16 elements, E4M3 scale, one float32 per tensor."""
    return Format("nvfp4", ELEMENTS["fp4_e2m1"], "e4m3_tensor", 16)


PRESETS: dict[str, Format] = {**_mx_formats(), "nvfp4": _nvfp4_format()}

_GRAMMAR = (
    "ELEMENT[_cast|_tensor|_channel|_gN][_asym] with ELEMENT bf16, fp16, fp8_e4m3, fp8_e5m2, "
    "fp6_e3m2, fp6_e2m3, fp4_e2m1 or int2 to int8; or nvfp4; or mxfp4, mxfp6, mxfp6_e3m2, mxfp8, "
    "mxfp8_e5m2, these with or without _ceil"
)
_NAME = re.compile(
    rf"({'|'.join(ELEMENTS)})(?:_(cast|tensor|channel|g([1-9]\d{{0,8}})))?(_asym)?", re.ASCII
)


def make_format(name: str) -> Format:
    """Returns the format of a name.

    An element alone has the usual scale: ``bf16`` and ``fp16`` none, ``int2`` to ``int4`` one per
    group of 128, the others one per channel.

    Args:
        name: For example ``nvfp4``, ``mxfp4_ceil``, ``fp8_e4m3``, ``int4_g32_asym``.

    Raises:
        InputError: The name is unknown, or scale and element do not go together.
    """
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        if isinstance(name, str) and name in PRESETS:
            return PRESETS[name]
        raise InputError(f"format {name!r}: {_GRAMMAR} is needed{_near(str(name).lower())}")
    element = ELEMENTS[found[1]]
    kind, is_asymmetric = found[2] or _usual_scale(element), found[4] is not None
    _check_scale(name, element, kind, is_asymmetric)
    if kind == "cast":
        return Format(name, element)
    block = int(found[3]) if found[3] else 128 if kind == "g128" else None
    return Format(name, element, "float32", block, kind == "tensor", is_asymmetric)


def _near(name: str) -> str:
    known = [*PRESETS, *ELEMENTS, *(f"{e}_{s}" for e in ELEMENTS for s in ("cast", "g128"))]
    return near_names(name, [n for n in known if n.startswith(name)] or known)


def _usual_scale(element: Element) -> str:
    if isinstance(element, FloatElement):
        return "channel" if element.dtype is None else "cast"
    return "g128" if element.bits <= 4 else "channel"


def _check_scale(name: str, element: Element, kind: str, is_asymmetric: bool) -> None:
    is_int = isinstance(element, IntElement)
    if is_asymmetric and not is_int:
        raise InputError(f"format {name!r}: only integers have zero points; leave _asym out")
    if is_int and kind == "cast":
        raise InputError(
            f"format {name!r}: integers need a scale; try {element.name}_channel or "
            f"{element.name}_g128"
        )
    if isinstance(element, FloatElement) and element.dtype is not None and kind != "cast":
        raise InputError(f"format {name!r}: {element.name} has no scale; try {element.name}")
