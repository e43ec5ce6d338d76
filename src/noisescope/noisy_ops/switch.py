"""Switching noise on and off.

Nothing is patched: a function mode is laid on PyTorch's stack of modes, or taken off.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode_stack,
    _pop_mode,
    _push_mode,
)

from noisescope.errors import InputError
from noisescope.inject.mode import OperatorMode, remove_mode
from noisescope.noise import ErrorModel, make_error_model
from noisescope.noisy_ops.attest import attest, refresh
from noisescope.noisy_ops.counters import total_counts
from noisescope.noisy_ops.injector import CountingInjector
from noisescope.noisy_ops.state import STATE, Settings, zero_counts


def enable_noisy_ops(
    error_scale: float = 1e-5, error_type: str = "relative_gaussian", all_ops_mode: bool = False
) -> None:
    """Switches noise on for every PyTorch operator of this thread, until `disable_noisy_ops`.

    Models that `register_layer_hooks` knows receive it in every thread. Noise is a function of the
    tokens and of the place (see `set_noise_seed`), so the global random generator is neither used
    nor disturbed. Every spelling of an operator is covered, fused attention too. Calling it again
    changes the settings and sets the counts to zero.

    Args:
        error_scale: Standard deviation of the error, relative or absolute by `error_type`.
        error_type: ``"relative_gaussian"`` or ``"absolute_gaussian"``.
        all_ops_mode: Adds softmax, silu, gelu, layer_norm and rms_norm to matmul, bmm and linear.

    Raises:
        InputError: An unknown type, or a scale that is negative, NaN or infinite. The state is as
            before.
    """
    error_model = make_error_model(error_type, error_scale)
    _switch_off()
    _switch_on(error_model, Settings(error_scale, error_type, all_ops_mode))


def disable_noisy_ops() -> dict[str, int]:
    """Switches noise off; harmless where it is off.

    Gradients of a graph that was made under noise are clean from here on.

    Returns:
        The injection counts: `forward` and `backward` in all, and by label: `rollout_forward`,
        `rollout_backward`, `actor_forward`, `actor_backward`, `unknown_forward`,
        `unknown_backward`.
    """
    _switch_off()
    return total_counts() | STATE.counts


@contextmanager
def noisy_ops_context(
    error_scale: float = 1e-5, error_type: str = "relative_gaussian", all_ops_mode: bool = False
) -> Iterator[None]:
    """Noise inside the `with` block; afterwards what was before, noise or none.

    Contexts nest. The counts begin at zero inside, and are added to the outer ones afterwards.

    Args:
        error_scale: See `enable_noisy_ops`.
        error_type: The same.
        all_ops_mode: The same.

    Raises:
        InputError: See `enable_noisy_ops`.
    """
    error_model = make_error_model(error_type, error_scale)
    injector, mode, settings, counts = STATE.injector, STATE.mode, STATE.settings, STATE.counts
    _take_off()
    _switch_on(error_model, Settings(error_scale, error_type, all_ops_mode))
    try:
        yield
        attest()
    finally:
        _take_off()
        if mode is not None:
            STATE.injector, STATE.mode, STATE.settings = injector, mode, settings
            STATE.counts = {key: n + counts[key] for key, n in STATE.counts.items()}
            _lay(mode)
            refresh()


def set_noise_seed(seed: int = 0, draw: int = 0) -> None:
    """Chooses the realisation: the same tokens under the same seed and draw meet the same noise.

    Give every training step its own draw if repeated samples should meet new noise.

    Args:
        seed: First key word of the random numbers, 0 to 2**32 - 1.
        draw: Second key word, the same range.

    Raises:
        InputError: One of them is out of range.
    """
    for name, word in (("seed", seed), ("draw", draw)):
        if not isinstance(word, int) or not 0 <= word < 2**32:
            raise InputError(f"{name} {word!r}: a whole number from 0 to 2**32 - 1 is needed.")
    STATE.seed, STATE.draw = seed, draw
    holders: list[Any] = [known.tracker.reader for known in STATE.models.values()]
    if STATE.injector is not None:
        holders.append(STATE.injector)
    for holder in holders:
        holder.seed, holder.draw = seed, draw


def _switch_on(error_model: ErrorModel, settings: Settings) -> None:
    STATE.settings, STATE.counts = settings, zero_counts()
    injector = CountingInjector(error_model)
    STATE.injector, STATE.mode = injector, OperatorMode(injector, injector.place)
    _lay(STATE.mode)


def _switch_off() -> None:
    try:
        attest()
    finally:
        _take_off()


def _take_off() -> None:
    STATE.injector, STATE.mode = None, None
    # All of ours, not the last alone: switched off by another thread, one may be left in this.
    for mode in _get_current_function_mode_stack():
        if isinstance(mode, OperatorMode) and isinstance(mode.runner, CountingInjector):
            remove_mode(mode)


def _lay(mode: TorchFunctionMode) -> None:
    """Puts the mode below all others: a `with` of another mode that is open now takes off its own.

    Only the context of a default device must stay at the bottom; torch checks that when it ends.
    """
    default_device = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    above: list[Any] = []
    while (stack := _get_current_function_mode_stack()) and stack[-1] is not default_device:
        above.append(_pop_mode())
    _push_mode(mode)
    for other in reversed(above):
        _push_mode(other)
