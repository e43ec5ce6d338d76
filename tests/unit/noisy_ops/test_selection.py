"""Selecting phases, layers and operators."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from noisescope.errors import InputError, SelectionError
from noisescope.noisy_ops import (
    disable_noisy_ops,
    enable_noisy_ops,
    get_noise_phases,
    get_selective_layers,
    get_selective_operators,
    set_current_layer,
    set_layer_window,
    set_noise_phases,
    set_selective_layers,
    set_selective_operators,
    should_inject_for_layer,
    should_inject_for_operator,
)

X, W = torch.eye(4) + 1, torch.ones(4, 4)
EXTENDED = ("softmax", "silu", "gelu", "layer_norm", "rms_norm")
RUN = {
    "matmul": lambda: X @ W,
    "bmm": lambda: torch.bmm(X[None], W[None]),
    "linear": lambda: F.linear(X, W),
    "softmax": lambda: F.softmax(X, dim=-1),
    "silu": lambda: F.silu(X),
    "gelu": lambda: F.gelu(X),
    "layer_norm": lambda: F.layer_norm(X, (4,)),
    "rms_norm": lambda: F.rms_norm(X, (4,)),
    "relu": lambda: F.relu(X),
    "embedding": lambda: F.embedding(torch.arange(4), X),
}


def noisy_operators():
    """The operators whose result changes."""
    clean = {name: run() for name, run in RUN.items()}
    enable_noisy_ops(0.05, all_ops_mode=noisy_operators.all_ops)
    noisy = {name: run() for name, run in RUN.items()}
    disable_noisy_ops()
    return {name for name in RUN if not torch.equal(clean[name], noisy[name])}


@pytest.mark.parametrize("all_ops", [False, True])
def test_operators_of_the_mode(all_ops):
    noisy_operators.all_ops = all_ops
    assert noisy_operators() == {"matmul", "bmm", "linear", *(EXTENDED if all_ops else ())}


@pytest.mark.parametrize("all_ops", [False, True])
@pytest.mark.parametrize("operator", RUN)
def test_each_operator_alone_in_both_modes(operator, all_ops):
    noisy_operators.all_ops = all_ops
    set_selective_operators([operator])
    assert noisy_operators() == {operator}
    assert get_selective_operators() == [operator]
    assert should_inject_for_operator(operator)
    assert not should_inject_for_operator("bmm" if operator == "linear" else "linear")


def test_none_selects_by_the_mode_and_an_empty_list_nothing():
    noisy_operators.all_ops = True
    set_selective_operators([])
    assert get_selective_operators() == [] and noisy_operators() == set()
    set_selective_operators(None)
    assert get_selective_operators() is None and len(noisy_operators()) == 8
    set_selective_operators(["softmax"])
    set_selective_operators()
    assert get_selective_operators() is None


def test_without_a_selection_the_mode_decides():
    assert should_inject_for_operator("bmm") and not should_inject_for_operator("softmax")
    enable_noisy_ops(0.05, all_ops_mode=True)
    assert should_inject_for_operator("softmax") and not should_inject_for_operator("relu")


@pytest.mark.parametrize(
    "call", [lambda n: set_selective_operators([n]), should_inject_for_operator]
)
def test_an_unknown_operator_is_a_value_error_with_near_names(call):
    set_selective_operators(["bmm"])
    with pytest.raises(ValueError, match="unknown operator 'sofmax'; did you mean 'softmax'"):
        call("sofmax")
    assert get_selective_operators() == ["bmm"]


# Phases.


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("backward", [True, False])
def test_phases(forward, backward):
    x = X.clone().requires_grad_()
    (clean,) = torch.autograd.grad(F.linear(x, W).sum(), x)
    set_noise_phases(forward, backward)
    assert get_noise_phases() == {"forward_enabled": forward, "backward_enabled": backward}
    enable_noisy_ops(0.05)
    y = F.linear(x, W)
    (noisy,) = torch.autograd.grad(y.sum(), x)
    counts = disable_noisy_ops()
    assert torch.equal(y, F.linear(X, W)) is not forward
    assert torch.equal(noisy, clean) is not backward
    assert (counts["forward"], counts["backward"]) == (int(forward), int(backward))


def test_phases_go_back_to_both():
    set_noise_phases(forward=False, backward=False)
    set_noise_phases()
    assert get_noise_phases() == {"forward_enabled": True, "backward_enabled": True}


# Layers.


def noisy_layers():
    """The layers, named one after the other, whose operators change."""
    clean, found = F.linear(X, W), []
    enable_noisy_ops(0.05)
    for layer in range(4):
        set_current_layer(layer)
        if not torch.equal(F.linear(X, W), clean):
            found.append(layer)
    set_current_layer(None)
    disable_noisy_ops()
    return found


@pytest.mark.parametrize(
    ("given", "kept", "noisy"),
    [
        (None, None, [0, 1, 2, 3]),
        ([], [], []),
        ([0, 3], [0, 3], [0, 3]),
        ((2, 2), [2], [2]),
        (range(1, 3), [1, 2], [1, 2]),
        ({1}, [1], [1]),
        (np.array([0, 2]), [0, 2], [0, 2]),
        (torch.tensor([3]), [3], [3]),
        ([3, 4, 5], [3, 4, 5], [3]),
    ],
    ids=str,
)
def test_layers(given, kept, noisy):
    set_selective_layers(given)
    assert get_selective_layers() == kept
    assert noisy_layers() == noisy


def test_calling_without_layers_selects_all():
    set_selective_layers([1])
    set_selective_layers()
    assert get_selective_layers() is None


@pytest.mark.parametrize("given", [5, "05", [0.5], ["1"]], ids=str)
def test_layers_that_are_no_list_of_numbers_are_refused(given):
    with pytest.raises(SelectionError, match="a list of whole numbers is needed"):
        set_selective_layers(given)
    assert get_selective_layers() is None


def test_a_window_ends_before_its_end():
    set_layer_window(1, 3)
    assert get_selective_layers() == [1, 2]
    assert noisy_layers() == [1, 2]


@pytest.mark.parametrize("window", [(3, 3), (3, 1), (-1, 2)])
def test_an_empty_or_negative_window_is_refused(window):
    with pytest.raises(InputError, match=r"layer window .*: 0 <= start < end is needed"):
        set_layer_window(*window)


def test_should_inject_for_a_layer():
    assert should_inject_for_layer() and should_inject_for_layer(9)
    set_selective_layers([2])
    assert should_inject_for_layer(2) and not should_inject_for_layer(0)
    assert not should_inject_for_layer()
    set_current_layer(2)
    assert should_inject_for_layer()
    set_selective_layers([])
    assert not should_inject_for_layer(2)


def test_a_selection_changed_while_noise_is_on_takes_effect_at_once():
    clean = F.linear(X, W)
    enable_noisy_ops(0.05)
    assert not torch.equal(F.linear(X, W), clean)
    set_selective_operators(["bmm"])
    assert torch.equal(F.linear(X, W), clean)
    with pytest.warns(match=r"fell on nothing.*\(linear\).*operators bmm"):
        set_selective_operators(None)
    assert not torch.equal(F.linear(X, W), clean)
