"""Predictions of single sites beside what injection at each of them measures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noisescope.inject import Session, make_selection
from noisescope.measure.profiling import ProfileOptions, Texts, make_profile
from noisescope.measure.score import make_sequences, score_riders
from noisescope.measure.sharing import Rider
from noisescope.measure.taken_apart import TakenApart
from noisescope.noise import ErrorModel
from noisescope.profile import Profile, SiteProfile

Array = NDArray[np.float64]


def texts_of(ids: Sequence[Sequence[int]], prompt: int = 1) -> Texts:
    """Returns texts that are scored from their token `prompt` on."""
    names = tuple(f"s{n}" for n in range(len(ids)))
    return Texts(names, tuple(t[:prompt] for t in ids), tuple(t[prompt:] for t in ids))


def site_kl(profile: Profile) -> Array:
    """Returns the predicted KL of every site, mean over draws and samples, first error model."""
    return np.array([np.nanmean(site.kl_EKN[0]) for site in profile.sites])


@dataclass(frozen=True)
class Compared:
    """Sites with both figures: nats per scored token, mean over samples.

    Attributes:
        sites: The sites.
        predicted: Mean over label draws.
        measured: Mean over draws of noise.
        errors: Standard errors of `measured`.
    """

    sites: tuple[SiteProfile, ...]
    predicted: Array
    measured: Array
    errors: Array

    @property
    def ratios(self) -> Array:
        """Predicted over measured; NaN where nothing is measured."""
        return self.predicted / np.where(self.measured > 0, self.measured, np.nan)

    @property
    def kinds(self) -> dict[str, float]:
        """The median ratio of every kind of operator; scores and context are two."""
        by_kind: dict[str, list[float]] = {}
        for site, ratio in zip(self.sites, self.ratios, strict=True):
            is_product = site.operator in ("matmul", "bmm")
            kind = f"{site.operator} {site.index % 2}" if is_product else site.operator
            by_kind.setdefault(kind, []).append(ratio)
        return {kind: float(np.median(found)) for kind, found in by_kind.items()}


def injected(
    apart: TakenApart,
    texts: Texts,
    sites: Sequence[str],
    error_model: ErrorModel,
    draws: int,
    rows: int = 64,
    seed: int = 5,
) -> Array:
    """Returns the measured KL [sites, draws], mean over samples."""
    sequences = make_sequences(texts.names, texts.prompts, texts.answers, torch.device("cpu"))
    riders = []
    for name in sites:
        selection = make_selection(sites=(name,))
        session = Session(apart.model, error_model, selection, seed=seed, attest=False)
        riders += [Rider(name, session, draw) for draw in range(draws)]
    _, *noisy = score_riders(apart, sequences, riders, rows=rows)
    means = [np.mean([score.kl_nats for score in row]) for row in noisy]
    return np.array(means).reshape(len(sites), draws)


def compare(
    model: Any,
    texts: Texts,
    error_model: ErrorModel,
    *,
    label_draws: int,
    draws: int,
    operators: tuple[str, ...] | None = None,
    step: int = 1,
    rows: int = 64,
) -> Compared:
    """Predicts every site, injects at each (or each `step`-th), and returns both."""
    apart = TakenApart(model)
    options = ProfileOptions(label_draws=label_draws, operators=operators)
    profile = make_profile(apart, texts, [error_model], options=options)
    found = injected(
        apart, texts, [s.name for s in profile.sites[::step]], error_model, draws, rows
    )
    return Compared(
        profile.sites[::step],
        site_kl(profile)[::step],
        found.mean(axis=1),
        found.std(axis=1, ddof=1) / draws**0.5,
    )
