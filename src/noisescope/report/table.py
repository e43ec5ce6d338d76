"""Tables in the terminal that fit its width, first of all that of the conditions.

Where the width is small, columns are left out whole, the least telling first: no cell is cut while
another can go.
"""

import math
from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from noisescope.analyse import Summary
from noisescope.report.figures import dose_text, estimate_text, number_text, percent
from noisescope.study import Diagnosis

GAP = 2
Columns = dict[str, list[str]]
_BAR_WIDTHS = (6, 24)  # narrowest and widest
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_KL, _PREDICTED = "KL, nats/token", "predicted"
_WORDS = {"harmful": "yes", "harmless": "no", "inconclusive": "?"}


def condition_table(diagnosis: Diagnosis, width: int) -> Table:
    """Returns the table, a line per condition, with a bar of its KL where the width allows."""
    means = [s.kl_nats.mean for s in diagnosis.summaries]
    narrower: list[tuple[str, list[str] | None]] = [
        (_PREDICTED, None),
        ("dose", None),
        ("lost", None),
        (_KL, [number_text(mean) for mean in means]),  # of KL only the interval goes
        ("accuracy", None),
        ("harm", None),
    ]
    columns = fitting(_columns(diagnosis), narrower, width)
    narrowest, widest = _BAR_WIDTHS
    bar_width = min(widest, width - width_of(columns) - GAP)
    if bar_width < narrowest:
        return plain_table(columns)
    largest = max(filter(math.isfinite, means), default=0.0)
    styles = ["red" if mean == largest else "yellow" for mean in means]
    bars = [bar(mean, largest, bar_width) for mean in means]
    return plain_table(columns, [Text(b, style) for b, style in zip(bars, styles, strict=True)])


def plain_table(columns: Mapping[str, Sequence[str]], bars: Sequence[Text] = ()) -> Table:
    """Returns a table of texts, the first column to the left and the others to the right.

    Args:
        columns: The cells of each.
        bars: A last column without a name; none: there is no such column.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
    for number, name in enumerate(columns):
        table.add_column(plain(name), justify="right" if number else "left", no_wrap=True)
    if bars:
        table.add_column("", no_wrap=True)
    for number, cells in enumerate(zip(*columns.values(), strict=True)):
        table.add_row(*(plain(cell) for cell in cells), *bars[number : number + 1])
    return table


def fitting(
    columns: Columns, narrower: Sequence[tuple[str, list[str] | None]], width: int
) -> Columns:
    """Returns as many of the columns as fit.

    Args:
        columns: The cells of each.
        narrower: What goes first where the width is small: a column, and what takes its place;
            None: nothing.
        width: In characters.
    """
    kept = dict(columns)
    for name, cells in narrower:
        if width_of(kept) <= width:
            break
        if cells is None:
            kept.pop(name, None)
        elif name in kept:
            kept[name] = cells
    return kept


def width_of(columns: Mapping[str, Sequence[str]]) -> int:
    """Returns the width of a table of these columns."""
    return sum(GAP + max(map(len, (name, *cells))) for name, cells in columns.items()) - GAP


def plain(text: str) -> Text:
    """Returns a text without markup, and with `?` for what a terminal would obey."""
    return Text("".join(c if c.isprintable() else "?" for c in text))


def bar(value: float, largest: float, width: int) -> str:
    """Returns a bar of eighths of a character, full at `largest`; empty for NaN and nothing."""
    if not (math.isfinite(value) and largest > 0 and value > 0):
        return ""
    eighths = max(1, round(8 * width * min(1.0, value / largest)))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def has_accuracy(diagnosis: Diagnosis) -> bool:
    """Returns whether answers were generated under noise; a search generates none."""
    return any(math.isfinite(s.accuracy) for s in diagnosis.summaries)


def _columns(diagnosis: Diagnosis) -> Columns:
    """Returns the table's cells by column; accuracy only where answers were generated."""
    summaries, witnesses = diagnosis.summaries, diagnosis.witnesses
    predictions = diagnosis.findings.predictions
    columns = {diagnosis.kind: [s.condition for s in summaries]}
    if has_accuracy(diagnosis):
        columns["accuracy"] = [percent(s.accuracy) for s in summaries]
        columns["lost"] = [percent(s.degradation) for s in summaries]
    columns[_KL] = [estimate_text(s.kl_nats) for s in summaries]
    if any(s.condition in predictions for s in summaries):
        known = [predictions.get(s.condition) for s in summaries]
        columns[_PREDICTED] = [number_text(p.kl_nats) if p else "n/a" for p in known]
    columns["harm"] = [_harm(s, "accuracy" in columns) for s in summaries]
    columns["dose"] = [dose_text(witnesses[s.condition].dose()) for s in summaries]
    return columns


def _harm(summary: Summary, has_accuracy: bool) -> str:
    """Says what the verdicts are, accuracy before KL."""
    verdicts = [summary.accuracy_verdict] if has_accuracy else []
    return "/".join(_WORDS[v.outcome] for v in [*verdicts, summary.kl_verdict] if v is not None)
