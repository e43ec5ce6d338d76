"""A comparison as JSON: every figure with its interval, and what the numbers stem from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from noisescope.analyse import Interval
from noisescope.analyse.change import Change
from noisescope.analyse.gate import Ruling, exit_status
from noisescope.report.contrast.text import notes
from noisescope.report.contrast.words import statements
from noisescope.report.result import without_nan
from noisescope.study.contrast import Contrast, Party, same_model


def contrast_of(contrast: Contrast, rulings: Sequence[Ruling] = ()) -> dict[str, Any]:
    """Returns the comparison as a dictionary that JSON can hold; what is unknown is None."""
    prints = contrast.first.fingerprints, contrast.second.fingerprints
    result: dict[str, Any] = {
        "compared": contrast.kind,
        "a": _party(contrast.first),
        "b": _party(contrast.second),
        "weights_are_identical": contrast.has_same_weights,
        "models_are_identical": same_model(*prints),
        "statements": statements(contrast),
        "changes": [_change(change) for change in contrast.changes],
        "doses": {
            name: {letter: asdict(dose) for letter, dose in zip("ab", doses, strict=True)}
            for name, doses in contrast.doses.items()
        },
        "only_in_a": list(contrast.only[0]),
        "only_in_b": list(contrast.only[1]),
        "agreement": dict(contrast.agreement),
        "differing": list(contrast.differing),
        "notes": notes(contrast),
        "gates": [_ruling(ruling) for ruling in rulings],
        "exit_status": exit_status(rulings),
    }
    cleaned: dict[str, Any] = without_nan(result)
    return cleaned


def contrast_bytes(contrast: Contrast, rulings: Sequence[Ruling] = ()) -> bytes:
    """Returns the comparison as the bytes of a JSON file."""
    return (json.dumps(contrast_of(contrast, rulings), indent=2, allow_nan=False) + "\n").encode()


def _party(party: Party) -> dict[str, Any]:
    plain: Mapping[str, Any] = {name.replace(" ", "_"): v for name, v in party.about.items()}
    return {
        "path": party.path,
        **plain,
        "fingerprints": dict(party.fingerprints),
        "versions": dict(party.versions),
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "condition": change.condition,
        "measure": change.measure,
        "unit": "share" if change.measure == "accuracy" else "nats per token",
        "a": change.first,
        "b": change.second,
        "difference": _interval(change.difference),
        "p": change.p,
        "outcome": change.outcome,
        "is_paired": change.sides.is_paired,
        "is_asked": change.is_asked,
        "draws": change.draws,
        "samples_a": change.samples[0],
        "samples_b": change.samples[1],
        "overflows": change.overflows,
        "flips": None
        if change.flips is None
        else dict(zip(("lost", "won"), change.flips, strict=True)),
    }


def _interval(interval: Interval) -> dict[str, Any]:
    return {
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "includes_draws": interval.includes_draws,
        "caution": interval.caution,
    }


def _ruling(ruling: Ruling) -> dict[str, Any]:
    return {
        "gate": ruling.gate.text,
        "measure": ruling.gate.measure,
        "bound": ruling.gate.bound,
        "outcome": ruling.outcome,
        "condition": ruling.condition,
        "p": ruling.p,
        "reason": ruling.reason,
        "conditions": list(ruling.conditions),
        "needed_samples": ruling.needed_samples,
        "needed_draws": ruling.needed_draws,
    }
