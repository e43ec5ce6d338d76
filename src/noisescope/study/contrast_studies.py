"""Holds two studies in directories against each other, also where one of them is not finished.

Conditions go together by name and by what they select; their error models may differ, as is said.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from noisescope.analyse.change import Change
from noisescope.analyse.contrast import contrast_records, paired_samples
from noisescope.errors import InputError
from noisescope.records import CLEAN
from noisescope.study.contrast import (
    STUDIES,
    Contrast,
    Party,
    differences,
    same_model,
    weights_notes,
)
from noisescope.study.plan import StudyPlan
from noisescope.study.state import StudyState

_MOST_NAMED = 3
_NOISE_SETTINGS = ("error model", "--noise-scale")
_SEED = (
    "the seeds differ, so the noise is not the same: draws go together by their number alone, and "
    "the intervals are as wide as that makes them"
)


@dataclass(frozen=True)
class _Common:
    """What both studies have."""

    conditions: tuple[str, ...]
    samples: tuple[str, ...]
    other_sites: tuple[str, ...]


def contrast_studies(first: StudyState, second: StudyState) -> Contrast:
    """Compares what two studies have measured so far.

    Raises:
        InputError: One of them has no records, or they have nothing in common.
    """
    for letter, state in zip("AB", (first, second), strict=True):
        if not state.records:
            raise InputError(
                f"{state.directory} ({letter}) has no records yet: let its command finish a unit"
            )
    a, b = first.plan, second.plan
    common = _common(a, b)
    changes = contrast_records(
        first.records,
        second.records,
        common.conditions,
        common.samples,
        same_questions=_same_questions(a, b, common),
        asked=[name for name in common.conditions if name in a.asked and name in b.asked],
    )
    if not changes:
        raise InputError(
            f"{first.directory} and {second.directory} have nothing in common that is measured: "
            f"conditions are {_names(list(a.conditions))} in A, {_names(list(b.conditions))} in B"
        )
    return Contrast(
        kind=STUDIES,
        first=_party(first),
        second=_party(second),
        changes=changes,
        differing=tuple(_differing(a, b, common.conditions)),
        notes=tuple(_notes(first, second, common, changes)),
        doses={
            name: (first.witnesses[name].dose(), second.witnesses[name].dose())
            for name in common.conditions
            if name in first.witnesses and name in second.witnesses
        },
        only=(_only(a, b), _only(b, a)),
    )


def _common(a: StudyPlan, b: StudyPlan) -> _Common:
    names = [name for name in a.conditions if name in b.conditions]
    other = [name for name in names if _selection(a, name) != _selection(b, name)]
    digests = {sample.name: sample.digest for sample in b.samples}
    same = [s.name for s in a.samples if digests.get(s.name) == s.digest]
    # What the user asked for comes first.
    asked = [n for n in names if n in a.asked and n in b.asked]
    ordered = [n for n in (*asked, *(n for n in names if n not in asked)) if n not in other]
    return _Common(tuple(ordered), tuple(same), tuple(other))


def _selection(plan: StudyPlan, name: str) -> Any:
    """Returns what a condition is, but for its error model."""
    return {key: v for key, v in plan.conditions[name].items() if key != "error_model"}


def _same_questions(a: StudyPlan, b: StudyPlan, common: _Common) -> dict[str, bool]:
    """Returns of which conditions both ask the same of the same weights."""
    is_model = same_model(a.fingerprints, b.fingerprints)
    is_noise = is_model and a.seed == b.seed
    same = {n: is_noise and a.conditions[n] == b.conditions[n] for n in common.conditions}
    return {CLEAN: is_model, **same}


def _party(state: StudyState) -> Party:
    plan = state.plan
    config: Mapping[str, Any] = plan.about.get("config", {})
    about = {
        "study": plan.kind,
        "model": config.get("model"),
        "data": config.get("data"),
        "dtype": config.get("dtype"),
        "device": config.get("device"),
        "error model": config.get("error_model"),
        "noise scale": config.get("noise_scale"),
        "samples": len(plan.samples),
        "draws": plan.draws,
        "seed": plan.seed,
        "records": len(state.records),
        "complete": state.is_complete,
    }
    return Party(str(state.directory), about, plan.fingerprints, plan.versions)


def _differing(a: StudyPlan, b: StudyPlan, conditions: Sequence[str]) -> Iterator[str]:
    yield from differences(
        {"study of": a.kind, "seed": a.seed}, {"study of": b.kind, "seed": b.seed}
    )
    yield from differences({"draws": a.draws}, {"draws": b.draws})
    told = _NOISE_SETTINGS if conditions else ()  # by the conditions themselves
    yield from differences(
        *({k: v for k, v in plan.settings.items() if k not in told} for plan in (a, b))
    )
    yield from _other_noise(a, b, conditions)
    versions = ({f"version of {n}": v for n, v in plan.versions.items()} for plan in (a, b))
    yield from differences(*versions)


def _other_noise(a: StudyPlan, b: StudyPlan, conditions: Sequence[str]) -> Iterator[str]:
    """Yields how the error models of common conditions differ, one line for each way."""
    found: dict[str, list[str]] = {}
    for name in conditions:
        models = (plan.conditions[name].get("error_model") for plan in (a, b))
        told = {"error model": m} if (m := next(models)) is not None else {}
        other = {"error model": m} if (m := next(models)) is not None else {}
        for line in differences(told, other):
            found.setdefault(line, []).append(name)
    for line, names in found.items():
        where = "every condition" if len(names) == len(conditions) else _names(names)
        yield f"{line} ({where})"


def _notes(
    first: StudyState, second: StudyState, common: _Common, changes: Sequence[Change]
) -> Iterator[str]:
    a, b = first.plan, second.plan
    yield from weights_notes(a.fingerprints, b.fingerprints)
    yield from _data_notes(first, second, common)
    for letter, state in zip("AB", (first, second), strict=True):
        if not state.is_complete:
            total = "" if state.units_total is None else f" of {state.units_total}"
            yield (
                f"{letter} is not finished ({state.units_done}{total} units): what both have is "
                "compared"
            )
    if a.seed != b.seed:
        yield _SEED
    if a.draws != b.draws:
        yield (
            f"{a.draws} draws in A, {b.draws} in B: the first {min(a.draws, b.draws)} are compared"
        )
    if common.other_sites:
        yield (
            f"{_names(common.other_sites)} select other sites in A than in B, and are not compared"
        )
    lost = {c.condition: n for c in changes if c.measure == "kl" and (n := c.overflows)}
    if lost:
        yield f"the logits overflow in B, and not in A, in {_names(list(lost))}: KL rose there"
    if not any(c.condition != CLEAN for c in changes):
        yield "no noisy condition is in both: the clean models are compared alone"


def _data_notes(first: StudyState, second: StudyState, common: _Common) -> Iterator[str]:
    counts = [len({r.sample for r in s.records}) for s in (first, second)]
    paired = paired_samples(first.records, second.records, common.samples)
    is_same = first.plan.fingerprints.get("data") == second.plan.fingerprints.get("data")
    if paired and len(paired) == counts[0] == counts[1]:
        told = "the data are the same" if is_same else "the samples measured are the same"
        yield f"{told}: {len(paired)} samples are paired"
    elif paired:
        yield (
            f"{len(paired)} samples are the same and paired; the others, of {counts[0]} in A and "
            f"{counts[1]} in B, are left out"
        )
    else:
        few = f"only {len(common.samples)}" if common.samples else "no"
        sample = "sample is" if len(common.samples) < 2 else "samples are"
        yield (
            f"{few} {sample} the same in both: two means are compared, {counts[0]} samples of A "
            f"with {counts[1]} of B, and nothing is paired"
        )


def _only(a: StudyPlan, b: StudyPlan) -> tuple[str, ...]:
    """Returns the conditions that A was asked for and B does not have."""
    return tuple(name for name in a.asked if name not in b.conditions)


def _names(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return (", ".join(names[:_MOST_NAMED]) or "none") + (f" and {more} more" if more > 0 else "")
