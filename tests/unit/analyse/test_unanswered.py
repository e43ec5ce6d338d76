"""Studies where some conditions are answered and some are only scored, and families of verdicts."""

import math
from dataclasses import replace

import numpy as np
import pytest

from noisescope.analyse import Table, analyse
from noisescope.records import CLEAN, Record


def record(condition, draw, sample, kl=0.0, right=True):
    return Record(condition, draw, sample, 7, kl, kl / 2, 0.9, right)


def study(scored=(), layers=3, K=2, N=40, seed=0, scale=0.03):
    """The later a layer, the more it loses."""
    rng = np.random.default_rng(seed)
    found = [record(CLEAN, 0, f"q{i}") for i in range(N)]
    for layer in range(layers):
        for k in range(K):
            for i in range(N):
                kl = scale * (layer + 1) ** 2 * rng.exponential()
                is_right = bool(rng.random() > 0.15 * layer)
                name = f"L{layer}"
                found.append(record(name, k, f"q{i}", kl, None if name in scored else is_right))
    return found


def without(records, names):
    return [r for r in records if r.condition not in names]


def same(one, other):
    return repr(one) == repr(other)


def test_what_was_only_scored_has_a_kl_and_no_accuracy():
    scored, unanswered, answered = analyse(study(["L1"])).summaries[1], study(["L1"]), study()
    assert not Table(unanswered).has_answers("L1") and Table(answered).has_answers("L1")
    assert math.isnan(scored.accuracy) and math.isnan(scored.degradation)
    assert not scored.accuracy_drop.is_known
    verdict = scored.accuracy_verdict
    assert (verdict.outcome, verdict.needed_samples, verdict.needed_draws) == (
        "inconclusive", None, None,
    )  # fmt: skip
    assert math.isnan(verdict.p_harmful) and math.isnan(verdict.p_harmless)
    assert verdict.reason == "inconclusive: nothing was generated under this noise; see the KL"
    alike = analyse(answered).summaries[1]
    assert scored.kl_nats == alike.kl_nats and scored.kl_verdict == alike.kl_verdict


def test_the_answered_are_judged_as_if_the_others_were_not_there():
    found, alone = analyse(study(["L1"])), analyse(without(study(), ["L1"]))
    for mine, theirs in zip(found.summaries[::2], alone.summaries, strict=True):
        assert mine.accuracy_verdict == theirs.accuracy_verdict
    assert same(found.worst_accuracy, alone.worst_accuracy)
    assert found.baseline_accuracy == 1.0


def test_the_worst_by_accuracy_is_one_with_answers():
    found = analyse(study(["L2"]))
    assert found.worst_accuracy.condition == "L1"
    assert "overflow" not in found.worst_accuracy.reason
    assert found.worst_kl.condition == "L2"


def test_without_any_answer_there_is_no_worst_by_accuracy():
    found = analyse(study(["L0", "L1", "L2"]))
    assert found.worst_accuracy.condition is None
    assert not found.worst_accuracy.is_conclusive
    assert all(math.isnan(s.accuracy_verdict.p_harmful) for s in found.summaries)
    assert found.worst_kl.condition == "L2"


def test_a_family_is_judged_by_itself():
    """By Holm: three conditions share the 5 %, and a fourth in a family of its own none of it."""
    four = study(layers=4)
    found = analyse(four, among=["L0", "L1", "L2"], families=[["L0", "L1", "L2"], ["L3"]])
    three, one = analyse(without(four, ["L3"])), analyse(without(four, ["L0", "L1", "L2"]))
    assert same(found.summaries[:3], three.summaries)
    assert same(found.summaries[3:], one.summaries)
    assert same(found.worst_kl, three.worst_kl)
    assert same(found.worst_accuracy, three.worst_accuracy)
    together = analyse(four)
    assert not same(together.summaries, found.summaries)
    assert together.worst_kl.condition == "L3"


def test_what_no_family_names_is_one_of_its_own():
    four = study(layers=4)
    one = analyse(four, families=[["L3", "unknown"], []])
    other = analyse(four, families=[["L3"], ["L0", "L1", "L2"]])
    assert same(one, other)
    assert same(analyse(four, families=[]), analyse(four))


@pytest.mark.parametrize("right", [None, False])
def test_a_clean_model_without_right_answers_is_told_first(right):
    records = [replace(r, is_right=right) for r in study(["L1"])]
    reasons = {s.accuracy_verdict.reason for s in analyse(records).summaries}
    assert len(reasons) == 1 and "under this noise" not in reasons.pop()
