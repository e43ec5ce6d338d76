"""What the terminal shows of a profile: totals, the worst sites, where and in which channels."""

import math

from rich.console import Console

from noisescope.analyse import mean_and_error
from noisescope.profile import POSITION_CLASSES, Profile, SiteProfile
from noisescope.report.figures import counted, number_text, per_cent
from noisescope.report.shares import position_shares, top_channels
from noisescope.report.table import Columns, fitting, plain, plain_table, width_of

_WORST = 15
_CHANNELS = 3
_MOST_NAMED = 3


def print_profile(console: Console, profile: Profile, model: str) -> None:
    """Prints the map of a profile: nothing was injected, all of it is predicted."""
    console.print(plain(_headline(profile, model)))
    console.print(plain_table(total_columns(profile, console.width)))
    console.print(plain_table(worst_columns(profile, console.width)))
    for line in _lines(profile):
        console.print(plain(line))


def total_columns(profile: Profile, width: int) -> Columns:
    """Returns predicted KL per region and operator, nats per token, with standard errors."""
    regions = [*dict.fromkeys(site.region for site in profile.sites), "total"]
    operators = [*dict.fromkeys(site.operator for site in profile.sites), "total"]
    full: Columns = {"region": regions}
    short: Columns = {"region": regions}
    for operator in operators:
        cells = [_total(profile, region, operator) for region in regions]
        full[operator] = [_with_error(kl, error) for kl, error in cells]
        short[operator] = ["" if math.isnan(kl) else number_text(kl) for kl, _ in cells]
    # All cells with their errors or none, and then the operators from the first on.
    left_out = [(operator, None) for operator in operators[:-1]]
    return fitting(full if width_of(full) <= width else short, left_out, width)


def worst_columns(profile: Profile, width: int) -> Columns:
    """Returns the sites with the largest predicted KL: share, positions, top channels."""
    whole, _ = mean_and_error(profile.sites) if profile.sites else (math.nan, math.nan)
    found = sorted(profile.sites, key=lambda site: -_finite(mean_and_error([site])[0]))[:_WORST]
    cells = [mean_and_error([site]) for site in found]
    places = [position_shares(site) for site in found]
    columns: Columns = {
        "worst sites": [site.name for site in found],
        "KL, nats/token": [_with_error(kl, error) for kl, error in cells],
        "share": [per_cent(kl / whole if whole > 0 else math.nan) for kl, _ in cells],
    }
    for name in POSITION_CLASSES:
        if name != "unknown" or any(place[name] > 0 for place in places):
            columns[name] = [per_cent(place[name]) for place in places]
    columns["channels"] = [_channels(site) for site in found]
    narrower: list[tuple[str, list[str] | None]] = [
        ("KL, nats/token", [number_text(kl) for kl, _ in cells]),
        ("channels", [_channels(site, 1) for site in found]),
        ("first", None),
        ("channels", None),
        ("prompt", None),
    ]
    return fitting(columns, narrower, width)


def _headline(profile: Profile, model: str) -> str:
    error_model = dict(profile.error_models[0])
    return (
        f"{model}: predicted KL of {error_model.pop('type')} "
        f"{error_model.get('scale', math.nan):g} at each site alone, nats per token; "
        f"{counted(len(profile.samples), 'sample')}, {counted(profile.label_draws, 'label draw')}, "
        f"estimator {profile.estimator}, seed {profile.seed}; nothing was injected"
    )


def _lines(profile: Profile) -> list[str]:
    lines = ["share of all sites; first, prompt and answer: shares of the site by position"]
    if profile.label_draws == 1:
        lines.append("one label draw gives no standard errors: --label-draws 4 does")
    unreached = profile.without
    if unreached:
        named = ", ".join(unreached[:_MOST_NAMED])
        more = len(unreached) - _MOST_NAMED
        lines.append(
            f"no gradient reaches {counted(len(unreached), 'site')}, of which nothing is "
            f"predicted: {named}{f' and {more} more' if more > 0 else ''}"
        )
    return lines


def _total(profile: Profile, region: str, operator: str) -> tuple[float, float]:
    here = [
        site
        for site in profile.sites
        if region in (site.region, "total") and operator in (site.operator, "total")
    ]
    return mean_and_error(here) if here else (math.nan, math.nan)


def _with_error(kl: float, error: float) -> str:
    if math.isnan(kl):
        return ""
    return number_text(kl) if math.isnan(error) else f"{number_text(kl)} ±{number_text(error)}"


def _channels(site: SiteProfile, count: int = _CHANNELS) -> str:
    return ", ".join(f"{channel} ({per_cent(s)})" for channel, _, s in top_channels(site, count))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
