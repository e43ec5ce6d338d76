"""What the pictures share: colours, a font that is the same everywhere, names drawn as they are.

Every colour has a name, a light and a dark value: a PNG is light, and the page takes the names, so
that it can be dark. Nothing is told by colour alone: series differ by marker and line as well.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

INK, FAINT, BAR, WORST, PREDICTED = "#262626", "#6b6b6b", "#e0b58d", "#b3261e", "#1f5f8b"
PAPER, GRID, EDGE, MISSING = "#ffffff", "#ececec", "#bdbdbd", "#f1f1f1"
TINTS = ("#1f5f89", "#4d8b31", "#8a5fb0", "#b97a10", "#2f8f8f", "#7a4a2b", "#5b6b9e", "#a0527d")
REST = "#9a9a9a"
MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">")
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (1, 1.4)), (0, (5, 2, 1, 2)))
STEPS = 16  # of the ramp of a heatmap: few enough for each to have a name
_HARM = ["#fbf7f0", "#fbdfb5", "#f6a86b", "#dd5f43", "#a31b2b"]
_HARM_DARK = ["#26221f", "#553527", "#96462f", "#de7743", "#ffd591"]
COLOURS = LinearSegmentedColormap.from_list("harm", _HARM)
_LONGEST_NAME = 40
_FONT = "DejaVu Sans"  # matplotlib carries it, so a picture is the same everywhere


def _ramp(colours: Sequence[str]) -> tuple[str, ...]:
    smooth = LinearSegmentedColormap.from_list("ramp", list(colours))
    return tuple(to_hex(smooth(step / (STEPS - 1))) for step in range(STEPS))


RAMP, RAMP_DARK = _ramp(_HARM), _ramp(_HARM_DARK)
HEAT = ListedColormap(RAMP, "harm in steps").with_extremes(bad=MISSING)


def luminance(colour: str) -> float:
    """Returns the relative luminance of a colour, 0 black to 1 white.

    Source: WCAG 2.2, relative luminance.
    """
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Returns the contrast of two colours, 1 to 21; text needs 4.5.

    Source: WCAG 2.2, contrast ratio.
    """
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def text_on(step: int) -> str:
    """Returns the colour of text on a step of the ramp: black or white, whichever is read better.

    The last bits name the step, so that the page can turn it around in the dark.
    """
    is_dark = contrast(RAMP[step], "#000000") < contrast(RAMP[step], PAPER)
    return f"#fffef{step:x}" if is_dark else f"#00000{step:x}"


def _themed() -> dict[str, tuple[str, str]]:
    """Returns the names of all colours, each with its light and its dark value."""
    named = {
        "ink": (INK, "#e9e6e1"),
        "faint": (FAINT, "#aba69f"),
        "paper": (PAPER, "#1b1917"),
        "grid": (GRID, "#35312d"),
        "edge": (EDGE, "#5d5750"),
        "missing": (MISSING, "#2b2825"),
        "bar": (BAR, "#8d6b4b"),
        "worst": (WORST, "#ff8b7b"),
        "predicted": (PREDICTED, "#7fbcec"),
        "rest": (REST, "#85807a"),
    }
    light = ("#7fbbeb", "#8fcf70", "#c5a1ea", "#e8b04e", "#6fd0d0", "#d29a76", "#a3b3ea", "#e796c2")
    named |= {f"series-{n}": pair for n, pair in enumerate(zip(TINTS, light, strict=True))}
    for step in range(STEPS):
        dark = max(("#000000", "#ffffff"), key=lambda c: contrast(c, RAMP_DARK[step]))
        named[f"heat-{step}"] = (RAMP[step], RAMP_DARK[step])
        named[f"on-heat-{step}"] = (text_on(step), dark)
    return named


THEME: Mapping[str, tuple[str, str]] = _themed()


def new_figure(width: float, height: float) -> Figure:
    """Returns a figure of so many inches that can be drawn without a display."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def settle(figure: Figure) -> None:
    """Lays a figure out once, so that every drawing of it is the same to the last bit.

    No text in it is a formula from here on: names may hold dollars.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    layout: Any = figure.get_layout_engine()
    if layout is not None:
        layout.execute(figure)
        figure.set_layout_engine("none")


def png_of(figure: Figure) -> bytes:
    """Returns a figure as a PNG."""
    settle(figure)
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


def dress(axes: Any, x: str, y: str) -> None:
    """Names both axes, and leaves of frame and ticks a faint grid behind the marks."""
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=FAINT, labelcolor=FAINT, which="both", length=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def logarithmic(axis: Any, subs: Sequence[float] = (1.0,)) -> None:
    """Makes an axis (`axes.xaxis`) logarithmic, with plain numbers as labels: 0.01, 1e-05.

    Args:
        axis: The axis.
        subs: Which numbers of each decade get a label; (1, 2, 5) where there are few decades.
    """
    axes, name = axis.axes, axis.axis_name
    getattr(axes, f"set_{name}scale")("log")
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def drawable(name: str, longest: int = _LONGEST_NAME) -> str:
    """Returns a name as the font can draw it: on one line, cut where long, `?` for the rest."""
    glyphs = font_manager.get_font(font_manager.findfont(_FONT)).get_charmap()
    shown = "".join(c if c.isprintable() and ord(c) in glyphs else "?" for c in name)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"
