"""The picture: what each condition did, by every measure, as one heatmap in a PNG."""

import math
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from noisescope.analyse import Summary
from noisescope.diagnose import Diagnosis

_MOST_NUMBERS = 16  # columns up to which a number fits into every cell


def draw_heatmap(diagnosis: Diagnosis, path: Path) -> None:
    """Draws the heatmap: a column per condition, a row per measure, each row on its own scale.

    Args:
        diagnosis: What was measured.
        path: The PNG to write.
    """
    rows = [(label, values) for label, values in _rows(diagnosis.summaries) if _is_known(values)]
    columns = [s.condition for s in diagnosis.summaries]
    figure = Figure(figsize=(max(6.0, 2.6 + 0.75 * len(columns)), 1.9 + 0.62 * len(rows)))
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = np.array([_shares(values) for _, values in rows])
    image = axes.imshow(shares, cmap="YlOrRd", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=0 if len(columns) <= 12 else 90)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if len(columns) <= _MOST_NUMBERS:
        _write_numbers(axes, rows, shares)
    bar = figure.colorbar(image, ax=axes, ticks=[0, 1], fraction=0.03, pad=0.02)
    bar.ax.set_yticklabels(["none", "worst of row"])
    bar.outline.set_visible(False)
    axes.set_title(_title(diagnosis), loc="left", fontsize=10)
    figure.tight_layout()
    canvas.print_png(str(path))


def _rows(summaries: tuple[Summary, ...]) -> list[tuple[str, list[float]]]:
    return [
        ("KL, nats per token", [s.kl_nats.mean for s in summaries]),
        ("loss added, nats per token", [s.nll_change_nats.mean for s in summaries]),
        ("top token changed, %", [100 * (1 - s.top1_agreement.mean) for s in summaries]),
        ("accuracy lost, points", [100 * s.accuracy_drop.mean for s in summaries]),
    ]


def _is_known(values: list[float]) -> bool:
    return any(math.isfinite(v) for v in values)


def _shares(values: list[float]) -> list[float]:
    """Scales a row to 0..1 of its largest; gains of quality count as none."""
    largest = max((v for v in values if math.isfinite(v)), default=0.0)
    return [max(0.0, v / largest) if largest > 0 and math.isfinite(v) else 0.0 for v in values]


def _write_numbers(axes: object, rows: list[tuple[str, list[float]]], shares: object) -> None:
    for y, (_, values) in enumerate(rows):
        for x, value in enumerate(values):
            dark = shares[y, x] > 0.6  # type: ignore[index]
            axes.text(  # type: ignore[attr-defined]
                x,
                y,
                _short(value),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
            )


def _short(value: float) -> str:
    if not math.isfinite(value):
        return "n/a"
    if value == 0 or abs(value) >= 10:
        return f"{value:.0f}"
    return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.2g}"


def _title(diagnosis: Diagnosis) -> str:
    # Names come from the user's paths: parse_math is off, and '$' would otherwise start a formula.
    model = diagnosis.loaded.path.name.replace("$", r"\$")
    error = diagnosis.error_model
    scale = getattr(error, "scale", None)
    return (
        f"{model}: {type(error).__name__} {scale:g}, {len(diagnosis.task.samples)} samples, "
        f"{diagnosis.plan.draws} draw{'s' if diagnosis.plan.draws > 1 else ''}"
    )
