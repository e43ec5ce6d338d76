"""A diagnosis as an entry: a number per condition, windows as curves over layers, figures, verdict.

Figures that a report has drawn already are taken as they are; else they are drawn here.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from noisescope.analyse import Interval, Summary
from noisescope.report import diagnosis_sections, picture_files, verdict
from noisescope.study import Diagnosis
from noisescope.trackers.entry import Entry, part, scalars, without_nan

_FIGURES = "figures/"


def diagnosis_entry(diagnosis: Diagnosis, figures: Mapping[str, bytes] | None = None) -> Entry:
    """Returns what is logged of a diagnosis.

    Args:
        diagnosis: Finished, or as far as it is.
        figures: PNG files by name; None: they are drawn.
    """
    plan = diagnosis.plan
    config = {
        **diagnosis.config,
        "kind": diagnosis.kind,
        "n_samples": len(plan.samples),
        "draws": plan.draws,
        "seed": plan.seed,
        "fingerprints": dict(plan.fingerprints),
        "versions": dict(plan.versions),
    }
    texts = {"verdict": verdict(diagnosis)} if diagnosis.recommendation is None else {}
    if diagnosis.notes:
        texts["notes"] = "\n".join(diagnosis.notes)
    return Entry(
        name=f"{diagnosis.kind}-{Path(str(diagnosis.config['model'])).name}",
        config=without_nan(config),
        scalars=scalars(_numbers(diagnosis)),
        texts=texts,
        figures=drawn(diagnosis) if figures is None else figures,
    )


def drawn(diagnosis: Diagnosis) -> dict[str, bytes]:
    """Returns the report's figures as PNG files by name."""
    return pngs(picture_files(diagnosis_sections(diagnosis)))


def pngs(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Returns the PNG files among those of a report, by name."""
    return {
        name.removeprefix(_FIGURES).removesuffix(".png"): data
        for name, data in files.items()
        if name.endswith(".png")
    }


def _numbers(diagnosis: Diagnosis) -> Iterator[tuple[str, float, int]]:
    yield "clean/accuracy", diagnosis.baseline_accuracy, 0
    yield "clean/nll_nats_per_token", diagnosis.clean_nll_nats, 0
    for summary in diagnosis.summaries:
        layers = diagnosis.layers.get(summary.condition)
        if layers:
            for name, value in _of(diagnosis, summary):
                yield f"windows/{name}", value, layers[0]
        for name, value in _of(diagnosis, summary):
            yield f"{name}/{part(summary.condition)}", value, 0
    for step, summaries in diagnosis.chosen.items():
        for summary in summaries:
            for name, value in _of(diagnosis, summary):
                yield f"{part(step)}_{name}/{part(summary.condition)}", value, 0


def _of(diagnosis: Diagnosis, summary: Summary) -> Iterator[tuple[str, float]]:
    yield from _bounds("kl_nats_per_token", summary.kl_nats)
    yield from _bounds("accuracy_drop", summary.accuracy_drop)
    yield from _bounds("nll_change_nats_per_token", summary.nll_change_nats)
    yield "accuracy", summary.accuracy
    witness = diagnosis.witnesses.get(summary.condition)
    if witness is not None:
        dose = witness.dose()
        yield "dose_relative_l2", dose.relative_l2
        yield "dose_share_changed", dose.share_changed
    prediction = diagnosis.findings.predictions.get(summary.condition)
    if prediction is not None:
        yield "predicted_kl_nats_per_token", prediction.kl_nats


def _bounds(name: str, interval: Interval) -> Iterator[tuple[str, float]]:
    yield name, interval.mean
    yield f"{name}_low", interval.low
    yield f"{name}_high", interval.high
