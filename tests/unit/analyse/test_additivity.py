"""Sums of parts against a whole that adds, compounds or cancels by a known factor."""

import math

import numpy as np
import pytest
from scipy import stats

from noisescope.analyse.additivity import additivity
from noisescope.errors import InputError

SIZES = {"a": 0.1, "b": 0.05, "c": 0.02}


def study(factor=1.0, amplified=None, seed=0, K=5, N=200, by=2.0):
    """Parts that add up to the whole, times a factor; one may cost more among the others."""
    rng = np.random.default_rng(seed)
    common = np.exp(0.6 * rng.standard_normal((1, N)) + 0.1 * rng.standard_normal((K, 1)))
    parts = {name: size * common * rng.gamma(50, 0.02, (K, N)) for name, size in SIZES.items()}
    among = {n: factor * v * (by if n == amplified else 1) for n, v in parts.items()}
    own = {name: rng.gamma(2000, 1 / 2000, (K, N)) for name in parts}
    whole = sum(among.values())
    all_but = {name: whole - among[name] * own[name] for name in parts}
    return parts, whole * rng.gamma(400, 1 / 400, (K, N)), all_but


@pytest.mark.parametrize(
    ("factor", "outcome"),
    [(1.0, "add"), (1.15, "add"), (0.85, "add"), (1.4, "compound"), (0.6, "cancel")],
)
def test_a_known_factor_is_found(factor, outcome):
    found = additivity(*study(factor)[:2])
    assert found.outcome == outcome
    assert found.ratio.mean == pytest.approx(factor, rel=0.02)
    assert found.ratio.low <= factor <= found.ratio.high
    assert f"{found.ratio.mean:.3g} times the sum of the parts" in found.reason
    assert found.worst_part is None and math.isnan(found.parts[0].p_value)


def test_the_ratio_is_the_ratio_of_means_and_parts_keep_their_order():
    parts, whole, all_but = study()
    found = additivity(parts, whole, all_but=all_but)
    assert found.ratio.mean == pytest.approx(whole.mean() / sum(v.mean() for v in parts.values()))
    assert [part.name for part in found.parts] == ["a", "b", "c"]
    b = found.parts[1]
    assert b.alone.mean == pytest.approx(parts["b"].mean())
    assert b.among.mean == pytest.approx((whole - all_but["b"]).mean())
    assert b.ratio.mean == pytest.approx(b.among.mean / b.alone.mean)


def test_the_p_value_is_that_of_a_t_test_by_holm():
    """One draw of differences without skewness."""
    rng = np.random.default_rng(0)
    half = rng.uniform(-0.01, 0.01, (1, 30))
    level = np.concatenate([half, -half], axis=1)
    alone = np.full((1, 60), 0.1)
    whole = np.full((1, 60), 0.4)
    all_but = {"x": whole - 0.112 - level, "y": whole - 0.1105 - level}
    found = additivity({"x": alone, "y": alone}, whole, all_but=all_but)
    p = [
        stats.ttest_1samp((whole - all_but[n] - 1.1 * alone)[0], 0, alternative="greater").pvalue
        for n in ("x", "y")
    ]
    assert found.parts[0].p_value == pytest.approx(min(1, 2 * min(p)), rel=1e-6)
    assert found.parts[1].p_value == pytest.approx(max(p[1], 2 * p[0]), rel=1e-6)


@pytest.mark.parametrize("name", SIZES)
def test_the_part_that_others_amplify_is_named(name):
    parts, whole, all_but = study(amplified=name, N=400)
    found = additivity(parts, whole, all_but=all_but)
    assert found.worst_part == name
    line = next(part for part in found.parts if part.name == name)
    assert line.ratio.low > 1.5 and line.p_value < 0.01
    assert f"{name} costs" in found.reason and "by Holm" in found.reason


def test_no_part_is_named_by_chance():
    named = 0
    for seed in range(150):
        parts, whole, all_but = study(1.0, seed=seed, N=30, K=4)
        named += additivity(parts, whole, all_but=all_but).worst_part is not None
    assert named / 150 <= 0.05


def test_the_interval_covers():
    covered = 0
    for seed in range(200):
        found = additivity(*study(1.2, seed=seed, N=40, K=10)[:2])
        covered += found.ratio.low <= 1.2 <= found.ratio.high
    assert 0.91 <= covered / 200 <= 0.99


def test_few_noisy_samples_are_inconclusive():
    rng = np.random.default_rng(0)
    parts = {"a": rng.exponential(1, (4, 12)), "b": rng.exponential(1, (4, 12))}
    found = additivity(parts, rng.exponential(2, (4, 12)))
    assert found.outcome == "inconclusive" and "use more samples or draws" in found.reason


@pytest.mark.parametrize("size", [0.0, math.nan])
def test_noise_that_did_not_arrive_is_inconclusive(size):
    parts = {"a": np.full((2, 20), size)}
    found = additivity(parts, np.full((2, 20), size), all_but=parts)
    assert found.outcome == "inconclusive" and found.worst_part is None
    assert "cannot be held against the sum" in found.reason


@pytest.mark.parametrize("factor", [1.4, 0.6])
def test_a_factor_whose_interval_reaches_the_line_is_inconclusive(factor):
    rng = np.random.default_rng(0)
    part = rng.uniform(0.5, 1.5, (1, 12))
    found = additivity({"a": part}, factor * part + rng.permuted(np.linspace(-1, 1, 12))[None])
    assert found.ratio.is_known and found.ratio.low < 1 < found.ratio.high
    assert found.outcome == "inconclusive"


def test_one_sample_is_inconclusive():
    parts, whole, all_but = study(2.0, N=1)
    found = additivity(parts, whole, all_but=all_but)
    assert found.outcome == "inconclusive" and "too few samples" in found.reason


def test_one_draw_speaks_of_that_draw():
    found = additivity(*study(1.4, K=1)[:2])
    assert found.outcome == "compound" and "one draw: this speaks" in found.reason


def test_a_sample_that_overflows_in_one_part_is_left_out():
    parts, whole, _ = study(1.4)
    kept = additivity({n: v[:, 1:] for n, v in parts.items()}, whole[:, 1:])
    parts["b"][0, 0] = np.inf
    found = additivity(parts, whole)
    assert found.ratio.mean == pytest.approx(kept.ratio.mean, rel=1e-12)
    assert found.ratio.low == pytest.approx(kept.ratio.low, rel=1e-7)
    assert "1 of 200 questions are not finite" in found.ratio.caution


def test_some_parts_may_lack_their_company():
    parts, whole, all_but = study(amplified="a")
    found = additivity(parts, whole, all_but={"a": all_but["a"]})
    assert found.worst_part == "a" and not found.parts[1].among.is_known


def test_samples_of_one_source_widen_the_interval():
    parts, whole, _ = study(1.2, K=1)
    one = {n: v[:, :20].repeat(10, axis=1) for n, v in parts.items()}
    whole = whole[:, :20].repeat(10, axis=1)
    apart, together = additivity(one, whole), additivity(one, whole, [i // 10 for i in range(200)])
    assert together.ratio.high - together.ratio.low > 2 * (apart.ratio.high - apart.ratio.low)


@pytest.mark.parametrize(
    ("parts", "all_but", "message"),
    [
        ({}, None, "additivity of no parts"),
        (
            {"a": np.ones((1, 3))},
            None,
            r"part 'a' has values of shape \(1, 3\), the whole \(1, 4\)",
        ),
        ({"a": np.ones((1, 4))}, {"a": np.ones((2, 4))}, r"all but 'a' has values of shape"),
        ({"aa": np.ones((1, 4))}, {"ab": np.ones((1, 4))}, "no part; did you mean 'aa'"),
    ],
)
def test_what_cannot_be_used_is_refused(parts, all_but, message):
    with pytest.raises(InputError, match=message):
        additivity(parts, np.ones((1, 4)), all_but=all_but)
