"""Calls that write into a tensor of their own write the noisy values, and gradients stay right."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers.injection import DRAW, SEED, OneOperator, fired, named_rows, normals
from torch import nn

from noisescope.inject import Span, inject
from noisescope.inject.calls import may_share_memory
from noisescope.inject.ride_together import Together
from noisescope.noise import RelativeGaussian

NAMES, T, D = ("a", "b"), 3, 4
SCALE = 0.1
aten = torch.ops.aten
W = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(4, 5)

IN_PLACE = {
    "torch.relu_": ("relu", lambda x: torch.relu_(x), torch.relu),
    "Tensor.relu_": ("relu", lambda x: x.relu_(), torch.relu),
    "F.relu_": ("relu", lambda x: F.relu_(x), torch.relu),
    "F.relu inplace": ("relu", lambda x: F.relu(x, inplace=True), torch.relu),
    "F.relu positional": ("relu", lambda x: F.relu(x, True), torch.relu),
    "nn.ReLU inplace": ("relu", nn.ReLU(inplace=True), torch.relu),
    "aten.relu_": ("relu", lambda x: aten.relu_(x), torch.relu),
    "F.silu inplace": ("silu", lambda x: F.silu(x, inplace=True), F.silu),
    "nn.SiLU inplace": ("silu", nn.SiLU(inplace=True), F.silu),
}


def example() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(len(NAMES), T, D, generator=generator, dtype=torch.float64)


def opened(model):
    session = inject(model, RelativeGaussian(SCALE), seed=SEED, draw=DRAW)
    session.name_samples(NAMES)
    return session


def noisy(clean, site):
    noise = normals(site, named_rows(NAMES, T), clean.shape[-1]).reshape(clean.shape)
    return clean + noise * clean.abs() * SCALE


@pytest.mark.parametrize("case", IN_PLACE)
def test_a_call_in_place_writes_the_error_into_its_own_tensor(case):
    operator, run, functional = IN_PLACE[case]
    model = OneOperator(run)
    x = example()
    with opened(model) as session:
        result = model(x)
    assert fired(session) == {f"op:{operator}:0": 1}
    assert result.data_ptr() == x.data_ptr()
    torch.testing.assert_close(
        x, noisy(functional(example()), f"op:{operator}:0"), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("case", IN_PLACE)
def test_the_gradient_of_a_call_in_place_is_the_clean_one(case):
    _, run, functional = IN_PLACE[case]
    model = OneOperator(run)
    clean, leaf = example().requires_grad_(), example().requires_grad_()
    functional(clean).sum().backward()
    with opened(model):
        model(leaf * 1.0).sum().backward()
    torch.testing.assert_close(leaf.grad, clean.grad)


@pytest.mark.parametrize("function", [torch.matmul, torch.mm, torch.softmax])
def test_out_receives_the_error(function):
    out = torch.zeros(6, 5, dtype=torch.float64)
    if function is torch.softmax:
        out = torch.zeros(6, 4, dtype=torch.float64)
        model = OneOperator(lambda x: torch.softmax(x.reshape(-1, D), -1, out=out))
    else:
        model = OneOperator(lambda x: function(x.reshape(-1, D), W, out=out))
    clean = model(example()).clone()
    with opened(model) as session, torch.no_grad():
        result = model(example())
    assert result is out
    assert list(fired(session).values()) == [1]
    assert not torch.equal(out, clean)


def test_a_product_with_a_sparse_matrix_gets_the_error():
    sparse = torch.eye(6, dtype=torch.float64).to_sparse()
    model = OneOperator(lambda x: torch.matmul(sparse, x.reshape(-1, D)))
    with opened(model) as session, torch.no_grad():
        result = model(example())
    assert fired(session) == {"op:matmul:0": 1}
    clean = example().reshape(-1, D)
    torch.testing.assert_close(result, noisy(clean, "op:matmul:0"), rtol=1e-6, atol=1e-7)


def test_memory_that_cannot_be_told_is_never_taken_for_an_output_of_its_own():
    x, sparse = torch.ones(2, 2), torch.eye(2).to_sparse()
    zeros = torch._efficientzerotensor((2, 2))
    assert may_share_memory(sparse, ((x,), {}))
    assert may_share_memory(zeros, ((x,), {}))
    assert may_share_memory(x, ((sparse, x[0]), {}))
    assert not may_share_memory(x, ((sparse, zeros, x.clone()), {}))


def test_tables_of_a_ride_lie_with_its_output_whatever_the_defaults():
    span = Span(None, 3, 0, 2)
    session = SimpleNamespace(seed=7, error_model=RelativeGaussian(0.5))
    mark, piece = SimpleNamespace(span=span, session=session), SimpleNamespace(begin=0, end=2)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            tables = Together()._table(piece, [mark], 2, torch.device("cpu"))
    finally:
        torch.set_default_dtype(before)
    assert [t.tolist() for t in tables] == [[7] * 4, [3] * 4, [0.5] * 4]
    assert tables[2].dtype == torch.float32
