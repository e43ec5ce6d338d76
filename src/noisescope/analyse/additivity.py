"""Whether the errors of different parts of a model add, compound or cancel.

Small independent errors add: KL of all parts noisy is the sum of KL of each alone. What each part
costs in the company of the others against what it costs alone says which part they amplify.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from noisescope.analyse.intervals import UNKNOWN, Interval, finite_part, mean_interval
from noisescope.analyse.moments import by_group, moments_of
from noisescope.analyse.ratios import (
    NO_DENOMINATOR,
    interval_text,
    paired_ratio,
    ratio_text,
)
from noisescope.analyse.significance import holm
from noisescope.errors import InputError, near_names

Outcome = Literal["add", "compound", "cancel", "inconclusive"]
TOLERANCE = 1.25
COMPOUND, CANCEL = 1.1, 0.9
LEVEL = 0.05

_Values = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """One part, alone and among the others.

    Attributes:
        name: Its name.
        alone: KL in nats per token with noise in this part only; lower is better.
        among: KL of all parts less KL of all but this one; unknown where that was not measured.
        ratio: Among over alone: 1 where errors add, above 1 where the others amplify this part's.
        p_value: One-sided p that the ratio is not above 1.1, by Holm over the parts; NaN where it
            cannot be tested.
    """

    name: str
    alone: Interval
    among: Interval
    ratio: Interval
    p_value: float


@dataclass(frozen=True)
class Additivity:
    """Whether the parts' errors add.

    Attributes:
        ratio: KL of all parts noisy over the sum of KL of each alone; 1 where errors add.
        outcome: `add`, `compound`, `cancel` or `inconclusive`; see `additivity`.
        parts: One line per part, in the order given.
        worst_part: The part with the largest ratio among those that the others amplify beyond
            chance; None where there is none. Its rank among these is not tested.
        reason: One sentence for a person.
    """

    ratio: Interval
    outcome: Outcome
    parts: tuple[Part, ...]
    worst_part: str | None
    reason: str


def additivity(
    parts: Mapping[str, _Values],
    whole: _Values,
    groups: Sequence[Hashable] | None = None,
    all_but: Mapping[str, _Values] | None = None,
    is_random: bool = True,
) -> Additivity:
    """Compares KL of all parts noisy with the sum over the parts.

    The rule, in this order: `add` where the 95 % interval of the ratio lies within [0.8, 1.25], the
    tolerance of a scale that is on the line; `compound` where it lies above 1.1; `cancel` where it
    lies below 0.9; else `inconclusive`. An interval within [1.1, 1.25] is `add`: it is the same
    line everywhere, and the ratio beside it shows the rest.

    Args:
        parts: KL in nats per token with noise in one part only, draw by sample.
        whole: KL with noise in all parts, on the same draws and samples. Samples that are not
            finite in everything that is compared are left out of it.
        groups: The source of each sample; None: all apart.
        all_but: KL with noise in all parts but one, likewise, for some or all parts.
        is_random: Whether one draw of the noise differs from another.

    Returns:
        The comparison; inconclusive for fewer than two samples, or where nothing arrived. One draw
        speaks of that draw only, and the reason says so.

    Raises:
        InputError: No parts, tables of different shape, or a name in `all_but` that is no part.

    Source: Fieller 1954 on the two-way layout of `mean_interval`, for ratios; Holm 1979.
    """
    others = all_but or {}
    _check(parts, whole, others)
    total: _Values = np.sum([np.asarray(values, np.float64) for values in parts.values()], axis=0)
    ratio = paired_ratio(whole, total, groups)
    outcome = _outcome(ratio)
    lines = _lines(parts, whole, others, groups)
    proven = [x for x in lines if x.p_value < LEVEL and math.isfinite(x.ratio.mean)]
    worst = max(proven, key=lambda line: line.ratio.mean).name if proven else None
    reason = _reason(ratio, outcome, next((x for x in lines if x.name == worst), None))
    if whole.shape[0] == 1 and is_random:
        reason += "; one draw: this speaks of that realisation of the noise only"
    return Additivity(ratio, outcome, lines, worst, reason)


def _check(parts: Mapping[str, _Values], whole: _Values, others: Mapping[str, _Values]) -> None:
    if not parts:
        raise InputError("additivity of no parts: give the KL of at least one part alone")
    for name in others:
        if name not in parts:
            near = near_names(name, parts)
            raise InputError(
                f"all_but names {name!r}, which is no part{near}: give some of {', '.join(parts)}"
            )
    for what, tables in (("part", parts), ("all but", others)):
        for name, values in tables.items():
            if values.shape != whole.shape or values.ndim != 2:
                raise InputError(
                    f"{what} {name!r} has values of shape {values.shape}, the whole {whole.shape}: "
                    "give tables [draws, samples] of the same draws and samples"
                )


def _outcome(ratio: Interval) -> Outcome:
    if not ratio.is_known:
        return "inconclusive"
    if ratio.low >= 1 / TOLERANCE and ratio.high <= TOLERANCE:
        return "add"
    if ratio.low > COMPOUND:
        return "compound"
    return "cancel" if ratio.high < CANCEL else "inconclusive"


def _lines(
    parts: Mapping[str, _Values],
    whole: _Values,
    others: Mapping[str, _Values],
    groups: Sequence[Hashable] | None,
) -> tuple[Part, ...]:
    among = {name: whole - values for name, values in others.items()}
    p_values = holm([_p_amplified(among[name], parts[name], groups) for name in among])
    by_name = dict(zip(among, p_values, strict=True))
    return tuple(
        Part(
            name=name,
            alone=mean_interval(alone, groups=groups),
            among=mean_interval(among[name], groups=groups) if name in among else UNKNOWN,
            ratio=paired_ratio(among[name], alone, groups) if name in among else UNKNOWN,
            p_value=by_name.get(name, math.nan),
        )
        for name, alone in parts.items()
    )


def _p_amplified(among: _Values, alone: _Values, groups: Sequence[Hashable] | None) -> float:
    """Returns the one-sided p that a part costs no more than 1.1 times what it costs alone."""
    excess, kept = finite_part(among - COMPOUND * alone, groups)
    sources = excess.shape[1] if kept is None else len(set(kept))
    if sources < 2 or np.ptp(excess) == 0:
        return math.nan
    return float(moments_of(by_group(excess, kept)).p_above(0.0))


def _reason(ratio: Interval, outcome: Outcome, worst: Part | None) -> str:
    if not ratio.is_known:
        why = "too few samples, or no spread between them"
        if NO_DENOMINATOR in ratio.caution:
            why = "that sum cannot be told from zero"
        return f"inconclusive: the whole cannot be held against the sum of the parts ({why})"
    span = interval_text(ratio, "the sum of the parts")
    told = {
        "add": f"errors add: the whole costs {span}",
        "compound": f"errors compound: the whole costs {span}",
        "cancel": f"errors cancel or saturate: the whole costs {span}",
        "inconclusive": f"inconclusive: the whole costs {span}; use more samples or draws",
    }[outcome]
    if worst is not None:
        told += (
            f"; {worst.name} costs {ratio_text(worst.ratio.mean)} times as much among the others "
            f"as alone (p = {worst.p_value:.2g} by Holm)"
        )
    return told
