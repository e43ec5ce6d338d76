"""Bounds that noise must not pass, held against an evaluation."""

import math

import pytest
from helpers.harness import CHOICES, TEXTS, run_of, write_tasks

from noisescope.analyse.gate import exit_status, parse_gate
from noisescope.errors import InputError
from noisescope.harness import (
    EvaluationMargins,
    TaskOptions,
    check_gates,
    load_tasks,
    ruling_text,
    rulings_of,
)
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


@pytest.mark.parametrize("bad", [math.nan, None])
def test_a_condition_that_cannot_be_judged_keeps_a_bound_open(bad):
    """One sample without a number once took its whole condition out of the bound."""
    runs = [run_of(values=RIGHT), run_of("a", values=RIGHT)]
    few = changes_of(
        [*runs, run_of("b", values=[bad, *RIGHT[1:]])], ("a", "b"), EvaluationMargins()
    )
    status, (line,) = told(few, "accuracy<-1%")
    assert status == 3
    assert line == ("OPEN accuracy<-1%: no number under noise in 1 of 400 samples (task, acc, b)")
    assert told(few, "accuracy[a]<-1%")[0] == 0
    lost = [bad] + [0.0] * 399
    all_ = changes_of([*runs, run_of("b", values=lost)], ("a", "b"), EvaluationMargins())
    status, (line,) = told(all_, "accuracy<-1%")
    assert status == 1 and line.startswith("FAIL") and "task, acc, b" in line


def test_answers_that_noise_makes_neither_right_nor_wrong_keep_a_bound_open():
    runs = [run_of(values=RIGHT), run_of("a", values=RIGHT), run_of("b", values=[0.2] * 400)]
    status, (line,) = told(changes_of(runs, ("a", "b"), EvaluationMargins()), "accuracy<-1%")
    assert status == 3 and "answers neither right nor wrong (task, acc, a)" in line


def test_log_likelihoods_that_are_lost_keep_a_bound_open():
    runs = [
        run_of(c, values=v, metric="perplexity")
        for c, v in (("clean", [-3.0] * 100), ("n", [-math.inf] * 50 + [-3.0] * 50))
    ]
    status, (line,) = told(changes_of(runs, ["n"], EvaluationMargins()), "nll>0.02")
    assert (
        status == 3 and "no number under noise in 50 of 100 samples (task, perplexity, n)" in line
    )


def test_what_cannot_be_answered_is_found_before_anything_is_measured(tmp_path):
    tasks = load_tasks([CHOICES, TEXTS], write_tasks(tmp_path / "tasks", 2), TaskOptions())

    def check(gate, given=tasks):
        check_gates([parse_gate(gate)], given, ["L0-1"])

    for name in ("L0-1", CHOICES, "acc", "none", "choice_kl"):
        check(f"accuracy[{name}]<-1%")
    for gate, given, said in (
        ("accuracy[L0-2]<-1%", tasks, r"--fail-if accuracy\[L0-2\]<-1%: no task, .* mean 'L0-1'"),
        ("accuracy[zzzz]<-1%", tasks, "'zzzz' is evaluated; there are L0-1, acc"),
        ("nll>0.1", tasks[:1], "these tasks tell no nll; perplexity"),
        ("kl>0.1", tasks[1:], "kl is of the choices of multiple choice"),
        ("accuracy<-1%", tasks[1:], "these tasks tell no accuracy; they tell nll"),
    ):
        with pytest.raises(InputError, match=said):
            check(gate, given)
