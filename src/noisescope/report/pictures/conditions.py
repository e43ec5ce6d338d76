"""Conditions as dots with their intervals, one row each: KL and, where known, accuracy lost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from noisescope.analyse import Interval, Prediction, Summary
from noisescope.report.figures import estimate_text, number_text, percent, points_text
from noisescope.report.page.page import Picture
from noisescope.report.pictures.paint import (
    EDGE,
    FAINT,
    INK,
    PREDICTED,
    WORST,
    drawable,
    dress,
    logarithmic,
    new_figure,
)
from noisescope.report.pictures.prediction import short_site
from noisescope.study import Diagnosis

_WIDEST_LINEAR = 30.0  # largest over smallest KL that a linear axis still shows
_LONGEST = 48
_MOST_ROWS = 60
_FILLS = {"harmful": "full", "inconclusive": "left", "harmless": "none"}
_COLUMNS = (
    *("condition", "KL, nats per token", "low", "high", "predicted KL, nats per token"),
    *("accuracy", "accuracy lost, points", "low, points", "high, points"),
    *("harm by KL", "harm by accuracy", "draws", "samples", "caution"),
)


def condition_picture(
    diagnosis: Diagnosis, name: str, title: str, summaries: Sequence[Summary]
) -> Picture | None:
    """Returns the figure, the conditions in the order given; None where there are none."""
    if not summaries:
        return None
    every, summaries = summaries, _largest(summaries)
    has_accuracy = any(math.isfinite(s.accuracy_drop.mean) for s in summaries)
    names = [drawable(short_site(s.condition), _LONGEST) for s in summaries]
    label_in = 0.068 * max(map(len, names))
    figure = new_figure(
        max(6.4, label_in + 1.0 + 3.0 * (1 + has_accuracy)), max(1.5, 0.85 + 0.26 * len(summaries))
    )
    left, *right = figure.subplots(1, 1 + has_accuracy, sharey=True, squeeze=False)[0]
    predictions = diagnosis.findings.predictions
    tips = _draw_kl(left, summaries, predictions, diagnosis.margins.kl_nats)
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.set_ylim(len(names) - 0.4, -0.6)
    for axes in right:
        tips |= _draw_lost(axes, summaries, 100 * diagnosis.margins.accuracy)
    return Picture(
        name,
        title,
        _caption(has_accuracy, any(s.condition in predictions for s in summaries))
        + (
            f" Drawn are the {len(summaries)} that cost most."
            if len(every) > len(summaries)
            else ""
        ),
        figure,
        tips,
        _COLUMNS,
        tuple(_row(s, predictions.get(s.condition)) for s in every),
    )


def _largest(summaries: Sequence[Summary]) -> Sequence[Summary]:
    """Returns the conditions that cost most where there are too many to be drawn, in order."""
    if len(summaries) <= _MOST_ROWS:
        return summaries
    costs = [s.kl_nats.mean if math.isfinite(s.kl_nats.mean) else math.inf for s in summaries]
    least = sorted(costs, reverse=True)[_MOST_ROWS - 1]
    kept = [s for s, cost in zip(summaries, costs, strict=True) if cost >= least]
    return kept[:_MOST_ROWS]


def _draw_kl(
    axes: Any,
    summaries: Sequence[Summary],
    predictions: Mapping[str, Prediction],
    margin: float,
) -> dict[str, str]:
    known = [predictions.get(s.condition) for s in summaries]
    values = [s.kl_nats.mean for s in summaries] + [p.kl_nats for p in known if p is not None]
    positive = [v for v in values if math.isfinite(v) and v > 0]
    is_log = bool(positive) and max(positive) > _WIDEST_LINEAR * min(positive)
    floor = min(positive) / 4 if is_log else 0.0
    dress(axes, "KL, nats per token", "")
    if is_log:
        logarithmic(axes.xaxis)
    tips = {}
    for row, (summary, prediction) in enumerate(zip(summaries, known, strict=True)):
        if prediction is not None and prediction.kl_nats > 0:
            axes.plot(
                prediction.kl_nats, row, "D", color=PREDICTED, markersize=4.5, fillstyle="none"
            )
        _draw_dot(axes, row, summary.kl_nats, _outcome(summary, "kl"), floor, f"kl-{row}")
        tips[f"kl-{row}"] = _kl_tip(summary, prediction)
    ends = [s.kl_nats.high for s in summaries if s.kl_nats.is_known] + positive
    if ends:
        axes.set_xlim(floor, max(ends) * (2 if is_log else 1.06))
        axes.margins(x=0)
        _draw_margin(axes, margin)
    axes.tick_params(axis="y", labelcolor=INK)
    return tips


def _draw_lost(axes: Any, summaries: Sequence[Summary], margin: float) -> dict[str, str]:
    dress(axes, "accuracy lost, points", "")
    tips = {}
    for row, summary in enumerate(summaries):
        drop = summary.accuracy_drop
        if math.isfinite(drop.mean):
            points = _scaled(drop, 100)
            _draw_dot(
                axes, row, points, _outcome(summary, "accuracy"), -math.inf, f"accuracy-{row}"
            )
            tips[f"accuracy-{row}"] = _accuracy_tip(summary)
    axes.set_xlim(left=min(axes.get_xlim()[0], -2.0))
    _draw_margin(axes, margin)
    axes.tick_params(axis="y", labelleft=False)
    return tips


def _draw_dot(
    axes: Any, row: int, interval: Interval, outcome: str, floor: float, gid: str
) -> None:
    """Draws a mean with its bar; below the axis' end it is an arrow at the end."""
    colour = WORST if outcome == "harmful" else INK
    if interval.is_known:
        low = max(floor, interval.low)
        axes.plot([low, interval.high], [row, row], color=colour, linewidth=1.3)
    mean = interval.mean
    is_shown = math.isfinite(mean) and (mean > floor or floor <= 0)
    axes.plot(
        mean if is_shown else floor if math.isfinite(floor) else 0.0,
        row,
        "o" if is_shown else "<" if mean <= floor else "x",
        color=colour,
        markerfacecoloralt="#ffffff",
        markersize=7,
        markeredgewidth=1.3,
        fillstyle=_FILLS.get(outcome, "none") if is_shown else "full",
        clip_on=False,
        gid=gid,
    )


def _draw_margin(axes: Any, margin: float) -> None:
    low, high = axes.get_xlim()
    if low < margin < high:
        axes.axvline(margin, color=EDGE, linestyle=(0, (4, 2)), linewidth=1.1, zorder=1)
        axes.annotate(
            "margin", (margin, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
            textcoords="offset points", ha="center", va="bottom", fontsize=7.5, color=FAINT,
        )  # fmt: skip


def _outcome(summary: Summary, measure: str) -> str:
    verdict = summary.kl_verdict if measure == "kl" else summary.accuracy_verdict
    return "" if verdict is None else verdict.outcome


def _scaled(interval: Interval, factor: float) -> Interval:
    mean, low, high = (factor * end for end in (interval.mean, interval.low, interval.high))
    return replace(interval, mean=mean, low=low, high=high)


def _kl_tip(summary: Summary, prediction: Prediction | None) -> str:
    lines = [summary.condition, f"KL {estimate_text(summary.kl_nats)} nats per token"]
    if prediction is not None and math.isfinite(prediction.kl_nats):
        lines.append(f"predicted {number_text(prediction.kl_nats)}")
    lines += _outcome_lines(summary, "kl")
    return "\n".join([*lines, *filter(None, [summary.kl_nats.caution])])


def _accuracy_tip(summary: Summary) -> str:
    lines = [summary.condition, f"accuracy {percent(summary.accuracy)}"]
    lines.append(f"lost {points_text(summary.accuracy_drop)}")
    return "\n".join([*lines, *_outcome_lines(summary, "accuracy")])


def _outcome_lines(summary: Summary, measure: str) -> list[str]:
    verdict = summary.kl_verdict if measure == "kl" else summary.accuracy_verdict
    if verdict is None:
        return []
    told = verdict.outcome
    if verdict.needed_samples or verdict.needed_draws:
        count = verdict.needed_samples or verdict.needed_draws
        what = "samples" if verdict.needed_samples else "draws"
        told += f"; about {count:,} {what} would settle it"
    return [told]


def _row(summary: Summary, prediction: Prediction | None) -> tuple[object, ...]:
    kl, drop = summary.kl_nats, _scaled(summary.accuracy_drop, 100)
    return (
        summary.condition,
        *(kl.mean, kl.low, kl.high, None if prediction is None else prediction.kl_nats),
        *(summary.accuracy, drop.mean, drop.low, drop.high),
        *(_outcome(summary, "kl"), _outcome(summary, "accuracy")),
        *(summary.draws, summary.samples, kl.caution),
    )


def _caption(has_accuracy: bool, has_prediction: bool) -> str:
    told = (
        "Mean and 95 % interval; full dots are harmful, half ones inconclusive, open ones harmless "
        "within the dashed margin"
    )
    if not has_accuracy:
        told += "; nothing was generated here, so no accuracy is known"
    return f"{told}. Diamonds are predicted." if has_prediction else f"{told}."
