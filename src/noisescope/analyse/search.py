"""Finds the worst of many conditions on a part of the evaluations: sequential halving.

All that are still in meet the same questions and the same noise, so what they share cancels; the
worse half stays in, until two are left. The questions that noise can move most come first. Which
round comes next is a function of the losses known so far, so a search that is stopped goes on where
it was. Nothing is drawn at random.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from noisescope.analyse.intervals import is_skewed
from noisescope.analyse.moments import moments_of
from noisescope.analyse.significance import mean_test_p
from noisescope.errors import InputError

SHARE = 0.4
_LEVEL = 0.05
_LEAST_NAMES = 3
_LEAST_SAMPLES = 20
_RESERVE = 5  # every fifth sample is held back

Losses = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Round:
    """What to evaluate next.

    Attributes:
        number: From 1 on.
        names: The conditions to evaluate, each on every one of the samples.
        samples: The samples that at least one of them lacks, in the order they are met.
        is_reserve: Whether these are the samples held back for the last two.
    """

    number: int
    names: tuple[str, ...]
    samples: tuple[str, ...]
    is_reserve: bool = False


@dataclass(frozen=True)
class Winner:
    """The worst condition, as the search names it.

    Attributes:
        name: The condition with the larger loss of the last two.
        runner_up: The other; None where there is one condition only.
        samples: The samples that chose between the two.
        reserve: The samples that chose nothing, on which the last two were evaluated as well.
        loss: The winner's mean loss on the reserve, or on all samples without one.
        runner_up_loss: The other's, likewise; NaN where there is none.
        is_full_sweep: Whether every condition met every sample, there being too few of either.
        caution: Why the name may be wrong, as a sentence; empty where the two are clearly apart.
    """

    name: str
    runner_up: str | None
    samples: tuple[str, ...]
    reserve: tuple[str, ...]
    loss: float
    runner_up_loss: float
    is_full_sweep: bool
    caution: str = ""


def next_round(
    names: Sequence[str],
    losses: Losses,
    samples: Sequence[str],
    share: float = SHARE,
    priority: Mapping[str, float] | None = None,
) -> Round | Winner:
    """Returns what to evaluate next, or the winner where nothing is left to evaluate.

    Of L conditions and N samples at most `share` of the L x N evaluations are asked for, the
    reserve of N // 5 samples for the last two included. Fewer than 3 conditions or 20 samples, or a
    share too small for one sample each, are swept in full. A loss that is not finite counts as the
    largest.

    The clean model's own NLL is a priority that costs no evaluation. Noise that changes the logits
    by d costs KL = log E[e^d] - E[d], about Var(d) / 2, both under the clean model's distribution:
    next to nothing where that is sure of one token. Few questions may carry nearly all the KL, and
    in this order the first round, which parts most conditions, meets more of them. The reserve is
    chosen without it, so the last two's losses there are those of the task's samples.

    Args:
        names: The conditions, all of them, in the same order at every call.
        losses: The losses known so far, by condition and sample, each the mean over draws; further
            samples and conditions are ignored.
        samples: The samples, likewise all of them.
        share: Of the full sweep, above 0 and at most 1.
        priority: By sample, how much noise may change there; those with more are met earlier, those
            without or with NaN last, equal ones in their own order. None: all in their own order.
            The same at every call.

    Raises:
        InputError: No condition, no sample, a name twice, or a share out of range.

    Source: Karnin, Koren and Somekh 2013, Almost optimal exploration in multi-armed bandits.
    The KL is the cumulant expansion of the distribution's log-partition to second order.
    """
    _check(names, samples, share)
    reserve = tuple(samples[_RESERVE - 1 :: _RESERVE])
    left = math.floor(share * len(names) * len(samples) + 1e-9) - 2 * len(reserve)
    if len(names) < _LEAST_NAMES or len(samples) < _LEAST_SAMPLES or left < 3 * len(names):
        return _full_sweep(tuple(names), losses, tuple(samples))
    rest = [s for i, s in enumerate(samples) if i % _RESERVE != _RESERVE - 1]
    pool = _in_order(rest, priority or {})
    alive, finalists, have = list(names), list(names), 0
    for number, have in enumerate(_schedule(len(names), len(pool), left), start=1):
        asked = _missing(number, alive, losses, pool[:have])
        if asked is not None:
            return asked
        finalists, alive = alive, _worse_half(alive, losses, pool[:have])
    finalists = [alive[0], *(name for name in finalists if name != alive[0])]
    return _missing(number + 1, finalists, losses, reserve, is_reserve=True) or _winner(
        finalists, losses, pool[:have], reserve
    )


def _check(names: Sequence[str], samples: Sequence[str], share: float) -> None:
    for what, given in (("condition", names), ("sample", samples)):
        if not given:
            raise InputError(f"no {what} to search among: give at least one")
        if len(set(given)) < len(given):
            twice = next(name for name in given if list(given).count(name) > 1)
            raise InputError(f"{what} {twice!r} is named twice: give every {what} once")
    if not 0 < share <= 1:
        raise InputError(f"search share {share!r}: give a number above 0 and at most 1")


def _in_order(samples: Sequence[str], priority: Mapping[str, float]) -> tuple[str, ...]:
    def place(sample: str) -> tuple[bool, float]:
        value = priority.get(sample, math.nan)
        return math.isnan(value), 0.0 if math.isnan(value) else -value

    return tuple(sorted(samples, key=place))


def _schedule(names: int, most: int, left: int) -> list[int]:
    """Returns how many samples those alive have met after each round, for at most `left` in all.

    Every round adds as many samples as the one before, and the last what is left. Adding as many
    evaluations in each, as the source does, starts with too few samples to part 28 layers, and
    names the worst less often (benchmarks/search.py).
    """
    sizes = [names]
    while sizes[-1] > 2:
        sizes.append(math.ceil(sizes[-1] / 2))

    def plan(step: int) -> list[int]:
        return [min(most, step * (i + 1)) for i in range(len(sizes))]

    def cost(plan: list[int]) -> int:
        new = [b - a for a, b in zip([0, *plan], plan, strict=False)]
        return sum(size * count for size, count in zip(sizes, new, strict=True))

    step = max((q for q in range(1, most + 1) if cost(plan(q)) <= left), default=1)
    found = plan(step)
    found[-1] = min(most, found[-1] + (left - cost(found)) // 2)
    return found


def _missing(
    number: int,
    names: Sequence[str],
    losses: Losses,
    samples: Sequence[str],
    is_reserve: bool = False,
) -> Round | None:
    """Returns the round that fills what is not known yet; None where all is."""
    lacking = {n: [s for s in samples if s not in losses.get(n, {})] for n in names}
    who = tuple(name for name in names if lacking[name])
    wanted = {s for name in who for s in lacking[name]}
    if not who:
        return None
    return Round(number, who, tuple(s for s in samples if s in wanted), is_reserve)


def _mean(name: str, losses: Losses, samples: Sequence[str]) -> float:
    found = [losses[name][s] for s in samples]
    if not found:
        return math.nan
    return math.fsum(found) / len(found) if all(map(math.isfinite, found)) else math.inf


def _ranked(names: Sequence[str], losses: Losses, samples: Sequence[str]) -> list[str]:
    """Returns the names from the largest loss on; equal ones in their own order."""
    return sorted(names, key=lambda name: -_mean(name, losses, samples))


def _worse_half(names: Sequence[str], losses: Losses, samples: Sequence[str]) -> list[str]:
    return _ranked(names, losses, samples)[: math.ceil(len(names) / 2)]


def _full_sweep(names: tuple[str, ...], losses: Losses, samples: tuple[str, ...]) -> Round | Winner:
    asked = _missing(1, names, losses, samples)
    if asked is not None:
        return asked
    return _winner(_ranked(names, losses, samples)[:2], losses, samples, ())


def _winner(
    finalists: Sequence[str],
    losses: Losses,
    samples: tuple[str, ...],
    reserve: tuple[str, ...],
) -> Winner:
    tried = [_mean(name, losses, reserve or samples) for name in finalists]
    return Winner(
        name=finalists[0],
        runner_up=finalists[1] if len(finalists) > 1 else None,
        samples=samples,
        reserve=reserve,
        loss=tried[0],
        runner_up_loss=tried[1] if len(tried) > 1 else math.nan,
        is_full_sweep=not reserve,
        caution=_caution(finalists, losses, (*samples, *reserve)),
    )


def _caution(finalists: Sequence[str], losses: Losses, samples: Sequence[str]) -> str:
    if len(finalists) < 2:
        return ""
    both = np.array([[losses[name][s] for s in samples] for name in finalists])
    both = both[:, np.isfinite(both).all(axis=0)]
    p = mean_test_p(both[:1] - both[1:])
    if not p < _LEVEL:
        told = "too few samples" if math.isnan(p) else f"p = {p:.2g}, {len(samples)} samples"
        return (
            f"{finalists[0]} cannot be told from {finalists[1]} ({told}), and a full sweep may "
            "name another; use more samples"
        )
    if is_skewed(moments_of(both[:1])):
        return (
            f"a few questions carry most of the loss of {finalists[0]}, and the search may have "
            "missed those of another; use more samples, or a full sweep"
        )
    return ""
