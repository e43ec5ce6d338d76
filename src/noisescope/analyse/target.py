"""The loss that a user asks the scale for, as text: `accuracy=-5%`, `kl=0.1`, `nll=0.1`."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from noisescope.errors import InputError

Measure = Literal["accuracy", "kl", "nll"]
_FORM = re.compile(r"\s*(accuracy|kl|nll)\s*=\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)(%?)\s*")
_ACCEPTED = "'accuracy=-5%' or 'accuracy=-0.05' (share of answers lost), 'kl=0.1', 'nll=0.1' (nats)"


@dataclass(frozen=True)
class Target:
    """A loss to be reached.

    Attributes:
        measure: `accuracy` (share of answers lost), `kl` or `nll` (nats per token).
        loss: How much, above zero; below one for accuracy.

    Raises:
        InputError: The loss cannot be reached.
    """

    measure: Measure
    loss: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.loss) and self.loss > 0):
            raise InputError(f"Target loss {self.loss!r}: give a finite number above 0")
        if self.measure == "accuracy" and self.loss >= 1:
            raise InputError(
                f"Target loss of accuracy {self.loss!r}: give a share below 1, such as 0.05"
            )

    def __str__(self) -> str:
        sign = "-" if self.measure == "accuracy" else ""
        return f"{self.measure}={sign}{self.loss:g}"


def parse_target(text: str) -> Target:
    """Reads a target.

    Args:
        text: `accuracy=-5%` and `accuracy=-0.05` both mean five answers in a hundred lost;
            `kl=0.1` and `nll=0.1` are nats per token.

    Returns:
        The target, its loss above zero.

    Raises:
        InputError: Anything else.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise _refused(text, "")
    measure, number, percent = found.groups()
    try:
        value = float(number)
    except ValueError:
        raise _refused(text, f"; {number!r} is not a number") from None
    if measure == "accuracy":
        loss = -value / 100 if percent else -value
        if not 0 < loss < 1:
            why = "; a loss is negative" if loss <= 0 else "; a loss of all answers or more"
            raise _refused(text, why)
        return Target("accuracy", loss)
    if percent or not (value > 0 and math.isfinite(value)):
        raise _refused(text, f"; {measure} rises, in nats per token, by a number above 0")
    return Target("kl" if measure == "kl" else "nll", value)


def _refused(text: str, why: str) -> InputError:
    return InputError(f"Target {text!r} cannot be used{why}: give {_ACCEPTED}")
