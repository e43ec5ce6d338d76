"""Puts the global state of `noisy_ops` back to where it is after importing, for tests."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch.overrides import _get_current_function_mode_stack

from noisescope.noisy_ops import disable_noisy_ops, remove_layer_hooks
from noisescope.noisy_ops.state import STATE, State


@contextmanager
def fresh_state() -> Iterator[State]:
    """Gives a block the state of a fresh import, and leaves such a state behind."""
    _reset()
    try:
        yield STATE
    finally:
        _reset()


def _reset() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        disable_noisy_ops()
    remove_layer_hooks()
    STATE.__init__()
    assert _get_current_function_mode_stack() == []
