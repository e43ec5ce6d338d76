"""The pieces of every interval, each against a definition written out anew."""

import math

import numpy as np
import pytest
from scipy import stats

from noisescope.analyse import crossed_interval, mean_interval, mean_test_p, t_test_p
from noisescope.analyse.moments import by_group, moments_of, skewed, unskewed


def table(K, N, seed, draw_sd=0.5):
    rng = np.random.default_rng(seed)
    draws = draw_sd * rng.standard_normal((K, 1))
    return 0.3 + draws + rng.exponential(1, (1, N)) + rng.standard_normal((K, N))


def symmetric(K, N, seed):
    """Values whose questions lie in pairs about the mean, so that nothing is skewed."""
    values = table(K, N, seed, draw_sd=0.0)
    values -= values.mean()
    return 0.7 + np.concatenate([values, -values], axis=1)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("N", [3, 20])
def test_without_skewness_one_draw_has_the_t_interval(N, confidence):
    values = symmetric(1, N, seed=N)
    ours, plain = mean_interval(values, confidence), crossed_interval(values, confidence)
    assert (ours.low, ours.high) == pytest.approx((plain.low, plain.high), rel=1e-9)
    assert mean_test_p(values) == pytest.approx(t_test_p(values), rel=1e-9)


def test_a_right_tail_moves_both_bounds_up():
    values = np.random.default_rng(0).lognormal(size=(1, 40))
    ours, plain = mean_interval(values), crossed_interval(values)
    assert ours.low > plain.low and ours.high > plain.high
    mirrored = mean_interval(-values)
    assert (-mirrored.high, -mirrored.low) == pytest.approx((ours.low, ours.high))


@pytest.mark.parametrize("a", [-0.8, -1e-3, 0.0, 1e-12, 0.2, 1.5])
def test_the_transformation_is_halls_cubic_and_its_inverse(a):
    t = np.linspace(-6, 6, 25)
    written_out = t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6
    assert unskewed(t, a) == pytest.approx(written_out)
    assert (np.diff(unskewed(t, a)) >= 0).all()
    assert skewed(unskewed(t, a), a) == pytest.approx(t, abs=1e-6)


def test_a_skewed_mean_becomes_a_t_value():
    """The one-sided errors of the mean of 30 exponentials, each meant to be 2.5 %."""
    values = np.random.default_rng(1).exponential(1, (40_000, 1, 30))
    moments = moments_of(values)
    plain = (moments.mean - 1) / np.sqrt(moments.variance)
    freed = unskewed(plain, moments.skewness)
    edge = stats.t.isf(0.025, 29)
    assert (plain < -edge).mean() > 0.055 and (plain > edge).mean() < 0.012
    assert (freed < -edge).mean() < 0.040 and (freed > edge).mean() == pytest.approx(
        0.025, abs=0.01
    )


@pytest.mark.parametrize(("K", "N"), [(2, 30), (4, 10), (7, 90)])
@pytest.mark.parametrize("tail", [1e-6, 0.0018, 0.025, 0.3])
def test_the_critical_value_weighs_both_sources(K, N, tail):
    values = table(K, N, seed=K)
    moments = moments_of(values)
    mean = values.mean()
    ms_s = N * ((values.mean(axis=1) - mean) ** 2).sum() / (K - 1)
    rest = values - values.mean(axis=1)[:, None] - values.mean(axis=0)[None] + mean
    ms_e = (rest**2).sum() / ((K - 1) * (N - 1))
    ms_q = K * ((values.mean(axis=0) - mean) ** 2).sum() / (N - 1)
    assert ms_q > ms_e, "so that nothing is at its floor"
    of_draws, of_questions = stats.t.isf(tail, K - 1), stats.t.isf(tail, N - 1)
    expected = (ms_s * of_draws + (ms_q - ms_e) * of_questions) / (ms_s + ms_q - ms_e)
    assert float(moments.critical(tail)) == pytest.approx(expected, rel=1e-9)
    assert float(moments.tail(expected)) == pytest.approx(tail, rel=1e-5)
    assert float(moments.tail(-expected)) == pytest.approx(1 - tail, rel=1e-5)


@pytest.mark.parametrize("K", [1, 2, 6])
def test_p_and_bounds_agree(K):
    values = table(K, 25, seed=K)
    moments = moments_of(values)
    low, high = moments.bounds(0.05)
    assert float(moments.p_above(float(low))) == pytest.approx(0.05, rel=1e-4)
    assert float(moments.p_below(float(high))) == pytest.approx(0.05, rel=1e-4)
    assert moments.is_above(float(low) - 1e-6, 0.05) and not moments.is_above(
        float(low) + 1e-6, 0.05
    )
    assert moments.is_below(float(high) + 1e-6, 0.05)
    assert mean_test_p(values - float(low)) == pytest.approx(0.10, rel=1e-4)


@pytest.mark.parametrize(("K", "N"), [(1, 3), (2, 8), (6, 9)])
def test_one_more_question_is_as_if_it_had_been_there(K, N):
    values = table(K, N, seed=3)
    told = moments_of(values).with_unseen(np.asarray(7.0))
    measured = moments_of(np.concatenate([values, np.full((K, 1), 7.0)], axis=1))
    for name in ("mean", "ms_draw", "ms_question", "ms_rest", "third_question", "N"):
        assert getattr(told, name) == pytest.approx(getattr(measured, name), rel=1e-9), name


def test_the_third_moment_is_unbiased():
    values = np.random.default_rng(2).exponential(1, (200_000, 1, 5))  # its third moment is 2
    assert moments_of(values).third_question.mean() == pytest.approx(2.0, abs=0.1)


def test_more_of_the_same_is_foretold():
    """Components from many small studies, averaged, foretell a larger study's mean squares."""
    rng = np.random.default_rng(4)

    def studies(K, N):
        shape = (4000, K, N)
        draws, questions = rng.normal(0, 0.5, (4000, K, 1)), rng.normal(0, 2, (4000, 1, N))
        return moments_of(draws + questions + rng.normal(0, 1, shape))

    small, large = studies(4, 30), studies(8, 60)
    for name, tolerance in (("ms_draw", 0.10), ("ms_question", 0.02), ("ms_rest", 0.01)):
        told, found = getattr(small.at(8, 60), name).mean(), getattr(large, name).mean()
        assert told == pytest.approx(found, rel=tolerance), name


def test_questions_of_one_source_count_as_one():
    """Each question asked three times over: the interval is that of the questions asked once."""
    once = table(4, 12, seed=5)
    thrice, groups = np.repeat(once, 3, axis=1), np.repeat(np.arange(12), 3).tolist()
    for interval in (crossed_interval, mean_interval):
        grouped, alone = interval(thrice, groups=groups), interval(once)
        assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high))
    assert t_test_p(thrice, groups) == pytest.approx(t_test_p(once))
    assert mean_test_p(thrice, groups) == pytest.approx(mean_test_p(once), rel=1e-4)
    assert crossed_interval(thrice[:1]).high < crossed_interval(once[:1]).high


def test_groups_keep_the_mean_of_every_draw_and_ignore_order():
    values = table(3, 10, seed=6)
    groups = ["a", "b", "a", "c", "c", "a", "d", "e", "b", "c"]
    grouped = by_group(values, groups)
    assert grouped.shape == (3, 5)
    assert grouped.mean(axis=1) == pytest.approx(values.mean(axis=1))
    order = np.random.default_rng(0).permutation(10)
    mixed = crossed_interval(values[:, order], groups=[groups[i] for i in order])
    assert mixed.high == pytest.approx(crossed_interval(values, groups=groups).high)
    assert by_group(values, list(range(10))) is values


@pytest.mark.parametrize("interval", [crossed_interval, mean_interval])
def test_one_source_has_no_interval(interval):
    found = interval(table(2, 9, seed=7), groups=["a"] * 9)
    assert math.isfinite(found.mean) and not found.is_known
    assert math.isnan(t_test_p(table(2, 9, seed=7), ["a"] * 9))


def test_clustered_intervals_cover():
    """Ten questions to a source, sources unequal in size, K = 1 and 4."""
    rng = np.random.default_rng(8)
    sizes = np.tile([4, 8, 18], 10)
    groups = np.repeat(np.arange(30), sizes).tolist()
    for K, least in ((1, 0.93), (4, 0.93)):
        covered = naive = 0
        for _ in range(1500):
            source = np.repeat(rng.standard_normal(30), sizes)
            values = source + rng.standard_normal((K, sizes.sum()))
            found, plain = mean_interval(values, groups=groups), mean_interval(values)
            covered += found.low <= 0 <= found.high
            naive += plain.low <= 0 <= plain.high
        assert least - 0.015 <= covered / 1500 <= 0.985, K
        assert naive / 1500 < 0.60


def test_cautions_say_what_is_wrong():
    assert mean_interval(symmetric(1, 30, 1)).caution == ""
    assert mean_interval(table(2, 30, 1)).caution.startswith("few draws: 2 hardly tell")
    assert "few questions: 6 are" in mean_interval(table(1, 6, 1)).caution
    grouped = mean_interval(table(1, 30, 1), groups=[i % 5 for i in range(30)])
    assert "few sources of questions: 5 are" in grouped.caution
    outlier = np.full((1, 60), 0.1) + np.arange(60) / 1e4
    outlier[0, 7] = 50.0
    assert mean_interval(outlier).caution.startswith("skewed: ")
    outlier[0, 7] = math.inf
    assert mean_interval(outlier).caution == "1 of 60 questions are not finite and left out"
