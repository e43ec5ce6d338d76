"""The diagnosis: which windows of layers, and which operators, a model can least afford error in.

One `Diagnosis` holds everything a report needs. Each kind is a list of conditions; measuring,
statistics and pictures are the same for all.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from noisescope.analyse import Table, worst_by_accuracy, worst_by_kl
from noisescope.errors import SelectionError
from noisescope.inject import CORE_OPERATORS, SiteRecord, make_selection
from noisescope.inject.probe import list_sites, resolve_operators
from noisescope.measure import (
    Condition,
    Plan,
    Progress,
    layer_windows,
    measure,
    window_name,
)
from noisescope.models import LoadedModel, find_regions
from noisescope.noise import ErrorModel
from noisescope.study import Diagnosis
from noisescope.tasks import PLAIN_PROMPT_NOTE, Task, encode_task, uses_plain_prompt

_PROBE_TOKENS = 16


def diagnose_layers(
    loaded: LoadedModel,
    task: Task,
    error_model: ErrorModel,
    *,
    window: int = 3,
    stride: int | None = None,
    operators: str | Sequence[str] = "core",
    draws: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Slides a window of noisy layers over the model.

    Args:
        loaded: The model.
        task: The samples.
        error_model: What is added.
        window: Layers per window.
        stride: Layers between starts; None: the window.
        operators: `core`, `all`, or names.
        draws: Realisations of the noise per window.
        seed: First key word of the random numbers.
        batch_size: Samples per batch; None: by memory.
        progress: Told what runs.

    Raises:
        InputError: Window, stride, draws or batch size out of range, or a prompt that does not fit.
        SelectionError: An operator that is unknown or that the layers never run.
    """
    plan = Plan((), draws, seed, batch_size)
    step = window if stride is None else stride
    n_layers = find_regions(loaded.model).n_layers
    windows = layer_windows(n_layers, window, step)
    records = probe(loaded, task)
    inside = [r for r in records if r.site.region.isdigit()]
    wanted = _resolve(operators, inside)
    conditions = tuple(
        Condition(
            window_name(layers),
            error_model,
            make_selection(layers=layers, operators=_operators_in(wanted, layers, inside)),
        )
        for layers in windows
    )
    settings = {"window_size": window, "stride": step, "operators": list(wanted)}
    layers = {window_name(w): w for w in windows}
    plan = replace(plan, conditions=conditions)
    told = replace(task, notes=(*task.notes, *_uncovered_note(windows, n_layers)))
    return _diagnose("layers", loaded, told, error_model, plan, settings, layers, progress)


def diagnose_operators(
    loaded: LoadedModel,
    task: Task,
    error_model: ErrorModel,
    *,
    operators: str | Sequence[str] = "all",
    draws: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Perturbs one operator at a time, everywhere in the model; then the core operators, and all.

    Arguments and errors are those of `diagnose_layers`. The most fragile is looked for among the
    single operators: the two sets hold them, and would win.
    """
    plan = Plan((), draws, seed, batch_size)
    records = probe(loaded, task)
    wanted = _resolve(operators, records)
    core = tuple(name for name in CORE_OPERATORS if name in wanted)
    sets: dict[str, tuple[str, ...]] = {name: (name,) for name in wanted}
    if len(wanted) > 1:
        sets |= {"core": core} if core else {}
        sets |= {"all": wanted}
    conditions = tuple(
        Condition(name, error_model, make_selection(operators=ops)) for name, ops in sets.items()
    )
    settings = {"operators": list(wanted), "sets": {n: list(ops) for n, ops in sets.items()}}
    plan = replace(plan, conditions=conditions)
    return _diagnose("operators", loaded, task, error_model, plan, settings, {}, progress)


def probe(loaded: LoadedModel, task: Task) -> list[SiteRecord]:
    """Lists the sites that the model runs on the beginning of the task's first prompt."""
    known = loaded.model.get_input_embeddings().num_embeddings
    first = replace(task, samples=task.samples[:1])
    (ids,) = encode_task(first, loaded.tokenizer, loaded.context_length, known)
    return list_sites(loaded.model, ids[:_PROBE_TOKENS])


def _uncovered_note(windows: Sequence[Sequence[int]], n_layers: int) -> list[str]:
    """Says which layers lie in no window, as where the stride is larger than the window."""
    left = sorted(set(range(n_layers)) - {layer for window in windows for layer in window})
    return [f"layers in no window: {', '.join(map(str, left))}"] if left else []


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


def _diagnose(
    kind: str,
    loaded: LoadedModel,
    task: Task,
    error_model: ErrorModel,
    plan: Plan,
    settings: dict[str, Any],
    layers: dict[str, tuple[int, ...]],
    progress: Progress | None,
) -> Diagnosis:
    measurement = measure(loaded, task, plan, progress)
    table = Table(measurement.records)
    single = settings["operators"] if kind == "operators" else None
    notes = [*loaded.notes, *task.notes, *measurement.notes]
    if uses_plain_prompt(task, loaded.tokenizer):
        notes.append(PLAIN_PROMPT_NOTE)
    if error_model.is_null:
        notes.append("noise of scale 0 changes nothing: every figure is the clean model's")
    return Diagnosis(
        kind=kind,
        loaded=loaded,
        task=task,
        error_model=error_model,
        plan=plan,
        settings=settings,
        layers=layers,
        measurement=measurement,
        baseline_accuracy=table.baseline_accuracy,
        summaries=tuple(table.summary(name) for name in table.conditions),
        worst_accuracy=worst_by_accuracy(table, single),
        worst_kl=worst_by_kl(table, single),
        notes=tuple(notes),
    )
