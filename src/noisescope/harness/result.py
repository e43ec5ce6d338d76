"""The result of an evaluation as a file: what was asked, what changed, and what it rests on.

Numbers that are not known are null. Every sample is in a table beside it.
"""

import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from noisescope.harness.evaluate import Evaluation
from noisescope.harness.kept import replace_file
from noisescope.harness.paired import Change

RESULT, SAMPLES = "result.json", "samples.parquet"


def evaluation_result(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the result as a dictionary that JSON can hold."""
    tasks: dict[str, Any] = {}
    for change in evaluation.changes:
        metrics = tasks.setdefault(change.task, {}).setdefault(change.condition, {})
        metrics[f"{change.metric},{change.filter}"] = _change(change)
    found: dict[str, Any] = _without_nan(
        {
            "config": {
                **evaluation.config,
                "accuracy_margin": evaluation.margins.accuracy,
                "nats_margin": evaluation.margins.nats,
            },
            "tasks": tasks,
            "conditions": {
                condition.name: {
                    **condition.as_json(),
                    "dose": asdict(evaluation.witnesses[condition.name].dose()),
                    "coverage": [
                        asdict(row) for row in evaluation.witnesses[condition.name].coverage()
                    ],
                }
                for condition in evaluation.conditions
            },
            "lm_eval": [
                {
                    "task": run.task,
                    "condition": run.condition,
                    "draw": run.draw,
                    "results": dict(run.aggregates),
                }
                for run in evaluation.runs
            ],
            "fingerprints": dict(evaluation.fingerprints),
            "versions": dict(evaluation.versions),
            "notes": list(evaluation.notes),
        }
    )
    return found


def write_evaluation(evaluation: Evaluation, directory: str | Path) -> tuple[str, ...]:
    """Writes the result and the table of samples into a directory, each whole or not at all.

    Args:
        evaluation: What was measured.
        directory: Of the evaluation; it exists.

    Returns:
        The names of the files.

    Raises:
        NoisescopeError: They cannot be written.
    """
    text = json.dumps(evaluation_result(evaluation), indent=2, allow_nan=False) + "\n"
    replace_file(Path(directory) / RESULT, text.encode())
    replace_file(Path(directory) / SAMPLES, samples_bytes(evaluation))
    return RESULT, SAMPLES


def samples_bytes(evaluation: Evaluation) -> bytes:
    """Returns the samples as Parquet: a row per condition, draw, task, document, filter, metric."""
    rows: list[dict[str, Any]] = []
    for run in evaluation.runs:
        for answer in run.answers:
            head = {
                "condition": run.condition,
                "draw": run.draw,
                "task": run.task,
                "doc_id": answer.doc_id,
                "doc_hash": answer.doc_hash,
                "filter": answer.filter,
                "target": answer.target,
                "response": json.dumps(answer.response),
            }
            for metric, value in answer.metrics.items():
                parts = value if isinstance(value, tuple) else (value, None)
                numbers = {"value": parts[0], "divided_by": parts[1]}
                rows.append({**head, "metric": metric, **numbers})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), sink)
    return sink.getvalue()


_SCHEMA = pa.schema(
    [
        ("condition", pa.string()),
        ("draw", pa.int64()),
        ("task", pa.string()),
        ("doc_id", pa.int64()),
        ("doc_hash", pa.string()),
        ("filter", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("divided_by", pa.float64()),
        ("target", pa.string()),
        ("response", pa.string()),
    ]
)


def _change(change: Change) -> dict[str, Any]:
    interval = change.difference
    return {
        "kind": change.kind,
        "clean": change.clean,
        "noisy": change.noisy,
        "difference": {
            "mean": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "includes_draws": interval.includes_draws,
            "caution": interval.caution,
        },
        "p": change.p,
        "higher_is_better": change.is_higher_better,
        "verdict": None if change.verdict is None else asdict(change.verdict),
        "made_wrong": None if change.flips is None else change.flips[0],
        "made_right": None if change.flips is None else change.flips[1],
        "draws": change.draws,
        "samples": change.samples,
        "samples_lost": change.lost,
    }


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _without_nan(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(part) for part in value]
    return value
