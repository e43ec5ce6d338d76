"""Bounds that noise must not pass, held against an evaluation."""

import pytest
from helpers.harness import run_of

from noisescope.analyse.gate import exit_status, parse_gate
from noisescope.errors import InputError
from noisescope.harness import EvaluationMargins, ruling_text, rulings_of
from noisescope.harness.paired import changes_of

RIGHT = [1.0] * 400


def changes(lost: int, metric: str = "acc", conditions=("all",), **more):
    clean = run_of(values=RIGHT, metric=metric, **more)
    values = [0.0] * lost + RIGHT[lost:]
    noisy = [run_of(name, values=values, metric=metric, **more) for name in conditions]
    return changes_of([clean, *noisy], conditions, EvaluationMargins())


def told(found, *gates: str):
    rulings = rulings_of(found, [parse_gate(text) for text in gates])
    return exit_status(rulings), [ruling_text(ruling) for ruling in rulings]


def test_a_bound_is_shown_excluded_or_open():
    status, (line,) = told(changes(80), "accuracy<-1%")
    assert status == 1 and line.startswith("FAIL accuracy<-1%: passed beyond chance (p = ")
    assert line.endswith("; task, acc, all: -20.0 points")
    status, (line,) = told(changes(0), "accuracy<-1%")
    assert status == 0 and line.startswith("PASS accuracy<-1%: excluded everywhere")
    status, (line,) = told(changes(6), "accuracy<-1%")
    assert status == 3 and line.startswith("OPEN accuracy<-1%: too few data tell; task, acc, all: ")
    assert "samples would settle it" in line
    assert told(changes(80), "accuracy<-1%", "accuracy<-90%")[0] == 1
    assert told(changes(80))[0] == 0


def test_brackets_name_a_task_a_condition_or_a_metric():
    found = changes(80, conditions=("L0", "L1"))
    for name in ("L0", "task", "acc"):
        assert told(found, f"accuracy[{name}]<-1%")[0] == 1
    with pytest.raises(
        InputError, match=r"--fail-if accuracy\[L2\]<-1%: no task, .* mean 'L1' or 'L0'"
    ):
        told(found, "accuracy[L2]<-1%")


def test_nats_are_a_rise_and_choices_a_kl():
    pairs = [
        run_of(c, values=[(v, 10.0)] * 40, metric="byte_perplexity")
        for c, v in (("clean", -20.0), ("all", -30.0))
    ]
    found = changes_of(pairs, ["all"], EvaluationMargins())
    status, (line,) = told(found, "nll>0.02")
    assert status == 1 and "+1 nats" in line
    sides = [[-1.0, True], [-2.0, False]], [[-2.0, False], [-1.0, True]]
    choices = [
        run_of(c, values=[1.0] * 40, responses=[r] * 40, output_type="multiple_choice")
        for c, r in zip(("clean", "all"), sides, strict=True)
    ]
    found = changes_of(choices, ["all"], EvaluationMargins())
    assert told(found, "kl>0.02", "accuracy<-5%")[0] == 1
    with pytest.raises(InputError, match="these tasks tell no nll; they tell accuracy and kl"):
        told(found, "nll>0.02")
