"""A condition: an error model and a selection. The clean condition has no error model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from noisescope.errors import InputError
from noisescope.inject import Selection
from noisescope.noise import (
    AbsoluteGaussian,
    Bias,
    BitFlips,
    DeadZone,
    ErrorModel,
    RelativeGaussian,
    RoundModules,
    RoundTo,
    Saturation,
    StuckChannels,
)

KNOWN_ERROR_MODELS: Mapping[str, type[ErrorModel]] = {
    kind.__name__: kind
    for kind in (
        RelativeGaussian,
        AbsoluteGaussian,
        RoundTo,
        RoundModules,
        BitFlips,
        StuckChannels,
        DeadZone,
        Saturation,
        Bias,
    )
}


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

    @property
    def can_be_read_back(self) -> bool:
        """Whether `from_json` knows its error model; one of the user's own it does not."""
        return KNOWN_ERROR_MODELS.get(type(self.error_model).__name__) is type(self.error_model)

    def as_json(self) -> dict[str, Any]:
        """Returns a dictionary for JSON, without the name."""
        error_model: Any = self.error_model
        return {
            "error_model": {"type": type(error_model).__name__, **asdict(error_model)},
            "selection": asdict(self.selection),
        }

    @classmethod
    def from_json(
        cls, name: str, entry: Mapping[str, Any], kinds: Iterable[type[ErrorModel]] = ()
    ) -> Self:
        """Returns the condition of a dictionary that `as_json` made.

        Args:
            name: Its name.
            entry: The dictionary.
            kinds: Error models of the user's own that it may hold.

        Raises:
            KeyError: It holds another error model.
        """
        known = {**KNOWN_ERROR_MODELS, **{kind.__name__: kind for kind in kinds}}
        parameters = dict(entry["error_model"])
        error_model = known[parameters.pop("type")](**parameters)
        return cls(name, error_model, cls.selection_of(entry))

    @staticmethod
    def selection_of(entry: Mapping[str, Any]) -> Selection:
        """Returns the selection of a dictionary that `as_json` made."""
        chosen = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in entry["selection"].items()
        }
        return Selection(**chosen)


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
