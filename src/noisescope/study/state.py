"""Where a study stands, for whoever only looks: nothing is locked and nothing is changed."""

import time
from dataclasses import dataclass
from pathlib import Path

from noisescope.errors import InputError
from noisescope.inject import Witness
from noisescope.measure import Record, Unit
from noisescope.study.gather import gather
from noisescope.study.lock import holder_of
from noisescope.study.manifest import MANIFEST, Manifest, read_manifest
from noisescope.study.opening import read_kept
from noisescope.study.plan import StudyPlan
from noisescope.study.units import manifest_units

_TRIES, _PAUSE_S = 5, 0.1


@dataclass(frozen=True)
class StudyState:
    """Where a study stands.

    Attributes:
        directory: Where it is kept.
        plan: Its plan, with the conditions that its steps have chosen so far.
        stages: How often it was begun or extended.
        steps: The steps that have chosen their conditions.
        units_done: Units that are kept.
        units_total: Units in all, of a study with steps so far; None for a search, which finds them
            as it goes.
        records: What is measured so far, in the plan's order.
        witnesses: Of each condition, summed over the units so far.
        notes: What the units have to say.
        is_complete: Whether it is finished.
        holder: The process that works on it now, or None.
    """

    directory: Path
    plan: StudyPlan
    stages: int
    steps: tuple[str, ...]
    units_done: int
    units_total: int | None
    records: tuple[Record, ...]
    witnesses: dict[str, Witness]
    notes: tuple[str, ...]
    is_complete: bool
    holder: str | None

    @property
    def is_running(self) -> bool:
        """Whether a process works on it now."""
        return self.holder is not None


def read_study(directory: Path) -> StudyState:
    """Reads where a study stands, also while a process works on it.

    Raises:
        InputError: The directory holds no study, or one of its files was changed.
    """
    for _ in range(_TRIES - 1):
        try:
            return _read(directory)
        except InputError:  # files that change while they are read do not fit each other
            if holder_of(directory) is None:
                break
            time.sleep(_PAUSE_S)
    return _read(directory)


def _read(directory: Path) -> StudyState:
    manifest = _read_manifest(directory)
    finished, contents = read_kept(directory, manifest)
    # Again: a step may have chosen since, and what it chose be in the journal already.
    manifest = _read_manifest(directory)
    plan, stages = manifest.plan, len(manifest.stages)
    order = {unit.name: i for i, unit in enumerate(_units(manifest))}
    results = sorted(contents.results, key=lambda r: order.get(r.unit, 0))
    gathered = gather(finished, results, plan, stages)
    is_complete = finished.stages == stages
    return StudyState(
        directory=directory,
        plan=plan,
        stages=sum(not stage.step for stage in manifest.stages),
        steps=tuple(stage.step for stage in manifest.stages if stage.step),
        units_done=len(order) - len(_units(manifest, finished.stages)) + len(results),
        units_total=None if plan.is_adaptive else len(order),
        records=gathered.records,
        witnesses=dict(gathered.witnesses),
        notes=gathered.notes,
        is_complete=is_complete,
        holder=holder_of(directory),
    )


def _read_manifest(directory: Path) -> Manifest:
    manifest = read_manifest(directory)
    if manifest is None:
        raise InputError(f"{directory} holds no study ({MANIFEST} is missing): name one that does")
    return manifest


def _units(manifest: Manifest, after: int = 0) -> list[Unit]:
    return [] if manifest.plan.is_adaptive else manifest_units(manifest, after)
