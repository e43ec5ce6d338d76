"""The tables of the page: figures with their intervals, as the terminal has them, none cut."""

import math
from collections.abc import Sequence

from noisescope.analyse import Interval, Summary
from noisescope.inject import CoverageRow
from noisescope.report.figures import (
    dose_text,
    estimate_text,
    number_text,
    per_cent,
    percent,
    points_text,
    ratio_text,
    share_text,
    times_text,
)
from noisescope.report.page.page import Table
from noisescope.report.shares import predicted_share
from noisescope.study import Diagnosis

_MOST_OUTLIERS = 40
_SOFTMAX = (
    " A softmax shows less: its masked entries stay zero, and dividing by the sum takes part of "
    "the error back."
)


def condition_table(diagnosis: Diagnosis, title: str, summaries: Sequence[Summary]) -> Table:
    """Returns every measure of conditions with its interval; accuracy only where it is known."""
    has_accuracy = any(math.isfinite(s.accuracy_drop.mean) for s in summaries)
    predictions = diagnosis.findings.predictions
    columns = ["condition", "KL, nats/token"]
    columns += ["predicted"] if any(s.condition in predictions for s in summaries) else []
    columns += ["accuracy", "lost, points"] if has_accuracy else []
    columns += ["harm by KL", *(["harm by accuracy"] if has_accuracy else []), "dose"]
    rows = []
    for summary in summaries:
        row = {
            "condition": summary.condition,
            "KL, nats/token": estimate_text(summary.kl_nats),
            "predicted": _predicted(diagnosis, summary.condition),
            "accuracy": percent(summary.accuracy),
            "lost, points": _points(summary.accuracy_drop),
            "harm by KL": _harm(summary, "kl"),
            "harm by accuracy": _harm(summary, "accuracy"),
            "dose": dose_text(diagnosis.witnesses[summary.condition].dose()),
        }
        rows.append(tuple(row[column] for column in columns))
    margins = diagnosis.margins
    points = f"{100 * margins.accuracy:g} point{'' if margins.accuracy == 0.01 else 's'}"
    note = (
        f"Mean and 95 % interval. Harm is a loss beyond {margins.kl_nats:g} nats per token or "
        f"{points} of accuracy, at 5 % over all conditions together; "
        "where it is open, what would settle it."
    )
    return Table(f"{title}: figures", tuple(columns), tuple(rows), note + _rough(summaries))


def _rough(summaries: Sequence[Summary]) -> str:
    """Says which intervals of KL may not hold what they promise, and why."""
    why: dict[str, list[str]] = {}
    for summary in filter(lambda s: s.kl_nats.caution, summaries):
        why.setdefault(summary.kl_nats.caution, []).append(summary.condition)
    told = [f"Interval of KL of {', '.join(names)}: {caution}." for caution, names in why.items()]
    return "".join(f" {line}" for line in told)


def _predicted(diagnosis: Diagnosis, condition: str) -> str:
    found = diagnosis.findings.predictions.get(condition)
    if found is None:
        return "n/a"
    error = f" ± {number_text(found.error_nats)}" if math.isfinite(found.error_nats) else ""
    return f"{number_text(found.kl_nats)}{error}"


def _points(interval: Interval) -> str:
    return points_text(interval).removesuffix(" points") if math.isfinite(interval.mean) else "n/a"


def _signed(interval: Interval) -> str:
    if not interval.is_known:
        return number_text(interval.mean)
    return f"{number_text(interval.mean)} [{interval.low:.2g}, {interval.high:.2g}]"


def _harm(summary: Summary, measure: str) -> str:
    verdict = summary.kl_verdict if measure == "kl" else summary.accuracy_verdict
    if verdict is None:
        return "n/a"
    if verdict.needed_samples:
        return f"open: {verdict.needed_samples:,} samples"
    if verdict.needed_draws:
        return f"open: {verdict.needed_draws:,} draws"
    return verdict.outcome


def additivity_table(diagnosis: Diagnosis) -> list[Table]:
    """Returns each region alone and among the others; none where that was not measured."""
    found = diagnosis.findings.additivity
    if found is None:
        return []
    rows = tuple(
        (
            part.name,
            estimate_text(part.alone),
            _signed(part.among),
            _ratio(part.ratio),
            number_text(part.p_value),
        )
        for part in found.parts
    )
    return [
        Table(
            "Regions alone and among the others",
            ("region", "alone, nats/token", "among the others", "among over alone", "p by Holm"),
            rows,
            "Among the others: KL of everything less KL of all but this region. Above 1 the others "
            "amplify its error; p is that they do not.",
        )
    ]


def _ratio(ratio: Interval) -> str:
    """Writes a ratio that may be negative, as of a region without which it costs more."""
    if ratio.is_known and ratio.mean < 0:
        return f"below 0, at most {times_text(max(0.0, ratio.high))}"
    return ratio_text(ratio) if math.isfinite(ratio.mean) else "n/a"


def channel_tables(diagnosis: Diagnosis) -> list[Table]:
    """Returns outlier channels, massive activations, and noise in channels alone."""
    found = (_outliers(diagnosis), _massive(diagnosis), _effects(diagnosis))
    return [table for table in found if table.rows]


def _outliers(diagnosis: Diagnosis) -> Table:
    every = [
        (module.module, channel, ratio)
        for module in diagnosis.told.modules
        for channel, ratio in zip(module.outliers, module.ratios, strict=False)
    ]
    most = sorted(every, key=lambda row: -row[2])[:_MOST_OUTLIERS]
    rows = []
    for module, channel, ratio in most:
        kl, share = predicted_share(diagnosis.told.profile, module, channel)
        rows.append((module, str(channel), times_text(ratio), number_text(kl), per_cent(share)))
    note = f"The largest {len(most)} of {len(every)}." if len(most) < len(every) else ""
    columns = ("module", "channel", "times the middle", "predicted KL", "share of its site")
    return Table("Outlier channels", columns, tuple(rows), note)


def _massive(diagnosis: Diagnosis) -> Table:
    every = [(m.module, peak) for m in diagnosis.told.modules for peak in m.massive]
    most = sorted(every, key=lambda row: -row[1].ratio)[:_MOST_OUTLIERS]
    rows = tuple(
        (
            *(module, str(peak.channel), number_text(peak.value), times_text(peak.ratio)),
            *("n/a" if n is None else str(n) for n in (peak.position, peak.token_id)),
        )
        for module, peak in most
    )
    columns = ("module", "channel", "value", "times the median", "position", "token")
    return Table("Massive activations", columns, rows)


def _effects(diagnosis: Diagnosis) -> Table:
    rows = tuple(
        (
            effect.site,
            f"{len(effect.channels)} {'outliers' if effect.is_outlier else 'costliest'}: "
            f"{', '.join(map(str, effect.channels))}",
            estimate_text(effect.these),
            number_text(effect.predicted.kl_nats) if effect.predicted is not None else "n/a",
            estimate_text(effect.others),
            share_text(effect.share),
        )
        for effect in diagnosis.findings.channels
    )
    columns = ("noise in channels of", "these", "these alone, nats/token", "predicted",
               "all others alone, nats/token", "share of both")  # fmt: skip
    return Table("Noise in some channels alone, and in all others alone", columns, rows)


def coverage(diagnosis: Diagnosis, rows: Sequence[CoverageRow]) -> Table:
    """Returns the coverage: per operator the sites seen, selected and perturbed, and the dose."""
    asked = diagnosis.config["noise_scale"]
    note = "" if asked is None else f"Asked for: {asked:g}."
    return Table(
        "Coverage by operator",
        ("operator", "seen", "selected", "perturbed", "outputs", "dose"),
        tuple(
            (
                row.operator,
                *(f"{n:,}" for n in (row.seen, row.selected, row.perturbed, row.forward)),
                dose_text(row.dose),
            )
            for row in rows
        ),
        note + (_SOFTMAX if any(r.operator == "softmax" and r.perturbed for r in rows) else ""),
    )
