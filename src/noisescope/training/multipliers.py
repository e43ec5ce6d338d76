"""Less noise for sensitive layers: multipliers of a noise level, from a study's map.

What a layer costs was predicted by backward passes (the study's profile); nothing is measured here.
"""

import math
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from noisescope.analyse.predict import by_group
from noisescope.errors import InputError
from noisescope.profile import Profile
from noisescope.study.kept_profile import PROFILE, read_profile


def layer_multipliers(
    study: str | PathLike[str] | Profile,
    *,
    operators: str | Iterable[str] | None = None,
    power: float = 0.5,
    least: float = 0.25,
    most: float = 4.0,
) -> dict[str, float]:
    """Returns a multiplier of the noise for each layer of a studied model.

    Layer l gets (G / KL_l)^power, clipped to least..most; KL_l is the predicted KL of the study's
    error at all sites of the layer, G the geometric mean of KL_l over the layers. As KL grows with
    the square of the noise, power 1/2 makes every layer that is not clipped cost the same, and the
    multipliers have geometric mean 1. A layer of which the study predicts 0 gets `most`.

    Args:
        study: Directory of a study with a profile (a diagnosis writes one), or the profile.
        operators: Only sites of these count, such as ``"rms_norm"``; None: all.
        power: At least 0; 0 gives 1 everywhere.
        least: The least multiplier, above 0.
        most: The largest, at least `least`.

    Returns:
        By layer number, as text: ``{"0": 1.9, "1": 0.7}``, as `weight_noise` takes them.

    Raises:
        InputError: No profile there, no layers in it, or a number that cannot be.

    Source: KL = s^2/2 sum y^2 E[g^2] to second order, so KL_l(m s) = m^2 KL_l(s).
    """
    if not (power >= 0 and 0 < least <= most and math.isfinite(most)):
        raise InputError(
            f"power {power!r}, least {least!r}, most {most!r}: power of at least 0 and "
            "0 < least <= most are needed"
        )
    costs = _layer_costs(_profile_of(study), operators)
    positive = [math.log(kl) for kl in costs.values() if kl > 0]
    if not positive:
        raise InputError("no layer of the study costs anything: there is nothing to go by")
    mean = math.exp(sum(positive) / len(positive))
    return {
        layer: min(most, max(least, (mean / kl) ** power)) if kl > 0 else most
        for layer, kl in costs.items()
    }


def _profile_of(study: str | PathLike[str] | Profile) -> Profile:
    if isinstance(study, Profile):
        return study
    directory = Path(study)
    profile = read_profile(directory) if directory.is_dir() else None
    if profile is None:
        raise InputError(
            f"{directory} has no {PROFILE}: name the directory of a finished study, such as "
            "'noisescope diagnose ... --out DIR' makes"
        )
    return profile


def _layer_costs(profile: Profile, operators: str | Iterable[str] | None) -> dict[str, float]:
    wanted = (operators,) if isinstance(operators, str) else operators and tuple(operators)
    groups = by_group(profile, lambda site: f"{site.region}|{site.operator}")
    costs: dict[str, float] = {}
    for name, prediction in groups.items():
        region, operator = name.split("|")
        if region.isdigit() and (wanted is None or operator in wanted):
            costs[region] = costs.get(region, 0.0) + prediction.kl_nats
    if not costs:
        seen = ", ".join(dict.fromkeys(site.operator for site in profile.sites)) or "none"
        raise InputError(
            f"the study's map has no layer with operators {wanted or 'at all'}: it has {seen}"
        )
    return dict(sorted(costs.items(), key=lambda entry: int(entry[0])))
