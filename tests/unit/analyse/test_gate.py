"""A gate: what its text may be, and when it is shown, excluded or open."""

import math

import numpy as np
import pytest
from scipy import stats

from noisescope.analyse.change import Sides, adjusted, make_change
from noisescope.analyse.gate import (
    EXCLUDED,
    INCONCLUSIVE,
    SHOWN,
    Gate,
    Ruling,
    exit_status,
    judge,
    parse_gate,
)
from noisescope.errors import InputError


def mirrored(values):
    """Returns values that are symmetric about their mean, so that nothing is to be unskewed."""
    values = np.asarray(values, dtype=np.float64)
    return np.concatenate([values, 2 * values.mean() - values])


def change(second, first=None, name="", measure="kl", **options):
    """A paired change; without a first side, of a KL between two models."""
    second = np.atleast_2d(np.asarray(second, dtype=np.float64))
    first = np.zeros_like(second) if first is None else np.atleast_2d(np.asarray(first, float))
    samples = tuple(f"s{n}" for n in range(second.shape[1]))
    return make_change(name, measure, Sides(first, second, samples=samples), **options)


def answers(right, total=100):
    return [1.0] * right + [0.0] * (total - right)


@pytest.mark.parametrize(
    ("text", "measure", "bound", "condition"),
    [
        ("kl>0.02", "kl", 0.02, None),
        (" kl > 2e-2 ", "kl", 0.02, None),
        ("nll>.1", "nll", 0.1, None),
        ("accuracy<-1%", "accuracy", 0.01, None),
        ("accuracy < -0.01", "accuracy", 0.01, None),
        ("kl[L0-2]>0.02", "kl", 0.02, "L0-2"),
        ("accuracy[clean]<-2.5%", "accuracy", 0.025, "clean"),
        ("kl[model.layers.3.self_attn:matmul:0] > 1", "kl", 1, "model.layers.3.self_attn:matmul:0"),
        ("kl[a[0]>1]>1", "kl", 1, "a[0]>1"),
    ],
)
def test_a_gate_is_read(text, measure, bound, condition):
    found = parse_gate(text)
    assert found == Gate(text.strip(), measure, pytest.approx(bound), condition)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", ""),
        ("kl", ""),
        ("kl=0.02", ""),
        ("kl>=0.02", ""),
        ("kl<0.02", "kl rises"),
        ("kl>0", "above a number above 0"),
        ("kl>-1", "above a number above 0"),
        ("kl>2%", "in nats per token"),
        ("kl>1e999", "kl rises"),
        ("kl>1..2", "'1..2' is not a number"),
        ("kl[]>1", ""),
        ("nll<1", "nll rises"),
        ("accuracy>-1%", "a fall is told"),
        ("accuracy<1%", "a fall is told"),
        ("accuracy<-100%", "a fall is told"),
        ("accuracy<0", "a fall is told"),
        ("perplexity>1", ""),
        ("kl>0.02; rm -rf", ""),
    ],
)
def test_anything_else_is_refused_in_one_line(text, why):
    with pytest.raises(InputError, match=r"cannot be used.*: give 'kl>0\.02'") as error:
        parse_gate(text)
    assert why in str(error.value) and repr(text) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_rise_beyond_the_bound_is_shown_with_the_p_of_the_t_test():
    values = mirrored(np.random.default_rng(0).normal(0.03, 0.02, 20))
    found = judge(parse_gate("kl>0.02"), [change(values)])
    oracle = stats.ttest_1samp(values, 0.02, alternative="greater")
    assert found.outcome == SHOWN and found.p == pytest.approx(oracle.pvalue, rel=1e-6)
    assert found.needed_samples is None and exit_status([found]) == 1


def test_a_rise_within_the_bound_is_excluded():
    values = np.random.default_rng(1).exponential(0.001, 50)
    found = judge(parse_gate("kl>0.02"), [change(values)])
    assert found.outcome == EXCLUDED and 0 < found.p < 0.05 and exit_status([found]) == 0
    fallen = change(values, first=values + 0.5)
    assert judge(parse_gate("kl>0.02"), [fallen]).outcome == EXCLUDED


def test_what_settles_an_open_gate_does_settle_it():
    values = np.random.default_rng(2).exponential(0.017, 40)
    found = judge(parse_gate("kl>0.02"), [change(values)])
    assert found.outcome == INCONCLUSIVE and exit_status([found]) == 3
    assert found.needed_samples > 40 and found.conditions == ("",)
    more = np.resize(values, found.needed_samples)
    assert judge(parse_gate("kl>0.02"), [change(more)]).outcome == EXCLUDED


def test_draws_are_named_where_samples_alone_settle_nothing():
    rng = np.random.default_rng(3)
    values = 0.03 + 0.02 * np.array([[-1.0], [1.0], [0.0]]) + 1e-4 * rng.standard_normal((3, 30))
    found = judge(parse_gate("kl>0.02"), [change(values, name="L0")])
    assert found.outcome == INCONCLUSIVE and found.needed_samples is None
    assert found.needed_draws > 3


@pytest.mark.parametrize(
    ("right", "outcome"), [(100, EXCLUDED), (99, INCONCLUSIVE), (97, INCONCLUSIVE), (70, SHOWN)]
)
def test_accuracy_is_judged_in_points(right, outcome):
    """100 answers, all right in A; that none changed excludes 3 in 100 and more."""
    found = change(answers(right), answers(100), measure="accuracy")
    assert judge(parse_gate("accuracy<-4%"), [found]).outcome == outcome
    assert judge(parse_gate("accuracy<-0.04"), [found]).outcome == outcome


def test_accuracy_that_rose_is_no_fall():
    found = change(answers(90), answers(60), measure="accuracy")
    assert judge(parse_gate("accuracy<-5%"), [found]).outcome == EXCLUDED


def test_a_model_that_answers_nothing_right_has_nothing_to_lose():
    found = change(answers(0), answers(0), measure="accuracy")
    ruling = judge(parse_gate("accuracy<-4%"), [found])
    assert ruling.outcome == INCONCLUSIVE and "nothing right" in ruling.reason
    assert ruling.needed_samples is None
    # Under noise that destroys A already, no answer being lost is what can be seen.
    noisy = change(answers(0), answers(0), name="all", measure="accuracy")
    assert judge(parse_gate("accuracy<-4%"), [noisy]).outcome == EXCLUDED


def test_any_condition_shows_it_and_all_of_them_exclude_it():
    rng = np.random.default_rng(4)
    low = [change(rng.exponential(0.001, 50), name=f"L{n}") for n in range(4)]
    high = change(0.05 + rng.exponential(0.01, 50), name="L9")
    open_ = change(rng.exponential(0.02, 50), name="L5")
    gate = parse_gate("kl>0.02")
    assert judge(gate, low).outcome == EXCLUDED
    assert judge(gate, low).conditions == ("L0", "L1", "L2", "L3")
    assert (judge(gate, [*low, open_]).outcome, judge(gate, [*low, open_]).condition) == (
        INCONCLUSIVE,
        "L5",
    )
    found = judge(gate, [*low, open_, high])
    assert (found.outcome, found.condition, found.conditions) == (SHOWN, "L9", ("L9",))
    assert judge(parse_gate("kl[L2]>0.02"), [*low, open_, high]).outcome == EXCLUDED


def test_many_conditions_must_show_it_beyond_all_their_chances():
    """One-sided p of about 2 %: shown alone, and open among twenty (Holm)."""
    rng = np.random.default_rng(5)
    noise = mirrored(rng.normal(0, 0.01, 30))
    noise -= noise.mean()
    at = stats.t.isf(0.02, 59) * noise.std(ddof=1) / math.sqrt(60)
    one = change(0.02 + at + noise, name="L0")
    others = [change(0.02 + rng.permutation(noise), name=f"L{n}") for n in range(1, 20)]
    gate = parse_gate("kl>0.02")
    assert judge(gate, [one]).p == pytest.approx(0.02, rel=1e-3)
    assert judge(gate, [one]).outcome == SHOWN
    assert judge(gate, [one, *others]).outcome == INCONCLUSIVE


def test_a_gate_at_the_truth_is_shown_in_no_more_than_one_study_of_twenty():
    rng, shown, total = np.random.default_rng(6), 0, 150
    for _ in range(total):
        changes = [change(rng.exponential(0.02, 40), name=f"L{n}") for n in range(5)]
        shown += judge(parse_gate("kl>0.02"), changes).outcome == SHOWN
    assert shown / total <= 0.07


@pytest.mark.parametrize("count", [1, 2, 9])
def test_few_samples_settle_nothing_however_large_the_change(count):
    found = judge(parse_gate("kl>0.02"), [change(np.linspace(5, 6, count))])
    assert found.outcome == INCONCLUSIVE
    assert f"{count} samples are too few to tell: use 50 or more" in found.reason


def test_what_is_not_finite_settles_nothing_where_a_is_not_finite_either():
    nothing = change([math.nan] * 20, first=[math.nan] * 20)
    found = judge(parse_gate("kl>0.02"), [nothing])
    assert found.outcome == INCONCLUSIVE and "nothing finite" in found.reason


def test_an_overflow_is_beyond_any_bound():
    values = [0.001] * 19 + [math.nan]
    assert judge(parse_gate("kl>100"), [change(values)]).outcome == SHOWN
    few = judge(parse_gate("kl>100"), [change([0.001, math.nan])])
    assert few.outcome == INCONCLUSIVE


def test_the_same_model_passes_with_any_number_of_samples():
    same = change([0.0, 0.0], is_same=True)
    assert same.is_same and judge(parse_gate("kl>0.0001"), [same]).outcome == EXCLUDED
    right = change(answers(3, 5), answers(3, 5), measure="accuracy", is_same=True)
    assert judge(parse_gate("accuracy<-0.1%"), [right]).outcome == EXCLUDED


def test_equal_figures_of_two_models_are_judged_as_any_others():
    """All zero in every one of n samples: the sign test, which needs ten to be told anything."""
    found = judge(parse_gate("kl>0.02"), [change([0.0] * 20)])
    assert found.outcome == EXCLUDED and found.p == 2.0**-20
    assert judge(parse_gate("kl>0.02"), [change([0.0] * 9)]).outcome == INCONCLUSIVE


def test_sides_that_nothing_pairs_are_judged_too():
    rng = np.random.default_rng(7)
    gate = parse_gate("kl[L0]>0.02")

    def apart(mean, N=60):
        sides = Sides(rng.exponential(0.01, (1, 50)), mean + rng.exponential(0.01, (1, N)))
        return adjusted([make_change("L0", "kl", sides)])

    assert judge(gate, apart(0.05)).outcome == SHOWN
    assert judge(gate, apart(0.0)).outcome == EXCLUDED
    found = judge(gate, apart(0.018))
    assert found.outcome == INCONCLUSIVE and found.needed_samples > 50
    assert judge(gate, apart(0.05, N=9)).outcome == INCONCLUSIVE


def test_what_studies_chose_is_judged_where_it_is_named_alone():
    asked = change(np.full(20, 0.001), name="L0")
    chosen = make_change("site", "kl", change(np.linspace(1, 2, 20)).sides)
    chosen = type(chosen)(**{**vars(chosen), "is_asked": False})
    assert judge(parse_gate("kl>0.02"), [asked, chosen]).outcome == EXCLUDED
    assert judge(parse_gate("kl[site]>0.02"), [asked, chosen]).outcome == SHOWN


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kl[L01]>1", r"no condition 'L01' was compared; did you mean 'L0'\?; accepted are L0"),
        ("nll>1", "no nll was compared; name one of kl"),
    ],
)
def test_a_gate_for_what_was_not_compared_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        judge(parse_gate(text), [change(np.ones(20), name="L0")])


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ([], 0),
        ([EXCLUDED], 0),
        ([EXCLUDED, INCONCLUSIVE], 3),
        ([INCONCLUSIVE, SHOWN, EXCLUDED], 1),
        ([SHOWN], 1),
    ],
)
def test_the_exit_status_is_that_of_the_worst_gate(outcomes, status):
    gate = parse_gate("kl>1")
    assert exit_status([Ruling(gate, outcome) for outcome in outcomes]) == status
