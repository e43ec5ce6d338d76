"""The kinds of diagnosis: windows of layers, single operators, single sites.

Each is a list of conditions; how they are measured is in carry_out.py.
"""

from collections.abc import Sequence
from typing import Any

from noisescope.diagnose.avalanche import (
    avalanche_settings,
    avalanche_steps,
    check_scalable,
    given_scales,
)
from noisescope.diagnose.carry_out import Options, carry_out
from noisescope.diagnose.choices import choose_parts, choose_sites
from noisescope.diagnose.question import Question, Step
from noisescope.errors import InputError, SelectionError
from noisescope.inject import CORE_OPERATORS, SiteRecord, make_selection
from noisescope.inject.operands import OUTPUT, reaches_operator
from noisescope.inject.probe import PRESETS, list_sites, resolve_operators
from noisescope.measure import Condition, layer_windows, window_name
from noisescope.models import LoadedModel, find_regions
from noisescope.noise import ErrorModel
from noisescope.study import Diagnosis
from noisescope.study.steps import PARTS, SITES
from noisescope.tasks import Task, encode_task

_PROBE_TOKENS = 16


def diagnose_layers(
    loaded: LoadedModel,
    task: Task,
    error_model: ErrorModel,
    *,
    window: int = 3,
    stride: int | None = None,
    operators: str | Sequence[str] = "core",
    scales: Sequence[float] | str | None = None,
    until: str | None = None,
    **options: Any,
) -> Diagnosis:
    """Slides a window of noisy layers over the model; then the predicted worst single sites.

    Args:
        loaded: The model.
        task: The samples.
        error_model: What is added.
        window: Layers per window.
        stride: Layers between starts; None: the window.
        operators: `core`, `all`, or names.
        scales: Scales of a dose and response of every window and of all layers; ``"auto"``: chosen
            by the prediction; None: the avalanche is not looked at.
        until: A loss whose scale is looked for, such as ``"accuracy=-5%"`` or ``"kl=0.1"``.
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
    windows = windows_of(n_layers, window, stride)
    check_scalable(error_model, scales, until)
    steps, settings = _layer_steps(scales, until, chosen, task.is_generative)
    inside = [r for r in probe(loaded, task) if r.site.region.isdigit()]
    wanted = resolve(operators, inside, error_model)
    conditions = tuple(
        Condition(
            window_name(layers),
            error_model,
            make_selection(layers=layers, operators=_operators_in(wanted, layers, inside)),
        )
        for layers in windows
    )
    question = Question(
        kind="layers",
        conditions=conditions,
        error_model=error_model,
        operators=wanted,
        config={"window_size": window, "stride": step},
        scope={"--window": window, "--stride": step},
        layers={window_name(w): w for w in windows},
        notes=_uncovered_note(windows, n_layers),
        sites=tuple(record.site for record in inside),
        steps=steps,
        is_predicted=chosen.predict,
        profile_options=chosen.profile,
        settings=settings,
    )
    return carry_out(question, loaded, task, chosen)


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
    wanted = resolve(operators, probe(loaded, task), error_model)
    core = tuple(name for name in CORE_OPERATORS if name in wanted)
    sets: dict[str, tuple[str, ...]] = {name: (name,) for name in wanted}
    if len(wanted) > 1 and not chosen.search:
        sets |= {"core": core} if core else {}
        sets |= {"all": wanted}
    question = Question(
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
        is_predicted=chosen.predict,
        profile_options=chosen.profile,
    )
    return carry_out(question, loaded, task, chosen)


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
    wanted = resolve(operators, records, error_model)
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
    question = Question(
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
        is_predicted=chosen.predict,
        profile_options=chosen.profile,
    )
    return carry_out(question, loaded, task, chosen)


def windows_of(n_layers: int, window: int, stride: int | None) -> list[tuple[int, ...]]:
    """Returns the windows of layers; a stride that is not given is the window."""
    return layer_windows(n_layers, window, window if stride is None else stride)


def _layer_steps(
    scales: Sequence[float] | str | None, until: str | None, options: Options, has_answers: bool
) -> tuple[tuple[Step, ...], dict[str, Any]]:
    """Returns the steps that follow windows, and the options they go by.

    Raises:
        InputError: A scale or a loss that cannot be used, or one that a search is to look for.
    """
    is_chosen, given = scales == "auto", given_scales(scales)
    avalanche = avalanche_steps(given, until, is_chosen, has_answers)
    if avalanche and (options.search or not options.predict):
        raise InputError(
            "the avalanche needs a prediction and every window: leave out --search and --no-predict"
        )
    parts = (Step(PARTS, choose_parts),) if avalanche else ()
    steps = (*parts, Step(SITES, choose_sites), *avalanche)
    settings = avalanche_settings(given, until)
    return steps, settings | ({"--scales": "auto"} if is_chosen else {})


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


def resolve(
    operators: str | Sequence[str], records: Sequence[SiteRecord], error_model: ErrorModel
) -> tuple[str, ...]:
    """Returns the operators that are meant, all of which run somewhere.

    Of a preset, those that the error can fall on; one that is named must be one of them.
    """
    if not operators:
        raise SelectionError("operators=[] selects nothing: name some, or give 'core' or 'all'.")
    reached = [r for r in records if reaches_operator(error_model, r.site.operator)]
    if isinstance(operators, str) and operators.strip() in PRESETS and reached:
        return resolve_operators(operators, reached)
    wanted = resolve_operators(operators, records)
    for name in wanted:
        if not reaches_operator(error_model, name):
            able = ", ".join(dict.fromkeys(r.site.operator for r in reached)) or "none"
            what = " and ".join(sorted(error_model.operands))
            why = f"has no {what} that are rounded"
            if error_model.operands == OUTPUT:
                why = "gives outputs over keys, where a scale would hold padding and later tokens"
            raise SelectionError(
                f"operator {name!r} {why}: this error falls on {able}; name some of these, or give "
                "another format or --operand"
            )
    return wanted


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
