"""What noise changed in a task, sample by sample: paired by document, with interval and verdict.

The intervals and tests are those of every study. Metrics of a whole corpus have no pairs: both
figures are given, and nothing is claimed.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from noisescope.analyse import (
    Interval,
    Verdict,
    mcnemar_p,
    mean_interval,
    mean_test_p,
    share_interval,
    verdicts,
)
from noisescope.analyse.change import Sides
from noisescope.analyse.intervals import UNKNOWN
from noisescope.analyse.verdict import (
    ACCURACY_MARGIN,
    HARMFUL,
    INCONCLUSIVE,
    KL_MARGIN,
    unknown_verdict,
)
from noisescope.errors import InputError
from noisescope.harness.answers import Run
from noisescope.harness.pairs import (
    CORPUS,
    NATS,
    NUMBER,
    SHARE,
    Figures,
    Pairs,
    Values,
    kinds_of,
    pairs_of,
)
from noisescope.records import CLEAN

LOST, PART = "lost samples", "part of the samples"  # how cautions of these begin


@dataclass(frozen=True)
class EvaluationMargins:
    """The losses that are still no harm.

    Attributes:
        accuracy: Of shares, and of any other number: in the metric's own unit.
        nats: Of what log-likelihoods lose per word, byte or sample, and of the KL of choices.
    """

    accuracy: float = ACCURACY_MARGIN
    nats: float = KL_MARGIN

    def __post_init__(self) -> None:
        for name, value in (("accuracy", self.accuracy), ("nats", self.nats)):
            if not 0 < value < math.inf:
                raise InputError(f"margin of {name} {value}: a number above 0 is needed; try 0.01")


@dataclass(frozen=True)
class Change:
    """One metric of one task under one condition, against the clean model.

    Attributes:
        condition: The condition's name.
        task: The task's name.
        metric: The harness's name, or `choice_kl`.
        filter: The harness's name for how the answer was read out.
        kind: `share` (of right answers), `nats` (lost per word, byte or sample), `number`, or
            `corpus` (no pairs).
        clean: Mean of the clean model over the samples; of `corpus` the harness's own figure.
        noisy: Mean over samples and draws.
        difference: Noisy less clean with its 95 % interval, over draws and samples.
        p: Two-sided p that nothing changed, of this metric alone: of one draw of right answers the
            exact McNemar test; NaN for fewer than two samples, and where some are lost.
        verdict: Whether it harms; None where more is neither better nor worse, and of `corpus`.
        is_higher_better: None where the task does not say.
        flips: Shares of answers that noise made wrong, and right; None where there are none, or
            where the task does not say which is which.
        draws: Draws.
        samples: Samples that have the metric.
        sides: The values of the clean model and under noise; None of `corpus`.
        lost: Samples on which the clean model has a number and some draw has none that is finite.
            Means and interval are of the rest, which may be the easier ones; where this is above 0
            nothing is harmless, and a share or number is inconclusive at best.
        asked: Samples that were asked, with those that lack the metric.
        at_best: Of shares, `sides` with the better answer in the place of every one that is lost.
    """

    condition: str
    task: str
    metric: str
    filter: str
    kind: str
    clean: float
    noisy: float
    difference: Interval
    p: float
    verdict: Verdict | None
    is_higher_better: bool | None
    flips: tuple[float, float] | None
    draws: int
    samples: int
    sides: Sides | None = field(default=None, repr=False, compare=False)
    lost: int = 0
    asked: int = 0
    at_best: Sides | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The metric as tables name it: its unit where it is not the harness's own."""
        return f"{self.metric}, nats" if self.kind == NATS else self.metric


def changes_of(
    runs: Sequence[Run], conditions: Sequence[str], margins: EvaluationMargins
) -> tuple[Change, ...]:
    """Pairs every noisy run with the clean one of its task.

    Verdicts of harm hold at 5 % over all tasks and conditions of one kind of metric together; the
    same document asked twice counts once.

    Args:
        runs: Clean and noisy.
        conditions: Names, in the order they are told.
        margins: The losses that are still no harm.

    Raises:
        InputError: A noisy run did not ask what the clean one asked.
    """
    found: dict[tuple[str, str, str, str], Pairs | Figures] = {}
    for clean in (run for run in runs if run.condition == CLEAN):
        kinds = kinds_of([run for run in runs if run.task == clean.task])
        for condition in conditions:
            noisy = [r for r in runs if (r.condition, r.task) == (condition, clean.task)]
            noisy.sort(key=lambda run: run.draw)
            if noisy:
                pairs = pairs_of(clean, noisy, kinds)
                found |= {(condition, clean.task, *key): pair for key, pair in pairs.items()}
    judged = _judged({k: p for k, p in found.items() if isinstance(p, Pairs)}, margins)
    return tuple(
        _change(key, pair, judged.get(key)) if isinstance(pair, Pairs) else _corpus(key, pair)
        for key, pair in found.items()
    )


def _judged(
    found: Mapping[tuple[str, str, str, str], Pairs], margins: EvaluationMargins
) -> dict[tuple[str, str, str, str], Verdict]:
    judged: dict[tuple[str, str, str, str], Verdict] = {}
    for kind, measure, margin in (
        (SHARE, "accuracy", margins.accuracy),
        (NATS, "kl", margins.nats),
        (NUMBER, "number", margins.accuracy),
    ):
        keys = [k for k, p in found.items() if p.kind == kind and p.is_higher_better is not None]
        lost = {key: found[key].lost for key in keys}
        # Numbers that are lost could have been anything: of them nothing is tested.
        tested = [k for k in keys if not (is_twice(k, keys) or (kind == NUMBER and lost[k]))]
        pairs = [found[k].at_best() if kind == SHARE else found[k] for k in tested]
        said = verdicts({str(n): p.losses for n, p in enumerate(pairs)}, measure, margin)
        known = {key: said[str(n)] for n, key in enumerate(tested)}
        for key in keys:
            verdict = known.get(_once(key) if is_twice(key, keys) else key)
            if lost[key] and (verdict is None or verdict.outcome != HARMFUL):
                said_of_lost = f"{INCONCLUSIVE}: {lost_text(lost[key], len(found[key].clean_N))}"
                verdict = unknown_verdict(measure, margin, said_of_lost)
            if verdict is not None:
                judged[key] = replace(verdict, reason=_in_words(verdict.reason, kind))
    return judged


def lost_text(lost: int, samples: int) -> str:
    """Says on how many samples noise left no number."""
    return f"no number under noise in {lost} of {samples} samples"


def is_twice(key: tuple[str, str, str, str], keys: Sequence[tuple[str, str, str, str]]) -> bool:
    """Tells whether a metric is the same number as another one of its task: it counts once.

    Args:
        key: Condition, task, metric and filter.
        keys: All that are judged together.
    """
    return key != _once(key) and _once(key) in keys


def _once(key: tuple[str, str, str, str]) -> tuple[str, str, str, str]:
    condition, task, metric, name = key
    return condition, task, "bits_per_byte" if metric == "byte_perplexity" else metric, name


def _in_words(reason: str, kind: str) -> str:
    """Names a loss below zero a gain, and one point a point."""
    told = re.sub(r"a loss of -0(?= )", "a loss of 0", reason)
    gain = re.sub(r"a loss of -(?=\S)", "a gain of ", told)
    if gain != told:
        gain = re.sub(r"(more than|less than|told from) ", r"\1 a loss of ", gain)
    said = re.sub(r"(?<![0-9.])1 points", "1 point", gain)
    return said.replace(" nats", "") if kind == NUMBER else said  # its unit is the metric's own


def _change(key: tuple[str, str, str, str], pairs: Pairs, verdict: Verdict | None) -> Change:
    values = pairs.differences_KN
    known = np.isfinite(values).all(axis=0) & np.isfinite(pairs.clean_N)
    is_share = pairs.kind == SHARE
    sources = list(pairs.sources)
    interval = (
        share_interval(values, sources) if is_share else mean_interval(values, groups=sources)
    )
    condition, task, metric, name = key
    return Change(
        condition=condition,
        task=task,
        metric=metric,
        filter=name,
        kind=pairs.kind,
        clean=float(pairs.clean_N[known].mean()) if known.any() else math.nan,
        noisy=float(pairs.noisy_KN[:, known].mean()) if known.any() else math.nan,
        difference=replace(interval, caution="; ".join(filter(None, _cautions(pairs, interval)))),
        p=math.nan if pairs.lost else _p(pairs, values, sources),
        verdict=verdict,
        is_higher_better=pairs.is_higher_better,
        flips=_flips(pairs, values[:, known]),
        draws=values.shape[0],
        samples=values.shape[1],
        sides=pairs.sides,
        lost=pairs.lost,
        asked=pairs.asked,
        at_best=pairs.at_best().sides if is_share else None,
    )


def _cautions(pairs: Pairs, interval: Interval) -> list[str]:
    samples = len(pairs.clean_N)
    told = [interval.caution]
    if pairs.lost:
        told.append(f"{LOST}: {lost_text(pairs.lost, samples)}; means and interval are of the rest")
    if samples < pairs.asked:
        told.append(f"{PART}: {samples} of {pairs.asked} samples have this metric")
    return told


def _flips(pairs: Pairs, values: Values) -> tuple[float, float] | None:
    """Returns the shares of answers that were made wrong, and made right."""
    if pairs.kind != SHARE or pairs.is_higher_better is None or not values.size:
        return None
    losses = -values if pairs.is_higher_better else values
    return float((losses > 0).mean()), float((losses < 0).mean())


def _p(pairs: Pairs, values: Values, sources: list[str]) -> float:
    is_apart = len(set(sources)) == len(sources)
    known = np.isfinite(pairs.clean_N)
    if pairs.kind == SHARE and len(values) == 1 and is_apart and known.sum() > 1:
        return mcnemar_p(list(pairs.clean_N[known] == 1), list(pairs.noisy_KN[0, known] == 1))
    return mean_test_p(values, sources)


def _corpus(key: tuple[str, str, str, str], figures: Figures) -> Change:
    condition, task, metric, name = key
    return Change(
        condition=condition,
        task=task,
        metric=metric,
        filter=name,
        kind=CORPUS,
        clean=figures.clean,
        noisy=figures.noisy,
        difference=replace(
            UNKNOWN, mean=figures.noisy - figures.clean, caution="of the whole corpus: no pairs"
        ),
        p=math.nan,
        verdict=None,
        is_higher_better=None,
        flips=None,
        draws=figures.draws,
        samples=0,
    )
