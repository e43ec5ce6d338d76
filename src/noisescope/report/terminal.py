"""What a person sees while a diagnosis runs and when it is done: progress, a table, a verdict.

Names from models, paths and data are printed as plain text, never as markup.
"""

import math
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from noisescope.analyse import Verdict, Winner, Worst
from noisescope.inject import Site, SiteRecord, coverage_table
from noisescope.measure import Progress as Tell
from noisescope.report.conclusion import topics
from noisescope.report.figures import (
    counted,
    dose_text,
    estimate_text,
    number_text,
    points_text,
)
from noisescope.report.findings import agreement_line, print_findings
from noisescope.report.table import GAP, condition_table, has_accuracy, plain
from noisescope.study import Diagnosis, StudyState

_MOST_NAMED = 3
_ROWS_LOST = "row"
_LINE_EVERY_S = 15.0
_SETTLED = ("harmful", "harmless")


@contextmanager
def progress_bar(console: Console, counted_in: str = "units") -> Iterator[Tell]:
    """Shows what runs, how much is done and the time left; yields what to tell it.

    Into a file or a pipe goes a line now and then, as a bar would write only its remains.
    """
    if not console.is_terminal:
        yield _line_now_and_then(console, counted_in)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn(counted_in),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        running = bar.add_task("starting", total=None)

        def tell(what: str, done: float, total: int) -> None:
            bar.update(running, description=what, completed=done, total=total)

        yield tell


def _line_now_and_then(console: Console, counted_in: str) -> Tell:
    told_at = [time.monotonic()]

    def tell(what: str, done: float, total: int) -> None:
        if time.monotonic() - told_at[0] >= _LINE_EVERY_S:
            told_at[0] = time.monotonic()
            told = f"{done:.1f}".removesuffix(".0")
            console.print(plain(f"{told} of {total} {counted_in}{f'; {what}' if what else ''}"))

    return tell


def print_diagnosis(console: Console, diagnosis: Diagnosis) -> None:
    """Prints the table, the coverage, what was found beyond it, and the verdicts."""
    console.print(_headline(diagnosis))
    if diagnosis.summaries:
        console.print(condition_table(diagnosis, console.width))
    agreement = agreement_line(diagnosis)
    if agreement is not None:
        console.print(agreement)
    # At other scales the dose is another, and a mean over them would be nobody's.
    names = [s.condition for s in diagnosis.summaries] or list(diagnosis.witnesses)
    print_coverage(console, [r for name in names for r in diagnosis.witnesses[name].records])
    if diagnosis.summaries:
        for line in (*_harm_lines(diagnosis), *_rough_lines(diagnosis)):
            console.print(plain(line))
    print_findings(console, diagnosis)
    _print_verdicts(console, diagnosis)


def _print_verdicts(console: Console, diagnosis: Diagnosis) -> None:
    if diagnosis.winner is not None:
        console.print(_search_line(diagnosis, diagnosis.winner))
    is_whole = diagnosis.kind == "diagnose"
    if diagnosis.summaries and not is_whole:
        for label, worst in (("accuracy", diagnosis.worst_accuracy), ("KL", diagnosis.worst_kl)):
            console.print(_verdict(label, worst, diagnosis.kind))
    for note in diagnosis.notes:
        console.print(plain(f"Note: {note}"))
    if is_whole:
        console.print(Text("Verdict", style="bold"))
        for topic in topics(diagnosis):
            console.print(point(topic, console.width))


def point(text: str, width: int) -> Text:
    """Returns a text as a point of a list, wrapped; names are not torn."""
    said = textwrap.wrap(
        plain(text).plain,
        max(20, width),
        initial_indent="- ",
        subsequent_indent="  ",
        break_on_hyphens=False,
        break_long_words=False,
    )
    return Text("\n".join(said))


def print_state(console: Console, state: StudyState) -> None:
    """Prints where a study stands: what it is of, what is done, and who works on it."""
    plan = state.plan
    done = f"{state.units_done} of {counted(state.units_total or 0, 'unit')}"
    if state.units_total is None:
        done = f"{counted(state.units_done, 'unit')} of a search"
    standing = (
        "complete" if state.is_complete else f"{done}, {counted(len(state.records), 'record')}"
    )
    if plan.has_steps and not state.is_complete:
        standing += ", more steps may follow"
    grown = "" if state.stages == 1 else f", extended {counted(state.stages - 1, 'time')}"
    holder = f"; {state.holder} works on it now" if state.is_running else ""
    console.print(plain(f"{state.directory}: a study of {plan.kind}, {standing}{grown}{holder}"))
    console.print(
        plain(
            f"{counted(len(plan.conditions), 'condition')}, {counted(plan.draws, 'draw')}, "
            f"{counted(len(plan.samples), 'sample')}, seed {plan.seed}; model "
            f"{plan.about['config']['model']} ({_short(plan.fingerprints['model'])}), data "
            f"{plan.about['config']['data']} ({_short(plan.fingerprints['data'])})"
        )
    )


def _headline(diagnosis: Diagnosis) -> Text:
    config, plan = diagnosis.config, diagnosis.plan
    baseline = (
        "nothing generated"
        if math.isnan(diagnosis.baseline_accuracy)
        else f"clean accuracy {diagnosis.baseline_accuracy:.1%}"
    )
    begun = len({r.sample for r in diagnosis.records})
    samples = counted(len(plan.samples), "sample")
    if begun < len(plan.samples):
        samples = f"{begun} of {samples} so far"
    return plain(
        f"{Path(config['model']).name} ({config['dtype']}, {config['device']}), "
        f"{diagnosis.error_text} on "
        f"{', '.join(config['operators'])}; {samples}, "
        f"{counted(plan.draws, 'draw')}, seed {plan.seed}; {baseline}"
    )


def _harm_lines(diagnosis: Diagnosis) -> list[str]:
    """Explains the verdicts, and what would settle those that are open."""
    margins, by_accuracy = diagnosis.margins, has_accuracy(diagnosis)
    points = 100 * margins.accuracy
    said, beyond = "harm", f"{margins.kl_nats:g} nats per token"
    if by_accuracy:
        said = "harm by accuracy/KL"
        beyond = f"{points:g} point{'' if points == 1 else 's'} / {beyond}"
    lines = [f"{said}: a loss beyond {beyond}; ? is inconclusive"]
    for label, name in (("accuracy", "accuracy_verdict"), ("KL", "kl_verdict")):
        verdicts = {s.condition: getattr(s, name) for s in diagnosis.summaries}
        open_ = {c: v for c, v in verdicts.items() if v is not None and v.outcome not in _SETTLED}
        if not open_ or (label == "accuracy" and not by_accuracy):
            continue
        needs = [_needs(c, v) for c, v in open_.items() if v.needed_samples or v.needed_draws]
        more = f" and {len(needs) - _MOST_NAMED} more" if len(needs) > _MOST_NAMED else ""
        told = f"; about {', '.join(needs[:_MOST_NAMED])}{more} would settle it" if needs else ""
        lines.append(f"inconclusive by {label}: {_some(list(open_), len(verdicts))}{told}")
    return lines


def _rough_lines(diagnosis: Diagnosis) -> list[str]:
    """Says which intervals of KL may not hold what they promise, and why, in a few words."""
    why: dict[str, list[str]] = {}
    for summary in diagnosis.summaries:
        for caution in filter(None, summary.kl_nats.caution.split("; ")):
            name, colon, _ = caution.partition(":")
            if colon:
                why.setdefault(name, []).append(summary.condition)
    told = [f"{name} in {_some(names, len(diagnosis.summaries))}" for name, names in why.items()]
    return [f"intervals of KL are rough: {'; '.join(told)}"] if told else []


def _needs(condition: str, verdict: Verdict) -> str:
    if verdict.needed_samples:
        return f"{verdict.needed_samples} samples in {condition}"
    return f"{verdict.needed_draws} draws in {condition}"


def _search_line(diagnosis: Diagnosis, winner: Winner) -> Text:
    """Says what a search found and what it took."""
    plan = diagnosis.plan
    measured = sum(r.condition in plan.conditions for r in diagnosis.records)
    share = measured / (len(plan.conditions) * len(plan.samples) * plan.draws)
    took = f"{share:.0%} of the evaluations of a full sweep"
    where = f"on {counted(len(winner.reserve), 'sample')} held back"
    if winner.is_full_sweep:
        took = "all was measured, too little to be searched"
        where = f"on {counted(len(winner.samples), 'sample')}"
    loss = f"it loses {number_text(winner.loss)} nats per token"
    if winner.runner_up is not None:
        loss += f", the runner-up {winner.runner_up} {number_text(winner.runner_up_loss)}"
    line = Text("Search by KL: ", style="bold")
    line.append(plain(winner.name).plain, style="red")
    return line.append(plain(f" ({took}; {where} {loss})").plain, style="not bold")


def _verdict(label: str, worst: Worst, kind: str) -> Text:
    """Says which condition is the worst by a measure, how sure that is, and what it costs."""
    name = "Avalanche point" if kind == "layers" else "Most fragile"
    line = Text(f"{name} by {label}: ", style="bold")
    reason = plain(worst.reason if worst.condition else f"none, since {worst.reason}").plain
    before, found, after = reason.partition(worst.condition or "none")
    line.append(before, style="not bold")
    line.append(found, style="red" if worst.is_conclusive else "")
    line.append(after, style="not bold")
    held = worst.held_out
    if not math.isfinite(held.mean):
        return line
    loss = (
        points_text(held)
        if worst.measure == "accuracy"
        else f"{estimate_text(held)} nats per token"
    )
    apart = "questions and draws" if worst.held_out_draws else "questions"
    return line.append(f"; on {apart} that did not choose it, it loses {loss}", style="not bold")


def print_coverage(console: Console, records: Sequence[SiteRecord]) -> None:
    """Prints the coverage: per operator the sites seen, selected and perturbed, and the dose."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
    for name in ("coverage", "seen", "selected", "perturbed", "outputs", "dose"):
        table.add_column(name, justify="left" if name == "coverage" else "right")
    rows = coverage_table(records)
    for row in rows:
        counts = (row.seen, row.selected, row.perturbed, row.forward)
        table.add_row(row.operator, *(f"{n:,}" for n in counts), dose_text(row.dose))
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


def _some(names: Sequence[str], total: int) -> str:
    """Writes the names, or how many they are where they are many."""
    if 1 < len(names) == total:
        return f"all {total}"
    return f"{len(names)} of {total}" if len(names) > _MOST_NAMED else ", ".join(names)


def _short(fingerprint: str) -> str:
    return fingerprint[:19]
