"""Whether a study in a directory is the one that is asked for now, and if not, what differs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from noisescope.errors import InputError
from noisescope.study.files import to_json
from noisescope.study.manifest import Manifest, Stage
from noisescope.study.plan import StudyPlan

# Numbers of another version may differ, so records of two versions are not mixed. The others that
# a manifest names (Python, and what only writes files) change no number.
NUMERIC_PACKAGES = ("noisescope", "torch", "transformers", "numpy", "numba", "tokenizers")
# What a fingerprint is of, in the user's words.
_FINGERPRINTS = {
    "model": "model fingerprint",
    "configuration": "the model's configuration, end tokens or attention",
    "data": "data fingerprint",
}
_MOST_NAMED = 4
_MOST_SHOWN, _DIGEST_SHOWN = 60, 19  # characters


@dataclass(frozen=True)
class Differences:
    """What differs between two plans, one short text each.

    Attributes:
        changed: What an extension cannot mend.
        added: What was added, by which an extension grows.
    """

    changed: tuple[str, ...]
    added: tuple[str, ...]


def compare_plans(there: StudyPlan, now: StudyPlan) -> Differences:
    """Compares the plan of a directory with the one that is asked for now.

    The layout is no difference: it is taken from the directory. Nor are the conditions that steps
    have added, but where one is asked for now under the name of another.
    """
    changed = [
        *_compare("", _whole(there), _whole(now)),
        *_compare("", there.settings, now.settings),
        *_compare("", *_fingerprints(there, now)),
        *_compare(" version", _numeric(there.versions), _numeric(now.versions)),
        *_changed_samples(there, now),
        *_changed_conditions(there, now),
    ]
    if now.draws < there.draws:
        changed.append(_differ("draws", there.draws, now.draws))
    return Differences(tuple(changed), tuple(_added(there, now)))


def reconcile(
    directory: Path, manifest: Manifest, plan: StudyPlan, extend: bool
) -> tuple[Manifest, tuple[str, ...]]:
    """Returns the manifest to go on with, and what was added to it.

    Args:
        directory: Where the study lies, for the message.
        manifest: What is there.
        plan: What is asked for now.
        extend: Whether samples, draws and conditions may be added.

    Raises:
        InputError: The plans differ by more than an extension adds, or it was not asked for.
    """
    now = plan.decoded()
    found = compare_plans(manifest.plan, now)
    if found.changed or (found.added and not extend):
        raise InputError(_refusal(directory, found))
    if not found.added:
        return manifest, ()
    if plan.is_adaptive:
        raise InputError(
            f"{directory} is a search, which goes where its records lead and cannot be extended "
            f"({_listed(found.added)}): name another --out"
        )
    return _extended(manifest, now), found.added


def _extended(manifest: Manifest, now: StudyPlan) -> Manifest:
    old = manifest.plan
    plan = replace(now, layout=old.layout, versions=old.versions)
    # What a step has added, and is asked for now, is the user's from now on.
    chosen = {name: step for name, step in old.chosen.items() if name not in now.conditions}
    conditions = {**now.conditions, **{name: old.conditions[name] for name in chosen}}
    plan = replace(plan, conditions=conditions, chosen=chosen)
    new_names = tuple(name for name in now.conditions if name not in old.asked)
    stage = Stage(len(now.samples), now.draws, new_names)
    grows = stage != Stage(len(old.samples), old.draws, ())
    return Manifest(plan, (*manifest.stages, stage) if grows else manifest.stages)


def _refusal(directory: Path, found: Differences) -> str:
    if not found.changed:
        return (
            f"{directory} holds a smaller study: {_listed(found.added)}; add --extend to measure "
            "what was added, give the old values, or name another --out"
        )
    return (
        f"{directory} holds another study: {_listed((*found.changed, *found.added))}; give the old "
        "values to go on with it, or name another --out"
    )


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - _MOST_NAMED
    return "; ".join(texts[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _whole(plan: StudyPlan) -> dict[str, Any]:
    return {
        "kind": plan.kind,
        "seed": plan.seed,
        "answers generated": plan.generates,
        "search": plan.is_adaptive,
        "chooses conditions itself": plan.has_steps,
    }


def _fingerprints(there: StudyPlan, now: StudyPlan) -> list[dict[str, str]]:
    """Returns those to compare: where samples differ, they are named and tell more."""
    skipped = () if there.samples == now.samples else ("data",)
    return [
        {_FINGERPRINTS.get(n, n): text for n, text in plan.fingerprints.items() if n not in skipped}
        for plan in (there, now)
    ]


def _numeric(versions: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in versions.items() if name in NUMERIC_PACKAGES}


def _changed_samples(there: StudyPlan, now: StudyPlan) -> Iterator[str]:
    if len(now.samples) < len(there.samples):
        yield _differ("samples", len(there.samples), len(now.samples))
    for number, (old, new) in enumerate(zip(there.samples, now.samples, strict=False), 1):
        if old != new:
            if old.name != new.name:
                yield _differ(f"sample number {number}", old.name, new.name)
            else:
                yield f"sample {old.name}: other content or prompt now"
            return


def _changed_conditions(there: StudyPlan, now: StudyPlan) -> Iterator[str]:
    gone = [name for name in there.asked if name not in now.conditions]
    if gone:
        yield f"conditions: {_names(gone)} there, not now"
    changed = [n for n, c in there.conditions.items() if now.conditions.get(n, c) != c]
    for name in changed[:1]:  # what differs in one is mostly what differs in all
        what = f"condition {name}"
        yield from _compare("", {what: there.conditions[name]}, {what: now.conditions[name]})
    if changed[1:]:
        yield f"{len(changed) - 1} more conditions differ, too"


def _added(there: StudyPlan, now: StudyPlan) -> Iterator[str]:
    if len(now.samples) > len(there.samples):
        yield _differ("samples", len(there.samples), len(now.samples))
    if now.draws > there.draws:
        yield _differ("draws", there.draws, now.draws)
    new = [name for name in now.conditions if name not in there.asked]
    if new:
        yield f"conditions: {_names(new)} now, not there"
    yield from _compare("", there.scope, now.scope)


def _compare(what: str, there: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in [*there, *(name for name in now if name not in there)]:
        old, new = there.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            parts = ({f"{name} {key}": v for key, v in whole.items()} for whole in (old, new))
            yield from _compare(what, *parts)
        elif old != new:
            yield _differ(name + what, old, new)


def _differ(what: str, there: object, now: object) -> str:
    return f"{what}: {_shown(there)} there, {_shown(now)} now"


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) and value.isprintable() else to_json(value).decode()
    most = _DIGEST_SHOWN if text.startswith("sha256:") else _MOST_SHOWN
    return text if len(text) <= most else text[:most] + "..."


def _names(names: Sequence[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
