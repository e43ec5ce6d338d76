"""What the channels of a clean model look like: outliers and massive activations, as plain data."""

from dataclasses import dataclass
from typing import Any, Protocol

from noisescope.capture import ActivationCapture, output_projections
from noisescope.models import find_regions


class CleanRunner(Protocol):
    """Runs the clean model over the samples of a study."""

    @property
    def model(self) -> Any:
        """The model."""

    def run_clean(self) -> None:
        """Runs it once over every sample and its answer."""


@dataclass(frozen=True)
class Massive:
    """One activation far above all others of its module.

    Attributes:
        value: The activation, with sign.
        ratio: Its magnitude over the module's median magnitude.
        channel: Index on the last axis.
        count: How many values of this channel are as large.
        position: Token of the sample; None where rows could not be told.
        token_id: The token; None likewise.
    """

    value: float
    ratio: float
    channel: int
    count: int
    position: int | None
    token_id: int | None


@dataclass(frozen=True)
class ModuleChannels:
    """The channels of one module's output over a study's samples.

    Attributes:
        module: Dotted name.
        channels: How many there are.
        outliers: Numbers of the outlier channels, by ratio, largest first.
        ratios: Magnitude of each over the median channel's.
        max_ratio: The largest ratio of any channel.
        massive: Massive activations, the largest first.
    """

    module: str
    channels: int
    outliers: tuple[int, ...]
    ratios: tuple[float, ...]
    max_ratio: float
    massive: tuple[Massive, ...] = ()


def look_at_channels(runner: CleanRunner) -> tuple[ModuleChannels, ...]:
    """Returns what the channels of the output projections and of the residual stream look like."""
    model = runner.model
    regions = find_regions(model)
    layers = [name for r in regions.all if r.name.isdigit() for name, _ in r.modules]
    with ActivationCapture(model, [*output_projections(model), *layers]) as capture:
        runner.run_clean()
    outliers, massive = capture.detect_outliers(), capture.massive_activations()
    made = []
    for module, found in outliers.items():
        magnitudes = capture.statistics[module].mean_abs
        ratios = _ratios(magnitudes, found["max_ratio"])
        order = sorted(found["outlier_channels"], key=lambda channel: -ratios[channel])
        made.append(
            ModuleChannels(
                module,
                len(magnitudes),
                tuple(order),
                tuple(ratios[channel] for channel in order),
                found["max_ratio"],
                tuple(
                    Massive(m.value, m.ratio, m.channel, m.count, m.position, m.token_id)
                    for m in massive[module]
                ),
            )
        )
    return tuple(made)


def _ratios(magnitudes: object, max_ratio: float) -> list[float]:
    """Returns each channel's magnitude over the median's, of which the largest ratio is known."""
    values = [float(m) for m in magnitudes]  # type: ignore[attr-defined]
    largest = max((v for v in values if v == v), default=0.0)
    return [value * max_ratio / largest if largest > 0 else 0.0 for value in values]
