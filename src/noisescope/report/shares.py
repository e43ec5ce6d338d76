"""Shares of a site's predicted KL by class of positions and by channel."""

import math

import numpy as np

from noisescope.profile import POSITION_CLASSES, Array, Profile, SiteProfile


def position_shares(site: SiteProfile, number: int = 0) -> dict[str, float]:
    """Returns the share of a site's predicted KL by class of positions; NaN where there is none."""
    by_class_C = site.channels_ECD[number].sum(axis=1)
    whole = float(by_class_C.sum())
    return {
        name: float(kl) / whole if whole > 0 else math.nan
        for name, kl in zip(POSITION_CLASSES, by_class_C, strict=True)
    }


def channel_kls(site: SiteProfile, number: int = 0) -> Array:
    """Returns the predicted KL of each channel of a site, over all positions."""
    kl_D: Array = np.asarray(site.channels_ECD[number].sum(axis=0))
    return kl_D


def top_channels(site: SiteProfile, count: int, number: int = 0) -> list[tuple[int, float, float]]:
    """Returns the channels with the largest predicted KL: number, KL, and share of the site's."""
    kl_D = channel_kls(site, number)
    whole = float(kl_D.sum())
    order = np.argsort(-kl_D, kind="stable")[:count]
    share = 1 / whole if whole > 0 else math.nan
    return [(int(c), float(kl_D[c]), float(kl_D[c]) * share) for c in order]


def predicted_share(profile: Profile | None, module: str, channel: int) -> tuple[float, float]:
    """Returns the predicted KL of a channel of a module's linear output, and its share of it.

    NaN where the module is no linear site, such as a whole layer, or nothing was predicted.
    """
    sites = profile.sites if profile is not None else ()
    found = [s for s in sites if s.module == module and s.operator == "linear"]
    if not found or channel >= found[0].channels_ECD.shape[-1]:
        return math.nan, math.nan
    by_channel = channel_kls(found[0])
    whole = float(by_channel.sum())
    kl = float(by_channel[channel])
    return kl, kl / whole if whole > 0 else math.nan
