"""The picture of a profile: predicted KL of every site, layers by modules, in colours of a log."""

import math
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from noisescope.analyse import mean_and_error
from noisescope.analyse.standouts import within_layer
from noisescope.profile import Array, Profile, SiteProfile
from noisescope.report.figures import number_text, per_cent
from noisescope.report.page.page import Picture
from noisescope.report.pictures.cells import label_of
from noisescope.report.pictures.paint import (
    FAINT,
    HEAT,
    INK,
    MISSING,
    PAPER,
    RAMP,
    STEPS,
    bare,
    drawable,
    new_figure,
    png_of,
    write_title,
)

_DECADES = 6  # below the largest, what is smaller is drawn alike
_COMMON = ("model.layers.*.", "transformer.h.*.", "gpt_neox.layers.*.")


def draw_profile(profile: Profile, model: str) -> bytes:
    """Draws the map, a row per region and a column per module and operator; returns a PNG."""
    figure, _ = _drawn(profile)
    write_title(figure.axes[0], model, _details(profile))
    return png_of(figure)


def sites_picture(profile: Profile) -> Picture:
    """Returns the same for the page."""
    figure, tips = _drawn(profile)
    whole = _total(profile)
    return Picture(
        "sites",
        "Every site, as predicted",
        "Predicted KL of noise at each site alone: a row per region, a column per module and "
        "operator, colours of a logarithm. Grey: no such site, or no gradient reaches it. "
        "Nothing of this was measured.",
        figure,
        tips,
        ("site", "region", "operator", "predicted KL, nats per token", "standard error",
         "share of all sites"),
        tuple(
            (s.name, s.region, s.operator, *mean_and_error([s]), _share(s, whole))
            for s in profile.sites
        ),
    )  # fmt: skip


def _drawn(profile: Profile) -> tuple[Figure, dict[str, str]]:
    """Returns the figure without a title, and what its cells say."""
    regions = list(dict.fromkeys(site.region for site in profile.sites))
    kinds = list(dict.fromkeys(kind_of(site) for site in profile.sites))
    figure = new_figure(max(8.0, 3.0 + 0.42 * len(kinds)), 3.2 + 0.24 * len(regions))
    axes: Any = figure.subplots()
    norm = _norm(_grid(profile, regions, kinds))
    axes.add_patch(Rectangle((-0.5, -0.5), len(kinds), len(regions), color=MISSING, linewidth=0))
    tips = _draw(axes, profile, norm, regions, kinds)
    if norm is not None:
        shown = ScalarMappable(norm, HEAT)
        bar = figure.colorbar(shown, ax=axes, aspect=22, pad=0.015, extend="min")
        bar.set_label("predicted KL, nats per token", fontsize=9, color=INK)
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        bar.ax.tick_params(labelsize=8, colors=FAINT, length=0, which="both")
        bar.outline.set_visible(False)
    axes.set_xlim(-0.5, len(kinds) - 0.5)
    axes.set_ylim(len(regions) - 0.5, -0.5)
    axes.set_xticks(range(len(kinds)), map(_label, kinds), rotation=90, fontsize=8)
    axes.set_yticks(range(len(regions)), [drawable(label_of(r)) for r in regions], fontsize=8)
    bare(axes)
    axes.set_ylabel("region", fontsize=9, color=INK)
    return figure, tips


def kind_of(site: SiteProfile) -> str:
    """Returns the module within its layer, the operator and, of several, the call."""
    call = f":{site.index}" if site.operator in ("matmul", "bmm") or site.index else ""
    module = within_layer(site) if site.region.isdigit() else site.module
    return f"{module}:{site.operator}{call}"


def _grid(profile: Profile, regions: list[str], kinds: list[str]) -> Array:
    """Returns the predicted KL by region and kind; NaN where there is no such site."""
    kl: Array = np.full((len(regions), len(kinds)), math.nan)
    for site in profile.sites:
        kl[regions.index(site.region), kinds.index(kind_of(site))] = mean_and_error([site])[0]
    return kl


def _norm(kl: Array) -> LogNorm | None:
    """Returns the scale of the colours; None where nothing is above zero."""
    positive = kl[np.isfinite(kl) & (kl > 0)]
    if not len(positive):
        return None
    top = float(positive.max())
    return LogNorm(min(max(float(positive.min()), top / 10**_DECADES), top / 10), top, clip=True)


def _draw(
    axes: Any, profile: Profile, norm: LogNorm | None, regions: list[str], kinds: list[str]
) -> dict[str, str]:
    """Draws a cell per site and returns what the cells say."""
    whole, tips = _total(profile), {}
    for number, site in enumerate(profile.sites):
        kl, error = mean_and_error([site])
        x, y = kinds.index(kind_of(site)), regions.index(site.region)
        colour = MISSING
        if norm is not None and math.isfinite(kl):
            share = float(norm(max(kl, float(norm.vmin or 0))))
            colour = RAMP[min(STEPS - 1, int(share * STEPS))]
        cell = Rectangle(
            (x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor=PAPER, linewidth=1.2,
            gid=f"site-{number}", clip_on=False,
        )  # fmt: skip
        axes.add_artist(cell)  # unlike add_patch it moves no limits, which takes long
        tips[f"site-{number}"] = (
            f"{site.name}\npredicted {number_text(kl)}"
            f"{f' ± {number_text(error)}' if math.isfinite(error) else ''} nats per token, "
            f"{per_cent(_share(site, whole))} of all sites"
        )
    return tips


def _total(profile: Profile) -> float:
    return mean_and_error(profile.sites)[0] if profile.sites else math.nan


def _share(site: SiteProfile, whole: float) -> float:
    return mean_and_error([site])[0] / whole if whole > 0 else math.nan


def _label(kind: str) -> str:
    for common in _COMMON:
        kind = kind.removeprefix(common)
    return drawable(kind)


def _details(profile: Profile) -> str:
    error_model = profile.error_models[0]
    scale = error_model.get("scale")
    noise = str(error_model["type"]) + (f" {scale:g}" if isinstance(scale, float) else "")
    return (
        f"predicted KL of noise at each site alone, {drawable(noise)}\n{len(profile.samples)} "
        f"samples, {profile.label_draws} label draws; grey: no such site, or no gradient"
    )
