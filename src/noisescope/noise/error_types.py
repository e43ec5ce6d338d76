"""Error models by name, as command lines and environments give them."""

from collections.abc import Callable

from noisescope.errors import InputError, near_names
from noisescope.noise.bit_flips import BitFlips
from noisescope.noise.error_model import ErrorModel
from noisescope.noise.faults import Bias, DeadZone, Saturation, StuckChannels
from noisescope.noise.gaussian import AbsoluteGaussian, RelativeGaussian
from noisescope.noise.rounding import Rounding

_GAUSSIAN: dict[str, Callable[[float, Rounding], ErrorModel]] = {
    "relative_gaussian": RelativeGaussian,
    "absolute_gaussian": AbsoluteGaussian,
}
_FAULTS: dict[str, Callable[[float, Rounding], ErrorModel]] = {
    "bit_flips": lambda rate, rounding: BitFlips(rate, rounding=rounding),
    "stuck_channels": lambda share, rounding: StuckChannels(share, rounding=rounding),
    "dead_zone": DeadZone,
    "saturation": Saturation,
    "bias": lambda offset, rounding: Bias(offset, rounding=rounding),
}
_ERROR_TYPES = _GAUSSIAN | _FAULTS


def make_error_model(error_type: str, scale: float, rounding: Rounding = "nearest") -> ErrorModel:
    """Returns the error model of a name.

    Args:
        error_type: 'relative_gaussian' or 'absolute_gaussian', or a fault: 'bit_flips',
            'stuck_channels', 'dead_zone', 'saturation', 'bias'.
        scale: The one number of it: the scale of a Gaussian, the rate of bit flips, the share of
            channels, the threshold, the limit, the offset.
        rounding: 'nearest' or 'stochastic'.

    Raises:
        InputError: The name is unknown, or scale or rounding cannot be used.
    """
    if error_type not in _ERROR_TYPES:
        raise InputError(
            f"error type {error_type!r}: {' or '.join(repr(t) for t in _GAUSSIAN)} is needed"
            f"{near_names(str(error_type), _ERROR_TYPES)} "
            f"(or a fault: {', '.join(repr(t) for t in _FAULTS)})"
        )
    return _ERROR_TYPES[error_type](scale, rounding)
