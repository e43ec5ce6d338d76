"""The result file: the plan's fields first, then what makes its numbers worth trusting.

Numbers that are not known are null, never zero. Nothing in it depends on the clock, so equal runs
give equal files.
"""

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from noisescope.analyse import Interval, Summary, Worst
from noisescope.errors import InputError
from noisescope.inject import CoverageRow, Dose, Session
from noisescope.records import Record
from noisescope.study import Diagnosis

_PACKAGES = ("noisescope", "torch", "transformers", "numpy", "numba", "tokenizers")


def result_of(diagnosis: Diagnosis) -> dict[str, Any]:
    """Returns the result as a dictionary that JSON can hold."""
    key = "layer_sensitivity" if diagnosis.kind == "layers" else "operator_sensitivity"
    worst = diagnosis.worst_accuracy
    result = {
        "config": _config(diagnosis),
        "baseline_accuracy": diagnosis.baseline_accuracy,
        key: {s.condition: _condition(diagnosis, s) for s in diagnosis.summaries},
        "avalanche_point": worst.condition,
        "avalanche": _worst(worst),
        "most_sensitive_by_kl": _worst(diagnosis.worst_kl),
        "clean_nll_nats_per_token": diagnosis.measurement.clean_nll_nats,
        "fingerprints": {
            "model": diagnosis.loaded.fingerprint,
            "data": diagnosis.task.fingerprint,
        },
        "versions": versions(),
        "notes": list(diagnosis.notes),
    }
    cleaned: dict[str, Any] = _without_nan(result)
    return cleaned


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def write_result(result: dict[str, Any], path: Path) -> None:
    """Writes a result as JSON into a new file.

    Raises:
        InputError: The file exists already, or cannot be written.
    """
    _write_new(path, json.dumps(result, indent=2, allow_nan=False) + "\n")


def write_records(records: Sequence[Record], path: Path) -> None:
    """Writes records as JSON lines into a new file.

    Raises:
        InputError: The file exists already, or cannot be written.
    """
    lines = [json.dumps(record.as_json(), allow_nan=False) + "\n" for record in records]
    _write_new(path, "".join(lines))


def _write_new(path: Path, text: str) -> None:
    made = path.with_name(f".noisescope-{os.getpid()}")
    try:
        made.write_text(text, encoding="utf-8")
        path.open("x").close()  # takes the name, or fails where it is taken
        made.replace(path)
    except FileExistsError:
        raise InputError(f"{path} exists already: name a file that does not") from None
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another place") from error
    finally:
        made.unlink(missing_ok=True)


def _config(diagnosis: Diagnosis) -> dict[str, Any]:
    loaded, plan = diagnosis.loaded, diagnosis.plan
    error = asdict(diagnosis.error_model)  # type: ignore[call-overload]
    return {
        "model": str(loaded.path),
        "data": diagnosis.task.name,
        "noise_scale": error.get("scale"),
        "error_model": type(diagnosis.error_model).__name__,
        "error_parameters": error,
        **diagnosis.settings,
        "n_samples": len(diagnosis.task.samples),
        "draws": plan.draws,
        "seed": plan.seed,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "max_new_tokens": diagnosis.task.max_new_tokens if diagnosis.task.is_generative else None,
    }


def _condition(diagnosis: Diagnosis, summary: Summary) -> dict[str, Any]:
    session = diagnosis.measurement.sessions[summary.condition]
    entry: dict[str, Any] = {}
    if summary.condition in diagnosis.layers:
        entry["layers"] = list(diagnosis.layers[summary.condition])
    entry |= {
        "accuracy": summary.accuracy,
        "degradation": summary.degradation,
        "injection_stats": _injection_stats(session),
        "accuracy_drop": _interval(summary.accuracy_drop),
        "kl_nats_per_token": _interval(summary.kl_nats),
        "nll_change_nats_per_token": _interval(summary.nll_change_nats),
        "top1_agreement": _interval(summary.top1_agreement),
        "draws": summary.draws,
        "samples": summary.samples,
        "dose": _dose(session.dose()),
        "coverage": [_coverage(row) for row in session.coverage()],
    }
    if math.isnan(summary.degradation):
        entry["degradation_note"] = diagnosis.worst_accuracy.reason
    return entry


def _injection_stats(session: Session) -> dict[str, dict[str, int]]:
    stats: dict[str, dict[str, int]] = {}
    for record in session.records:
        if record.forward or record.backward:
            region = stats.setdefault(record.site.region, {"forward": 0, "backward": 0})
            region["forward"] += record.forward
            region["backward"] += record.backward
    return stats


def _interval(interval: Interval) -> dict[str, Any]:
    return {
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "includes_draws": interval.includes_draws,
    }


def _dose(dose: Dose) -> dict[str, Any]:
    return asdict(dose)


def _coverage(row: CoverageRow) -> dict[str, Any]:
    return asdict(row)


def _worst(worst: Worst) -> dict[str, Any]:
    return asdict(worst) | {"rivals": list(worst.rivals)}


def _without_nan(value: Any) -> Any:
    """Replaces NaN and infinities by None, which JSON can hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return value
