"""The interface that scripts call: names, arguments, defaults."""

import inspect

import pytest

import noisescope.noisy_ops as noisy_ops

EMPTY = inspect.Parameter.empty
NOISE = {"error_scale": 1e-5, "error_type": "relative_gaussian", "all_ops_mode": False}
ARGUMENTS = {
    "enable_noisy_ops": NOISE,
    "disable_noisy_ops": {},
    "noisy_ops_context": NOISE,
    "set_noise_phases": {"forward": True, "backward": True},
    "get_noise_phases": {},
    "set_phase": {"phase": EMPTY},
    "get_phase": {},
    "set_selective_layers": {"layer_ids": None},
    "get_selective_layers": {},
    "set_selective_operators": {"op_types": None},
    "get_selective_operators": {},
    "set_layer_window": {"start": EMPTY, "end": EMPTY},
    "register_layer_hooks": {"model": EMPTY, "layer_pattern": ".layers."},
    "set_current_layer": {"layer_id": EMPTY},
    "get_current_layer": {},
    "should_inject_for_layer": {"layer_id": None},
    "should_inject_for_operator": {"op_type": EMPTY},
    "get_injection_stats": {},
    "get_layer_injection_stats": {},
    "reset_layer_injection_stats": {},
    "print_injection_summary": {},
    "reset_injection_stats": {},
}
OUR_OWN = {"get_injection_dose", "remove_layer_hooks", "set_noise_seed"}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_and_defaults(name):
    parameters = inspect.signature(getattr(noisy_ops, name)).parameters
    assert {n: p.default for n, p in parameters.items()} == ARGUMENTS[name]


def test_nothing_else_is_public():
    assert set(noisy_ops.__all__) == set(ARGUMENTS) | OUR_OWN


def test_after_importing_noise_is_off_and_everything_selected():
    stats = noisy_ops.get_injection_stats()
    assert (stats["enabled"], stats["total_forward"], stats["total_backward"]) == (False, 0, 0)
    assert noisy_ops.get_selective_layers() is None
    assert noisy_ops.get_selective_operators() is None
    assert noisy_ops.get_noise_phases() == {"forward_enabled": True, "backward_enabled": True}
    assert noisy_ops.get_phase() == "unknown"
    assert noisy_ops.get_current_layer() is None
