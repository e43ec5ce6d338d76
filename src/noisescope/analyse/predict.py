"""Prediction beside measurement: what backward passes say a condition costs, and how far that held.

Sites add up to second order, so a condition's prediction is the sum over the sites it selects.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from noisescope.analyse.intervals import Interval
from noisescope.inject import Selection, Site
from noisescope.profile import Array, Profile, SiteProfile

# A ratio of measured to predicted within this factor is on the line.
TOLERANCE = 1.25
_FEWEST = 3


@dataclass(frozen=True)
class Prediction:
    """The predicted KL of a condition.

    Attributes:
        kl_nats: In nats per token, mean over samples; NaN where nothing can be predicted.
        error_nats: Its standard error over label draws; NaN for one draw.
        sites: Sites that were added up.
        unreached: Selected sites that no gradient reaches, which are left out of it.
    """

    kl_nats: float
    error_nats: float
    sites: int
    unreached: int = 0


NOTHING = Prediction(math.nan, math.nan, 0)


def predict(
    profile: Profile, selection: Selection, error_model: Mapping[str, Any] | None = None
) -> Prediction:
    """Returns the predicted KL of error at the sites of a selection.

    Args:
        profile: Of the model.
        selection: Which sites, and which of their channels.
        error_model: Type and parameters of what is added; None: the first that was profiled. One
            that differs from a profiled one by its scale alone is taken along the line s^2.

    Returns:
        NaN for an error model that was not profiled, and for single positions, of which only
        classes are told.
    """
    chosen = [site for site in profile.sites if _is_meant(selection, site)]
    given = _given(profile, chosen, error_model)
    if given is None or selection.positions is not None:
        return NOTHING
    chosen, numbers, factor = given
    unreached = sum(_is_meant_by_name(selection, name) for name in profile.without)
    if not chosen:
        return Prediction(math.nan if unreached else 0.0, math.nan, 0, unreached)
    if selection.channels is not None or selection.without_channels:
        mean, error = _of_channels(chosen, selection, numbers[0])
    else:
        mean, error = _mean_and_error(_total(chosen, numbers))
    return Prediction(factor * mean, factor * error, len(chosen), unreached)


def predict_samples(
    profile: Profile, selection: Selection, error_model: Mapping[str, Any] | None = None
) -> Mapping[str, float]:
    """Returns the predicted KL of each sample, mean over label draws; none where nothing can be.

    Arguments as for `predict`; channels and positions are not told by sample.
    """
    chosen = [site for site in profile.sites if _is_meant(selection, site)]
    given = _given(profile, chosen, error_model)
    is_part = selection.channels is not None or bool(selection.without_channels)
    if given is None or not given[0] or is_part or selection.positions is not None:
        return {}
    sites, numbers, factor = given
    means = factor * _total(sites, numbers).mean(axis=0)
    return dict(zip(profile.samples, means.tolist(), strict=True))


def mean_and_error(sites: Sequence[SiteProfile], number: int = 0) -> tuple[float, float]:
    """Returns the sum of sites' KL, mean over samples, and its standard error over label draws."""
    return _mean_and_error(_total(sites, [number] * len(sites)))


def _total(sites: Sequence[SiteProfile], numbers: Sequence[int]) -> Array:
    """Returns the KL of error at several sites together, by label draw and sample [K, N].

    Args:
        sites: The sites, at least one.
        numbers: Of each site's error model.
    """
    total_KN: Array = np.sum([s.kl_EKN[n] for s, n in zip(sites, numbers, strict=True)], axis=0)
    return total_KN


def _mean_and_error(total_KN: Array) -> tuple[float, float]:
    is_known = np.isfinite(total_KN).all(axis=0)
    if not is_known.any():
        return math.nan, math.nan
    draws_K = total_KN[:, is_known].mean(axis=1)
    K = len(draws_K)
    error = float(draws_K.std(ddof=1)) / math.sqrt(K) if K > 1 else math.nan
    return float(draws_K.mean()), error


def _given(
    profile: Profile, sites: Sequence[SiteProfile], error_model: Mapping[str, Any] | None
) -> tuple[list[SiteProfile], list[int], float] | None:
    """Returns the sites that get an error, its number at each, and the factor to another scale."""
    if error_model is None or "formats" not in error_model:
        number, factor = find_error_model(profile, error_model)
        return None if factor is None else (list(sites), [number] * len(sites), factor)
    formats = dict(error_model["formats"])  # of modules
    how = (error_model["operand"], error_model.get("rounding", "nearest"))
    known = {
        e["format"]: n
        for n, e in enumerate(profile.error_models)
        if "format" in e and (e["operand"], e["rounding"]) == how
    }
    reached = [site for site in sites if site.module in formats]
    if any(formats[site.module] not in known for site in reached):
        return None
    return reached, [known[formats[site.module]] for site in reached], 1.0


def find_error_model(
    profile: Profile, error_model: Mapping[str, Any] | None
) -> tuple[int, float | None]:
    """Returns the number of the profiled error model, and the factor to another scale of it."""
    if error_model is None:
        return 0, 1.0
    for number, known in enumerate(profile.error_models):
        if _but_scale(known) == _but_scale(error_model):
            if known.get("scale") == error_model.get("scale"):
                return number, 1.0
            if known.get("scale") and "scale" in error_model:
                return number, float(error_model["scale"] / known["scale"]) ** 2
    return 0, None


def _but_scale(error_model: Mapping[str, Any]) -> dict[str, Any]:
    # Noise that is rounded otherwise is the same noise; a format that is, is another error.
    same = ("scale",) if "format" in error_model else ("scale", "rounding")
    return {k: v for k, v in error_model.items() if k not in same}


def _is_meant(selection: Selection, site: SiteProfile) -> bool:
    layers = selection.layers
    if layers is not None and site.region not in {str(layer) for layer in layers}:
        return False
    return selection.includes(Site(site.region, site.module, site.operator, site.index))


def _is_meant_by_name(selection: Selection, name: str) -> bool:
    module, operator, index = name.rsplit(":", 2)
    parts = module.split(".")
    layers = selection.layers
    if layers is not None and not any(str(layer) in parts for layer in layers):
        return False
    return selection.includes(Site("", module, operator, int(index)))


def _of_channels(
    sites: Sequence[SiteProfile], selection: Selection, number: int
) -> tuple[float, float]:
    mean = error = 0.0
    for site in sites:
        by_channel_D = site.channels_ECD[number].sum(axis=0)
        is_chosen = np.zeros(len(by_channel_D), dtype=bool)
        if selection.channels is not None:
            is_chosen[[c for c in selection.channels if c < len(is_chosen)]] = True
        else:
            is_chosen[:] = True
            is_chosen[[c for c in selection.without_channels if c < len(is_chosen)]] = False
        mean += float(by_channel_D[is_chosen].sum())
        # Label draws are common to all channels: their errors may all point one way.
        error += float(site.channel_errors_ED[number][is_chosen].sum())
    return mean, error


@dataclass(frozen=True)
class Agreement:
    """How far prediction and measurement agree over conditions, on logarithms of both.

    Attributes:
        conditions: How many had both.
        slope: Of log measured on log predicted, with its interval; 1 is proportional.
        r2: Share of the variance of log measured that the line explains; 1 is best.
        rank: Spearman's correlation; 1 is best.
        ratio: Middle ratio of measured to predicted; 1 is on the line.
        departing: Conditions whose measured KL is off the line beyond chance and tolerance, with
            the ratio; above 1 errors compound, below they saturate or cancel.
    """

    conditions: int
    slope: Interval
    r2: float
    rank: float
    ratio: float
    departing: Mapping[str, float]


def agreement(
    predicted: Mapping[str, Prediction], measured: Mapping[str, Interval]
) -> Agreement | None:
    """Compares prediction and measurement; None where no condition has both.

    Left out is what a gradient does not wholly reach. With fewer than three conditions there is a
    ratio only, and the rest is NaN.

    Args:
        predicted: By condition.
        measured: By condition, in nats per token.

    Source: least squares on logarithms; Spearman 1904.
    """
    names = [
        n
        for n, p in predicted.items()
        if n in measured and p.kl_nats > 0 and not p.unreached and measured[n].mean > 0
    ]
    if not names:
        return None
    x = np.log([predicted[n].kl_nats for n in names])
    y = np.log([measured[n].mean for n in names])
    slope, r2, rank = Interval(math.nan, math.nan, math.nan, math.nan, False), math.nan, math.nan
    if len(names) >= _FEWEST and np.ptp(x) > 0 and np.ptp(y) > 0:
        fit = stats.linregress(x, y)
        half = float(stats.t.ppf(0.975, len(names) - 2)) * float(fit.stderr)
        mean = float(fit.slope)
        slope = Interval(mean, mean - half, mean + half, float(len(names) - 2), False)
        r2, rank = float(fit.rvalue) ** 2, float(stats.spearmanr(x, y).statistic)
    departing = {
        n: measured[n].mean / predicted[n].kl_nats
        for n in names
        if departs(predicted[n], measured[n])
    }
    ratio = float(np.median(np.exp(y - x)))
    return Agreement(len(names), slope, r2, rank, ratio, departing)


def departs(predicted: Prediction, measured: Interval, tolerance: float = TOLERANCE) -> bool:
    """Tells whether a measured KL is off the line beyond chance and tolerance.

    Two standard errors of the prediction are granted on top of the interval of the measurement.
    """
    if not measured.is_known or not predicted.kl_nats > 0:
        return False
    slack = 0.0 if math.isnan(predicted.error_nats) else 2 * predicted.error_nats
    high = tolerance * (predicted.kl_nats + slack)
    low = max(0.0, predicted.kl_nats - slack) / tolerance
    return measured.low > high or measured.high < low


def by_group(
    profile: Profile, key: Callable[[SiteProfile], str], number: int = 0
) -> dict[str, Prediction]:
    """Returns the predicted KL of groups of sites, such as layers or operators."""
    groups: dict[str, list[SiteProfile]] = {}
    for site in profile.sites:
        groups.setdefault(key(site), []).append(site)
    return {
        name: Prediction(*mean_and_error(sites, number), len(sites))
        for name, sites in groups.items()
    }
