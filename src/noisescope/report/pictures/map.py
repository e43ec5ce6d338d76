"""The map as a figure: predicted KL by region and operator, and how measurements lie beside it."""

import math
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from noisescope.report.figures import counted, estimate_text, number_text, times_text
from noisescope.report.page.page import Picture
from noisescope.report.pictures.cells import SUM, Cell, Grid, Measured, grid_of
from noisescope.report.pictures.paint import (
    FAINT,
    INK,
    MISSING,
    PAPER,
    RAMP,
    STEPS,
    bare,
    drawable,
    new_figure,
    text_on,
)
from noisescope.study import Diagnosis

_DECADES = 6  # below the largest, what is smaller is drawn alike
_MOST_SITES = 6
_SIGNS = {"above": " ▲", "below": " ▼", "on": " ●", "alone": "", "": ""}
_PLACES = {
    "above": "above the prediction beyond chance",
    "below": "below the prediction beyond chance",
    "on": "not told from the prediction",
}
_GAP = 0.12  # between the cells and the sums


def map_picture(diagnosis: Diagnosis) -> Picture | None:
    """Returns the map; None where there is nothing to be put on it."""
    grid = grid_of(diagnosis)
    if grid is None:
        return None
    height = max(2.4, 1.25 + 0.3 * len(grid.regions))
    figure = new_figure(max(6.0, 1.5 + 0.88 * len(grid.operators)), height)
    axes: Any = figure.subplots()
    norm = _norm(grid)
    tips = {}
    for row, region in enumerate(grid.regions):
        for column, operator in enumerate(grid.operators):
            cell = grid.cells.get((region, operator))
            gid = f"cell-{row}-{column}" if cell is not None else ""
            where = (
                column + (_GAP if operator == SUM else 0),
                row + (_GAP if region == SUM else 0),
            )
            _draw_cell(axes, where, cell, _step(norm, _value(grid, cell)), gid, grid.is_predicted)
            if cell is not None:
                tips[gid] = _tip(cell)
    _dress(axes, grid)
    if norm is not None:
        _draw_bar(figure, axes, norm, grid.is_predicted)
    return Picture(
        "map",
        "The map: regions and operators",
        _caption(diagnosis, grid),
        figure,
        tips,
        ("region", "operator", "sites", "predicted KL, nats per token", "standard error",
         "measured condition", "measured KL, nats per token", "low", "high", "beside prediction"),
        tuple(row for cell in _in_order(grid) for row in _rows(cell)),
    )  # fmt: skip


def _in_order(grid: Grid) -> list[Cell]:
    keys = [(region, operator) for region in grid.regions for operator in grid.operators]
    return [grid.cells[key] for key in keys if key in grid.cells]


def _value(grid: Grid, cell: Cell | None) -> float:
    """Returns what colours a cell: the predicted KL or, where nothing is predicted, the measured.

    Of several measured sites it is the largest.
    """
    if cell is None:
        return math.nan
    if grid.is_predicted:
        return cell.predicted
    return max((m.kl.mean for m in cell.measured), default=math.nan)


def _norm(grid: Grid) -> LogNorm | None:
    values = [_value(grid, cell) for cell in grid.cells.values()]
    positive = [value for value in values if math.isfinite(value) and value > 0]
    if not positive:
        return None
    top = max(positive)
    return LogNorm(min(max(min(positive), top / 10**_DECADES), top / 10), top, clip=True)


def _step(norm: LogNorm | None, value: float) -> int | None:
    """Returns the step of the ramp; None for what is unknown."""
    if norm is None or not math.isfinite(value):
        return None
    return 0 if value <= 0 else min(STEPS - 1, int(float(norm(value)) * STEPS))


def _draw_cell(
    axes: Any,
    where: tuple[float, float],
    cell: Cell | None,
    step: int | None,
    gid: str,
    is_predicted: bool,
) -> None:
    x, y = where
    colour = MISSING if step is None else RAMP[step]
    box = Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor=PAPER, linewidth=1.2)
    box.set_gid(gid or None)
    axes.add_artist(box)  # unlike add_patch it moves no limits, which takes long
    if cell is None:
        return
    value = cell.predicted if is_predicted else max(m.kl.mean for m in cell.measured)
    text = f"{number_text(value)}{_SIGNS[cell.place]}"
    is_off = cell.place in ("above", "below")
    axes.text(
        x, y, text, ha="center", va="center_baseline", fontsize=8,
        fontweight="bold" if is_off else "normal",
        color=FAINT if step is None else text_on(step),
    )  # fmt: skip


def _dress(axes: Any, grid: Grid) -> None:
    rows, columns = len(grid.regions), len(grid.operators)
    x = [n + (_GAP if name == SUM else 0) for n, name in enumerate(grid.operators)]
    y = [n + (_GAP if name == SUM else 0) for n, name in enumerate(grid.regions)]
    axes.set_xlim(-0.5, columns - 0.5 + _GAP)
    axes.set_ylim(rows - 0.5 + _GAP, -0.5)
    axes.xaxis.tick_top()
    axes.set_xticks(x, [drawable(name, 14) for name in grid.operators], fontsize=8.5)
    axes.set_yticks(y, [drawable(name, 20) for name in grid.regions], fontsize=8.5)
    bare(axes)


def _draw_bar(figure: Any, axes: Any, norm: LogNorm, is_predicted: bool) -> None:
    """Draws the ramp as steps, so that the page can turn its colours too."""
    bar = axes.inset_axes((0, -0.55 / axes_height(figure), 0.42, 0.14 / axes_height(figure)))
    for step in range(STEPS):
        bar.add_patch(Rectangle((step / STEPS, 0), 1 / STEPS, 1, color=RAMP[step], linewidth=0))
    low, high = math.log10(norm.vmin or 1), math.log10(norm.vmax or 1)
    decades = np.arange(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    where = [(d - low) / (high - low) for d in decades]
    bar.set_xticks(where, [f"{10.0**d:g}" for d in decades], fontsize=7.5)
    bar.set_yticks([])
    bare(bar)
    bar.tick_params(colors=FAINT)
    what = "predicted" if is_predicted else "measured"
    bar.set_title(f"{what} KL, nats per token", fontsize=8, color=INK, loc="left", pad=3)


def axes_height(figure: Any) -> float:
    """Returns about how many inches high the cells of the map are."""
    return float(figure.get_size_inches()[1]) - 1.25


def _tip(cell: Cell) -> str:
    where = "everywhere" if cell.region == SUM else cell.region
    what = "all operators" if cell.operator == SUM else cell.operator
    lines = [f"{where}, {what}"]
    if math.isfinite(cell.predicted):
        error = f" ± {number_text(cell.error)}" if math.isfinite(cell.error) else ""
        over = counted(len(cell.sites), "site")
        lines.append(f"predicted {number_text(cell.predicted)}{error} nats per token, {over}")
    lines += [_measured_line(cell, found) for found in cell.measured]
    if not cell.measured:
        lines.append("not measured by itself")
    if cell.sites and SUM not in (cell.region, cell.operator):
        named = ", ".join(cell.sites[:_MOST_SITES])
        more = len(cell.sites) - _MOST_SITES
        lines.append(f"sites: {named}{f' and {more} more' if more > 0 else ''}")
    return "\n".join(lines)


def _measured_line(cell: Cell, found: Measured) -> str:
    told = f"measured {estimate_text(found.kl)}"
    if ":" in found.condition:
        told = f"measured in {found.condition}: {estimate_text(found.kl)}"
    if found.place in _PLACES:
        told += f", {times_text(found.ratio)} times as predicted: {_PLACES[found.place]}"
    return told


def _rows(cell: Cell) -> list[tuple[object, ...]]:
    start = (cell.region, cell.operator, len(cell.sites), cell.predicted, cell.error)
    return [
        (*start, m.condition, m.kl.mean, m.kl.low, m.kl.high, m.place) for m in cell.measured
    ] or [(*start, "", None, None, None, "")]


def _caption(diagnosis: Diagnosis, grid: Grid) -> str:
    if not grid.is_predicted:
        return (
            "Measured KL of noise in a region and operator alone, the largest site of each; "
            "“all” is a region with all its operators, or an operator everywhere. Nothing was "
            "predicted. Each cell gives its interval on hover or focus."
        )
    return (
        "Predicted KL of noise in a region and operator, summed over its sites; “all” is a region "
        "with all its operators, or an operator everywhere. Where it, or one of its sites, was "
        "measured too: ▲ above the prediction beyond chance, ▼ below, ● not told apart. Each cell "
        "gives both, with the interval and the sites, on hover or focus."
    )
