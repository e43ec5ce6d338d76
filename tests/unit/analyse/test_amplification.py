"""Factors of layers against the ratio they were made with, and onsets that were planted."""

import math

import numpy as np
import pytest
from scipy import stats

from noisescope.analyse.amplification import amplification, find_onset
from noisescope.errors import InputError

TYPICAL = 0.15  # spread of log factors between layers


def residual(factors, K=4, N=60, seed=0):
    """Boundaries whose KL falls by the factor of each layer, on the same samples and draws."""
    rng = np.random.default_rng(seed)
    common = np.exp(0.5 * rng.standard_normal((1, N)) + 0.2 * rng.standard_normal((K, 1)))
    level = np.concatenate([np.cumprod(factors[::-1])[::-1], [1.0]])
    return level[:, None, None] * common * rng.gamma(50, 0.02, (len(factors) + 1, K, N))


def test_every_factor_is_the_ratio_of_entry_to_exit():
    factors = [1.0, 0.8, 1.5, 1.1, 2.0, 1.0]
    values = residual(factors)
    found = amplification(values)
    for layer, (factor, truth) in enumerate(zip(found.factors, factors, strict=True)):
        assert factor.mean == pytest.approx(values[layer].mean() / values[layer + 1].mean())
        assert factor.low <= truth <= factor.high and factor.high - factor.low < 0.2 * truth
    assert found.reason == found.onset.reason


def test_factors_cover_the_truth():
    covered = [
        f.low <= 1.3 <= f.high
        for seed in range(60)
        for f in amplification(residual([1.3] * 6, K=10, N=40, seed=seed)).factors
    ]
    assert 0.91 <= np.mean(covered) <= 0.99


def test_an_onset_is_found_from_the_predictions():
    found = amplification(residual([0.9, 1.0, 1.1, 1.0, 1.6, 1.7, 1.5, 1.8]))
    assert found.onset.layer == 4 and found.onset.p_value < 0.05
    assert found.reason.startswith("layers amplify from layer 4 on (p = ")
    assert found.onset.before == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("layers", [8, 12, 28])
def test_planted_onsets_are_found_and_flat_ones_are_not(layers):
    found = near = false = 0
    for i in range(1000):
        rng = np.random.default_rng([layers, i])
        flat = TYPICAL * rng.standard_normal(layers)
        start = rng.integers(3, layers - 2)
        onset = find_onset(np.exp(flat + 0.5 * (np.arange(layers) >= start)))
        found += onset.layer is not None
        near += onset.layer is not None and abs(onset.layer - start) <= 1
        false += find_onset(np.exp(0.3 + flat)).layer is not None
    assert found >= 950 and near >= 930
    assert false <= 50 + 14  # two standard errors of the simulation


@pytest.mark.parametrize("layers", [8, 28])
@pytest.mark.parametrize("kind", ["t3", "laplace"])
def test_layers_with_heavy_tails_show_no_false_onset(layers, kind):
    rng = np.random.default_rng(layers)
    draw = {"t3": lambda: rng.standard_t(3, layers), "laplace": lambda: rng.laplace(size=layers)}
    false = sum(find_onset(np.exp(0.3 + 0.1 * draw[kind]())).layer is not None for _ in range(600))
    assert false <= 30 + 11


def test_six_layers_have_one_split_and_the_p_of_a_t_test():
    factors = np.array([1.0, 1.1, 0.9, 1.3, 1.5, 1.25])
    p = stats.ttest_ind(np.log(factors[3:]), np.log(factors[:3]), alternative="greater").pvalue
    assert find_onset(factors).p_value == pytest.approx(p, abs=3 * math.sqrt(p / 9999))
    assert find_onset(factors).layer == 3


def test_the_unit_of_factors_does_not_change_the_test():
    factors = np.exp(np.random.default_rng(0).standard_normal(12))
    assert find_onset(factors).p_value == find_onset(7.0 * factors).p_value
    assert find_onset(factors).p_value == find_onset(factors**2).p_value


@pytest.mark.parametrize(
    ("factors", "reason"),
    [
        ([2.0] * 4 + [1.0] * 4, "no onset: no rise of the factors beyond chance"),
        ([0.5] * 4 + [1.05] * 4, "no onset: factors rise but stay within 1.1"),
        ([1.5] * 8, "no onset: every layer passes errors on alike"),
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 9.0], "no onset: no rise of the factors"),
        ([1.0, 2.0, 3.0, 4.0, 5.0], "inconclusive: 5 layers are too few; it takes 6 or more"),
        ([1.0] * 6 + [math.nan], "inconclusive: no factor is known for layer 6"),
        ([0.0] + [1.0] * 6, "inconclusive: no factor is known for layer 0"),
        ([], "inconclusive: 0 layers are too few"),
    ],
)
def test_without_an_onset_a_reason_is_given(factors, reason):
    found = find_onset(factors)
    assert found.layer is None and found.reason.startswith(reason)


def test_a_clean_step_is_found_at_its_layer():
    for layer in range(3, 10):
        found = find_onset([1.0] * layer + [1.4] * (12 - layer))
        assert found.layer == layer and found.p_value == pytest.approx(1e-4)
        assert (found.before, found.after) == pytest.approx((1.0, 1.4))


def test_one_sample_gives_factors_without_bounds():
    found = amplification(residual([1.0] * 7, N=1))
    assert not any(factor.is_known for factor in found.factors)
    assert all(math.isfinite(factor.mean) for factor in found.factors)


def test_a_boundary_without_any_prediction_is_unknown():
    values = residual([1.0] * 7)
    values[3] = 0.0
    found = amplification(values)
    assert math.isnan(found.factors[2].mean) and "no factor is known for layer 2" in found.reason


@pytest.mark.parametrize("shape", [(4, 5), (1, 2, 3), (2, 2, 2, 2)])
def test_another_shape_is_refused(shape):
    with pytest.raises(InputError, match="at least two boundaries"):
        amplification(np.ones(shape))
