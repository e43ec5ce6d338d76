"""Counting by label and by layer; what is printed; what is warned of."""

import pytest
import torch
import torch.nn.functional as F
from helpers.small_models import small_model

from noisescope.errors import DoseWarning, InputError, NoisescopeWarning
from noisescope.noisy_ops import (
    disable_noisy_ops,
    enable_noisy_ops,
    get_injection_dose,
    get_injection_stats,
    get_layer_injection_stats,
    get_phase,
    print_injection_summary,
    register_layer_hooks,
    reset_injection_stats,
    reset_layer_injection_stats,
    set_noise_phases,
    set_phase,
    set_selective_layers,
    set_selective_operators,
)

X = torch.linspace(-2, 3, 32).reshape(4, 8)
W = torch.linspace(-1, 1, 64).reshape(8, 8).cos()


def step():
    """One linear of which the input alone wants a gradient: one injection each way."""
    x = X.clone().requires_grad_()
    F.linear(x, W).sum().backward()


def test_statistics_have_these_keys_and_values():
    assert get_injection_stats() == {
        "enabled": False,
        "error_scale": 1e-5,
        "error_type": "relative_gaussian",
        "current_phase": "unknown",
        "forward_enabled": True,
        "backward_enabled": True,
        "counts": {
            f"{a}_{b}": 0 for a in ("rollout", "actor", "unknown") for b in ("forward", "backward")
        },
        "total_forward": 0,
        "total_backward": 0,
    }
    enable_noisy_ops(0.25, "absolute_gaussian")
    set_noise_phases(forward=True, backward=False)
    step()
    assert get_injection_stats() == {
        "enabled": True,
        "error_scale": 0.25,
        "error_type": "absolute_gaussian",
        "current_phase": "unknown",
        "forward_enabled": True,
        "backward_enabled": False,
        "counts": {**dict.fromkeys(get_injection_stats()["counts"], 0), "unknown_forward": 1},
        "total_forward": 1,
        "total_backward": 0,
    }


@pytest.mark.parametrize(
    ("label", "prefix"),
    [
        ("rollout", "rollout"),
        ("actor_forward", "actor"),
        ("actor_backward", "actor"),
        ("unknown", "unknown"),
    ],
)
def test_injections_are_counted_under_the_label(label, prefix):
    set_phase(label)
    assert get_phase() == label == get_injection_stats()["current_phase"]
    enable_noisy_ops(0.05)
    step()
    counts = disable_noisy_ops()
    assert {key: n for key, n in counts.items() if n} == {
        "forward": 1,
        "backward": 1,
        f"{prefix}_forward": 1,
        f"{prefix}_backward": 1,
    }


def test_an_unknown_label_is_refused():
    with pytest.raises(InputError, match="phase 'train': accepted are rollout, actor_forward"):
        set_phase("train")
    assert get_phase() == "unknown"


def test_every_input_with_a_gradient_counts_once_backward():
    x, w = X.clone().requires_grad_(), W.clone().requires_grad_()
    enable_noisy_ops(0.05)
    F.linear(x, w, torch.zeros(8, requires_grad=True)).sum().backward()
    counts = disable_noisy_ops()
    assert (counts["forward"], counts["backward"]) == (1, 3)


def test_layers_add_up_to_the_totals():
    model = small_model("qwen2")
    register_layer_hooks(model)
    enable_noisy_ops(0.05, all_ops_mode=True)
    model(input_ids=torch.arange(1, 9)[None]).logits.sum().backward()
    counts, layers = disable_noisy_ops(), get_layer_injection_stats()
    for phase in ("forward", "backward"):
        assert sum(n[phase] for n in layers.values()) == counts[phase] > 30
    assert layers[0] == layers[1] == layers[2]


def test_resetting_sets_each_kind_to_zero_alone():
    enable_noisy_ops(0.05)
    step()
    reset_injection_stats()
    assert get_injection_stats()["total_forward"] == 0
    assert get_layer_injection_stats() == {"unknown": {"forward": 1, "backward": 1}}
    step()
    reset_layer_injection_stats()
    assert get_layer_injection_stats() == {}
    assert get_injection_stats()["total_forward"] == 1


def test_what_is_returned_is_a_copy():
    enable_noisy_ops(0.05)
    step()
    get_injection_stats()["counts"]["unknown_forward"] = 99
    get_layer_injection_stats()["unknown"]["forward"] = 99
    disable_noisy_ops()["unknown_forward"] = 99
    assert get_injection_stats()["total_forward"] == 1
    assert get_layer_injection_stats()["unknown"]["forward"] == 1


def test_enabling_again_keeps_the_counts_of_the_layers():
    for _ in range(2):
        enable_noisy_ops(0.05)
        step()
    assert get_injection_stats()["total_forward"] == 1
    assert get_layer_injection_stats()["unknown"] == {"forward": 2, "backward": 2}


def test_the_summary_is_printed(capsys):
    print_injection_summary()
    assert "no injections recorded yet" in capsys.readouterr().out
    model = small_model("qwen2", num_hidden_layers=11)
    register_layer_hooks(model)
    enable_noisy_ops(0.05)
    set_phase("rollout")
    with torch.no_grad():
        model(input_ids=torch.arange(1, 9)[None])
    print_injection_summary()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "noise: relative_gaussian 0.05, enabled: True"
    # Seven projections and two products of attention in each layer, and the head.
    assert lines[1].split() == ["rollout_forward:", "100"]
    assert [line.split(":")[0].strip() for line in lines[2:]] == [
        *(f"layer {n}" for n in range(11)),
        "layer unknown",
    ]
    assert lines[2].endswith("layer 0: forward 9, backward 0")


# What really happened.


def test_the_dose_that_arrived():
    enable_noisy_ops(0.05)
    step()
    dose = get_injection_dose()
    assert dose.elements == 32 and dose.share_changed == 1
    assert dose.relative_l2 == pytest.approx(0.05, rel=0.5)
    assert get_injection_dose("backward").elements == 32
    disable_noisy_ops()
    assert get_injection_dose().elements == 0


@pytest.mark.parametrize(
    "end", [disable_noisy_ops, enable_noisy_ops, lambda: set_noise_phases(True, False)]
)
def test_a_dose_that_rounding_erased_is_warned_of(end):
    enable_noisy_ops(1e-4)
    F.linear(X.bfloat16(), W.bfloat16())
    with pytest.warns(DoseWarning, match="under half of the forward noise arrived"):
        end()


def test_noise_that_fell_on_nothing_is_warned_of():
    set_selective_operators(["gelu"])
    enable_noisy_ops(0.05)
    step()
    with pytest.warns(NoisescopeWarning, match=r"fell on nothing: none .*\(linear\)"):
        disable_noisy_ops()


def test_a_warning_that_is_an_error_still_switches_off():
    set_selective_operators(["gelu"])
    enable_noisy_ops(0.05)
    step()
    with pytest.raises(NoisescopeWarning):
        disable_noisy_ops()
    assert not get_injection_stats()["enabled"]


@pytest.mark.parametrize("select", [set_selective_layers, set_selective_operators])
def test_nothing_asked_for_is_nothing_to_warn_of(select):
    select([])
    enable_noisy_ops(0.05)
    step()
    assert disable_noisy_ops()["forward"] == 0
