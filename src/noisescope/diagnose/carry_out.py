"""Carries a diagnosis out as a study, in a directory or in memory; what it asks is in kinds.py."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from noisescope.analyse import Round
from noisescope.diagnose.follow import Follow, conditions_of
from noisescope.diagnose.question import Question
from noisescope.errors import DoseWarning, InputError, NoisescopeError, NoisescopeWarning
from noisescope.measure import (
    Condition,
    Plan,
    ProfileOptions,
    Progress,
    Record,
    Unit,
    Worker,
    samples_per_unit,
)
from noisescope.measure.attest import weak_dose_note
from noisescope.measure.memory import default_gib
from noisescope.measure.run import ROWS_PER_UNIT
from noisescope.measure.steps import end_tokens
from noisescope.models import LoadedModel
from noisescope.study import (
    ENDING,
    Diagnosis,
    Executor,
    InProcess,
    Layout,
    Margins,
    Place,
    Study,
    StudyPlan,
    Told,
    conditions_json,
    discard,
    fingerprints_of,
    make_diagnosis,
    make_units,
    next_step,
    open_study,
    read_told,
    sample_keys,
    scoring_of,
    worker_spec,
)
from noisescope.tasks import PLAIN_PROMPT_NOTE, Task, uses_plain_prompt
from noisescope.versions import versions

# Of a unit: nothing of it is kept before all of it is measured, and a step may choose many.
_CONDITIONS_PER_UNIT = 32


@dataclass(frozen=True)
class Options:
    """How a diagnosis is carried out, whatever it is of.

    Attributes:
        draws: Realisations of the noise per condition.
        seed: First key word of the random numbers.
        batch_size: Rows that run together; None: by memory. A study that goes on takes the smaller
            of this and its own.
        memory_gib: Memory that measuring may take beside the model; None: half of what is free. A
            study that goes on takes the smaller of this and its own.
        compile_steps: Whether answers are decoded by a compiled model and with a cache of fixed
            size, where model and noise allow that. A study that goes on keeps to its own.
        margins: The losses that are still no harm.
        out: Directory of the study; None: it is kept in memory only.
        extend: Whether samples, draws and conditions may be added to a study that is there.
        search: Whether the worst is searched by sequential halving on KL instead of measuring
            every condition on every sample.
        executor: Who carries out the units; None: this process.
        source: Where model and data came from, so that another process can load them, too.
        progress: Told what runs.
        predict: Whether prediction is put beside measurement, and chooses where to measure more.
        profile: How far the prediction goes.
    """

    draws: int = 1
    seed: int = 0
    batch_size: int | None = None
    memory_gib: float | None = None
    compile_steps: bool = False
    margins: Margins = field(default_factory=Margins)
    out: Path | str | None = None
    extend: bool = False
    search: bool = False
    executor: Executor | None = None
    source: Mapping[str, Any] | None = None
    progress: Progress | None = None
    predict: bool = True
    profile: ProfileOptions = field(default_factory=ProfileOptions)

    def plan(self, conditions: Sequence[Condition] = ()) -> Plan:
        """Returns the plan of these conditions; raises InputError for a number out of range."""
        return Plan(
            tuple(conditions),
            self.draws,
            self.seed,
            self.batch_size,
            self.memory_gib,
            generates=not self.search,
            compile_steps=self.compile_steps,
        )


def carry_out(question: Question, loaded: LoadedModel, task: Task, options: Options) -> Diagnosis:
    """Carries a diagnosis out as a study, or goes on with the one that is there.

    Raises:
        InputError: The directory holds something else, or a number is out of range.
        SelectionError: A condition's selection never fired.
        DoseError: Rounding erased all of a condition's noise.
        StudyInterrupted: Ctrl-C was pressed; what is measured is kept.
    """
    plan = options.plan(question.conditions)
    if options.draws > 1 and not question.error_model.is_random:
        raise InputError(
            f"draws {options.draws}: this error is the same in every draw; leave draws at 1"
        )
    if options.extend and options.out is None:
        raise InputError("extend=True needs out: the directory of the study that is to grow")
    place = None if options.executor is None else options.executor.place(options.source, loaded)
    place = place or Place(str(loaded.device), round(default_gib(loaded.model), 3))
    asked = _study_plan(question, loaded, task, options, plan, place)
    out = None if options.out is None else Path(options.out)
    was_there = out is not None and out.exists()
    with open_study(out, asked, options.extend) as study:
        if study.opening and options.progress is not None:
            options.progress(study.opening, *study.progress)
        told = Told()
        if not study.is_complete:
            try:
                told = _measure(study, question, loaded, task, options)
            except NoisescopeError:
                is_void = not study.records or (bool(study.witnesses) and not _arrived(study))
                if study.directory is not None and not study.opening and is_void:
                    discard(study.directory, with_directory=not was_there)
                raise
            if not study.failures:
                study.finish()
        elif study.plan.has_steps and _lacks(study, question):
            told = _follow(study, question, loaded, task, options).told()
        weak = weak_dose_note(study.witnesses)
        if weak is not None:
            warnings.warn(weak, DoseWarning, stacklevel=4)
        if study.directory is not None and not study.failures:
            told = read_told(study.directory)
        return make_diagnosis(
            study.plan,
            study.records,
            study.witnesses,
            study.notes,
            options.margins,
            told,
            study.failures,
        )


def _lacks(study: Study, question: Question) -> bool:
    """Tells whether what is kept beside the records of a finished study is gone."""
    if study.directory is None or not question.is_predicted or question.error_model.is_null:
        return False
    told = read_told(study.directory)
    wants_modules = any(step.needs_outliers for step in question.steps)
    return told.profile is None or (wants_modules and not told.modules)


def _measure(
    study: Study, question: Question, loaded: LoadedModel, task: Task, options: Options
) -> Told:
    """Measures everything, and returns what is kept beside the records."""
    follow = _follow(study, question, loaded, task, options)
    worker = follow.worker
    if not study.plan.is_adaptive:
        study.run(worker, options.executor, options.progress)
        if study.failures and not study.witnesses:
            raise NoisescopeError(
                f"every unit failed, the first {study.failures[0].attempts} times: "
                f"{study.failures[0].error}; the same command tries them again"
            )
        return follow.run() if study.plan.has_steps else Told()

    def next_units(records: Sequence[Record]) -> list[Unit]:
        return _round_units(study.plan, records)

    study.run_rounds(worker, next_units, options.executor, options.progress)
    return Told()


def _follow(
    study: Study, question: Question, loaded: LoadedModel, task: Task, options: Options
) -> Follow:
    """Makes the worker of a study, and returns what goes on with it."""
    asked = _within_limits(study.plan, options)
    plan = Plan(
        question.conditions,
        options.draws,
        options.seed,
        asked.layout.rows_per_batch,
        asked.layout.memory_gib,
        generates=asked.generates,
        compile_steps=asked.layout.compile_steps,
    )
    progress = options.progress

    def tell(what: str, share: float) -> None:
        if progress is not None:
            done, total = study.progress
            step = "".join(list(study.plan.chosen.values())[-1:])
            said = f"{step}: {what}" if step else what
            progress(ENDING if study.is_ending else said, done + share, total)

    spec = worker_spec(asked, options.source)
    worker = Worker(
        loaded, task, plan, spec, tell, arrived=_arrived(study), clean_answers=study.clean_answers
    )
    chosen = list(study.plan.chosen)
    worker.add(conditions_of(study.plan.conditions, chosen, question.error_model))
    executor = options.executor or InProcess()
    return Follow(study, worker, question, loaded, executor, progress)


def _within_limits(plan: StudyPlan, options: Options) -> StudyPlan:
    """Returns a study's plan with no more rows and memory than are given now.

    Warns where that is less than the study was begun with.
    """
    layout, limits = plan.layout, []
    rows, gib = layout.rows_per_batch, layout.memory_gib
    if options.batch_size is not None and (rows is None or options.batch_size < rows):
        rows = options.batch_size
        limits.append(f"{rows} rows at a time")
    if options.memory_gib is not None and (gib is None or options.memory_gib < gib):
        gib = options.memory_gib
        limits.append(f"{gib:g} GiB")
    if limits:
        warnings.warn(
            f"the study goes on with at most {' and '.join(limits)}, less than it was begun with: "
            "figures may change by rounding",
            NoisescopeWarning,
            stacklevel=6,
        )
    return replace(plan, layout=replace(layout, rows_per_batch=rows, memory_gib=gib))


def _arrived(study: Study) -> list[str]:
    """Returns the conditions whose noise was seen to arrive in the units that are kept."""
    return [
        name
        for name, witness in study.witnesses.items()
        if witness.counts and not witness.dose().is_all_lost
    ]


def _round_units(plan: StudyPlan, records: Sequence[Record]) -> list[Unit]:
    """Returns the units of the next round of a search; none where it has its winner.

    The first asks for the clean model alone, by whose records the search orders the samples.
    """
    if not records:
        samples = [sample.name for sample in plan.samples]
        return make_units(plan, "clean", samples, (), (), with_clean=True)
    found = next_step(plan, records)
    if not isinstance(found, Round):
        return []
    draws = range(plan.draws)
    name = f"round-{found.number}"
    return make_units(plan, name, found.samples, found.names, draws, with_clean=False)


def _regions(question: Question) -> tuple[str, ...]:
    """Returns the regions that hold a site that is meant, in running order."""
    meant = (site for site in question.sites if site.operator in question.operators)
    return tuple(dict.fromkeys(site.region for site in meant))


def _study_plan(
    question: Question,
    loaded: LoadedModel,
    task: Task,
    options: Options,
    plan: Plan,
    place: Place,
) -> StudyPlan:
    error: dict[str, Any] = asdict(question.error_model)  # type: ignore[call-overload]
    dtype, device = str(loaded.dtype).removeprefix("torch."), place.device
    max_new_tokens = task.max_new_tokens if task.is_generative else None
    operators = list(question.operators)
    own = {k: v for k, v in error.items() if k not in ("scale", "rounding")}
    notes = [*loaded.notes, *task.notes, *question.notes]
    if uses_plain_prompt(task, loaded.tokenizer):
        notes.append(PLAIN_PROMPT_NOTE)
    if question.error_model.is_null:
        notes.append("noise of scale 0 changes nothing: every figure is the clean model's")
    return StudyPlan(
        kind=question.kind,
        conditions=conditions_json(question.conditions),
        draws=options.draws,
        seed=options.seed,
        samples=sample_keys(task, loaded.tokenizer),
        layout=Layout(
            samples_per_unit(plan),
            options.batch_size,
            options.memory_gib or place.memory_gib,
            max(1, ROWS_PER_UNIT // min(_CONDITIONS_PER_UNIT, max(1, len(question.conditions)))),
            _CONDITIONS_PER_UNIT,
            options.compile_steps,
        ),
        settings={
            "error model": type(question.error_model).__name__,
            "--noise-scale": error.get("scale"),
            "--operators": ",".join(operators),
            "--dtype": dtype,
            "--device": device,
            "--max-new-tokens": max_new_tokens,
            "scoring": scoring_of(task),
            **({"error": own} if own else {}),
            **question.settings,
        },
        scope=question.scope,
        fingerprints=fingerprints_of(loaded, task),
        versions=versions(),
        generates=plan.generates and task.is_generative,
        is_adaptive=options.search,
        has_steps=question.is_predicted and not options.search,
        about={
            "config": {
                "model": str(loaded.path),
                "data": task.name,
                "noise_scale": error.get("scale"),
                "error_model": type(question.error_model).__name__,
                "error_parameters": error,
                **question.config,
                "operators": operators,
                "dtype": dtype,
                "device": device,
                "max_new_tokens": max_new_tokens,
            },
            "layers": {name: list(layers) for name, layers in question.layers.items()},
            "operators": operators,
            "regions": list(_regions(question)),
            "among": None if question.among is None else list(question.among),
            "source": dict(options.source or {}),
            "is_random": question.error_model.is_random,
            "ends_answers": loaded.model.can_generate() and bool(end_tokens(loaded.model)),
            "notes": notes,
        },
    )
