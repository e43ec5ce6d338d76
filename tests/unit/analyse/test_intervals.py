"""Intervals and tests against formulas written out anew, exhaustive sums and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from noisescope.analyse import crossed_interval, holm, mcnemar_p, share_interval, t_test_p


def anova(values):
    """Mean squares of a two-way table, cell by cell in plain Python."""
    K, N = len(values), len(values[0])
    mean = math.fsum(x for row in values for x in row) / (K * N)
    draws = [math.fsum(row) / N for row in values]
    questions = [math.fsum(row[i] for row in values) / K for i in range(N)]
    ms_s = N * math.fsum((d - mean) ** 2 for d in draws) / (K - 1)
    ms_q = K * math.fsum((q - mean) ** 2 for q in questions) / (N - 1)
    ms_e = math.fsum(
        (values[k][i] - draws[k] - questions[i] + mean) ** 2 for k in range(K) for i in range(N)
    ) / ((K - 1) * (N - 1))
    return mean, ms_s, ms_q, ms_e


def table(draws, questions, draw_sd, question_sd, seed):
    rng = np.random.default_rng(seed)
    return (
        0.3
        + draw_sd * rng.standard_normal((draws, 1))
        + question_sd * rng.standard_normal((1, questions))
        + rng.standard_normal((draws, questions))
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("draw_sd", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("question_sd", [0.0, 1.0])
@pytest.mark.parametrize(("K", "N"), [(2, 2), (2, 30), (4, 20), (10, 7)])
def test_the_interval_is_that_of_the_reference(K, N, draw_sd, question_sd, seed):
    values = table(K, N, draw_sd, question_sd, seed)
    mean, ms_s, ms_q, ms_e = anova(values.tolist())
    total = ms_s + ms_q - ms_e
    degrees = total**2 / (ms_s**2 / (K - 1) + ms_q**2 / (N - 1) + ms_e**2 / ((K - 1) * (N - 1)))
    if total <= max(ms_s, ms_q):  # the estimate may not fall below either source alone
        total = max(ms_s, ms_q)
        degrees = K - 1 if ms_s >= ms_q else N - 1
    half = stats.t.ppf(0.975, degrees) * math.sqrt(total / (K * N))
    found = crossed_interval(values)
    assert found.mean == pytest.approx(mean, rel=1e-12)
    assert found.degrees == pytest.approx(degrees, rel=1e-9)
    assert found.low == pytest.approx(mean - half, rel=1e-9, abs=1e-12)
    assert found.high == pytest.approx(mean + half, rel=1e-9, abs=1e-12)
    assert found.includes_draws and found.is_known


@pytest.mark.parametrize("N", [2, 5, 60])
def test_one_draw_gives_the_t_interval_over_questions_and_says_so(N):
    values = table(1, N, 0.0, 1.0, seed=N)
    found = crossed_interval(values, confidence=0.9)
    low, high = stats.t.interval(0.9, N - 1, values.mean(), stats.sem(values[0]))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert not found.includes_draws


@pytest.mark.parametrize(
    ("K", "draw_sd"), [(1, 0.0), (4, 0.0), (10, 0.0), (4, 0.2), (10, 0.2), (4, 1.0), (10, 1.0)]
)
@pytest.mark.parametrize("N", [20, 100])
def test_the_interval_covers_the_truth_as_often_as_it_says(K, N, draw_sd):
    repetitions = 2000
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(repetitions):
        values = (
            draw_sd * rng.standard_normal((K, 1))
            + rng.standard_normal((1, N))
            + rng.standard_normal((K, N))
        )
        interval = crossed_interval(values)
        covered += interval.low <= 0 <= interval.high
    assert 0.93 <= covered / repetitions <= 0.97


@pytest.mark.parametrize("N", [20, 200])
def test_with_one_draw_the_variance_between_draws_is_missed(N):
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(500):
        interval = crossed_interval(rng.standard_normal() + rng.standard_normal((1, N)))
        covered += interval.low <= 0 <= interval.high
    assert covered / 500 < 0.5, "which is why includes_draws is False"


@pytest.mark.parametrize("values", [np.zeros((3, 0)), np.full((2, 4), np.nan)])
def test_no_data_has_neither_mean_nor_interval(values):
    found = crossed_interval(values)
    assert math.isnan(found.mean) and not found.is_known


@pytest.mark.parametrize("K", [1, 5])
def test_one_question_has_a_mean_and_no_interval(K):
    found = crossed_interval(np.arange(K, dtype=float)[:, None])
    assert found.mean == (K - 1) / 2
    assert math.isnan(found.low) and math.isnan(found.high) and not found.is_known


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_question_that_is_not_finite_in_any_draw_is_left_out(broken):
    values = table(4, 9, 0.5, 1.0, seed=2)
    expected = crossed_interval(np.delete(values, 3, axis=1))
    values[2, 3] = broken
    assert crossed_interval(values) == expected


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_values_that_never_differ_give_no_interval(value):
    found = crossed_interval(np.full((3, 8), value))
    assert found.mean == pytest.approx(value)
    assert math.isnan(found.low) and math.isnan(found.high)


@pytest.mark.parametrize(
    ("value", "low", "high"), [(0, -0.03, 0.03), (1, 0.97, 1), (-1, -1, -0.97)]
)
def test_no_discordant_answer_leaves_the_rule_of_three(value, low, high):
    found = share_interval(np.full((2, 100), float(value)))
    assert (found.mean, found.low, found.high) == pytest.approx((value, low, high))
    # The exact bound is 1 - 0.05^(1/N), which the rule approximates from above.
    assert 0.03 >= 1 - 0.05 ** (1 / 100)


@pytest.mark.parametrize(
    "values", [[[0, 1], [1, 0]], [[1, -1], [-1, 1]], [[0, 1, 0, 1], [1, 0, 1, 0]]]
)
def test_level_draws_and_questions_leave_the_rest_to_judge_by(values):
    """Both mean squares vanish though values differ: (K-1)(N-1) degrees and MS_E remain."""
    table = np.array(values, dtype=float)
    K, N = table.shape
    rest = ((table - table.mean()) ** 2).sum() / ((K - 1) * (N - 1))
    found = crossed_interval(table)
    half = stats.t.ppf(0.975, (K - 1) * (N - 1)) * math.sqrt(rest / (K * N))
    assert (found.low, found.high) == pytest.approx((table.mean() - half, table.mean() + half))
    assert 0 < t_test_p(table) <= 1


@pytest.mark.parametrize("N", [2, 10, 80])
def test_one_draws_p_is_that_of_a_paired_t_test(N):
    values = table(1, N, 0.0, 0.5, seed=N)
    expected = stats.ttest_1samp(values[0], 0.0).pvalue
    assert t_test_p(values) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_p_and_interval_agree_on_what_five_percent_means(seed):
    values = table(4, 25, 0.1, 1.0, seed) - 0.3
    interval = crossed_interval(values)
    edge = values - interval.low  # the lower bound is now exactly zero
    assert t_test_p(edge) == pytest.approx(0.05, rel=1e-6)


def test_p_without_variance_is_the_sign_tests():
    assert t_test_p(np.ones((3, 10))) == pytest.approx(2 * 0.5**10)
    assert t_test_p(-np.ones((1, 2))) == 0.5
    assert t_test_p(np.zeros((3, 10))) == 1.0
    assert math.isnan(t_test_p(np.ones((3, 1))))
    assert math.isnan(t_test_p(np.full((2, 5), np.nan)))


def answers(only_first, only_second, both, neither):
    first = [True] * only_first + [False] * only_second + [True] * both + [False] * neither
    second = [False] * only_first + [True] * only_second + [True] * both + [False] * neither
    return first, second


@pytest.mark.parametrize(
    ("b", "c"), [(0, 1), (1, 1), (5, 0), (3, 9), (12, 4), (7, 7), (0, 12), (2, 10)]
)
def test_mcnemar_is_the_sum_over_every_assignment_of_the_discordant_pairs(b, c):
    worse = sum(
        min(sum(w), b + c - sum(w)) <= min(b, c) for w in itertools.product((0, 1), repeat=b + c)
    )
    expected = min(1.0, worse / 2 ** (b + c))
    assert mcnemar_p(*answers(b, c, 4, 5)) == pytest.approx(expected, rel=1e-12)


def test_fifty_questions_cannot_tell_78_from_64_percent():
    # 39 against 32 right of 50: the published p of .19 is that of 15 against 8 discordant pairs.
    first, second = answers(15, 8, 24, 3)
    assert (sum(first) / 50, sum(second) / 50) == (0.78, 0.64)
    expected = min(1.0, 2 * sum(math.comb(23, k) for k in range(9)) / 2**23)
    assert mcnemar_p(first, second) == pytest.approx(expected, rel=1e-12)
    assert 0.18 < expected < 0.22


def test_without_discordant_pairs_p_is_one():
    assert mcnemar_p(*answers(0, 0, 30, 20)) == 1.0


def test_holm_by_hand():
    # Sorted .005 .01 .03 .04: times 4, 3, 2, 1, and never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_leaves_the_unknown_out():
    found = holm([0.01, math.nan, 0.04])
    assert found[0] == pytest.approx(0.02) and found[2] == pytest.approx(0.04)
    assert math.isnan(found[1])
