"""Where injection is spent next: each choice reads a scene and returns conditions.

Prediction says where to look; random controls say whether it looked in the right place.
"""

from collections.abc import Sequence

import numpy as np

from noisescope.analyse import blame, candidates, worst_sites
from noisescope.diagnose.scene import Scene, region_label
from noisescope.measure import Condition
from noisescope.noise import site_word
from noisescope.study.steps import BLAMED, SITES, all_but, whole_name

_WORST, _CONTROLS = 3, 3
_MOST_STANDOUTS, _PEERS_EACH = 4, 3
_MOST_PARTS_LEFT_OUT = 12


def choose_sites(scene: Scene) -> list[Condition]:
    """Returns single sites: the predicted worst, those that stand out with peers, and controls.

    Inside the region that is measured to cost most its predicted worst are looked at, too: far off
    the line a prediction may rank regions wrongly. Without a prediction nothing is chosen: a
    handful of sites at random would tell nothing.
    """
    if scene.profile is None:
        return []
    # Inside experts a text may never come by, and a condition that never fires is an error.
    steady = {site.name for site in scene.profile.sites if site.rows == "token"}
    known = {site.name: site for site in scene.sites if site.name in steady}
    out = [s for s in candidates(scene.profile, scene.operators) if s.site.name in known]
    names = [site.name for site in worst_sites(scene.profile, scene.operators, len(known))]
    worst = [name for name in names if name in known][:_WORST]
    chosen = dict.fromkeys(worst)
    for standout in out[:_MOST_STANDOUTS]:
        chosen[standout.site.name] = None
        peers = [name for name in standout.peers if name in known]
        chosen |= dict.fromkeys(_some(peers, _PEERS_EACH, scene.seed, standout.site.name))
    inside = _worst_region(scene)
    chosen |= dict.fromkeys(
        [name for name in names if name in known and known[name].region == inside][:_WORST]
    )
    left = [name for name in names if name in known and name not in chosen]
    chosen |= dict.fromkeys(_some(left, _CONTROLS, scene.seed, SITES))
    return [scene.on_site(known[name]) for name in chosen]


def choose_parts(scene: Scene) -> list[Condition]:
    """Returns each region alone, all of them, and all but one: do their errors add up?

    Where there are many, those that are predicted to cost most are left out one at a time.
    """
    made = [scene.on_regions(region_label(region), [region]) for region in scene.regions]
    made.append(scene.on_regions(whole_name(scene.regions), scene.regions))
    for region in _costliest(scene, scene.regions, _MOST_PARTS_LEFT_OUT):
        others = [other for other in scene.regions if other != region]
        made.append(scene.on_regions(all_but(region_label(region)), others))
    return [condition for condition in made if condition is not None]


def choose_blamed(scene: Scene) -> list[Condition]:
    """Returns the blamed sites alone, and everything but them: are they enough, are they needed?"""
    if scene.profile is None:
        return []
    measured = {site.name: scene.kl(site.name) for site in scene.sites}
    known = {name: kl for name, kl in measured.items() if kl is not None}
    found = blame(scene.profile, known, scene.operators)
    names = {site.name for site in scene.sites}
    sites = [name for name in found.sites if name in names]
    if not sites:
        return []
    others = scene.all_but_sites(all_but(BLAMED), sites)
    return [scene.on_sites(BLAMED, sites), *([others] if others is not None else [])]


def _worst_region(scene: Scene) -> str | None:
    """Returns the region that costs most by itself as measured; None where none was measured."""
    costs = {region: scene.kl(region_label(region)) for region in scene.regions}
    known = {region: kl.mean for region, kl in costs.items() if kl is not None}
    return max(known, key=lambda region: known[region]) if known else None


def _costliest(scene: Scene, regions: Sequence[str], most: int) -> list[str]:
    """Returns the regions that are predicted to cost most, in running order."""
    if scene.profile is None or len(regions) <= most:
        return list(regions)[:most]
    costs: dict[str, float] = dict.fromkeys(regions, 0.0)
    for site in scene.profile.sites:
        if site.region in costs and site.operator in scene.operators:
            costs[site.region] += float(np.nan_to_num(site.kl_EKN[0].mean()))
    kept = sorted(regions, key=lambda region: -costs[region])[:most]
    return [region for region in regions if region in kept]


def _some(names: Sequence[str], count: int, seed: int, what: str) -> list[str]:
    """Returns some of the names at random, the same for the same seed."""
    generator = np.random.Generator(np.random.Philox(key=[seed, site_word(what)]))
    picked = generator.permutation(len(names))[:count]
    return [names[n] for n in sorted(picked)]
