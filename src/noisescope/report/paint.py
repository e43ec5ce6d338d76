"""What the pictures share: colours, a font that is the same everywhere, names drawn as they are."""

import io
from pathlib import Path
from typing import Any

from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

INK, FAINT, BAR, WORST, PREDICTED = "#262626", "#767676", "#e0b58d", "#b3261e", "#1f5f8b"
COLOURS = LinearSegmentedColormap.from_list(
    "harm", ["#fbf7f0", "#fbdfb5", "#f6a86b", "#dd5f43", "#a31b2b"]
)
_LONGEST_NAME = 40
_FONT = "DejaVu Sans"  # matplotlib carries it, so a picture is the same everywhere


def new_figure(width: float, height: float) -> Figure:
    """Returns a figure of so many inches that can be drawn without a display."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_of(figure: Figure) -> bytes:
    """Returns a figure as a PNG."""
    picture = io.BytesIO()
    canvas: Any = figure.canvas
    canvas.print_png(picture)
    return picture.getvalue()


def write_title(axes: Any, model: str, details: str) -> None:
    """Writes a model's name, and below it what the picture shows, above the axes."""
    below = _annotate(axes, details, "axes fraction", gap=8, fontsize=9, color=FAINT)
    name = drawable(Path(model).name)
    _annotate(axes, name, below, gap=5, fontsize=13, color=INK, fontweight="bold")


def _annotate(axes: Any, text: str, above: Any, gap: int, **style: Any) -> Any:
    return axes.annotate(
        text,
        (0, 1),
        xytext=(0, gap),
        xycoords=above,
        textcoords="offset points",
        va="bottom",
        parse_math=False,
        **style,
    )


def bare(axes: Any) -> None:
    """Takes the frame and the ticks' marks away."""
    axes.tick_params(which="both", length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def drawable(name: str, longest: int = _LONGEST_NAME) -> str:
    """Returns a name as the font can draw it: on one line, cut where long, `?` for the rest."""
    glyphs = font_manager.get_font(font_manager.findfont(_FONT)).get_charmap()
    shown = "".join(c if c.isprintable() and ord(c) in glyphs else "?" for c in name)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"
