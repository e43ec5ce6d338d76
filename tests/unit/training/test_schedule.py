"""The stages of the schedule beside the formula, worked out by hand and in logarithms."""

import math

import pytest

from noisescope.errors import InputError
from noisescope.training import QERL, AqnSchedule


def test_noisy_stages_lie_on_a_line_of_logarithms_from_start_to_end():
    sigmas = AqnSchedule(0.1, 0.001, 6).sigmas
    assert sigmas[0] == 0 and len(sigmas) == 6
    wanted = [-1, -1.5, -2, -2.5, -3]
    assert [math.log10(s) for s in sigmas[1:]] == pytest.approx(wanted)


def test_the_published_schedule():
    """arXiv 2510.11696: table 4 and section 3.3; stage 5 worked out by hand."""
    assert (QERL.sigma_start, QERL.sigma_end, QERL.stages) == (1e-2, 5e-4, 10)
    assert QERL.sigmas[:2] == (0.0, 1e-2)
    assert QERL.sigmas[5] == pytest.approx(math.sqrt(1e-2 * 5e-4))  # the middle of nine
    assert QERL.sigmas[9] == pytest.approx(5e-4)
    assert not QERL.restarts_each_epoch


def test_one_stage_is_the_clean_one_and_two_have_no_decay():
    assert AqnSchedule(0.1, 0.01, 1).sigmas == (0.0,)
    assert AqnSchedule(0.1, 0.01, 1).sigma(7, 10) == 0
    assert AqnSchedule(0.1, 0.01, 2).sigmas == (0.0, 0.1)
    assert AqnSchedule(0.1, 0.01, 3).sigmas == pytest.approx((0.0, 0.1, 0.01))


@pytest.mark.parametrize("steps", [10, 11, 600, 3, 1])
@pytest.mark.parametrize("stages", [1, 2, 4, 10])
def test_stages_are_of_equal_length_as_far_as_steps_can_be(stages, steps):
    schedule = AqnSchedule(0.1, 0.01, stages)
    found = [schedule.stage(step, steps) for step in range(steps)]
    assert found == sorted(found) and found[0] == 0
    lengths = [found.count(stage) for stage in range(stages)]
    assert max(lengths) - min(lengths) <= 1
    if steps >= stages:
        assert found[-1] == stages - 1


def test_steps_beyond_the_end_are_of_the_last_stage_or_begin_anew():
    assert AqnSchedule(0.1, 0.01, 5).stage(250, 100) == 4
    restarting = AqnSchedule(0.1, 0.01, 5, restarts_each_epoch=True)
    assert [restarting.stage(step, 100) for step in (99, 100, 219, 220)] == [4, 0, 0, 1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((0.0, 0.1, 3), "sigma_start 0.0: a finite number above 0 is needed; try 1e-2"),
        ((0.1, math.inf, 3), "sigma_end inf: a finite number above 0"),
        (("0.1", 0.1, 3), "sigma_start '0.1': a finite number above 0"),
        ((0.1, 0.1, 0), "stages 0: a whole number of at least 1 is needed; try 10"),
        ((0.1, 0.1, 2.5), "stages 2.5: a whole number"),
    ],
)
def test_what_cannot_be_a_schedule_is_refused(given, said):
    with pytest.raises(InputError, match=said):
        AqnSchedule(*given)


@pytest.mark.parametrize(("step", "steps"), [(-1, 10), (0, 0)])
def test_what_cannot_be_a_step_is_refused(step, steps):
    with pytest.raises(InputError, match=f"step {step} of {steps}: a step of at least 0"):
        QERL.stage(step, steps)
