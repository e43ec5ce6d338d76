"""Predicted effects of rounding, beside 1/2 d^T F d in float64, and beside injection."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.more_models import seeded
from helpers.one_by_one import texts
from helpers.predicted import injected, texts_of
from helpers.shared import shared_path
from helpers.small_models import small_model
from scipy import stats
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.pytorch_utils import Conv1D

from noisescope.errors import InputError
from noisescope.inject import input_effects
from noisescope.inject.operands import disturb_weight
from noisescope.inject.watch import Overwritten, Watch
from noisescope.measure import gradients
from noisescope.measure.profiling import ProfileOptions, make_profile
from noisescope.measure.seeds import seeds_of_signs
from noisescope.measure.taken_apart import TakenApart
from noisescope.models import load_model
from noisescope.noise import RelativeGaussian, RoundTo, make_format

# A small model of tokens that do not see each other; one of its maps runs twice.

V, D = 4, 8
SLOW = pytest.mark.slow


class _Config(PretrainedConfig):
    model_type = "small_softmax"

    def __init__(self, **fields):
        super().__init__(**fields)
        self.vocab_size, self.hidden_size, self.num_hidden_layers = V, D, 1
        self.num_attention_heads = 1


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.once = nn.Linear(D, D)
        self.twice = nn.Linear(D, D)
        self.turned = Conv1D(D, D)

    def forward(self, x):
        x = x + torch.tanh(self.once(x))
        x = x + torch.tanh(self.twice(x))
        x = x + torch.sin(self.twice(x))
        return x + torch.tanh(self.turned(x))


class _Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(V, D)
        self.layers = nn.ModuleList([_Block()])

    def forward(self, input_ids, **_):
        states = self.embed_tokens(input_ids)
        for layer in self.layers:
            states = layer(states)
        return BaseModelOutputWithPast(last_hidden_state=states)


class _Softmax(PreTrainedModel):
    config_class = _Config

    def __init__(self, config):
        super().__init__(config)
        self.model = _Inner()
        self.lm_head = nn.Linear(D, V, bias=False)

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def forward(self, input_ids, attention_mask=None, use_cache=None, **_):
        states = self.model(input_ids=input_ids).last_hidden_state
        return CausalLMOutputWithPast(logits=self.lm_head(states))


def small_softmax():
    model = seeded(_Softmax, _Config())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5)
    return model


def all_signs(logits, sample, position, seed, draw, estimator):
    # The same signs at every token would let tokens' pulls add up: each has its own.
    count = len(logits) * V
    bits = torch.tensor([float(b) for b in f"{draw:0{count}b}"]).view(len(logits), V) * 2 - 1
    return seeds_of_signs(logits.float().softmax(-1), bits)


GIVEN = texts_of([[1, 2, 3], [2, 0]], prompt=1)


def predicted(model, given, error_models, operators=("linear",), draws=None, **more):
    """KL [E, sites, N] of a profile, mean over draws, and the names of the sites."""
    options = ProfileOptions(label_draws=draws, operators=operators)
    profile = make_profile(TakenApart(model), given, error_models, options=options, **more)
    found = np.stack([site.kl_EKN.mean(axis=1) for site in profile.sites], axis=1)
    return found, [site.name for site in profile.sites]


class Changed(torch.overrides.TorchFunctionMode):
    """Replaces what goes into one call of a linear map by itself plus `step` times its error.

    The functional form of a site, on which derivatives are taken forward.
    """

    def __init__(self, wanted, number, error_model, step):
        super().__init__()
        self.wanted, self.number, self.error_model, self.step = wanted, number, error_model, step
        self.seen = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        weight = {F.linear: 1, torch.addmm: 2, F.embedding: 1}.get(func)
        if weight is None or args[weight] is not self.wanted:
            return func(*args, **(kwargs or {}))
        self.seen += 1
        if self.seen - 1 != self.number:
            return func(*args, **(kwargs or {}))
        args, name = list(args), self.error_model.format
        if "weights" in self.error_model.operands:
            turned = args[weight].T if func is torch.addmm else args[weight]
            made = make_format(name).round(turned.detach().float(), is_weight=True).double()
            change = made - turned.detach()
            args[weight] = args[weight] + self.step * (change.T if func is torch.addmm else change)
        if "activations" in self.error_model.operands and func is not F.embedding:
            x = args[weight - 1]
            rows = x.detach().float().reshape(-1, x.shape[-1])
            made = make_format(name).round(rows, is_weight=False).double().reshape(x.shape)
            args[weight - 1] = x + self.step * (made - x.detach())
        return func(*args, **(kwargs or {}))


def directional(model, ids, weight, number, error_model, size=1e-4):
    """Derivative of the logits by the size of the error at one call, in float64."""
    made = []
    for step in (-size, size):
        with torch.no_grad(), Changed(weight, number, error_model, step) as mode:
            made.append(model(input_ids=ids).logits)
        assert mode.seen > number
    return (made[1] - made[0])[0] / (2 * size)


def exact(model, given, sites, error_model):
    """1/2 (J d)^T F (J d) per scored token, every call by itself, in float64: [sites, N]."""
    wide = model.double()
    found = np.zeros((len(sites), len(given.names)))
    for n, (prompt, answer) in enumerate(zip(given.prompts, given.answers, strict=True)):
        ids = torch.tensor([[*prompt, *answer]])
        places = range(len(prompt) - 1, ids.shape[1] - 1)
        with torch.no_grad():
            p = wide(input_ids=ids).logits[0].softmax(-1)
        for s, name in enumerate(sites):
            module, _, number = name.rsplit(":", 2)
            weight = wide.get_submodule(module).weight
            # Calls are numbered by module; the same weight in other modules comes before or after.
            j = directional(wide, ids, weight, int(number), error_model)
            for t in places:
                variance = (p[t] * j[t] ** 2).sum() - (p[t] * j[t]).sum() ** 2
                found[s, n] += 0.5 * float(variance) / len(answer)
    model.float()
    return found


@pytest.mark.parametrize(
    "operand", ["both", *(pytest.param(o, marks=SLOW) for o in ("weights", "activations"))]
)
def test_all_seeds_together_give_the_exact_second_order_form(monkeypatch, operand):
    """Two scored tokens at most, whose signs are gone through together."""
    monkeypatch.setattr(gradients, "draw_seeds", all_signs)
    model = small_softmax()
    noises = [RoundTo(name, operand) for name in ("int4_g4", "fp8_e4m3")]
    operators = ("linear", "embedding") if operand != "activations" else ("linear",)
    for n in range(len(GIVEN.names)):
        given = type(GIVEN)(GIVEN.names[n:][:1], GIVEN.prompts[n:][:1], GIVEN.answers[n:][:1])
        found, sites = predicted(model, given, noises, operators, 2 ** (V * len(given.answers[0])))
        for e, noise in enumerate(noises):
            np.testing.assert_allclose(found[e], exact(model, given, sites, noise), rtol=1e-4)
    calls = [s for s in sites if "twice" in s]
    assert len(calls) == 2 and any("embed_tokens" in s for s in sites) == (operand != "activations")


@pytest.mark.parametrize(
    ("family", "operand"),
    [
        ("llama", "activations"),
        ("gpt2", "both"),
        pytest.param("llama", "weights", marks=SLOW),
        pytest.param("llama", "both", marks=SLOW),
        pytest.param("gpt2", "weights", marks=SLOW),
        pytest.param("gpt2", "activations", marks=SLOW),
    ],
)
def test_many_draws_give_it_in_transformers_over_batches(family, operand):
    """Sites' relative deviations lie within five standard errors of the draws."""
    model = small_model(family, num_hidden_layers=1, tie_word_embeddings=False)
    given = texts_of(texts([5, 9, 7]), prompt=2)
    noise = RoundTo("int4_g8", operand)
    options = ProfileOptions(label_draws=200, operators=("linear", "embedding"))
    if operand == "activations":
        options = ProfileOptions(label_draws=200, operators=("linear",))
    profile = make_profile(TakenApart(model), given, [noise], options=options)
    sites = [site.name for site in profile.sites]
    assert sum("embed" in s or "wpe" in s or "wte" in s for s in sites) == (
        0 if operand == "activations" else 1 + (family == "gpt2")
    )
    expected = exact(model, given, sites, noise)
    for site, wanted in zip(profile.sites, expected, strict=True):
        draws_KN = site.kl_EKN[0]
        error_N = draws_KN.std(axis=0, ddof=1) / len(draws_KN) ** 0.5
        assert (np.abs(draws_KN.mean(axis=0) - wanted) < 5 * error_N).all(), site.name
        assert (error_N < 0.35 * wanted).all(), site.name


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_batches_change_nothing(family):
    model = small_model(family)
    given = texts_of(texts([5, 9, 7, 8]), prompt=2)
    noises = [RoundTo("int8", "both"), RoundTo("mxfp4", "both")]
    operators = ("linear", "matmul", "embedding")
    whole, sites = predicted(model, given, noises, operators, 3)
    single, same = predicted(model, given, noises, operators, 3, most_rows=1)
    assert sites == same
    np.testing.assert_allclose(whole, single, rtol=2e-2)


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_experts_have_the_effect_of_their_own_rows(experts):
    """By autograd: the gradient of every expert's weight, times its own change."""
    model = small_model("mixtral", num_hidden_layers=1, experts_implementation=experts)
    ids = torch.tensor(texts([9]))
    noise = RoundTo("int4_g8", "weights")
    with Watch(model, [noise], operators=("linear",)) as watch:
        watch.begin(torch.zeros_like(ids))
        logits = model(input_ids=ids, use_cache=False).logits
        logits.backward(torch.linspace(-1, 1, logits.numel()).view_as(logits))
        effects = watch.take()
    logits = model(input_ids=ids, use_cache=False).logits
    logits.backward(torch.linspace(-1, 1, logits.numel()).view_as(logits))
    held = model.model.layers[0].mlp.experts
    expected = 0.0
    for weight in (held.gate_up_proj, held.down_proj):
        made = [
            make_format("int4_g8").round(w.detach(), is_weight=True) - w.detach() for w in weight
        ]
        expected += float((torch.stack(made).double() * weight.grad.double()).sum())
    pulls = [e.pull_EB for key, e in effects.items() if key[1].endswith("experts")]
    assert float(sum(pulls)) == pytest.approx(expected, rel=1e-4)


# Stochastic rounding: its own formula.


def linear_call(error_models, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = nn.Sequential(nn.Embedding(7, D), nn.Linear(D, 5))
    ids = torch.tensor([[1, 2, 3], [6, 2, 2]])
    with Watch(model, error_models, operators=("linear", "embedding")) as watch:
        watch.begin(torch.zeros_like(ids))
        out = model(ids)
        g = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))
        out.backward(g)
        return model, ids, g, {key[2]: effect for key, effect in watch.take().items()}


def test_independent_errors_of_weights_are_squared_after_positions_are_added_up():
    noise = RoundTo("int4_g4", "weights", "stochastic")
    model, ids, g, effects = linear_call([noise])
    embedding, linear = model[0].weight.detach(), model[1].weight.detach()
    x = embedding[ids].double()
    for name, weight, by_weight in (
        ("linear", linear, torch.einsum("bto,btk->bok", g.double(), x)),
        (
            "embedding",
            embedding,
            torch.zeros(2, 7, D, dtype=torch.float64).scatter_add_(
                1, ids[..., None].expand(2, 3, D), g.double() @ linear.double()
            ),
        ),
    ):
        noisy, _ = disturb_weight(weight, -1, noise, 0, 0, 0)
        change = noisy.double() - weight.double()
        expected = 0.5 * (change * by_weight).square().flatten(1).sum(1)
        torch.testing.assert_close(effects[name].nats_EB[0], expected, rtol=1e-4, atol=0)
        assert not effects[name].pull_EB.any()


def test_independent_errors_of_activations_have_their_mean_square():
    noise = RoundTo("int4_g4", "activations", "stochastic")
    model, ids, g, effects = linear_call([noise])
    x = model[0].weight.detach()[ids]
    square = make_format("int4_g4").mean_square(
        x.reshape(-1, D), is_weight=False, is_stochastic=True
    )
    by_input = (g.double() @ model[1].weight.detach().double()).reshape(-1, D)
    expected = 0.5 * (square.double() * by_input.square()).reshape(2, -1).sum(1)
    torch.testing.assert_close(effects["linear"].nats_EB[0], expected, rtol=1e-4, atol=0)


def test_error_models_of_both_kinds_have_each_their_own_formula():
    kinds = [RoundTo("int4_g4", "both", r) for r in ("nearest", "stochastic")]
    together, *singles = (linear_call(some)[3] for some in (kinds, *([k] for k in kinds)))
    for n, (kind, single) in enumerate(zip(kinds, singles, strict=True)):
        for name in ("linear", "embedding"):
            torch.testing.assert_close(together[name].nats_EB[n], single[name].nats_EB[0])
            assert (together[name].pull_EB[n] == 0).all() == kind.is_random


def test_probabilities_are_told_by_token_and_take_little_memory(monkeypatch):
    sizes, effect_of = [], input_effects.effect_of

    def measured(*args, **kwargs):
        effect = effect_of(*args, **kwargs)
        sizes.append(effect.by_channel_ECD.numel())
        return effect

    monkeypatch.setattr(input_effects, "effect_of", measured)
    model = small_model("llama", attn_implementation="eager")
    ids = torch.tensor(texts([9, 9]))
    noise = RoundTo("int4_g4", "activations", "stochastic")
    with Watch(model, [noise], operators=("matmul",)) as watch:
        watch.begin(torch.zeros_like(ids))
        logits = model(input_ids=ids, use_cache=False).logits
        logits.backward(torch.ones_like(logits) * torch.linspace(-1, 1, 64))
        effects = watch.take()
    effects = {key: effect for key, effect in effects.items() if key[2] == "matmul"}
    assert len(effects) == 2 * 3
    assert max(sizes) <= 4 * 32
    for effect in effects.values():
        assert (effect.nats_EB > 0).all()
    context = next(e for key, e in effects.items() if key[3] == 1)
    torch.testing.assert_close(
        context.by_channel_ECD.double().sum(), context.nats_EB.sum(), rtol=1e-4, atol=0
    )


# Models that write into what was watched.


def effects_of(after, copies, operand="both"):
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.linear = nn.Embedding(8, D), nn.Linear(D, D)

        def forward(self, ids):
            return after(self.linear, self.embed(ids))

    model, ids = Model(), torch.tensor([[1, 2, 3]])
    noise = [RoundTo("int4_g4", operand)]
    with Watch(model, noise, copies=copies, operators=("linear",)) as watch:
        watch.begin(torch.zeros_like(ids))
        out = model(ids)
        out.backward(torch.linspace(-1, 1, out.numel()).view_as(out))
        return torch.stack([effect.nats_EB for effect in watch.take().values()])


def test_an_output_that_is_written_into_afterwards_has_its_effect():
    for operand in ("weights", "both"):
        expected = effects_of(lambda linear, x: linear(x) * 3.0, False, operand)
        found = effects_of(lambda linear, x: linear(x).mul_(3.0), False, operand)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("operand", ["weights", "activations", "both"])
def test_an_input_that_is_written_into_afterwards_is_seen_as_it_was(operand):
    def writing(linear, x):
        x = linear(x) * 1.0
        y = linear(x)
        x.mul_(2.0)
        return y + x

    def plain(linear, x):
        x = linear(x) * 1.0
        return linear(x) + x * 2.0

    expected = effects_of(plain, False, operand)
    with pytest.raises(Overwritten, match="written into after"):
        effects_of(writing, False, operand)
    torch.testing.assert_close(effects_of(writing, True, operand), expected)


def test_slabs_of_output_channels_add_up(monkeypatch):
    whole = linear_call([RoundTo("int4_g4", "weights")])[3]
    monkeypatch.setattr(input_effects, "_SLAB_BYTES", 2 * 4 * D)
    pieces = linear_call([RoundTo("int4_g4", "weights")])[3]
    for name, effect in whole.items():
        torch.testing.assert_close(pieces[name].nats_EB, effect.nats_EB)


def test_outputs_and_inputs_are_not_watched_together():
    model = small_model("llama")
    for one, other in itertools.permutations(
        [RelativeGaussian(0.1), RoundTo("int8", "weights"), RoundTo("int8", "both")], 2
    ):
        with pytest.raises(InputError, match="fall on one thing"):
            Watch(model, [one, other])


# Injection.


@pytest.mark.parametrize("name", ["mxfp8", pytest.param("int8", marks=SLOW)])
def test_single_sites_of_stories_are_predicted(name):
    loaded = load_model(shared_path("models/stories260K"), dtype="float32", device="cpu")
    model = loaded.model
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        ids = _stories(model, 12, 40, generator)
    given = texts_of(ids, prompt=8)
    apart, noise = TakenApart(model), RoundTo(name, "both")
    options = ProfileOptions(label_draws=16, operators=("linear",))
    profile = make_profile(apart, given, [noise], options=options)
    expected = np.array([site.kl_EKN[0].mean() for site in profile.sites])
    found = injected(apart, given, [s.name for s in profile.sites], noise, draws=1)[:, 0]
    assert len(found) > 30
    assert stats.spearmanr(expected, found).statistic >= 0.95
    assert 0.9 < np.median(found / expected) < 1.1


def _stories(model, rows, length, generator):
    """Returns texts that the model draws itself."""
    ids = torch.ones(rows, 1, dtype=torch.int64)
    for _ in range(length):
        p = model(input_ids=ids).logits[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator)], dim=1)
    return ids.tolist()
