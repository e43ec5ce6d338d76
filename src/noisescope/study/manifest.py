"""The manifest: the plan of a study and the stages in which it grew, in one sealed file."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from noisescope.errors import InputError
from noisescope.study.files import read_sealed, replace_file, seal, sha256, to_json
from noisescope.study.plan import StudyPlan

MANIFEST = "manifest.json"
_SCHEMA = 1


@dataclass(frozen=True)
class Stage:
    """How far a plan reached when a study was made, or extended.

    Attributes:
        samples: The first so many of the plan's samples.
        draws: The first so many draws.
        conditions: Names of the conditions that came with this stage.
    """

    samples: int
    draws: int
    conditions: tuple[str, ...]


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

    def as_json(self) -> dict[str, Any]:
        """Returns a dictionary for JSON."""
        stages = [asdict(stage) for stage in self.stages]
        return {"schema": _SCHEMA, "plan": self.plan.as_json(), "stages": stages}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Returns the manifest of a dictionary that `as_json` made."""
        stages = (
            Stage(stage["samples"], stage["draws"], tuple(stage["conditions"]))
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
