"""What a search may say: of the last two, on the samples held back, and nothing of the others."""

import dataclasses
import math

import numpy as np
import pytest
from helpers.study_worker import make_plan

from noisescope.analyse import Round, Winner, analyse
from noisescope.errors import InputError
from noisescope.records import CLEAN, Record
from noisescope.study.searched import GIVEN_UP, judged_on_reserve, next_step

NAMES = ("L0", "L1", "L2", "L3", "L4", "L5")
TRUE_KL = dict(zip(NAMES, (0.002, 0.003, 0.03, 0.002, 0.012, 0.001), strict=True))


def record(condition, sample, kl, nll=0.1):
    return Record(condition, 0, sample, 5, kl, 0.0, 1.0, None, nll_nats=nll)


def plan_of(samples=40):
    plan = make_plan(samples=samples)
    conditions = dict.fromkeys(NAMES, next(iter(plan.conditions.values())))
    return dataclasses.replace(plan, conditions=conditions, draws=1, is_adaptive=True)


def run(plan, broken=(), rounds=99):
    """Carries a search out on made-up records: KL grows with the clean loss of a sample."""
    random = np.random.default_rng(1)
    size = {s.name: random.lognormal(0, 0.5) for s in plan.samples}
    records = [
        record(CLEAN, name, 0.0, math.nan if name in broken else size[name]) for name in size
    ]
    found = next_step(plan, records)
    while isinstance(found, Round) and rounds:
        rounds -= 1
        for name in found.names:
            for sample in found.samples:
                kl = math.nan if sample in broken else TRUE_KL[name] * size[sample]
                records.append(record(name, sample, kl))
        found = next_step(plan, records)
    return records, found


def test_only_the_last_two_are_judged_and_on_the_reserve_alone():
    plan = plan_of()
    records, winner = run(plan)
    assert isinstance(winner, Winner) and winner.name == "L2" and winner.runner_up == "L4"
    judged = judged_on_reserve(analyse(records), records, winner, 0.01)
    by_name = {s.condition: s for s in judged.summaries}
    assert set(by_name) == set(NAMES)
    for name in NAMES:
        summary = by_name[name]
        if name in ("L2", "L4"):
            kept = [r.kl_nats for r in records if r.condition == name]
            held = [
                r.kl_nats for r in records if r.condition == name and r.sample in winner.reserve
            ]
            assert summary.kl_nats.mean == pytest.approx(np.mean(held))
            assert np.mean(kept) > np.mean(held)  # what chose is above what is true
        else:
            assert summary.kl_verdict.outcome == "inconclusive"
            assert not summary.kl_nats.is_known and summary.kl_nats.caution == GIVEN_UP
    assert judged.worst_kl.condition == "L2"
    assert judged.worst_kl.held_out == by_name["L2"].kl_nats


def test_nobody_is_judged_while_rounds_are_left():
    plan = plan_of()
    records, found = run(plan, rounds=1)
    assert isinstance(found, Round)
    judged = judged_on_reserve(analyse(records), records, None, 0.01)
    assert {s.kl_verdict.outcome for s in judged.summaries} == {"inconclusive"}
    assert judged.worst_kl.condition is None and not judged.worst_kl.is_conclusive
    assert "goes on" in judged.worst_kl.reason


def test_a_reserve_that_disagrees_is_said():
    records, winner = run(plan_of())
    swapped = dataclasses.replace(winner, name="L4", runner_up="L2")
    judged = judged_on_reserve(analyse(records), records, swapped, 0.01)
    assert judged.worst_kl.condition == "L4" and not judged.worst_kl.is_conclusive
    assert "on the samples held back L2 loses more" in judged.worst_kl.reason


@pytest.mark.parametrize("place", [3, 4])  # in the pool, and in the reserve
def test_a_sample_without_clean_logits_is_left_out(place):
    plan = plan_of()
    broken = plan.samples[place].name
    _, winner = run(plan, broken=(broken,))
    assert winner.name == "L2" and math.isfinite(winner.loss)
    assert broken not in winner.samples and broken not in winner.reserve


def test_no_sample_with_clean_logits_is_an_error():
    plan = plan_of()
    with pytest.raises(InputError, match="not finite on any sample"):
        run(plan, broken=[s.name for s in plan.samples])
