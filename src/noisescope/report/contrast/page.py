"""A comparison as a page: what changed first, then figures, tables, and how it was run."""

import math
from collections.abc import Sequence
from pathlib import Path

from noisescope.analyse.gate import Ruling
from noisescope.report.contrast.pictures import draw_differences, draw_models, draw_studies
from noisescope.report.contrast.text import condition_columns, model_columns, notes
from noisescope.report.contrast.words import (
    NAMES,
    advice,
    headline,
    ruling_text,
    statements,
)
from noisescope.report.page.page import Section, Table
from noisescope.report.table import Columns
from noisescope.study.contrast import MODELS, Contrast, Party

_DIGEST_SHOWN = 19  # characters; compare.json has them whole
_HOLM = (
    "Every interval is of 95 % by itself; up and down are told at 5 % over all conditions together "
    "(Holm). Fewer than ten independent samples tell nothing."
)


def contrast_title(contrast: Contrast) -> str:
    """Returns the heading of the page."""
    a, b = (Path(party.path).name or party.path for party in (contrast.first, contrast.second))
    return f"{a} against {b}"


def contrast_summary(contrast: Contrast, rulings: Sequence[Ruling]) -> list[str]:
    """Returns what there is to know: what the gates say, and what changed."""
    ruled = [ruling_text(ruling, contrast.kind) for ruling in rulings]
    return [*ruled, *statements(contrast), advice(rulings)]


def contrast_sections(
    contrast: Contrast, rulings: Sequence[Ruling], command: str
) -> tuple[Section, ...]:
    """Returns the sections of the page.

    Args:
        contrast: What was compared.
        rulings: Of the gates.
        command: By which it is compared again.
    """
    found = [_changes(contrast), *_samples(contrast), *_chosen(contrast)]
    if rulings:
        found.append(_gates(contrast, rulings))
    return (*found, _differing(contrast), _run(contrast, command))


def _changes(contrast: Contrast) -> Section:
    asked = [change for change in contrast.changes if change.is_asked]
    pictures = []
    if contrast.kind != MODELS:
        for measure in NAMES:
            mine = [c for c in asked if c.measure == measure and math.isfinite(c.difference.mean)]
            pictures += [draw_differences(measure, mine)] if mine else []
    columns = (
        model_columns(contrast)
        if contrast.kind == MODELS
        else condition_columns(contrast, is_asked=True)
    )
    pairing = "sample by sample" if any(c.sides.is_paired for c in asked) else "mean with mean"
    return Section(
        name="changes",
        title="What changed",
        paragraphs=(f"B minus A, {pairing}. {_HOLM}",),
        pictures=tuple(pictures),
        tables=(_table("Changes from A to B, with 95 % intervals", columns),),
    )


def _table(title: str, columns: Columns) -> Table:
    return Table(title, tuple(columns), tuple(zip(*columns.values(), strict=True)))


def _chosen(contrast: Contrast) -> list[Section]:
    """Returns the conditions that both studies came to choose themselves."""
    if all(change.is_asked for change in contrast.changes):
        return []
    columns = condition_columns(contrast, is_asked=False)
    told = (
        "Steps of both studies chose these conditions. They are a family of their own: what the "
        "user asked for is judged without them."
    )
    table = _table("Changes of conditions that the studies chose", columns)
    return [Section("chosen", "Chosen by the studies", (told,), tables=(table,))]


def _size(value: float) -> float:
    return abs(value) if math.isfinite(value) else -1.0


def _samples(contrast: Contrast) -> list[Section]:
    """Returns the samples one by one, of the change that is largest, where they are paired."""
    paired = [c for c in contrast.of("kl") if c.sides.is_paired and c.is_asked and not c.is_same]
    if not paired:
        return []
    change = max(paired, key=lambda c: _size(c.difference.mean))
    is_models = contrast.kind == MODELS
    picture = draw_models(contrast, change) if is_models else draw_studies(change)
    if picture is None:
        return []
    told = "Which samples make up the change: a few large ones, or all alike."
    return [Section("samples", "Sample by sample", (told,), pictures=(picture,))]


def _gates(contrast: Contrast, rulings: Sequence[Ruling]) -> Section:
    rows = tuple(
        (ruling.gate.text, ruling.outcome, ruling.condition or "-", _needed(ruling))
        for ruling in rulings
    )
    columns = ("gate", "outcome", "decided by", "would settle it")
    return Section(
        name="gate",
        title="The gate",
        paragraphs=tuple(ruling_text(ruling, contrast.kind) for ruling in rulings),
        tables=(Table("Gates", columns, rows),),
    )


def _needed(ruling: Ruling) -> str:
    if ruling.needed_samples is not None:
        return f"about {ruling.needed_samples:,} samples"
    return "-" if ruling.needed_draws is None else f"about {ruling.needed_draws:,} draws"


def _differing(contrast: Contrast) -> Section:
    paragraphs = tuple(notes(contrast)) or ("Nothing to be noted.",)
    rows = tuple(tuple(_split(line)) for line in contrast.differing)
    tables = (Table("What differs beside the figures", ("what", "A", "B"), rows),) if rows else ()
    return Section("differing", "Notes, and what else differs", paragraphs, tables=tables)


def _split(line: str) -> list[str]:
    """Takes `seed: 0 in A, 1 in B` apart."""
    what, _, rest = line.partition(": ")
    a, _, b = rest.partition(" in A, ")
    value, mark, more = b.partition(" in B")
    return [what, a, f"{value}{more}" if mark else b]


def _run(contrast: Contrast, command: str) -> Section:
    parties = (contrast.first, contrast.second)
    names = list(dict.fromkeys(name for party in parties for name in _facts(party)))
    rows = tuple((name, *(str(_facts(p).get(name, "-")) for p in parties)) for name in names)
    return Section(
        name="run",
        title="How it was run",
        paragraphs=tuple(headline(contrast).splitlines()),
        tables=(Table("A and B", ("what", "A", "B"), rows),),
        code=command,
    )


def _facts(party: Party) -> dict[str, object]:
    facts: dict[str, object] = {"directory": party.path}
    facts |= {name: value for name, value in party.about.items() if value is not None}
    prints = party.fingerprints.items()
    facts |= {f"fingerprint of the {name}": text[:_DIGEST_SHOWN] for name, text in prints}
    return facts | {f"version of {name}": text for name, text in party.versions.items()}
