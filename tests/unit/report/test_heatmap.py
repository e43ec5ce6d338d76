"""The picture: it opens, holds its colours, and no name of a model breaks it."""

import math
from dataclasses import replace

import matplotlib.colors
import numpy as np
import pytest
from helpers.diagnoses import (
    small_diagnosis,
    with_analysis,
    with_conditions,
    with_name,
    with_summaries,
)
from matplotlib import image
from matplotlib.figure import Figure

from noisescope.analyse import Interval
from noisescope.report import draw_heatmap
from noisescope.report.pictures import heatmap
from noisescope.report.pictures.paint import PREDICTED, drawable

RED = (0xB3 / 255, 0x26 / 255, 0x1E / 255)


def drawn(diagnosis, tmp_path):
    path = tmp_path / "heatmap.png"
    path.write_bytes(draw_heatmap(diagnosis))
    return image.imread(path)[:, :, :3]


def share_of(pixels, colour):
    return (np.abs(pixels - np.array(colour)).max(axis=2) < 0.01).mean()


@pytest.mark.parametrize("kind", ["layers", "operators"])
@pytest.mark.parametrize("is_generative", [True, False])
def test_the_picture_opens_and_marks_the_worst_condition(tmp_path, kind, is_generative):
    pixels = drawn(small_diagnosis(kind, is_generative), tmp_path)
    assert pixels.shape[0] > 500 and pixels.shape[1] > 1000
    assert share_of(pixels, RED) > 0.002


def test_the_predicted_kl_is_marked_beside_the_measured(tmp_path):
    diagnosis = small_diagnosis()
    blue = matplotlib.colors.to_rgb(PREDICTED)
    assert share_of(drawn(diagnosis, tmp_path), blue) > 0.0001
    without = replace(diagnosis, findings=replace(diagnosis.findings, predictions={}))
    assert share_of(drawn(without, tmp_path), blue) == 0


def test_without_a_worst_condition_none_is_marked(tmp_path):
    diagnosis = small_diagnosis()
    nothing = replace(diagnosis.worst_kl, condition=None)
    pixels = drawn(with_analysis(diagnosis, worst_kl=nothing), tmp_path)
    assert share_of(pixels, RED) < 0.0005


@pytest.mark.parametrize("count", [1, 2, 12, 16, 17, 28, 80])
def test_any_number_of_conditions_fits(tmp_path, count):
    pixels = drawn(with_conditions(small_diagnosis(), count), tmp_path)
    height, width, _ = pixels.shape
    assert 500 < height < 1200 and 1100 < width < 6000


@pytest.mark.parametrize(
    "name",
    ["$x_", "$\\frac{$", "<b>", "[red]x[]", "a" * 400, "模型\u202e", "\n\t", "{}%s", "\U0001f600"],
)
def test_a_hostile_name_is_drawn_as_text(tmp_path, name):
    pixels = drawn(with_name(small_diagnosis(), name), tmp_path)
    height, width, _ = pixels.shape
    assert 500 < height < 900 and 1100 < width < 1300


def test_what_the_font_cannot_draw_becomes_a_question_mark():
    assert drawable("Qwen2.5-$x_<b>é") == "Qwen2.5-$x_<b>é"
    assert drawable("模x\n") == "?x?"
    assert drawable("a" * 41) == "a" * 39 + "…"


def test_figures_that_are_not_known_are_drawn_as_such(tmp_path):
    diagnosis = with_conditions(small_diagnosis(), 3)
    nan = Interval(math.nan, math.nan, math.nan, math.nan, False)
    mean_only = Interval(0.5, math.nan, math.nan, math.nan, False)
    first, second, third = diagnosis.summaries
    some = (replace(first, kl_nats=nan), replace(second, kl_nats=mean_only))
    assert drawn(with_summaries(diagnosis, *some, third), tmp_path).size
    unknown = replace(
        first, kl_nats=nan, nll_change_nats=nan, top1_agreement=nan, accuracy_drop=nan
    )
    assert drawn(with_summaries(diagnosis, unknown), tmp_path).size


def test_the_same_diagnosis_gives_the_same_picture():
    assert draw_heatmap(small_diagnosis()) == draw_heatmap(small_diagnosis())


def test_rows_and_bars_hold_the_figures_of_the_summaries():
    summary = replace(
        small_diagnosis("layers", True).summaries[0],
        kl_nats=Interval(0.5, 0.2, 0.9, 10.0, False),
        nll_change_nats=Interval(0.4, 0.1, 0.7, 10.0, False),
        top1_agreement=Interval(0.97, 0.9, 1.0, 10.0, False),
        accuracy_drop=Interval(0.125, 0.0, 0.25, 10.0, False),
    )
    values = [value for _, (value,) in heatmap._rows((summary,))]
    assert values == pytest.approx([0.5, 0.4, 3.0, 12.5])
    axes = Figure().add_subplot()
    heatmap._draw_intervals(axes, (summary,), (), {})
    (segments,) = [c.get_segments() for c in axes.collections]
    assert segments[0][:, 1] == pytest.approx([0.2, 0.9])
