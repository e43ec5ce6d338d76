"""Choices of formats against every assignment there is."""

import itertools
import os

import numpy as np
import pytest

from noisescope.analyse.recommend import (
    Choices,
    Point,
    by_weight_error,
    fewest_bits,
    frontier,
    last_high,
    least_loss,
    neighbours,
)
from noisescope.errors import InputError

BITS = (4.25, 4.5, 8.0, 16.0)


def choices_of(kl, bits, weights=None):
    kl = np.array(kl, dtype=float)
    groups, formats = kl.shape
    table = np.broadcast_to(np.array(bits, dtype=float), kl.shape)
    sizes = np.ones(groups) if weights is None else np.array(weights, dtype=float)
    names = tuple(f"g{n}" for n in range(groups))
    return Choices(names, tuple(f"f{n}" for n in range(formats)), kl, table, sizes)


def random_choices(seed):
    """Losses over ten powers of ten, sizes as of attention, maps and a head."""
    generator = np.random.default_rng(seed)
    groups, formats = int(generator.integers(1, 7)), int(generator.integers(1, 5))
    bits = np.sort(generator.choice(BITS, formats, replace=seed % 3 == 0))
    kl = 10.0 ** generator.uniform(-9, 1, (groups, formats))
    if seed % 2:
        kl = np.sort(kl, axis=1)[:, ::-1]
    own = bits + generator.choice([0.0, 0.01], (groups, formats)) * (seed % 5 == 0)
    return choices_of(kl, own, generator.choice([64, 128, 344, 4000], groups))


def assignments(choices):
    """Every assignment with its bits and loss, by loops."""
    total = sum(choices.weights_G)
    for chosen in itertools.product(range(len(choices.formats)), repeat=len(choices.groups)):
        bits = (
            sum(choices.bits_GF[g][f] * choices.weights_G[g] for g, f in enumerate(chosen)) / total
        )
        yield chosen, bits, sum(choices.kl_GF[g][f] for g, f in enumerate(chosen))


def best_within(choices, bits):
    return min(kl for _, b, kl in assignments(choices) if b <= bits * (1 + 1e-9))


def budgets_of(choices, count=7):
    costs = sorted({b for _, b, _ in assignments(choices)})
    some = costs[:: max(1, len(costs) // count)]
    return [*some, *(b + 1e-4 for b in some), 32.0]


@pytest.mark.parametrize("seed", range(20))
def test_no_assignment_within_the_bits_loses_less(seed):
    choices = random_choices(seed)
    for bits in budgets_of(choices):
        point = least_loss(choices, bits)
        assert point.bits <= bits * (1 + 1e-6)
        assert point.kl_nats == pytest.approx(best_within(choices, bits), rel=1e-6)
        found = {c: (b, kl) for c, b, kl in assignments(choices)}[point.chosen]
        assert (point.bits, point.kl_nats) == pytest.approx(found)


@pytest.mark.parametrize("seed", range(20))
def test_no_assignment_within_the_loss_has_fewer_bits(seed):
    choices = random_choices(seed)
    losses = sorted(kl for _, _, kl in assignments(choices))
    for bound in [*losses[:: max(1, len(losses) // 7)], losses[-1] * 1.01, 2 * losses[-1]]:
        point = fewest_bits(choices, bound)
        assert point.kl_nats <= bound * (1 + 2e-6)
        fewest = min(b for _, b, kl in assignments(choices) if kl <= bound)
        assert point.bits <= fewest * (1 + 1e-6)
        # Among those of as many bits, the one that loses least.
        assert point.kl_nats <= best_within(choices, point.bits) * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_the_frontier_falls_and_nothing_lies_below_it(seed):
    choices = random_choices(seed)
    points = frontier(choices, 12)
    bits, kls = [p.bits for p in points], [p.kl_nats for p in points]
    assert bits == sorted(bits) and kls == sorted(kls, reverse=True)
    assert len(set(bits)) == len(bits) and len(set(kls)) == len(kls)
    for point in points:
        assert point.kl_nats <= best_within(choices, point.bits) * (1 + 1e-6)
    everything = list(assignments(choices))
    assert points[0].bits == pytest.approx(min(b for _, b, _ in everything))
    assert points[-1].kl_nats == pytest.approx(min(kl for _, _, kl in everything))


@pytest.mark.parametrize(
    ("kl", "bits"),
    [
        ([[0.0, 0.0], [0.0, 0.0]], [4, 8]),  # nothing is lost
        ([[1.0, 1.0], [2.0, 2.0]], [4, 8]),  # all the same
        ([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]], [8, 8, 8]),  # as many bits
        ([[2.0, 1e-12], [1e-12, 1e-12]], [4, 16]),
        ([[0.5, 0.1, 0.0]], [4, 8, 16]),  # one group
        ([[0.5], [0.1]], [4]),  # one format
        ([[0.5]], [4]),
        ([[0.1, 0.2], [0.1, 0.5]], [4, 8]),  # more bits and more loss
        ([[1e-300, 0.0], [1e-300, 0.0]], [4, 8]),
    ],
)
def test_degenerate_choices_are_solved(kl, bits):
    choices = choices_of(kl, bits, [1 + n for n in range(len(kl))])
    for budget in budgets_of(choices):
        point = least_loss(choices, budget)
        assert point.kl_nats == pytest.approx(best_within(choices, budget), rel=1e-6, abs=1e-12)
        assert point.bits <= budget * (1 + 1e-6)
    least = min(kl for _, _, kl in assignments(choices))
    for bound in (least, least + 1e-9, least + 0.3, 1e6):
        point = fewest_bits(choices, bound)
        assert point.kl_nats <= bound * (1 + 2e-6)
        fewest = min(b for _, b, kl in assignments(choices) if kl <= bound)
        assert point.bits == pytest.approx(fewest)
    points = frontier(choices)
    assert points and points[0].bits == pytest.approx(min(b for _, b, _ in assignments(choices)))


@pytest.mark.parametrize("seed", range(4))
def test_a_hundred_groups_are_solved_as_by_dynamic_programming(seed):
    """Whole numbers of bits, so that every budget is a row of a table."""
    generator = np.random.default_rng(seed)
    kl, bits = 10.0 ** generator.uniform(-6, -1, (100, 4)), np.array([4, 5, 8, 16])
    best = np.full(100 * 16 + 1, np.inf)
    best[0] = 0.0
    for row in kl:
        moved = [
            np.concatenate([np.full(b, np.inf), (best + v)[:-b]])
            for b, v in zip(bits, row, strict=True)
        ]
        best = np.min(moved, axis=0)
    choices = choices_of(kl, bits)
    for budget in (4.0, 4.37, 6.0, 11.5):
        point = least_loss(choices, budget)
        assert point.kl_nats == pytest.approx(best[: round(100 * budget) + 1].min(), rel=1e-5)


# What cannot be.


def test_budgets_that_nothing_keeps_are_told_with_what_would():
    choices = choices_of([[0.5, 0.1], [0.2, 0.05]], [4.25, 8])
    with pytest.raises(
        InputError, match=r"4 bits per weight: the cheapest .* takes 4\.25 \(f0, f1"
    ):
        least_loss(choices, 4.0)
    with pytest.raises(InputError, match="give more bits, or a smaller format"):
        least_loss(choices, float("nan"))
    with pytest.raises(InputError, match=r"0\.1 nats per token: .* predicted to cost 0\.15 \(f0"):
        fewest_bits(choices, 0.1)
    with pytest.raises(InputError, match="allow more, or give a finer format"):
        fewest_bits(choices, float("nan"))
    assert least_loss(choices, 4.25).chosen == (0, 0)
    assert fewest_bits(choices, 0.15 + 1e-15).chosen == (1, 1)


@pytest.mark.parametrize("unknown", [float("nan"), float("inf")])
def test_a_loss_that_is_not_known_is_an_error(unknown):
    with pytest.raises(InputError, match=r"no loss is predicted for g1, so no format .* --keep"):
        choices_of([[0.5, 0.1], [unknown, 0.1]], [4, 8])


def test_nothing_to_choose_is_an_error():
    with pytest.raises(InputError, match="at least one group and one format"):
        choices_of(np.zeros((0, 2)), [4, 8])
    with pytest.raises(ValueError, match=r"losses and bits of \(2, 1\)"):
        Choices(("a", "b"), ("f",), np.zeros((2, 2)), np.zeros((2, 1)), np.ones(2))


# What it is compared with.


def test_the_last_groups_get_the_finest_format_as_far_as_the_bits_go():
    choices = choices_of(np.ones((4, 3)), [4, 8, 16], [1, 1, 1, 1])
    assert last_high(choices, 4) == (0, 0, 0, 0)
    assert last_high(choices, 6.9) == (0, 0, 0, 0)
    assert last_high(choices, 7) == (0, 0, 0, 2)
    assert last_high(choices, 10.5) == (0, 0, 2, 2)
    assert last_high(choices, 99) == (2, 2, 2, 2)
    large = choices_of(np.ones((3, 2)), [4, 16], [1, 10, 1])
    assert last_high(large, 6) == (0, 0, 1)  # what does not fit ends it: the first stays cheap


@pytest.mark.parametrize("seed", range(8))
def test_by_weight_error_minimises_that_error_and_nothing_else(seed):
    choices = random_choices(seed)
    error = np.random.default_rng(100 + seed).uniform(0, 1, choices.kl_GF.shape)
    blind = Choices(choices.groups, choices.formats, error, choices.bits_GF, choices.weights_G)
    for bits in budgets_of(choices, 3):
        chosen = by_weight_error(choices, error, bits)
        assert blind.kl_nats(chosen) == pytest.approx(best_within(blind, bits), rel=1e-6)
        assert choices.bits(chosen) <= bits * (1 + 1e-6)


def test_neighbours_are_the_next_points_on_either_side():
    points = tuple(Point((n,), b, 1 / b) for n, b in enumerate([4.0, 5.0, 6.0, 8.0]))
    assert neighbours(points, points[1]) == (points[0], points[2])
    assert neighbours(points, points[0]) == (None, points[1])
    assert neighbours(points, points[3]) == (points[2], None)
    assert neighbours(points, Point((9,), 5.5, 0.1)) == (points[1], points[2])


# What the user reads.


def test_the_solver_prints_nothing(capfd):
    for seed in range(6):
        choices = random_choices(seed)
        frontier(choices, 6)
        fewest_bits(choices, float(choices.kl_GF.max(axis=1).sum()))
    print("mine")
    assert capfd.readouterr() == ("mine\n", "")


def test_where_there_is_no_standard_output_none_is_made(capfd):
    kept = os.dup(1)
    os.close(1)
    try:
        point = least_loss(choices_of([[1.0, 0.5]], [4, 8]), 9)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(1)
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    assert point.chosen == (1,) and capfd.readouterr().out == ""
