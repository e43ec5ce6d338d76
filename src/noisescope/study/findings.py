"""What a study found beyond its table: prediction beside measurement, blame, and the avalanche.

All of it is made of plan, records and what is kept beside them, so a directory is enough to show it
again, finished or not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from noisescope.analyse import (
    STANDS_OUT,
    Additivity,
    Agreement,
    Amplification,
    Blame,
    CriticalScale,
    Interval,
    Point,
    Prediction,
    Response,
    Summary,
    Table,
    Target,
    Worst,
    additivity,
    agreement,
    amplification,
    blame,
    critical_scale,
    dose_response,
    parse_target,
    predict,
    predict_samples,
    worst_by_kl,
)
from noisescope.errors import InputError
from noisescope.measure import Condition
from noisescope.profile import Profile
from noisescope.records import Record
from noisescope.study.effects import ChannelEffect, Remedy, channel_effects, remedy
from noisescope.study.plan import StudyPlan
from noisescope.study.steps import (
    BLAMED,
    all_but,
    base_of,
    scale_of_name,
    whole_name,
)
from noisescope.study.told import Told

__all__ = ["STANDS_OUT", "Findings", "find"]


@dataclass(frozen=True)
class Findings:
    """What a study found beyond its table.

    Attributes:
        predictions: Predicted KL of each condition, by name.
        agreement: Prediction against measurement over single sites, regions and windows at the
            study's scale, which hold little of each other; None where none has both.
        blame: Who is to blame; None where single sites were not looked at.
        remedy: What cleaning the blamed sites brings back, and what noise there alone costs.
        responses: Dose and response, by what is noisy.
        target: The loss whose scale was looked for.
        critical: That scale.
        additivity: Whether errors of different regions add.
        amplification: How layers pass on an error of the residual stream.
        channels: Noise in some channels of a site, and in all its others.
        worst_operator: The operator that costs most by KL, of a whole diagnosis.
    """

    predictions: Mapping[str, Prediction] = field(default_factory=dict)
    agreement: Agreement | None = None
    blame: Blame | None = None
    remedy: Remedy | None = None
    responses: Mapping[str, Response] = field(default_factory=dict)
    target: Target | None = None
    critical: CriticalScale | None = None
    additivity: Additivity | None = None
    amplification: Amplification | None = None
    channels: tuple[ChannelEffect, ...] = ()
    worst_operator: Worst | None = None


def find(
    plan: StudyPlan, records: Sequence[Record], told: Told, summaries: Sequence[Summary]
) -> Findings:
    """Returns what the records and the clean model told.

    Args:
        plan: The study's.
        records: What is measured so far.
        told: What is kept beside them.
        summaries: Of the conditions.
    """
    table = Table(records)
    measured = {s.condition: s.kl_nats for s in summaries}
    predictions = _predictions(plan, told.profile)
    apart = _apart(plan)
    own = {n: p for n, p in predictions.items() if n in apart}
    operators = tuple(plan.about.get("operators", ()))
    found_blame = None
    if told.profile is not None and plan.kind in ("diagnose", "layers", "sites"):
        found_blame = blame(told.profile, _single_sites(plan, measured), operators)
    whole = whole_of(plan)
    target, critical = _critical(plan, table, whole)
    return Findings(
        predictions=predictions,
        agreement=agreement(own, measured),
        blame=found_blame,
        remedy=remedy(table, whole),
        responses=_responses(plan, table, predictions, told.profile),
        target=target,
        critical=critical,
        additivity=_additivity(plan, table, whole),
        amplification=_amplification(told.profile),
        channels=channel_effects(plan, table, told, predictions),
        worst_operator=worst_by_kl(table, [n for n in operators if n in table.conditions])
        if plan.kind == "diagnose"
        else None,
    )


def whole_of(plan: StudyPlan) -> str:
    """Returns the name of the condition in which all that a study looks at is noisy."""
    return whole_name(plan.about.get("regions", ()))


def _predictions(plan: StudyPlan, profile: Profile | None) -> dict[str, Prediction]:
    if profile is None:
        return {}
    return {
        name: predict(profile, Condition.selection_of(entry), entry["error_model"])
        for name, entry in plan.conditions.items()
    }


def _apart(plan: StudyPlan) -> set[str]:
    """Returns the conditions at the study's scale that do not hold most of the others.

    Everything, and everything but a part, would agree with each other whatever the prediction is
    worth; so would an operator with all its sites. Where only these were asked for, they are meant.
    """
    labels = {f"L{r}" if r.isdigit() else r for r in plan.about.get("regions", ())}
    at_scale = [name for name in plan.conditions if scale_of_name(name) is None]
    found = {
        name
        for name in at_scale
        if name in labels
        or name in plan.about.get("layers", {})
        or (_is_site(plan, name) and name != BLAMED)
    }
    return found or set(at_scale)


def _is_site(plan: StudyPlan, name: str) -> bool:
    selection = plan.conditions[name].get("selection", {})
    is_part = selection.get("channels") or selection.get("without_channels")
    return len(selection.get("sites") or ()) == 1 and not is_part


def _single_sites(plan: StudyPlan, measured: Mapping[str, Interval]) -> dict[str, Interval]:
    """Returns the measured KL of conditions that are one site, by its name."""
    found = {}
    for name, entry in plan.conditions.items():
        if _is_site(plan, name) and scale_of_name(name) is None and name in measured:
            found[entry["selection"]["sites"][0]] = measured[name]
    return found


def _scale(entry: Mapping[str, Any]) -> float | None:
    scale = entry.get("error_model", {}).get("scale")
    return float(scale) if isinstance(scale, (int, float)) and scale > 0 else None


def _responses(
    plan: StudyPlan,
    table: Table,
    predictions: Mapping[str, Prediction],
    profile: Profile | None,
) -> dict[str, Response]:
    """Returns dose and response of everything that was measured at two scales or more."""
    bases: dict[str, dict[float, str]] = {}
    for name in table.conditions:
        scale = _scale(plan.conditions[name])
        if scale is not None:
            bases.setdefault(base_of(name), {}).setdefault(scale, name)
    found = {}
    for base, names in bases.items():
        if len(names) < 2 or base not in predictions:
            continue
        own = _scale(plan.conditions[base])
        prediction = predictions[base]
        if own is None or profile is None or prediction.unreached:
            continue
        points = _points(plan, table, names, profile)
        if points:
            found[base] = dose_response(
                points,
                prediction.kl_nats / own**2,
                prediction.error_nats / own**2,
                c_degrees=max(1, profile.label_draws - 1),
            )
    return found


def _points(
    plan: StudyPlan, table: Table, names: Mapping[float, str], profile: Profile
) -> list[Point]:
    """Returns the points on the draws and samples that all scales have."""
    block = table.block(next(iter(names.values())))
    for name in names.values():
        block = block.common(table.block(name))
    if not len(block):
        return []
    groups = table.groups(block.samples)
    points = []
    for scale, name in names.items():
        entry = plan.conditions[name]
        known = predict_samples(profile, Condition.selection_of(entry), entry["error_model"])
        line = [known.get(sample, np.nan) for sample in block.samples]
        predicted = np.array(line) if known else None
        points.append(Point(scale, table.values(name, "kl_nats", block), groups, predicted))
    return points


def _critical(
    plan: StudyPlan, table: Table, whole: str
) -> tuple[Target | None, CriticalScale | None]:
    text = plan.settings.get("--until")
    if text is None:
        return None, None
    target = parse_target(text)
    names: dict[float, str] = {}
    for name in table.conditions:
        scale = _scale(plan.conditions[name])
        is_wanted = target.measure != "accuracy" or table.has_answers(name)
        if base_of(name) == whole and scale is not None and is_wanted:
            names.setdefault(scale, name)
    if not names:
        return target, None
    block = table.block(next(iter(names.values())))
    for name in names.values():
        block = block.common(table.block(name))
    losses = {
        scale: table.accuracy_drops(name, block)
        if target.measure == "accuracy"
        else table.values(name, "kl_nats" if target.measure == "kl" else "nll_change_nats", block)
        for scale, name in names.items()
    }
    return target, critical_scale(target, losses, table.groups(block.samples))


def _additivity(plan: StudyPlan, table: Table, whole: str) -> Additivity | None:
    """Compares everything noisy with the regions one by one; None where one is not measured."""
    labels = [f"L{r}" if r.isdigit() else r for r in plan.about.get("regions", ())]
    if whole not in table.conditions or len(labels) < 2:
        return None
    if not all(label in table.conditions for label in labels):
        return None
    others = {x: all_but(x) for x in labels if all_but(x) in table.conditions}
    block = table.block(whole)
    for name in (*labels, *others.values()):
        block = block.common(table.block(name))
    if not len(block):
        return None

    def values(name: str) -> Any:
        return table.values(name, "kl_nats", block)

    try:
        return additivity(
            {label: values(label) for label in labels},
            values(whole),
            table.groups(block.samples),
            {label: values(name) for label, name in others.items()},
            is_random=bool(plan.about.get("is_random", True)),
        )
    except InputError:
        return None


def _amplification(profile: Profile | None) -> Amplification | None:
    """Returns how layers pass on errors; None where the residual stream was not watched."""
    if profile is None or len(profile.residuals) < 2:
        return None
    return amplification(np.stack([site.kl_EKN[0] for site in profile.residuals]))
