"""Noise on weights: what is added is the formula's, and it is taken away to the last bit."""

import pytest
import torch
from helpers.injection import normals
from helpers.small_models import small_model
from helpers.training import weights_of
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DeviceMesh, distribute_tensor

from noisescope.errors import DoseError, DoseWarning, InputError, SelectionError
from noisescope.training import weight_noise
from noisescope.training.weight_noise import _noisy

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NORM = "model.layers.1.input_layernorm.weight"


def bits(weights):
    return {n: w.contiguous().view(torch.uint8) for n, w in weights.items()}


def assert_same_bits(model, before):
    for name, held in bits(weights_of(model)).items():
        assert torch.equal(held, bits(before)[name]), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_come_back_to_the_last_bit(dtype):
    model = small_model("llama").to(dtype)
    with (
        torch.no_grad()
    ):  # values that adding and subtracting would not give back, and a zero's sign
        model.get_parameter(NORM)[:4] = torch.tensor([1e-3, -0.0, 65504.0, float("nan")])
    before = weights_of(model)
    state = torch.get_rng_state()
    with weight_noise(model, 0.05) as dose:
        assert dose.share_changed > 0.9
        changed = {n for n, w in weights_of(model).items() if not torch.equal(w, before[n])}
        assert len(changed) == 7 and all("norm" in name for name in changed)
    assert_same_bits(model, before)
    assert torch.equal(torch.get_rng_state(), state) and not _noisy


def test_they_come_back_after_an_exception_too():
    model = small_model("llama")
    before = weights_of(model)
    with pytest.raises(KeyboardInterrupt), weight_noise(model, 0.05):
        raise KeyboardInterrupt
    assert_same_bits(model, before)
    with weight_noise(model, 0.05):  # and may be noisy again
        pass


def test_what_is_added_is_normal_with_sigma_and_a_number_of_its_own_place():
    model = small_model("llama")
    clean = weights_of(model)[NORM]
    with weight_noise(model, 0.01, seed=7, draw=5):
        noisy = weights_of(model)[NORM]
    expected = clean + 0.01 * normals(f"weight:{NORM}", [(0, 0)], 32, draw=5, seed=7).flatten()
    torch.testing.assert_close(noisy, expected.to(torch.float32), rtol=1e-6, atol=1e-7)


def test_draws_and_seeds_differ_and_a_call_repeats_itself():
    model = small_model("llama")

    def noisy(**given):
        with weight_noise(model, 0.1, **given):
            return weights_of(model)[NORM]

    assert torch.equal(noisy(), noisy())
    assert not torch.equal(noisy(), noisy(draw=1))
    assert not torch.equal(noisy(), noisy(seed=1))


def test_multipliers_are_of_regions_and_chosen_modules_get_the_noise():
    model = small_model("llama")
    before = weights_of(model)
    factors = {"0": 4.0, "1": 0.0, 2: 0.5}
    with weight_noise(model, 0.01, modules="mlp.down_proj", multipliers=factors) as dose:
        found = {n: w - before[n] for n, w in weights_of(model).items()}
    spread = {n: float(d.std()) for n, d in found.items() if float(d.abs().max()) > 0}
    assert sorted(spread) == [f"model.layers.{k}.mlp.down_proj.weight" for k in (0, 2)]
    assert list(spread.values()) == pytest.approx([0.04, 0.005], rel=0.06)
    assert dose.share_changed == pytest.approx(2 / 3, abs=0.01)


def test_norms_of_torch_get_it_too_and_biases_do_not():
    model = small_model("gpt2")
    before = weights_of(model)
    with weight_noise(model, 0.1):
        changed = {n for n, w in weights_of(model).items() if not torch.equal(w, before[n])}
    assert changed == {n for n in before if ".ln_" in n and n.endswith("weight")}
    assert len(changed) == 7


def test_a_tied_weight_is_added_to_once():
    model = small_model("qwen2")
    before = model.lm_head.weight.detach().clone()
    with weight_noise(model, 0.01, modules=["lm_head", "embed_tokens"]):
        spread = (model.lm_head.weight - before).std().item()
    assert spread == pytest.approx(0.01, rel=0.06)
    assert torch.equal(model.lm_head.weight, before)


def test_rounding_that_erases_the_noise_is_told():
    model = small_model("llama").bfloat16()
    before = weights_of(model)
    with pytest.raises(DoseError, match="no noise arrived in the weights: rounding erased all"):
        with weight_noise(model, 1e-6):
            raise AssertionError("never entered")
    assert_same_bits(model, before)
    with pytest.warns(DoseWarning, match="under half of the noise arrived in the weights"):
        with weight_noise(model, 1e-3) as dose:
            assert 0 < dose.share_changed < 0.5
    with weight_noise(model, 1e-3, rounding="stochastic") as dose:
        assert dose.relative_l2 > 1e-3


def test_noise_on_noisy_weights_is_refused_and_on_others_not():
    model = small_model("llama")
    before = weights_of(model)
    with weight_noise(model, 0.1):
        with pytest.raises(InputError, match="carries noise already: noise on weights does not"):
            with weight_noise(model, 0.1, modules=["mlp.up_proj", "norm"]):
                pass
        with weight_noise(model, 0.1, modules="mlp.up_proj"):
            pass
    assert_same_bits(model, before)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_may_not_step_meanwhile(kind):
    model = small_model("llama")
    before = weights_of(model)
    optimizer = kind(model.parameters(), lr=0.1)
    model(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()
    with pytest.raises(InputError, match=f"{kind.__name__} stepped while its weights carried"):
        with weight_noise(model, 0.1):
            optimizer.step()
    assert_same_bits(model, before)
    optimizer.step()  # the guard is gone
    assert not torch.equal(weights_of(model)[NORM], before[NORM])
    with weight_noise(model, 0.1, modules="norm"):
        torch.optim.SGD([model.lm_head.weight], lr=0.1).step()  # another's weights are its own


def test_weights_that_are_loaded_meanwhile_are_refused():
    model = small_model("llama")
    before = weights_of(model)
    with pytest.raises(InputError, match="was written while it carried noise"):
        with weight_noise(model, 0.1):
            model.load_state_dict(before)
    assert_same_bits(model, before)


def test_a_graph_that_was_made_before_can_still_be_followed_back():
    model = small_model("llama")
    loss = model(input_ids=torch.tensor([[3, 4, 5]])).logits.cos().sum()
    with weight_noise(model, 0.1):
        pass
    loss.backward()
    found = model.get_parameter(NORM).grad.clone()
    model.zero_grad()
    model(input_ids=torch.tensor([[3, 4, 5]])).logits.cos().sum().backward()
    assert torch.equal(model.get_parameter(NORM).grad, found)


def test_weights_in_shards_are_refused():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        norm = nn.LayerNorm(4)
        norm.weight = nn.Parameter(distribute_tensor(norm.weight.data, DeviceMesh("cpu", [0])))
        with pytest.raises(InputError, match=r"weight 0.weight lies in shards \(DTensor\)"):
            with weight_noise(nn.Sequential(norm), 0.1):
                pass
        sharded = nn.Sequential(nn.LayerNorm(4))
        fully_shard(sharded[0], mesh=DeviceMesh("cpu", [0]))
        with pytest.raises(InputError, match="module 0 is sharded by FSDP: noise on weights needs"):
            with weight_noise(sharded, 0.1):
                pass
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"modules": "down"}, SelectionError, "no module matches 'down'"),
        ({"modules": "mlp.act_fn"}, SelectionError, "no weights in the named modules"),
        ({"multipliers": {"9": 1.0}}, SelectionError, "multiplier of '9': this model has the reg"),
        ({"multipliers": {"0": -1.0}}, InputError, "multiplier -1.0 of '0': a number of at least"),
        ({"sigma": -1.0}, InputError, "sigma -1.0: a number of at least 0 is needed; try 0"),
        ({"seed": -1}, InputError, "seed -1: an integer from 0"),
        ({"rounding": "up"}, InputError, "rounding 'up': 'nearest' or 'stochastic'"),
    ],
)
def test_what_cannot_be_asked_is_refused_and_nothing_is_left(given, error, said):
    model = small_model("llama")
    before = weights_of(model)
    with pytest.raises(error, match=said), weight_noise(model, **({"sigma": 0.1} | given)):
        pass
    assert_same_bits(model, before)
    assert not _noisy


def test_a_model_without_norms_needs_names():
    with pytest.raises(SelectionError, match="no norm with weights in Sequential: name other"):
        with weight_noise(nn.Sequential(nn.Linear(2, 2)), 0.1):
            pass
