"""A capture leaves no trace, whatever happens inside it, and says what it cannot do."""

import copy

import numpy as np
import pytest
import torch
from helpers.small_models import FAMILIES, small_model
from scipy import stats
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from noisescope import RelativeGaussian, inject
from noisescope.capture import ActivationCapture
from noisescope.errors import InputError, SelectionError

IDS = torch.tensor([[5, 9, 11, 3], [7, 7, 8, 2]])
PAD = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
DOWN = "model.layers.1.mlp.down_proj"
BATCHES = [
    {"input_ids": IDS},
    {"input_ids": IDS.flip(0), "attention_mask": PAD},
    {"input_ids": IDS.repeat(2, 3)},
]


def hooks_of(model):
    return [
        len(held)
        for module in model.modules()
        for name, held in vars(module).items()
        if "_hooks" in name
    ]


def run(model, **batch):
    with torch.no_grad():
        return model(**(batch or {"input_ids": IDS})).logits


@pytest.mark.parametrize("where", ["output", "input"])
@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_statistics_are_those_of_the_kept_activations(family, where):
    model = small_model(family)
    with ActivationCapture(model, None, where=where, keep=True) as capture:
        for batch in BATCHES:
            run(model, **batch)
    assert len(capture.statistics) == 6
    for name, found in capture.statistics.items():
        kept = capture.activations[name].double().numpy()
        assert found.tokens == len(kept) == 8 + 6 + 48
        np.testing.assert_allclose(found.mean, kept.mean(0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.mean_abs, np.abs(kept).mean(0), rtol=1e-12)
        np.testing.assert_array_equal(found.max_abs, np.abs(kept).max(0))
        expected = stats.kurtosis(kept, fisher=False)
        np.testing.assert_allclose(found.kurtosis, expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_double(dtype):
    model = small_model("llama").to(dtype)
    with ActivationCapture(model, DOWN, keep=True) as capture:
        for _ in range(40):
            run(model)
    kept = capture.activations[DOWN]
    assert kept.dtype == dtype
    expected = kept.double().mean(0).numpy()
    np.testing.assert_allclose(capture.statistics[DOWN].mean, expected, rtol=1e-10)


def test_the_model_computes_what_it_did_and_no_hook_is_left():
    model = small_model("llama")
    before, clean = hooks_of(model), run(model)
    with ActivationCapture(model):
        assert hooks_of(model) != before
        assert torch.equal(run(model), clean)
    assert hooks_of(model) == before


class Break(nn.Module):
    def forward(self, x):
        raise KeyError("broken")


def test_after_an_error_the_hooks_are_gone_and_what_came_before_it_stays():
    model = small_model("llama")
    before, sound = hooks_of(model), model.model.layers[2].mlp.act_fn
    capture = ActivationCapture(model)
    model.model.layers[2].mlp.act_fn = Break()
    with pytest.raises(KeyError, match="broken"), capture:
        run(model, input_ids=IDS, attention_mask=PAD)
    model.model.layers[2].mlp.act_fn = sound
    assert hooks_of(model) == before
    assert capture.statistics[DOWN].tokens == 6
    assert capture.statistics["model.layers.2.mlp.down_proj"].tokens == 0


def test_an_error_inside_does_not_leave_its_tokens_for_the_next_call():
    model = small_model("llama")
    sound = model.model.layers[2].mlp.act_fn
    with ActivationCapture(model) as capture:
        model.model.layers[2].mlp.act_fn = Break()
        with pytest.raises(KeyError):
            run(model, input_ids=IDS, attention_mask=PAD)
        model.model.layers[2].mlp.act_fn = sound
        model.model(IDS)
    assert capture.statistics[DOWN].tokens == 6 + 8


def test_a_half_made_attachment_is_undone(monkeypatch):
    model = small_model("llama")
    before = hooks_of(model)
    capture = ActivationCapture(model)
    broken = model.model.layers[2].mlp.down_proj
    monkeypatch.setattr(broken, "register_forward_hook", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        capture.attach()
    monkeypatch.undo()
    assert hooks_of(model) == before
    with capture:
        run(model)
    assert capture.statistics[DOWN].tokens == 8


def test_attach_and_remove_do_what_the_context_does_and_counting_goes_on():
    model = small_model("llama")
    before = hooks_of(model)
    capture = ActivationCapture(model, "mlp.down_proj")
    assert hooks_of(model) == before  # making one changes nothing
    assert capture.attach() is capture
    run(model)
    capture.remove()
    capture.remove()
    assert hooks_of(model) == before
    run(model)
    with capture:
        run(model)
    assert capture.statistics[DOWN].tokens == 16
    capture.reset()
    with pytest.raises(InputError, match="nothing was captured: run the model inside"):
        _ = capture.statistics


def test_attaching_twice_is_an_error_and_leaves_the_first_attached():
    model = small_model("llama")
    before = hooks_of(model)
    with ActivationCapture(model) as capture:
        with pytest.raises(InputError, match=r"attached already.*remove\(\)"):
            capture.attach()
        run(model)
    assert hooks_of(model) == before
    assert capture.statistics[DOWN].tokens == 8


def test_a_copy_of_the_model_made_meanwhile_is_not_watched_afterwards():
    model = small_model("llama")
    with ActivationCapture(model) as capture:
        run(model)
        twin = copy.deepcopy(model)
    run(twin)
    assert capture.statistics[DOWN].tokens == 8


def test_two_captures_do_not_disturb_each_other():
    model = small_model("llama")
    with ActivationCapture(model) as one, ActivationCapture(model, "model.layers.1") as other:
        run(model)
    assert one.statistics[DOWN].tokens == other.statistics["model.layers.1"].tokens == 8


def test_a_whole_layer_is_its_residual_stream():
    model = small_model("llama")
    with ActivationCapture(model, "model.layers", keep=True) as capture, torch.no_grad():
        states = model(IDS, output_hidden_states=True).hidden_states
    for n in (0, 1):  # the last state has been through the final norm
        kept = capture.activations[f"model.layers.{n}"]
        assert torch.equal(kept, states[n + 1].reshape(-1, 32))


def test_kept_activations_stay_when_the_model_writes_over_them():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))
    x = torch.randn(5, 3)
    with ActivationCapture(model, "0", keep=True) as capture, torch.no_grad():
        model(x)
        expected = model[0](x)
    assert (expected < 0).any()
    assert torch.equal(capture.activations["0"][:5], expected)


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_statistics_go_on_in_and_out_of_inference_mode(context):
    model = small_model("llama")
    with ActivationCapture(model) as capture:
        with context():
            model(IDS)
        model(IDS)
    assert capture.statistics[DOWN].tokens == 16


def test_gradients_are_as_without_it_and_a_checkpointed_run_counts_once():
    model = small_model("llama").train()
    layer, x = model.model.layers[1].mlp, torch.randn(2, 4, 32, requires_grad=True)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    # A checkpoint stops its second run at the last tensor it needs: this map runs in it for sure.
    with ActivationCapture(model, "layers.1.mlp.gate_proj") as capture:
        out = checkpoint(layer, x, use_reentrant=False)
        (found,) = torch.autograd.grad(out.square().sum(), x)
        layer(1000 * x)
    assert torch.equal(found, expected)
    statistics = capture.statistics["model.layers.1.mlp.gate_proj"]
    assert statistics.tokens == 8 + 8
    assert set(statistics.peaks.label_PC4[0, :, 0]) == {1}  # the last call was the second


def test_under_injection_it_sees_the_noise_and_takes_no_part_in_it():
    model = small_model("llama")
    with ActivationCapture(model, keep=True) as clean:
        run(model)
    with inject(model, RelativeGaussian(0.05), layers=[1]) as alone:
        noisy = run(model)
    with inject(model, RelativeGaussian(0.05), layers=[1]) as session:
        with ActivationCapture(model, keep=True) as capture:
            assert torch.equal(run(model), noisy)
        assert session.dose() == alone.dose()
    off = capture.activations[DOWN] - clean.activations[DOWN]
    assert off.norm() / clean.activations[DOWN].norm() > 0.02
    first = "model.layers.0.mlp.down_proj"
    assert torch.equal(capture.activations[first], clean.activations[first])


class Seen(TorchFunctionMode):
    """Notes every function that it sees."""

    def __init__(self):
        super().__init__()
        self.functions = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.functions.append(func)
        return func(*args, **(kwargs or {}))


def test_function_modes_do_not_see_what_a_capture_does():
    model = small_model("llama")
    with torch.no_grad(), Seen() as alone:
        model(IDS)
    with ActivationCapture(model), torch.no_grad(), Seen() as watched:
        model(IDS)
    assert watched.functions == alone.functions


def test_what_was_not_kept_is_not_given():
    model = small_model("llama")
    with ActivationCapture(model) as capture:
        run(model)
    with pytest.raises(InputError, match=r"make the capture with keep=True"):
        _ = capture.activations


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ActivationCapture("model"), InputError, "torch.nn.Module is needed"),
        (
            lambda: ActivationCapture(small_model("llama"), where="both"),
            InputError,
            "where='both': accepted are 'output' and 'input'",
        ),
        (
            lambda: ActivationCapture(nn.DataParallel(nn.Linear(2, 2), [0, 1])),
            InputError,
            "give its .module",
        ),
        (
            lambda: ActivationCapture(small_model("llama"), "mlp.dwn_proj"),
            SelectionError,
            "did you mean",
        ),
    ],
)
def test_what_cannot_be_captured_is_refused_when_it_is_made(make, error, message, monkeypatch):
    monkeypatch.setattr(nn.DataParallel, "__init__", lambda self, *a: nn.Module.__init__(self))
    monkeypatch.setattr(nn.DataParallel, "device_ids", [0, 1], raising=False)
    with pytest.raises(error, match=message):
        make()


class Odd(nn.Module):
    """Returns what its argument is called for."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, value):
        return self.inner(value)


def test_a_module_without_a_tensor_of_channels_is_refused_by_name():
    model = Odd()
    with ActivationCapture(model, "inner") as capture:
        with pytest.raises(InputError, match="inner has no floating-point tensor as its output"):
            model(torch.arange(3))
        model((torch.arange(3), {"states": torch.ones(2, 4)}))
        with pytest.raises(InputError, match="last axis of its output was 4 wide and is now 5"):
            model(torch.ones(2, 5))
    assert capture.statistics["inner"].channels == 4


def test_a_call_without_any_tensor_is_captured():
    model = Odd()
    model.forward = lambda: model.inner(torch.ones(2, 3))
    with ActivationCapture(model, "inner") as capture:
        model()
    assert capture.statistics["inner"].tokens == 2


def test_a_module_that_never_ran_is_a_key_without_channels():
    model = Odd()
    model.idle = nn.Linear(2, 2)
    with ActivationCapture(model, ["inner", "idle"]) as capture:
        model(torch.ones(2, 3))
    idle = capture.statistics["idle"]
    assert (idle.tokens, idle.channels, idle.quantile(0.5).shape) == (0, 0, (0,))
    outliers = capture.detect_outliers()["idle"]
    assert (outliers["num_outliers"], outliers["outlier_channels"]) == (0, [])
    assert np.isnan(outliers["max_ratio"])
    assert capture.massive_activations()["idle"] == ()
