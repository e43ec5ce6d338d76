"""Every spelling of an operator is one site, whose error is the one at the site's address."""

import pytest
import torch
import torch.nn.functional as F
from helpers.injection import DRAW, SEED, OneOperator, fired, lost_rows, named_rows, normals
from torch import nn
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.pytorch_utils import Conv1D

from noisescope.inject import inject
from noisescope.noise import RelativeGaussian

NAMES, T, D = ("a", "b"), 3, 4
SCALE = 0.1
aten = torch.ops.aten

W = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(4, 5)
BIAS = torch.linspace(0.5, 1, 5, dtype=torch.float64)
BATCH = torch.linspace(-1, 2, 40, dtype=torch.float64).reshape(2, 4, 5)


def example() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(len(NAMES), T, D, generator=generator, dtype=torch.float64)


def flat(x):
    return x.reshape(-1, D)


def double(module):
    return module.double()


def conv1d():
    module = Conv1D(5, 4).double()
    nn.init.constant_(module.bias, 0.3)
    return module


PRODUCTS = {
    "F.linear": ("linear", lambda x, w: F.linear(x, w), {"w": W.T}),
    "F.linear bias": ("linear", lambda x, w, b: F.linear(x, w, b), {"w": W.T, "b": BIAS}),
    "F.linear keywords": ("linear", lambda x, w: F.linear(input=x, weight=w), {"w": W.T}),
    "aten.linear": ("linear", lambda x, w: aten.linear(x, w), {"w": W.T}),
    "aten.linear.default": ("linear", lambda x, w: aten.linear.default(x, w), {"w": W.T}),
    "nn.Linear": ("linear", double(nn.Linear(4, 5)), {}),
    "Conv1D": ("linear", conv1d(), {}),
    "addmm by parameter": (
        "linear",
        lambda x, b, w: torch.addmm(b, flat(x), w),
        {"b": BIAS, "w": W},
    ),
    "addmm keywords": (
        "linear",
        lambda x, b, w: torch.addmm(input=b, mat1=flat(x), mat2=w),
        {"b": BIAS, "w": W},
    ),
    "@": ("matmul", lambda x, w: x @ w, {"w": W}),
    "torch.matmul": ("matmul", lambda x, w: torch.matmul(x, w), {"w": W}),
    "Tensor.matmul": ("matmul", lambda x, w: x.matmul(w), {"w": W}),
    "rmatmul": ("matmul", lambda x, w: w.__rmatmul__(x), {"w": W}),
    "linalg.matmul": ("matmul", lambda x, w: torch.linalg.matmul(x, w), {"w": W}),
    "torch.mm": ("matmul", lambda x, w: torch.mm(flat(x), w), {"w": W}),
    "Tensor.mm": ("matmul", lambda x, w: flat(x).mm(w), {"w": W}),
    "aten.mm.default": ("matmul", lambda x, w: aten.mm.default(flat(x), w), {"w": W}),
    "addmm by tensor": ("matmul", lambda x, w: torch.addmm(BIAS, flat(x), w * 1), {"w": W}),
    "einsum": ("matmul", lambda x, w: torch.einsum("btd,de->bte", x, w), {"w": W}),
    "inner": ("matmul", lambda x, w: torch.inner(x, w), {"w": W.T}),
    "Tensor.inner": ("matmul", lambda x, w: x.inner(w), {"w": W.T}),
    "tensordot": ("matmul", lambda x, w: torch.tensordot(x, w, dims=1), {"w": W}),
    "multi_dot": ("matmul", lambda x, w: torch.linalg.multi_dot([flat(x), w]), {"w": W}),
    "torch.bmm": ("bmm", lambda x, w: torch.bmm(x, w), {"w": BATCH}),
    "Tensor.bmm": ("bmm", lambda x, w: x.bmm(w), {"w": BATCH}),
    "baddbmm": ("bmm", lambda x, w: torch.baddbmm(BIAS, x, w), {"w": BATCH}),
    "Tensor.baddbmm": (
        "bmm",
        lambda x, w: torch.zeros(2, 3, 5, dtype=torch.float64).baddbmm(x, w),
        {"w": BATCH},
    ),
}
ACTIVATIONS = {
    "F.silu": ("silu", F.silu),
    "nn.SiLU": ("silu", nn.SiLU()),
    "aten.silu": ("silu", aten.silu),
    "F.gelu": ("gelu", F.gelu),
    "F.gelu tanh": ("gelu", lambda x: F.gelu(x, approximate="tanh")),
    "nn.GELU": ("gelu", nn.GELU()),
    "nn.GELU tanh": ("gelu", nn.GELU(approximate="tanh")),
    "GELUTanh": ("gelu", GELUTanh()),
    "NewGELUActivation": ("gelu", NewGELUActivation()),
    "F.relu": ("relu", F.relu),
    "torch.relu": ("relu", torch.relu),
    "Tensor.relu": ("relu", lambda x: x.relu()),
    "nn.ReLU": ("relu", nn.ReLU()),
    "F.layer_norm": ("layer_norm", lambda x: F.layer_norm(x, (D,))),
    "torch.layer_norm": ("layer_norm", lambda x: torch.layer_norm(x, (D,))),
    "native_layer_norm": (
        "layer_norm",
        lambda x: torch.native_layer_norm(x, (D,), None, None, 1e-5)[0],
    ),
    "nn.LayerNorm": ("layer_norm", double(nn.LayerNorm(D))),
    "nn.LayerNorm no weight": ("layer_norm", nn.LayerNorm(D, elementwise_affine=False)),
    "F.rms_norm": ("rms_norm", lambda x: F.rms_norm(x, (D,))),
    "torch.rms_norm": ("rms_norm", lambda x: torch.rms_norm(x, (D,))),
    "nn.RMSNorm": ("rms_norm", double(nn.RMSNorm(D))),
}
SOFTMAXES = {
    "torch.softmax": lambda x: torch.softmax(x, -1),
    "torch.softmax keyword": lambda x: torch.softmax(x, dim=-1),
    "F.softmax": lambda x: F.softmax(x, dim=-1),
    "F.softmax dtype": lambda x: F.softmax(x, dim=2, dtype=torch.float64),
    "Tensor.softmax": lambda x: x.softmax(-1),
    "special.softmax": lambda x: torch.special.softmax(x, -1),
    "aten.softmax": lambda x: aten.softmax(x, -1),
    "nn.Softmax": nn.Softmax(dim=-1),
}


def opened(model, phases=("forward",), **selection):
    session = inject(
        model, RelativeGaussian(SCALE), seed=SEED, draw=DRAW, phases=phases, **selection
    )
    session.name_samples(NAMES)
    return session


def noisy(clean, site, rows=None):
    """What relative error makes of clean values: y + N(0, 1) |y| s."""
    rows = rows or named_rows(NAMES, T)
    noise = normals(site, rows, clean.shape[-1]).reshape(clean.shape)
    return clean + noise * clean.abs() * SCALE


@pytest.mark.parametrize("case", PRODUCTS)
def test_a_product_is_one_site_with_the_error_of_its_address(case):
    operator, run, weights = PRODUCTS[case]
    model = OneOperator(run, **weights)
    clean = model(example())
    with opened(model) as session:
        result = model(example())
    assert fired(session) == {f"op:{operator}:0": 1}
    torch.testing.assert_close(result, noisy(clean, f"op:{operator}:0"), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_an_activation_or_norm_is_one_site_with_the_error_of_its_address(case):
    operator, run = ACTIVATIONS[case]
    model = OneOperator(run)
    clean = model(example())
    with opened(model) as session:
        result = model(example())
    assert fired(session) == {f"op:{operator}:0": 1}
    torch.testing.assert_close(result, noisy(clean, f"op:{operator}:0"), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", SOFTMAXES)
def test_a_softmax_is_one_site_clamped_and_renormalised(case):
    model = OneOperator(SOFTMAXES[case])
    clean = torch.softmax(example(), -1)
    with opened(model) as session:
        result = model(example())
    kept = noisy(clean, "op:softmax:0").clamp_min(0)
    assert fired(session) == {"op:softmax:0": 1}
    torch.testing.assert_close(result, kept / kept.sum(-1, keepdim=True), rtol=1e-6, atol=1e-7)


def test_a_softmax_over_another_axis_is_renormalised_over_that_axis():
    model = OneOperator(lambda x: torch.softmax(x, 1))
    with opened(model):
        result = model(example())
    assert not torch.equal(result, torch.softmax(example(), 1))
    torch.testing.assert_close(result.sum(1), torch.ones(2, D, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("mv", lambda x: torch.mv(flat(x), W[:, 0])),
        ("Tensor.mv", lambda x: flat(x).mv(W[:, 0])),
        ("addmv", lambda x: torch.addmv(torch.zeros(6).double(), flat(x), W[:, 0])),
        ("1-D @ 1-D", lambda x: x[0, 0] @ W[:, 0]),
        ("1-D @ 2-D", lambda x: x[0, 0] @ W),
        ("addbmm", lambda x: torch.addbmm(torch.zeros(3, 5).double(), x, BATCH)),
    ],
)
def test_products_without_known_rows_are_sites_too_and_say_so(name, run):
    model = OneOperator(run)
    clean = model(example())
    with opened(model) as session:
        result = model(example())
    rows = lost_rows(NAMES, T, clean.shape[:-1].numel() if clean.dim() else 1)
    clean_rows = clean.reshape(len(rows), -1)
    assert fired(session) == {"op:matmul:0": 1}
    assert [line.rows for line in session.coverage()] == ["row"]
    torch.testing.assert_close(
        result.reshape(clean_rows.shape),
        noisy(clean_rows, "op:matmul:0", rows),
        rtol=1e-6,
        atol=1e-7,
    )


@pytest.mark.parametrize("build", [lambda t: nn.Embedding(9, 4, _weight=t), None])
def test_embedding_is_one_site(build):
    table = torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(9, 4)
    model = OneOperator(build(table) if build else lambda ids: F.embedding(ids, table))
    ids = torch.tensor([[1, 5, 2], [8, 0, 2]])
    with opened(model) as session:
        result = model(ids)
    assert fired(session) == {"op:embedding:0": 1}
    torch.testing.assert_close(result, noisy(table[ids], "op:embedding:0"), rtol=1e-6, atol=1e-7)


def test_a_norm_written_out_by_hand_is_one_site_and_its_inner_functions_are_none():
    model = OneOperator(Qwen2RMSNorm(D))
    x = example().float()
    clean = model(x)
    with opened(model) as session:
        result = model(x)
    assert list(session.counts) == ["op:rms_norm:0"]
    assert [r.site.operator for r in session.records] == ["rms_norm"]
    torch.testing.assert_close(
        result, noisy(clean.double(), "op:rms_norm:0").float(), rtol=1e-5, atol=1e-6
    )


def test_repeated_calls_in_one_module_are_sites_of_their_own():
    model = OneOperator(lambda x: F.relu(x) + F.relu(x))
    with opened(model) as session:
        result = model(example())
    clean = F.relu(example())
    expected = noisy(clean, "op:relu:0") + noisy(clean, "op:relu:1")
    assert fired(session) == {"op:relu:0": 1, "op:relu:1": 1}
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("need_weights", [False, True])
def test_multi_head_attention_of_pytorch_is_opened(need_weights):
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    model = OneOperator(lambda x: attention(x, x, x, need_weights=need_weights)[0])
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    clean = model(x)  # with gradients, as without them another fused kernel of PyTorch runs it
    with inject(model, RelativeGaussian(0.0)) as session:
        null = model(x)
    with inject(model, RelativeGaussian(0.05)):
        result = model(x)
    seen = [r.site.operator for r in session.records]
    assert seen.count("linear") == 2
    assert seen.count("softmax") == 1
    assert seen.count("matmul") + seen.count("bmm") == 2
    assert torch.equal(null, clean)
    assert not torch.equal(result, clean)
