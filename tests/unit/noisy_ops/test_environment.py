"""The environment variables, each case with the interface imported anew in a process of its own."""

import importlib
import json
import os
import sys

import pytest
from helpers.killing import run_fork

import noisescope


def read_in_each(cases, path):
    """Writes what the interface says of itself when it is imported anew in each case."""
    answers = []
    for case in cases:
        for name in [n for n in sys.modules if n.startswith("noisescope.noisy_ops")]:
            del sys.modules[name]
        vars(noisescope).pop("noisy_ops", None)
        os.environ.update(case)
        try:
            noisy_ops = importlib.import_module("noisescope.noisy_ops")
            stats = noisy_ops.get_injection_stats()
            stats["softmax"] = noisy_ops.should_inject_for_operator("softmax")
            noisy_ops.disable_noisy_ops()
            answers.append(stats)
        except ValueError as error:
            answers.append(str(error))
        for name in case:
            del os.environ[name]
    path.write_text(json.dumps(answers))


OFF = {"enabled": False, "forward_enabled": True, "backward_enabled": True}
ON = {
    "enabled": True,
    "error_scale": 1e-4,
    "error_type": "relative_gaussian",
    "forward_enabled": True,
    "backward_enabled": True,
    "softmax": False,
}
CASES = {
    "nothing": ({}, OFF),
    "not enabled": ({"ENABLED": "0", "SCALE": "0.1", "FORWARD_ONLY": "1"}, OFF),
    "not enabled, bad scale": ({"SCALE": "much"}, OFF),
    "enabled": ({"ENABLED": "1"}, ON),
    "enabled by a word": ({"ENABLED": " True "}, ON),
    "scale": ({"ENABLED": "yes", "SCALE": "5e-2"}, ON | {"error_scale": 0.05}),
    "type": (
        {"ENABLED": "1", "TYPE": "absolute_gaussian"},
        ON | {"error_type": "absolute_gaussian"},
    ),
    "all operators": ({"ENABLED": "1", "ALL_OPS": "1"}, ON | {"softmax": True}),
    "forward only": ({"ENABLED": "1", "FORWARD_ONLY": "1"}, ON | {"backward_enabled": False}),
    "backward only": ({"ENABLED": "1", "BACKWARD_ONLY": "1"}, ON | {"forward_enabled": False}),
    "both only": ({"ENABLED": "1", "FORWARD_ONLY": "1", "BACKWARD_ONLY": "1"}, ON),
    "training only": ({"ENABLED": "1", "TRAINING_ONLY": "1"}, OFF),
    "training, forward only": (
        {"ENABLED": "1", "TRAINING_ONLY": "1", "FORWARD_ONLY": "1"},
        {"enabled": False, "backward_enabled": False},
    ),
}
ERRORS = {
    "no number": ({"SCALE": "much"}, "VERL_NOISY_OPS_SCALE='much': a number is needed"),
    "negative": ({"SCALE": "-1"}, "VERL_NOISY_OPS_SCALE='-1'"),
    "infinite": ({"SCALE": "inf"}, "VERL_NOISY_OPS_SCALE='inf'"),
    "empty": ({"SCALE": ""}, "VERL_NOISY_OPS_SCALE=''"),
    "type": ({"TYPE": "uniform"}, "VERL_NOISY_OPS_TYPE='uniform': error type 'uniform'"),
}


def prefixed(case):
    return {f"VERL_NOISY_OPS_{name}": value for name, value in case.items()}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Read in a fork: importing PyTorch again would take seconds."""
    cases = [prefixed(case) for case, _ in CASES.values()]
    cases += [prefixed({"ENABLED": "1"} | case) for case, _ in ERRORS.values()]
    path = tmp_path_factory.mktemp("read") / "answers.json"
    with pytest.MonkeyPatch.context() as clean:
        for name in [n for n in os.environ if n.startswith("VERL_NOISY_OPS_")]:
            clean.delenv(name)
        assert run_fork(lambda: read_in_each(cases, path)) == 0
    return dict(
        zip([*CASES, *(f"bad {n}" for n in ERRORS)], json.loads(path.read_text()), strict=True)
    )


@pytest.mark.parametrize("name", CASES)
def test_what_the_variables_switch_on(answers, name):
    expected = CASES[name][1]
    assert {key: answers[name][key] for key in expected} == expected


@pytest.mark.parametrize("name", ERRORS)
def test_a_bad_value_is_an_error_that_names_the_variable(answers, name):
    assert ERRORS[name][1] in answers[f"bad {name}"]
