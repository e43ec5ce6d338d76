"""The picture of dose and response: measured KL at every scale, and the predicted line c s^2."""

import math
from collections.abc import Mapping
from typing import Any

from noisescope.analyse import Response
from noisescope.report.paint import FAINT, INK, WORST, drawable, new_figure, png_of, write_title
from noisescope.study import Diagnosis
from noisescope.study.findings import whole_of

_TINTS = ("#1f5f8b", "#4d8b31", "#8a5fb0", "#c98a1b", "#3a9c9c", "#7a4a2b", "#5b6b9e", "#a0527d")
_REST = "#b9b9b9"
_MOST_NAMED = 8
_MOST_TICKS = 14


def draw_doses(diagnosis: Diagnosis) -> bytes:
    """Draws dose and response of all that was measured at several scales; returns a PNG."""
    responses = diagnosis.findings.responses
    figure = new_figure(8.4, 5.2)
    axes: Any = figure.subplots()
    for number, (name, response) in enumerate(_ordered(responses, whole_of(diagnosis.plan))):
        if name == whole_of(diagnosis.plan):
            colour, label = WORST, drawable(name)
        else:
            is_named = number <= _MOST_NAMED
            colour = _TINTS[(number - 1) % len(_TINTS)] if is_named else _REST
            label = drawable(name) if is_named else "_others"
        _draw(axes, response, colour, label)
    _dress(axes, sorted({s.scale for r in responses.values() for s in r.scales}))
    details = "points: measured KL, mean and 95 % interval; dashed: the predicted line c s²"
    write_title(axes, diagnosis.config["model"], f"dose and response\n{details}")
    return png_of(figure)


def _ordered(responses: Mapping[str, Response], whole: str) -> list[tuple[str, Response]]:
    """Returns everything noisy first, then what costs most at its largest scale."""

    def cost(pair: tuple[str, Response]) -> tuple[bool, float]:
        mean = pair[1].scales[-1].measured.mean
        return pair[0] != whole, -mean if math.isfinite(mean) else 0.0

    found = sorted(responses.items(), key=cost)
    return found


def _draw(axes: Any, response: Response, colour: str, label: str) -> None:
    """Draws one curve and its line; what a logarithm cannot show is left out."""
    points = [s for s in response.scales if s.measured.mean > 0]
    if points:
        scales, means = [s.scale for s in points], [s.measured.mean for s in points]
        axes.plot(scales, means, "o-", color=colour, markersize=4, linewidth=1.2, label=label)
    known = [s for s in points if s.measured.is_known]
    if known:
        means = [s.measured.mean for s in known]
        # An interval that reaches zero is drawn down to a hundredth of its mean.
        down = [s.measured.mean - max(s.measured.low, s.measured.mean / 100) for s in known]
        up = [s.measured.high - s.measured.mean for s in known]
        where = [s.scale for s in known]
        axes.errorbar(
            where, means, [down, up], fmt="none", ecolor=colour, elinewidth=0.9, capsize=2
        )
    line = [(s.scale, s.predicted_nats) for s in response.scales if s.predicted_nats > 0]
    if line:
        axes.plot(*zip(*line, strict=True), "--", color=colour, linewidth=0.9, alpha=0.7)


def _dress(axes: Any, scales: list[float]) -> None:
    axes.set_xscale("log")
    shown = _apart(scales)
    axes.set_xticks(shown, [f"{scale:g}" for scale in shown])
    axes.set_xticks([], minor=True)
    axes.set_yscale("log")
    axes.set_xlabel("scale of the noise", fontsize=9, color=INK)
    axes.set_ylabel("KL, nats per token", fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=FAINT, which="both", length=0)
    axes.grid(color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            fontsize=8, frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1.01, 0.5)
        )


def _apart(scales: list[float]) -> list[float]:
    """Returns the scales whose labels have room beside each other."""
    shown: list[float] = []
    room = (scales[-1] / scales[0]) ** (1 / _MOST_TICKS) if scales else 1.0
    for scale in scales:
        if not shown or scale > shown[-1] * room:
            shown.append(scale)
    return shown
