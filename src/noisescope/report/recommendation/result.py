"""A recommendation in the result file: what could be chosen, what was, predicted and measured."""

from dataclasses import asdict
from typing import Any

from noisescope.study.recommended import Assigned, Recommendation


def recommendation_json(found: Recommendation) -> dict[str, Any]:
    """Returns a recommendation as a dictionary that JSON can hold."""
    options = found.options
    return {
        "target": options.target,
        "formats": list(options.formats),
        "operand": options.operand,
        "bits_per_weight": found.best.bits,
        "stored_bits_per_weight": found.best.stored_bits,
        "bits_per_parameter_of_the_model": options.model_bits(found.best.chosen, found.dtype),
        "modules": options.modules(found.best.chosen),
        "kept": dict(options.kept),
        "groups": [_group(found, row) for row in range(len(options.groups))],
        "assignments": {one.name: _assigned(found, one) for one in found.assigned},
        "frontier": [
            {
                "bits_per_weight": point.bits,
                "predicted_kl_nats_per_token": point.kl_nats,
                "formats": [options.formats[number] for number in point.chosen],
            }
            for point in found.frontier
        ],
    }


def _group(found: Recommendation, row: int) -> dict[str, Any]:
    group, formats = found.options.groups[row], found.options.formats
    return {
        "name": group.name,
        "modules": list(group.modules),
        "weights": group.weights,
        "active_share": group.active_share,
        "format": formats[found.best.chosen[row]],
        "bits_per_weight": dict(zip(formats, found.choices.bits_GF[row].tolist(), strict=True)),
        "predicted_kl_nats_per_token": dict(
            zip(formats, found.choices.kl_GF[row].tolist(), strict=True)
        ),
        "weight_error": dict(zip(formats, found.options.weight_errors[row], strict=True)),
    }


def _assigned(found: Recommendation, one: Assigned) -> dict[str, Any]:
    return {
        "also": list(one.also),
        "formats": [found.options.formats[number] for number in one.chosen],
        "bits_per_weight": one.bits,
        "stored_bits_per_weight": one.stored_bits,
        "predicted_kl_nats_per_token": one.predicted.kl_nats,
        "standard_error": one.predicted.error_nats,
        "measured_kl_nats_per_token": None if one.summary is None else asdict(one.summary.kl_nats),
        "loses_more_by": None if one.worse_by is None else asdict(one.worse_by),
    }
