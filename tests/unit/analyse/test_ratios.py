"""Ratios against Fieller's closed form, the definition and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from noisescope.analyse.intervals import Interval, mean_interval
from noisescope.analyse.ratios import paired_ratio, ratio_to


def mirrored(seed, N=20):
    """Pairs that lie symmetrically about their mean, so that no difference of them is skewed."""
    half = np.array([2.0, 3.0]) + np.random.default_rng(seed).standard_normal((N, 2)) * 0.5
    x, y = np.concatenate([half, [4.0, 6.0] - half]).T
    return y[None], x[None]


def fieller(y, x):
    """The roots of (y - r x)^2 = t^2 var(y - r x), written out."""
    n = x.size
    t2 = stats.t.ppf(0.975, n - 1) ** 2
    (vy, c), (_, vx) = np.cov(y, x) / n
    a = x.mean() ** 2 - t2 * vx
    b = -2 * (x.mean() * y.mean() - t2 * c)
    return np.sort(np.roots([a, b, y.mean() ** 2 - t2 * vy]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sign", [1, -1])
def test_one_draw_without_skewness_is_fiellers_interval(seed, sign):
    y, x = mirrored(seed)
    found = paired_ratio(y, sign * x)
    assert found.mean == pytest.approx(sign * 1.5, rel=1e-12)
    expected = np.sort(sign * fieller(y[0], x[0]))
    assert (found.low, found.high) == pytest.approx(tuple(expected), rel=1e-7)
    assert not found.includes_draws


def test_a_common_unit_and_the_order_of_samples_do_not_matter():
    rng = np.random.default_rng(0)
    y, x = rng.exponential(2, (3, 30)), rng.exponential(1, (3, 30))
    found, order = paired_ratio(y, x), rng.permutation(30)
    again = paired_ratio(1e-6 * y[:, order], 1e-6 * x[:, order])
    assert (again.low, again.mean, again.high) == pytest.approx(
        (found.low, found.mean, found.high), rel=1e-6
    )


def test_a_bound_is_where_the_difference_can_just_be_told():
    rng = np.random.default_rng(1)
    y, x = rng.exponential(2, (1, 40)), rng.exponential(1, (1, 40))  # one draw: one t value
    found = paired_ratio(y, x)
    assert mean_interval(y - found.low * x).low == pytest.approx(0, abs=1e-7)
    assert mean_interval(y - found.high * x).high == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(("K", "N"), [(4, 20), (4, 100), (10, 50)])
def test_the_interval_covers(K, N):
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(500):
        common = np.exp(0.5 * rng.standard_normal((1, N)) + 0.2 * rng.standard_normal((K, 1)))
        y, x = (common * rng.gamma(4, 0.25, (K, N)) for _ in range(2))
        found = paired_ratio(1.7 * y, x)
        covered += found.low <= 1.7 <= found.high
    assert 0.925 <= covered / 500 <= (1 if K == 4 else 0.985)  # few draws: too wide, as it warns


def test_pairing_is_used():
    rng = np.random.default_rng(2)
    x = rng.exponential(1, (10, 40))
    y = x * rng.gamma(100, 0.01, (10, 40))
    apart = paired_ratio(y[:, ::-1], x)
    found = paired_ratio(y, x)
    assert found.high - found.low < 0.3 * (apart.high - apart.low)


def test_samples_of_one_source_count_as_one():
    rng = np.random.default_rng(3)
    y, x = rng.exponential(2, (3, 12)), rng.exponential(1, (3, 12))
    once = paired_ratio(y, x)
    thrice = paired_ratio(np.tile(y, 3), np.tile(x, 3), [*range(12)] * 3)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), rel=1e-6)


def test_a_sample_not_finite_in_either_is_left_out_of_both():
    y, x = mirrored(0)
    y, x = np.insert(y, 0, np.nan, axis=1), np.insert(x, 0, 900.0, axis=1)
    found = paired_ratio(y, x)
    assert found.mean == pytest.approx(1.5) and "1 of 41 questions are not finite" in found.caution


@pytest.mark.parametrize(
    ("y", "x"),
    [
        (np.ones((2, 1)), np.ones((2, 1))),
        (np.ones((2, 5)), np.zeros((2, 5))),
        (2 * np.arange(1.0, 6)[None], np.arange(1.0, 6)[None]),
        (np.full((2, 5), np.nan), np.ones((2, 5))),
        (np.zeros((2, 0)), np.zeros((2, 0))),
        (np.ones((1, 6)), np.array([[1.0, -1, 1, -1, 1, -0.9]])),
    ],
)
def test_without_spread_data_or_denominator_there_are_no_bounds(y, x):
    assert not paired_ratio(y, x).is_known


def interval(mean, half):
    return Interval(mean, mean - half, mean + half, 30.0, True)


@pytest.mark.parametrize(("y", "a", "x", "b"), [(3.0, 0.4, 2.0, 0.3), (0.1, 0.5, 1.0, 0.6)])
def test_symmetric_independent_bounds_give_fiellers_interval(y, a, x, b):
    roots = np.sort(np.roots([x**2 - b**2, -2 * x * y, y**2 - a**2]))
    found = ratio_to(interval(y, a), x, x - b, x + b)
    assert (found.low, found.high) == pytest.approx(tuple(roots), rel=1e-9)


def test_a_prediction_without_error_only_scales():
    found = ratio_to(Interval(3.0, 2.5, 4.0, 9.0, True), 2.0, 2.0, 2.0)
    assert (found.mean, found.low, found.high) == pytest.approx((1.5, 1.25, 2.0))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_prediction_that_is_not_above_zero_gives_no_ratio(value):
    found = ratio_to(interval(1.0, 0.1), value, value, value)
    assert math.isnan(found.mean) and not found.is_known


def test_a_prediction_not_told_from_zero_gives_no_bounds():
    found = ratio_to(interval(1.0, 0.1), 1.0, -0.1, 2.1)
    assert found.mean == 1.0 and not found.is_known and "from zero" in found.caution
