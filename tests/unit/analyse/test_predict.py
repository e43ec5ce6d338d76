import math

import numpy as np
import pytest
from helpers.profiles import layered, profile_of_sites, site_profile
from scipy import stats

from noisescope.analyse import Interval, Prediction, agreement, departs, predict
from noisescope.inject import make_selection

SITES = layered([0.1, 0.2, 0.4]) | {"lm_head:linear:0": 1.0, "model.layers.1.act_fn:silu:0": 0.05}


@pytest.mark.parametrize(
    ("selection", "expected", "sites"),
    [
        ({}, 1.75, 5),
        ({"layers": [0, 2]}, 0.5, 2),
        ({"layers": ["head"]}, 1.0, 1),
        ({"operators": "silu"}, 0.05, 1),
        ({"modules": "mlp.down_proj"}, 0.7, 3),
        ({"sites": ["model.layers.1.mlp.down_proj:linear"]}, 0.2, 1),
        ({"without": ["lm_head:linear"]}, 0.75, 4),
        ({"operators": "relu"}, 0.0, 0),
    ],
)
def test_the_sites_of_a_selection_add_up(selection, expected, sites):
    found = predict(profile_of_sites(SITES), make_selection(**selection))
    assert found.kl_nats == pytest.approx(expected)
    assert found.sites == sites


def test_the_standard_error_is_that_of_the_sum_over_draws():
    generator = np.random.default_rng(0)
    kls = generator.gamma(2, size=(2, 6, 10))
    profile = profile_of_sites(
        [site_profile(f"model.layers.{n}.x:linear:0", kl) for n, kl in enumerate(kls)]
    )
    found = predict(profile, make_selection())
    by_draw = kls.sum(axis=0).mean(axis=1)
    assert found.kl_nats == pytest.approx(by_draw.mean())
    assert found.error_nats == pytest.approx(stats.sem(by_draw))


def test_one_draw_has_no_standard_error_and_broken_samples_are_left_out():
    kl = [[1.0, math.nan, 3.0]]
    profile = profile_of_sites([site_profile("a:linear:0", kl)])
    found = predict(profile, make_selection())
    assert found.kl_nats == pytest.approx(2.0)
    assert math.isnan(found.error_nats)


@pytest.mark.parametrize(
    ("error_model", "factor"),
    [
        ({"type": "RelativeGaussian", "scale": 0.05, "rounding": "nearest"}, 1.0),
        ({"type": "RelativeGaussian", "scale": 0.1, "rounding": "stochastic"}, 4.0),
        ({"type": "AbsoluteGaussian", "scale": 0.05, "rounding": "nearest"}, math.nan),
    ],
)
def test_another_scale_is_taken_along_the_line_and_another_error_not_at_all(error_model, factor):
    found = predict(profile_of_sites(SITES), make_selection(), error_model)
    assert found.kl_nats == pytest.approx(1.75 * factor, nan_ok=True)


def test_channels_are_a_part_of_their_site():
    site = site_profile("lm_head:linear:0", 1.0, channels=[1, 2, 7])
    profile = profile_of_sites([site])
    only = predict(profile, make_selection(sites=["lm_head:linear"], channels=[2]))
    rest = predict(profile, make_selection(sites=["lm_head:linear"], without_channels=[2]))
    assert only.kl_nats == pytest.approx(0.7)
    assert rest.kl_nats == pytest.approx(0.3)
    assert only.error_nats == pytest.approx(0.07)
    assert rest.error_nats == pytest.approx(0.03)


def test_of_single_positions_nothing_is_told():
    found = predict(profile_of_sites(SITES), make_selection(positions=[0]))
    assert math.isnan(found.kl_nats)


def interval(mean: float, half: float) -> Interval:
    return Interval(mean, mean - half, mean + half, 10, True)


def test_agreement_is_the_regression_on_logarithms():
    generator = np.random.default_rng(1)
    x = np.exp(generator.normal(size=20))
    y = 1.3 * x**0.9 * np.exp(0.1 * generator.normal(size=20))
    predicted = {str(n): Prediction(v, 0.0, 1) for n, v in enumerate(x)}
    measured = {str(n): interval(v, 0.01 * v) for n, v in enumerate(y)}
    found = agreement(predicted, measured)
    slope, r = np.polyfit(np.log(x), np.log(y), 1)[0], np.corrcoef(np.log(x), np.log(y))[0, 1]
    assert found.slope.mean == pytest.approx(slope)
    assert found.slope.low < slope < found.slope.high
    assert found.r2 == pytest.approx(r**2)
    assert found.rank == pytest.approx(stats.spearmanr(x, y)[0])
    assert found.ratio == pytest.approx(np.median(y / x))
    assert found.conditions == 20


def test_what_departs_is_named_with_its_ratio():
    predicted = {n: Prediction(1.0, 0.01, 1) for n in ("on", "above", "below", "wide")}
    measured = {
        "on": interval(1.1, 0.1),
        "above": interval(3.0, 0.5),
        "below": interval(0.3, 0.1),
        "wide": interval(3.0, 2.5),
    }
    found = agreement(predicted, measured)
    assert dict(found.departing) == {"above": 3.0, "below": pytest.approx(0.3)}


def test_two_conditions_have_a_ratio_and_no_more():
    predicted = {n: Prediction(v, 0.0, 1) for n, v in (("a", 1.0), ("b", 2.0), ("c", math.nan))}
    found = agreement(predicted, {n: interval(2.0, 0.1) for n in "abc"})
    assert (found.conditions, found.ratio) == (2, 1.5)
    assert math.isnan(found.r2) and math.isnan(found.rank) and math.isnan(found.slope.mean)


def test_nothing_in_common_is_no_agreement():
    assert agreement({}, {"a": interval(1, 0.1)}) is None
    assert agreement({"a": Prediction(0.0, 0.0, 0)}, {"a": interval(1, 0.1)}) is None


def test_the_error_of_the_prediction_is_granted():
    measured = interval(1.5, 0.1)
    assert departs(Prediction(1.0, 0.0, 1), measured)
    assert not departs(Prediction(1.0, 0.2, 1), measured)
    assert not departs(Prediction(1.0, 0.0, 1), Interval(1.5, math.nan, math.nan, math.nan, True))
