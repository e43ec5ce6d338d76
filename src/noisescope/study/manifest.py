"""The manifest: the plan of a study and the stages in which it grew, in one sealed file.

A study grows by what its user asks for, or by what a step of its own has chosen from the records:
then the manifest is written before anything of it is measured, and what stands there is the choice.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from noisescope.errors import InputError
from noisescope.records import CLEAN
from noisescope.study.files import read_sealed, replace_file, seal, sha256, to_json
from noisescope.study.plan import StudyPlan

MANIFEST = "manifest.json"
_SCHEMA = 2


@dataclass(frozen=True)
class Stage:
    """How far a plan reached when a study was made, extended, or a step had chosen.

    Attributes:
        samples: The first so many of the plan's samples.
        draws: The first so many draws.
        conditions: Names of the conditions that were asked for, or chosen, with this stage; those
            that an earlier stage has are not measured again.
        step: Name of the step that chose them; empty: the user asked for them.
        generates: Whether they are answered; None: as the plan, False: only scored along the clean
            answers.
    """

    samples: int
    draws: int
    conditions: tuple[str, ...]
    step: str = ""
    generates: bool | None = None

    def is_answered(self, plan: StudyPlan) -> bool:
        """Returns whether the noisy model answers under the conditions of this stage."""
        return plan.generates and self.generates is not False


@dataclass(frozen=True)
class Manifest:
    """A plan and its stages; the last one reaches as far as the plan.

    Attributes:
        plan: The plan.
        stages: At least one.
    """

    plan: StudyPlan
    stages: tuple[Stage, ...]

    @property
    def identity(self) -> str:
        """Digest over what stays the same for a study's life; its records are tied to it."""
        plan = self.plan
        model = {k: v for k, v in plan.fingerprints.items() if k != "data"}
        lasting = (plan.kind, plan.seed, plan.settings, model, plan.versions, plan.generates)
        return sha256(to_json(lasting))

    def chosen(self, step: str) -> tuple[str, ...] | None:
        """Returns the names of all conditions that a step chose; None where it was not reached."""
        return next((s.conditions for s in self.stages if step and s.step == step), None)

    def with_step(
        self, step: str, conditions: Mapping[str, Any], generates: bool | None = None
    ) -> Self:
        """Returns the manifest with the stage of a step.

        Raises:
            ValueError: A condition's name is taken by another one, or it is there without the
                answers that are wanted now.
        """
        wanted: dict[str, Any] = json.loads(to_json(conditions))
        plan = self.plan
        stage = Stage(len(plan.samples), plan.draws, tuple(wanted), step, generates)
        for name, condition in wanted.items():
            if plan.conditions.get(name, condition) != condition or name == CLEAN:
                raise ValueError(f"step {step!r} chose {name!r}, which is another condition here")
            first = next((s for s in self.stages if name in s.conditions), stage)
            if stage.is_answered(plan) and not first.is_answered(plan):
                raise ValueError(f"step {step!r} wants answers under {name!r}, which has none here")
        new = {name: c for name, c in wanted.items() if name not in plan.conditions}
        grown = replace(
            plan,
            conditions={**plan.conditions, **new},
            chosen={**plan.chosen, **dict.fromkeys(new, step)},
        )
        return replace(self, plan=grown, stages=(*self.stages, stage))

    def as_json(self) -> dict[str, Any]:
        """Returns a dictionary for JSON."""
        stages = [asdict(stage) for stage in self.stages]
        return {"schema": _SCHEMA, "plan": self.plan.as_json(), "stages": stages}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Returns the manifest of a dictionary that `as_json` made."""
        stages = (
            Stage(**{**stage, "conditions": tuple(stage["conditions"])})
            for stage in entry["stages"]
        )
        return cls(StudyPlan.from_json(entry["plan"]), tuple(stages))


def new_manifest(plan: StudyPlan) -> Manifest:
    """Returns the manifest of a study that begins."""
    stage = Stage(len(plan.samples), plan.draws, tuple(plan.conditions))
    return Manifest(plan.decoded(), (stage,))


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Puts a manifest in the place of the one that is there."""
    replace_file(directory / MANIFEST, seal(manifest.as_json()))


def read_manifest(directory: Path) -> Manifest | None:
    """Returns the manifest of a directory, or None where there is none.

    Raises:
        InputError: It was changed, or another version of noisescope wrote it in another form.
    """
    entry = read_sealed(directory / MANIFEST)
    if entry is None:
        return None
    if entry.get("schema") != _SCHEMA:
        raise InputError(
            f"{directory / MANIFEST} has schema {entry.get('schema')!r}, this noisescope reads "
            f"{_SCHEMA}: use the version that made it, or name another directory"
        )
    return Manifest.from_json(entry)
