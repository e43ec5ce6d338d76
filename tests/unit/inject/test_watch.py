"""A watch changes nothing, leaves nothing behind, and sees every site that gradients reach."""

import gc
import weakref

import pytest
import torch
from helpers.more_models import MORE, more_model, toy_model
from helpers.one_by_one import texts
from helpers.small_models import FAMILIES, small_model
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from noisescope.inject import inject
from noisescope.inject.probe import list_sites
from noisescope.inject.residual import RESIDUAL
from noisescope.inject.watch import Overwritten, Watch
from noisescope.noise import RelativeGaussian

NOISE = [RelativeGaussian(0.1)]
EVERY = [*FAMILIES, *MORE, "toy", "llama eager", "gpt2 eager"]


def make_model(name):
    if name.endswith(" eager"):
        return small_model(name.removesuffix(" eager"), attn_implementation="eager")
    if name == "toy":
        return toy_model()
    return more_model(name) if name in MORE else small_model(name)


def batch():
    return torch.tensor(texts([9, 9], seed=1))


def watched(model, ids_BT, **options):
    """Runs forward and backward under a watch; returns logits, effects and the watch."""
    with Watch(model, NOISE, **options) as watch:
        watch.begin(torch.zeros_like(ids_BT))
        logits = model(input_ids=ids_BT, use_cache=False).logits
        logits.backward(torch.ones_like(logits) * torch.linspace(-1, 1, logits.shape[-1]))
        return logits.detach(), watch.take(), watch


def state_of(model):
    """Everything that a watch might leave changed."""
    return (
        {n: (p.requires_grad, p.grad is None) for n, p in model.named_parameters()},
        {
            n: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for n, m in model.named_modules()
        },
        len(_get_current_function_mode_stack()),
        model.training,
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("name", EVERY)
def test_logits_are_the_clean_ones_and_every_site_is_seen(name):
    model, ids = make_model(name), batch()
    before = state_of(model)
    with torch.no_grad():
        clean = model(input_ids=ids, use_cache=False).logits
    logits, effects, watch = watched(model, ids)
    assert state_of(model) == before
    # Attention that is taken apart rounds in another order.
    torch.testing.assert_close(logits, clean, rtol=1e-4, atol=1e-4)
    listed = {r.site.name for r in list_sites(model, ids[0].tolist())}
    assert {":".join(map(str, key[1:])) for key in watch.seen} == listed
    unreached = {key[2] for key in watch.seen if key not in effects}
    assert unreached <= {"matmul"} and (not unreached or name == "qwen3_next")
    assert all(effect.nats_EB.isfinite().all() for effect in effects.values())


@pytest.mark.parametrize("name", ["llama eager", "gpt2 eager", "toy", "bloom"])
def test_without_fused_attention_logits_are_the_clean_ones_to_the_last_bit(name):
    model, ids = make_model(name), batch()
    with torch.no_grad():
        clean = model(input_ids=ids, use_cache=False).logits
    assert torch.equal(watched(model, ids)[0], clean)


def test_with_fused_attention_they_are_those_of_a_session_that_takes_it_apart():
    model, ids = small_model("llama"), batch()
    session = inject(model, RelativeGaussian(1e-30), operators="matmul")
    session.attest = False
    with torch.no_grad(), session:
        apart = model(input_ids=ids, use_cache=False).logits
    assert torch.equal(watched(model, ids)[0], apart)


def test_effects_are_those_of_gradients_by_hand():
    torch.manual_seed(0)
    model, ids = small_model("llama"), batch()
    held = {}

    def hold(name):
        def hook(module, args, output):
            output.retain_grad()
            held[name] = output

        return hook

    names = ["model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj", "model.norm"]
    handles = [model.get_submodule(n).register_forward_hook(hold(n)) for n in names]
    logits = model(input_ids=ids, use_cache=False).logits
    logits.backward(torch.ones_like(logits) * torch.linspace(-1, 1, logits.shape[-1]))
    for handle in handles:
        handle.remove()
    _, effects, _ = watched(model, ids)
    for (_, module, _, _), effect in effects.items():
        if module in held:
            y, g = held[module].double(), held[module].grad.double()
            expected = 0.5 * (0.1 * y * g).square().flatten(1).sum(1)
            torch.testing.assert_close(effect.nats_EB[0], expected.detach(), rtol=1e-3, atol=0)
            names.remove(module)
    assert not names


def test_only_wanted_operators_are_watched_and_fused_attention_is_left_whole():
    model, ids = small_model("llama"), batch()
    _, everything, _ = watched(model, ids)
    with torch.no_grad():
        clean = model(input_ids=ids, use_cache=False).logits
    logits, effects, watch = watched(model, ids, operators=("linear", "silu"))
    assert torch.equal(logits, clean)
    assert set(watch.seen) == {key for key in everything if key[2] in ("linear", "silu")}
    for key, effect in effects.items():
        torch.testing.assert_close(effect.nats_EB, everything[key].nats_EB, rtol=1e-4, atol=0)
    _, effects, _ = watched(model, ids, operators=("softmax",))
    assert {key[2] for key in effects} == {"softmax", RESIDUAL}
    # Calls are counted whether or not they are watched: the second product is still the context.
    _, effects, _ = watched(model, ids, operators=("matmul",))
    assert {key[3] for key in effects} == {0, 1}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_halves_get_the_effects_of_float32(name, dtype):
    model, ids = small_model(name), batch()
    model.load_state_dict({k: v.to(dtype).float() for k, v in model.state_dict().items()})
    _, wide, _ = watched(model, ids)
    _, half, _ = watched(model.to(dtype), ids)
    ratios = torch.cat([half[key].nats_EB / wide[key].nats_EB for key in wide])
    assert float((ratios.median() - 1).abs()) < 0.01
    assert float((ratios - 1).abs().max()) < 0.2


# What is left behind.


class _Stop(Exception):
    pass


def test_after_an_exception_the_model_is_as_before():
    model, ids = small_model("llama"), batch()
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    before = state_of(model)

    def stop(*args):
        raise _Stop

    handle = model.model.layers[1].mlp.register_forward_hook(stop)
    with pytest.raises(_Stop):
        watched(model, ids)
    handle.remove()
    assert state_of(model) == before
    with pytest.raises(_Stop), Watch(model, NOISE):
        raise _Stop
    assert state_of(model) == before


@pytest.mark.parametrize("copies", [False, True])
def test_nothing_that_ran_is_kept_alive(copies):
    model, ids, outputs = small_model("llama"), batch(), []

    def see(module, args, output):
        outputs.append(weakref.ref(output if isinstance(output, torch.Tensor) else output[0]))

    handles = [m.register_forward_hook(see) for m in model.modules() if not list(m.children())]
    with Watch(model, NOISE, copies=copies) as watch:
        for _ in range(2):
            watch.begin(torch.zeros_like(ids))
            logits = model(input_ids=ids, use_cache=False).logits
            logits.sum().backward()
            assert watch.take()
            del logits
            gc.collect()
            assert outputs and not any(ref() is not None for ref in outputs)
            outputs.clear()
    for handle in handles:
        handle.remove()


def test_a_pass_without_gradients_is_left_alone():
    model, ids = small_model("llama"), batch()
    with torch.no_grad():
        clean = model(input_ids=ids, use_cache=False).logits
        with Watch(model, NOISE) as watch:
            watch.begin(torch.zeros_like(ids))
            assert torch.equal(model(input_ids=ids, use_cache=False).logits, clean)
        assert watch.seen and not any(watch.seen.values()) and not watch.take()


# Models that make it hard.


class _Wrapped(nn.Module):
    """Runs a function of a linear map; the input is not differentiable."""

    def __init__(self, after):
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.linear = nn.Linear(4, 4)
        self.after = after

    def forward(self, ids):
        return self.after(self.linear, self.embed(ids))


def _scaled_in_place(linear, x):
    return linear(x).mul_(3.0)


def _scaled(linear, x):
    return linear(x) * 3.0


def _read_then_written(linear, x):
    y = linear(x)
    z = y * 2.0
    y.add_(1.0)
    return z + y


def _read_apart(linear, x):
    y = linear(x)
    return y * 2.0 + (y + 1.0)


def _embedding_written(linear, x):
    return linear(x.add_(1.0))


def _embedding_added(linear, x):
    return linear(x + 1.0)


def _effects(after, copies):
    torch.manual_seed(0)
    model = _Wrapped(after)
    ids = torch.tensor([[1, 2, 3]])
    with Watch(model, NOISE, copies=copies) as watch:
        watch.begin(torch.zeros_like(ids))
        out = model(ids)
        out.backward(torch.linspace(-1, 1, out.numel()).view_as(out))
        return {key[1:3]: effect.nats_EB for key, effect in watch.take().items()}


@pytest.mark.parametrize(
    ("writing", "plain"),
    [
        (_scaled_in_place, _scaled),
        (_read_then_written, _read_apart),
        (_embedding_written, _embedding_added),
    ],
)
def test_outputs_that_are_written_into_are_seen_as_they_were(writing, plain):
    expected = _effects(plain, copies=False)
    with pytest.raises(Overwritten, match="is written into after it ran"):
        _effects(writing, copies=False)
    found = _effects(writing, copies=True)
    assert set(found) == set(expected) and len(found) == 2
    for key, nats in expected.items():
        torch.testing.assert_close(found[key], nats)


def test_a_site_whose_output_is_not_used_is_seen_and_has_no_effect():
    found = _effects(lambda linear, x: (linear(x), x)[1], copies=False)
    assert {operator for _, operator in found} == {"embedding"}


def test_parts_that_have_no_gradient_are_watched_from_where_they_begin():
    found = _effects(lambda linear, x: linear(x.detach()), copies=False)
    assert {operator for _, operator in found} == {"linear"}


def test_a_checkpointed_layer_is_counted_once():
    expected = _effects(_scaled, copies=False)
    found = _effects(
        lambda linear, x: checkpoint(linear, x, use_reentrant=False) * 3.0, copies=False
    )
    assert set(found) == set(expected)
    for key, nats in expected.items():
        torch.testing.assert_close(found[key], nats)
