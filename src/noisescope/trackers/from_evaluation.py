"""An evaluation of harness tasks as an entry: clean, noisy and the difference of each metric."""

from collections.abc import Iterator
from pathlib import Path

from noisescope.harness import Evaluation
from noisescope.trackers.entry import Entry, part, scalars, without_nan


def evaluation_entry(evaluation: Evaluation) -> Entry:
    """Returns what is logged of an evaluation."""
    config = {
        **evaluation.config,
        "kind": "eval",
        "conditions": {c.name: c.as_json() for c in evaluation.conditions},
        "accuracy_margin": evaluation.margins.accuracy,
        "nats_margin": evaluation.margins.nats,
        "fingerprints": dict(evaluation.fingerprints),
        "versions": dict(evaluation.versions),
    }
    told = [
        f"{c.task}, {c.metric}, {c.condition}: {c.verdict.reason}"
        for c in evaluation.changes
        if c.verdict is not None
    ]
    texts = {"verdict": "\n".join(told)} if told else {}
    if evaluation.notes:
        texts["notes"] = "\n".join(evaluation.notes)
    return Entry(
        name=f"eval-{Path(str(evaluation.config['model'])).name}",
        config=without_nan(config),
        scalars=scalars(_numbers(evaluation)),
        texts=texts,
    )


def _numbers(evaluation: Evaluation) -> Iterator[tuple[str, float, int]]:
    for change in evaluation.changes:
        metric = f"{part(change.task)}_{part(change.metric)}_{part(change.filter)}"
        where = part(change.condition)
        interval = change.difference
        first = _first_layer(evaluation, change.condition)
        for name, value in (
            ("clean", change.clean),
            ("noisy", change.noisy),
            ("difference", interval.mean),
            ("difference_low", interval.low),
            ("difference_high", interval.high),
        ):
            yield f"{metric}/{where}_{name}", value, 0
            if first is not None:
                yield f"windows/{metric}_{name}", value, first
        if change.lost:
            yield f"{metric}/{where}_samples_lost", change.lost, 0
    for name, witness in evaluation.witnesses.items():
        dose = witness.dose()
        yield f"dose_relative_l2/{part(name)}", dose.relative_l2, 0
        yield f"dose_share_changed/{part(name)}", dose.share_changed, 0


def _first_layer(evaluation: Evaluation, condition: str) -> int | None:
    """Returns the first layer of a condition, where there are several of layers: then a curve."""
    if len(evaluation.conditions) < 2:
        return None
    chosen = next(c.selection.layers for c in evaluation.conditions if c.name == condition)
    layers = [int(layer) for layer in chosen or () if str(layer).isdigit()]
    return min(layers) if layers else None
