"""A comparison in the terminal: a table, what changed beyond chance, and last of all the gate."""

from collections.abc import Mapping, Sequence

from rich.console import Console

from noisescope.analyse.change import Change
from noisescope.analyse.gate import Ruling
from noisescope.report.contrast.words import (
    BETWEEN,
    NAMES,
    WORDS,
    difference_text,
    headline,
    level_text,
    ruling_text,
    statements,
    verdict_line,
)
from noisescope.report.figures import dose_text
from noisescope.report.table import Columns, fitting, plain, plain_table
from noisescope.study.contrast import MODELS, Contrast

_MOST_NAMED = 3
_UNITS = {"nll": "NLL, nats/token", "accuracy": "accuracy, points", "kl": "KL, nats/token"}


def print_contrast(console: Console, contrast: Contrast) -> None:
    """Prints what is compared, what changed, and the notes."""
    for line in headline(contrast).splitlines():
        console.print(plain(line))
    if contrast.kind == MODELS:
        console.print(plain_table(model_columns(contrast)))
    else:
        _print_conditions(console, contrast)
    for line in statements(contrast):
        console.print(plain(line))
    for line in contrast.differing:
        console.print(plain(f"Differs: {line}"))
    for line in notes(contrast):
        console.print(plain(f"Note: {line}"))


def print_rulings(console: Console, rulings: Sequence[Ruling], kind: str) -> None:
    """Prints what the data say of each gate; what all come to is the last line."""
    if len(rulings) > 1:
        for ruling in rulings:
            console.print(plain(ruling_text(ruling, kind)))
    if rulings:
        console.print(plain(verdict_line(rulings, kind)))


def notes(contrast: Contrast) -> list[str]:
    """Returns the notes, with the conditions that are not compared and the rough intervals."""
    found = list(contrast.notes)
    for letter, other, names in zip("AB", "BA", contrast.only, strict=True):
        if names:
            found.append(f"in {letter} and not in {other}, so not compared: {_some(names)}")
    chosen = dict.fromkeys(c.condition for c in contrast.changes if not c.is_asked)
    if chosen:
        found.append(
            f"{len(chosen)} conditions that the studies chose themselves are in both, too; "
            "they are in the report, and a gate may name them"
        )
    rough = [*dict.fromkeys(c for x in contrast.changes if not x.is_same for c in _cautions(x))]
    if rough:
        found.append(f"intervals are rough: {', '.join(rough)}")
    return found


def _cautions(change: Change) -> list[str]:
    """Returns what bends an interval, in a few words."""
    parts = [part.partition(":") for part in change.difference.caution.split("; ") if part]
    names = [name for name, colon, _ in parts if colon]
    return [f"{name} ({NAMES[change.measure]})" for name in names]


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def model_columns(contrast: Contrast) -> Columns:
    """Returns the table of two models, a row per measure."""
    rows: list[tuple[str, str, str, str, str]] = []
    for change in contrast.changes:
        is_kl = change.measure == "kl"
        name = {"kl": f"{BETWEEN}, nats/token", "nll": "NLL, nats/token"}.get(
            change.measure, "accuracy, points"
        )
        rows.append(
            (
                name,
                "" if is_kl else level_text(change, change.first),
                "" if is_kl else level_text(change, change.second),
                difference_text(change).removeprefix("+") if is_kl else difference_text(change),
                WORDS[change.outcome],
            )
        )
    names = ("models", "A", "B", "B - A [95 %]", "change")
    cells = [list(column) for column in zip(*rows, strict=True)]
    return dict(zip(names, cells, strict=True))


def _print_conditions(console: Console, contrast: Contrast) -> None:
    """Prints a line for each condition that the user asked for; the models without noise first."""
    columns = condition_columns(contrast, is_asked=True)
    if not columns["condition"]:
        return
    narrower: list[tuple[str, list[str] | None]] = [
        ("dose B", None),
        ("dose A", None),
        ("NLL A to B", None),
        ("accuracy A to B", None),
        ("KL A to B", None),
        *(
            (unit, _without_bounds(columns[unit]))
            for unit in (*_UNITS.values(),)
            if unit in columns
        ),
    ]
    console.print(plain_table(fitting(columns, narrower, console.width)))
    measures = [name for name in NAMES if any(c.measure == name for c in contrast.changes)]
    words = "/".join(NAMES[name] for name in measures)
    console.print(
        plain(
            f"change by {words}: B - A, up or down beyond chance over all conditions (Holm); = is "
            "the same, ? is open"
        )
    )


def _without_bounds(cells: Sequence[str]) -> list[str]:
    return [cell.partition(" [")[0] for cell in cells]


def condition_columns(contrast: Contrast, is_asked: bool) -> Columns:
    """Returns a table's cells by column, a row per condition.

    Args:
        contrast: What was compared.
        is_asked: Those the user asked for, or those that the studies chose.
    """
    by_name: dict[str, dict[str, Change]] = {}
    for change in contrast.changes:
        if change.is_asked is is_asked:
            by_name.setdefault(change.condition, {})[change.measure] = change
    measures = [name for name in NAMES if any(name in found for found in by_name.values())]
    columns: Columns = {"condition": list(by_name)}
    for name in measures:
        columns |= _measure_columns(name, list(by_name.values()))
    columns["change"] = [
        "/".join(WORDS[found[m].outcome] if m in found else "-" for m in measures)
        for found in by_name.values()
    ]
    for n, letter in enumerate("AB"):
        columns[f"dose {letter}"] = [
            dose_text(contrast.doses[name][n]) if name in contrast.doses else "" for name in by_name
        ]
    return columns


def _measure_columns(name: str, rows: Sequence[Mapping[str, Change]]) -> Columns:
    label = NAMES[name]
    levels = [_levels(found[name]) if name in found else "" for found in rows]
    unit = _UNITS[name]
    moved = [difference_text(found[name]) if name in found else "" for found in rows]
    return {f"{label} A to B": levels, unit: moved}


def _levels(change: Change) -> str:
    return f"{level_text(change, change.first)} to {level_text(change, change.second)}"
