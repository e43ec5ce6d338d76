"""Channels: the outliers of a site alone, and all its other channels alone.

Where no channel is an outlier, those that are predicted to cost most stand in: a channel need not
be large to be fragile.
"""

import numpy as np

from noisescope.analyse import mean_and_error
from noisescope.diagnose.scene import Scene
from noisescope.inject import Site
from noisescope.measure import Condition
from noisescope.study.steps import OTHERS, THESE, channels_of

_MOST_SITES = 3
_MOST_CHANNELS = 16
_TOP_SHARE = 0.5  # of a site's predicted KL, which its top channels carry


def choose_channels(scene: Scene) -> list[Condition]:
    """Returns, for a few sites, noise in some channels alone and in all others alone.

    Sites whose channels are outliers come first, then those where few channels are predicted to
    carry half of the KL.
    """
    if scene.profile is None:
        return []
    made = []
    for site, channels in _chosen(scene)[:_MOST_SITES]:
        made.append(scene.on_site(site))
        made.append(scene.on_site(site, channels_of(THESE, site.name), channels=channels))
        made.append(scene.on_site(site, channels_of(OTHERS, site.name), without_channels=channels))
    return made


def top_channels(scene: Scene, site: Site) -> tuple[int, ...]:
    """Returns the fewest channels that are predicted to carry half of a site's KL."""
    profile = scene.profile
    found = [s for s in profile.sites if s.name == site.name] if profile is not None else []
    if not found:
        return ()
    by_channel = found[0].channels_ECD[0].sum(axis=0)
    whole = float(by_channel.sum())
    if not whole > 0 or len(by_channel) < 2:
        return ()
    order = np.argsort(-by_channel, kind="stable")
    count = int(np.searchsorted(np.cumsum(by_channel[order]), _TOP_SHARE * whole)) + 1
    return tuple(sorted(int(channel) for channel in order[:count]))


def _chosen(scene: Scene) -> list[tuple[Site, tuple[int, ...]]]:
    profile = scene.profile
    if profile is None or "linear" not in scene.operators:
        return []
    # Inside experts a text may come by another expert at every call.
    steady = {site.name for site in profile.sites if site.rows == "token"}
    linear = (site for site in scene.sites if site.operator == "linear")
    sites = {site.name: site for site in linear if site.name in steady}
    costs = {s.name: mean_and_error([s])[0] for s in profile.sites if s.name in sites}
    order = sorted(costs, key=lambda name: -costs[name])
    with_outliers = [
        (sites[name], scene.outliers[sites[name].module][:_MOST_CHANNELS])
        for name in order
        if scene.outliers.get(sites[name].module)
    ]
    named = {site.name for site, _ in with_outliers}
    tops = [(sites[name], top_channels(scene, sites[name])) for name in order if name not in named]
    few = [(site, channels) for site, channels in tops if 0 < len(channels) <= _MOST_CHANNELS]
    return [*with_outliers, *few]
