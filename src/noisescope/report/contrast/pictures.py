"""The pictures of a comparison: differences with their intervals, and the samples one by one."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from noisescope.analyse.change import FELL, OPEN, ROSE, SAME, Change
from noisescope.records import CLEAN
from noisescope.report.contrast.words import BETWEEN, NAMES, difference_text, p_text
from noisescope.report.page.page import Picture
from noisescope.report.pictures.paint import (
    FAINT,
    INK,
    PREDICTED,
    WORST,
    drawable,
    dress,
    new_figure,
)
from noisescope.study.contrast import Contrast

_LEGIBLE = 40  # rows of a picture
_COLOURS = {ROSE: WORST, FELL: PREDICTED, SAME: FAINT, OPEN: FAINT}
_MARKERS = {ROSE: "^", FELL: "v", SAME: "o", OPEN: "o"}
_TOLD = {
    ROSE: "up, beyond chance",
    FELL: "down, beyond chance",
    SAME: "the same",
    OPEN: "open",
}
_AXES = {
    "kl": "B - A of KL, nats per token",
    "accuracy": "B - A of accuracy, points",
    "nll": "B - A of NLL, nats per token",
}


def draw_differences(measure: str, changes: Sequence[Change]) -> Picture:
    """Draws the differences with their intervals, a line per condition."""
    unit = 100 if measure == "accuracy" else 1
    shown = changes[:_LEGIBLE]
    figure = new_figure(7.2, 1.2 + 0.26 * len(shown))
    axes: Any = figure.subplots()
    axes.axvline(0, color=FAINT, linewidth=1)
    tips: dict[str, str] = {}
    for row, change in enumerate(shown):
        gid = f"row-{row}"
        _draw_row(axes, row, change, unit, gid)
        tips[gid] = _tip(change)
    axes.set_yticks(range(len(shown)), [drawable(change.condition) for change in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    dress(axes, _AXES[measure], "")
    axes.tick_params(axis="y", labelcolor=INK)
    more = f" The first {_LEGIBLE} of {len(changes)} are drawn." if len(changes) > _LEGIBLE else ""
    return Picture(
        name=f"differences-{measure}",
        title=f"Change of {NAMES[measure]} in each condition",
        caption=(
            "B minus A with its 95 % interval; triangles are beyond chance, up or down; circles "
            f"are open or the same.{more}"
        ),
        figure=figure,
        tips=tips,
        columns=("condition", "A", "B", "difference", "low", "high", "p", "outcome"),
        rows=tuple(_row(change) for change in changes),
    )


def _draw_row(axes: Any, row: int, change: Change, unit: int, gid: str) -> None:
    found, colour = change.difference, _COLOURS[change.outcome]
    if found.is_known:
        bounds = [unit * found.low, unit * found.high]
        axes.plot(bounds, [row, row], color=colour, linewidth=1.6, solid_capstyle="butt")
    mark = axes.plot(
        [unit * found.mean], [row], _MARKERS[change.outcome], color=colour, markersize=7
    )
    mark[0].set_gid(gid)


def _tip(change: Change) -> str:
    name = change.condition or "both models"
    p = p_text(change.p) if math.isfinite(change.p) else "too few data"
    unit = "points" if change.measure == "accuracy" else "nats per token"
    return f"{name}\n{difference_text(change)} {unit}\n{_TOLD[change.outcome]} ({p})"


def _row(change: Change) -> tuple[object, ...]:
    found = change.difference
    return (
        change.condition,
        change.first,
        change.second,
        found.mean,
        found.low,
        found.high,
        change.p,
        _TOLD[change.outcome],
    )


def draw_studies(change: Change) -> Picture | None:
    """Draws the KL of each sample in A and in B, mean over draws."""
    a_N, b_N = (v.mean(axis=0) for v in (change.sides.first_KN, change.sides.second_KN))
    kept = [n for n in range(len(a_N)) if np.isfinite(a_N[n] + b_N[n])]
    if not kept:
        return None
    figure = new_figure(5.6, 5.2)
    axes: Any = figure.subplots()
    largest = max(float(max(a_N[n], b_N[n])) for n in kept) or 1.0
    axes.plot([0, largest], [0, largest], "--", color=FAINT, linewidth=1)
    dots = axes.scatter(a_N[kept], b_N[kept], s=22, color=PREDICTED, marker="o")
    dots.set_gid("samples")
    dress(axes, "A: KL, nats per token", "B: KL, nats per token")
    names = [change.sides.samples[n] for n in kept]
    points = [(float(a_N[n]), float(b_N[n])) for n in kept]
    tips = {
        f"samples/{i}": f"sample {name}\nA {a:.2g}, B {b:.2g} nats per token"
        for i, (name, (a, b)) in enumerate(zip(names, points, strict=True))
    }
    where = f"in {change.condition}, whose KL changes most" if change.condition != CLEAN else ""
    return Picture(
        name="samples",
        title="KL of each sample in A and in B",
        caption=f"Every dot is a sample {where}; on the dashed line nothing changed.",
        figure=figure,
        tips=tips,
        columns=("sample", "A", "B"),
        rows=tuple((name, *point) for name, point in zip(names, points, strict=True)),
    )


def draw_models(contrast: Contrast, change: Change) -> Picture | None:
    """Draws the KL of each sample, from the smallest, marked by what became of its answer."""
    values_N = change.sides.second_KN[0]
    kept = [n for n in np.argsort(values_N).tolist() if np.isfinite(values_N[n])]
    if not kept:
        return None
    fates = _fates(contrast)
    figure = new_figure(7.2, 3.6)
    axes: Any = figure.subplots()
    heights_of: dict[str, tuple[float, str]] = {}
    tips: dict[str, str] = {}
    for fate, (colour, marker) in _FATES.items():
        mine = [r for r, n in enumerate(kept) if fates.get(change.sides.samples[n], "") == fate]
        if not mine:
            continue
        heights = [float(values_N[kept[r]]) for r in mine]
        slug = fate.replace(" ", "-") or "sample"
        dots = axes.scatter(mine, heights, s=22, color=colour, marker=marker, label=fate or "_one")
        dots.set_gid(slug)
        for i, (r, height) in enumerate(zip(mine, heights, strict=True)):
            name = change.sides.samples[kept[r]]
            tips[f"{slug}/{i}"] = f"sample {name}\n{height:.2g} nats per token\n{fate}".rstrip()
            heights_of[name] = height, fate
    dress(axes, "samples, from the least changed", f"{BETWEEN}, nats per token")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    return Picture(
        name="samples",
        title=f"{BETWEEN} of each sample",
        caption="Every mark is a sample, along the answer of A; its form says who answers right.",
        figure=figure,
        tips=tips,
        columns=("sample", "kl_nats", "answers"),
        rows=tuple(
            (name, *heights_of[name]) for name in sorted(heights_of, key=heights_of.__getitem__)
        ),
    )


_FATES = {
    "": (PREDICTED, "o"),
    "right in both": (PREDICTED, "o"),
    "wrong in both": (FAINT, "s"),
    "wrong in B alone": (WORST, "v"),
    "right in B alone": (INK, "^"),
}


def _fates(contrast: Contrast) -> dict[str, str]:
    """Returns who answers right, by sample; nothing where nothing is generated."""
    found = {}
    names = {(1, 1): "right in both", (0, 0): "wrong in both"}
    names |= {(1, 0): "wrong in B alone", (0, 1): "right in B alone"}
    for change in contrast.of("accuracy"):
        sides = change.sides
        for name, a, b in zip(
            sides.samples, sides.first_KN[0].tolist(), sides.second_KN[0].tolist(), strict=True
        ):
            found[name] = names.get((a, b), "")
    return found
