"""The units of a plan, and whether what came back is what a unit asked for.

Units are a pure function of the manifest, so a study that goes on asks for the same ones. Their
names begin with the number of their stage, so that those of two stages never clash.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from noisescope.measure import CLEAN, Record, Unit, UnitResult
from noisescope.study.manifest import Manifest, Stage
from noisescope.study.plan import StudyPlan

Key = tuple[str, int, str]  # condition, draw, sample


def manifest_units(manifest: Manifest, after: int = 0) -> list[Unit]:
    """Returns the units of the stages of a manifest, without those of the first `after` stages."""
    return [
        unit
        for number in range(after, len(manifest.stages))
        for unit in stage_units(manifest, number)
    ]


def make_units(
    plan: StudyPlan,
    name: str,
    samples: Sequence[str],
    conditions: Sequence[str],
    draws: Sequence[int],
    with_clean: bool,
    generates: bool | None = None,
) -> list[Unit]:
    """Returns units of conditions x draws, over consecutive blocks of each and of samples.

    Args:
        plan: Gives the sizes of blocks, and whether units generate.
        name: What the units' names begin with; a number follows.
        samples: Names of the samples.
        conditions: Names of the noisy conditions.
        draws: Numbers of the realisations.
        with_clean: Whether the clean model's records of these samples are wanted, too; they come
            with the first of the conditions and draws.
        generates: Whether the noisy model answers; None: as the plan.
    """
    if not samples or not (with_clean or (conditions and draws)):
        return []
    layout = plan.layout
    blocks = _blocks(samples, layout.samples_per_unit)
    parts = [(tuple(conditions), tuple(draws))]
    if conditions and draws:
        some = _blocks(conditions, layout.conditions_per_unit)
        parts = list(product(some, list(_blocks(draws, layout.draws_per_unit))))
    return [
        Unit(
            name=f"{name}-{number}",
            samples=some_samples,
            conditions=some_conditions,
            draws=some_draws,
            with_clean=with_clean and (some_conditions, some_draws) == parts[0],
            generates=plan.generates if generates is None else generates,
        )
        for number, (some_samples, (some_conditions, some_draws)) in enumerate(
            product(blocks, parts)
        )
    ]


def _blocks(values: Sequence[Any], size: int | None) -> Iterator[tuple[Any, ...]]:
    """Yields consecutive parts of so many values; None: all of them."""
    size = size or len(values)
    for start in range(0, len(values), size):
        yield tuple(values[start : start + size])


def unit_keys(unit: Unit) -> Iterator[Key]:
    """Yields condition, draw and sample of each record that a unit asks for."""
    if unit.with_clean:
        yield from product((CLEAN,), (0,), unit.samples)
    yield from product(unit.conditions, unit.draws, unit.samples)


def wrong_with(unit: Unit, result: UnitResult, groups: Mapping[str, str | None]) -> str | None:
    """Returns what is wrong with a result, or None.

    Args:
        unit: What was asked for.
        result: What came back.
        groups: The group of each sample.
    """
    asked = set(unit_keys(unit))
    counts = Counter((r.condition, r.draw, r.sample) for r in result.records)
    for text, keys in (
        ("lacks", asked - counts.keys()),
        ("was not asked for", counts.keys() - asked),
        ("has twice", {key for key, count in counts.items() if count > 1}),
    ):
        if keys:
            condition, draw, sample = min(keys)
            return f"it {text} sample {sample!r}, {condition}, draw {draw}"
    for record in result.records:
        if record.group != groups[record.sample]:
            return f"sample {record.sample!r} has group {record.group!r}"
    if result.witnesses.keys() != set(unit.conditions):
        odd = min(result.witnesses.keys() ^ set(unit.conditions))
        return f"the witness of {odd} {'lacks' if odd in unit.conditions else 'is too many'}"
    return None


def in_order(records: Iterable[Record], plan: StudyPlan) -> list[Record]:
    """Returns records clean first, then by condition, draw and sample, in the plan's order."""
    conditions = {name: i for i, name in enumerate([CLEAN, *plan.conditions])}
    samples = {sample.name: i for i, sample in enumerate(plan.samples)}
    return sorted(records, key=lambda r: (conditions[r.condition], r.draw, samples[r.sample]))


def stage_units(manifest: Manifest, number: int) -> list[Unit]:
    """Returns what a stage added: new samples, new conditions of the old ones, and new draws.

    Conditions that are only scored have units of their own, after those of the others.
    """
    plan, stage = manifest.plan, manifest.stages[number]
    earlier = manifest.stages[:number]
    old_samples, old_draws = (earlier[-1].samples, earlier[-1].draws) if earlier else (0, 0)
    # Whether each condition is answered, as it was first asked for or chosen.
    old = _answered(plan, earlier)
    everyone = _answered(plan, (*earlier, stage))
    new = {name: is_answered for name, is_answered in everyone.items() if name not in old}
    names = [sample.name for sample in plan.samples[: stage.samples]]
    draws = range(stage.draws)
    parts = (
        ("samples", names[old_samples:], everyone, draws, True),
        (stage.step or "conditions", names[:old_samples], new, draws, False),
        ("draws", names[:old_samples], old, draws[old_draws:], False),
    )
    units = []
    for what, samples, answered, some_draws, with_clean in parts:
        as_planned = [name for name in answered if answered[name] == plan.generates]
        scored = [name for name in answered if answered[name] != plan.generates]
        base = f"{number}-{what}"
        units += make_units(plan, base, samples, as_planned, some_draws, with_clean)
        units += make_units(plan, f"{base}-scored", samples, scored, some_draws, False, False)
    return units


def _answered(plan: StudyPlan, stages: Iterable[Stage]) -> dict[str, bool]:
    """Returns the conditions of stages, in their order, and whether the noisy model answers."""
    found: dict[str, bool] = {}
    for stage in stages:
        for name in stage.conditions:
            found.setdefault(name, stage.is_answered(plan))
    return found
