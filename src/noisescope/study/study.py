"""A study: has its units carried out, keeps what comes back, and gives it as records in order.

What is given to analysis has always passed through JSON, so a study that went on after a kill and
one that ran through see the same. Opening one is in `opening`; its files are in their own modules.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from noisescope.errors import InputError, NoisescopeError
from noisescope.inject import Witness
from noisescope.measure import Progress, Record, Unit, UnitResult
from noisescope.study.compact import RECORDS, write_finished
from noisescope.study.executor import Executor, InProcess, UnitFailure, UnitSource, Worker
from noisescope.study.files import explained, remove_file
from noisescope.study.gather import Gathered, gather
from noisescope.study.interrupt import ENDING, Interrupts, StudyInterrupted, hold_interrupts
from noisescope.study.journal import JOURNAL, Journal, decoded
from noisescope.study.lock import Lock
from noisescope.study.manifest import MANIFEST, Manifest, write_manifest
from noisescope.study.plan import StudyPlan
from noisescope.study.units import Key, manifest_units, stage_units, unit_keys, wrong_with

NextUnits = Callable[[Sequence[Record]], Sequence[Unit]]


class Study:
    """A study that is open for measuring; made by `open_study`, and closed as a context manager.

    Attributes:
        directory: Where it is kept; None: nowhere.
        opening: What opening it found, one line; empty for a new one.
    """

    def __init__(
        self,
        manifest: Manifest,
        directory: Path | None = None,
        *,
        lock: Lock | None = None,
        journal: Journal | None = None,
        finished: Gathered | None = None,
        results: Iterable[UnitResult] = (),
        opening: str = "",
    ) -> None:
        self.directory, self.opening = directory, opening
        self._manifest, self._lock, self._journal = manifest, lock, journal
        self._finished = finished or Gathered()
        self._known: Gathered | None = None  # gathered, and nothing was kept since
        self._interrupts = Interrupts()
        self._results = {result.unit: result for result in results}
        self._groups = {sample.name: sample.group for sample in manifest.plan.samples}
        self._units: list[Unit] = []  # all that are asked for beyond the finished ones
        self._keys: set[Key] = set()
        self._failed: dict[str, UnitFailure] = {}
        self._first: dict[str, str] = {}  # the unit that each condition is first measured in
        self._is_searched = False
        self._units_before = 0
        if not manifest.plan.is_adaptive:
            self._ask(manifest_units(manifest, self._finished.stages))
            self._check_all_asked()
            self._units_before = len(manifest_units(manifest)) - len(self._units)

    @property
    def plan(self) -> StudyPlan:
        """The plan as it is kept; its layout is what a worker should go by."""
        return self._manifest.plan

    @property
    def is_complete(self) -> bool:
        """Whether all is measured and `finish` has made its files."""
        return self._finished.stages == len(self._manifest.stages)

    @property
    def is_ending(self) -> bool:
        """Whether Ctrl-C was pressed, so that the units in hand are the last."""
        return self._interrupts.is_asked

    @property
    def records(self) -> tuple[Record, ...]:
        """What is measured so far: clean first, then by condition, draw and sample."""
        return self._gathered().records

    @property
    def witnesses(self) -> dict[str, Witness]:
        """The witness of each condition, summed over the units so far."""
        return dict(self._gathered().witnesses)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the units have to say, each line once."""
        return self._gathered().notes

    @property
    def clean_answers(self) -> dict[str, tuple[int, ...]]:
        """The token ids of the clean answers so far, by sample; a worker need not decode them."""
        return {r.sample: r.answer_ids for r in self.records if r.answer_ids is not None}

    @property
    def failures(self) -> tuple[UnitFailure, ...]:
        """The units that were given up, in the order of the units."""
        return tuple(self._failed[unit.name] for unit in self._units if unit.name in self._failed)

    def chosen(self, step: str) -> tuple[str, ...] | None:
        """Returns the names of all conditions that a step chose; None where it was not reached."""
        return self._manifest.chosen(step)

    @property
    def progress(self) -> tuple[int, int]:
        """Units that are kept, and units that are asked for so far."""
        done = sum(unit.name in self._results for unit in self._units)
        return self._units_before + done, self._units_before + len(self._units)

    def run(
        self, worker: Worker, executor: Executor | None = None, progress: Progress | None = None
    ) -> None:
        """Has the units of the plan carried out that are not kept yet.

        Args:
            worker: Measures a unit.
            executor: Who has it carried out; None: this process.
            progress: Told what was done, and how many units of how many are.

        Raises:
            StudyInterrupted: Ctrl-C was pressed; the units in hand are kept.
            NoisescopeError: A unit could not be written; those before it are kept.
            ValueError: The executor gave back something else than it was asked for.
        """
        if self.plan.is_adaptive:
            raise ValueError("the plan is adaptive: its units come from run_rounds")
        self._carry_out(worker, executor or InProcess(), progress)

    def run_rounds(
        self,
        worker: Worker,
        next_units: NextUnits,
        executor: Executor | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Has units carried out round after round, each chosen by the records of those before.

        Args:
            worker: Measures a unit.
            next_units: Returns the units of the next round, none to end; a pure function of the
                records so far, for it is called again for each round when a study goes on.
            executor: As in `run`.
            progress: As in `run`.

        Raises:
            StudyInterrupted: As in `run`.
            NoisescopeError: As in `run`.
            ValueError: As in `run`, or a unit asks for something a second time.
        """
        if not self.plan.is_adaptive:
            raise ValueError("the plan is not adaptive: its units are fixed, call run")
        if self.is_complete:
            return
        self._units, self._keys, self._known = [], set(), None
        while units := next_units(self.records):
            self._ask(units)
            self._carry_out(worker, executor or InProcess(), progress)
        self._check_all_asked()
        self._is_searched = True

    def choose(
        self, step: str, conditions: Mapping[str, Any], *, generates: bool | None = None
    ) -> None:
        """Adds the conditions that a step chose, over all samples and draws; `run` measures them.

        The choice is kept before anything of it is measured, and a step chooses once: where the
        study holds its choice, that one stays, whatever is chosen now. It may rest on everything
        that was asked for before, which must be measured.

        Args:
            step: The step's name.
            conditions: From `conditions_json`; none: the step found nothing to measure. A condition
                that is there already is not measured again.
            generates: Whether they are answered; None: as the plan, False: only scored along the
                clean answers.

        Raises:
            NoisescopeError: The choice could not be written.
            ValueError: The plan has no steps, units are missing, or a name is taken by another
                condition.
        """
        if not self.plan.has_steps or self.plan.is_adaptive or not step:
            raise ValueError(f"step {step!r}: a plan with has_steps and a name are needed")
        if self.chosen(step) is not None:
            return
        done, total = self.progress
        if self.is_complete or done + len(self._failed) < total:
            why = "it is finished" if self.is_complete else f"{done} of {total} units are measured"
            raise ValueError(f"step {step!r} cannot add to the study now: {why}")
        grown = self._manifest.with_step(step, conditions, generates)
        if self.directory is not None:
            with explained(self.directory / MANIFEST, self._kept()):
                write_manifest(self.directory, grown)
        self._manifest = grown
        self._ask(stage_units(grown, len(grown.stages) - 1))

    def finish(self) -> None:
        """Makes the files of a finished study: Parquet in the place of the journal.

        A study with steps is finished when all of them have chosen and are measured, which only its
        driver knows.

        Raises:
            NoisescopeError: They cannot be written; all records are kept all the same.
            ValueError: Units are missing.
        """
        if self.is_complete:
            return
        done, total = self.progress
        if done < total or (self.plan.is_adaptive and not self._is_searched):
            raise ValueError(f"{done} of {total} units are measured: run the study to its end")
        finished = self._gathered()
        if self.directory is not None:
            with explained(self.directory / RECORDS, self._kept()):
                write_finished(self.directory, finished, self.plan)
                self._close_journal()
                remove_file(self.directory / JOURNAL)
        self._units_before += len(self._units)
        self._finished, self._units, self._results = finished, [], {}
        self._known = finished

    def close(self) -> None:
        """Gives the directory free for other processes."""
        self._close_journal()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, units: Sequence[Unit]) -> None:
        """Adds units to those that are asked for; their results may be there already."""
        self._known = None
        names = {unit.name for unit in self._units}
        for unit in units:
            keys = set(unit_keys(unit))
            if unit.name in names or not keys or keys & self._keys:
                raise ValueError(f"unit {unit.name!r} is empty, or asks for something again")
            if unit.name in self._results:
                self._check_kept(unit)
            self._units.append(unit)
            self._keys |= keys
            names.add(unit.name)
            for condition in unit.conditions:
                self._first.setdefault(condition, unit.name)

    def _check_kept(self, unit: Unit) -> None:
        wrong = wrong_with(unit, self._results[unit.name], self._groups)
        if wrong and self.directory is not None:
            raise InputError(
                f"{self.directory / JOURNAL}: unit {unit.name} is not what the plan asks for "
                f"({wrong}): restore the directory from a copy, or name another"
            )

    def _check_all_asked(self) -> None:
        odd = sorted(self._results.keys() - {unit.name for unit in self._units})
        if odd and self.directory is not None:
            raise InputError(
                f"{self.directory / JOURNAL} holds unit {odd[0]}, which the plan does not ask for: "
                "restore the directory from a copy, or name another"
            )

    def _carry_out(self, worker: Worker, executor: Executor, progress: Progress | None) -> None:
        """Has the units carried out that have no result, and keeps what comes back."""
        waiting = {
            unit.name: unit
            for unit in self._units
            if unit.name not in self._results and unit.name not in self._failed
        }
        tell = _teller(self, progress)
        tell("")
        if not waiting:
            return
        # Asked to end, it hands out no more, and what is in hand is finished.
        source = UnitSource(tuple(waiting.values()), lambda: self.is_ending)
        results = executor.run(worker, source)
        try:
            with hold_interrupts(lambda: tell(ENDING)) as self._interrupts:
                for result in results:
                    self._keep(result, waiting, worker)
                    tell(result.unit)
        finally:
            if isinstance(results, Generator):
                results.close()
        self._end_if_asked()
        if waiting:
            raise ValueError(f"the executor left out {len(waiting)} units, first {min(waiting)!r}")

    def _keep(
        self, result: UnitResult | UnitFailure, waiting: dict[str, Unit], worker: Worker
    ) -> None:
        unit = waiting.get(result.unit)
        if unit is None:
            raise ValueError(f"the executor gave unit {result.unit!r}, which it was not asked for")
        if isinstance(result, UnitFailure):
            self._give_up(result)
            del waiting[unit.name]
            return
        wrong = wrong_with(unit, result, self._groups)
        if wrong:
            raise ValueError(f"the result of unit {unit.name!r} is not what was asked for: {wrong}")
        first = [name for name in unit.conditions if self._first[name] == unit.name]
        worker.learn(result, first)
        if self._journal is not None:
            with explained(self._journal.path, self._kept()):
                self._journal.append(result)
        self._results[unit.name], self._known = decoded(result), None
        del waiting[unit.name]

    def _give_up(self, failure: UnitFailure) -> None:
        """Notes a unit that failed for good; the others go on."""
        if self.plan.is_adaptive:
            raise NoisescopeError(
                f"unit {failure.unit} failed {failure.attempts} times ({failure.error}), and the "
                f"search cannot go on without it: {self._kept()}; run the same command to try again"
            )
        self._failed[failure.unit] = failure

    def _end_if_asked(self) -> None:
        if self.is_ending:
            go_on = "run the same command to go on"
            if self.directory is None:
                go_on = "nothing is kept: give --out to be able to go on"
            raise StudyInterrupted(f"{self._kept()}: {go_on}")

    def _kept(self) -> str:
        done, total = self.progress
        where = f"kept in {self.directory}" if self.directory is not None else "measured"
        return f"{done} of {total} units are {where}"

    def _gathered(self) -> Gathered:
        """Returns everything so far; of a search, what its rounds have asked for up to now."""
        if self._known is None:
            done = [self._results[unit.name] for unit in self._units if unit.name in self._results]
            self._known = gather(self._finished, done, self.plan, len(self._manifest.stages))
        return self._known

    def _close_journal(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None


def _teller(study: Study, progress: Progress | None) -> Callable[[str], None]:
    def tell(what: str) -> None:
        if progress is not None:
            progress(ENDING if study.is_ending else what, *study.progress)

    return tell
