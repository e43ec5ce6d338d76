"""Colours: in order for those who see none, readable by day and by night."""

import itertools

import matplotlib.colors
import pytest

from noisescope.report.pictures.paint import (
    DASHES,
    MARKERS,
    RAMP,
    RAMP_DARK,
    STEPS,
    THEME,
    TINTS,
    contrast,
    luminance,
    new_figure,
    png_of,
    settle,
)

READ = ("ink", "faint", "worst", "predicted")


def test_luminance_and_contrast_are_those_of_the_standard():
    """WCAG 2.2's own examples: black on white is 21, #777777 on white 4.48."""
    assert luminance("#ffffff") == pytest.approx(1) and luminance("#000000") == 0
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)
    assert contrast("#ffffff", "#777777") == contrast("#777777", "#ffffff")


def test_more_harm_is_darker_by_day_and_lighter_by_night():
    day, night = ([luminance(c) for c in ramp] for ramp in (RAMP, RAMP_DARK))
    assert all(a > b for a, b in itertools.pairwise(day))
    assert all(a < b for a, b in itertools.pairwise(night))


@pytest.mark.parametrize("mode", [0, 1])
def test_text_can_be_read_in_both_modes(mode):
    paper = THEME["paper"][mode]
    for name in READ:
        assert contrast(THEME[name][mode], paper) >= 4.5, name
    for step in range(STEPS):
        assert contrast(THEME[f"on-heat-{step}"][mode], THEME[f"heat-{step}"][mode]) >= 4.5, step
    for number in range(len(TINTS)):  # lines and marks need 3
        assert contrast(THEME[f"series-{number}"][mode], paper) >= 3, number


def test_every_colour_by_day_has_one_name():
    days = [day for day, _ in THEME.values()]
    assert len(set(days)) == len(days)
    assert all(matplotlib.colors.to_hex(day) == day for day in days)


def test_curves_differ_without_colours():
    assert len(set(MARKERS)) == len(MARKERS) == len(TINTS)
    looks = {(MARKERS[n], str(DASHES[n % len(DASHES)])) for n in range(len(TINTS))}
    assert len(looks) == len(TINTS)


def test_a_settled_figure_is_drawn_alike_again():
    figure = new_figure(3, 2)
    axes = figure.subplots()
    axes.set_title("$\\frac{")
    axes.plot([1, 2])
    settle(figure)
    assert png_of(figure) == png_of(figure)
