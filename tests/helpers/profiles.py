"""Profiles made of chosen numbers, for tests of what is concluded from them."""

from collections.abc import Mapping, Sequence

import numpy as np

from noisescope.profile import POSITION_CLASSES, Profile, SiteProfile


def site_profile(
    name: str,
    kl: float | Sequence[Sequence[float]],
    region: str | None = None,
    channels: Sequence[float] = (1.0,),
    rows: str = "token",
    samples: int = 4,
    draws: int = 2,
) -> SiteProfile:
    """Returns the profile of `module:operator:index` with this KL, everywhere or [K, N]."""
    module, operator, index = name.rsplit(":", 2)
    if region is None:
        numbers = [part for part in module.split(".") if part.isdigit()]
        region = numbers[0] if numbers else "head"
    values = np.full((draws, samples), kl) if np.isscalar(kl) else np.asarray(kl, dtype=float)
    share = np.asarray(channels, dtype=float) / np.sum(channels)
    by_class = np.zeros((1, len(POSITION_CLASSES), len(share)))
    by_class[0, POSITION_CLASSES.index("answer")] = np.nan_to_num(values).mean() * share
    errors = 0.1 * by_class.sum(axis=1)
    return SiteProfile(region, module, operator, int(index), rows, values[None], by_class, errors)


def profile_of_sites(
    sites: Mapping[str, float] | Sequence[SiteProfile],
    scale: float = 0.05,
    draws: int = 2,
    samples: int = 4,
) -> Profile:
    """Returns a profile of relative error at this scale."""
    made = (
        tuple(site_profile(n, kl, draws=draws, samples=samples) for n, kl in sites.items())
        if isinstance(sites, Mapping)
        else tuple(sites)
    )
    samples = made[0].kl_EKN.shape[2]
    return Profile(
        sites=made,
        without=(),
        samples=tuple(str(n) for n in range(samples)),
        tokens=(8,) * samples,
        error_models=({"type": "RelativeGaussian", "scale": scale, "rounding": "nearest"},),
        estimator="signs",
        label_draws=made[0].kl_EKN.shape[1],
        seed=0,
    )


def layered(costs: Sequence[float], module: str = "mlp.down_proj", operator: str = "linear"):
    """Returns the KL of one site per layer, by name."""
    return {f"model.layers.{n}.{module}:{operator}:0": cost for n, cost in enumerate(costs)}
