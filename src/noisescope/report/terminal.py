"""What a person sees while a diagnosis runs and when it is done: progress, a table, a verdict.

Names from models, paths and data are printed as plain text, never as markup.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from noisescope.analyse import Interval, Worst
from noisescope.inject import Dose, Site, SiteRecord, coverage_table
from noisescope.measure import Progress as Tell
from noisescope.study import Diagnosis

_BAR_WIDTHS = (6, 24)  # narrowest and widest
_GAP = 2
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_ROWS_LOST = "row"


@contextmanager
def progress_bar(console: Console) -> Iterator[Tell]:
    """Shows what runs, how much is done and the time left; yields what to tell it."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    # Into a file or a pipe a bar would write only its remains.
    is_off = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=is_off) as bar:
        running = bar.add_task("starting", total=None)

        def tell(what: str, done: int, total: int) -> None:
            bar.update(running, description=what, completed=done, total=total)

        yield tell


def print_diagnosis(console: Console, diagnosis: Diagnosis) -> None:
    """Prints the table with a bar per condition, the coverage, the verdicts and the notes."""
    console.print(_headline(diagnosis))
    console.print(_condition_table(diagnosis, console.width))
    sessions = diagnosis.measurement.sessions.values()
    print_coverage(console, [record for session in sessions for record in session.records])
    for label, worst in (("accuracy", diagnosis.worst_accuracy), ("KL", diagnosis.worst_kl)):
        console.print(_verdict(label, worst, diagnosis.kind))
    for note in diagnosis.notes:
        console.print(Text(f"Note: {note}"))


def _headline(diagnosis: Diagnosis) -> Text:
    loaded, error, draws = diagnosis.loaded, diagnosis.error_model, diagnosis.plan.draws
    baseline = (
        "nothing generated"
        if math.isnan(diagnosis.baseline_accuracy)
        else f"clean accuracy {diagnosis.baseline_accuracy:.1%}"
    )
    name = "".join(c if c.isprintable() else "?" for c in loaded.path.name)
    return Text(
        f"{name} ({str(loaded.dtype).removeprefix('torch.')}, {loaded.device}), "
        f"{type(error).__name__} {getattr(error, 'scale', 0):g} on "
        f"{', '.join(diagnosis.settings['operators'])}; {len(diagnosis.task.samples)} samples, "
        f"{draws} draw{'s' if draws > 1 else ''}, seed {diagnosis.plan.seed}; {baseline}"
    )


def _condition_table(diagnosis: Diagnosis, width: int) -> Table:
    columns = _columns(diagnosis)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for name in columns:
        justify = "left" if name == diagnosis.kind else "right"
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    used = sum(_GAP + max(map(len, (name, *cells))) for name, cells in columns.items())
    narrowest, widest = _BAR_WIDTHS
    bar_width = min(widest, width - used)
    means = [s.kl_nats.mean for s in diagnosis.summaries]
    largest = max(filter(math.isfinite, means), default=0.0)
    if bar_width >= narrowest:
        table.add_column("", no_wrap=True)
    for mean, *cells in zip(means, *columns.values(), strict=True):
        row = [Text(cell) for cell in cells]
        if bar_width >= narrowest:
            style = "red" if mean == largest else "yellow"
            row.append(Text(bar(mean, largest, bar_width), style))
        table.add_row(*row)
    return table


def _columns(diagnosis: Diagnosis) -> dict[str, list[str]]:
    """Returns the table's cells by column; accuracy only where answers were generated."""
    summaries, sessions = diagnosis.summaries, diagnosis.measurement.sessions
    columns = {diagnosis.kind: [s.condition for s in summaries]}
    if not math.isnan(diagnosis.baseline_accuracy):
        columns["accuracy"] = [_percent(s.accuracy) for s in summaries]
        columns["lost"] = [_percent(s.degradation) for s in summaries]
    columns["KL, nats/token"] = [_estimate(s.kl_nats) for s in summaries]
    columns["dose"] = [_dose(sessions[s.condition].dose()) for s in summaries]
    return columns


def bar(value: float, largest: float, width: int) -> str:
    """Returns a bar of eighths of a character, full at `largest`; empty for NaN and nothing."""
    if not (math.isfinite(value) and largest > 0 and value > 0):
        return ""
    eighths = max(1, round(8 * width * min(1.0, value / largest)))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _verdict(label: str, worst: Worst, kind: str) -> Text:
    name = "Avalanche point" if kind == "layers" else "Most fragile"
    style = "bold red" if worst.is_conclusive else "bold"
    line = Text(f"{name} by {label}: ", style="bold")
    line.append(worst.condition or "none", style=style)
    return line.append(f" ({worst.reason})")


def print_coverage(console: Console, records: Sequence[SiteRecord]) -> None:
    """Prints the coverage: per operator the sites seen, selected and perturbed, and the dose."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for name in ("coverage", "seen", "selected", "perturbed", "outputs", "dose"):
        table.add_column(name, justify="left" if name == "coverage" else "right")
    rows = coverage_table(records)
    for row in rows:
        counts = (row.seen, row.selected, row.perturbed, row.forward)
        table.add_row(row.operator, *(f"{n:,}" for n in counts), _dose(row.dose))
    console.print(table)
    lost = [row.operator for row in rows if row.rows == _ROWS_LOST and row.forward]
    if lost:
        console.print(
            Text(f"Rows lost their sample in {', '.join(lost)}: noise there depends on the batch.")
        )


def print_sites(console: Console, records: Sequence[SiteRecord], is_full: bool) -> None:
    """Prints what can be selected; layers with the same sites share a line unless `is_full`."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("layers", "module", "operator", "calls"):
        table.add_column(name, overflow="fold")
    groups: dict[tuple[str, str], list[Site]] = {}
    for record in records:
        site = record.site
        module = site.module if is_full else _within(site)
        groups.setdefault((module, site.operator), []).append(site)
    for (module, operator), sites in groups.items():
        regions = list(dict.fromkeys(s.region for s in sites))
        calls = len({s.index for s in sites})
        table.add_row(Text(_ranges(regions)), Text(module), operator, str(calls))
    console.print(table)


def _within(site: Site) -> str:
    """Returns the module's name with its layer number replaced by `*`."""
    if not site.region.isdigit():
        return site.module
    parts = site.module.split(".")
    return ".".join("*" if part == site.region else part for part in parts)


def _ranges(regions: Sequence[str]) -> str:
    """Joins region names, runs of layers as `0-27`."""
    runs: list[list[str]] = []
    for region in regions:
        follows = runs and region.isdigit() and runs[-1][-1].isdigit()
        if follows and int(region) == int(runs[-1][-1]) + 1:
            runs[-1].append(region)
        else:
            runs.append([region])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _percent(value: float) -> str:
    return f"{value:.1%}" if math.isfinite(value) else "n/a"


def _number(value: float) -> str:
    return f"{value:.2g}" if math.isfinite(value) else "n/a"


def _estimate(interval: Interval) -> str:
    """Writes a mean with its 95 % interval, e.g. `0.022 [0.0053, 0.038]`."""
    if interval.mean == 0 and not interval.is_known:
        return "0"
    if not interval.is_known:
        return f"{_number(interval.mean)} [too few data]"
    return f"{_number(interval.mean)} [{max(0.0, interval.low):.2g}, {interval.high:.2g}]"


def _dose(dose: Dose) -> str:
    if not dose.elements:
        return "none"
    return f"{dose.relative_l2:.2g} on {dose.share_changed:.0%}"
