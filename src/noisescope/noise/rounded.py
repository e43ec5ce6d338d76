"""Rounding to a number format as an error: of outputs, of weights, of the activations they meet.

A module may have its own format, as recommendations give it. The formats are formats.py's; where
weights and activations are found, and gradients, belong to inject/.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch

from noisescope.errors import InputError, near_names
from noisescope.noise.address import Address
from noisescope.noise.error_model import ErrorModel, tally
from noisescope.noise.formats import Format, make_format
from noisescope.noise.philox import random_words
from noisescope.noise.rounding import Rounding, check_rounding

Operand = Literal["weights", "activations", "both", "output"]

# The tally's float64 temporaries of a weight matrix would be many times its size.
_ELEMENTS_AT_ONCE = 2**22


@dataclass(frozen=True)
class NoError(ErrorModel):
    """Changes nothing: what modules without a format have."""

    rounding: Rounding = "nearest"

    @property
    def is_null(self) -> bool:
        """Always."""
        return True

    @property
    def is_random(self) -> bool:
        """Never."""
        return False

    @property
    def operands(self) -> frozenset[str]:
        """None."""
        return frozenset()

    def error(self, y_RD: torch.Tensor, at: Address) -> torch.Tensor:
        """Returns zeros."""
        return torch.zeros_like(y_RD)

    def mean_square(self, y: torch.Tensor) -> torch.Tensor:
        """Returns 0."""
        return torch.zeros((), dtype=y.dtype, device=y.device)


@dataclass(frozen=True)
class RoundTo(ErrorModel):
    """Rounds to a number format, in float32; blocks lie along the last axis.

    The result is the rounded value itself, cast once, to nearest, to the tensor's dtype.

    Attributes:
        format: Name of the format, see `make_format`.
        operand: What is rounded: ``weights``, ``activations`` that meet them, ``both``, or the
            ``output``.
        rounding: 'nearest', ties to even, or 'stochastic', to the format's values.
    """

    format: str
    operand: Operand = "output"
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        make_format(self.format)
        _check_operand(self.operand)
        check_rounding(self.rounding)

    @property
    def is_random(self) -> bool:
        """Whether rounding is stochastic."""
        return self.rounding == "stochastic"

    @property
    def operands(self) -> frozenset[str]:
        """What is rounded."""
        return _operands(self.operand)

    def error(self, y_RD: torch.Tensor, at: Address) -> torch.Tensor:
        """Returns the rounded values less the clean ones, in y's dtype."""
        return self._rounded(y_RD, at, is_weight=False).to(y_RD.dtype) - y_RD

    def mean_square(self, y: torch.Tensor) -> torch.Tensor:
        """Returns the square of the rounding error, its mean where rounding is stochastic.

        Rows are rounded as activations, or as one weight matrix where only weights are. To nearest
        the error is no random number: taking it for one is a model, good where many are summed.
        """
        rows_RK = y.reshape(-1, y.shape[-1] if y.dim() else 1).to(torch.float32)
        square_RK = self._format.mean_square(
            rows_RK, is_weight=self.operand == "weights", is_stochastic=self.is_random
        )
        return square_RK.reshape(y.shape).to(y.dtype)

    def perturb_weight(self, w_OK: torch.Tensor, at: Address) -> tuple[torch.Tensor, torch.Tensor]:
        """`perturb` with tensor scales over the whole matrix [O, K] and blocks along K."""
        return self._replace(w_OK, at, is_weight=True)

    def _perturb(
        self, y_RD: torch.Tensor, at: Address, in_place: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._replace(y_RD, at, is_weight=False)

    def _replace(
        self, y_RD: torch.Tensor, at: Address, is_weight: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        new_RD = self._rounded(y_RD, at, is_weight)
        noisy_RD = new_RD.to(y_RD.dtype)
        at_once = max(1, _ELEMENTS_AT_ONCE // max(1, y_RD.shape[1]))
        counted = [
            tally(clean, noisy, new.to(torch.promote_types(clean.dtype, new.dtype)) - clean)
            for clean, noisy, new in zip(
                *(t.split(at_once) for t in (y_RD, noisy_RD, new_RD)), strict=True
            )
        ]
        return noisy_RD, torch.stack(counted).sum(dim=0)

    def _rounded(self, y_RD: torch.Tensor, at: Address, is_weight: bool) -> torch.Tensor:
        """Returns the rounded values, float32 [R, D]."""
        words: Callable[[], torch.Tensor] | None = None
        if self.is_random:
            words = lambda: random_words(at, y_RD.shape[1], stream=1)  # noqa: E731
        return self._format.round(y_RD.to(torch.float32), is_weight=is_weight, words=words)

    @property
    def _format(self) -> Format:
        return make_format(self.format)


@dataclass(frozen=True)
class RoundModules(ErrorModel):
    """Rounds modules to formats of their own; modules that are not named stay as they are.

    Attributes:
        formats: Pairs of a module's dotted name and its format's name; a mapping is taken too.
        operand: As in `RoundTo`.
        rounding: As in `RoundTo`.
    """

    formats: tuple[tuple[str, str], ...]
    operand: Operand = "weights"
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        # Sorted tuples: equal choices are then equal, also when read back from JSON.
        object.__setattr__(self, "formats", _pairs(self.formats))
        for _, name in self.formats:
            make_format(name)
        _check_operand(self.operand)
        check_rounding(self.rounding)

    @property
    def is_null(self) -> bool:
        """Whether no module is named."""
        return not self.formats

    @property
    def is_random(self) -> bool:
        """Whether rounding is stochastic."""
        return self.rounding == "stochastic"

    @property
    def operands(self) -> frozenset[str]:
        """What is rounded, in modules that are named."""
        return _operands(self.operand)

    def at_module(self, module: str) -> ErrorModel:
        """Returns the module's `RoundTo`, or `NoError`."""
        return self._by_module.get(module, NoError())

    def error(self, y_RD: torch.Tensor, at: Address) -> torch.Tensor:
        """There is none without a module: ask `at_module`'s."""
        raise TypeError("RoundModules rounds by module: use at_module(module)")

    def mean_square(self, y: torch.Tensor) -> torch.Tensor:
        """It depends on the module: ask `at_module`'s."""
        raise InputError(
            "the mean square of RoundModules depends on the module; give one RoundTo for all"
        )

    @cached_property
    def _by_module(self) -> dict[str, ErrorModel]:
        return {module: RoundTo(name, self.operand, self.rounding) for module, name in self.formats}


def _operands(operand: Operand) -> frozenset[str]:
    return frozenset({"weights", "activations"} if operand == "both" else {operand})


def _check_operand(operand: str) -> None:
    accepted = get_args(Operand)
    if operand not in accepted:
        raise InputError(
            f"operand {operand!r}: {' or '.join(repr(a) for a in accepted)} is needed"
            f"{near_names(str(operand), accepted)}"
        )


def _pairs(
    formats: Sequence[Sequence[str]] | Mapping[str, str],
) -> tuple[tuple[str, str], ...]:
    """Returns sorted pairs of module and format; a module is named once."""
    listed = list(formats.items() if isinstance(formats, Mapping) else formats)
    for pair in listed:
        is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
        if not is_pair or not all(isinstance(part, str) for part in pair):
            raise InputError(
                f"formats entry {pair!r}: a module's dotted name and a format's name are needed; "
                "try ('model.layers.0.mlp.up_proj', 'nvfp4')"
            )
    pairs = tuple(sorted((module, name) for module, name in listed))
    modules = [module for module, _ in pairs]
    twice = next((m for m in modules if modules.count(m) > 1), None)
    if twice is not None:
        raise InputError(f"module {twice!r} has more than one format; name it once")
    return pairs
