"""How each layer passes on an error of the residual stream: its factor, layer by layer."""

import math
from typing import Any

from noisescope.report.figures import ratio_text
from noisescope.report.page.page import Picture
from noisescope.report.pictures.paint import EDGE, PREDICTED, dress, logarithmic, new_figure
from noisescope.study import Diagnosis


def depth_picture(diagnosis: Diagnosis) -> Picture | None:
    """Returns the figure; None where the residual stream was not watched."""
    found = diagnosis.findings.amplification
    if found is None or not found.factors:
        return None
    figure = new_figure(max(5.5, 2.0 + 0.3 * len(found.factors)), 2.9)
    axes: Any = figure.subplots()
    dress(axes, "layer", "factor")
    axes.axhline(1, color=EDGE, linewidth=1.1)
    tips = {}
    for layer, factor in enumerate(found.factors):
        if not (math.isfinite(factor.mean) and factor.mean > 0):
            continue
        if factor.is_known:
            low = max(factor.low, factor.mean / 100)
            axes.plot([layer, layer], [low, factor.high], color=PREDICTED, linewidth=1.2)
        axes.plot(layer, factor.mean, "o", color=PREDICTED, markersize=6.5, gid=f"layer-{layer}")
        tips[f"layer-{layer}"] = f"L{layer}\nfactor {ratio_text(factor)}"
    if tips:
        logarithmic(axes.yaxis, (1, 2, 5))
    axes.set_xticks(range(0, len(found.factors), max(1, len(found.factors) // 20)))
    return Picture(
        "depth",
        "How layers pass on an error",
        "KL of an error where it enters a layer over that of the same error where it leaves it, by "
        "backward passes, with 95 % intervals: above 1 the layer amplifies.",
        figure,
        tips,
        ("layer", "factor", "low", "high"),
        tuple((f"L{n}", f.mean, f.low, f.high) for n, f in enumerate(found.factors)),
    )
