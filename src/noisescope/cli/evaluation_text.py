"""An evaluation in the terminal: a line per task, condition and metric, then what is open.

Names from tasks, models and paths are printed as plain text, never as markup.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from noisescope.analyse import Interval
from noisescope.harness import Change, Evaluation
from noisescope.harness.paired import LOST, PART, lost_text
from noisescope.harness.pairs import SHARE
from noisescope.report.figures import counted, dose_text
from noisescope.report.table import Columns, fitting, plain, plain_table
from noisescope.report.terminal import print_coverage

_WORDS = {"harmful": "yes", "harmless": "no", "inconclusive": "?"}
_MOST_NAMED = 3


def print_evaluation(console: Console, evaluation: Evaluation) -> None:
    """Prints what the noise changed, what arrived of it, and the notes."""
    console.print(plain(headline(evaluation)))
    columns = change_columns(evaluation)
    narrower: list[tuple[str, list[str] | None]] = [
        ("dose", None),
        ("flipped", None),
        ("change", [cell.partition(" [")[0] for cell in columns["change"]]),
    ]
    console.print(plain_table(fitting(columns, narrower, console.width)))
    print_coverage(console, [r for w in evaluation.witnesses.values() for r in w.records])
    told = (*lost_lines(evaluation), *rough_lines(evaluation.changes))
    for line in (*harm_lines(evaluation), *told):
        console.print(plain(line))
    for note in evaluation.notes:
        console.print(plain(f"Note: {note}"))


def headline(evaluation: Evaluation) -> str:
    """Returns what was evaluated, on one line."""
    config = evaluation.config
    samples: dict[str, int] = {}
    for change in evaluation.changes:
        if change.samples:
            samples[change.task] = max(change.samples, samples.get(change.task, 0))
    asked = ", ".join(f"{task} ({counted(n, 'sample')})" for task, n in samples.items())
    noise = dict.fromkeys(error_text(c.error_model) for c in evaluation.conditions)
    return (
        f"{Path(config['model']).name} ({config['dtype']}, {config['device']}), "
        f"{', '.join(noise)}; {asked or ', '.join(config['tasks'])}; "
        f"{counted(config['draws'], 'draw')}, seed {config['seed']}"
    )


def error_text(error_model: Any) -> str:
    """Returns an error in words: ``RelativeGaussian 0.05``, or ``RoundTo mxfp4, both``."""
    told = [
        f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in asdict(error_model).items()
        if name != "rounding" and value not in (None, [], ())
    ]
    return f"{type(error_model).__name__} {', '.join(told)}".strip()


def change_columns(evaluation: Evaluation) -> Columns:
    """Returns the table's cells by column."""
    changes = evaluation.changes
    filters = {change.task: set[str]() for change in changes}
    for change in changes:
        filters[change.task].add(change.filter)
    return {
        "task": [change.task for change in changes],
        "noise": [change.condition for change in changes],
        "metric": [
            change.name if len(filters[change.task]) == 1 else f"{change.name} ({change.filter})"
            for change in changes
        ],
        "clean": [_level(change, change.clean) for change in changes],
        "noisy": [_level(change, change.noisy) for change in changes],
        "change": [_difference(change) for change in changes],
        "flipped": [_flipped(change) for change in changes],
        "harm": [
            "-" if change.verdict is None else _WORDS[change.verdict.outcome] for change in changes
        ],
        "dose": [dose_text(evaluation.witnesses[change.condition].dose()) for change in changes],
    }


def _level(change: Change, value: float) -> str:
    if not math.isfinite(value):
        return "n/a"
    return f"{value:.1%}" if change.kind == SHARE else f"{value:.4g}"


def _difference(change: Change) -> str:
    interval: Interval = change.difference
    if not math.isfinite(interval.mean):
        return "n/a"
    scale, form = (100.0, "+.1f") if change.kind == SHARE else (1.0, "+.2g")
    mean = f"{scale * interval.mean:{form}}"
    if not interval.is_known:
        return f"{mean} [{'no pairs' if change.samples == 0 else 'too few data'}]"
    return f"{mean} [{scale * interval.low:{form}}, {scale * interval.high:{form}}]"


def _flipped(change: Change) -> str:
    if change.flips is None:
        return ""
    return " / ".join(f"{share:.1%}" for share in change.flips)


def harm_lines(evaluation: Evaluation) -> list[str]:
    """Says what harm means, and what would settle what is open."""
    margins = evaluation.margins
    lines = [
        f"harm: a loss beyond {100 * margins.accuracy:g} point"
        f"{'' if margins.accuracy == 0.01 else 's'} of answers, {margins.nats:g} nats, or "
        f"{margins.accuracy:g} of any other metric; ? is inconclusive. change is noisy less clean, "
        "of answers in points; flipped: made wrong / made right"
    ]
    open_ = [c for c in evaluation.changes if c.verdict is not None and _is_open(c)]
    for change in open_[:_MOST_NAMED]:
        lines.append(f"{_label(evaluation, change)}: {change.verdict.reason}")  # type: ignore[union-attr]
    if len(open_) > _MOST_NAMED:
        lines.append(f"and {len(open_) - _MOST_NAMED} more inconclusive; result.json tells of each")
    return lines


def _is_open(change: Change) -> bool:
    return change.verdict is not None and change.verdict.outcome not in ("harmful", "harmless")


def _label(evaluation: Evaluation, change: Change) -> str:
    where = f", {change.condition}" if len(evaluation.conditions) > 1 else ""
    return f"{change.task}, {change.metric}{where}"


def lost_lines(evaluation: Evaluation) -> list[str]:
    """Says where noise left no number, and which metrics only some of the samples have."""
    lines = []
    for change in evaluation.changes:
        where = _label(evaluation, change)
        if change.lost:
            told = lost_text(change.lost, change.samples)
            lines.append(f"{where}: {told}; the means are of the rest")
        if 0 < change.samples < change.asked:
            lines.append(f"{where}: {change.samples} of {change.asked} samples have this metric")
    more = [
        f"and {len(lines) - _MOST_NAMED} more such" for _ in lines[_MOST_NAMED : _MOST_NAMED + 1]
    ]
    return [*lines[:_MOST_NAMED], *more]


def rough_lines(changes: Sequence[Change]) -> list[str]:
    """Says which intervals may not hold what they promise, and why, in a few words."""
    why: dict[str, set[str]] = {}
    for change in changes:
        for caution in filter(None, change.difference.caution.split("; ")):
            name, colon, _ = caution.partition(":")
            if colon and change.samples and name not in (LOST, PART):
                why.setdefault(name, set()).add(f"{change.task}, {change.metric}")
    told = [
        f"{name} in {counted(len(found), 'metric') if len(found) > 1 else next(iter(found))}"
        for name, found in why.items()
    ]
    return [f"intervals are rough: {'; '.join(told)}"] if told else []
