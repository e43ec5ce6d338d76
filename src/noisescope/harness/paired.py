"""What noise changed in a task, sample by sample: paired by document, with interval and verdict.

The intervals and tests are those of every study. Metrics of a whole corpus have no pairs: both
figures are given, and nothing is claimed.
"""

import math
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
from noisescope.analyse.verdict import ACCURACY_MARGIN, KL_MARGIN
from noisescope.errors import InputError
from noisescope.harness.answers import Run
from noisescope.harness.pairs import CORPUS, NATS, NUMBER, SHARE, Figures, Pairs, Values, pairs_of
from noisescope.records import CLEAN


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
            exact McNemar test; NaN for fewer than two samples.
        verdict: Whether it harms; None where more is neither better nor worse, and of `corpus`.
        is_higher_better: None where the task does not say.
        flips: Shares of answers that noise made wrong, and right; None where there are none.
        draws: Draws.
        samples: Samples.
        sides: The values of the clean model and under noise; None of `corpus`.
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
        for condition in conditions:
            noisy = [r for r in runs if (r.condition, r.task) == (condition, clean.task)]
            noisy.sort(key=lambda run: run.draw)
            if noisy:
                pairs = pairs_of(clean, noisy)
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
        losses = {str(n): found[key].losses for n, key in enumerate(keys)}
        said = verdicts(losses, measure, margin)
        for n, key in enumerate(keys):
            verdict = said[str(n)]
            if kind == NUMBER:  # its unit is the metric's own
                verdict = replace(verdict, reason=verdict.reason.replace(" nats", ""))
            judged[key] = verdict
    return judged


def _change(key: tuple[str, str, str, str], pairs: Pairs, verdict: Verdict | None) -> Change:
    values = pairs.differences_KN
    known = np.isfinite(values).all(axis=0) & np.isfinite(pairs.clean_N)
    is_share = pairs.kind == SHARE
    sources = list(pairs.sources)
    interval = (
        share_interval(values, sources) if is_share else mean_interval(values, groups=sources)
    )
    flips = None
    if is_share and known.any():
        flips = (float((values[:, known] < 0).mean()), float((values[:, known] > 0).mean()))
    condition, task, metric, name = key
    return Change(
        condition=condition,
        task=task,
        metric=metric,
        filter=name,
        kind=pairs.kind,
        clean=float(pairs.clean_N[known].mean()) if known.any() else math.nan,
        noisy=float(pairs.noisy_KN[:, known].mean()) if known.any() else math.nan,
        difference=interval,
        p=_p(pairs, values, sources),
        verdict=verdict,
        is_higher_better=pairs.is_higher_better,
        flips=flips,
        draws=values.shape[0],
        samples=values.shape[1],
        sides=pairs.sides,
    )


def _p(pairs: Pairs, values: Values, sources: list[str]) -> float:
    is_apart = len(set(sources)) == len(sources)
    if pairs.kind == SHARE and len(values) == 1 and is_apart and values.shape[1] > 1:
        return mcnemar_p(list(pairs.clean_N == 1), list(pairs.noisy_KN[0] == 1))
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
