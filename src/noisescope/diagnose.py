"""The diagnosis: which windows of layers, operators or sites a model can least afford error in.

Each kind is a list of conditions; a study measures them, in a directory or in memory, and one
`Diagnosis` holds everything a report needs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from noisescope.analyse import Round
from noisescope.errors import InputError, NoisescopeError, SelectionError
from noisescope.inject import CORE_OPERATORS, SiteRecord, make_selection
from noisescope.inject.probe import list_sites, resolve_operators
from noisescope.measure import (
    Condition,
    Plan,
    Progress,
    Record,
    Unit,
    Worker,
    layer_windows,
    samples_per_unit,
    window_name,
)
from noisescope.measure.generate import end_tokens
from noisescope.measure.memory import default_gib
from noisescope.models import LoadedModel, find_regions
from noisescope.noise import ErrorModel
from noisescope.study import (
    Diagnosis,
    Executor,
    Layout,
    Margins,
    Study,
    StudyPlan,
    conditions_json,
    discard,
    make_diagnosis,
    make_units,
    open_study,
    sample_keys,
    worker_spec,
)
from noisescope.study.diagnosis import next_step
from noisescope.tasks import PLAIN_PROMPT_NOTE, Task, encode_task, uses_plain_prompt
from noisescope.versions import versions

_PROBE_TOKENS = 16


@dataclass(frozen=True)
class Options:
    """How a diagnosis is carried out, whatever it is of.

    Attributes:
        draws: Realisations of the noise per condition.
        seed: First key word of the random numbers.
        batch_size: Rows that run together; None: by memory.
        memory_gib: Memory that measuring may take beside the model; None: half of what is free.
        margins: The losses that are still no harm.
        out: Directory of the study; None: it is kept in memory only.
        extend: Whether samples, draws and conditions may be added to a study that is there.
        search: Whether the worst is searched by sequential halving on KL instead of measuring
            every condition on every sample.
        executor: Who carries out the units; None: this process.
        source: Where model and data came from, so that another process can load them, too.
        progress: Told what runs.
    """

    draws: int = 1
    seed: int = 0
    batch_size: int | None = None
    memory_gib: float | None = None
    margins: Margins = field(default_factory=Margins)
    out: Path | str | None = None
    extend: bool = False
    search: bool = False
    executor: Executor | None = None
    source: Mapping[str, Any] | None = None
    progress: Progress | None = None

    def plan(self, conditions: Sequence[Condition] = ()) -> Plan:
        """Returns the plan of these conditions; raises InputError for a number out of range."""
        return Plan(
            tuple(conditions),
            self.draws,
            self.seed,
            self.batch_size,
            self.memory_gib,
            generates=not self.search,
        )


@dataclass(frozen=True)
class _Question:
    """What a diagnosis asks: its conditions, and how the report names what was asked."""

    kind: str
    conditions: tuple[Condition, ...]
    error_model: ErrorModel
    operators: tuple[str, ...]
    config: Mapping[str, Any]
    scope: Mapping[str, Any]
    layers: Mapping[str, tuple[int, ...]]
    among: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def diagnose_layers(
    loaded: LoadedModel,
    task: Task,
    error_model: ErrorModel,
    *,
    window: int = 3,
    stride: int | None = None,
    operators: str | Sequence[str] = "core",
    **options: Any,
) -> Diagnosis:
    """Slides a window of noisy layers over the model.

    Args:
        loaded: The model.
        task: The samples.
        error_model: What is added.
        window: Layers per window.
        stride: Layers between starts; None: the window.
        operators: `core`, `all`, or names.
        options: See `Options`.

    Raises:
        InputError: Window, stride, draws or batch size out of range, a prompt that does not fit, or
            a directory that holds something else.
        SelectionError: An operator that is unknown or that the layers never run.
        StudyInterrupted: Ctrl-C was pressed; what is measured is kept.
    """
    chosen = Options(**options)
    chosen.plan()
    step = window if stride is None else stride
    n_layers = find_regions(loaded.model).n_layers
    windows = layer_windows(n_layers, window, step)
    inside = [r for r in probe(loaded, task) if r.site.region.isdigit()]
    wanted = _resolve(operators, inside)
    conditions = tuple(
        Condition(
            window_name(layers),
            error_model,
            make_selection(layers=layers, operators=_operators_in(wanted, layers, inside)),
        )
        for layers in windows
    )
    question = _Question(
        kind="layers",
        conditions=conditions,
        error_model=error_model,
        operators=wanted,
        config={"window_size": window, "stride": step},
        scope={"--window": window, "--stride": step},
        layers={window_name(w): w for w in windows},
        notes=_uncovered_note(windows, n_layers),
    )
    return _diagnose(question, loaded, task, chosen)


def diagnose_operators(
    loaded: LoadedModel,
    task: Task,
    error_model: ErrorModel,
    *,
    operators: str | Sequence[str] = "all",
    **options: Any,
) -> Diagnosis:
    """Perturbs one operator at a time, everywhere in the model; then the core operators, and all.

    Arguments and errors are those of `diagnose_layers`. The most fragile is looked for among the
    single operators: the two sets hold them, and would win.
    """
    chosen = Options(**options)
    chosen.plan()
    wanted = _resolve(operators, probe(loaded, task))
    core = tuple(name for name in CORE_OPERATORS if name in wanted)
    sets: dict[str, tuple[str, ...]] = {name: (name,) for name in wanted}
    if len(wanted) > 1 and not chosen.search:
        sets |= {"core": core} if core else {}
        sets |= {"all": wanted}
    question = _Question(
        kind="operators",
        conditions=tuple(
            Condition(name, error_model, make_selection(operators=ops))
            for name, ops in sets.items()
        ),
        error_model=error_model,
        operators=wanted,
        config={"sets": {name: list(ops) for name, ops in sets.items()}},
        scope={},
        layers={},
        among=wanted,
    )
    return _diagnose(question, loaded, task, chosen)


def diagnose_sites(
    loaded: LoadedModel,
    task: Task,
    error_model: ErrorModel,
    *,
    operators: str | Sequence[str] = "core",
    **options: Any,
) -> Diagnosis:
    """Perturbs one operator of one module at a time: `model.layers.3.mlp.down_proj:linear`.

    Arguments and errors are those of `diagnose_layers`. Calls of one operator in one module, such
    as the two products of an attention, are one condition.
    """
    chosen = Options(**options)
    chosen.plan()
    records = probe(loaded, task)
    wanted = _resolve(operators, records)
    places = dict.fromkeys(
        (r.site.region, r.site.module, r.site.operator)
        for r in records
        if r.site.operator in wanted
    )
    conditions = tuple(
        Condition(
            f"{module}:{operator}",
            error_model,
            make_selection(layers=region, operators=operator, modules=module),
        )
        for region, module, operator in places
    )
    question = _Question(
        kind="sites",
        conditions=conditions,
        error_model=error_model,
        operators=wanted,
        config={},
        scope={},
        layers={
            f"{module}:{operator}": (int(region),)
            for region, module, operator in places
            if region.isdigit()
        },
    )
    return _diagnose(question, loaded, task, chosen)


def probe(loaded: LoadedModel, task: Task) -> list[SiteRecord]:
    """Lists the sites that the model runs on the beginning of the task's first prompt."""
    known = loaded.model.get_input_embeddings().num_embeddings
    first = Task(task.name, task.samples[:1], task.score, task.max_new_tokens)
    (ids,) = encode_task(first, loaded.tokenizer, loaded.context_length, known)
    return list_sites(loaded.model, ids[:_PROBE_TOKENS])


def _uncovered_note(windows: Sequence[Sequence[int]], n_layers: int) -> tuple[str, ...]:
    """Says which layers lie in no window, as where the stride is larger than the window."""
    left = sorted(set(range(n_layers)) - {layer for window in windows for layer in window})
    return (f"layers in no window: {', '.join(map(str, left))}",) if left else ()


def _resolve(operators: str | Sequence[str], records: Sequence[SiteRecord]) -> tuple[str, ...]:
    """Returns the operators that are meant, all of which run somewhere."""
    if not operators:
        raise SelectionError("operators=[] selects nothing: name some, or give 'core' or 'all'.")
    return resolve_operators(operators, records)


def _operators_in(
    wanted: Sequence[str], layers: Sequence[int], records: Sequence[SiteRecord]
) -> tuple[str, ...]:
    """Returns the wanted operators that run in a window; layers of a hybrid model differ."""
    there = {r.site.operator for r in records if int(r.site.region) in layers}
    found = tuple(name for name in wanted if name in there)
    if not found:
        raise SelectionError(
            f"none of {', '.join(wanted)} runs in layers {layers[0]} to {layers[-1]}; "
            f"there run {', '.join(sorted(there))}. List them with 'noisescope sites MODEL'."
        )
    return found


# Carrying out.


def _diagnose(question: _Question, loaded: LoadedModel, task: Task, options: Options) -> Diagnosis:
    plan = options.plan(question.conditions)
    if options.extend and options.out is None:
        raise InputError("extend=True needs out: the directory of the study that is to grow")
    asked = _study_plan(question, loaded, task, options, plan)
    out = None if options.out is None else Path(options.out)
    was_there = out is not None and out.exists()
    with open_study(out, asked, options.extend) as study:
        if study.opening and options.progress is not None:
            options.progress(study.opening, *study.progress)
        if not study.is_complete:
            try:
                _measure(study, question, loaded, task, options)
            except NoisescopeError:
                if study.directory is not None and not study.opening and not study.records:
                    discard(study.directory, with_directory=not was_there)
                raise
            study.finish()
        return make_diagnosis(
            study.plan, study.records, study.witnesses, study.notes, options.margins
        )


def _measure(
    study: Study, question: _Question, loaded: LoadedModel, task: Task, options: Options
) -> None:
    layout = study.plan.layout
    plan = Plan(
        question.conditions,
        options.draws,
        options.seed,
        layout.rows_per_batch,
        layout.memory_gib,
        generates=study.plan.generates,
    )
    progress = options.progress

    def tell(what: str, share: float) -> None:
        if progress is not None:
            done, total = study.progress
            progress(what, done + share, total)

    worker = Worker(loaded, task, plan, worker_spec(study.plan, options.source), tell)
    if not study.plan.is_adaptive:
        study.run(worker, options.executor, options.progress)
        return

    def next_units(records: Sequence[Record]) -> list[Unit]:
        return _round_units(study.plan, records)

    study.run_rounds(worker, next_units, options.executor, options.progress)


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


def _study_plan(
    question: _Question, loaded: LoadedModel, task: Task, options: Options, plan: Plan
) -> StudyPlan:
    error: dict[str, Any] = asdict(question.error_model)  # type: ignore[call-overload]
    dtype, device = str(loaded.dtype).removeprefix("torch."), str(loaded.device)
    max_new_tokens = task.max_new_tokens if task.is_generative else None
    operators = list(question.operators)
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
        samples=sample_keys(task),
        layout=Layout(
            samples_per_unit(plan),
            options.batch_size,
            options.memory_gib or round(default_gib(loaded.model.device), 3),
        ),
        settings={
            "error model": type(question.error_model).__name__,
            "--noise-scale": error.get("scale"),
            "--operators": ",".join(operators),
            "--dtype": dtype,
            "--device": device,
            "--max-new-tokens": max_new_tokens,
        },
        scope=question.scope,
        fingerprints={"model": loaded.fingerprint, "data": task.fingerprint},
        versions=versions(),
        generates=plan.generates and task.is_generative,
        is_adaptive=options.search,
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
            "among": None if question.among is None else list(question.among),
            "ends_answers": loaded.model.can_generate() and bool(end_tokens(loaded.model)),
            "notes": notes,
        },
    )
