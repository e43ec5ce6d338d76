"""The worst condition is a finding only where the numbers can tell."""

import math

import numpy as np
import pytest
from scipy import stats

from noisescope.analyse import Table, degradation, worst_by_accuracy, worst_by_kl
from noisescope.analyse.avalanche import samples_needed
from noisescope.records import CLEAN, Record


def records(condition, kl_KN, right_KN=None):
    return [
        Record(
            condition=condition,
            draw=k,
            sample=str(i),
            tokens=3,
            kl_nats=float(kl),
            nll_change_nats=float(kl) / 2,
            top1_agreement=0.5,
            is_right=None if right_KN is None else bool(right_KN[k][i]),
        )
        for k, row in enumerate(kl_KN)
        for i, kl in enumerate(row)
    ]


def kl_table(samples=30, draws=1, spread=0.1, seed=0, **means):
    rng = np.random.default_rng(seed)
    found = records(CLEAN, np.zeros((1, samples)))
    for name, mean in means.items():
        found += records(name, np.abs(mean + spread * rng.standard_normal((draws, samples))))
    return Table(found)


def accuracy_table(clean, **conditions):
    """A table of right answers: each condition a list of draws, a draw a list of 0 and 1."""
    found = records(CLEAN, np.zeros((1, len(clean))), [clean])
    for name, draws in conditions.items():
        found += records(name, np.ones((len(draws), len(clean))), draws)
    return Table(found)


@pytest.mark.parametrize("draws", [1, 3])
def test_a_clearly_worse_window_is_conclusive(draws):
    worst = worst_by_kl(kl_table(draws=draws, L0=0.5, L1=2.0, L2=0.4))
    assert (worst.condition, worst.is_conclusive, worst.rivals) == ("L1", True, ())
    assert worst.p_value < 0.05
    assert worst.reason.startswith("L1 loses most, beyond chance (p = ")
    assert ("one draw" in worst.reason) == (draws == 1)


def test_equal_windows_are_inconclusive_and_the_rivals_are_named():
    worst = worst_by_kl(kl_table(L0=1.0, L1=1.0, L2=0.1))
    assert not worst.is_conclusive
    assert {worst.condition, *worst.rivals} == {"L0", "L1"}
    assert worst.p_value >= 0.05
    assert worst.reason.startswith(f"inconclusive: {worst.condition} loses most, but cannot be")
    assert f"told from {worst.rivals[0]} (p = " in worst.reason


def test_many_equal_windows_seldom_have_a_worst_one():
    names = {f"L{i}": 1.0 for i in range(8)}
    found = [worst_by_kl(kl_table(seed=seed, **names)).is_conclusive for seed in range(100)]
    assert sum(found) <= 5


def test_four_rivals_and_more_are_counted():
    worst = worst_by_kl(kl_table(samples=12, spread=3.0, **{f"L{i}": 5.0 for i in range(6)}))
    assert len(worst.rivals) == 5 and " and 2 more (" in worst.reason


def test_only_the_named_conditions_compete():
    table = kl_table(linear=1.0, softmax=0.2, all=5.0)
    assert worst_by_kl(table).condition == "all"
    among = worst_by_kl(table, ["linear", "softmax"])
    assert (among.condition, among.is_conclusive) == ("linear", True)


def test_one_condition_is_compared_with_the_clean_model_alone():
    worst = worst_by_kl(kl_table(L0=1.0))
    assert (worst.condition, worst.is_conclusive) == ("L0", True)


@pytest.mark.parametrize("samples", [2, 9])
def test_a_handful_of_samples_is_never_a_finding(samples):
    worst = worst_by_kl(kl_table(samples=samples, spread=0.01, L0=1.0, L1=0.2))
    assert (worst.condition, worst.is_conclusive) == ("L0", False)
    assert f"{samples} samples are too few to tell" in worst.reason
    assert worst_by_kl(kl_table(samples=10, spread=0.01, L0=1.0, L1=0.2)).is_conclusive


def test_a_condition_whose_logits_overflowed_cannot_be_ruled_out():
    rng = np.random.default_rng(0)
    burst = np.full((1, 50), 0.5) + rng.normal(0, 0.05, (1, 50))
    burst[0, :40] = np.inf
    mild = 1.0 + rng.normal(0, 0.05, (1, 50))
    clean = np.zeros((1, 50))
    table = Table(records(CLEAN, clean) + records("mild", mild) + records("burst", burst))
    worst = worst_by_kl(table)
    assert (worst.condition, worst.is_conclusive, worst.rivals) == ("mild", False, ("burst",))
    assert "the logits of burst overflowed" in worst.reason


def test_one_sample_is_too_few_for_a_test():
    worst = worst_by_kl(kl_table(samples=1, L0=1.0, L1=0.2))
    assert (worst.condition, worst.is_conclusive) == ("L0", False)
    assert math.isnan(worst.p_value) and worst.rivals == (CLEAN, "L1")
    assert "1 samples are too few to tell" in worst.reason


def test_noise_that_did_nothing_has_no_worst():
    table = Table(records(CLEAN, np.zeros((1, 5))) + records("L0", np.zeros((1, 5))))
    worst = worst_by_kl(table)
    assert (worst.condition, worst.is_conclusive) == (None, False)
    assert worst.reason == "no condition did worse than the clean model"


def test_what_is_not_finite_is_left_out_without_hiding_the_rest():
    values = np.full((1, 12), 2.0) + np.arange(12) / 10
    values[0, 3], values[0, 4] = math.nan, math.inf
    rest = records(CLEAN, np.zeros((1, 12))) + records("L1", np.full((1, 12), 0.5))
    worst = worst_by_kl(Table(rest + records("L0", values)))
    assert (worst.condition, worst.is_conclusive) == ("L0", True)
    nothing = Table(rest + records("L0", np.full((1, 12), math.nan)))
    assert worst_by_kl(nothing).condition == "L1"
    assert not worst_by_kl(nothing).is_conclusive
    empty = records(CLEAN, np.zeros((1, 2))) + records("L0", np.full((1, 2), math.nan))
    assert worst_by_kl(Table(empty)).condition is None


def test_accuracy_that_falls_far_is_conclusive_by_mcnemar():
    clean, bad, mild = [1] * 20, [0] * 16 + [1] * 4, [0] + [1] * 19
    worst = worst_by_accuracy(accuracy_table(clean, L0=[mild], L1=[bad]))
    assert (worst.condition, worst.is_conclusive) == ("L1", True)
    # Against the clean model 16 to 0, against L0 15 to 0; Holm takes twice the larger at most.
    assert worst.p_value == pytest.approx(2 * 0.5**15)


def test_accuracy_over_draws_that_falls_to_nothing_is_conclusive():
    clean = [1] * 20
    worst = worst_by_accuracy(accuracy_table(clean, L0=[clean] * 3, L1=[[0] * 20] * 3))
    assert (worst.condition, worst.is_conclusive) == ("L1", True)


def test_a_few_lost_answers_are_inconclusive():
    clean = [1] * 50
    worst = worst_by_accuracy(accuracy_table(clean, L0=[[0] * 2 + [1] * 48]))
    assert (worst.condition, worst.is_conclusive, worst.rivals) == ("L0", False, (CLEAN,))
    assert worst.p_value == 0.5
    assert "cannot be told from the clean model" in worst.reason


def test_a_baseline_of_zero_has_nothing_to_lose():
    worst = worst_by_accuracy(accuracy_table([0] * 4, L0=[[0] * 4], L1=[[1, 0, 0, 0]]))
    assert worst.condition is None and "answers no question right" in worst.reason


def test_without_answers_there_is_no_accuracy():
    table = kl_table(L0=1.0)
    worst = worst_by_accuracy(table)
    assert worst.condition is None and "nothing was generated" in worst.reason
    summary = table.summary("L0")
    assert math.isnan(summary.accuracy) and math.isnan(summary.degradation)
    assert not summary.accuracy_drop.is_known


def test_a_summary_is_the_mean_over_draws_and_samples():
    table = accuracy_table([1, 1, 0, 1], L0=[[1, 0, 0, 1], [0, 0, 1, 1]])
    summary = table.summary("L0")
    assert table.baseline_accuracy == 0.75
    assert summary.accuracy == 0.5 and summary.degradation == pytest.approx(1 / 3)
    assert summary.accuracy_drop.mean == 0.25 and summary.accuracy_drop.includes_draws
    assert (summary.draws, summary.samples) == (2, 4)
    assert summary.kl_nats.mean == 1.0 and summary.nll_change_nats.mean == 0.5


@pytest.mark.parametrize(
    ("baseline", "accuracy", "expected"), [(0.8, 0.6, 0.25), (0.5, 0.5, 0.0), (0.5, 0.75, -0.5)]
)
def test_degradation_is_the_plans(baseline, accuracy, expected):
    assert degradation(baseline, accuracy) == pytest.approx(expected)


@pytest.mark.parametrize("baseline", [0.0, math.nan])
def test_degradation_from_nothing_is_unknown(baseline):
    assert math.isnan(degradation(baseline, 0.0))


def test_samples_that_would_settle_it_follow_the_square_root_law():
    # p = .19 is z = 1.3106, so 50 (1.95996 / 1.3106)^2 = 111.8.
    assert samples_needed(50, 0.19) == 120
    # As many samples again as are said must bring the z value to the 5 % one.
    for p in (0.06, 0.1, 0.3, 0.45):
        z = -stats.norm.ppf(p / 2) * math.sqrt(samples_needed(1000, p) / 1000)
        assert 1.95996 <= z < 2.1
    assert samples_needed(50, 0.5) is None and samples_needed(50, math.nan) is None
