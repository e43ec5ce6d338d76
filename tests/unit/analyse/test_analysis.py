"""The entry point: verdicts in every summary, incomplete studies, pairing by name."""

import itertools
import math
from dataclasses import fields, replace

import numpy as np
import pytest

from noisescope.analyse import Summary, Table, analyse, crossed_interval, mean_interval
from noisescope.errors import InputError
from noisescope.records import CLEAN, Record


def record(condition, draw, sample, kl=0.0, right=True, **fields):
    return Record(condition, draw, sample, 7, kl, kl / 2, 0.9, right, **fields)


def study(K=2, N=40, layers=3, seed=0, generates=True):
    rng = np.random.default_rng(seed)
    right = True if generates else None
    found = [record(CLEAN, 0, f"q{i}", right=right) for i in range(N)]
    for layer, k, i in itertools.product(range(layers), range(K), range(N)):
        kl = 0.03 * (layer + 1) ** 2 * rng.exponential()
        is_right = bool(rng.random() > 0.15 * layer) if generates else None
        tails = {"kl_p95_nats": 3 * kl, "kl_p99_nats": 5 * kl}
        found.append(record(f"L{layer}", k, f"q{i}", kl, is_right, **tails))
    return found


def without(records, condition, keep):
    return [r for r in records if r.condition != condition or keep(r)]


def equal(a, b):
    """Field by field, NaN equal to itself."""
    return repr(a) == repr(b)


def test_everything_a_report_needs():
    records = study()
    found = analyse(records)
    assert found.baseline_accuracy == 1.0 and found.notes == ()
    assert [s.condition for s in found.summaries] == ["L0", "L1", "L2"]
    last = found.summaries[-1]
    assert last.kl_verdict.outcome == "harmful" and last.accuracy_verdict.outcome == "harmful"
    assert found.worst_kl.condition == found.worst_accuracy.condition == "L2"
    assert last.kl_p95_nats.mean == pytest.approx(3 * last.kl_nats.mean)
    assert last.kl_p99_nats.mean == pytest.approx(5 * last.kl_nats.mean)
    kl = np.array([r.kl_nats for r in records if r.condition == "L2"]).reshape(2, 40)
    assert last.kl_nats == mean_interval(kl)
    assert last.kl_nats.mean == crossed_interval(kl).mean


def test_old_fields_come_first_in_a_summary():
    names = [f.name for f in fields(Summary)]
    assert names[:9] == [
        "condition", "accuracy", "accuracy_drop", "degradation", "kl_nats", "nll_change_nats",
        "top1_agreement", "draws", "samples",
    ]  # fmt: skip


def test_order_of_records_does_not_matter():
    records = study()
    mixed = [records[i] for i in np.random.default_rng(1).permutation(len(records))]
    a, b = analyse(records), analyse(mixed)
    by_name = {s.condition: s for s in b.summaries}
    for summary in a.summaries:
        other = by_name[summary.condition]
        assert other.kl_nats.mean == pytest.approx(summary.kl_nats.mean, rel=1e-12)
        assert other.accuracy_drop.high == pytest.approx(summary.accuracy_drop.high, rel=1e-12)
        assert other.kl_verdict.outcome == summary.kl_verdict.outcome
    assert b.worst_kl.p_value == pytest.approx(a.worst_kl.p_value, rel=1e-6)


def test_pairs_are_matched_by_sample():
    """The clean model's answers in another order: the drop is that of the same questions."""
    records = [record(CLEAN, 0, s, right=s in "ab") for s in "dcba"]
    records += [record("L0", 0, s, 0.1, right=s in "ac") for s in "abcd"]
    table = Table(records)
    drops = dict(zip(table.block("L0").samples, table.accuracy_drops("L0")[0], strict=True))
    assert drops == {"a": 0.0, "b": 1.0, "c": -1.0, "d": 0.0}


def test_a_half_finished_draw_is_left_out_and_told():
    whole = study(K=3)
    part = without(whole, "L1", lambda r: r.draw < 2 or int(r.sample[1:]) < 5)
    found = analyse(part)
    summary = found.summaries[1]
    assert (summary.draws, summary.samples) == (2, 40)
    alone = analyse(without(whole, "L1", lambda r: r.draw < 2)).summaries[1]
    assert equal(summary.kl_nats, alone.kl_nats)
    assert found.notes == (
        "5 records of 1 conditions are left out, since draws or samples beside them are not there "
        "yet (most in L1: 5)",
    )


def test_missing_samples_leave_the_rest_of_every_draw():
    part = without(study(K=2), "L1", lambda r: not (r.draw == 1 and r.sample in ("q3", "q9")))
    block = Table(part).block("L1")
    assert len(block.draws) == 2 and len(block.samples) == 38
    assert Table(part).left_out("L1") == 2


def test_the_block_has_the_most_records():
    """Against all subsets of draws."""
    rng = np.random.default_rng(3)
    for _ in range(60):
        there = rng.random((4, 7)) < 0.7
        if not there.any():
            continue
        records = [record("L0", k, f"q{i}", 0.1) for k, i in np.argwhere(there)]
        best = max(
            len(draws) * int(there[list(draws)].all(axis=0).sum())
            for n in range(1, 5)
            for draws in itertools.combinations(range(4), n)
        )
        block = Table(records).block("L0")
        assert all(there[k][int(s[1:])] for k in block.draws for s in block.samples)
        assert len(block) >= 0.8 * best, "draws are added one at a time"


def test_a_condition_without_a_record_yet_is_not_there():
    records = [*study(layers=2), record("L9", 0, "unknown to the clean model", 1.0)]
    found = analyse(records)
    assert [s.condition for s in found.summaries] == ["L0", "L1"]
    assert "most in L9: 1" in found.notes[0]


def test_conditions_on_different_samples_are_compared_on_what_both_have():
    """As a search leaves them: the best were met by all samples, the rest by the first ten."""
    whole = study(K=1, N=40, layers=4)
    part = [r for r in whole if r.condition in (CLEAN, "L3", "L2") or int(r.sample[1:]) < 12]
    found = analyse(part)
    assert found.worst_kl.condition == "L3"
    assert [s.samples for s in found.summaries] == [12, 12, 40, 40]
    first = [r for r in whole if int(r.sample[1:]) < 12]
    alone = analyse(first)
    assert equal(found.summaries[0].kl_nats, alone.summaries[0].kl_nats)
    assert found.worst_kl.held_out.is_known
    # A loser with a large mean on its few easy samples is not taken for the worst.
    biased = [
        replace(r, kl_nats=9.0) if r.condition == "L0" and int(r.sample[1:]) < 12 else r
        for r in part
    ]
    assert analyse(biased).worst_kl.condition == "L3"


def test_a_reserve_is_for_the_loss_alone():
    reserve = [f"q{i}" for i in range(30, 40)]
    records = study(K=1)
    found = analyse(records, reserve=reserve)
    held = [r.kl_nats for r in records if r.condition == "L2" and r.sample in reserve]
    assert found.worst_kl.held_out == mean_interval(np.array([held]))


def test_among_limits_who_competes_and_not_what_is_summarised():
    found = analyse(study(), among=["L0", "L1"])
    assert found.worst_kl.condition == "L1" and len(found.summaries) == 3


def test_sources_reach_every_interval_test_and_verdict():
    records = [replace(r, group=f"s{int(r.sample[1:]) // 5}") for r in study(K=1, N=60)]
    grouped, plain = analyse(records), analyse(study(K=1, N=60))
    groups = [i // 5 for i in range(60)]
    kl = np.array([[r.kl_nats for r in records if r.condition == "L2"]])
    assert grouped.summaries[2].kl_nats == mean_interval(kl, groups=groups)
    assert grouped.summaries[2].kl_verdict.p_harmful != plain.summaries[2].kl_verdict.p_harmful
    assert grouped.summaries[2].accuracy_drop != plain.summaries[2].accuracy_drop
    assert grouped.worst_kl.p_value != plain.worst_kl.p_value
    few = [replace(r, group=f"s{int(r.sample[1:]) // 10}") for r in records]
    outcomes = {s.kl_verdict.outcome for s in analyse(few).summaries}
    assert outcomes == {"inconclusive"}, "six sources are six samples"


def test_samples_without_a_source_stand_for_themselves():
    records = [replace(r, group="s" if r.sample in ("q0", "q1") else None) for r in study(K=1)]
    table = Table(records)
    groups = table.groups(table.block("L0").samples)
    assert len(set(groups)) == 39 and groups[0] == groups[1]
    assert Table(study(K=1)).groups(["q0", "q1"]) is None


def test_without_answers_accuracy_is_no_verdict():
    found = analyse(study(generates=False))
    verdict = found.summaries[0].accuracy_verdict
    assert verdict.outcome == "inconclusive" and math.isnan(verdict.p_harmful)
    assert "nothing was generated" in verdict.reason
    zero = analyse([replace(r, is_right=False) for r in study()])
    assert "no question right" in zero.summaries[0].accuracy_verdict.reason


def test_overflow_harms_and_a_clean_model_that_overflowed_says_nothing():
    records = study(K=1, layers=1)
    burst = [
        replace(r, kl_nats=math.inf) if (r.condition, r.sample) == ("L0", "q7") else r
        for r in records
    ]
    assert analyse(burst).summaries[0].kl_verdict.reason.startswith("harmful: the logits overflow")
    clean_too = [replace(r, kl_nats=math.nan) if r.sample == "q7" else r for r in records]
    verdict = analyse(clean_too).summaries[0].kl_verdict
    assert "overflowed" not in verdict.reason and verdict.p_harmful > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accuracy_margin": 0.0}, "accuracy margin 0.0: give a number between 0 and 1"),
        ({"accuracy_margin": 1.0}, "accuracy margin 1.0"),
        ({"kl_margin": -1.0}, "kl margin -1.0: give a number above 0, in nats"),
        ({"kl_margin": math.nan}, "kl margin nan"),
    ],
)
def test_margins_that_are_none(arguments, message):
    with pytest.raises(InputError, match=message):
        analyse(study(), **arguments)


def test_records_that_contradict_each_other_are_refused():
    records = study(K=1, layers=1)
    assert equal(analyse(records + records[-1:]), analyse(records))
    with pytest.raises(InputError, match="two records of 'L0', draw 0, sample 'q39' differ"):
        Table([*records, replace(records[-1], kl_nats=1.0)])


def test_wider_margins_make_harm_harmless():
    tight, wide = analyse(study()), analyse(study(), kl_margin=5.0, accuracy_margin=0.9)
    assert {s.kl_verdict.outcome for s in tight.summaries} == {"harmful"}
    assert {s.kl_verdict.outcome for s in wide.summaries} == {"harmless"}
    assert {s.kl_verdict.margin for s in wide.summaries} == {5.0}
