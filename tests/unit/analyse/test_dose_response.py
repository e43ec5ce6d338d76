"""The line, its departure and the slopes on curves whose answer is known."""

import math

import numpy as np
import pytest

from noisescope.analyse.dose_response import Departure, Point, dose_response
from noisescope.errors import InputError

SCALES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
C = 3.0


def line(s):
    return C * s**2


def compounding(s):
    return line(s) * (1 + (s / 0.05) ** 2)


def saturating(s):
    return 0.1 * (1 - math.exp(-line(s) / 0.1))


def rise_and_fall(s):
    return 1.0 * (1 - math.exp(-compounding(s)))


def points(curve, seed=0, K=4, N=300, spread=0.3, scales=SCALES):
    rng = np.random.default_rng(seed)
    common = np.exp(spread * rng.standard_normal((1, N)) - spread**2 / 2)
    cells = np.exp(0.1 * rng.standard_normal((K, N)))
    own = [rng.gamma(100, 0.01, (K, N)) for _ in scales]
    return [Point(s, curve(s) * common * cells * o) for s, o in zip(scales, own, strict=True)]


def test_on_the_line_nothing_departs():
    found = dose_response(points(line), C, 0.01 * C)
    assert found.departure is None and found.saturates_from is None
    assert [s.place for s in found.scales] == ["on"] * 6
    assert found.reason == "no departure: within a factor 1.25 of the line up to 0.4"
    assert all(e.slope.low < 2 < e.slope.high for e in found.exponents)


def test_compounding_errors_depart_above_between_two_scales():
    found = dose_response(points(compounding), C, 0.01 * C)
    # The true ratio is 1.04, 1.16, 2, ...
    assert found.departure == Departure(0.02, 0.05, "above")
    assert "KL is above the line from 0.05 on" in found.reason
    assert "errors compound" in found.reason


def test_saturation_departs_below():
    found = dose_response(points(saturating), C, 0.01 * C)
    # 0.97 at 0.05, 0.86 at 0.1, 0.58 at 0.2
    assert found.departure == Departure(0.1, 0.2, "below")
    assert found.exponents[-1].is_flatter and found.saturates_from is not None


def test_an_avalanche_that_saturates_back_through_the_line_is_found():
    ratio = rise_and_fall(0.4) / line(0.4)
    scales = (*SCALES, 1.0)
    found = dose_response(points(rise_and_fall, scales=scales), C, 0.01 * C)
    assert ratio > 1.25 and found.scales[-1].place == "below"
    assert found.departure == Departure(0.02, 0.05, "above")
    assert found.saturates_from == 0.2 and "it saturates from 0.2 on" in found.reason


def test_a_curve_that_comes_back_to_the_line_has_not_left_it():
    at = dict(zip(SCALES, [1, 1, 1.8, 1, 1, 1], strict=True))
    found = dose_response(points(lambda s: at[s] * line(s)), C, 0.01 * C)
    # From 0.05 on the slope is flat once only, so the end is on the line.
    assert found.scales[2].place == "above" and found.departure is None
    assert "on it again" in found.reason


def test_the_ratio_and_slope_cover_the_truth_and_false_departures_are_rare():
    covered = sloped = departed = 0
    for seed in range(200):
        c = C * (1 + 0.05 * np.random.default_rng([7, seed]).standard_normal())
        data = points(line, seed, N=40, spread=0.7, scales=(0.05, 0.1, 0.2))
        found = dose_response(data, c, 0.05 * C)
        covered += sum(s.ratio.low <= math.exp(0.005) <= s.ratio.high for s in found.scales) / 3
        sloped += sum(e.slope.low <= 2 <= e.slope.high for e in found.exponents) / 2
        departed += found.departure is not None
    assert 0.925 <= covered / 200 <= 0.985
    assert sloped / 200 >= 0.93
    assert departed / 200 <= 0.05


def test_the_error_of_the_prediction_counts():
    data = points(lambda s: 1.6 * line(s))
    sharp, blunt = (dose_response(data, C, error) for error in (0.02 * C, 0.3 * C))
    assert sharp.departure is not None and blunt.departure is None
    assert "the prediction itself may be off" in sharp.reason
    few = dose_response(data, C, 0.02 * C, c_degrees=1)
    assert few.scales[0].ratio.high > sharp.scales[0].ratio.high


def test_one_draw_speaks_of_that_draw():
    found = dose_response(points(compounding, K=1), C, 0.01 * C)
    assert found.departure is not None and "one draw: this speaks" in found.reason
    assert not found.scales[0].measured.includes_draws


@pytest.mark.parametrize("c", [0.0, math.nan, -1.0, math.inf])
def test_without_a_prediction_there_are_slopes_but_no_line(c):
    found = dose_response(points(line), c, 0.1)
    assert found.departure is None and "no line to leave" in found.reason
    assert all(s.place == "unknown" for s in found.scales)
    assert found.exponents[0].slope.mean == pytest.approx(2, abs=0.05)


def test_a_prediction_of_unknown_error_settles_nothing():
    found = dose_response(points(compounding), C, math.nan)
    assert found.departure is None and "two label draws" in found.reason


def test_one_sample_is_inconclusive():
    found = dose_response(points(compounding, N=1), C, 0.01)
    assert found.departure is None and found.reason.startswith("inconclusive: too few samples")


def test_erased_noise_is_unknown_and_not_below():
    data = points(line)
    data[0] = Point(data[0].scale, np.zeros_like(data[0].values_KN))
    found = dose_response(data, C, 0.01 * C)
    assert found.scales[0].place == "unknown" and "rounding erased" in found.scales[0].note
    assert math.isnan(found.exponents[0].slope.mean) and found.departure is None
    erased = [Point(s, np.zeros((2, 9))) for s in SCALES]
    assert "rounding erased" in dose_response(erased, C, 0.01 * C).reason


def test_overflow_is_never_taken_for_saturation():
    data = points(saturating)
    data[-1].values_KN[0, :3] = np.inf
    data[-1].values_KN[0, 3] = np.nan
    found = dose_response(data, C, 0.01 * C)
    assert found.scales[-1].place == "unknown" and "4 samples overflowed" in found.scales[-1].note
    above = points(compounding)
    above[-1].values_KN[0, :3] = np.inf
    assert dose_response(above, C, 0.01 * C).scales[-1].place == "above"


def test_samples_that_were_never_scored_are_not_overflow():
    data = points(line)
    for point in data:
        point.values_KN[:, 5] = np.nan
    assert {s.note for s in dose_response(data, C, 0.01 * C).scales} == {""}


def test_the_order_of_points_does_not_matter():
    data = points(compounding)
    assert dose_response(data[::-1], C, 0.03) == dose_response(data, C, 0.03)


@pytest.mark.parametrize(
    ("data", "tolerance", "message"),
    [
        ([], 1.25, "no scales: give one point per measured scale"),
        ([Point(0.0, np.ones((1, 2)))], 1.25, r"scale 0.0: give a finite number above 0"),
        ([Point(0.1, np.ones((1, 2)))] * 2, 1.25, r"scale 0.1 comes twice"),
        ([Point(0.1, np.ones((1, 2)))], 1.0, r"tolerance 1.0: give a ratio above 1"),
        ([Point(0.1, np.ones((1, 2))), Point(0.2, np.ones((2, 2)))], 1.25, "of shapes"),
        ([Point(0.1, np.ones(2))], 1.25, "of shapes"),
    ],
)
def test_what_cannot_be_used_is_refused(data, tolerance, message):
    with pytest.raises(InputError, match=message):
        dose_response(data, C, 0.1, tolerance)


def test_pairing_samples_with_their_predictions_narrows_the_ratio():
    """Samples differ tenfold in what they cost; the prediction knows which."""
    generator = np.random.default_rng(3)
    line_N = np.exp(generator.normal(size=50))
    values = line_N * np.exp(0.1 * generator.normal(size=(4, 50)))
    alone = dose_response([Point(1.0, values)], line_N.mean(), 0.0)
    paired = dose_response([Point(1.0, values, predicted_N=line_N)], line_N.mean(), 0.0)
    wide, narrow = (found.scales[0].ratio for found in (alone, paired))
    assert wide.mean == pytest.approx(narrow.mean)
    assert narrow.high - narrow.low < 0.2 * (wide.high - wide.low)
    assert (alone.scales[0].place, paired.scales[0].place) == ("unknown", "on")


def test_pairs_hold_the_true_ratio_when_the_prediction_has_errors_of_its_own():
    generator, held = np.random.default_rng(4), 0
    for _ in range(300):
        truth_N = np.exp(0.5 * generator.normal(size=40))
        line_N = truth_N * generator.gamma(8, 1 / 8, size=40)
        values = 1.5 * truth_N * np.exp(0.2 * generator.normal(size=(4, 40)) - 0.02)
        ratio = dose_response([Point(1.0, values, predicted_N=line_N)], 1.0, 0.0).scales[0].ratio
        held += ratio.low <= 1.5 <= ratio.high
    assert 0.91 <= held / 300 <= 0.99
