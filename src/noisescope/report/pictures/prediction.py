"""Measured against predicted KL, condition by condition, on logarithms of both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from noisescope.analyse import Interval, Prediction
from noisescope.analyse.predict import TOLERANCE, departs
from noisescope.report.figures import estimate_text, number_text, times_text
from noisescope.report.page.page import Picture
from noisescope.report.pictures.cells import label_of
from noisescope.report.pictures.paint import (
    FAINT,
    GRID,
    INK,
    PAPER,
    PREDICTED,
    WORST,
    drawable,
    dress,
    logarithmic,
    new_figure,
)
from noisescope.study import Diagnosis
from noisescope.study.findings import whole_of
from noisescope.study.steps import scale_of_name

_MARKERS = {"operator": "^", "window": "s", "region": "D", "single site": "o", "everything": "P"}
_MOST_NAMED = 3


@dataclass(frozen=True)
class _Point:
    """A condition with both: `kind` is what it covers, `is_off` whether it is off the line."""

    name: str
    kind: str
    predicted: Prediction
    measured: Interval

    @property
    def is_off(self) -> bool:
        return departs(self.predicted, self.measured)

    @property
    def ratio(self) -> float:
        return self.measured.mean / self.predicted.kl_nats


def prediction_picture(diagnosis: Diagnosis) -> Picture | None:
    """Returns the figure; None where no condition has both above zero."""
    points = _points(diagnosis)
    if not points:
        return None
    figure = new_figure(8.2, 5.4)
    axes: Any = figure.subplots()
    dress(axes, "predicted KL, nats per token", "measured KL, nats per token")
    logarithmic(axes.xaxis)
    logarithmic(axes.yaxis)
    _draw_line(axes, points)
    tips = _draw_points(axes, points)
    _name_farthest(axes, points)
    return Picture(
        "prediction",
        "Measured against predicted",
        f"Every condition at the study's scale. The dashed line is measured = predicted, the band "
        f"a factor {TOLERANCE:g} either way; bars are 95 % intervals of the measurement and two "
        "standard errors of the prediction. Filled marks are off the line beyond chance, open ones "
        "cannot be told from it.",
        figure,
        tips,
        ("condition", "covers", "predicted KL, nats per token", "standard error",
         "measured KL, nats per token", "low", "high", "measured over predicted", "off the line"),
        tuple(
            (p.name, p.kind, p.predicted.kl_nats, p.predicted.error_nats, p.measured.mean,
             p.measured.low, p.measured.high, p.ratio, "yes" if p.is_off else "no")
            for p in points
        ),
    )  # fmt: skip


def _points(diagnosis: Diagnosis) -> list[_Point]:
    """Returns what has both, kind by kind; everything and all but a part is left out as a sum."""
    found = []
    for summary in diagnosis.analysis.summaries:
        prediction = diagnosis.findings.predictions.get(summary.condition)
        if prediction is None or scale_of_name(summary.condition) is not None:
            continue
        is_known = prediction.kl_nats > 0 and summary.kl_nats.mean > 0
        if is_known and not prediction.unreached and math.isfinite(summary.kl_nats.mean):
            kind = _kind(diagnosis, summary.condition)
            if kind:
                found.append(_Point(summary.condition, kind, prediction, summary.kl_nats))
    return sorted(found, key=lambda point: list(_MARKERS).index(point.kind))


def _kind(diagnosis: Diagnosis, name: str) -> str:
    plan = diagnosis.plan
    if name in plan.about.get("operators", ()):
        return "operator"
    if name in {label_of(region) for region in plan.about.get("regions", ())}:
        return "region"
    if name in diagnosis.layers:
        return "window"
    selection = plan.conditions[name].get("selection", {})
    is_part = selection.get("channels") is not None or selection.get("without_channels")
    if len(selection.get("sites") or ()) == 1 and ":" in name and not is_part:
        return "single site"
    return "everything" if name == whole_of(plan) else ""


def _draw_line(axes: Any, points: Sequence[_Point]) -> None:
    x = [p.predicted.kl_nats for p in points]
    y = [p.measured.mean for p in points]
    low, high = min(*x, *y) / 3, max(*x, *y) * 3
    ends = np.array([low, high])
    axes.fill_between(ends, ends / TOLERANCE, ends * TOLERANCE, color=GRID, linewidth=0, zorder=0.5)
    axes.plot(ends, ends, "--", color=FAINT, linewidth=1, zorder=1)
    axes.set_xlim(min(x) / 2.5, max(x) * 2.5)
    axes.set_ylim(min(y) / 4, max(y) * 4)


def _draw_points(axes: Any, points: Sequence[_Point]) -> dict[str, str]:
    """Draws marks and bars, kind by kind and on or off the line; returns what they say."""
    tips: dict[str, str] = {}
    for kind, marker in _MARKERS.items():
        for is_off in (False, True):
            some = [p for p in points if p.kind == kind and p.is_off == is_off]
            if not some:
                continue
            _draw_bars(axes, some, WORST if is_off else PREDICTED)
            gid = f"{kind.replace(' ', '-')}-{'off' if is_off else 'on'}"
            x, y = [p.predicted.kl_nats for p in some], [p.measured.mean for p in some]
            axes.scatter(
                x, y, s=34, marker=marker, zorder=3, gid=gid, linewidths=1.2,
                facecolor=WORST if is_off else "#ffffff", edgecolor=WORST if is_off else PREDICTED,
                label=drawable(f"{kind}{', off the line' if is_off else ''}"),
            )  # fmt: skip
            tips |= {f"{gid}/{number}": _tip(point) for number, point in enumerate(some)}
    axes.legend(
        fontsize=8, frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1.01, 0.5)
    )
    return tips


def _draw_bars(axes: Any, points: Sequence[_Point], colour: str) -> None:
    known = [p for p in points if p.measured.is_known]
    # A bound at zero is drawn down to a hundredth of the mean.
    axes.vlines(
        [p.predicted.kl_nats for p in known],
        [max(p.measured.low, p.measured.mean / 100) for p in known],
        [p.measured.high for p in known],
        color=colour,
        linewidth=0.9,
        zorder=2,
    )
    exact = [p for p in points if math.isfinite(p.predicted.error_nats)]
    bounds = [(p.predicted.kl_nats, 2 * p.predicted.error_nats) for p in exact]
    axes.hlines(
        [p.measured.mean for p in exact],
        [max(mean - error, mean / 100) for mean, error in bounds],
        [mean + error for mean, error in bounds],
        color=colour,
        linewidth=0.9,
        zorder=2,
    )


def _name_farthest(axes: Any, points: Sequence[_Point]) -> None:
    """Writes the names of what is farthest off the line, for print."""
    off = sorted((p for p in points if p.is_off), key=lambda p: -abs(math.log(p.ratio)))
    for point in off[:_MOST_NAMED]:
        axes.annotate(
            drawable(short_site(point.name), 30),
            (point.predicted.kl_nats, point.measured.mean),
            xytext=(-7, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=7.5,
            color=INK,
            zorder=4,
            bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 1},
            parse_math=False,
        )


def short_site(name: str) -> str:
    """Returns a site's name without what all of them begin with: `L7 self_attn:matmul:0`."""
    for common in ("model.layers.", "transformer.h.", "gpt_neox.layers."):
        layer, _, rest = name.removeprefix(common).partition(".")
        if name.startswith(common) and layer.isdigit():
            return f"L{layer} {rest}".strip()
    return name


def _tip(point: _Point) -> str:
    error = point.predicted.error_nats
    predicted = number_text(point.predicted.kl_nats)
    if math.isfinite(error):
        predicted += f" ± {number_text(error)}"
    told = "off the line beyond chance" if point.is_off else "not told from the line"
    return (
        f"{point.name}\n{point.kind}\nmeasured {estimate_text(point.measured)} nats per token\n"
        f"predicted {predicted}\n{times_text(point.ratio)} times as predicted: {told}"
    )
