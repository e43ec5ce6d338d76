"""A study whose steps choose, ended at any call to the system, comes to the same bytes."""

import shutil

import pytest
from helpers.killing import KILLED, die_at_call, run_fork
from helpers.study_worker import Ending, carry_out_steps, make_plan, run_steps, snapshot

from noisescope.study import open_study, read_study

SMALL = make_plan(samples=3, draws=1, conditions=("L0",), size=2, has_steps=True)
LARGE = make_plan(samples=4, draws=2, conditions=("L1", "L0"), size=2, has_steps=True)


def begin_nothing(directory):
    pass


def begin_in_a_step(directory):
    """The first step has chosen, and one of its units is kept."""
    with open_study(directory, SMALL) as study, pytest.raises(KeyError):
        run_steps(study, Ending(3))
    assert read_study(directory).steps == ("sites",)


def begin_complete(directory):
    carry_out_steps(directory, SMALL)


def start(directory, begun):
    shutil.rmtree(directory, ignore_errors=True)
    if begun.exists():
        shutil.copytree(begun, directory)


@pytest.mark.parametrize(
    ("begin", "plan", "least_calls"),
    [
        (begin_nothing, SMALL, 60),
        (begin_in_a_step, LARGE, 60),
        pytest.param(begin_in_a_step, SMALL, 45, marks=pytest.mark.slow),
        pytest.param(begin_complete, LARGE, 50, marks=pytest.mark.slow),
    ],
)
def test_the_next_run_comes_to_the_same_end(tmp_path, begin, plan, least_calls):
    begun, whole, directory = tmp_path / "begun", tmp_path / "whole", tmp_path / "study"
    begin(begun)
    start(whole, begun)
    carry_out_steps(whole, plan, extend=True)
    wanted = snapshot(whole)
    number = 1
    standing = set()
    while True:
        start(directory, begun)
        status = run_fork(
            lambda: (die_at_call(number), carry_out_steps(directory, plan, extend=True))  # noqa: B023
        )
        if status == 0:
            break
        assert status == KILLED
        if (directory / "manifest.json").exists():
            state = read_study(directory)
            assert not state.is_running
            standing.add((state.steps, state.is_complete))
        carry_out_steps(directory, plan, extend=True)
        assert snapshot(directory) == wanted, number
        number += 1
    assert snapshot(directory) == wanted
    assert number > least_calls
    steps = ("sites", "nothing", "channels")
    assert (steps, True) in standing
    if begin is begin_nothing:
        assert standing == {(steps[:n], False) for n in range(4)} | {(steps, True)}
