"""Which sites are to blame: predicted to stand out from their peers, and found so by injection.

A site that stands out and yet carries hardly anything of the loss is nobody's problem. Where none
is to blame, the few sites that carry half of the loss are named as what they are, the largest;
where it takes many, the loss is spread and nobody is named.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from noisescope.analyse.intervals import Interval
from noisescope.analyse.predict import mean_and_error
from noisescope.analyse.standouts import FEWEST_PEERS, Standout, peer_groups, standouts
from noisescope.profile import Profile, SiteProfile

STANDS_OUT, LARGEST, SPREAD, UNKNOWN = "stands out", "largest", "spread", "unknown"
_CONFIRMED_RATIO = 3.0
_LEAST_SHARE = 0.1
_SHARE = 0.5
_MOST_SITES, _MOST_SHARE = 3, 0.05


@dataclass(frozen=True)
class Blame:
    """Who is to blame for what noise costs.

    Attributes:
        kind: `stands out`, `largest`, `spread`, or `unknown` where no KL of any site is.
        sites: Names of the sites, the costliest first; none where the loss is spread or unknown.
        share: What they carry of the sum of the KL of all sites that were looked at, 0 to 1; as
            measured where it was, else as predicted.
        ratios: Of those that stand out: how many times what their peers cost at least, by the lower
            bound of what was measured; infinite where noise there made the logits overflow.
        unconfirmed: Sites that were predicted to stand out, which injection did not confirm.
        has_peers: Whether any site could be compared with its like in other layers.
    """

    kind: str
    sites: tuple[str, ...]
    share: float
    ratios: Mapping[str, float]
    unconfirmed: tuple[str, ...] = ()
    has_peers: bool = True


def blame(
    profile: Profile,
    measured: Mapping[str, Interval],
    operators: tuple[str, ...],
    number: int = 0,
) -> Blame:
    """Returns who is to blame.

    Args:
        profile: Of the model.
        measured: KL of single sites as injected, nats per token.
        operators: The operators that are looked at.
        number: Of the error model.
    """
    sites = {s.name: s for s in profile.sites if s.operator in operators}
    predicted = {name: mean_and_error([site], number)[0] for name, site in sites.items()}
    costs = _costs(predicted, measured)
    out = [s for s in candidates(profile, operators, number) if s.site.name in sites]
    ratios = {s.site.name: _measured_ratio(s, measured) for s in out}
    confirmed = [name for name, ratio in ratios.items() if ratio >= _CONFIRMED_RATIO]
    doubtful = tuple(name for name in ratios if name not in confirmed)
    if confirmed:
        kept = {name: ratios[name] for name in confirmed}
        return Blame(STANDS_OUT, tuple(confirmed), _share(confirmed, costs), kept, doubtful)
    has_peers = any(len(group) > FEWEST_PEERS for group in peer_groups(profile).values())
    if not any(cost > 0 for cost in costs.values()):
        return Blame(UNKNOWN, (), math.nan, {}, doubtful, has_peers)
    largest = _largest(costs)
    most = max(_MOST_SITES, int(_MOST_SHARE * len(costs)))
    if not largest or len(largest) > most:
        return Blame(SPREAD, (), math.nan, {}, doubtful, has_peers)
    return Blame(LARGEST, tuple(largest), _share(largest, costs), {}, doubtful, has_peers)


def candidates(profile: Profile, operators: tuple[str, ...], number: int = 0) -> list[Standout]:
    """Returns the sites that injection should confirm or clear, the costliest first.

    They stand out from their peers, and carry a tenth of the predicted KL or more.
    """
    costs = [
        mean_and_error([site], number)[0] for site in profile.sites if site.operator in operators
    ]
    whole = float(np.nansum(costs)) if costs else 0.0
    return [
        s
        for s in standouts(profile, number)
        if s.site.operator in operators and s.kl_nats >= _LEAST_SHARE * whole
    ]


def _costs(predicted: Mapping[str, float], measured: Mapping[str, Interval]) -> Mapping[str, float]:
    """Returns the KL of each site: as measured, or else as predicted and taken to the same level.

    Where errors compound, what is measured lies above the line, at the sites that were not, too.
    What made the logits overflow costs more than anything.
    """
    ratios = [
        measured[name].mean / kl
        for name, kl in predicted.items()
        if name in measured and kl > 0 and measured[name].mean > 0
    ]
    level = float(np.median(ratios)) if ratios else 1.0
    return {
        name: _as_measured(measured[name]) if name in measured else level * kl
        for name, kl in predicted.items()
    }


def _as_measured(kl: Interval) -> float:
    return math.inf if math.isnan(kl.mean) else kl.mean


def worst_sites(
    profile: Profile, operators: tuple[str, ...], count: int, number: int = 0
) -> list[SiteProfile]:
    """Returns the sites with the largest predicted KL."""
    costs = {
        site.name: mean_and_error([site], number)[0]
        for site in profile.sites
        if site.operator in operators
    }
    known = [site for site in profile.sites if math.isfinite(costs.get(site.name, math.nan))]
    return sorted(known, key=lambda site: -costs[site.name])[:count]


def _measured_ratio(standout: Standout, measured: Mapping[str, Interval]) -> float:
    """Returns the lower bound of a site's KL over the middle of its peers'; 0 without a bound."""
    own = measured.get(standout.site.name)
    if own is not None and math.isnan(own.mean):
        return math.inf  # it was measured, and nothing of it is finite
    if own is None or not own.is_known:
        return 0.0
    low = own.low
    others = [measured[name].mean for name in standout.peers if name in measured]
    middle = float(np.median(others)) if others else standout.peers_nats
    return low / middle if middle > 0 else math.inf


def _share(names: list[str], costs: Mapping[str, float]) -> float:
    whole = sum(cost for cost in costs.values() if not math.isnan(cost))
    if math.isinf(whole):
        return float(all(math.isinf(costs[name]) for name in names))
    return sum(costs[name] for name in names) / whole if whole > 0 else math.nan


def _largest(costs: Mapping[str, float]) -> list[str]:
    """Returns the fewest sites that carry half of the whole."""
    overflowing = [name for name, cost in costs.items() if math.isinf(cost)]
    if overflowing:
        return overflowing
    finite = {name: cost for name, cost in costs.items() if math.isfinite(cost)}
    whole, found, carried = sum(finite.values()), [], 0.0
    for name in sorted(finite, key=lambda n: -finite[n]):
        if carried >= _SHARE * whole:
            break
        found.append(name)
        carried += finite[name]
    return found if whole > 0 else []
