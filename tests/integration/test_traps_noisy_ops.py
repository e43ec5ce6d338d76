"""What went wrong in the original interface, by its number in the list of traps; ours is right."""

import pytest
import torch
import torch.nn.functional as F
from helpers.noisy_state import fresh_state
from helpers.small_models import small_backbone, small_model
from torch.overrides import _get_current_function_mode_stack

from noisescope.errors import DoseWarning, NoisescopeWarning, SelectionError
from noisescope.noisy_ops import (
    disable_noisy_ops,
    enable_noisy_ops,
    get_current_layer,
    get_injection_dose,
    get_layer_injection_stats,
    noisy_ops_context,
    register_layer_hooks,
    remove_layer_hooks,
    set_noise_phases,
    set_selective_layers,
    set_selective_operators,
    should_inject_for_layer,
)

IDS = torch.tensor([[5, 9, 2, 44, 17, 8, 30, 21], [7, 7, 61, 3, 12, 50, 4, 33]])
X = torch.linspace(-2, 3, 2 * 4 * 4).reshape(2, 4, 4)
V = torch.linspace(-1, 2, 4)
PATCHED = ((torch, "matmul"), (torch, "bmm"), *((F, n) for n in ("linear", "softmax", "silu")))


@pytest.fixture(autouse=True)
def _state():
    with fresh_state():
        yield


@pytest.fixture
def model():
    found = small_model("qwen2")
    register_layer_hooks(found)
    return found


def logits(model, ids=IDS, **kwargs):
    with torch.no_grad():
        return model(input_ids=ids, **kwargs).logits


def gradients(model):
    model.zero_grad()
    model(input_ids=IDS).logits.square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def count(run):
    with noisy_ops_context(0.05, all_ops_mode=True):
        run()
        return disable_noisy_ops()["forward"]


# 1: the dose never arrived.


@pytest.mark.parametrize(
    ("dtype", "scale", "share"), [("bfloat16", 1e-4, 0.005), ("bfloat16", 1e-3, 0.05)]
)
def test_trap_01_a_dose_that_rounding_erases_is_reported_and_warned_of(model, dtype, scale, share):
    model.to(getattr(torch, dtype))
    set_selective_operators(["linear"])
    enable_noisy_ops(scale)
    logits(model)
    assert get_injection_dose().share_changed < share
    with pytest.warns(DoseWarning, match="under half of the forward noise arrived"):
        assert disable_noisy_ops()["forward"] == 22


def test_trap_01_in_float32_the_dose_arrives(model):
    enable_noisy_ops(1e-4)
    logits(model)
    dose = get_injection_dose()
    assert dose.share_changed > 0.99 and dose.relative_l2 == pytest.approx(1e-4, rel=0.1)


# 2: nothing matched, nobody noticed.


def test_trap_02_an_operator_that_the_model_never_runs_is_warned_of(model):
    set_selective_operators(["gelu"])
    enable_noisy_ops(0.05)
    logits(model)
    with pytest.warns(NoisescopeWarning, match=r"fell on nothing.*operators gelu"):
        disable_noisy_ops()


def test_trap_02_a_filter_that_names_no_layer_is_an_error(model):
    set_selective_layers([28])
    enable_noisy_ops(0.05)
    with pytest.raises(SelectionError, match=r"\[28\] names no layer.*layers 0 to 2"):
        logits(model)


def test_trap_02_running_another_model_than_the_registered_one_is_warned_of(model):
    set_selective_layers([1])
    enable_noisy_ops(0.05)
    logits(small_model("qwen2"))
    with pytest.warns(NoisescopeWarning, match=r"fell on nothing.*layers \[1\]"):
        disable_noisy_ops()


# 3: operators slip past.

SPELLINGS = {
    "@": (1, lambda: X @ X),
    "Tensor.matmul": (1, lambda: X.matmul(X)),
    "torch.matmul": (1, lambda: torch.matmul(X, X)),
    "mm": (1, lambda: torch.mm(X[0], X[1])),
    "addmm": (1, lambda: torch.addmm(X[0], X[0], X[1])),
    "bmm": (1, lambda: X.bmm(X)),
    "baddbmm": (1, lambda: torch.baddbmm(X, X, X)),
    "einsum": (1, lambda: torch.einsum("bij,bjk->bik", X, X)),
    "linear": (1, lambda: F.linear(X, X[0])),
    "F.softmax": (1, lambda: F.softmax(X, dim=-1)),
    "torch.softmax": (1, lambda: torch.softmax(X, -1)),
    "Tensor.softmax": (1, lambda: X.softmax(-1)),
    "silu": (1, lambda: torch.nn.SiLU()(X)),
    "gelu": (1, lambda: torch.nn.GELU()(X)),
    "layer_norm": (1, lambda: torch.nn.LayerNorm(4, elementwise_affine=False)(X)),
    "rms_norm": (1, lambda: torch.nn.RMSNorm(4, elementwise_affine=False)(X)),
    "fused attention": (3, lambda: F.scaled_dot_product_attention(X, X, X)),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_trap_03_every_spelling_is_noisy_and_counted_once(spelling):
    calls, run = SPELLINGS[spelling]
    clean = run()
    with noisy_ops_context(0.05, all_ops_mode=True):
        assert not torch.equal(run(), clean)
        assert disable_noisy_ops()["forward"] == calls


@pytest.mark.parametrize(
    ("operator", "runs"), [("matmul", 2), ("softmax", 1), ("rms_norm", 2), ("silu", 1)]
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_trap_03_a_qwen2_has_noise_in_attention_and_norms(operator, runs, attention):
    model = small_model("qwen2", attn_implementation=attention)
    clean = logits(model)
    register_layer_hooks(model)
    set_selective_operators([operator])
    enable_noisy_ops(0.05)
    assert not torch.equal(logits(model), clean)
    stats = get_layer_injection_stats()
    assert [stats[n]["forward"] for n in range(3)] == [runs] * 3


# 4: the head was charged to the last layer.


def test_trap_04_the_head_is_not_part_of_the_last_layer(model):
    seen = {}
    model.lm_head.register_forward_hook(lambda _, args, out: seen.update(x=args[0], y=out))
    set_selective_layers([2])
    enable_noisy_ops(0.05, all_ops_mode=True)
    logits(model)
    assert get_current_layer() is None and set(get_layer_injection_stats()) == {2}
    disable_noisy_ops()
    assert torch.equal(seen["y"], F.linear(seen["x"], model.lm_head.weight))


def test_trap_04_what_is_outside_the_layers_counts_as_unknown(model):
    enable_noisy_ops(0.05)
    logits(model)
    stats = get_layer_injection_stats()
    assert stats["unknown"] == {"forward": 1, "backward": 0} and stats[2] == stats[1]


# 5: backward ignored the filter.


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_trap_05_backward_noise_falls_on_the_selected_layer_alone(layer):
    # Fused attention is taken apart where it is selected, which rounds differently; eager never is.
    model = small_model("qwen2", attn_implementation="eager")
    register_layer_hooks(model)
    clean = gradients(model)
    set_noise_phases(forward=False, backward=True)
    set_selective_layers([layer])
    enable_noisy_ops(0.05, all_ops_mode=True)
    noisy = gradients(model)
    stats = get_layer_injection_stats()
    assert set(stats) == {layer} and stats[layer]["forward"] == 0 < stats[layer]["backward"]
    # Gradients flow from the last layer to the first: what is above the noise stays clean.
    above = [n for n in clean if any(f"layers.{k}." in n for k in range(layer + 1, 3))]
    below = [n for n in clean if any(f"layers.{k}." in n for k in range(layer))]
    assert all(torch.equal(noisy[n], clean[n]) for n in (*above, "model.norm.weight"))
    assert not any(torch.equal(noisy[n], clean[n]) for n in below)
    changed = [n for n in clean if f"layers.{layer}." in n and not torch.equal(noisy[n], clean[n])]
    assert f"model.layers.{layer}.mlp.down_proj.weight" in changed


# 6: open when unsure.


def test_trap_06_a_filter_without_hooks_is_an_error():
    set_selective_layers([0])
    enable_noisy_ops(0.05)
    with pytest.raises(SelectionError, match=r"filter \[0\] is set .*register_layer_hooks"):
        logits(small_model("qwen2"))
    with pytest.raises(SelectionError, match="no layer is known"):
        X @ X
    assert not should_inject_for_layer()


def test_trap_06_hooks_that_were_removed_are_no_hooks(model):
    remove_layer_hooks()
    set_selective_layers([0])
    enable_noisy_ops(0.05)
    with pytest.raises(SelectionError, match="no layer is known"):
        logits(model)


# 7: linear and matmul; families and backbones.


def test_trap_07_linear_and_matmul_are_told_apart():
    runs = {"linear": lambda: F.linear(X, X[0]), "matmul": lambda: X @ X}
    for selected in runs:
        set_selective_operators([selected])
        counts = {}
        for name, run in runs.items():
            enable_noisy_ops(0.05)
            run()
            with_filter = pytest.warns(NoisescopeWarning, match="fell on nothing")
            if name == selected:
                counts[name] = disable_noisy_ops()["forward"]
            else:
                with with_filter:
                    counts[name] = disable_noisy_ops()["forward"]
        assert counts == {name: int(name == selected) for name in runs}


@pytest.mark.parametrize("make", [small_model, small_backbone])
@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gpt_neox", "opt", "bert"])
def test_trap_07_hooks_find_the_layers_of_every_family_and_of_a_bare_backbone(family, make):
    assert register_layer_hooks(make(family)) == 3


# 8: gradients and arguments.


def test_trap_08_weight_gradients_are_noised_after_their_reduction():
    x, w = torch.randn(4096, 8, generator=torch.manual_seed(0)), torch.ones(64, 8)
    w.requires_grad_()
    set_noise_phases(forward=False, backward=True)
    with noisy_ops_context(0.05):
        (noisy,) = torch.autograd.grad(F.linear(x, w).sum(), w)
    (clean,) = torch.autograd.grad(F.linear(x, w).sum(), w)
    # Noise on 4096 addends before the sum would be about sqrt(4096) E|x| / |sum x| times larger.
    assert float(((noisy - clean) / clean.abs()).std()) == pytest.approx(0.05, rel=0.15)


@pytest.mark.parametrize(
    "run",
    [
        lambda x: x @ V,
        lambda x: V @ x.transpose(-1, -2),
        lambda x: torch.matmul(x[0, 0], x[0, 1]),
        lambda x: F.layer_norm(x, (4,)),
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: F.softmax(x, dim=0),
    ],
)
def test_trap_08_one_dimension_no_weight_and_options_work_both_ways(run):
    x = X.clone().requires_grad_()
    clean = run(x)
    (clean_gradient,) = torch.autograd.grad(clean.square().sum(), x)
    enable_noisy_ops(1e-5, all_ops_mode=True)
    noisy = run(x)
    (gradient,) = torch.autograd.grad(noisy.square().sum(), x)
    # tanh GELU differs from the exact one by up to 5e-4: an option that is ignored would show.
    torch.testing.assert_close(noisy, clean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient, clean_gradient, rtol=1e-3, atol=1e-3)
    counts = disable_noisy_ops()
    assert counts["forward"] == 1 <= counts["backward"] and not torch.equal(noisy, clean)


def test_trap_08_out_is_written():
    clean, out = X @ X, torch.zeros(2, 4, 4)
    enable_noisy_ops(0.05)
    result = torch.matmul(X, X, out=out)
    assert result is out and not torch.equal(out, clean)
    torch.testing.assert_close(out, clean, rtol=0.3, atol=0.3)


# 9: what stays behind, and what waits for the device.


def test_trap_09_nesting_leaves_nothing_patched():
    before = [getattr(holder, name) for holder, name in PATCHED]
    enable_noisy_ops(0.05)
    with noisy_ops_context(0.1, all_ops_mode=True):
        enable_noisy_ops(0.2)
        with noisy_ops_context(0.3):
            disable_noisy_ops()
    disable_noisy_ops()
    disable_noisy_ops()
    assert all(getattr(h, n) is f for (h, n), f in zip(PATCHED, before, strict=True))
    assert _get_current_function_mode_stack() == []


def test_trap_09_hooks_can_be_taken_away():
    model = small_model("qwen2")

    def hooks():
        return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]

    before = hooks()
    register_layer_hooks(model)
    assert hooks() != before
    remove_layer_hooks(model)
    assert hooks() == before


def test_trap_09_no_injection_waits_for_the_device(model, monkeypatch):
    def wait(*_):
        raise AssertionError("a value was read from the device")

    enable_noisy_ops(0.05, all_ops_mode=True)
    with monkeypatch.context() as patched:
        for name in ("item", "tolist", "nonzero", "__bool__", "__float__", "__int__"):
            patched.setattr(torch.Tensor, name, wait)
        logits(model)
    assert disable_noisy_ops()["forward"] == 41


# 10: the global generator.


def test_trap_10_the_global_generator_is_neither_used_nor_disturbed(model):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    enable_noisy_ops(0.05, all_ops_mode=True)
    first = logits(model)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(logits(model), first)


def test_trap_10_noise_depends_on_neither_order_nor_batch(model):
    clean = logits(model)
    enable_noisy_ops(0.05, all_ops_mode=True)
    together = logits(model)
    apart = torch.cat([logits(model, row[None]) for row in reversed(IDS)]).flip(0)
    # Only the order of summation differs; the noise itself is five orders larger.
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-4)
    assert float((together - clean).abs().max()) > 0.1


# 11: the key-value cache.


def test_trap_11_a_cached_run_is_the_same_experiment(model):
    clean = logits(model)
    enable_noisy_ops(0.05, all_ops_mode=True)
    whole = logits(model)
    with torch.no_grad():
        made = model(input_ids=IDS[:, :3], use_cache=True)
        steps = [made.logits]
        for t in range(3, IDS.shape[1]):
            made = model(input_ids=IDS[:, t : t + 1], past_key_values=made.past_key_values)
            steps.append(made.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=0, atol=1e-4)
    assert float((whole - clean).abs().max()) > 0.1
