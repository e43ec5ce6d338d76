"""Switching on and off: sizes of the noise, nesting, exceptions, what stays behind."""

import threading
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from helpers.small_models import small_model
from torch.overrides import _get_current_function_mode_stack

from noisescope.errors import InputError
from noisescope.noisy_ops import (
    disable_noisy_ops,
    enable_noisy_ops,
    get_injection_stats,
    noisy_ops_context,
    register_layer_hooks,
    set_noise_phases,
    set_noise_seed,
    set_selective_operators,
)

X = torch.linspace(-2, 3, 32 * 64).reshape(32, 64)
W = torch.linspace(-1, 1, 128 * 64).reshape(128, 64).cos()
CLEAN = F.linear(X, W)
IDS = torch.arange(1, 13)[None]


def deviation(error_type="relative_gaussian"):
    """The realised standard deviation of the noise on one linear of 4096 outputs."""
    error = F.linear(X, W) - CLEAN
    if error_type == "relative_gaussian":
        error = error / CLEAN.abs()
    return float(error.std())


@pytest.mark.parametrize("error_type", ["relative_gaussian", "absolute_gaussian"])
def test_noise_is_as_large_as_asked(error_type):
    enable_noisy_ops(0.05, error_type)
    # 4096 normal numbers: their deviation is known to 1.1 %; four times that is allowed.
    assert deviation(error_type) == pytest.approx(0.05, rel=0.045)


def test_default_scale_is_one_in_a_hundred_thousand():
    enable_noisy_ops()
    noisy = F.linear(X.double(), W.double())
    disable_noisy_ops()
    exact = F.linear(X.double(), W.double())
    assert float(((noisy - exact) / exact.abs()).std()) == pytest.approx(1e-5, rel=0.045)


def test_softmax_stays_a_distribution():
    enable_noisy_ops(2.0, "absolute_gaussian", all_ops_mode=True)
    noisy = F.softmax(X, dim=-1)
    assert not torch.equal(noisy, X.softmax(-1)) and float(noisy.min()) == 0
    torch.testing.assert_close(noisy.sum(-1), torch.ones(32))


def test_scale_zero_is_bitwise_clean_and_counted():
    enable_noisy_ops(0.0)
    assert torch.equal(F.linear(X, W), CLEAN)
    assert disable_noisy_ops()["forward"] == 1


def test_after_disabling_everything_is_clean():
    functions = (torch.matmul, torch.bmm, F.linear, F.softmax, F.silu, F.gelu, F.layer_norm)
    enable_noisy_ops(0.05, all_ops_mode=True)
    assert not torch.equal(F.linear(X, W), CLEAN)
    disable_noisy_ops()
    assert torch.equal(F.linear(X, W), CLEAN)
    now = (torch.matmul, torch.bmm, F.linear, F.softmax, F.silu, F.gelu, F.layer_norm)
    assert all(a is b for a, b in zip(functions, now, strict=True))
    assert _get_current_function_mode_stack() == []


def test_enabling_again_takes_the_new_settings_once():
    enable_noisy_ops(0.5)
    F.linear(X, W)
    enable_noisy_ops(0.01, all_ops_mode=True)
    assert deviation() == pytest.approx(0.01, rel=0.045)
    assert len(_get_current_function_mode_stack()) == 1
    assert disable_noisy_ops()["forward"] == 1
    assert _get_current_function_mode_stack() == []


def test_disabling_twice_is_harmless_and_returns_the_same_counts():
    enable_noisy_ops(0.05)
    F.linear(X, W)
    assert disable_noisy_ops() == disable_noisy_ops()


def test_disabling_returns_totals_and_labels():
    assert disable_noisy_ops() == {
        "forward": 0,
        "backward": 0,
        "rollout_forward": 0,
        "rollout_backward": 0,
        "actor_forward": 0,
        "actor_backward": 0,
        "unknown_forward": 0,
        "unknown_backward": 0,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1.0,), "noise scale -1.0"),
        ((float("nan"),), "noise scale nan"),
        ((float("inf"),), "noise scale inf"),
        ((0.1, "uniform"), "error type 'uniform': 'relative_gaussian' or 'absolute_gaussian'"),
    ],
)
def test_wrong_settings_change_nothing(arguments, message):
    enable_noisy_ops(0.05)
    with pytest.raises(InputError, match=message):
        enable_noisy_ops(*arguments)
    with pytest.raises(ValueError, match=message), noisy_ops_context(*arguments):
        pass
    assert get_injection_stats()["error_scale"] == 0.05
    assert deviation() == pytest.approx(0.05, rel=0.045)


# Contexts.


def test_a_context_ends_with_noise_off():
    with noisy_ops_context(0.05):
        assert deviation() > 0.04
    assert torch.equal(F.linear(X, W), CLEAN)
    assert get_injection_stats()["total_forward"] == 1


def test_nested_contexts_have_their_own_settings():
    with noisy_ops_context(0.05):
        with noisy_ops_context(0.4):
            with noisy_ops_context(0.01):
                assert deviation() == pytest.approx(0.01, rel=0.045)
            assert deviation() == pytest.approx(0.4, rel=0.045)
        assert deviation() == pytest.approx(0.05, rel=0.045)
        assert get_injection_stats()["error_scale"] == 0.05
    assert torch.equal(F.linear(X, W), CLEAN)


def test_all_ops_mode_of_an_inner_context_ends_with_it():
    with noisy_ops_context(0.05):
        with noisy_ops_context(0.05, all_ops_mode=True):
            inner = F.silu(X)
        outer = F.silu(X)
    assert torch.equal(outer, F.silu(X)) and not torch.equal(inner, outer)


def test_an_exception_ends_the_inner_context_only():
    with noisy_ops_context(0.05):
        with pytest.raises(KeyError), noisy_ops_context(0.4):
            raise KeyError
        assert deviation() == pytest.approx(0.05, rel=0.045)
    with pytest.raises(KeyError), noisy_ops_context(0.4):
        raise KeyError
    assert _get_current_function_mode_stack() == []


def test_disabling_inside_a_context_lasts_until_its_end():
    with noisy_ops_context(0.05):
        with noisy_ops_context(0.4):
            disable_noisy_ops()
            assert torch.equal(F.linear(X, W), CLEAN)
        assert deviation() == pytest.approx(0.05, rel=0.045)
        disable_noisy_ops()
    assert torch.equal(F.linear(X, W), CLEAN)


def test_enabling_inside_a_context_ends_with_it():
    with noisy_ops_context(0.05):
        enable_noisy_ops(0.4)
        assert deviation() == pytest.approx(0.4, rel=0.045)
    assert torch.equal(F.linear(X, W), CLEAN)


def test_counts_of_an_inner_context_are_its_own_and_then_added():
    enable_noisy_ops(0.05)
    F.linear(X, W)
    with noisy_ops_context(0.4):
        F.linear(X, W)
        F.linear(X, W)
        assert get_injection_stats()["total_forward"] == 2
    F.linear(X, W)
    assert disable_noisy_ops()["unknown_forward"] == 4


def test_phases_changed_inside_a_context_hold_after_it():
    with noisy_ops_context(0.05):
        with noisy_ops_context(0.4):
            set_noise_phases(forward=False, backward=False)
        assert torch.equal(F.linear(X, W), CLEAN)


def test_a_selection_changed_inside_a_context_holds_after_it():
    with pytest.warns(match="fell on nothing"), noisy_ops_context(0.05):
        assert not torch.equal(F.linear(X, W), CLEAN)
        with noisy_ops_context(0.4):
            set_selective_operators(["bmm"])
        assert torch.equal(F.linear(X, W), CLEAN)


@pytest.mark.parametrize("make", [lambda: torch.device("cpu"), torch.no_grad])
def test_enabling_inside_another_with_block_survives_its_end(make):
    with make():
        enable_noisy_ops(0.05)
        assert deviation() > 0.04
    assert deviation() > 0.04
    disable_noisy_ops()
    assert _get_current_function_mode_stack() == []


def test_a_default_device_set_and_taken_back_around_it_does_no_harm():
    torch.set_default_device("cpu")
    try:
        enable_noisy_ops(0.05)
    finally:
        torch.set_default_device(None)
    assert deviation() > 0.04
    disable_noisy_ops()
    assert _get_current_function_mode_stack() == []


# Graphs.


def gradient(x):
    (x.grad,) = torch.autograd.grad(F.linear(x, W).square().sum(), x)
    return x.grad


def test_backward_noise_is_as_large_as_asked():
    x = X.clone().requires_grad_()
    clean = gradient(x)
    set_noise_phases(forward=False, backward=True)
    enable_noisy_ops(0.05)
    noise = (gradient(x) - clean) / clean.abs()
    assert float(noise.std()) == pytest.approx(0.05, rel=0.06)


@pytest.mark.parametrize("switch_off", [disable_noisy_ops, lambda: set_noise_phases(True, False)])
def test_a_graph_is_clean_once_backward_noise_is_off(switch_off):
    x = X.clone().requires_grad_()
    clean = gradient(x)
    set_noise_phases(forward=False, backward=True)
    with pytest.warns(match="fell on nothing"):
        enable_noisy_ops(0.05)
        loss = F.linear(x, W).square().sum()
        switch_off()
    assert torch.equal(torch.autograd.grad(loss, x)[0], clean)
    assert disable_noisy_ops()["backward"] == 0


# Realisations.


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_seed_and_draw_choose_the_noise():
    model = small_model("qwen2")
    register_layer_hooks(model)
    enable_noisy_ops(0.05)
    first = logits(model)
    assert torch.equal(first, logits(model))
    seen = [first]
    for seed, draw in ((0, 1), (1, 0)):
        set_noise_seed(seed, draw)
        seen.append(logits(model))
    assert not any(torch.equal(a, b) for a, b in pairwise(seen))
    set_noise_seed(0, 0)
    assert torch.equal(first, logits(model))


def test_the_seed_also_holds_without_hooks_and_for_models_to_come():
    set_noise_seed(7, 3)
    enable_noisy_ops(0.05)
    unknown = F.linear(X, W)
    model = small_model("qwen2")
    register_layer_hooks(model)
    chosen = logits(model)
    set_noise_seed(0, 0)
    enable_noisy_ops(0.05)
    assert not torch.equal(unknown, F.linear(X, W))
    assert not torch.equal(chosen, logits(model))


@pytest.mark.parametrize(
    ("seed", "draw", "name"), [(-1, 0, "seed -1"), (0, 2**32, "draw 4294967296")]
)
def test_a_seed_out_of_range_is_refused(seed, draw, name):
    with pytest.raises(InputError, match=name):
        set_noise_seed(seed, draw)


def test_without_hooks_every_call_meets_its_own_noise_also_in_a_long_run():
    enable_noisy_ops(0.05)
    x, w = X[:1, :8], W[:4, :8]
    seen = {F.linear(x, w).numpy().tobytes() for _ in range(2100)}
    assert len(seen) == 2100
    assert disable_noisy_ops()["forward"] == 2100


# Threads.


def test_a_registered_model_is_noisy_in_every_thread():
    model = small_model("qwen2")
    register_layer_hooks(model)
    enable_noisy_ops(0.05, all_ops_mode=True)
    here, there, stacks = logits(model), [], []

    def work():
        there.append(logits(model))
        stacks.append(_get_current_function_mode_stack())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert torch.equal(here, there[0]) and stacks == [[]]


def test_noise_switched_off_in_another_thread_is_off():
    enable_noisy_ops(0.05)
    thread = threading.Thread(target=disable_noisy_ops)
    thread.start()
    thread.join()
    assert torch.equal(F.linear(X, W), CLEAN)


def test_noise_enabled_in_another_thread_replaces_that_of_this():
    enable_noisy_ops(0.05)
    assert not torch.equal(F.linear(X, W), CLEAN)
    thread = threading.Thread(target=enable_noisy_ops, args=(0.4,))
    thread.start()
    thread.join()
    assert torch.equal(F.linear(X, W), CLEAN)
    enable_noisy_ops(0.01)
    assert deviation() == pytest.approx(0.01, rel=0.045)
