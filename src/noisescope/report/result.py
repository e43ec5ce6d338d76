"""The result file: the plan's fields first, then what makes its numbers worth trusting.

What was found beyond the conditions is in result_findings.py.

Numbers that are not known are null, never zero. Nothing in it depends on the clock, so equal runs
give equal files.
"""

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from noisescope.analyse import Interval, Summary, Verdict, Winner, Worst
from noisescope.errors import InputError
from noisescope.inject import Witness
from noisescope.report.result_findings import findings_of
from noisescope.study import Diagnosis

_KEYS = {
    "layers": "layer_sensitivity",
    "sites": "site_sensitivity",
    "operators": "operator_sensitivity",
}


def result_of(diagnosis: Diagnosis) -> dict[str, Any]:
    """Returns the result as a dictionary that JSON can hold."""
    plan, worst = diagnosis.plan, diagnosis.worst_accuracy
    result = {
        "config": {
            **diagnosis.config,
            "n_samples": len(plan.samples),
            "draws": plan.draws,
            "seed": plan.seed,
            "accuracy_margin": diagnosis.margins.accuracy,
            "kl_margin_nats_per_token": diagnosis.margins.kl_nats,
        },
        "baseline_accuracy": diagnosis.baseline_accuracy,
        **_asked(diagnosis),
        "avalanche_point": worst.condition,
        "avalanche": _worst(worst),
        "most_sensitive_by_kl": _worst(diagnosis.worst_kl),
        "clean_nll_nats_per_token": diagnosis.clean_nll_nats,
        "chosen": {
            step: {s.condition: _condition(diagnosis, s) for s in summaries}
            for step, summaries in diagnosis.chosen.items()
        },
        **findings_of(diagnosis),
        "fingerprints": dict(plan.fingerprints),
        "versions": dict(plan.versions),
        "notes": list(diagnosis.notes),
    }
    if diagnosis.failures:
        result["failed_units"] = [failure.as_json() for failure in diagnosis.failures]
    if diagnosis.winner is not None:
        result["search"] = _search(diagnosis, diagnosis.winner)
    cleaned: dict[str, Any] = without_nan(result)
    return cleaned


def _asked(diagnosis: Diagnosis) -> dict[str, Any]:
    """Returns the conditions that were asked for; of a whole diagnosis, windows on their own."""
    entries = {s.condition: _condition(diagnosis, s) for s in diagnosis.summaries}
    if diagnosis.kind != "diagnose":
        return {_KEYS[diagnosis.kind]: entries} if diagnosis.kind in _KEYS else {}
    windows = {name: entry for name, entry in entries.items() if name in diagnosis.layers}
    others = {name: entry for name, entry in entries.items() if name not in windows}
    return {_KEYS["operators"]: others, _KEYS["layers"]: windows}


def result_bytes(diagnosis: Diagnosis) -> bytes:
    """Returns the result as the bytes of a JSON file."""
    return (json.dumps(result_of(diagnosis), indent=2, allow_nan=False) + "\n").encode()


def write_result(diagnosis: Diagnosis, path: Path) -> None:
    """Writes the result as JSON into a new file.

    Raises:
        InputError: The file exists already, or cannot be written.
    """
    _write_new(path, result_bytes(diagnosis))


def _write_new(path: Path, data: bytes) -> None:
    made = path.with_name(f".noisescope-{os.getpid()}")
    try:
        made.write_bytes(data)
        path.open("x").close()  # takes the name, or fails where it is taken
        made.replace(path)
    except FileExistsError:
        raise InputError(f"{path} exists already: name a file that does not") from None
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another place") from error
    finally:
        made.unlink(missing_ok=True)


def _condition(diagnosis: Diagnosis, summary: Summary) -> dict[str, Any]:
    witness = diagnosis.witnesses[summary.condition]
    entry: dict[str, Any] = {}
    if summary.condition in diagnosis.layers:
        entry["layers"] = list(diagnosis.layers[summary.condition])
    entry |= {
        "accuracy": summary.accuracy,
        "degradation": summary.degradation,
        "injection_stats": _injection_stats(witness),
        "accuracy_drop": _interval(summary.accuracy_drop),
        "kl_nats_per_token": _interval(summary.kl_nats),
        "nll_change_nats_per_token": _interval(summary.nll_change_nats),
        "top1_agreement": _interval(summary.top1_agreement),
        "kl_p95_nats": _interval(summary.kl_p95_nats),
        "kl_p99_nats": _interval(summary.kl_p99_nats),
        "accuracy_verdict": _verdict(summary.accuracy_verdict),
        "kl_verdict": _verdict(summary.kl_verdict),
        "draws": summary.draws,
        "samples": summary.samples,
        "dose": asdict(witness.dose()),
        "coverage": [asdict(row) for row in witness.coverage()],
    }
    if math.isnan(summary.degradation):
        entry["degradation_note"] = diagnosis.worst_accuracy.reason
    return entry


def _injection_stats(witness: Witness) -> dict[str, dict[str, int]]:
    stats: dict[str, dict[str, int]] = {}
    for record in witness.records:
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
        "caution": interval.caution,
    }


def _verdict(verdict: Verdict | None) -> dict[str, Any] | None:
    return None if verdict is None else asdict(verdict)


def _worst(worst: Worst) -> dict[str, Any]:
    return asdict(worst) | {"rivals": list(worst.rivals), "held_out": _interval(worst.held_out)}


def _search(diagnosis: Diagnosis, winner: Winner) -> dict[str, Any]:
    """Says what a search found, and what share of the full sweep it took."""
    plan = diagnosis.plan
    measured = sum(r.condition in plan.conditions for r in diagnosis.records)
    full = len(plan.conditions) * len(plan.samples) * plan.draws
    return asdict(winner) | {"evaluations": measured, "evaluations_of_full_sweep": full}


def without_nan(value: Any) -> Any:
    """Replaces NaN and infinities by None, which JSON can hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(v) for v in value]
    return value
