"""What differs between two sets of records: pairing, intervals, and what is too little to tell."""

import math

import numpy as np
import pytest
from scipy import stats

from noisescope.analyse.change import FELL, OPEN, ROSE, SAME, Sides, make_change
from noisescope.analyse.contrast import contrast_records
from noisescope.records import CLEAN, Record


def mirrored(values):
    """Returns values that are symmetric about their mean, so that nothing is to be unskewed."""
    values = np.asarray(values, dtype=np.float64)
    return np.concatenate([values, 2 * values.mean() - values])


def names(count):
    return tuple(f"s{n}" for n in range(count))


def paired(first, second, groups=None):
    first, second = np.atleast_2d(first), np.atleast_2d(second)
    return Sides(first, second, groups, groups, names(first.shape[1]))


def records(kl_KN, condition="L0", right_KN=None, clean_right=None, nll=None, **changes):
    """Records of one condition, and the clean ones."""
    kl_KN = np.atleast_2d(kl_KN)
    K, N = kl_KN.shape

    def record(condition, draw, n, kl, right):
        loss = math.nan if nll is None else nll[n] + kl
        return Record(condition, draw, f"s{n}", 5, kl, kl, 1.0, right, nll_nats=loss, **changes)

    clean = [None if clean_right is None else bool(r) for r in (clean_right or [None] * N)]
    if right_KN is not None and clean_right is None:
        clean = [True] * N
    found = [record(CLEAN, 0, n, 0.0, clean[n]) for n in range(N)]
    for k in range(K):
        for n in range(N):
            right = None if right_KN is None else bool(np.atleast_2d(right_KN)[k, n])
            found.append(record(condition, k, n, float(kl_KN[k, n]), right))
    return found


def change_of(first, second, measure="kl", condition="L0", same=None, **options):
    same = sorted({r.sample for r in first}) if same is None else same
    found = contrast_records(first, second, ["L0"], same, **options)
    return next(c for c in found if (c.condition, c.measure) == (condition, measure))


def test_one_draw_of_pairs_gives_the_paired_t_test():
    rng = np.random.default_rng(0)
    first = rng.exponential(0.02, 40)
    second = first + mirrored(rng.normal(0.004, 0.01, 20))
    found = change_of(records(first), records(second))
    oracle = stats.ttest_rel(second, first)
    assert found.difference.mean == pytest.approx((second - first).mean())
    assert (found.difference.low, found.difference.high) == pytest.approx(
        tuple(oracle.confidence_interval()), rel=1e-9
    )
    assert found.p == pytest.approx(oracle.pvalue, rel=1e-6)
    assert found.first == pytest.approx(first.mean()) and found.second == pytest.approx(
        second.mean()
    )
    assert found.sides.is_paired and found.samples == (40, 40) and found.draws == 1


def test_draws_and_samples_are_two_sources_of_chance():
    """Closed form: two-way mean squares, each with the t value of its own degrees of freedom."""
    rng = np.random.default_rng(1)
    K, N = 3, 20
    of_draw = np.array([-0.01, 0.0, 0.01])[:, None]
    of_sample = mirrored(rng.normal(0.03, 0.02, N // 2))[None]
    rest = rng.normal(0, 0.003, (K, N))
    rest -= rest.mean(axis=0) + rest.mean(axis=1, keepdims=True) - rest.mean()
    first = rng.exponential(0.02, (K, N))
    second = first + of_draw + of_sample + rest
    found = change_of(records(first), records(second)).difference
    ms_draw = N * of_draw.var() * K / (K - 1)
    ms_sample = K * of_sample.var(ddof=1)
    ms_rest = (rest**2).sum() / ((K - 1) * (N - 1))
    square = ms_draw + ms_sample - ms_rest
    share = ms_draw / square
    t = share * stats.t.ppf(0.975, K - 1) + (1 - share) * stats.t.ppf(0.975, N - 1)
    half = t * math.sqrt(square / (K * N))
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half))
    assert found.includes_draws


def test_pairing_narrows_the_interval_and_another_order_does_not():
    rng = np.random.default_rng(2)
    first = rng.exponential(0.05, 30)
    second = first + rng.normal(0.004, 0.004, 30)
    found = change_of(records(first), records(second))
    assert found.outcome == ROSE and found.difference.low > 0.002
    shuffled = change_of(records(first), records(rng.permutation(second)))
    assert shuffled.difference.mean == pytest.approx(found.difference.mean)
    assert shuffled.difference.high - shuffled.difference.low > 5 * (
        found.difference.high - found.difference.low
    )
    assert shuffled.outcome == OPEN
    # The order in which records come is no order of samples.
    mixed = [records(second)[n] for n in rng.permutation(60)]
    assert change_of(records(first), mixed).difference == found.difference


def test_samples_that_differ_give_two_means_that_are_compared():
    """Closed form: Cochran's t, each variance with the t value of its own degrees of freedom."""
    rng = np.random.default_rng(3)
    first, second = mirrored(rng.normal(0.1, 0.02, 10)), mirrored(rng.normal(0.13, 0.05, 20))
    found = change_of(records(first), records(second), same=())
    parts = [x.var(ddof=1) / len(x) for x in (first, second)]
    t = sum(
        v * stats.t.ppf(0.975, len(x) - 1) for v, x in zip(parts, (first, second), strict=True)
    ) / sum(parts)
    mean, half = second.mean() - first.mean(), t * math.sqrt(sum(parts))
    assert (found.difference.low, found.difference.high) == pytest.approx(
        (mean - half, mean + half)
    )
    assert not found.sides.is_paired and found.samples == (20, 40) and found.flips is None
    welch = stats.ttest_ind(second, first, equal_var=False)
    assert welch.pvalue < found.p < 3 * welch.pvalue  # it is the more cautious of the two
    assert found.p == pytest.approx(2 * tail_of(abs(mean) / math.sqrt(sum(parts)), parts, (19, 39)))


def test_two_means_of_skewed_values_are_freed_of_skewness():
    """Closed form: Hall's cube, with the third cumulants of both means (k statistics)."""
    rng = np.random.default_rng(10)
    first, second = rng.exponential(0.02, 15), rng.exponential(0.05, 25)
    parts = [x.var(ddof=1) / len(x) for x in (first, second)]
    thirds = [stats.kstat(x, 3) / len(x) ** 2 for x in (first, second)]
    a = (thirds[1] - thirds[0]) / sum(parts) ** 1.5
    t = sum(v * stats.t.ppf(0.975, d) for v, d in zip(parts, (14, 24), strict=True)) / sum(parts)
    reach = [3 / a * (np.cbrt(1 + a * s * t - a**2 / 6) - 1) for s in (1, -1)]
    mean = second.mean() - first.mean()
    low, high = (mean - math.sqrt(sum(parts)) * r for r in reach)
    found = make_change("L0", "kl", Sides(first[None], second[None])).difference
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.high - mean > mean - found.low


def tail_of(t, variances, degrees):
    """The chance whose weighted critical value is t, by bisection."""
    low, high = 0.0, 0.5
    for _ in range(200):
        p = (low + high) / 2
        at = sum(v * stats.t.isf(p, d) for v, d in zip(variances, degrees, strict=True))
        low, high = (p, high) if at / sum(variances) > t else (low, p)
    return low


def test_answers_that_nothing_pairs_give_the_interval_of_two_shares():
    """Closed form: Agresti and Caffo's, one right and one wrong answer added to each side."""
    first, second = [1] * 45 + [0] * 5, [1] * 60 + [0] * 40
    found = change_of(
        records(np.zeros(50), right_KN=first),
        records(np.zeros(100), right_KN=second),
        "accuracy",
        same=(),
    )
    shares, parts = [], []
    for answers in (first, second):
        n, wins = len(answers), sum(answers)
        share = (wins + 1) / (n + 2)
        shares.append(share)
        parts.append(share * (1 - share) / (n + 2))
    t = sum(v * stats.t.ppf(0.975, d) for v, d in zip(parts, (49, 99), strict=True)) / sum(parts)
    centre, half = shares[1] - shares[0], t * math.sqrt(sum(parts))
    assert found.difference.mean == pytest.approx(-0.3)
    assert (found.difference.low, found.difference.high) == pytest.approx(
        (centre - half, centre + half)
    )
    assert found.outcome == FELL and found.p < 0.001


def test_groups_count_once():
    """Each sample twice, in a group of its own: as much as each once."""
    rng = np.random.default_rng(4)
    first, second = rng.exponential(0.02, 25), rng.exponential(0.03, 25)
    once = make_change("L0", "kl", paired(first, second))
    groups = [n // 2 for n in range(50)]
    twice = make_change("L0", "kl", paired(np.repeat(first, 2), np.repeat(second, 2), groups))
    assert twice.difference.low == pytest.approx(once.difference.low)
    assert twice.p == pytest.approx(once.p)
    apart = [
        Sides(np.repeat(first, r)[None], np.repeat(second, r)[None], g, g)
        for r, g in ((1, None), (2, groups))
    ]
    one, two = (make_change("L0", "kl", sides).difference for sides in apart)
    assert (two.low, two.high) == pytest.approx((one.low, one.high))


@pytest.mark.parametrize("is_paired", [True, False])
def test_intervals_hold_what_they_promise_where_nothing_changed(is_paired):
    """Skewed values, as KL is, with draws that differ: 95 % intervals cover 92 % and more."""
    rng = np.random.default_rng(5)
    covered, total = 0, 400
    for _ in range(total):
        sides = []
        for N in (30, 30 if is_paired else 45):
            of_draw = 0.1 * rng.standard_normal((4, 1))
            sides.append(rng.lognormal(-4, 0.8, (1, N)) * np.exp(of_draw))
        samples = names(30) if is_paired else ()
        found = make_change("L0", "kl", Sides(*sides, samples=samples))
        covered += found.difference.low <= 0 <= found.difference.high
    assert 0.92 <= covered / total <= 0.995


def test_two_shares_that_are_the_same_are_told_apart_in_few_studies():
    rng = np.random.default_rng(6)
    ps = []
    for _ in range(300):
        sides = Sides(*((rng.random((1, N)) < 0.85).astype(float) for N in (50, 80)))
        ps.append(make_change("L0", "accuracy", sides).p)
    assert 0.01 <= np.mean(np.array(ps) < 0.05) <= 0.07


def test_identical_records_give_exactly_nothing():
    same = records(np.full((2, 12), 0.01), right_KN=np.ones((2, 12)), clean_right=[1] * 12)
    for found in contrast_records(same, same, ["L0"], names(12)):
        assert found.difference.mean == 0 and found.outcome == OPEN and found.p == 1
        assert found.flips in (None, (0, 0))
    known = contrast_records(
        same, same, ["L0"], names(12), same_questions={"L0": True, CLEAN: True}
    )
    assert [c.outcome for c in known] == [SAME] * 3
    assert all((c.difference.low, c.difference.high) == (0, 0) for c in known)


def test_the_same_question_with_other_figures_is_not_the_same():
    first, second = records(np.full(12, 0.01)), records(np.full(12, 0.01) + 1e-9)
    found = change_of(first, second, same_questions={"L0": True})
    assert not found.is_same and found.outcome == ROSE


def test_flips_are_counted_on_either_side():
    first = records(np.zeros(20), right_KN=[1] * 15 + [0] * 5)
    second = records(np.zeros(20), right_KN=[0] * 3 + [1] * 12 + [0] * 4 + [1])
    found = change_of(first, second, "accuracy")
    assert found.flips == (0.15, 0.05) and found.difference.mean == pytest.approx(-0.1)
    assert change_of(first, second, "accuracy", CLEAN).flips == (0, 0)


def test_common_draws_and_samples_are_compared():
    rng = np.random.default_rng(7)
    first, second = rng.exponential(1, (4, 20)), rng.exponential(1, (2, 30))
    found = change_of(records(first), records(second), same=names(15))
    expected = make_change("L0", "kl", paired(first[:2, :15], second[:, :15]))
    assert found.difference == expected.difference and found.draws == 2
    assert found.samples == (15, 15)
    apart = change_of(records(first), records(second), same=names(4))  # too few to be paired
    assert not apart.sides.is_paired and apart.samples == (20, 30)


def test_a_condition_that_one_of_them_has_not_measured_is_left_out():
    first = records(np.ones(12), condition="L1")
    assert contrast_records(first, records(np.ones(12)), ["L0", "L1"], names(12)) == ()


def test_nll_is_compared_along_texts_alone():
    nll = np.linspace(1, 2, 12)
    first, second = records(np.full(12, 0.1), nll=nll), records(np.full(12, 0.3), nll=nll)
    assert change_of(first, second, "nll").difference.mean == pytest.approx(0.2)
    assert change_of(first, second, "nll", CLEAN).difference.mean == 0
    answered = records(np.full(12, 0.1), nll=nll, right_KN=np.ones(12))
    measures = {c.measure for c in contrast_records(answered, answered, ["L0"], names(12))}
    assert measures == {"kl", "accuracy"}


def test_a_kl_that_is_finite_in_a_alone_has_risen():
    first, second = np.full(20, 0.1), np.full(20, 0.1)
    second[3] = math.nan
    found = change_of(records(first), records(second))
    assert found.overflows == 1 and found.p == 0 and found.outcome == ROSE
    found = change_of(records(second), records(first))
    assert found.overflows == 0 and found.outcome == FELL
    both = change_of(records(second), records(second))
    assert both.overflows == 0 and both.outcome == OPEN
    apart = change_of(records(first), records(second), same=())
    assert apart.overflows == 1 and apart.outcome == ROSE


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_too_few_samples_tell_nothing(count):
    rng = np.random.default_rng(8)
    if not count:
        assert contrast_records([], [], ["L0"], ()) == ()
        return
    found = change_of(records(np.zeros(count)), records(5 + rng.random(count)))
    assert found.outcome == OPEN
    assert math.isnan(found.p) == (count < 2) and found.difference.is_known == (count > 1)


def test_p_values_are_adjusted_over_the_conditions_of_a_measure():
    rng = np.random.default_rng(9)
    first, second = [], []
    for n, name in enumerate(("L0", "L1", "L2")):
        base = rng.exponential(0.02, 30)
        for target, shift in ((first, 0), (second, 0.002 * n)):
            made = records(base + shift + rng.normal(0, 0.004, 30), condition=name)
            target += [r for r in made if r.condition != CLEAN or n == 0]
    conditions = ["L0", "L1", "L2"]
    found = contrast_records(first, second, conditions, names(30))
    alone = [contrast_records(first, second, [name], names(30))[0].p for name in conditions]
    ordered = np.sort(alone)
    assert sorted(c.p for c in found) == pytest.approx(
        np.maximum.accumulate(np.minimum(1, ordered * [3, 2, 1]))
    )
    some = contrast_records(first, second, conditions, names(30), asked=["L0", "L2"])
    assert [c.is_asked for c in some] == [True, False, True] and some[1].p == alone[1]
