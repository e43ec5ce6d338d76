"""The search: within its budget for every size, resumable, and as often right as the full sweep."""

import functools
import math

import numpy as np
import pytest
from helpers.load import load_file

from noisescope.analyse import Round, Winner, next_round
from noisescope.errors import InputError

benchmark = load_file("benchmarks/search.py")


def named(values):
    return [f"L{i}" for i in range(len(values))], [f"q{i}" for i in range(len(values[0]))]


def follow(values, share=0.4, priority=None):
    """Runs a search to its end; returns the winner, its rounds and what it evaluated."""
    names, samples = named(values)
    known, rounds = {}, []
    while isinstance(step := next_round(names, known, samples, share, priority), Round):
        rounds.append(step)
        for name in step.names:
            row = known.setdefault(name, {})
            assert not set(step.samples) & set(row), "nothing is evaluated twice"
            row |= {s: float(values[int(name[1:])][int(s[1:])]) for s in step.samples}
    return step, rounds, known


def losses(L, N, gap=1.0, seed=0):
    """Layers whose true losses rise with their number, questions that are hard for all."""
    rng = np.random.default_rng(seed)
    return gap * np.arange(L)[:, None] + rng.exponential(1, N) + rng.exponential(0.3, (L, N))


@pytest.mark.parametrize("L", [3, 4, 5, 7, 8, 16, 28, 33, 100, 700])
@pytest.mark.parametrize("N", [20, 21, 37, 50, 100, 333])
def test_at_most_two_fifths_of_the_evaluations(L, N):
    if L * N > 80_000:
        N = 80_000 // L
    winner, rounds, known = follow(losses(L, N, gap=2.0))
    assert sum(map(len, known.values())) <= 0.4 * L * N
    assert not winner.is_full_sweep and len(winner.reserve) == N // 5
    assert winner.name == f"L{L - 1}" and winner.runner_up == f"L{L - 2}"
    assert not set(winner.reserve) & set(winner.samples)
    assert rounds[-1].is_reserve and rounds[-1].samples == winner.reserve
    assert set(rounds[-1].names) == {winner.name, winner.runner_up}


@pytest.mark.parametrize("share", [0.25, 0.6, 1.0])
def test_other_shares_are_kept_as_well(share):
    for L in (4, 12, 28):
        winner, _, known = follow(losses(L, 60), share)
        assert sum(map(len, known.values())) <= share * L * 60 + 1e-9
        assert winner.name == f"L{L - 1}"


def test_all_that_are_in_meet_the_same_questions_and_the_better_half_goes():
    values = losses(28, 50)
    _, rounds, known = follow(values)
    met = {}
    for step in rounds[:-1]:
        for name in step.names:
            met[name] = met.get(name, ()) + step.samples
        assert len({met[name] for name in step.names}) == 1
        mean = {n: np.mean([known[n][s] for s in met[n]]) for n in step.names}
        following = rounds[rounds.index(step) + 1].names
        if len(step.names) > 2:
            assert len(following) <= math.ceil(len(step.names) / 2)
            assert min(mean[n] for n in following) >= max(
                (mean[n] for n in step.names if n not in following), default=-math.inf
            )


@pytest.mark.parametrize(("L", "N"), [(1, 50), (2, 100), (2, 20), (8, 19), (3, 5)])
def test_too_few_of_either_are_swept_in_full(L, N):
    values = losses(L, N)
    winner, rounds, known = follow(values)
    assert winner.is_full_sweep and sum(map(len, known.values())) == L * N
    assert len(rounds) == 1 and winner.reserve == ()
    assert winner.name == f"L{values.mean(axis=1).argmax()}"
    assert winner.loss == pytest.approx(values.mean(axis=1).max())
    assert (winner.runner_up is None) == (L == 1)
    assert math.isnan(winner.runner_up_loss) == (L == 1)


def priorities(N, seed=0):
    return dict(
        zip((f"q{i}" for i in range(N)), np.random.default_rng(seed).random(N), strict=True)
    )


def test_the_questions_that_noise_can_move_most_are_met_first():
    priority = priorities(50) | {"q7": math.nan, "q8": 2.0, "q10": math.inf, "q11": -math.inf}
    del priority["q12"]
    winner, rounds, _ = follow(losses(8, 50), priority=priority)
    met = [s for step in rounds[:-1] for s in step.samples]
    pool = [s for s in priorities(50) if s not in winner.reserve]
    first, last = ["q10", "q8"], ["q7", "q12"]
    between = [s for s in pool if s not in {*first, *last}]
    expected = [*first, *sorted(between, key=lambda s: -priority[s]), *last]
    assert met == expected[: len(met)] and tuple(met) == winner.samples
    assert follow(losses(8, 50), 1.0, priority)[0].samples == tuple(expected), "to the very last"


def test_the_priority_has_no_say_in_what_is_held_back():
    own = follow(losses(8, 50))[0]
    ordered = follow(losses(8, 50), priority=priorities(50))[0]
    assert ordered.reserve == own.reserve and ordered.samples != own.samples


@pytest.mark.parametrize("value", [0.3, math.nan])
def test_equal_priorities_keep_the_samples_in_their_own_order(value):
    values = losses(8, 50, gap=0.1)
    equal = dict.fromkeys(priorities(50), value)
    for priority in (equal, {}, {"other": 1.0}):
        assert follow(values, priority=priority) == follow(values)


@pytest.mark.parametrize("L", [3, 5, 8, 28, 100])
@pytest.mark.parametrize("N", [20, 37, 50, 333])
def test_by_priority_it_asks_for_as_many_evaluations(L, N):
    known = follow(losses(L, N), priority=priorities(N))[2]
    counts = sorted(map(len, known.values()))
    assert counts == sorted(map(len, follow(losses(L, N))[2].values()))
    assert sum(counts) <= 0.4 * L * N


def test_few_questions_that_carry_the_loss_are_found_by_priority():
    """The worst layer loses at two of a hundred questions, the last ones, and nowhere else."""
    values = 0.01 * losses(8, 100)
    values[3] = 0.0
    values[3, [96, 98]] = 50.0
    assert values.mean(axis=1).argmax() == 3
    assert follow(values)[0].name != "L3"
    nll = dict(zip(named(values)[1], values.sum(axis=0), strict=True))
    assert follow(values, priority=nll)[0].name == "L3"


@pytest.mark.parametrize("priority", [None, priorities(40)], ids=["own order", "priority"])
def test_a_search_goes_on_where_it_was_stopped(priority):
    """From any part of what it evaluated, in any order, it ends with the same."""
    values = losses(12, 40, gap=0.1)
    names, samples = named(values)
    winner, _, known = follow(values, priority=priority)
    cells = [(n, s) for n, row in known.items() for s in row]
    rng = np.random.default_rng(0)
    for _ in range(10):
        kept = rng.permutation(len(cells))[: rng.integers(0, len(cells))]
        part = {}
        for i in kept:
            name, sample = cells[i]
            part.setdefault(name, {})[sample] = known[name][sample]
        while isinstance(step := next_round(names, part, samples, priority=priority), Round):
            for name in step.names:
                for sample in step.samples:
                    assert sample in known[name], "it asks for nothing else"
                    part.setdefault(name, {})[sample] = known[name][sample]
        assert step == winner


def test_what_is_not_asked_for_changes_nothing():
    values = losses(8, 40, gap=0.2)
    names, samples = named(values)
    winner, _, known = follow(values)
    more = {n: {s: 9.9 for s in samples if s not in row} | row for n, row in known.items()}
    assert next_round(names, more | {"other": {"q0": 5.0}}, samples) == winner


def test_the_last_two_are_measured_anew_on_the_reserve():
    values = losses(6, 50, seed=1)
    winner, _, _ = follow(values)
    kept = [int(s[1:]) for s in winner.reserve]
    assert kept == list(range(4, 50, 5))
    assert winner.loss == pytest.approx(values[5, kept].mean())
    assert winner.runner_up_loss == pytest.approx(values[4, kept].mean())


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_overflowed_is_the_largest(broken):
    values = losses(8, 40)
    values[2, 1] = broken
    assert follow(values)[0].name == "L2"


@pytest.mark.parametrize("case", benchmark.measured_cases(), ids=lambda c: c.name)
def test_where_the_search_is_often_wrong_it_warns(case):
    rng = np.random.default_rng(0)
    wrong = warned = 0
    for _ in range(100):
        drawn = rng.integers(0, case.values_LN.shape[1], 50)
        winner, _ = benchmark.run_search(
            case.values_LN[:, drawn], priority_N=case.clean_nll_N[drawn]
        )
        if int(winner.name) != case.worst:
            wrong += 1
            warned += bool(winner.caution)
    assert warned >= 0.8 * wrong


def test_two_that_cannot_be_told_apart_are_cautioned():
    values = losses(8, 50)
    assert follow(values)[0].caution == ""
    values[7] = values[6] + np.tile([0.2, -0.2], 25)
    close = follow(values)[0]
    assert "cannot be told from" in close.caution and {close.name, close.runner_up} == {"L6", "L7"}


def test_a_winner_by_a_few_questions_is_cautioned():
    values = losses(8, 50)
    values[7] += 1.0  # enough to be told from L6, and eight of fifty questions far beyond
    values[7, [0, 6, 13, 20, 26, 33]] += [60, 6, 6, 6, 6, 6]
    assert "a few questions carry most of the loss of L7" in follow(values)[0].caution


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], {}, ["a"]), "no condition to search among"),
        ((["x"], {}, []), "no sample to search among"),
        ((["x", "x"], {}, ["a"]), "condition 'x' is named twice"),
        ((["x"], {}, ["a", "a"]), "sample 'a' is named twice"),
        ((["x"], {}, ["a"], 0.0), "search share 0.0: give a number above 0"),
        ((["x"], {}, ["a"], 1.5), "search share 1.5"),
    ],
)
def test_what_cannot_be_searched_is_said_in_one_line(arguments, message):
    with pytest.raises(InputError, match=message):
        next_round(*arguments)


# Where the search falls behind the full sweep by more than two points, and by how much over 2,000
# studies (benchmarks/search.py; in the questions' own order 0.344 and 0.383). Of the demo model at
# 0.05 four questions of 200 carry all but a few thousandths of the worst layer's loss; by clean NLL
# they come 20th, 24th, 101st and 199th. The reserve alone hides a fifth of them: a sweep of all
# layers over the rest names the worst about 5 points less often than the full one, so no search
# that holds a fifth back comes within two. The winner's caution says so.
BEHIND = {("demo_0.05", 50): 0.201, ("demo_0.05", 100): 0.149}


@functools.cache
def measured_rates(name, samples):
    """Simulates 200 studies; more where the full sweep itself cannot tell.

    Three layers of stories260K lie within 5 % at 0.05, and 200 studies would err by 4 points. Over
    19,000 the search is 2.1 +- 0.4 points behind with 50 questions, and ahead with 100.
    """
    case = MEASURED[name]
    studies, seed = (2000, 0) if name == "stories260K_0.05" else (200, 3)
    return benchmark.rates(case, samples, studies, seed)


# Of 2,000 studies: seconds.
MANY = ("stories260K_0.05", 100)


def cases(names):
    """Returns these cases with 50 and 100 questions, the longest of them a slow one."""
    every = [(name, samples) for name in names for samples in (50, 100)]
    return [pytest.param(*c, marks=[pytest.mark.slow] if c == MANY else []) for c in every]


MEASURED = {case.name: case for case in benchmark.measured_cases()}


@pytest.mark.parametrize(("name", "samples"), cases(MEASURED))
def test_the_search_names_the_worst_as_often_as_the_full_sweep(name, samples):
    found = measured_rates(name, samples)
    behind = found.full_hits - found.nll_hits
    expected = BEHIND.get((name, samples))
    if expected is None:
        assert behind <= 0.02
    else:
        assert behind == pytest.approx(expected, abs=0.12)  # three errors of 200 studies
        assert found.full_hits < 0.80, "the full sweep cannot tell either"
    assert found.evaluations <= 0.40 + 1e-9


@pytest.mark.parametrize(("name", "samples"), cases(["demo_0.05", "stories260K_0.05"]))
def test_in_the_order_of_clean_nll_it_names_the_worst_more_often(name, samples):
    found = measured_rates(name, samples)
    assert found.nll_hits >= found.own_hits + 0.05


@pytest.mark.parametrize("samples", [50, 100])
def test_what_is_held_back_alone_puts_the_worst_of_the_demo_out_of_reach(samples):
    case = MEASURED["demo_0.05"]
    rng = np.random.default_rng(3)
    hits = np.zeros(2)
    for _ in range(4000):
        values = case.values_LN[:, rng.integers(0, case.values_LN.shape[1], samples)]
        rest = np.arange(samples) % 5 != 4
        hits += [v.mean(axis=1).argmax() == case.worst for v in (values, values[:, rest])]
    assert (hits[0] - hits[1]) / 4000 > 0.03


@pytest.mark.parametrize("samples", [50, 100])
@pytest.mark.parametrize("name", ["demo_0.2, 28 layers", "stories260K_0.2, 28 layers"])
def test_of_28_layers_as_well(name, samples):
    (case,) = (c for c in benchmark.hard_cases() if c.name == name)
    found = benchmark.rates(case, samples, studies=200, seed=3)
    assert min(found.own_hits, found.nll_hits) >= found.full_hits - 0.02
    assert found.evaluations <= 0.40 + 1e-9


def test_a_search_that_looks_at_one_question_is_found_out():
    case = benchmark.measured_cases()[1]
    rng = np.random.default_rng(0)
    columns = rng.integers(0, case.values_LN.shape[1], 200)
    hits = (case.values_LN[:, columns].argmax(axis=0) == case.worst).mean()
    assert hits < 0.98


def test_winners_are_told_apart_from_rounds():
    winner = follow(losses(3, 20))[0]
    assert isinstance(winner, Winner) and not isinstance(winner, Round)
