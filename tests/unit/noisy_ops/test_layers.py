"""Registering models: how many layers, several models, and nothing left behind."""

import copy
import gc
import weakref

import pytest
import torch
from helpers.small_models import FAMILIES, small_backbone, small_model
from torch import nn

from noisescope.errors import InputError, SelectionError
from noisescope.noisy_ops import (
    disable_noisy_ops,
    enable_noisy_ops,
    get_current_layer,
    get_layer_injection_stats,
    register_layer_hooks,
    remove_layer_hooks,
    reset_layer_injection_stats,
    set_current_layer,
    set_selective_layers,
)

IDS = torch.arange(1, 9)[None]


def run(model):
    with torch.no_grad():
        return model(input_ids=IDS)[0]


def layer_counts(model):
    """Forward injections per layer of one clean-slate run."""
    reset_layer_injection_stats()
    run(model)
    return {layer: n["forward"] for layer, n in get_layer_injection_stats().items()}


def count_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Blocks(nn.Module):
    """A model of no known family; `tower` says under which names its layers are."""

    def __init__(self, name="blocks", layers=2, towers=("",)):
        super().__init__()
        for tower in towers:
            holder = nn.Module() if tower else self
            setattr(holder, name, nn.ModuleList(nn.Linear(4, 4) for _ in range(layers)))
            if tower:
                setattr(self, tower, holder)
        self.name, self.towers = name, towers

    def forward(self, input_ids):
        x = input_ids.float()
        for tower in self.towers:
            for layer in getattr(getattr(self, tower) if tower else self, self.name):
                x = layer(x)
        return (x,)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_layers_counted_with_noise_in_each(family):
    model = small_model(family)
    assert register_layer_hooks(model) == 3
    enable_noisy_ops(0.05)
    counts = layer_counts(model)
    assert {0, 1, 2} <= set(counts) and min(counts[n] for n in (0, 1, 2)) > 4


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_a_bare_backbone_has_its_layers_counted(family):
    model = small_backbone(family)
    assert register_layer_hooks(model) == 3
    enable_noisy_ops(0.05)
    assert {0, 1, 2} <= set(layer_counts(model))


def test_a_model_of_28_layers_has_28_hooks():
    model = small_model("qwen2", num_hidden_layers=28)
    assert register_layer_hooks(model) == 28
    enable_noisy_ops(0.05)
    counts = layer_counts(model)
    assert set(counts) == {*range(28), "unknown"} and counts["unknown"] == 1


@pytest.mark.parametrize("pattern", [".blocks.", "blocks", ".blocks"])
def test_a_pattern_finds_the_layers_of_other_models(pattern):
    model = Blocks()
    assert register_layer_hooks(model, pattern) == 2
    enable_noisy_ops(0.05)
    with torch.no_grad():
        model(torch.ones(1, 4))
    assert get_layer_injection_stats() == {
        0: {"forward": 1, "backward": 0},
        1: {"forward": 1, "backward": 0},
    }


def test_layers_of_two_towers_share_their_numbers():
    model = Blocks("parts", 2, ("left", "right"))
    assert register_layer_hooks(model, ".parts.") == 2
    enable_noisy_ops(0.05)
    with torch.no_grad():
        model(torch.ones(1, 4))
    assert {k: n["forward"] for k, n in get_layer_injection_stats().items()} == {0: 2, 1: 2}


def test_layers_inside_layers_belong_to_the_outer_ones():
    model = Blocks()
    model.blocks[1].blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))
    assert register_layer_hooks(model, ".blocks.") == 2


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(
        SelectionError, match=r"no layers match '\.stages\.' in Blocks: give the pat"
    ):
        register_layer_hooks(Blocks(), ".stages.")


def test_what_is_no_module_is_refused():
    with pytest.raises(InputError, match=r"model str: a torch\.nn\.Module is needed"):
        register_layer_hooks("Qwen/Qwen2.5-1.5B")


# Several models.


def test_a_second_model_is_added():
    actor, reference = small_model("qwen2"), small_model("llama", num_hidden_layers=2)
    assert (register_layer_hooks(actor), register_layer_hooks(reference)) == (3, 2)
    enable_noisy_ops(0.05)
    set_selective_layers([1])
    assert set(layer_counts(actor)) == {1} == set(layer_counts(reference))
    set_selective_layers([2])
    assert set(layer_counts(actor)) == {2} and layer_counts(reference) == {}
    with pytest.warns(match="fell on nothing"):  # only the reference ran since
        set_selective_layers([1])
        layer_counts(reference), set_selective_layers([2]), layer_counts(reference)
        set_selective_layers(None)


def test_registering_again_replaces_the_hooks():
    model = small_model("qwen2")
    register_layer_hooks(model)
    enable_noisy_ops(0.05, all_ops_mode=True)
    hooks, counts, noisy = count_hooks(model), layer_counts(model), run(model)
    assert register_layer_hooks(model) == 3
    assert (count_hooks(model), layer_counts(model)) == (hooks, counts)
    assert torch.equal(run(model), noisy)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_backbone_registered_inside_its_model_is_not_counted_twice(order):
    model = small_model("qwen2")
    pair = (model, model.model)
    for which in order:
        register_layer_hooks(pair[which])
    enable_noisy_ops(0.05, all_ops_mode=True)
    # Two norms, seven projections, three steps of attention, one SiLU.
    assert [layer_counts(model)[n] for n in range(3)] == [13, 13, 13]


def test_a_deep_copy_that_is_registered_has_noise_once():
    model = small_model("qwen2")
    register_layer_hooks(model)
    reference = copy.deepcopy(model)
    register_layer_hooks(reference)
    enable_noisy_ops(0.05, all_ops_mode=True)
    assert layer_counts(reference) == layer_counts(model)
    assert torch.equal(run(reference), run(model))


def test_removing_takes_away_the_hooks_of_one_model_or_of_all():
    models = [small_model("qwen2", seed) for seed in range(3)]
    clean = [count_hooks(m) for m in models]
    for model in models:
        register_layer_hooks(model)
    remove_layer_hooks(models[0])
    assert [count_hooks(m) == n for m, n in zip(models, clean, strict=True)] == [True, False, False]
    remove_layer_hooks(models[0])
    remove_layer_hooks()
    assert [count_hooks(m) for m in models] == clean


def test_a_registered_model_is_not_kept_alive():
    model = small_model("qwen2")
    register_layer_hooks(model)
    enable_noisy_ops(0.05, all_ops_mode=True)
    run(model)
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None
    # It is forgotten altogether: a filter has nothing to go by now.
    set_selective_layers([0])
    with pytest.raises(SelectionError, match="no layer is known"):
        torch.ones(2, 2) @ torch.ones(2, 2)


def test_hooks_without_noise_change_nothing():
    model = small_model("qwen2")
    clean = run(model)
    register_layer_hooks(model)
    assert torch.equal(run(model), clean)
    enable_noisy_ops(0.05, all_ops_mode=True)
    run(model)
    disable_noisy_ops()
    assert torch.equal(run(model), clean) and get_layer_injection_stats() != {}


def test_an_exception_in_a_layer_leaves_no_layer_behind(state):
    model = small_model("qwen2")
    register_layer_hooks(model)
    enable_noisy_ops(0.05)

    def fail(module, args):
        raise RuntimeError

    handle = model.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError):
        run(model)
    handle.remove()
    assert get_current_layer() is None and state.active == []
    assert set(layer_counts(model)) == {0, 1, 2, "unknown"}


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_meets_the_same_noise_and_counts_once(use_reentrant):
    model = small_model("qwen2").train()
    register_layer_hooks(model)

    def gradients():
        model.zero_grad()
        enable_noisy_ops(0.05, all_ops_mode=True)
        model(input_ids=IDS, use_cache=False).logits.square().mean().backward()
        return disable_noisy_ops(), [p.grad.clone() for p in model.parameters()]

    counts, plain = gradients()
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    counts_again, again = gradients()
    assert counts_again == counts
    for a, b in zip(again, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_generation_is_noisy_and_repeats_itself():
    model = small_model("qwen2")
    register_layer_hooks(model)
    enable_noisy_ops(0.2)
    texts = [model.generate(IDS, max_new_tokens=6, do_sample=False) for _ in range(2)]
    assert torch.equal(*texts)
    # The prompt and every token but the last, each one pass of 28 operators.
    passes = texts[0].shape[1] - IDS.shape[1]
    assert disable_noisy_ops()["forward"] == 2 * passes * 28


# The current layer.


def test_the_current_layer_follows_the_model_and_is_none_outside():
    model = small_model("qwen2")
    register_layer_hooks(model)
    seen = []
    for layer in (*model.model.layers, model.lm_head):
        layer.register_forward_pre_hook(lambda *_: seen.append(get_current_layer()))
    run(model)
    assert [*seen, get_current_layer()] == [0, 1, 2, None, None]


def test_the_current_layer_can_be_named():
    set_current_layer(5)
    assert get_current_layer() == 5
    enable_noisy_ops(0.05)
    torch.ones(2, 2) @ torch.ones(2, 2)
    set_current_layer(None)
    torch.ones(2, 2) @ torch.ones(2, 2)
    assert get_layer_injection_stats() == {
        5: {"forward": 1, "backward": 0},
        "unknown": {"forward": 1, "backward": 0},
    }


def test_a_filter_of_layers_that_no_model_has_is_an_error():
    model = small_model("qwen2")
    register_layer_hooks(model)
    enable_noisy_ops(0.05)
    set_selective_layers([3, 99])
    with pytest.raises(
        SelectionError, match=r"\[3, 99\] names no layer: the registered model has layers 0 to 2"
    ):
        run(model)
    set_selective_layers([2, 3, 4])
    assert set(layer_counts(model)) == {2}
