"""Goes on after what was asked for: a profile is made, and steps choose where injection is spent.

What a step has chosen is kept before anything of it is measured, and a study that goes on takes it
from there. A profile is kept beside the records; one that is lost is made anew, to the same bits.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from noisescope.diagnose.question import Question, Step
from noisescope.diagnose.scene import Scene
from noisescope.errors import InputError, NoisescopeWarning
from noisescope.measure import Condition, PassResult, ProfilePass, Progress, Worker
from noisescope.models import LoadedModel
from noisescope.noise import ErrorModel
from noisescope.profile import Profile
from noisescope.study import Executor, Study, Told, conditions_json
from noisescope.study.channels import ModuleChannels
from noisescope.study.kept_channels import channels_kept_or_made
from noisescope.study.kept_profile import kept_or_made


@dataclass(frozen=True)
class Follow:
    """What following the steps of a study needs.

    Attributes:
        study: The open study; what was asked for is measured.
        worker: Measures its units.
        question: What is asked.
        loaded: The model.
        executor: Who carries out the work.
        progress: Told what was done.
    """

    study: Study
    worker: Worker
    question: Question
    loaded: LoadedModel
    executor: Executor
    progress: Progress | None

    def run(self) -> Told:
        """Makes the profile and carries out every step; returns what is kept beside the records.

        Raises:
            StudyInterrupted: Ctrl-C was pressed; what is measured is kept.
        """
        told = self.told()
        scene = self._scene(told.profile, told.modules)
        for step in self.question.steps:
            for number in range(step.most):
                name = step.name if step.most == 1 else f"{step.name}-{number + 1}"
                if not self._carry_out(step, name, scene):
                    break
        return told

    def told(self) -> Told:
        """Returns what is kept beside the records, made anew where it lacks.

        Raises:
            InputError: A file was changed.
            NoisescopeError: A file cannot be written.
        """
        profile = self._profile()
        modules: tuple[ModuleChannels, ...] = ()
        if any(step.needs_outliers for step in self.question.steps):
            modules = channels_kept_or_made(self.study, lambda: self.executor.channels(self.worker))
        return Told(profile, modules)

    def _profile(self) -> Profile | None:
        """Returns the profile; None, with a warning, of an error model that cannot be predicted."""
        question = self.question
        if not question.is_predicted or question.error_model.is_null:
            return None
        profiled = question.profiled or (question.error_model,)
        try:
            for error_model in profiled:
                error_model.mean_square(torch.ones(1))
        except InputError as error:
            warnings.warn(f"nothing is predicted: {error}", NoisescopeWarning, stacklevel=6)
            return None
        is_whole = not self.study.failures  # or some clean answers are not known

        def make() -> Profile:
            options = question.profile_options
            return self.worker.profile(profiled, options, self._backward, decodes=is_whole)

        return kept_or_made(self.study, make, is_kept=is_whole)

    def _backward(self, passes: Sequence[ProfilePass]) -> Iterator[PassResult]:
        """Has passes carried out, and tells how many are."""
        done, total = self.study.progress
        for number, result in enumerate(self.executor.backward(self.worker, passes), start=1):
            if self.progress is not None:
                self.progress("predicting", done + number / len(passes), total)
            yield result

    def _carry_out(self, step: Step, name: str, scene: Scene) -> bool:
        """Has a step choose, unless it has, and measures; returns whether it chose anything."""
        study = self.study
        if study.chosen(name) is None:
            chosen = step.choose(replace(scene, records=study.records))
            study.choose(name, conditions_json(chosen), generates=step.generates)
        names = study.chosen(name) or ()
        self.worker.add(conditions_of(study.plan.conditions, names, self.question.error_model))
        study.run(self.worker, self.executor, self.progress)
        return bool(names)

    def _scene(self, profile: Profile | None, modules: Sequence[ModuleChannels]) -> Scene:
        question = self.question
        return Scene(
            error_model=question.error_model,
            operators=question.operators,
            sites=question.sites,
            conditions={c.name: c for c in question.conditions},
            records=(),
            profile=profile,
            outliers={m.module: m.outliers for m in modules if m.outliers},
            seed=self.study.plan.seed,
            dtype=str(self.study.plan.settings.get("--dtype")),
        )


def conditions_of(
    entries: Mapping[str, Any], names: Sequence[str], error_model: ErrorModel
) -> list[Condition]:
    """Returns the conditions of a plan's entries; `error_model` may be of the user's own kind."""
    return [Condition.from_json(name, entries[name], [type(error_model)]) for name in names]
