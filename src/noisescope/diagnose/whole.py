"""The whole diagnosis: operators, windows, layers, sites, channels and the avalanche in one study.

What is asked for comes first: every operator alone, and every window. Then steps choose, by
prediction and by what is measured, where injection is spent.
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
from noisescope.diagnose.channels import choose_channels
from noisescope.diagnose.choices import choose_blamed, choose_parts, choose_sites
from noisescope.diagnose.kinds import probe, resolve, windows_of
from noisescope.diagnose.question import Question, Step
from noisescope.diagnose.scene import Scene
from noisescope.errors import InputError
from noisescope.inject import make_selection
from noisescope.inject.operands import falls_on_inputs
from noisescope.measure import Condition, window_name
from noisescope.models import LoadedModel, find_regions
from noisescope.noise import ErrorModel
from noisescope.study import Diagnosis
from noisescope.study.steps import BLAME, CHANNELS, PARTS, SITES, whole_name
from noisescope.tasks import Task


def diagnose_model(
    loaded: LoadedModel,
    task: Task,
    error_model: ErrorModel,
    *,
    window: int | None = None,
    stride: int | None = None,
    operators: str | Sequence[str] = "all",
    scales: Sequence[float] | str | None = None,
    until: str | None = None,
    **options: Any,
) -> Diagnosis:
    """Walks operator, layer and channel, and says which are fragile and what that costs.

    Args:
        loaded: The model.
        task: The samples.
        error_model: What is added.
        window: Layers per window; None: 3, or fewer of a small model.
        stride: Layers between starts; None: the window.
        operators: `core`, `all`, or names.
        scales: Scales of the dose and response; None or ``"auto"``: chosen around the study's own.
        until: A loss whose scale is looked for, such as ``"accuracy=-5%"`` or ``"kl=0.1"``.
        options: See `Options`.

    Raises:
        InputError: As `diagnose_layers`, or a loss that cannot be read.
        SelectionError: An operator that is unknown or that the model never runs.
        StudyInterrupted: Ctrl-C was pressed; what is measured is kept.
    """
    chosen = Options(**{**options, "predict": True})
    chosen.plan()
    check_scalable(error_model, scales, until)
    given = given_scales(scales)
    records = probe(loaded, task)
    wanted = resolve(operators, records, error_model)
    sites = tuple(record.site for record in records)
    scene = Scene(error_model, wanted, sites, {}, (), None)
    n_layers = find_regions(loaded.model).n_layers
    width = window if window is not None else max(1, min(3, n_layers // 2))
    windows = windows_of(n_layers, width, stride) if n_layers else []
    whole = scene.on_regions(whole_name(scene.regions), scene.regions)
    single = wanted if len(wanted) > 1 else ()  # one alone is everything
    asked = [
        *(Condition(name, error_model, make_selection(operators=name)) for name in single),
        *filter(None, [whole]),
        *filter(None, (scene.on_regions(window_name(w), list(map(str, w))) for w in windows)),
    ]
    question = Question(
        kind="diagnose",
        conditions=tuple(asked),
        error_model=error_model,
        operators=wanted,
        config={"window_size": width if windows else None, "stride": stride or width},
        scope={"--window": width, "--stride": stride or width},
        layers={window_name(w): w for w in windows},
        among=tuple(window_name(w) for w in windows) or wanted,
        sites=sites,
        steps=(
            Step(PARTS, choose_parts),
            Step(SITES, choose_sites),
            *avalanche_steps(given, until, is_chosen=True, has_answers=task.is_generative),
            *_channel_steps(error_model),
            Step(BLAME, choose_blamed, generates=None),
        ),
        is_predicted=True,
        profile_options=chosen.profile,
        settings=avalanche_settings(given, until),
    )
    return carry_out(question, loaded, task, chosen)


def diagnose_channels(
    loaded: LoadedModel,
    task: Task,
    error_model: ErrorModel,
    **options: Any,
) -> Diagnosis:
    """Looks for outlier channels, and perturbs them alone and all others alone.

    Arguments and errors are those of `diagnose_layers`; the sites are the linear ones.
    """
    chosen = Options(**{**options, "predict": True})
    chosen.plan()
    steps = _channel_steps(error_model)
    if not steps:
        raise InputError(
            "channels restrict the outputs of operators, and this error falls on what goes in: "
            "give noise, or a format with --operand output"
        )
    records = probe(loaded, task)
    question = Question(
        kind="channels",
        conditions=(),
        error_model=error_model,
        operators=resolve("linear", records, error_model),
        config={},
        scope={},
        layers={},
        sites=tuple(record.site for record in records if record.site.operator == "linear"),
        steps=steps,
        is_predicted=True,
        profile_options=chosen.profile,
    )
    return carry_out(question, loaded, task, chosen)


def _channel_steps(error_model: ErrorModel) -> tuple[Step, ...]:
    """Returns the step that looks at channels; none for error on weights and activations."""
    if falls_on_inputs(error_model):
        return ()
    return (Step(CHANNELS, choose_channels, needs_outliers=True),)
