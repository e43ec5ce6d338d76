"""Weights and activations rounded in a session, beside models rounded by hand."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers.injection import OneOperator
from helpers.small_models import small_model
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.llama import modeling_llama
from transformers.pytorch_utils import Conv1D

from noisescope.errors import SelectionError
from noisescope.inject import Session, inject, make_selection
from noisescope.noise import RoundModules, RoundTo, make_format

IDS = torch.tensor([[5, 9, 11, 3, 8, 20, 31], [7, 7, 8, 2, 40, 41, 42]])
FORMATS = ("int8", "int4_g16_asym", "fp8_e4m3_tensor", "nvfp4", "mxfp4")


@pytest.fixture(autouse=True)
def seeded():
    """The same random weights and inputs in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def round_weight(weight, name, axis=-1):
    """Rounds [O, K], or [K, O] at axis -2, or each of a stack of them."""
    turned = weight.detach() if axis == -1 else weight.detach().transpose(-2, -1)
    if turned.dim() == 3:
        made = torch.stack([make_format(name).round(m.float(), is_weight=True) for m in turned])
    else:
        made = make_format(name).round(turned.float(), is_weight=True)
    return (made if axis == -1 else made.transpose(-2, -1)).to(weight.dtype)


def round_rows(x, name):
    """Rounds along the last axis, every row by itself."""
    rows = x.detach().float().reshape(-1, x.shape[-1])
    return make_format(name).round(rows, is_weight=False).reshape(x.shape).to(x.dtype)


def rounded_copy(model, name, kinds=(nn.Linear, Conv1D, nn.Embedding), only=None):
    """Returns a copy whose modules of these kinds have rounded weights of their own."""
    made = copy.deepcopy(model)
    for path, module in made.named_modules():
        if not isinstance(module, kinds) or (only is not None and path not in only):
            continue
        axis = -2 if isinstance(module, Conv1D) else -1
        # A parameter of its own: what is tied to it keeps its weight.
        module.weight = nn.Parameter(round_weight(module.weight, name, axis))
    return made


def logits_of(model, ids=IDS, **more):
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


def in_session(model, error_model, ids=IDS, seed=0, draw=0, mask=None, **selection):
    session = inject(model, error_model, seed=seed, draw=draw, **selection)
    more = {} if mask is None else {"attention_mask": mask}
    if mask is not None:
        more["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad(), session:
        return model(input_ids=ids, **more).logits, session


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# Weights.


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_rounded_weights_give_the_model_with_rounded_weights_to_the_last_bit(family, name):
    model = small_model(family)
    found, _ = in_session(model, RoundTo(name, "weights"))
    assert torch.equal(found, logits_of(rounded_copy(model, name)))
    assert not torch.equal(found, logits_of(model))


def test_a_scale_per_output_channel_is_that_of_the_largest_weight_of_its_row():
    model = OneOperator(nn.Linear(24, 8, bias=False))
    weight, x = model.op.weight.detach(), torch.randn(3, 24)
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    with torch.no_grad(), inject(model, RoundTo("int8", "weights")):
        found = model(x)
    close(found, x @ ((weight / scale).round() * scale).T, 1e-6)


def test_a_conv1d_has_its_scales_along_its_first_axis():
    model = OneOperator(Conv1D(8, 24))
    nn.init.normal_(model.op.weight)
    weight, x = model.op.weight.detach(), torch.randn(2, 3, 24)
    assert weight.shape == (24, 8)
    scale = weight.abs().amax(dim=0, keepdim=True) / 127
    with torch.no_grad(), inject(model, RoundTo("int8", "weights")):
        found = model(x)
    close(found, x @ ((weight / scale).round() * scale) + model.op.bias, 1e-6)


def test_a_head_tied_to_the_embedding_is_rounded_without_it():
    model = small_model("qwen2")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    found, _ = in_session(model, RoundTo("int4_g16", "weights"), operators="linear")
    expected = rounded_copy(model, "int4_g16", nn.Linear)
    assert torch.equal(found, logits_of(expected))
    assert torch.equal(expected.model.embed_tokens.weight, model.model.embed_tokens.weight)
    both = rounded_copy(model, "int4_g16")
    assert not torch.equal(found, logits_of(both))


@pytest.mark.parametrize("operand", ["weights", "activations", "both"])
@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_are_rounded_one_by_one(family, experts, operand, monkeypatch):
    model = small_model(family, num_experts_per_tok=4, experts_implementation=experts)
    found, session = in_session(model, RoundTo("int8_tensor", operand), operators="linear")
    there = [r for r in session.records if r.site.module.endswith("experts") and r.forward]
    assert there
    linear, grouped = F.linear, F.grouped_mm

    def change(x, weight, axis):
        x = x if operand == "weights" else round_rows(x, "int8_tensor")
        return x, weight if operand == "activations" else round_weight(weight, "int8_tensor", axis)

    monkeypatch.setattr(F, "linear", lambda x, w, b=None: linear(*change(x, w, -1), b))
    monkeypatch.setattr(F, "grouped_mm", lambda x, w, offs: grouped(*change(x, w, -2), offs=offs))
    close(found, logits_of(model))
    monkeypatch.undo()
    assert (found - logits_of(model)).abs().max() > 1e-3


# Activations.


def rounded_inputs(model, name):
    """Puts pre-hooks on every linear module that round what it gets."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            module.register_forward_pre_hook(lambda m, args: (round_rows(args[0], name),))
    return model


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rounded_activations_are_those_of_hooks_that_round(family, name):
    model = small_model(family)
    twin = rounded_inputs(copy.deepcopy(model), name)
    found, _ = in_session(model, RoundTo(name, "activations"), operators="linear")
    assert torch.equal(found, logits_of(twin))
    twin = rounded_inputs(rounded_copy(model, name, (nn.Linear, Conv1D)), name)
    found, _ = in_session(model, RoundTo(name, "both"), operators="linear")
    assert torch.equal(found, logits_of(twin))


def by_hand(name, padding=(0, 0), is_value_rounded=True):
    """Attention written out: queries and keys along D, probabilities along keys, values along D."""

    def attend(module, query, key, value, attention_mask, scaling=None, **_):
        groups = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        q, k = round_rows(query, name), round_rows(key, name)
        scores = q @ k.transpose(-2, -1) * factor
        if attention_mask is not None:
            scores = scores + attention_mask[..., : key.shape[-2]]
        p = scores.softmax(-1)
        p = torch.stack(
            [round_rows(s.roll(-n, -1), name).roll(n, -1) for s, n in zip(p, padding, strict=True)]
        )
        out = p @ round_rows(value, name)
        return out.transpose(1, 2).contiguous(), p

    return attend


@pytest.mark.parametrize("name", ["int8", "mxfp8", "int4_g4"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_attention_multiplies_rounded_factors(family, attention, name, monkeypatch):
    model = small_model(family, attn_implementation=attention)
    found, session = in_session(model, RoundTo(name, "activations"), operators="matmul")
    assert len([r for r in session.records if r.forward]) == 6
    eager = small_model(family, attn_implementation="eager")
    place = modeling_llama if family == "llama" else modeling_gpt2
    monkeypatch.setattr(place, "eager_attention_forward", by_hand(name))
    close(found, logits_of(eager))
    monkeypatch.undo()
    assert (found - logits_of(eager)).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_blocks_of_probabilities_begin_at_the_first_key_of_the_sample(attention, monkeypatch):
    model = small_model("llama", attn_implementation=attention)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])
    found, _ = in_session(model, RoundTo("int4_g4", "activations"), mask=mask, operators="matmul")
    eager = small_model("llama", attn_implementation="eager")
    more = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", by_hand("int4_g4", (3, 0)))
    expected = logits_of(eager, **more)
    close(found[0, 3:], expected[0, 3:])
    close(found[1], expected[1])
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", by_hand("int4_g4", (0, 0)))
    assert (found[0, 3:] - logits_of(eager, **more)[0, 3:]).abs().max() > 1e-3


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_padded_row_gets_what_it_gets_alone(family, attention, rounding):
    model = small_model(family, attn_implementation=attention)
    error_model = RoundTo("int4_g4", "both", rounding)
    texts = [IDS[0, :4], IDS[1]]
    for side in ("left", "right"):
        ids, mask = torch.zeros(2, 7, dtype=torch.int64), torch.zeros(2, 7, dtype=torch.int64)
        places = [slice(3, None) if side == "left" else slice(4), slice(None)]
        for row, (text, place) in enumerate(zip(texts, places, strict=True)):
            ids[row, place], mask[row, place] = text, 1
        together, _ = in_session(model, error_model, ids, mask=mask)
        for row, (text, place) in enumerate(zip(texts, places, strict=True)):
            alone, _ = in_session(model, error_model, text[None], mask=torch.ones_like(text[None]))
            close(together[row, place], alone[0], 1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_with_a_cache_a_token_gets_what_it_gets_without(attention):
    model = small_model("llama", attn_implementation=attention)
    error_model = RoundTo("int4_g4", "both")
    whole, _ = in_session(model, error_model)
    with torch.no_grad(), inject(model, error_model):
        first = model(input_ids=IDS[:, :4], use_cache=True)
        steps, cache = [first.logits], first.past_key_values
        for t in range(4, 7):
            made = model(input_ids=IDS[:, t : t + 1], past_key_values=cache, use_cache=True)
            steps.append(made.logits)
            cache = made.past_key_values
    close(torch.cat(steps, dim=1), whole, 1e-4)


# What is left as it was.


def state_of(model):
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    weights = [(id(p), p._version, p.data_ptr(), p.clone()) for p in model.parameters()]
    return hooks, weights, len(_get_current_function_mode_stack())


def assert_same(one, other):
    assert one[0] == other[0] and one[2] == other[2]
    for (*a, x), (*b, y) in zip(one[1], other[1], strict=True):
        assert a == b and torch.equal(x, y)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_the_model_is_untouched_afterwards_and_layers_before_the_selected_all_along(family):
    model = small_model(family)
    clean, before = logits_of(model), state_of(model)
    layers = model.model.layers if family != "gpt2" else model.transformer.h
    seen = []
    hook = layers[1].register_forward_hook(
        lambda m, args, out: seen.append(out if isinstance(out, torch.Tensor) else out[0])
    )
    logits_of(model)
    with inject(model, RoundTo("int4_g16", "both"), layers=2):
        model(input_ids=IDS).logits.sum().backward()
    hook.remove()
    assert torch.equal(*seen)
    assert_same(before, state_of(model))
    assert torch.equal(logits_of(model), clean)


def test_after_an_exception_the_model_is_untouched_too():
    model = small_model("llama")
    before = state_of(model)

    def stop(*_):
        raise KeyboardInterrupt

    handle = model.model.layers[1].mlp.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt), inject(model, RoundTo("int4_g16", "both")):
        model(input_ids=IDS)
    handle.remove()
    assert_same(before, state_of(model))


# What arrives, and where.


@pytest.mark.parametrize("operand", ["weights", "activations", "both"])
def test_the_dose_is_the_relative_l2_of_what_was_rounded(operand):
    model = OneOperator(nn.Linear(24, 8))
    x = torch.randn(2, 3, 24)
    pairs = {
        "weights": (model.op.weight.detach(), round_weight(model.op.weight, "int4_g8")),
        "activations": (x, round_rows(x, "int4_g8")),
    }
    chosen = list(pairs.values()) if operand == "both" else [pairs[operand]]
    change = sum((b.double() - a.double()).square().sum() for a, b in chosen)
    whole = sum(a.double().square().sum() for a, _ in chosen)
    with torch.no_grad(), inject(model, RoundTo("int4_g8", operand)) as session:
        model(x)
    assert session.counts == {"op:linear:0": {"forward": 1, "backward": 0}}
    dose = session.dose()
    assert dose.elements == sum(a.numel() for a, _ in chosen)
    assert dose.relative_l2 > 0.01
    assert dose.relative_l2 == pytest.approx(math.sqrt(change / whole), rel=1e-6)
    assert dose.asked_relative_l2 == pytest.approx(dose.relative_l2, rel=1e-6)


def test_operators_without_such_inputs_are_not_selected():
    model = small_model("llama")
    _, session = in_session(model, RoundTo("int8", "weights"))
    lines = {line.operator: line for line in session.coverage()}
    assert {o for o, line in lines.items() if line.selected} == {"linear", "embedding"}
    assert all(line.selected == line.perturbed for line in lines.values())
    assert {"matmul", "softmax", "rms_norm", "silu"} <= set(lines)
    _, session = in_session(model, RoundTo("int8", "activations"))
    lines = {line.operator: line for line in session.coverage()}
    assert {o for o, line in lines.items() if line.selected} == {"linear", "matmul"}


@pytest.mark.parametrize(
    ("operand", "operator"), [("weights", "matmul"), ("both", "softmax"), ("both", "rms_norm")]
)
def test_a_named_operator_that_cannot_be_reached_is_an_error(operand, operator):
    model = small_model("llama")
    with pytest.raises(SelectionError, match=f"operator '{operator}' never ran in the selection"):
        in_session(model, RoundTo("int8", operand), operators=["linear", operator])


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"phases": "backward"}, "backward noise of an error on weights: gradients pass it unch"),
        ({"phases": ("forward", "backward")}, r"leave phases at \('forward',\), or give the error"),
        ({"channels": 1}, "channels or positions with an error on weights: they restrict outputs"),
        ({"without_channels": 1}, "channels or positions with an error on weights"),
        ({"positions": [0, 1]}, "leave them out, or give the error operand='output'"),
    ],
)
def test_backward_phases_channels_and_positions_are_refused(given, text):
    model = small_model("llama")
    with pytest.raises(SelectionError, match=text):
        inject(model, RoundTo("int8", "weights"), **given)
    with pytest.raises(SelectionError, match="activations and weights"):
        inject(model, RoundTo("int8", "both"), **given)
    inject(model, RoundTo("int8"), **given)


def test_modules_get_their_own_formats_and_others_none():
    model = small_model("llama")
    formats = {
        "model.layers.0.self_attn.q_proj": "int8",
        "model.layers.2.mlp.down_proj": "mxfp4",
        "lm_head": "nvfp4",
    }
    found, session = in_session(model, RoundModules(formats))
    twin = model
    for module, name in formats.items():
        twin = rounded_copy(twin, name, only=[module])
    assert torch.equal(found, logits_of(twin))
    assert {r.site.module for r in session.records if r.is_selected} == set(formats)
    assert {r.site.module for r in session.records if r.forward} == set(formats)
    found, _ = in_session(model, RoundModules(formats, "activations"), operators="linear")
    assert not torch.equal(found, logits_of(model))


def test_no_tokens_at_all_are_no_error():
    model = OneOperator(nn.Linear(24, 8))
    with torch.no_grad(), inject(model, RoundTo("int8", "both")):
        assert model(torch.zeros(0, 24)).shape == (0, 8)


def test_factors_given_by_name_are_found():
    x, weight = torch.randn(5, 24), torch.randn(8, 24)
    expected = round_rows(x, "int8") @ round_weight(weight, "int8").T
    for run in (
        lambda x, w: F.linear(input=x, weight=w),
        lambda x, w: F.linear(x, weight=w),
        lambda x, w: torch.ops.aten.linear(x, w),
    ):
        model = OneOperator(run, w=weight)
        with torch.no_grad(), inject(model, RoundTo("int8", "both")):
            close(model(x), expected, 1e-6)
    other = torch.randn(2, 24, 6)
    turned = round_rows(other.transpose(1, 2), "int8").transpose(1, 2)
    x3 = x.expand(2, 5, 24)
    for run in (
        lambda x: x @ other,
        lambda x: torch.matmul(x, other=other),
        lambda x: torch.bmm(x, mat2=other),
        lambda x: torch.baddbmm(torch.zeros(2, 5, 6), x, other),
        lambda x: torch.baddbmm(torch.zeros(2, 5, 6), batch1=x, batch2=other),
        lambda x: torch.ops.aten.bmm(x, other),
    ):
        with torch.no_grad(), inject(OneOperator(run), RoundTo("int8", "activations")) as session:
            found = session.model(x3)
        close(found, round_rows(x3, "int8") @ turned, 1e-6)


# Gradients.


def gradients(model, x):
    made = model(inputs_embeds=x).logits
    made.backward(torch.linspace(-1, 1, made.numel()).view_as(made))
    return x.grad, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradients_are_those_of_the_rounded_weights_and_reach_the_weights_unchanged(family):
    model = small_model(family, tie_word_embeddings=False)
    twin = rounded_copy(model, "int4_g16", (nn.Linear, Conv1D))
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    with inject(model, RoundTo("int4_g16", "weights"), operators="linear"):
        found_x, found = gradients(model, x.clone().requires_grad_())
    expected_x, expected = gradients(twin, x.clone().requires_grad_())
    close(found_x, expected_x)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        close(found[name], gradient)
    clean_x, _ = gradients(copy.deepcopy(twin), x.clone().requires_grad_())
    assert torch.equal(clean_x, expected_x)


def test_gradients_pass_rounded_activations_unchanged():
    model, twin = small_model("llama"), small_model("llama")
    for module in twin.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(
                lambda m, args: (args[0] + (round_rows(args[0], "int4_g16") - args[0]).detach(),)
            )
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    with inject(model, RoundTo("int4_g16", "activations"), operators="linear"):
        found_x, found = gradients(model, x.clone().requires_grad_())
    expected_x, expected = gradients(twin, x.clone().requires_grad_())
    close(found_x, expected_x, 1e-4)
    for name, gradient in expected.items():
        close(found[name], gradient, 1e-4)


# Stochastic rounding.


def test_a_draw_is_always_the_same_and_another_is_another():
    model = small_model("llama")
    error_model = RoundTo("int4_g16", "both", "stochastic")
    one, _ = in_session(model, error_model, draw=3)
    assert torch.equal(one, in_session(model, error_model, draw=3)[0])
    for change in ({"draw": 4}, {"draw": 3, "seed": 1}):
        assert (in_session(model, error_model, **change)[0] - one).abs().max() > 1e-3
    with torch.no_grad(), inject(model, error_model) as session:  # one session, draw by draw
        session.draw = 3
        first = model(input_ids=IDS).logits
        session.draw = 4
        other = model(input_ids=IDS).logits
        session.draw = 3
        assert torch.equal(model(input_ids=IDS).logits, first)
    assert torch.equal(first, one) and not torch.equal(first, other)


@pytest.mark.parametrize("operand", ["weights", "activations"])
def test_stochastic_rounding_is_unbiased_over_draws(operand):
    model = OneOperator(nn.Linear(24, 8))
    x = torch.randn(3, 24)
    session = inject(model, RoundTo("int4_g8", operand, "stochastic"))
    made = []
    with torch.no_grad(), session:
        for draw in range(400):
            session.draw = draw
            made.append(model(x))
    found = torch.stack(made).double()
    error = found.std(dim=0) / math.sqrt(len(made))
    with torch.no_grad():
        scores = (found.mean(dim=0) - model(x)) / error
    assert scores.abs().max() < 4 and 0.6 < scores.std() < 1.5


@pytest.mark.parametrize("operand", ["weights", "activations"])
def test_stochastic_rounding_does_not_depend_on_the_company(operand):
    model = small_model("llama")
    error_model = RoundTo("int4_g16", operand, "stochastic")
    together, _ = in_session(model, error_model)
    for row in range(2):
        close(in_session(model, error_model, IDS[row : row + 1])[0][0], together[row], 1e-5)


def test_a_selection_of_sites_is_one_of_the_call():
    model = small_model("llama")
    selection = make_selection(sites="model.layers.1.mlp.up_proj:linear")
    session = Session(model, RoundTo("int4_g16", "weights"), selection)
    with torch.no_grad(), session:
        found = model(input_ids=IDS).logits
    twin = rounded_copy(model, "int4_g16", only=["model.layers.1.mlp.up_proj"])
    assert torch.equal(found, logits_of(twin))


def test_a_format_for_a_module_that_is_not_there_is_an_error():
    model = small_model("llama")
    wrong = RoundModules((("model.layers.0.mlp.down_prj", "mxfp4"),))
    with pytest.raises(SelectionError, match=r"no module 'model.layers.0.mlp.down_prj'.*down_proj"):
        inject(model, wrong)
