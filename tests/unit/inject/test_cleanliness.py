"""After a session everything is as before; outside the selection nothing ever changed."""

import copy

import pytest
import torch
from helpers.injection import OneOperator
from helpers.small_models import small_model
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from noisescope.inject import inject
from noisescope.inject.session import Session
from noisescope.inject.tracker import Tracker
from noisescope.noise import AbsoluteGaussian, ErrorModel, RelativeGaussian

IDS = torch.tensor([[5, 9, 11, 3], [7, 7, 8, 2]])


def hooks_of(model):
    kinds = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks_with_kwargs",
        "_forward_hooks_always_called",
        "_backward_hooks",
        "_backward_pre_hooks",
    )
    return [tuple(len(getattr(m, kind)) for kind in kinds) for m in model.modules()]


def state_of(model):
    with torch.no_grad():
        logits = model(input_ids=IDS).logits
    weights = [t.clone() for t in model.state_dict().values()]
    return hooks_of(model), len(_get_current_function_mode_stack()), weights, logits


def same(one, other):
    tensors = [*zip(one[2], other[2], strict=True), (one[3], other[3])]
    return one[:2] == other[:2] and all(torch.equal(a, b) for a, b in tensors)


class Break(nn.Module):
    """Stands for a layer's activation and raises once."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return nn.functional.silu(x)


def test_everything_is_as_before_after_a_session():
    model = small_model("llama")
    before = state_of(model)
    with inject(model, RelativeGaussian(0.1), phases=("forward", "backward")):
        model(input_ids=IDS).logits.sum().backward()
    assert same(before, state_of(model))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_everything_is_as_before_after_an_error_inside_a_layer(error):
    model = small_model("llama")
    model.model.layers[1].mlp.act_fn = Break(None)
    before = state_of(model)
    model.model.layers[1].mlp.act_fn.error = error("broken")
    with pytest.raises(error, match="broken"), inject(model, RelativeGaussian(0.1)):
        model(input_ids=IDS)
    assert same(before, state_of(model))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_session_goes_on_after_an_error_that_was_caught_inside(error):
    model = small_model("llama")
    model.model.layers[1].mlp.act_fn = Break(None)
    with torch.no_grad(), inject(model, RelativeGaussian(0.1)) as session:
        expected = model(input_ids=IDS).logits
        counts = copy.deepcopy(session.counts)
    model.model.layers[1].mlp.act_fn.error = error("broken")
    with torch.no_grad(), inject(model, RelativeGaussian(0.1)) as session:
        with pytest.raises(error):
            model(input_ids=IDS)
        already = copy.deepcopy(session.counts)
        result = model(input_ids=IDS).logits
        assert _get_current_function_mode_stack() == []
    assert torch.equal(result, expected)
    for site, n in session.counts.items():
        assert (
            n["forward"] - already.get(site, {"forward": 0})["forward"] == counts[site]["forward"]
        )


def test_after_an_error_caught_inside_operators_outside_the_model_are_clean():
    model = small_model("llama")
    model.model.layers[1].mlp.act_fn = Break(ValueError("broken"))
    with inject(model, RelativeGaussian(0.1)) as session:
        with pytest.raises(ValueError, match="broken"):
            model(input_ids=IDS)
        assert _get_current_function_mode_stack() == []
        counts = copy.deepcopy(session.counts)
        assert torch.equal(torch.eye(3) @ torch.ones(3, 3), torch.ones(3, 3))
        assert session.counts == counts


def test_hooks_that_were_there_before_see_the_noisy_output():
    model = small_model("llama")
    norm, seen = model.model.layers[0].input_layernorm, []
    norm.register_forward_hook(lambda module, args, output: seen.append(output))
    model.model.layers[0].self_attn.q_proj.register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    with torch.no_grad(), inject(model, RelativeGaussian(0.1), operators="rms_norm"):
        model(input_ids=IDS)
    assert torch.equal(*seen)


def test_an_error_while_attaching_leaves_no_hook(monkeypatch):
    model = small_model("llama")
    before = hooks_of(model)
    attach = Tracker._attach_region

    def fail_at_layer_1(self, region, *rest):
        if region == "1":
            raise RuntimeError("half way")
        attach(self, region, *rest)

    monkeypatch.setattr(Tracker, "_attach_region", fail_at_layer_1)
    with pytest.raises(RuntimeError, match="half way"), inject(model, RelativeGaussian(0.1)):
        raise AssertionError("must not be reached")
    assert hooks_of(model) == before


def test_a_copy_made_inside_a_session_is_clean_after_it():
    model = OneOperator(nn.Linear(3, 3))
    x = torch.ones(2, 3)
    clean = model(x)
    with inject(model, RelativeGaussian(0.5)):
        model(x)
        twin = copy.deepcopy(model)
    assert torch.equal(twin(x), clean)


def test_the_global_generator_is_neither_used_nor_disturbed():
    model = small_model("llama")
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with torch.no_grad(), inject(model, RelativeGaussian(0.1)):
        one = model(input_ids=IDS).logits
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(4)
        assert torch.equal(model(input_ids=IDS).logits, one)


def test_dropout_in_training_meets_the_masks_of_the_clean_run():
    model = small_model("gpt2", resid_pdrop=0.3).train()
    torch.manual_seed(0)
    clean = model(input_ids=IDS).logits
    torch.manual_seed(0)
    with inject(model, RelativeGaussian(0.0)):
        assert torch.equal(model(input_ids=IDS).logits, clean)


@pytest.mark.parametrize("reader", ["item", "tolist", "__bool__", "__float__", "cpu", "numpy"])
def test_nothing_waits_for_the_device(reader, monkeypatch):
    """The model runs in layers alone, as transformers itself reads its masks from the device."""

    class Torch(AbsoluteGaussian):
        def _perturb(self, y_RD, at, in_place=False):
            return ErrorModel._perturb(self, y_RD, at)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(40, 8), nn.Linear(8, 8), nn.SiLU(), nn.Softmax(-1))
    session = inject(model, Torch(0.01), phases=("forward", "backward"))
    session.name_samples(["a", "b"])
    with session:
        with monkeypatch.context() as patch:

            def forbidden(*args, **kwargs):
                raise AssertionError(f"waits for the device: {reader}")

            patch.setattr(torch.Tensor, reader, forbidden)
            for _ in range(2):
                model(IDS).sum().backward()
    assert session.dose().elements > 0


def test_the_memory_layout_of_an_output_is_kept():
    model = OneOperator(lambda x: torch.relu(x.transpose(1, 2)))
    x = torch.randn(2, 3, 5, 4)
    clean = model(x)
    with inject(model, RelativeGaussian(0.1)):
        result = model(x)
    assert result.stride() == clean.stride()
    assert (result.sign() == clean.sign()).all()


def test_outputs_that_are_no_floats_pass_through():
    model = OneOperator(lambda x: torch.mm(x, x))
    x = torch.arange(4).reshape(2, 2)
    session = Session(model, RelativeGaussian(0.1), inject(model, RelativeGaussian(0)).selection)
    session.attest = False
    with session:
        assert torch.equal(model(x), x @ x)
    assert session.counts == {}


def test_autocast_runs_under_a_session():
    model = small_model("llama")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        clean = model(input_ids=IDS).logits
        with inject(model, RelativeGaussian(0.0)):
            assert torch.equal(model(input_ids=IDS).logits, clean)
        with inject(model, RelativeGaussian(0.05)) as session:
            result = model(input_ids=IDS).logits
    assert result.dtype == clean.dtype
    assert session.dose().asked_relative_l2 == pytest.approx(0.05, rel=0.2)


def test_inference_mode_and_ordinary_calls_mix_in_one_session():
    model = small_model("llama")
    with inject(model, RelativeGaussian(0.05)) as session:
        with torch.inference_mode():
            first = model(input_ids=IDS, use_cache=True)
            step = model(input_ids=IDS[:, :1], past_key_values=first.past_key_values)
        again = model(input_ids=IDS)
    assert torch.equal(first.logits, again.logits)
    assert step.logits.isfinite().all()
    assert {line.rows for line in session.coverage()} == {"token"}
