"""Selecting: phases, layers and operators. None stands for all, an empty list for none."""

import operator as python_operator
from collections.abc import Iterable

from noisescope.errors import InputError, SelectionError
from noisescope.inject.operators import check_operators
from noisescope.noisy_ops.attest import refresh
from noisescope.noisy_ops.layers import get_current_layer
from noisescope.noisy_ops.state import STATE


def set_noise_phases(forward: bool = True, backward: bool = True) -> None:
    """Chooses the passes that receive noise.

    Args:
        forward: Noise falls on the output of each operator.
        backward: Noise falls on the gradient of each input of the operator, of the same kind.
    """
    STATE.forward, STATE.backward = bool(forward), bool(backward)
    refresh()


def get_noise_phases() -> dict[str, bool]:
    """Returns ``{"forward_enabled": ..., "backward_enabled": ...}``."""
    return {"forward_enabled": STATE.forward, "backward_enabled": STATE.backward}


def set_selective_layers(layer_ids: Iterable[int] | None = None) -> None:
    """Selects layers.

    Embedding, final norm and head belong to no layer, so a filter leaves them clean. A filter while
    no layer can be known (no hooks, no `set_current_layer`) is an error at the first operator; the
    original then perturbed everything. Backward noise obeys the filter, which it did not there.

    Args:
        layer_ids: None for all, an empty list for none, ``[0, 5]`` for those alone. Numbers beyond
            the last layer are passed over as long as one is a layer.

    Raises:
        SelectionError: Not a list of whole numbers.
    """
    STATE.layers = None if layer_ids is None else _layer_numbers(layer_ids)
    refresh()


def get_selective_layers() -> list[int] | None:
    """Returns the selected layers, or None for all."""
    return None if STATE.layers is None else list(STATE.layers)


def set_layer_window(start: int, end: int) -> None:
    """Selects layers start..end-1.

    Raises:
        InputError: The window is empty or begins before 0.
    """
    if not 0 <= start < end:
        raise InputError(f"layer window {start}..{end}: 0 <= start < end is needed.")
    set_selective_layers(range(start, end))


def set_selective_operators(op_types: Iterable[str] | None = None) -> None:
    """Selects operators, whatever `all_ops_mode` says.

    Args:
        op_types: None for the operators of the mode, an empty list for none, ``["softmax"]`` for
            that alone.

    Raises:
        SelectionError: An unknown name (a `ValueError`, as in the original).
    """
    STATE.operators = check_operators(op_types)
    refresh()


def get_selective_operators() -> list[str] | None:
    """Returns the selected operators, or None for those of the mode."""
    return None if STATE.operators is None else list(STATE.operators)


def should_inject_for_layer(layer_id: int | None = None) -> bool:
    """Tells whether a layer (by default the current one) is selected.

    Outside every layer a filter says no; the original said yes.
    """
    wanted = get_current_layer() if layer_id is None else layer_id
    return STATE.layers is None or wanted in STATE.layers


def should_inject_for_operator(op_type: str) -> bool:
    """Tells whether an operator is selected: by name, or else by the mode.

    Raises:
        SelectionError: An unknown name.
    """
    check_operators(op_type)
    return STATE.wants_operator(op_type)


def _layer_numbers(layer_ids: Iterable[int]) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(python_operator.index(layer) for layer in layer_ids))
    except TypeError:
        raise SelectionError(
            f"layers {layer_ids!r}: a list of whole numbers is needed, such as [0, 5]."
        ) from None
