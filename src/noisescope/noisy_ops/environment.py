"""The environment variables, read once when the interface is imported."""

import os

from noisescope.errors import InputError
from noisescope.noise import make_error_model
from noisescope.noisy_ops.selection import set_noise_phases
from noisescope.noisy_ops.switch import enable_noisy_ops

_TRUE = ("1", "true", "yes", "on")


def enable_from_environment() -> None:
    """Enables noise as `VERL_NOISY_OPS_*` say.

    `_ENABLED` switches it on; `_SCALE` (1e-4), `_TYPE` (relative_gaussian) and `_ALL_OPS` are the
    arguments of `enable_noisy_ops`; `_FORWARD_ONLY` and `_BACKWARD_ONLY` choose the phase, both
    together mean both. With `_TRAINING_ONLY` switching on is left to the trainer.

    Raises:
        InputError: Scale or type cannot be used.
    """
    if not _is_set("ENABLED"):
        return
    forward_only, backward_only = _is_set("FORWARD_ONLY"), _is_set("BACKWARD_ONLY")
    if forward_only or backward_only:
        set_noise_phases(forward=forward_only, backward=backward_only)
    if _is_set("TRAINING_ONLY"):
        return
    scale, error_type = _read_noise()
    enable_noisy_ops(scale, error_type, all_ops_mode=_is_set("ALL_OPS"))


def _read_noise() -> tuple[float, str]:
    scale_text = os.environ.get("VERL_NOISY_OPS_SCALE", "1e-4")
    error_type = os.environ.get("VERL_NOISY_OPS_TYPE", "relative_gaussian")
    try:
        scale = float(scale_text)
    except ValueError:
        raise InputError(
            f"VERL_NOISY_OPS_SCALE={scale_text!r}: a number is needed, such as 1e-4."
        ) from None
    try:
        make_error_model(error_type, scale)
    except InputError as error:
        raise InputError(
            f"VERL_NOISY_OPS_SCALE={scale_text!r}, VERL_NOISY_OPS_TYPE={error_type!r}: {error}"
        ) from None
    return scale, error_type


def _is_set(name: str) -> bool:
    return os.environ.get(f"VERL_NOISY_OPS_{name}", "").strip().lower() in _TRUE
