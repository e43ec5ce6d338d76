"""A finished diagnosis: what a report needs, from a study's plan and records alone.

No model is needed to make one, so a study in a directory can be shown again at any time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from noisescope.analyse import Analysis, Summary, Winner, Worst, analyse, unknown_verdict
from noisescope.inject import Witness
from noisescope.measure import measurement_notes
from noisescope.records import CLEAN, Record
from noisescope.study.plan import StudyPlan
from noisescope.study.searched import GIVEN_UP_NOTE, judged_on_reserve, searched_winner

_KL_ALONE = "a search goes by KL alone, and nothing was generated under noise"


@dataclass(frozen=True)
class Margins:
    """The losses that are still no harm.

    Attributes:
        accuracy: As a share; 0.01 is one point.
        kl_nats: KL, in nats per token.
    """

    accuracy: float = 0.01
    kl_nats: float = 0.01


@dataclass(frozen=True)
class Diagnosis:
    """A diagnosis, finished or as far as it is.

    Attributes:
        plan: What was asked: conditions, draws, samples and seed; `about` names model and data.
        records: Clean records first, then condition by condition, draw by draw, in sample order.
        witnesses: Of each condition: its sites, their counts, dose and coverage.
        analysis: What the records say.
        notes: What the user should hear, one line each.
        winner: Of a search that is finished: the worst condition as it names it.
        margins: The losses that are still no harm.
    """

    plan: StudyPlan
    records: tuple[Record, ...]
    witnesses: Mapping[str, Witness]
    analysis: Analysis
    notes: tuple[str, ...]
    winner: Winner | None = None
    margins: Margins = field(default_factory=Margins)

    @property
    def kind(self) -> str:
        """`layers`, `sites` or `operators`."""
        return self.plan.kind

    @property
    def config(self) -> Mapping[str, Any]:
        """What was asked, as the result file says it."""
        config: Mapping[str, Any] = self.plan.about["config"]
        return config

    @property
    def layers(self) -> Mapping[str, Sequence[int]]:
        """Layers of each condition; empty where it covers the whole model."""
        layers: Mapping[str, Sequence[int]] = self.plan.about["layers"]
        return layers

    @property
    def baseline_accuracy(self) -> float:
        """Of the clean model; NaN where nothing was generated."""
        return self.analysis.baseline_accuracy

    @property
    def summaries(self) -> tuple[Summary, ...]:
        """One per condition, in order."""
        return self.analysis.summaries

    @property
    def worst_accuracy(self) -> Worst:
        """The plan's avalanche point and its doubt."""
        return self.analysis.worst_accuracy

    @property
    def worst_kl(self) -> Worst:
        """The same by KL."""
        return self.analysis.worst_kl

    @property
    def clean_nll_nats(self) -> float:
        """Loss of the clean model along the scored tokens, mean over samples; NaN without any."""
        losses = [r.nll_nats for r in self.records if r.condition == CLEAN and r.tokens]
        return sum(losses) / len(losses) if losses else math.nan


def make_diagnosis(
    plan: StudyPlan,
    records: Sequence[Record],
    witnesses: Mapping[str, Witness],
    notes: Sequence[str],
    margins: Margins | None = None,
) -> Diagnosis:
    """Makes a diagnosis of what a study has measured, complete or not.

    Args:
        plan: The study's.
        records: What is measured so far.
        witnesses: Of each condition.
        notes: What the units had to say.
        margins: The losses that are still no harm.

    Raises:
        InputError: A margin that is not positive.
    """
    margins = margins or Margins()
    winner = searched_winner(plan, records) if plan.is_adaptive else None
    analysis = analyse(
        records,
        among=plan.about.get("among"),
        reserve=winner.reserve if winner is not None and winner.reserve else None,
        accuracy_margin=margins.accuracy,
        kl_margin=margins.kl_nats,
    )
    if plan.is_adaptive and not (winner is not None and winner.is_full_sweep):
        analysis = judged_on_reserve(analysis, records, winner, margins.kl_nats)
    if not plan.generates and not math.isnan(analysis.baseline_accuracy):
        analysis = _by_kl_alone(analysis, margins)
    noted = records
    if not plan.about.get("ends_answers", True):  # every answer is cut, which is no news
        noted = [replace(record, is_cut=None) for record in records]
    told = [
        *plan.about["notes"],
        *measurement_notes(noted, witnesses, plan.about["config"]["max_new_tokens"]),
        *notes,
    ]
    if not plan.is_adaptive:  # a search leaves records out on purpose
        told += analysis.notes
    elif winner is not None:
        told += [] if winner.is_full_sweep else [GIVEN_UP_NOTE]
        told += filter(None, [winner.caution])
    return Diagnosis(plan, tuple(records), dict(witnesses), analysis, tuple(told), winner, margins)


def _by_kl_alone(analysis: Analysis, margins: Margins) -> Analysis:
    """Says why no accuracy is told where the clean model answers and the noisy ones do not."""
    verdict = unknown_verdict("accuracy", margins.accuracy, f"inconclusive: {_KL_ALONE}")
    return replace(
        analysis,
        summaries=tuple(replace(s, accuracy_verdict=verdict) for s in analysis.summaries),
        worst_accuracy=replace(analysis.worst_accuracy, reason=_KL_ALONE),
    )
