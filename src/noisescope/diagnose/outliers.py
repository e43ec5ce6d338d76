"""Runs the clean model over a study's samples and looks at its channels."""

from noisescope.capture import ActivationCapture, output_projections
from noisescope.measure import Worker
from noisescope.models import LoadedModel, find_regions
from noisescope.study import Study
from noisescope.study.kept_channels import Massive, ModuleChannels, channels_kept_or_made


def outlier_channels(
    study: Study, worker: Worker, loaded: LoadedModel
) -> tuple[ModuleChannels, ...]:
    """Returns what the channels of the output projections and of the residual stream look like."""
    return channels_kept_or_made(study, lambda: _captured(worker, loaded))


def _captured(worker: Worker, loaded: LoadedModel) -> tuple[ModuleChannels, ...]:
    model = loaded.model
    regions = find_regions(model)
    layers = [name for r in regions.all if r.name.isdigit() for name, _ in r.modules]
    with ActivationCapture(model, [*output_projections(model), *layers]) as capture:
        worker.run_clean()
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
