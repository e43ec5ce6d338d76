"""The largest channel of every module over its middle one: where outlier channels are."""

import math
from typing import Any

from noisescope.report.figures import counted, number_text, times_text
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
from noisescope.study.channels import ModuleChannels

_OUTLIER = 10.0  # times the middle channel, as `capture.find_outliers` has it
_MOST_ROWS = 40
_LONGEST = 44


def channel_picture(diagnosis: Diagnosis) -> Picture | None:
    """Returns the figure, the modules with the largest ratios; None where nobody looked."""
    known = [m for m in diagnosis.told.modules if math.isfinite(m.max_ratio) and m.max_ratio > 0]
    if not known:
        return None
    by_ratio = sorted(known, key=lambda m: -m.max_ratio)[:_MOST_ROWS]
    modules = [m for m in known if m in by_ratio]
    names = [drawable(short_site(m.module), _LONGEST) for m in modules]
    figure = new_figure(7.6, max(1.5, 0.9 + 0.22 * len(modules)))
    axes: Any = figure.subplots()
    dress(axes, "largest channel over the middle one, by mean magnitude", "")
    logarithmic(axes.xaxis, (1, 2, 5))
    axes.axvline(_OUTLIER, color=EDGE, linestyle=(0, (4, 2)), linewidth=1.1)
    axes.annotate(
        "outlier", (_OUTLIER, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
        textcoords="offset points", ha="center", va="bottom", fontsize=7.5, color=FAINT,
    )  # fmt: skip
    for row, module in enumerate(modules):
        colour = WORST if module.outliers else PREDICTED
        axes.plot([1, module.max_ratio], [row, row], color=EDGE, linewidth=1)
        axes.plot(
            module.max_ratio, row, "o" if module.outliers else "D", color=colour, markersize=6.5,
            fillstyle="full" if module.outliers else "none", gid=f"module-{row}", clip_on=False,
        )  # fmt: skip
    axes.set_xlim(1, max(2 * _OUTLIER, 1.3 * max(m.max_ratio for m in modules)))
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", labelcolor=INK)
    left_out = len(known) - len(modules)
    return Picture(
        "channels",
        "Largest channel of every module",
        f"A channel is an outlier above {_OUTLIER:g} times the middle channel of its module (full "
        "dots); diamonds have none."
        + (f" {counted(left_out, 'module')} with smaller ratios left out." if left_out else ""),
        figure,
        {f"module-{row}": _tip(module) for row, module in enumerate(modules)},
        ("module", "channels", "largest over middle", "outlier channels", "massive activations"),
        tuple(
            (m.module, m.channels, m.max_ratio, " ".join(map(str, m.outliers)), len(m.massive))
            for m in diagnosis.told.modules
        ),
    )


def _tip(module: ModuleChannels) -> str:
    lines = [module.module, f"{times_text(module.max_ratio)} times the middle channel"]
    lines.append(f"{counted(len(module.outliers), 'outlier')} of {module.channels:,} channels")
    if module.outliers:
        lines[-1] += f": {', '.join(map(str, module.outliers[:6]))}"
    if module.massive:
        peak = module.massive[0]
        lines.append(f"massive: {number_text(peak.value)} in channel {peak.channel}")
    return "\n".join(lines)
