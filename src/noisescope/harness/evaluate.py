"""Evaluates tasks clean and under noise: what is asked, the runs, and what the noise changed.

How a run is carried out is in runner.py, what the pairs say in paired.py.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from noisescope.errors import InputError
from noisescope.extras import require
from noisescope.harness.answers import Run, unplain
from noisescope.harness.kept import Kept
from noisescope.harness.loading import LoadedTask, TaskOptions, load_tasks
from noisescope.harness.noisy_lm import rows_by_memory, tokenizer_fingerprint
from noisescope.harness.paired import Change, EvaluationMargins, changes_of
from noisescope.harness.runner import Runner
from noisescope.harness.surroundings import offline, seeded
from noisescope.inject import Selection, Witness, merge_witnesses
from noisescope.measure import LARGEST_SEED, Condition, Progress
from noisescope.measure.attest import weak_dose_note
from noisescope.measure.steps import end_tokens
from noisescope.models import LoadedModel
from noisescope.models.fingerprint import configuration_fingerprint
from noisescope.noise import ErrorModel
from noisescope.records import CLEAN
from noisescope.versions import versions

_HARNESS = "lm_eval"
_EVERYWHERE = "all"
_MOST_NAMED = 3


@dataclass(frozen=True)
class Evaluation:
    """Tasks of the harness under noise.

    Attributes:
        runs: Clean ones first, then condition by condition, draw by draw, task by task; of a
            directory, all that it holds.
        changes: What the noise changed, per task, condition and metric.
        conditions: The conditions.
        config: What was asked.
        fingerprints: Of model, configuration, tokenizer and every task.
        versions: Of the packages that numbers depend on.
        margins: The losses that are still no harm.
        notes: What the user should hear, one line each.
    """

    runs: tuple[Run, ...]
    changes: tuple[Change, ...]
    conditions: tuple[Condition, ...]
    config: Mapping[str, Any]
    fingerprints: Mapping[str, str]
    versions: Mapping[str, str]
    margins: EvaluationMargins
    notes: tuple[str, ...] = ()
    witnesses: Mapping[str, Witness] = field(default_factory=dict)


def evaluate_tasks(
    loaded: LoadedModel,
    tasks: Sequence[str | LoadedTask],
    conditions: ErrorModel | Sequence[Condition],
    *,
    draws: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    include_path: str | Path | None = None,
    options: TaskOptions | None = None,
    margins: EvaluationMargins | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluates a model on tasks of lm-evaluation-harness, clean and under noise, sample by sample.

    Args:
        loaded: The model.
        tasks: Tasks, groups, tags, patterns, or YAML files; or what `load_tasks` made of them.
        conditions: Error models and selections, each under its own name; or one error model, which
            then falls everywhere.
        draws: Realisations of the noise per condition.
        seed: First key word of the random numbers.
        batch_size: Rows that run together; None: as many as before in `out`, or by memory.
        include_path: A directory with the user's own tasks.
        options: How the tasks are asked; None: as they were loaded, or as they say.
        margins: The losses that are still no harm.
        out: A directory that keeps every run as it ends; what it holds already is not run again,
            and what it holds beyond what is asked is in the evaluation, too.
        progress: Told what runs, and how many runs of how many are done.

    Returns:
        The evaluation, with differences paired by document.

    Raises:
        InputError: A task or number that cannot be used, a missing package, or a directory that
            holds something else.
        SelectionError: A condition's selection never fired.
        DoseError: Rounding erased all of a condition's noise.
    """
    if isinstance(conditions, ErrorModel):
        conditions = [Condition(_EVERYWHERE, conditions, Selection())]
    _check(conditions, draws, seed)
    require("lm_eval.evaluator", "eval", "an evaluation")
    with offline(), seeded():
        found, options = _loaded(tasks, include_path, options)
        told = _identity(loaded, found, conditions, seed, options)
        told["batch_size"] = rows_by_memory(loaded) if batch_size is None else batch_size
        kept = Kept(None if out is None else Path(out), told)
        before = kept.all_runs()
        rows = kept.asked["batch_size"] if batch_size is None else batch_size
        runner = Runner(loaded, found, options, rows, kept, seed, progress)
        runs = _in_order(kept.asked, [*before, *runner.all_runs(conditions, draws)])
    conditions = _all_conditions(kept.asked, conditions, runs)
    margins = margins or EvaluationMargins()
    witnesses = {
        c.name: merge_witnesses(r.witness for r in runs if r.condition == c.name)
        for c in conditions
    }
    lasting = told["lasting"]
    return Evaluation(
        runs=runs,
        changes=changes_of(runs, [c.name for c in conditions], margins),
        conditions=tuple(conditions),
        config=_config(loaded, kept.asked, options, runs, seed, rows),
        fingerprints={k: lasting[k] for k in ("model", "configuration", "tokenizer")}
        | {run.task: kept.asked["tasks"][run.task] for run in runs},
        versions=lasting["versions"],
        margins=margins,
        notes=(*_notes(runs, witnesses, found), *_unknown(runs, conditions)),
        witnesses=witnesses,
    )


def _in_order(asked: Mapping[str, Any], runs: Sequence[Run]) -> tuple[Run, ...]:
    """Returns every run once, of tasks that the clean model was asked and conditions known here."""
    tasks = {run.task for run in runs if run.condition == CLEAN}
    conditions, names = [CLEAN, *asked["conditions"]], list(asked["tasks"])
    found = {
        (conditions.index(run.condition), run.draw, names.index(run.task)): run
        for run in runs
        if run.condition in conditions and run.task in names and run.task in tasks
    }
    return tuple(found[key] for key in sorted(found))


def _all_conditions(
    asked: Mapping[str, Any], conditions: Sequence[Condition], runs: Sequence[Run]
) -> list[Condition]:
    """Returns the conditions that ran, now or before; an error model of the user's own only now."""
    known = {condition.name: condition for condition in conditions}
    ran = {run.condition for run in runs}
    for name, entry in asked["conditions"].items():
        if name not in known and name in ran:
            with suppress(KeyError):
                known[name] = Condition.from_json(name, unplain(entry))
    return [known[name] for name in asked["conditions"] if name in known]


def _unknown(runs: Sequence[Run], conditions: Sequence[Condition]) -> list[str]:
    """Says which conditions of a directory cannot be told of."""
    known = {CLEAN, *(condition.name for condition in conditions)}
    return [
        f"{name} is kept with an error model of your own, and is told of only where it is given"
        for name in dict.fromkeys(run.condition for run in runs if run.condition not in known)
    ]


def _loaded(
    tasks: Sequence[str | LoadedTask], include_path: str | Path | None, options: TaskOptions | None
) -> tuple[list[LoadedTask], TaskOptions]:
    """Returns the tasks, and how they are asked."""
    place = None if include_path is None else Path(include_path)
    ready = [task for task in tasks if isinstance(task, LoadedTask)]
    options = options or (ready[0].options if ready else TaskOptions())
    for task in ready:
        if task.options != options:
            raise InputError(
                f"task {task.name!r} was loaded with other options ({_other(task, options)}): give "
                "the same to evaluate_tasks, or load it again"
            )
    found: list[LoadedTask] = []
    for given in tasks:
        found += [given] if isinstance(given, LoadedTask) else load_tasks([given], place, options)
    return list({task.name: task for task in found}.values()), options


def _other(task: LoadedTask, options: TaskOptions) -> str:
    was, now = asdict(task.options), asdict(options)
    return ", ".join(f"{n} was {was[n]!r}, is {now[n]!r}" for n in was if was[n] != now[n])


def _check(conditions: Sequence[Condition], draws: int, seed: int) -> None:
    names = [condition.name for condition in conditions]
    if not conditions or CLEAN in names or len(set(names)) < len(names):
        raise InputError(
            f"conditions {', '.join(names) or 'none'}: give one or more, each with a name of its "
            f"own that is not {CLEAN!r}"
        )
    if draws < 1:
        raise InputError(f"draws {draws}: at least 1 is needed; try 4")
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"seed {seed}: accepted are 0 to {LARGEST_SEED}; try 0")
    for condition in conditions:
        if condition.error_model.is_null:
            raise InputError("noise of scale 0 changes nothing: give a scale above 0, such as 0.05")
        if draws > 1 and not condition.error_model.is_random:
            raise InputError(
                f"draws {draws}: this error is the same in every draw; leave draws at 1"
            )


def _identity(
    loaded: LoadedModel,
    tasks: Sequence[LoadedTask],
    conditions: Sequence[Condition],
    seed: int,
    options: TaskOptions,
) -> dict[str, Any]:
    """Returns what every number depends on."""
    ends = end_tokens(loaded.model) if loaded.model.can_generate() else ()
    lasting = {
        "model": loaded.fingerprint,
        "configuration": configuration_fingerprint(loaded.model, ends),
        "tokenizer": tokenizer_fingerprint(loaded.tokenizer),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "seed": seed,
        "limit": options.limit,
        "num_fewshot": options.num_fewshot,
        "fewshot_seed": options.fewshot_seed,
        "gen_kwargs": dict(options.gen_kwargs),
        "chat template": options.apply_chat_template,
        "system instruction": options.system_instruction,
        "versions": {**versions(), _HARNESS: importlib.metadata.version(_HARNESS)},
    }
    return {
        "lasting": lasting,
        "conditions": {c.name: c.as_json() for c in conditions},
        "tasks": {task.name: task.fingerprint for task in tasks},
        "num_fewshot": {task.name: task.task.get_config("num_fewshot") for task in tasks},
    }


def _config(
    loaded: LoadedModel,
    asked: Mapping[str, Any],
    options: TaskOptions,
    runs: Sequence[Run],
    seed: int,
    rows: int,
) -> dict[str, Any]:
    tasks = list(dict.fromkeys(run.task for run in runs))
    return {
        "model": str(loaded.path),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "tasks": tasks,
        "limit": options.limit,
        "num_fewshot": {task: asked["num_fewshot"].get(task) for task in tasks},
        "gen_kwargs": dict(options.gen_kwargs),
        "apply_chat_template": options.apply_chat_template,
        "draws": 1 + max(run.draw for run in runs),
        "seed": seed,
        "batch_size": rows,
    }


def _notes(
    runs: Sequence[Run], witnesses: Mapping[str, Witness], tasks: Sequence[LoadedTask]
) -> tuple[str, ...]:
    weak = weak_dose_note(witnesses)
    warned = [f"lm_eval: {note}" for run in runs for note in run.notes]
    why = {
        "num_fewshot": "these tasks say that they take no examples",
        "gen_kwargs": "these tasks generate nothing",
    }
    for option, reason in why.items():
        names = [task.name for task in tasks if option in task.unused]
        if names:
            more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            told = f"{', '.join(names[:_MOST_NAMED])}{more}"
            warned.insert(0, f"{option} does nothing in {told}: {reason}")
    return tuple(dict.fromkeys([*([weak] if weak else []), *warned]))
