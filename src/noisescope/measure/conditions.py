"""A condition: an error model and a selection. The clean condition has no error model."""

from collections.abc import Sequence
from dataclasses import dataclass

from noisescope.errors import InputError
from noisescope.inject import Selection
from noisescope.noise import ErrorModel


@dataclass(frozen=True)
class Condition:
    """What is perturbed, and how.

    Attributes:
        name: Unique within a study, e.g. ``L0-2`` or ``linear``.
        error_model: What is added.
        selection: Where.
    """

    name: str
    error_model: ErrorModel
    selection: Selection


def layer_windows(n_layers: int, window: int, stride: int) -> list[tuple[int, ...]]:
    """Returns sliding windows of layers; the last one is moved back to end with the last layer.

    A stride beyond the window leaves layers out.

    Args:
        n_layers: Layers of the model.
        window: Layers per window, 1 to `n_layers`.
        stride: Layers from one window's start to the next, at least 1.

    Raises:
        InputError: The model has no known layers, or window or stride is out of range.
    """
    if n_layers < 1:
        raise InputError(
            "this model has no layers that noisescope knows, so no windows: name them once with "
            "noisescope.register_family(model_type, layers=...)"
        )
    if not 1 <= window <= n_layers:
        raise InputError(
            f"window of {window} layers: this model has {n_layers}; give 1 to {n_layers}"
        )
    if stride < 1:
        raise InputError(f"stride {stride}: at least 1 is needed; try {window}")
    starts = list(range(0, n_layers - window + 1, stride))
    if starts[-1] + window < n_layers:
        starts.append(n_layers - window)
    return [tuple(range(start, start + window)) for start in starts]


def window_name(layers: Sequence[int]) -> str:
    """Names a window: ``L0-2``, or ``L7`` for a single layer."""
    return f"L{layers[0]}" if len(layers) == 1 else f"L{layers[0]}-{layers[-1]}"
