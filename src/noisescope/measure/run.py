"""Runs a plan in memory: unit by unit, then everything in its order. Studies on disk are study/."""

import warnings
from collections.abc import Mapping, Sequence

from noisescope.errors import DoseWarning
from noisescope.inject import Witness, merge_witnesses
from noisescope.measure.attest import measurement_notes, weak_dose_note
from noisescope.measure.plan import Measurement, Plan, Progress
from noisescope.measure.unit import Unit, UnitResult
from noisescope.measure.worker import Worker
from noisescope.models import LoadedModel
from noisescope.records import CLEAN, Record
from noisescope.tasks import Task

_MOST_SAMPLES = 32
ROWS_PER_UNIT = 256


def measure(
    loaded: LoadedModel, task: Task, plan: Plan, progress: Progress | None = None
) -> Measurement:
    """Measures every condition of a plan on every sample of a task.

    Warns with a `DoseWarning` where under half of the noise arrived.

    Args:
        loaded: The model, its tokenizer and its context length.
        task: The samples and their scoring.
        plan: The conditions, draws and seed.
        progress: Told what runs now, and how many units of how many are done.

    Raises:
        InputError: The model predicts no next token, or a prompt does not fit it.
        SelectionError: A condition's selection names nothing, or never fired.
        DoseError: Rounding erased all of a condition's noise.
    """
    units = make_units(plan, [sample.name for sample in task.samples])
    results: list[UnitResult] = []

    def tell(what: str, share: float) -> None:
        if progress is not None:
            progress(what, len(results) + share, len(units))

    worker = Worker(loaded, task, plan, tell=tell)
    for unit in units:
        results.append(worker(unit))
        tell("measuring", 0.0)
    return assemble(plan, [s.name for s in task.samples], results, task.max_new_tokens)


def samples_per_unit(plan: Plan) -> int:
    """Returns how many samples make a unit: enough for a good batch, not too many to wait for."""
    riders = 1 + len(plan.conditions) * plan.draws
    return max(1, min(_MOST_SAMPLES, ROWS_PER_UNIT // riders))


def make_units(plan: Plan, samples: Sequence[str]) -> list[Unit]:
    """Cuts a plan into units: some samples at a time, under all conditions and draws."""
    size = samples_per_unit(plan)
    return [
        Unit(
            name=f"samples {begin} to {min(begin + size, len(samples)) - 1}",
            samples=tuple(samples[begin : begin + size]),
            conditions=tuple(c.name for c in plan.conditions),
            draws=tuple(range(plan.draws)),
            generates=plan.generates,
        )
        for begin in range(0, len(samples), size)
    ]


def assemble(
    plan: Plan, samples: Sequence[str], results: Sequence[UnitResult], max_new_tokens: int
) -> Measurement:
    """Puts what came of the units into one measurement, in the plan's order."""
    condition = {name: n for n, name in enumerate([CLEAN, *(c.name for c in plan.conditions)])}
    place = {name: n for n, name in enumerate(samples)}

    def order(record: Record) -> tuple[int, int, int]:
        return condition[record.condition], record.draw, place[record.sample]

    records = sorted((r for result in results for r in result.records), key=order)
    witnesses: Mapping[str, Witness] = {
        c.name: merge_witnesses(r.witnesses[c.name] for r in results if c.name in r.witnesses)
        for c in plan.conditions
    }
    told = dict.fromkeys(note for result in results for note in result.notes)
    notes = (*measurement_notes(records, witnesses, max_new_tokens), *told)
    weak = weak_dose_note(witnesses)
    if weak is not None:
        warnings.warn(weak, DoseWarning, stacklevel=3)
    return Measurement(tuple(records), witnesses, notes)
