"""Evaluates tasks clean and under noise: what is asked, the runs, and what the noise changed.

How a run is carried out is in runner.py, what the pairs say in paired.py.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noisescope.errors import InputError
from noisescope.extras import require
from noisescope.harness.answers import Run
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


@dataclass(frozen=True)
class Evaluation:
    """Tasks of the harness under noise.

    Attributes:
        runs: Clean ones first, then condition by condition, draw by draw, task by task.
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
        batch_size: Rows that run together; None: by memory.
        include_path: A directory with the user's own tasks.
        options: How the tasks are asked.
        margins: The losses that are still no harm.
        out: A directory that keeps every run as it ends; what it holds already is not run again.
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
    options = options or TaskOptions()
    _check(conditions, draws, seed)
    require("lm_eval.evaluator", "eval", "an evaluation")
    with offline(), seeded():
        found = _loaded(tasks, include_path, options)
        told = _identity(loaded, found, conditions, seed, options)
        kept = Kept(None if out is None else Path(out), told)
        rows = rows_by_memory(loaded) if batch_size is None else batch_size
        runner = Runner(loaded, found, options, rows, kept, seed, progress)
        runs = runner.all_runs(conditions, draws)
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
        config=_config(loaded, found, options, draws, seed, rows),
        fingerprints={k: lasting[k] for k in ("model", "configuration", "tokenizer")}
        | told["tasks"],
        versions=lasting["versions"],
        margins=margins,
        notes=_notes(runs, witnesses),
        witnesses=witnesses,
    )


def _loaded(
    tasks: Sequence[str | LoadedTask], include_path: str | Path | None, options: TaskOptions
) -> list[LoadedTask]:
    place = None if include_path is None else Path(include_path)
    found: list[LoadedTask] = []
    for task in tasks:
        found += [task] if isinstance(task, LoadedTask) else load_tasks([task], place, options)
    return list({task.name: task for task in found}.values())


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
    }


def _config(
    loaded: LoadedModel,
    tasks: Sequence[LoadedTask],
    options: TaskOptions,
    draws: int,
    seed: int,
    rows: int,
) -> dict[str, Any]:
    return {
        "model": str(loaded.path),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "tasks": [task.name for task in tasks],
        "limit": options.limit,
        "num_fewshot": {task.name: task.task.get_config("num_fewshot") for task in tasks},
        "gen_kwargs": dict(options.gen_kwargs),
        "apply_chat_template": options.apply_chat_template,
        "draws": draws,
        "seed": seed,
        "batch_size": rows,
    }


def _notes(runs: Sequence[Run], witnesses: Mapping[str, Witness]) -> tuple[str, ...]:
    weak = weak_dose_note(witnesses)
    warned = [f"lm_eval: {note}" for run in runs for note in run.notes]
    return tuple(dict.fromkeys([*([weak] if weak else []), *warned]))
