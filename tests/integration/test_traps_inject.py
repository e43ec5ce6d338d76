"""What went wrong in an earlier tool of this kind, one test per numbered trap, for injection."""

import pytest
import torch
import torch.nn.functional as F
from helpers.injection import OneOperator, fired
from helpers.small_models import small_backbone, small_model
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from noisescope.errors import DoseError, DoseWarning, SelectionError
from noisescope.inject import Session, inject, make_selection
from noisescope.noise import RelativeGaussian

IDS = torch.tensor([[5, 9, 11, 3, 17, 20], [7, 7, 8, 2, 40, 41]])


def run(model, *selection, scale=0.05, **options):
    with torch.no_grad(), inject(model, RelativeGaussian(scale), *selection, **options) as session:
        logits = model(input_ids=IDS).logits
    return logits, session


def test_trap_01_a_dose_that_rounding_erases_wholly_is_an_error():
    model = OneOperator(nn.Linear(64, 256)).bfloat16()
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    clean = model(x)
    with pytest.raises(DoseError, match="no forward noise arrived: rounding erased all of it"):
        with torch.no_grad(), inject(model, RelativeGaussian(1e-4)) as session:
            noisy = model(x)
    assert fired(session) == {"op:linear:0": 1}
    assert session.dose().share_changed == 0
    assert torch.equal(noisy, clean)


@pytest.mark.parametrize(
    ("dtype", "scale", "share"),
    [(torch.bfloat16, 1e-3, (0.005, 0.02)), (torch.float16, 1e-4, (0, 0.02))],
)
def test_trap_01_a_dose_that_rounding_erases_is_measured_and_told(dtype, scale, share):
    model = OneOperator(nn.Linear(64, 256)).to(dtype)
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    clean = model(x)
    with pytest.warns(DoseWarning, match="under half of the forward noise arrived"):
        with torch.no_grad(), inject(model, RelativeGaussian(scale)) as session:
            noisy = model(x)
    dose = session.dose()
    assert fired(session) == {"op:linear:0": 1}
    assert dose.share_changed == (noisy != clean).float().mean().item()
    assert share[0] <= dose.share_changed <= share[1]
    assert dose.asked_relative_l2 == pytest.approx(scale, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trap_01_stochastic_rounding_keeps_the_dose_in_expectation(dtype):
    scale = 1e-3
    model = OneOperator(nn.Linear(64, 1024)).to(dtype)
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        clean = model(x).double()
        with inject(model, RelativeGaussian(scale, rounding="stochastic")) as session:
            noisy = model(x).double()
        with inject(model.float(), RelativeGaussian(scale)):
            wide = model(x.float()).double()
    error = noisy - clean
    meant = (wide - model(x.float()).double()).detach()
    # The part of the error along what was meant: 1 in expectation.
    gain = (error * meant).sum() / (meant * meant).sum()
    assert gain == pytest.approx(1, abs=0.1)
    assert session.dose().relative_l2 >= scale


def test_trap_02_a_selection_that_matches_nothing_is_an_error():
    model = small_model("llama")
    with pytest.raises(SelectionError, match="no module matches 'RMSNormalisation'"):
        inject(model, RelativeGaussian(0.05), modules="RMSNormalisation")
    with pytest.raises(SelectionError, match="operator 'layer_norm' never ran"):
        run(model, operators="layer_norm")


def test_trap_03_no_operator_of_a_real_model_slips_past():
    """Qwen2 with fused attention: counted from its architecture, three layers of it."""
    _, session = run(small_model("qwen2"))
    per_layer = {"linear": 7, "matmul": 2, "softmax": 1, "silu": 1, "rms_norm": 2}
    once = {"linear": 1, "rms_norm": 1, "embedding": 1}
    expected = {name: 3 * per_layer.get(name, 0) + once.get(name, 0) for name in per_layer | once}
    lines = session.coverage()
    assert {line.operator: line.perturbed for line in lines} == expected
    assert all(line.seen == line.selected == line.perturbed == line.forward for line in lines)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_trap_04_the_head_is_not_charged_to_the_last_layer(family):
    model = small_model(family)
    _, session = run(model, 2)
    assert all(".2." in name for name in session.counts)
    _, session = run(model, "head")
    assert list(session.counts) == ["lm_head:linear:0"]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_trap_05_backward_noise_falls_in_the_selected_layer(layer):
    model = small_model("llama")
    with inject(model, RelativeGaussian(0.05), layer, phases="backward") as session:
        model(input_ids=IDS).logits.sum().backward()
    assert session.counts
    assert all(f".layers.{layer}." in name for name in session.counts)
    assert {r.site.region for r in session.records if r.backward} == {str(layer)}


def test_trap_06_a_layer_filter_without_known_layers_is_an_error_and_not_everything():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(SelectionError, match="no layers are known for this model"):
        inject(model, RelativeGaussian(0.05), layers=[0])


@pytest.mark.parametrize("make", [small_model, small_backbone])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_trap_07_linear_and_matmul_are_apart_and_layers_found(family, make):
    model = make(family)
    found = {}
    for operator in ("linear", "matmul"):
        with torch.no_grad(), inject(model, RelativeGaussian(0.05), 1, operator) as session:
            model(input_ids=IDS)
        found[operator] = set(session.counts)
        assert {name.split(":")[1] for name in session.counts} == {operator}
    projections = {"gpt2": 4, "llama": 7}[family]
    assert {k: len(v) for k, v in found.items()} == {"linear": projections, "matmul": 2}


def test_trap_08_weight_gradients_get_their_noise_after_the_sum_over_samples():
    """Noise per sample would shrink in the sum; on the sum it has the full relative size."""
    model = OneOperator(nn.Linear(32, 64, bias=False))
    x = torch.randn(256, 32, generator=torch.Generator().manual_seed(0))
    model(x).sum().backward()
    clean, model.op.weight.grad = model.op.weight.grad, None
    with inject(model, RelativeGaussian(0.05), phases="backward"):
        model(x).sum().backward()
    relative = ((model.op.weight.grad - clean) / clean).std()
    assert relative == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[0] @ x[0],
        lambda x: F.layer_norm(x, (4,)),
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: torch.mv(x, x[0]),
    ],
    ids=["1-D matmul", "layer_norm without weight", "tanh gelu", "mv"],
)
def test_trap_08_shapes_and_options_of_every_call_have_a_backward_pass(function):
    model = OneOperator(function)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clean, noisy = x.clone().requires_grad_(), x.clone().requires_grad_()
    function(clean).sum().backward()
    with inject(model, RelativeGaussian(1e-3), phases=("forward", "backward")):
        result = model(noisy)
        result.sum().backward()
    torch.testing.assert_close(result, function(x), rtol=6e-3, atol=6e-3)
    torch.testing.assert_close(noisy.grad, clean.grad, rtol=0, atol=0.02)
    assert not torch.equal(noisy.grad, clean.grad)


def test_trap_08_out_is_written():
    out = torch.zeros(2, 2)
    model = OneOperator(lambda x: torch.matmul(x, x, out=out))
    x = torch.ones(2, 2)
    with torch.no_grad(), inject(model, RelativeGaussian(0.05)):
        assert model(x) is out
    assert (out - 2).abs().max() > 0
    torch.testing.assert_close(out, torch.full((2, 2), 2.0), rtol=0.3, atol=0)


def test_trap_09_nested_sessions_leave_functions_hooks_and_modes_as_they_were():
    model = small_model("llama")
    functions = (torch.matmul, F.linear, F.softmax, torch.Tensor.matmul)
    with torch.no_grad():
        clean = model(input_ids=IDS).logits
    with inject(model, RelativeGaussian(0.05), 0):
        run(model, 1)
        assert (torch.matmul, F.linear, F.softmax, torch.Tensor.matmul) == functions
        model(input_ids=IDS)
    assert _get_current_function_mode_stack() == []
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, clean)


def test_trap_09_counting_and_tallying_read_nothing_from_the_device(monkeypatch):
    model = OneOperator(nn.Linear(4, 4))
    session = Session(model, RelativeGaussian(0.05), make_selection())

    def forbidden(tensor):
        raise AssertionError("waits for the device")

    with session, monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "item", forbidden)
        patch.setattr(torch.Tensor, "tolist", forbidden)
        model(torch.ones(2, 4))
    assert session.dose().elements == 8


def test_trap_10_noise_depends_on_no_generator_no_order_and_no_batch():
    model = small_model("llama")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    both, _ = run(model)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, _ = run(model)
    assert torch.equal(both, again)
    with torch.no_grad(), inject(model, RelativeGaussian(0.05)):
        second, first = (model(input_ids=IDS[i : i + 1]).logits for i in (1, 0))
    torch.testing.assert_close(torch.cat([first, second]), both, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_trap_11_a_cached_and_an_uncached_run_are_one_experiment(family):
    model = small_model(family)
    whole, _ = run(model)
    with torch.no_grad(), inject(model, RelativeGaussian(0.05)):
        output = model(input_ids=IDS[:, :2], use_cache=True)
        steps = [output.logits]
        for column in range(2, IDS.shape[1]):
            output = model(
                input_ids=IDS[:, column : column + 1], past_key_values=output.past_key_values
            )
            steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=2e-5)
