"""Differences of right answers: exact sums, published figures and the limits of both."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from noisescope.analyse.shares import share_interval, shares_of


def answers(lost, won, N, K=1):
    row = np.array([1.0] * lost + [-1.0] * won + [0.0] * (N - lost - won))
    return np.tile(row, (K, 1))


@pytest.mark.parametrize(("lost", "won", "N"), [(1, 0, 50), (8, 2, 50), (30, 12, 200), (0, 3, 100)])
def test_one_draw_is_bonett_and_prices_interval_with_t(lost, won, N):
    found = share_interval(answers(lost, won, N))
    p, q = (lost + 1) / (N + 2), (won + 1) / (N + 2)
    reach = stats.t.ppf(0.975, N - 1) * math.sqrt((p + q - (p - q) ** 2) / (N + 2))
    assert found.mean == pytest.approx((lost - won) / N)
    assert (found.low, found.high) == pytest.approx((p - q - reach, p - q + reach), rel=1e-9)


def test_the_effective_number_of_answers():
    """One draw: the questions. Equal draws: still the questions. Independent draws: all answers."""
    assert shares_of(answers(5, 2, 60)).size == pytest.approx(60)
    rng = np.random.default_rng(0)
    sizes = [shares_of(1.0 * (rng.random((5, 400)) < 0.2)).size for _ in range(200)]
    assert 1500 < np.median(sizes) <= 2600
    rows = 1.0 * (rng.random((1, 400)) < 0.2)
    assert shares_of(np.tile(rows, (5, 1))).size == pytest.approx(400, rel=0.01)
    # Every question asked four times over is worth one.
    assert shares_of(np.repeat(rows, 4, axis=1), np.repeat(np.arange(400), 4).tolist()).size == (
        pytest.approx(400, rel=0.01)
    )


def tango_p(lost, won, N, margin):
    """Tango's score test with the nuisance rate found by maximising the likelihood numerically."""

    def minus_log_likelihood(q):
        rest = N - lost - won
        cells = ((lost, q + margin), (won, q), (rest, 1 - 2 * q - margin))
        return -sum(n * math.log(p) for n, p in cells if n)

    q = optimize.minimize_scalar(
        minus_log_likelihood,
        bounds=(1e-12, (1 - margin) / 2 - 1e-9),
        method="bounded",
        options={"xatol": 1e-12},
    ).x
    return stats.norm.cdf((lost - won - N * margin) / math.sqrt(N * (2 * q + margin - margin**2)))


@pytest.mark.parametrize(
    ("lost", "won", "N", "margin"), [(4, 3, 100, 0.1), (2, 1, 500, 0.01), (20, 22, 300, 0.05)]
)
def test_the_score_test_is_tangos(lost, won, N, margin):
    found = shares_of(answers(lost, won, N))._score(margin)
    assert found == pytest.approx(tango_p(lost, won, N, margin), rel=1e-4)


@pytest.mark.parametrize(("lost", "N", "margin"), [(1, 500, 0.01), (3, 400, 0.02), (6, 1000, 0.01)])
def test_only_losses_are_held_against_the_exact_binomial(lost, N, margin):
    shares = shares_of(answers(lost, 0, N))
    exact = stats.binom.cdf(lost, N, margin)
    assert shares._binomial(margin) == pytest.approx(exact, rel=1e-9)
    assert shares.p_below(margin) >= exact


@pytest.mark.parametrize(("lost", "won"), [(6, 0), (9, 1), (12, 5)])
def test_harm_in_one_draw_must_survive_the_exact_mcnemar(lost, won):
    exact = stats.binom.sf(lost - 1, lost + won, 0.5)
    shares = shares_of(answers(lost, won, 50))
    assert shares._mcnemar() == pytest.approx(exact, rel=1e-9)
    assert shares.p_above(0.01) >= exact


@pytest.mark.parametrize("N", [299, 300])
@pytest.mark.parametrize("K", [1, 4])
def test_without_any_change_three_over_n_is_the_bound(N, K):
    p = shares_of(np.zeros((K, N))).p_below(0.01)
    assert (p < 0.05) == (3 / N <= 0.01)
    assert p >= (1 - 0.01) ** N, "never bolder than the exact chance"


def test_all_lost_and_all_won():
    lost, won = shares_of(np.ones((2, 12))), shares_of(-np.ones((2, 12)))
    assert lost.p_above(0.01) == pytest.approx(0.505**12) and lost.p_below(0.01) == 1
    assert won.p_above(0.01) == 1


@pytest.mark.parametrize("lost_rate", [0.01, 0.02])
@pytest.mark.parametrize("N", [150, 300, 463, 610, 1000])
def test_a_loss_at_the_margin_is_seldom_called_harmless(N, lost_rate):
    """The sum over every outcome of one draw, at most 5 %, with and without answers won."""
    won_rate = lost_rate - 0.01
    wins = range(int(N * won_rate + 8 * math.sqrt(N * won_rate + 1))) if won_rate else [0]
    chance = 0.0
    for lost in range(int(N * lost_rate)):
        for won in wins:
            if lost - won >= N * 0.01 or not shares_of(answers(lost, won, N)).is_below(0.01, 0.05):
                continue
            p_won = stats.binom.pmf(won, N, won_rate)
            chance += p_won * stats.binom.pmf(lost, N - won, lost_rate / (1 - won_rate))
    assert chance <= 0.05


def test_few_changes_are_cautioned():
    assert (
        "few discordant answers: 3 of 50 questions changed"
        in share_interval(answers(2, 1, 50)).caution
    )
    assert share_interval(answers(20, 9, 100)).caution == ""
    assert share_interval(np.zeros((1, 80))).caution.startswith("few discordant answers: 0 of 80")


@pytest.mark.parametrize("values", [np.zeros((2, 0)), np.full((1, 3), np.nan), np.ones((3, 1))])
def test_less_than_two_questions_have_no_interval(values):
    assert not share_interval(values).is_known


def test_one_source_has_no_interval():
    assert not share_interval(answers(3, 1, 20), ["a"] * 20).is_known
