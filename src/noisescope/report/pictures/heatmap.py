"""The picture: above, the KL of each condition with its interval; below, every measure's heatmap.

Each row of the heatmap has its own scale, from none to the worst of the row. Names come from the
user's paths and are drawn as they are, never as formulas.
"""

import math
import textwrap
from collections.abc import Container, Mapping
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from noisescope.analyse import Interval, Prediction, Summary
from noisescope.report.page.page import Picture
from noisescope.report.pictures.paint import (
    BAR,
    EDGE,
    FAINT,
    GRID,
    HEAT,
    INK,
    MISSING,
    PAPER,
    PREDICTED,
    RAMP,
    STEPS,
    WORST,
    bare,
    drawable,
    logarithmic,
    new_figure,
    png_of,
    text_on,
    write_title,
)
from noisescope.study import Diagnosis

_SMALLEST_SHOWN = 1e-3  # of the largest, on a linear axis
_MOST_NUMBERS = 16  # columns up to which a number fits into every cell
_LONGEST_FLAT = 12  # characters of a name that is still written across
_LONGEST_SITE, _INCHES_PER_LETTER = 76, 0.08  # of names written upright
_MOST_COLUMNS = 60  # of a picture that a page still can show
_LINE = 72  # characters of the line that says what was asked

_Row = tuple[str, list[float]]


def draw_heatmap(diagnosis: Diagnosis) -> bytes:
    """Draws the picture, a column per condition, and returns it as a PNG.

    The conditions are those that were asked for; where there are none, those that were chosen.
    """
    figure, _ = _drawn(diagnosis)
    write_title(figure.axes[0], diagnosis.config["model"], _details(diagnosis))
    return png_of(figure)


def measures_picture(diagnosis: Diagnosis) -> Picture | None:
    """Returns the same for the page; None where nothing was measured, or too much to be drawn."""
    summaries = diagnosis.summaries or diagnosis.analysis.summaries
    if not 0 < len(summaries) <= _MOST_COLUMNS:
        return None
    figure, tips = _drawn(diagnosis)
    return Picture(
        "measures",
        "Every measure of every condition",
        "Above, KL with its 95 % interval, the worst conditions darker. Below, every measure from "
        "none to the worst of its row.",
        figure,
        tips,
        ("condition", "measure", "mean", "low", "high"),
        tuple(
            (s.condition, name, *(factor * end + shift for end in (i.mean, i.low, i.high)))
            for s in summaries
            for name, i, factor, shift in _measures(s)
        ),
    )


def _measures(summary: Summary) -> list[tuple[str, Interval, float, float]]:
    """Returns the measures with the factor and the shift that bring them to their unit."""
    found = [
        ("KL, nats per token", summary.kl_nats, 1.0, 0.0),
        ("KL, 95th percentile of tokens, nats", summary.kl_p95_nats, 1.0, 0.0),
        ("KL, 99th percentile of tokens, nats", summary.kl_p99_nats, 1.0, 0.0),
        ("loss added, nats per token", summary.nll_change_nats, 1.0, 0.0),
        ("top token unchanged, %", summary.top1_agreement, 100.0, 0.0),
        ("accuracy lost, points", summary.accuracy_drop, 100.0, 0.0),
    ]
    return [entry for entry in found if math.isfinite(entry[1].mean)]


def _drawn(diagnosis: Diagnosis) -> tuple[Figure, dict[str, str]]:
    """Returns the figure without a title, and what its cells say."""
    summaries = diagnosis.summaries or diagnosis.analysis.summaries
    rows = _rows(summaries)
    columns = len(summaries)
    width = 3.4 + columns * (0.72 if columns <= _MOST_NUMBERS else 0.36)
    height = 0.46 * len(rows)
    names = [drawable(s.condition, _LONGEST_SITE) for s in summaries]
    below_in = _INCHES_PER_LETTER * max(map(len, names), default=0) if _is_upright(names) else 0.0
    figure = new_figure(max(8.0, width), 2.9 + height + below_in)
    above, below = figure.subplots(
        2, sharex=True, gridspec_kw={"height_ratios": [1.9, height], "hspace": 0.04}
    )
    operator = diagnosis.findings.worst_operator
    worst = {diagnosis.worst_kl.condition, operator.condition if operator is not None else None}
    _draw_intervals(above, summaries, worst, diagnosis.findings.predictions)
    tips = _draw_cells(below, rows, names, [s.condition for s in summaries])
    scale = figure.colorbar(ScalarMappable(cmap=HEAT), ax=below, ticks=[0, 1], aspect=8, pad=0.015)
    scale.ax.set_yticklabels(["none", "worst\nof row"], fontsize=8, color=FAINT)
    scale.ax.tick_params(length=0)
    scale.outline.set_visible(False)
    return figure, tips


def _rows(summaries: tuple[Summary, ...]) -> list[_Row]:
    """Returns the measures; accuracy only where something was generated."""
    rows = [
        ("KL, nats per token", [s.kl_nats.mean for s in summaries]),
        ("loss added, nats per token", [s.nll_change_nats.mean for s in summaries]),
        ("top token changed, %", [100 * (1 - s.top1_agreement.mean) for s in summaries]),
    ]
    lost = [100 * s.accuracy_drop.mean for s in summaries]
    return [*rows, ("accuracy lost, points", lost)] if any(map(math.isfinite, lost)) else rows


def _draw_intervals(
    axes: Any,
    summaries: tuple[Summary, ...],
    worst: Container[str | None],
    predictions: Mapping[str, Prediction],
) -> None:
    """Draws the KL of each condition as a bar with its 95 % interval, the worst ones darker.

    A diamond is the predicted KL. Where the two are far apart the axis is logarithmic.
    """
    means = [s.kl_nats.mean if math.isfinite(s.kl_nats.mean) else 0.0 for s in summaries]
    colours = [WORST if s.condition in worst else BAR for s in summaries]
    bottom = _bottom([*means, *(p.kl_nats for p in predictions.values())])
    axes.bar(range(len(means)), means, width=0.62, color=colours)
    known = [(i, s.kl_nats) for i, s in enumerate(summaries) if s.kl_nats.is_known]
    if known:
        axes.errorbar(
            [i for i, _ in known],
            [kl.mean for _, kl in known],
            # A divergence is never negative, whatever a t interval says.
            [
                [max(0.0, kl.mean - max(bottom, kl.low)) for _, kl in known],
                [kl.high - kl.mean for _, kl in known],
            ],
            fmt="none",
            ecolor=INK,
            elinewidth=1,
            capsize=3,
        )
    _draw_predictions(axes, summaries, predictions)
    if bottom > 0:
        logarithmic(axes.yaxis)
    axes.set_ylim(bottom=bottom)
    axes.set_ylabel("KL, nats per token", fontsize=9, color=INK)
    axes.tick_params(axis="y", which="both", labelsize=8, colors=FAINT, length=0)
    axes.tick_params(axis="x", which="both", length=0, labelbottom=False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(EDGE)


def _is_upright(names: list[str]) -> bool:
    return len(names) > _MOST_NUMBERS or max(map(len, names), default=0) > _LONGEST_FLAT


def _draw_predictions(
    axes: Any, summaries: tuple[Summary, ...], predictions: Mapping[str, Prediction]
) -> None:
    predicted = [
        (i, predictions[s.condition].kl_nats)
        for i, s in enumerate(summaries)
        if s.condition in predictions and math.isfinite(predictions[s.condition].kl_nats)
    ]
    if predicted:
        where, kls = zip(*predicted, strict=True)
        axes.plot(where, kls, "D", color=PREDICTED, markersize=5, clip_on=False)


def _bottom(values: list[float]) -> float:
    """Returns where the axis begins: at 0, or above it where a line could not show the smallest."""
    shown = [value for value in values if math.isfinite(value) and value > 0]
    if not shown or min(shown) > _SMALLEST_SHOWN * max(shown):
        return 0.0
    return min(shown) / 3


def _draw_cells(
    axes: Any, rows: list[_Row], names: list[str], conditions: list[str]
) -> dict[str, str]:
    """Draws the heatmap itself and returns what its cells say."""
    shares = np.array([_shares(values) for _, values in rows])
    tips = {}
    for y, (measure, values) in enumerate(rows):
        for x, value in enumerate(values):
            step = _step(shares[y, x])
            box = Rectangle(
                (x - 0.5, y - 0.5), 1, 1, facecolor=MISSING if step is None else RAMP[step],
                edgecolor=PAPER, linewidth=2, gid=f"cell-{y}-{x}", clip_on=False,
            )  # fmt: skip
            axes.add_artist(box)
            tips[f"cell-{y}-{x}"] = f"{conditions[x]}\n{measure}: {_short(value)}"
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks(range(len(names)), names, rotation=90 if _is_upright(names) else 0, fontsize=9)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=9)
    bare(axes)
    if len(names) <= _MOST_NUMBERS:
        _write_numbers(axes, rows, shares)
    return tips


def _step(share: float) -> int | None:
    return None if not math.isfinite(share) else min(STEPS - 1, int(share * STEPS))


def _shares(values: list[float]) -> list[float]:
    """Scales a row to 0..1 of its largest; gains of quality count as none, the unknown is NaN."""
    largest = max((v for v in values if math.isfinite(v)), default=0.0)
    if largest <= 0:
        return [0.0 if math.isfinite(v) else math.nan for v in values]
    return [max(0.0, v / largest) if math.isfinite(v) else math.nan for v in values]


def _write_numbers(axes: Any, rows: list[_Row], shares: np.ndarray) -> None:
    for y, (_, values) in enumerate(rows):
        for x, value in enumerate(values):
            step = _step(shares[y, x])
            axes.text(
                x,
                y,
                _short(value),
                ha="center",
                va="center",
                fontsize=8.5,
                fontweight="bold" if shares[y, x] == 1 else "normal",
                color=FAINT if step is None else text_on(step),
            )


def _short(value: float) -> str:
    if not math.isfinite(value):
        return "n/a"
    if value == 0 or abs(value) >= 10:
        return f"{value:.0f}"
    return f"{value:.0e}" if abs(value) < 1e-3 else f"{value:.2g}"


def _details(diagnosis: Diagnosis) -> str:
    config, worst = diagnosis.config, diagnosis.worst_kl
    draws = diagnosis.plan.draws
    asked = f"{diagnosis.error_text} on {', '.join(config['operators'])}"
    data = (
        f"{len(diagnosis.plan.samples)} samples, {draws} draw{'s' if draws > 1 else ''}, "
        f"{config['dtype']}; most sensitive by KL: "
        f"{worst.condition or 'none'}{'' if worst.is_conclusive else ' (inconclusive)'}"
    )
    bars = "bars: mean and 95 % interval"
    if diagnosis.findings.predictions:
        bars += "; diamonds: predicted"
    return "\n".join([*textwrap.wrap(asked, _LINE), data, bars])
