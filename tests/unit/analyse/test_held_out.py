"""The worst window's loss on data that did not choose it, and the set that may hold the worst."""

import math

import numpy as np
import pytest
from scipy import stats

from noisescope.analyse import Table, worst_by_accuracy, worst_by_kl
from noisescope.analyse.held_out import folds_of, hold_out
from noisescope.analyse.intervals import mean_interval
from noisescope.records import CLEAN, Record


def table(losses_LKN, right_LKN=None, groups=None):
    """A table of layers L0, L1 ...; every answer of the clean model is right."""
    _, _, N = np.shape(losses_LKN)
    groups = groups or [None] * N
    found = [Record(CLEAN, 0, f"q{i}", 4, 0.0, 0.0, 1.0, True, group=groups[i]) for i in range(N)]
    for layer, draws in enumerate(losses_LKN):
        for k, row in enumerate(draws):
            for i, kl in enumerate(row):
                right = True if right_LKN is None else bool(right_LKN[layer][k][i])
                found.append(
                    Record(f"L{layer}", k, f"q{i}", 4, float(kl), 0.0, 0.9, right, group=groups[i])
                )
    return Table(found)


def equal_layers(rng, K, N, layers=28):
    shared = rng.exponential(0.5, (1, 1, N))
    return shared + rng.exponential(0.5, (layers, 1, N)) + rng.exponential(0.5, (layers, K, N))


def test_folds_are_even_and_never_split_a_source():
    assert folds_of(range(7)).tolist() == [0, 1, 2, 3, 4, 0, 1]
    groups = ["a", "b", "a", "c", "d", "e", "f", "b"]
    assert folds_of(groups).tolist() == [0, 1, 0, 2, 3, 4, 0, 1]


@pytest.mark.parametrize("K", [1, 2, 6])
def test_every_block_is_chosen_by_all_others(K):
    """Recomputed cell by cell, without folds of arrays."""
    rng = np.random.default_rng(K)
    losses = {f"L{i}": rng.standard_normal((K, 11)) for i in range(4)}
    found = hold_out(losses)
    for k in range(K):
        for i in range(11):
            other = [
                (a, b)
                for a in range(K)
                for b in range(11)
                if (K == 1 or a % 5 != k % 5) and b % 5 != i % 5
            ]
            means = {n: np.mean([x[a, b] for a, b in other]) for n, x in losses.items()}
            best = max(means, key=means.get)
            assert found.values_KN[k, i] == losses[best][k, i]
    assert found.includes_draws == (K > 1)
    assert len(found.choices) == 5 * (1 if K == 1 else min(K, 5))


@pytest.mark.parametrize(("layers", "K"), [(28, 1), (28, 4), (5, 1)])
def test_the_largest_of_equal_layers_is_too_large_and_the_held_out_is_not(layers, K):
    rng = np.random.default_rng([layers, K])
    naive, held, covered, plainly, studies = [], [], 0, 0, 600
    for _ in range(studies):
        values = equal_layers(rng, K, 50, layers)
        naive.append(values.mean(axis=(1, 2)).max() - 1.5)
        held_out = hold_out({f"L{i}": x for i, x in enumerate(values)})
        plain = mean_interval(held_out.values_KN)
        interval = held_out.interval(plain, None, is_close=True)
        held.append(interval.mean - 1.5)
        covered += interval.low <= 1.5 <= interval.high
        plainly += plain.low <= 1.5 <= plain.high
    assert np.mean(naive) > 0.1
    assert abs(np.mean(held)) < 3 * np.std(held) / math.sqrt(studies)
    assert 0.93 - 0.02 <= covered / studies <= 0.97 + 0.015
    assert plainly < covered


def test_a_clear_choice_is_not_widened():
    values = np.random.default_rng(5).exponential(1, (3, 1, 30))
    held_out = hold_out({f"L{i}": x for i, x in enumerate(values)})
    plain = mean_interval(held_out.values_KN)
    assert held_out.interval(plain, None, is_close=False) is plain
    wide = held_out.interval(plain, None, is_close=True)
    assert wide.low < plain.low and wide.high > plain.high and wide.mean == plain.mean
    own = stats.sem(held_out.values_KN[0] - values.mean(axis=0)[0])
    factor = math.sqrt(1 + (own / stats.sem(held_out.values_KN[0])) ** 2)
    assert wide.high - wide.mean == pytest.approx(factor * (plain.high - plain.mean))


def test_the_worst_tells_its_held_out_loss():
    rng = np.random.default_rng(0)
    values = equal_layers(rng, 3, 40, layers=5)
    values[2] += 1.0
    worst = worst_by_kl(table(values))
    assert (worst.condition, worst.chosen_again, worst.held_out_draws) == ("L2", 1.0, True)
    assert worst.held_out == mean_interval(values[2])
    one = worst_by_kl(table(values[:, :1]))
    assert not one.held_out_draws and not one.held_out.includes_draws
    unsure = worst_by_kl(table(equal_layers(rng, 1, 40, layers=8)))
    assert unsure.chosen_again < 1.0


def test_sources_are_held_out_together():
    """Sources whose every question favours one layer: it is never measured where it was chosen."""
    sources = [i // 4 for i in range(40)]
    values = np.random.default_rng(1).normal(0, 1, (10, 1, 10))
    repeated = 5 + np.repeat(values, 4, axis=2)
    by_source = worst_by_kl(table(repeated, groups=[f"s{g}" for g in sources]))
    once = worst_by_kl(table(5 + values))
    assert by_source.held_out.mean == pytest.approx(once.held_out.mean)


def test_accuracy_is_held_out_too():
    rng = np.random.default_rng(2)
    right = rng.random((6, 1, 60)) > 0.3
    worst = worst_by_accuracy(table(np.ones((6, 1, 60)), right))
    assert worst.held_out.is_known
    assert worst.held_out.mean <= 1 - right.mean(axis=(1, 2)).min()


def test_a_reserve_gives_the_loss_and_chooses_nothing():
    values = equal_layers(np.random.default_rng(3), 2, 40, layers=3)
    values[1, :, :30] += 2.0
    values[0, :, 30:] += 9.0
    reserve = [f"q{i}" for i in range(30, 40)]
    worst = worst_by_kl(table(values), reserve=reserve)
    assert worst.condition == "L1" and math.isnan(worst.chosen_again)
    assert worst.held_out == mean_interval(values[1][:, 30:])


def test_one_question_cannot_be_held_out():
    worst = worst_by_kl(table(np.ones((2, 1, 1)) * np.array([1.0, 2.0])[:, None, None]))
    assert worst.condition == "L1" and not worst.held_out.is_known
    assert math.isnan(worst.chosen_again)


@pytest.mark.parametrize(
    "means",
    [[1.0] * 8, [1.0, 1.0, 0.2, 0.2, 0.2], [1.0, 0.95, 0.9, 0.85, 0.5, 0.4], [1.05, *[1.0] * 7]],
)
def test_the_true_worst_is_seldom_left_out_of_the_rivals(means):
    """Of all that are tied for the worst, one is taken for it and must be the picked or a rival."""
    rng = np.random.default_rng(4)
    missed, studies = 0, 150
    for _ in range(studies):
        shared = rng.exponential(0.3, 40)
        values = shared + rng.exponential(0.7, (len(means), 1, 40)) * np.array(means)[:, None, None]
        worst = worst_by_kl(table(values))
        missed += "L0" not in {worst.condition, *worst.rivals}
    assert missed / studies <= 0.05
