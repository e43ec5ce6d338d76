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
from noisescope.study.executor import UnitFailure
from noisescope.study.findings import Findings, find
from noisescope.study.plan import StudyPlan
from noisescope.study.recommended import Recommendation, recommend
from noisescope.study.searched import GIVEN_UP_NOTE, judged_on_reserve, searched_winner
from noisescope.study.told import Told

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
        told: What the clean model told: the profile, and what its channels look like.
        findings: Prediction beside measurement, blame, and the avalanche.
        recommendation: Of formats, where the study is about them.
        failures: Units that were given up; what they would have told is missing.
    """

    plan: StudyPlan
    records: tuple[Record, ...]
    witnesses: Mapping[str, Witness]
    analysis: Analysis
    notes: tuple[str, ...]
    winner: Winner | None = None
    margins: Margins = field(default_factory=Margins)
    told: Told = field(default_factory=Told)
    findings: Findings = field(default_factory=Findings)
    recommendation: Recommendation | None = None
    failures: tuple[UnitFailure, ...] = ()

    @property
    def kind(self) -> str:
        """`diagnose`, `layers`, `sites`, `operators` or `channels`."""
        return self.plan.kind

    @property
    def config(self) -> Mapping[str, Any]:
        """What was asked, as the result file says it."""
        config: Mapping[str, Any] = self.plan.about["config"]
        return config

    @property
    def is_random(self) -> bool:
        """Whether one draw of the error differs from another; rounding to nearest has one only."""
        return bool(self.plan.about.get("is_random", True))

    @property
    def error_text(self) -> str:
        """The error in words: ``RelativeGaussian 0.05``, or ``RoundTo mxfp4, both``."""
        config = self.config
        if config["noise_scale"] is not None:
            return f"{config['error_model']} {config['noise_scale']:g}"
        told = [
            f"{value:g}" if isinstance(value, float) else str(value)
            for name, value in config["error_parameters"].items()
            if name != "rounding" and value not in (None, [], ())
        ]
        return f"{config['error_model']} {', '.join(told)}".strip()

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
        """One per condition that was asked for, in order."""
        asked = self.plan.asked
        return tuple(s for s in self.analysis.summaries if s.condition in asked)

    @property
    def chosen(self) -> Mapping[str, tuple[Summary, ...]]:
        """One per condition that a step of the study chose, step by step."""
        found: dict[str, list[Summary]] = {}
        for summary in self.analysis.summaries:
            step = self.plan.chosen.get(summary.condition)
            if step is not None:
                found.setdefault(step, []).append(summary)
        return {step: tuple(summaries) for step, summaries in found.items()}

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
    told: Told | None = None,
    failures: Sequence[UnitFailure] = (),
) -> Diagnosis:
    """Makes a diagnosis of what a study has measured, complete or not.

    Only conditions that the user asked for compete for the worst, or those of them that `among`
    names in the plan's `about`. Harm is told at 5 % over all that were asked for, and again over
    all that one step added: what it adds does not change the verdicts on the others.

    Args:
        plan: The study's.
        records: What is measured so far.
        witnesses: Of each condition.
        notes: What the units had to say.
        margins: The losses that are still no harm.
        told: What the clean model told, kept beside the records.
        failures: Units that were given up.

    Raises:
        InputError: A margin that is not positive.
    """
    margins = margins or Margins()
    winner = searched_winner(plan, records) if plan.is_adaptive else None
    analysis = analyse(
        records,
        among=_competing(plan),
        families=plan.families,
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
    lines = [
        *plan.about["notes"],
        *measurement_notes(noted, witnesses, plan.about["config"]["max_new_tokens"]),
        *notes,
    ]
    if not plan.is_adaptive:  # a search leaves records out on purpose
        lines += analysis.notes
    elif winner is not None:
        lines += [] if winner.is_full_sweep else [GIVEN_UP_NOTE]
        lines += filter(None, [winner.caution])
    lines += map(_given_up, failures)
    kept = told or Told()
    return Diagnosis(
        plan,
        tuple(records),
        dict(witnesses),
        analysis,
        tuple(lines),
        winner,
        margins,
        kept,
        find(plan, records, kept, analysis.summaries),
        recommend(plan, records, kept.profile, analysis.summaries),
        tuple(failures),
    )


def _given_up(failure: UnitFailure) -> str:
    return (
        f"unit {failure.unit} failed {failure.attempts} times and is missing ({failure.error}): "
        "the same command tries it again"
    )


def _competing(plan: StudyPlan) -> Sequence[str] | None:
    """Returns who competes for the worst; None: all."""
    among: Sequence[str] | None = plan.about.get("among")
    return list(plan.asked) if among is None and plan.chosen else among


def _by_kl_alone(analysis: Analysis, margins: Margins) -> Analysis:
    """Says why no accuracy is told where the clean model answers and the noisy ones do not."""
    verdict = unknown_verdict("accuracy", margins.accuracy, f"inconclusive: {_KL_ALONE}")
    return replace(
        analysis,
        summaries=tuple(replace(s, accuracy_verdict=verdict) for s in analysis.summaries),
        worst_accuracy=replace(analysis.worst_accuracy, reason=_KL_ALONE),
    )
