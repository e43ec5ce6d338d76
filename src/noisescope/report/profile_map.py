"""The picture of a profile: predicted KL of every site, layers by modules, in colours of a log."""

import math
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm

from noisescope.analyse import mean_and_error
from noisescope.analyse.standouts import within_layer
from noisescope.profile import Array, Profile, SiteProfile
from noisescope.report.paint import (
    COLOURS,
    FAINT,
    INK,
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
    regions = list(dict.fromkeys(site.region for site in profile.sites))
    kinds = list(dict.fromkeys(kind_of(site) for site in profile.sites))
    kl = _grid(profile, regions, kinds)
    figure = new_figure(max(8.0, 3.0 + 0.42 * len(kinds)), 3.9 + 0.24 * len(regions))
    axes: Any = figure.subplots()
    image = _draw(axes, kl)
    if image is not None:
        bar = figure.colorbar(image, ax=axes, aspect=22, pad=0.015, extend="min")
        bar.set_label("predicted KL, nats per token", fontsize=9, color=INK)
        bar.ax.tick_params(labelsize=8, colors=FAINT, length=0, which="both")
        bar.outline.set_visible(False)
    axes.set_xticks(range(len(kinds)), map(_label, kinds), rotation=90, fontsize=8)
    axes.set_yticks(range(len(regions)), map(drawable, regions), fontsize=8)
    axes.set_xticks(np.arange(len(kinds) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(regions) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    bare(axes)
    axes.set_ylabel("region", fontsize=9, color=INK)
    write_title(axes, model, _details(profile))
    return png_of(figure)


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


def _draw(axes: Any, kl: Array) -> Any:
    """Draws the cells and returns their image; None where nothing is above zero."""
    positive = kl[np.isfinite(kl) & (kl > 0)]
    colours = COLOURS.with_extremes(bad="#f1f1f1")
    if not len(positive):
        axes.imshow(np.full(kl.shape, math.nan), cmap=colours, aspect="auto")
        return None
    top = float(positive.max())
    low = min(max(float(positive.min()), top / 10**_DECADES), top / 10)
    shown = np.where(np.isfinite(kl), np.maximum(kl, low), math.nan)
    return axes.imshow(shown, cmap=colours, norm=LogNorm(low, top), aspect="auto")


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
