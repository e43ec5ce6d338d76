"""The table of conditions in the terminal, which fits its width, and how its figures are written.

Where the width is small, columns are left out whole, the least telling first: no cell is cut while
another can go.
"""

import math

from rich.table import Table
from rich.text import Text

from noisescope.analyse import Interval, Summary
from noisescope.inject import Dose
from noisescope.study import Diagnosis
from noisescope.study.searched import GIVEN_UP

GAP = 2
_BAR_WIDTHS = (6, 24)  # narrowest and widest
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_KL = "KL, nats/token"
_LEFT_OUT = ("dose", "lost", _KL, "accuracy", "harm")  # of KL only the interval goes
_WORDS = {"harmful": "yes", "harmless": "no", "inconclusive": "?"}


def condition_table(diagnosis: Diagnosis, width: int) -> Table:
    """Returns the table, a line per condition, with a bar of its KL where the width allows."""
    columns = _fitting(diagnosis, width)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
    for name in columns:
        justify = "left" if name == diagnosis.kind else "right"
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    narrowest, widest = _BAR_WIDTHS
    bar_width = min(widest, width - _width(columns) - GAP)
    means = [s.kl_nats.mean for s in diagnosis.summaries]
    largest = max(filter(math.isfinite, means), default=0.0)
    if bar_width >= narrowest:
        table.add_column("", no_wrap=True)
    for mean, *cells in zip(means, *columns.values(), strict=True):
        row = [plain(cell) for cell in cells]
        if bar_width >= narrowest:
            style = "red" if mean == largest else "yellow"
            row.append(Text(bar(mean, largest, bar_width), style))
        table.add_row(*row)
    return table


def bar(value: float, largest: float, width: int) -> str:
    """Returns a bar of eighths of a character, full at `largest`; empty for NaN and nothing."""
    if not (math.isfinite(value) and largest > 0 and value > 0):
        return ""
    eighths = max(1, round(8 * width * min(1.0, value / largest)))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def has_accuracy(diagnosis: Diagnosis) -> bool:
    """Returns whether answers were generated under noise; a search generates none."""
    return any(math.isfinite(s.accuracy) for s in diagnosis.summaries)


def plain(text: str) -> Text:
    """Returns a text without markup, and with `?` for what a terminal would obey."""
    return Text("".join(c if c.isprintable() else "?" for c in text))


def number_text(value: float) -> str:
    """Writes a number with two digits."""
    return f"{value:.2g}" if math.isfinite(value) else "n/a"


def estimate_text(interval: Interval) -> str:
    """Writes a mean with its 95 % interval, e.g. `0.022 [0.0053, 0.038]`."""
    if interval.mean == 0 and not interval.is_known:
        return "0"
    if not interval.is_known:
        why = "given up" if interval.caution == GIVEN_UP else "too few data"
        return f"{number_text(interval.mean)} [{why}]"
    return f"{number_text(interval.mean)} [{max(0.0, interval.low):.2g}, {interval.high:.2g}]"


def dose_text(dose: Dose) -> str:
    """Writes the relative norm of the change and the share of elements that changed."""
    if not dose.elements:
        return "none"
    return f"{dose.relative_l2:.2g} on {dose.share_changed:.0%}"


def _fitting(diagnosis: Diagnosis, width: int) -> dict[str, list[str]]:
    """Returns as many of the columns as fit."""
    columns = _columns(diagnosis)
    for name in _LEFT_OUT:
        if _width(columns) <= width:
            break
        if name == _KL:
            columns[_KL] = [number_text(s.kl_nats.mean) for s in diagnosis.summaries]
        else:
            columns.pop(name, None)
    return columns


def _width(columns: dict[str, list[str]]) -> int:
    return sum(GAP + max(map(len, (name, *cells))) for name, cells in columns.items()) - GAP


def _columns(diagnosis: Diagnosis) -> dict[str, list[str]]:
    """Returns the table's cells by column; accuracy only where answers were generated."""
    summaries, witnesses = diagnosis.summaries, diagnosis.witnesses
    columns = {diagnosis.kind: [s.condition for s in summaries]}
    if has_accuracy(diagnosis):
        columns["accuracy"] = [_percent(s.accuracy) for s in summaries]
        columns["lost"] = [_percent(s.degradation) for s in summaries]
    columns[_KL] = [estimate_text(s.kl_nats) for s in summaries]
    columns["harm"] = [_harm(s, "accuracy" in columns) for s in summaries]
    columns["dose"] = [dose_text(witnesses[s.condition].dose()) for s in summaries]
    return columns


def _harm(summary: Summary, has_accuracy: bool) -> str:
    """Says what the verdicts are, accuracy before KL."""
    verdicts = [summary.accuracy_verdict] if has_accuracy else []
    return "/".join(_WORDS[v.outcome] for v in [*verdicts, summary.kl_verdict] if v is not None)


def _percent(value: float) -> str:
    return f"{value:.1%}" if math.isfinite(value) else "n/a"
