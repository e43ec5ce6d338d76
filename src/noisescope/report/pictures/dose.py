"""The picture of dose and response: measured KL at every scale, and the predicted line c s^2."""

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from noisescope.analyse import Response
from noisescope.analyse.dose_response import ScaleResponse
from noisescope.report.figures import estimate_text, number_text, ratio_text
from noisescope.report.page.page import Picture
from noisescope.report.pictures.paint import (
    DASHES,
    INK,
    MARKERS,
    REST,
    TINTS,
    WORST,
    drawable,
    dress,
    logarithmic,
    new_figure,
    png_of,
    write_title,
)
from noisescope.study import Diagnosis
from noisescope.study.findings import whole_of

_MOST_NAMED = len(TINTS)
_MOST_TICKS = 14
_POINTS = "points: measured KL, mean and 95 % interval; faint: the predicted line c s²"
_PLACES = {
    "on": "on the line",
    "above": "above the line beyond chance: errors compound",
    "below": "below the line beyond chance",
    "unknown": "too few data tell it from the line or not",
}


def draw_doses(diagnosis: Diagnosis) -> bytes:
    """Draws dose and response of all that was measured at several scales; returns a PNG."""
    figure, _ = _drawn(diagnosis)
    write_title(figure.axes[0], diagnosis.config["model"], f"dose and response\n{_POINTS}")
    return png_of(figure)


def dose_picture(diagnosis: Diagnosis) -> Picture | None:
    """Returns the same for the page; None where nothing was measured at several scales."""
    if not diagnosis.findings.responses:
        return None
    figure, tips = _drawn(diagnosis)
    return Picture(
        "dose",
        "Dose and response",
        "Measured KL at every scale of the noise, mean and 95 % interval, with a line from point "
        "to point; the faint straight lines are predicted, c s². Above its line, errors compound.",
        figure,
        tips,
        ("noise in", "scale", "measured KL, nats per token", "low", "high",
         "predicted KL, nats per token", "measured over predicted", "low ratio", "high ratio",
         "beside the line"),
        tuple(
            (name, s.scale, s.measured.mean, s.measured.low, s.measured.high, s.predicted_nats,
             s.ratio.mean, s.ratio.low, s.ratio.high, s.place)
            for name, response in diagnosis.findings.responses.items()
            for s in response.scales
        ),
    )  # fmt: skip


def _drawn(diagnosis: Diagnosis) -> tuple[Figure, dict[str, str]]:
    """Returns the figure without a title, and what its points say."""
    responses, whole = diagnosis.findings.responses, whole_of(diagnosis.plan)
    figure = new_figure(8.4, 5.2)
    axes: Any = figure.subplots()
    tips: dict[str, str] = {}
    others = 0
    for number, (name, response) in enumerate(_ordered(responses, whole)):
        style = {"color": WORST, "marker": "o", "linestyle": "-", "label": drawable(name)}
        if name != whole:
            style = _style(others, drawable(name))
            others += 1
        tips |= _draw(axes, name, response, style, f"dose-{number}")
    _scale(axes, sorted({s.scale for r in responses.values() for s in r.scales}))
    return figure, tips


def _style(number: int, label: str) -> dict[str, Any]:
    """Returns colour, marker and dashes of a curve: without colours it is known all the same."""
    if number >= _MOST_NAMED:
        return {"color": REST, "marker": ".", "linestyle": "-", "label": f"_{label}"}
    return {
        "color": TINTS[number],
        "marker": MARKERS[number],
        "linestyle": DASHES[number % len(DASHES)],
        "label": label,
    }


def _ordered(responses: Mapping[str, Response], whole: str) -> list[tuple[str, Response]]:
    """Returns everything noisy first, then what costs most at its largest scale."""

    def cost(pair: tuple[str, Response]) -> tuple[bool, float]:
        mean = pair[1].scales[-1].measured.mean
        return pair[0] != whole, -mean if math.isfinite(mean) else 0.0

    found = sorted(responses.items(), key=cost)
    return found


def _draw(
    axes: Any, name: str, response: Response, style: dict[str, Any], gid: str
) -> dict[str, str]:
    """Draws one curve and its line; what a logarithm cannot show is left out."""
    points = [s for s in response.scales if s.measured.mean > 0]
    colour = style["color"]
    line = [(s.scale, s.predicted_nats) for s in response.scales if s.predicted_nats > 0]
    if line:
        axes.plot(*zip(*line, strict=True), "-", color=colour, linewidth=0.9, alpha=0.45)
    known = [s for s in points if s.measured.is_known]
    if known:
        # An interval that reaches zero is drawn down to a hundredth of its mean.
        down = [max(s.measured.low, s.measured.mean / 100) for s in known]
        up = [s.measured.high for s in known]
        axes.vlines([s.scale for s in known], down, up, color=colour, linewidth=0.9)
    if points:
        scales, means = [s.scale for s in points], [s.measured.mean for s in points]
        axes.plot(scales, means, linewidth=1.3, markersize=5.5, gid=gid, **style)
    return {f"{gid}/{n}": _tip(name, point) for n, point in enumerate(points)}


def _tip(name: str, point: ScaleResponse) -> str:
    lines = [f"{name} at scale {point.scale:g}"]
    lines.append(f"measured {estimate_text(point.measured)} nats per token")
    if math.isfinite(point.predicted_nats):
        lines.append(f"predicted {number_text(point.predicted_nats)}")
        lines.append(f"{ratio_text(point.ratio)} times the line: {_PLACES[point.place]}")
    return "\n".join([*lines, *filter(None, [point.note])])


def _scale(axes: Any, scales: list[float]) -> None:
    dress(axes, "scale of the noise", "KL, nats per token")
    logarithmic(axes.xaxis)
    shown = _apart(scales)
    axes.set_xticks(shown, [f"{scale:g}" for scale in shown])
    logarithmic(axes.yaxis)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            fontsize=8, frameon=False, labelcolor=INK, loc="center left",
            bbox_to_anchor=(1.01, 0.5), handlelength=3,
        )  # fmt: skip


def _apart(scales: list[float]) -> list[float]:
    """Returns the scales whose labels have room beside each other."""
    shown: list[float] = []
    room = (scales[-1] / scales[0]) ** (1 / _MOST_TICKS) if scales else 1.0
    for scale in scales:
        if not shown or scale > shown[-1] * room:
            shown.append(scale)
    return shown
