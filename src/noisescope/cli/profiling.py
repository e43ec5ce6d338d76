"""A profile on its own: clean answers and backward passes, nothing injected."""

from typing import Any

from noisescope.cli.given import RunOptions
from noisescope.diagnose import probe
from noisescope.inject.probe import resolve_operators
from noisescope.measure import Plan, ProfileOptions, Progress, Worker
from noisescope.models import LoadedModel
from noisescope.noise import ErrorModel
from noisescope.profile import Profile
from noisescope.study import fingerprints_of
from noisescope.tasks import Task
from noisescope.versions import versions


def profile_of(
    loaded: LoadedModel,
    task: Task,
    error_model: ErrorModel,
    given: RunOptions,
    operators: str,
    far: ProfileOptions,
    tell: Progress,
) -> tuple[Profile, dict[str, Any]]:
    """Returns the profile, and what it was made of.

    Raises:
        InputError: The model cannot be measured on the samples, or there is no memory for a row.
        SelectionError: An operator that the model never runs.
    """
    wanted = resolve_operators(operators, probe(loaded, task))
    options = ProfileOptions(far.label_error, far.label_draws, operators=wanted)
    plan = Plan((), 1, given.seed, given.batch_size, given.memory_gib)

    def told(what: str, share: float) -> None:
        tell(what, share, 1)

    found = Worker(loaded, task, plan, tell=told).profile([error_model], options)
    return found, _about(loaded, task, given, options)


def _about(
    loaded: LoadedModel, task: Task, given: RunOptions, options: ProfileOptions
) -> dict[str, Any]:
    return {
        "config": {
            "model": str(loaded.path),
            "data": task.name,
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "device": str(loaded.device),
            "operators": list(options.operators or ()),
            "label_error": options.label_error,
            "label_draws_asked_for": options.label_draws,
            "max_new_tokens": given.max_new_tokens if task.is_generative else None,
        },
        "fingerprints": dict(fingerprints_of(loaded, task)),
        "versions": dict(versions()),
        "notes": [*loaded.notes, *task.notes],
    }
