"""Necessity and sufficiency: what cleaning some sites brings back, and what noise there costs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from noisescope.analyse import (
    Interval,
    Prediction,
    Table,
    mean_interval,
    paired_ratio,
    share_interval,
)
from noisescope.analyse.intervals import UNKNOWN
from noisescope.study.channels import ModuleChannels
from noisescope.study.plan import StudyPlan
from noisescope.study.steps import BLAMED, OTHERS, THESE, all_but, channels_of
from noisescope.study.told import Told


@dataclass(frozen=True)
class Remedy:
    """Everything noisy, everything but the blamed sites, and the blamed sites alone.

    Attributes:
        everything: KL with noise everywhere, nats per token.
        without: KL with the blamed sites clean; unknown where they are everything.
        alone: KL with noise in the blamed sites only.
        brought_back: Share of the KL that cleaning them takes away, 0 to 1.
        carried: KL of noise there alone, as a share of that everywhere.
        answers_brought_back: Accuracy that cleaning them brings back, as a share; unknown where
            nothing was generated.
        answers_lost_alone: Accuracy that noise there alone costs, likewise.
        answers_lost: Accuracy that noise everywhere costs, likewise.
    """

    everything: Interval
    without: Interval
    alone: Interval
    brought_back: Interval
    carried: Interval
    answers_brought_back: Interval
    answers_lost_alone: Interval
    answers_lost: Interval


def remedy(table: Table, whole: str) -> Remedy | None:
    """Returns the remedy; None where it was not measured.

    Args:
        table: What was measured.
        whole: The condition in which everything is noisy.
    """
    without = all_but(BLAMED)
    if whole not in table.conditions or BLAMED not in table.conditions:
        return None
    has_others = without in table.conditions
    block = table.block(whole).common(table.block(BLAMED))
    if has_others:
        block = block.common(table.block(without))
    if not len(block):
        return None
    groups = table.groups(block.samples)
    every, alone = (table.values(name, "kl_nats", block) for name in (whole, BLAMED))
    lost = table.accuracy_drops(whole, block)
    lost_alone = table.accuracy_drops(BLAMED, block)
    clean = table.values(without, "kl_nats", block) if has_others else np.zeros_like(every)
    back = table.accuracy_drops(without, block) if has_others else np.zeros_like(lost)
    return Remedy(
        everything=mean_interval(every, groups=groups),
        without=mean_interval(clean, groups=groups) if has_others else UNKNOWN,
        alone=mean_interval(alone, groups=groups),
        brought_back=paired_ratio(every - clean, every, groups),
        carried=_within(paired_ratio(alone, every, groups), math.inf),
        answers_brought_back=share_interval(lost - back, groups),
        answers_lost_alone=share_interval(lost_alone, groups),
        answers_lost=share_interval(lost, groups),
    )


@dataclass(frozen=True)
class ChannelEffect:
    """Noise in some channels of a site alone, and in all its others alone.

    Attributes:
        site: The site's name.
        channels: Their numbers.
        is_outlier: Whether they are outliers; else those that are predicted to cost most.
        max_ratio: Largest ratio of a channel's magnitude to the median channel's; NaN if unknown.
        predicted: Predicted KL of noise in these channels alone, nats per token.
        these: The same, measured.
        others: KL of noise in all other channels of the site, measured.
        share: KL of these over that of both, 0 to 1.
    """

    site: str
    channels: tuple[int, ...]
    is_outlier: bool
    max_ratio: float
    predicted: Prediction | None
    these: Interval
    others: Interval
    share: Interval


def channel_effects(
    plan: StudyPlan, table: Table, told: Told, predictions: Mapping[str, Prediction]
) -> tuple[ChannelEffect, ...]:
    """Returns what the channels of sites cost, in the order they were looked at."""
    modules = {m.module: m for m in told.modules}
    found = []
    for name, entry in plan.conditions.items():
        selection = entry.get("selection", {})
        site = (selection.get("sites") or [""])[0]
        others = channels_of(OTHERS, site)
        if name != channels_of(THESE, site) or not {name, others} <= set(table.conditions):
            continue
        block = table.block(name).common(table.block(others))
        groups = table.groups(block.samples)
        one, other = (table.values(n, "kl_nats", block) for n in (name, others))
        channels = tuple(selection["channels"])
        module = modules.get(site.rsplit(":", 2)[0])
        found.append(
            ChannelEffect(
                site,
                channels,
                _are_outliers(module, channels),
                module.max_ratio if module is not None else float("nan"),
                predictions.get(name),
                mean_interval(one, groups=groups),
                mean_interval(other, groups=groups),
                _within(paired_ratio(one, one + other, groups), 1.0),
            )
        )
    return tuple(found)


def _within(share: Interval, most: float) -> Interval:
    """Cuts the bounds of a share of what is never negative; one that says nothing is unknown."""
    if share.is_known and share.low <= 0 and share.high >= most:
        return replace(share, low=math.nan, high=math.nan)
    return replace(share, low=max(0.0, share.low), high=min(most, share.high))


def _are_outliers(module: ModuleChannels | None, channels: tuple[int, ...]) -> bool:
    return module is not None and set(channels) <= set(module.outliers) and bool(channels)
