"""Noise on the way back: on the gradient of each input, beside a float64 computation without it."""

import pytest
import torch
import torch.nn.functional as F
from helpers.injection import DRAW, SEED, OneOperator, lost_rows, named_rows, normals
from helpers.small_models import small_model
from torch import nn

from noisescope.errors import SelectionError
from noisescope.inject import inject
from noisescope.inject.sites import Site
from noisescope.noise import RelativeGaussian

NAMES, T, D, SCALE = ("a", "b"), 3, 4, 0.1
W = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(4, 5)
BIAS = torch.linspace(0.5, 1, 5, dtype=torch.float64)


class HandWrittenNorm(nn.Module):
    """Six small functions and two weights, as models write norms out."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2, D, dtype=torch.float64))
        self.bias = nn.Parameter(torch.linspace(-1, 1, D, dtype=torch.float64))

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        unit = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.bias + self.weight * unit


class SmallLayerNorm(HandWrittenNorm):
    """Named so that it is known for a layer_norm."""


# Of each case: operator, module or function, and the numbers of its parameters among its inputs.
CASES = {
    "linear": ("linear", lambda x, w, b: F.linear(x, w, b), {"w": W.T, "b": BIAS}, (1, 2)),
    "linear frozen": ("linear", lambda x: F.linear(x, W.T), {}, ()),
    "addmm": (
        "linear",
        lambda x, b, w: torch.addmm(b, x.reshape(-1, D), w),
        {"b": BIAS, "w": W},
        (0, 2),
    ),
    "matmul": ("matmul", lambda x, w: x @ w, {"w": W}, (1,)),
    "einsum": ("matmul", lambda x, w: torch.einsum("btd,de->bte", x, w), {"w": W}, (1,)),
    "gelu": ("gelu", F.gelu, {}, ()),
    "gelu tanh": ("gelu", lambda x: F.gelu(x, approximate="tanh"), {}, ()),
    "silu": ("silu", F.silu, {}, ()),
    "relu": ("relu", F.relu, {}, ()),
    "softmax": ("softmax", lambda x: torch.softmax(x, -1), {}, ()),
    "layer_norm": ("layer_norm", nn.LayerNorm(D).double(), {}, (1, 2)),
    "layer_norm bare": ("layer_norm", lambda x: F.layer_norm(x, (D,)), {}, ()),
    "rms_norm": ("rms_norm", nn.RMSNorm(D).double(), {}, (1,)),
    "by hand": ("layer_norm", SmallLayerNorm(), {}, (16, 17)),
}


def example():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(2, T, D, generator=generator, dtype=torch.float64)


def gradients(model, x):
    model.zero_grad()
    leaf = x.clone().requires_grad_()
    (model(leaf).cos() * 2).sum().backward()
    return leaf.grad, [p.grad.clone() for p in model.parameters()]


def noisy(clean, word_name, rows):
    noise = normals(word_name, rows, clean.shape[-1] if clean.dim() else 1).reshape(clean.shape)
    return clean + noise * clean.abs() * SCALE


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_backward_noise_lands_on_the_gradient_of_each_input(case):
    operator, run, weights, numbers = CASES[case]
    model = OneOperator(run, **weights)
    clean_x, clean_parameters = gradients(model, example())
    session = inject(model, RelativeGaussian(SCALE), phases="backward", seed=SEED, draw=DRAW)
    session.name_samples(NAMES)
    with session:
        x, parameters = gradients(model, example())
    x_number = 1 if case == "addmm" else 0
    close(x, noisy(clean_x, f"op:{operator}:0:grad{x_number}", named_rows(NAMES, T)))
    for number, clean, found in zip(numbers, clean_parameters, parameters, strict=True):
        rows = lost_rows(NAMES, T, clean.shape[:-1].numel())
        close(found, noisy(clean, f"op:{operator}:0:grad{number}", rows))
    assert session.counts == {f"op:{operator}:0": {"forward": 0, "backward": 1 + len(numbers)}}


def test_the_output_is_bitwise_clean_under_backward_noise_alone():
    model = small_model("llama")
    ids = torch.tensor([[5, 9, 11, 3]])
    clean = model(input_ids=ids).logits
    operators = ("linear", "silu", "rms_norm", "embedding")
    with inject(model, RelativeGaussian(SCALE), operators=operators, phases="backward"):
        result = model(input_ids=ids).logits
        result.sum().backward()
    assert torch.equal(result, clean)


def test_forward_noise_passes_gradients_straight_through():
    model = OneOperator(lambda x, w: F.linear(F.relu(x), w), w=W.T)
    leaf = example().requires_grad_()
    session = inject(model, RelativeGaussian(SCALE), operators="relu", seed=SEED, draw=DRAW)
    session.name_samples(NAMES)
    with session:
        model(leaf).sum().backward()
    hidden = noisy(F.relu(example()), "op:relu:0", named_rows(NAMES, T))
    close(leaf.grad, (example() > 0) * W.sum(1))
    close(model.op.w.grad, hidden.sum((0, 1)).expand(5, 4))


def test_both_phases_add_error_on_both_ways():
    model = OneOperator(F.silu)
    leaf = example().requires_grad_()
    session = inject(
        model, RelativeGaussian(SCALE), phases=("forward", "backward"), seed=SEED, draw=DRAW
    )
    session.name_samples(NAMES)
    with session:
        result = model(leaf)
        result.sum().backward()
    sigmoid = torch.sigmoid(example())
    slope = sigmoid * (1 + example() * (1 - sigmoid))
    close(result, noisy(F.silu(example()), "op:silu:0", named_rows(NAMES, T)))
    close(leaf.grad, noisy(slope, "op:silu:0:grad0", named_rows(NAMES, T)))
    assert session.counts == {"op:silu:0": {"forward": 1, "backward": 1}}


@pytest.mark.parametrize("shape", ["vector", "matrix"])
def test_one_dimensional_products_have_a_backward_pass(shape):
    weight = W if shape == "matrix" else W[:, 0]
    model = OneOperator(lambda x: x[0, 0] @ weight)
    clean, _ = gradients(model, example())
    session = inject(model, RelativeGaussian(SCALE), phases="backward", seed=SEED, draw=DRAW)
    session.name_samples(NAMES)
    with session:
        found, _ = gradients(model, example())
    expected = noisy(clean[0, 0], "op:matmul:0:grad0", lost_rows(NAMES, T, 1))
    close(found[0, 0], expected)


def test_both_arguments_of_a_product_with_itself_get_noise_of_their_own():
    model = OneOperator(lambda x: torch.matmul(x[:, 0], x[:, 0].T))
    session = inject(model, RelativeGaussian(SCALE), phases="backward")
    with session:
        gradients(model, example())
    assert session.counts["op:matmul:0"]["backward"] == 2


def test_keyword_inputs_of_a_hand_written_norm_get_noise_too():
    class Caller(nn.Module):
        def __init__(self):
            super().__init__()
            self.op = SmallLayerNorm()

        def forward(self, x):
            return self.op(x=x)

    model = Caller()
    clean, _ = gradients(model, example())
    session = inject(model, RelativeGaussian(SCALE), phases="backward", seed=SEED, draw=DRAW)
    session.name_samples(NAMES)
    with session:
        found, _ = gradients(model, example())
    close(found, noisy(clean, "op:layer_norm:0:grad0", named_rows(NAMES, T)))


def test_a_sparse_gradient_has_no_rows_and_is_left_clean():
    model = OneOperator(nn.Embedding(9, 4, sparse=True))
    ids = torch.tensor([[1, 5, 2]])
    session = inject(model, RelativeGaussian(SCALE), phases="backward")
    with pytest.raises(SelectionError, match="backward noise was asked for"), session:
        model(ids).sum().backward()
    assert model.op.weight.grad.to_dense().sum() == 12


def test_the_site_of_a_gradient_is_named_after_its_argument():
    site = Site("0", "layers.0.mlp", "linear", 1)
    assert len({site.word, site.gradient_word(0), site.gradient_word(1)}) == 3
