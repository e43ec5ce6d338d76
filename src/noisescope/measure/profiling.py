"""Profiles a model: backward passes over a task's samples until the standard error is small.

Every pass adds to sums; no activation outlives its pass. See `gradients` for one batch.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from noisescope.errors import InputError
from noisescope.inject.effects import SiteEffect
from noisescope.inject.operators import check_operators
from noisescope.inject.sites import SiteKey
from noisescope.measure.gradients import Effects
from noisescope.measure.passes import Passes, PassResult, ProfilePass, Texts
from noisescope.measure.seeds import ESTIMATORS, Estimator
from noisescope.measure.taken_apart import TakenApart
from noisescope.noise import ErrorModel
from noisescope.profile import Array, Profile, SiteProfile

# Enough for a good batch, and not too many to be shared among workers.
SAMPLES_PER_PASS = 32
_FEWEST_DRAWS = 3
# Each holds a gradient of every scored token until it goes back.
_MOST_AT_ONCE = 8

Tell = Callable[[str, float], None]
RunPasses = Callable[[Sequence[ProfilePass]], Iterable[PassResult]]


@dataclass(frozen=True)
class ProfileOptions:
    """How far a profile goes.

    Attributes:
        label_error: Relative standard error that is small enough, for the middle site of all.
        label_draws: Draws of seeds; None: from 3 on, as many more as the error asks for, but at
            most twice as many at a time, up to `most_draws`.
        most_draws: The most draws.
        estimator: See `draw_seeds`.
        operators: Operators whose sites are predicted; None: all. Without those of attention it
            stays fused, and a pass takes less time.
    """

    label_error: float = 0.05
    label_draws: int | None = None
    most_draws: int = 64
    estimator: Estimator = "signs"
    operators: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.label_draws is not None and self.label_draws < 1:
            raise InputError(f"label draws {self.label_draws}: at least 1 is needed; try 4")
        if self.most_draws < _FEWEST_DRAWS:
            raise InputError(f"most draws {self.most_draws}: at least {_FEWEST_DRAWS} are needed")
        if not self.label_error > 0:
            raise InputError(f"label error {self.label_error!r}: more than 0 is needed; try 0.05")
        if self.estimator not in ESTIMATORS:
            raise InputError(
                f"estimator {self.estimator!r}: {' or '.join(map(repr, ESTIMATORS))} is needed"
            )
        check_operators(self.operators)


def make_profile(
    apart: TakenApart,
    texts: Texts,
    error_models: Sequence[ErrorModel],
    *,
    seed: int = 0,
    options: ProfileOptions | None = None,
    context_length: int | None = None,
    gib: float = 1.0,
    most_rows: int | None = None,
    tell: Tell | None = None,
) -> Profile:
    """Returns the predicted KL of error at every site, alone, in nats per scored token.

    Args:
        apart: The model.
        texts: What it runs over.
        error_models: What would be added.
        seed: First key word of the random numbers.
        options: How far to go.
        context_length: The most tokens that a text may have.
        gib: Memory that a pass may take beside the model.
        most_rows: The most rows of a pass.
        tell: Told what runs, and the share that is done.

    Raises:
        InputError: An error model whose mean square is not known, or memory for not even one row.

    Source: KL(clean || noisy) = 1/2 sum_i m_i E[g_i^2] to second order; see `inject.effects`.
    """
    passes = Passes(apart, gib, context_length, most_rows)
    return profile_by(in_process(passes, tell), texts, error_models, seed=seed, options=options)


def in_process(passes: Passes, tell: Tell | None = None) -> RunPasses:
    """Returns what runs passes here, one after the other.

    Args:
        passes: Runs one.
        tell: Told what runs, and the share that is done.
    """

    def run(asked: Sequence[ProfilePass]) -> Iterator[PassResult]:
        for one in asked:
            yield passes.run(one, telling(one, tell))

    return run


def telling(asked: ProfilePass, tell: Tell | None) -> Callable[[float], None] | None:
    """Returns what is told the share of a pass that is done, and passes it on with its name."""
    if tell is None:
        return None
    return functools.partial(tell, f"predicting, draws {asked.draws[0] + 1}-{asked.draws[-1] + 1}")


def profile_by(
    run: RunPasses,
    texts: Texts,
    error_models: Sequence[ErrorModel],
    *,
    seed: int = 0,
    options: ProfileOptions | None = None,
) -> Profile:
    """Returns a profile of passes that somebody runs; see `make_profile`.

    Args:
        run: Runs passes and yields the result of each once, in any order.
        texts: What they run over.
        error_models: What would be added.
        seed: First key word of the random numbers.
        options: How far to go.

    Raises:
        InputError: As in `make_profile`.
    """
    options = options or ProfileOptions()
    sums = _Sums(tuple(len(answer) for answer in texts.answers), len(error_models))
    seen, boundaries = dict[SiteKey, None](), dict[SiteKey, None]()
    done, wanted = 0, options.label_draws or _FEWEST_DRAWS
    while True:
        while done < wanted:
            draws = range(done, min(wanted, done + _MOST_AT_ONCE))
            asked = _passes(texts, draws, seed, tuple(error_models), options)
            for places, result in _in_order(asked, run):
                for part in result.parts:
                    sums.add([places[n] for n in part.samples], draws, part.effects)
                seen |= dict.fromkeys(result.seen)
                boundaries |= dict.fromkeys(result.boundaries)
            done = draws.stop
        if options.label_draws is not None:
            break
        error = sums.relative_error() / options.label_error
        if error <= 1 or done >= options.most_draws:
            break
        wanted = min(options.most_draws, 2 * done, 1 + int(done * error**2))
    return Profile(
        sites=sums.site_profiles(seen),
        without=tuple(_name(key) for key in seen if not sums.has(key)),
        samples=texts.names,
        tokens=tuple(len(answer) for answer in texts.answers),
        error_models=tuple(_error_json(error_model) for error_model in error_models),
        estimator=options.estimator,
        label_draws=done,
        seed=seed,
        residuals=sums.site_profiles(boundaries),
    )


def _passes(
    texts: Texts,
    draws: range,
    seed: int,
    error_models: tuple[ErrorModel, ...],
    options: ProfileOptions,
) -> list[tuple[ProfilePass, list[int]]]:
    """Returns the passes of some draws over all samples, with the samples' places in the texts.

    Neighbours in length go together: they pad each other little.
    """
    pairs = zip(texts.prompts, texts.answers, strict=True)
    lengths = [len(prompt) + len(answer) for prompt, answer in pairs]
    order = sorted(range(len(lengths)), key=lambda n: lengths[n])
    order = [n for n in order if len(texts.answers[n])]
    passes = []
    for begin in range(0, len(order), SAMPLES_PER_PASS):
        places = order[begin : begin + SAMPLES_PER_PASS]
        some = Texts(
            tuple(texts.names[n] for n in places),
            tuple(texts.prompts[n] for n in places),
            tuple(texts.answers[n] for n in places),
        )
        name = f"draws {draws.start + 1}-{draws.stop}, samples {begin} to {begin + len(places) - 1}"
        made = ProfilePass(
            name, some, tuple(draws), seed, error_models, options.estimator, options.operators
        )
        passes.append((made, places))
    return passes


def _in_order(
    asked: Sequence[tuple[ProfilePass, list[int]]], run: RunPasses
) -> Iterator[tuple[list[int], PassResult]]:
    """Yields the results in the order of their passes: sums depend on their order.

    Raises:
        ValueError: A result lacks, or was not asked for.
    """
    waiting = {one.name: places for one, places in asked}
    order, arrived = list(waiting), dict[str, PassResult]()
    for result in run([one for one, _ in asked]):
        if result.name not in waiting or result.name in arrived:
            raise ValueError(f"the result of pass {result.name!r} was not asked for")
        arrived[result.name] = result
        while order and order[0] in arrived:
            name = order.pop(0)
            yield waiting[name], arrived[name]
            arrived[name] = replace(arrived[name], parts=())  # its tensors are added up
    if order:
        raise ValueError(f"{len(order)} passes were left out, first {order[0]!r}")


@dataclass
class _SiteSums:
    """Sums at one site so far; the squares are over passes, for the standard error."""

    rows: str
    kl_EN: list[Array] = field(default_factory=list)  # by draw
    channels_ECD: Array | None = None
    squares_ED: Array | None = None
    passes: int = 0


class _Sums:
    """Adds up what passes leave, in float64."""

    def __init__(self, tokens: tuple[int, ...], error_models: int) -> None:
        # Nothing is known where nothing is scored; at a site that a sample's pass never reaches,
        # error does nothing.
        none_N = np.where(np.array(tokens) > 0, 0.0, np.nan)
        self._none_EN = np.broadcast_to(none_N, (error_models, len(tokens)))
        self._sites: dict[SiteKey, _SiteSums] = {}
        self._weight = 0  # samples times draws
        self._broken: dict[SiteKey, int] = {}  # of these, what channels could not be told of

    def add(self, some: Sequence[int], draws: range, effects: Sequence[Effects]) -> None:
        """Adds the effects of a batch of these samples, one entry per draw."""
        for draw, found in zip(draws, effects, strict=True):
            self._weight += len(some)
            for key, effect in found.items():
                self._add(key, some, draw, effect)

    def _add(self, key: SiteKey, some: Sequence[int], draw: int, effect: SiteEffect) -> None:
        held = self._sites.setdefault(key, _SiteSums(effect.rows))
        while len(held.kl_EN) <= draw:
            held.kl_EN.append(self._none_EN.copy())
        held.kl_EN[draw][:, list(some)] = effect.nats_EB.cpu().numpy()
        channels = effect.by_channel_ECD.double().cpu().numpy()
        if not np.isfinite(channels).all():  # a broken sample must not take the others with it
            self._broken[key] = self._broken.get(key, 0) + len(some)
            channels = np.zeros_like(channels)
        mean_square = (channels.sum(axis=1) / len(some)) ** 2
        if held.channels_ECD is None or held.squares_ED is None:
            held.channels_ECD, held.squares_ED = channels, mean_square * len(some)
        elif held.channels_ECD.shape == channels.shape:
            held.channels_ECD = held.channels_ECD + channels
            held.squares_ED = held.squares_ED + mean_square * len(some)
        held.passes += 1

    def has(self, key: SiteKey) -> bool:
        """Tells whether a gradient has reached a site."""
        return key in self._sites

    def relative_error(self) -> float:
        """Returns the relative standard error over draws, of the middle site; NaN for one draw."""
        found = [
            relative_error(_mean_over_samples(np.stack(site.kl_EN, axis=1)[0]))
            for site in self._sites.values()
        ]
        finite = [value for value in found if math.isfinite(value)]
        return float(np.median(finite)) if finite else 0.0

    def site_profiles(self, order: Iterable[SiteKey]) -> tuple[SiteProfile, ...]:
        """Returns the means over samples and draws, in this order of sites."""
        return tuple(self._profile(key, self._sites[key]) for key in order if key in self._sites)

    def _profile(self, key: SiteKey, site: _SiteSums) -> SiteProfile:
        if site.channels_ECD is None or site.squares_ED is None:
            raise ValueError(f"no pass reached {_name(key)}")
        weight = self._weight - self._broken.get(key, 0) or math.nan
        mean_ECD = site.channels_ECD / weight
        spread = site.squares_ED / weight - mean_ECD.sum(axis=1) ** 2
        unknown = np.full_like(spread, np.nan)
        error_ED = (
            np.sqrt(np.maximum(spread, 0) / (site.passes - 1)) if site.passes > 1 else unknown
        )
        return SiteProfile(*key, site.rows, np.stack(site.kl_EN, axis=1), mean_ECD, error_ED)


def _mean_over_samples(kl_KN: Array) -> Array:
    """Returns the mean over the samples that have tokens and are finite, by draw."""
    is_known = np.isfinite(kl_KN).all(axis=0)
    mean_K: Array = kl_KN[:, is_known].mean(axis=1) if is_known.any() else kl_KN[:, 0]
    return mean_K


def relative_error(draws_K: Array) -> float:
    """Returns the standard error of a mean over draws, as a share of it; NaN for one draw or 0."""
    mean = float(draws_K.mean())
    if len(draws_K) < 2 or not mean > 0:
        return math.nan
    return float(draws_K.std(ddof=1)) / math.sqrt(len(draws_K)) / mean


def _name(key: SiteKey) -> str:
    _, module, operator, index = key
    return f"{module}:{operator}:{index}"


def _error_json(error_model: Any) -> Mapping[str, Any]:
    return {"type": type(error_model).__name__, **asdict(error_model)}
