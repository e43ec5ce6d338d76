"""Sites that cost far more than their peers: the same operator of the same module in other layers.

A head always costs more than a projection, in any model, and that is no defect. A projection that
costs a hundred times what it costs in the other layers is one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from noisescope.analyse.predict import mean_and_error
from noisescope.profile import Profile, SiteProfile

FACTOR = 10.0
FEWEST_PEERS = 2
_SIGMAS = 4.0
_LEAST_SIGMA = 0.25  # of log KL: layers of a healthy model differ by about that much


@dataclass(frozen=True)
class Standout:
    """A site that is predicted to cost far more than its peers.

    Attributes:
        site: Its profile.
        kl_nats: Its predicted KL, nats per token.
        peers_nats: The middle of its peers'.
        peers: Names of the peers.
    """

    site: SiteProfile
    kl_nats: float
    peers_nats: float
    peers: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """How many times what its peers cost."""
        return self.kl_nats / self.peers_nats if self.peers_nats > 0 else math.inf


def standouts(profile: Profile, number: int = 0, factor: float = FACTOR) -> tuple[Standout, ...]:
    """Returns the sites that stand out from their peers, the costliest first.

    A site stands out where its predicted KL is `factor` times the middle of its peers', and beyond
    four of their spreads, robustly measured on logarithms. Regions that a model has once (embed,
    norm, head) have no peers and are not judged.

    Args:
        profile: Of the model.
        number: Of the error model.
        factor: How many times the peers' KL is far more.

    Source: median absolute deviation scaled by 1.4826, Hampel 1974.
    """
    found = []
    for sites in peer_groups(profile).values():
        costs = {site.name: mean_and_error([site], number)[0] for site in sites}
        for site in sites:
            others = {n: c for n, c in costs.items() if n != site.name and math.isfinite(c)}
            if len(others) >= FEWEST_PEERS and _is_out(costs[site.name], others, factor):
                middle = float(np.median(list(others.values())))
                found.append(Standout(site, costs[site.name], middle, tuple(others)))
    return tuple(sorted(found, key=lambda s: -s.kl_nats))


def peer_groups(profile: Profile) -> Mapping[tuple[str, str, int], Sequence[SiteProfile]]:
    """Returns the sites of layers by module within the layer, operator and call."""
    groups: dict[tuple[str, str, int], list[SiteProfile]] = {}
    for site in profile.sites:
        if site.region.isdigit():
            groups.setdefault((within_layer(site), site.operator, site.index), []).append(site)
    return groups


def within_layer(site: SiteProfile) -> str:
    """Returns a module's name with its layer number replaced by `*`."""
    return ".".join("*" if part == site.region else part for part in site.module.split("."))


def _is_out(cost: float, others: Mapping[str, float], factor: float) -> bool:
    values = [value for value in others.values() if value > 0]
    if not values or not cost > 0:
        return bool(cost > 0 and not values)
    logs = np.log(values)
    middle = float(np.median(logs))
    sigma = max(_LEAST_SIGMA, 1.4826 * float(np.median(np.abs(logs - middle))))
    excess = math.log(cost) - middle
    return excess > math.log(factor) and excess > _SIGMAS * sigma
