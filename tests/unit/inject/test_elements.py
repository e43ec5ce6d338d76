"""Channels and positions: who gets noise, to the last bit, at single operators in every layout."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from helpers.injection import DRAW, SEED, OneOperator, named_rows, normals
from torch import nn

from noisescope.inject import inject
from noisescope.noise import AbsoluteGaussian, ErrorModel, RelativeGaussian, standard_normal

B, T, H, D = 2, 3, 4, 8
WIDTH = H * D
NAMES = ["a", "b"]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def heads_first(x):
    return x.reshape(B, T, H, D).transpose(1, 2)


def context(x):
    """Two products, as attention makes them; the second one is the site."""
    query = heads_first(x)
    return torch.matmul(torch.matmul(query, query.transpose(2, 3)), query)


SQUARE = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(5)) / 4


# Each is an operator, and the axes of its output from the outermost in: b, t, h and d; k for keys.
LAYOUTS = {
    "linear": (lambda x: F.linear(x, SQUARE.to(x.dtype)), "btc"),
    "linear, tokens in one axis": (
        lambda x: F.linear(x.reshape(B * T, WIDTH), SQUARE.to(x.dtype)),
        "btc",
    ),
    "silu": (lambda x: F.silu(x), "btc"),
    "layer_norm": (lambda x: F.layer_norm(x, (WIDTH,)), "btc"),
    "rms_norm of heads": (lambda x: F.rms_norm(x.reshape(B, T, H, D), (D,)), "bthd"),
    "rms_norm of heads in one axis": (lambda x: F.rms_norm(x.reshape(-1, D), (D,)), "bthd"),
    "matmul, scores": (lambda x: heads_first(x) @ heads_first(x).transpose(2, 3), "bhtk"),
    "bmm, scores": (
        lambda x: torch.bmm(*(y.reshape(B * H, *y.shape[2:]) for y in pair(x))),
        "bhtk",
    ),
    "matmul, context": (context, "bhtd"),
}
SITES = {"matmul, context": "op:matmul:1"}


def pair(x):
    return heads_first(x), heads_first(x).transpose(2, 3)


def channels_and_positions(axes, shape):
    """The channel and the position of every element, in the shape of the output, by hand."""
    sizes = {"b": B, "t": T, "h": H, "d": D, "c": WIDTH, "k": T}
    grid = torch.meshgrid(*(torch.arange(sizes[axis]) for axis in axes), indexing="ij")
    index = dict(zip(axes, grid, strict=True))
    if "k" in index:
        channel = index["h"]
    elif "h" in index:
        channel = index["h"] * D + index["d"]
    else:
        channel = index["c"]
    return channel.reshape(shape), index["t"].reshape(shape)


RESTRICTIONS = {
    "one channel": {"channels": 3},
    "channels": {"channels": [3, 0, 1]},
    "without channels": {"without_channels": (0, 2)},
    "a position": {"positions": 1},
    "positions": {"positions": [2, 0]},
    "channels at positions": {"channels": range(1, 3), "positions": [0, 2]},
    "positions without channels": {"without_channels": [1], "positions": [2]},
}


def is_meant(channel, position, channels=None, without_channels=(), positions=None):
    def among(values, listed):
        listed = [listed] if isinstance(listed, int) else list(listed)
        return torch.isin(values, torch.tensor(listed))

    mask = torch.ones_like(channel, dtype=torch.bool)
    if channels is not None:
        mask &= among(channel, channels)
    if without_channels:
        mask &= ~among(channel, without_channels)
    if positions is not None:
        mask &= among(position, positions)
    return mask


def example(dtype):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(B, T, WIDTH, generator=generator, dtype=torch.float64).to(dtype)


def run(model, x, error_model, **selection):
    session = inject(model, error_model, seed=SEED, draw=DRAW, **selection)
    session.name_samples(NAMES)
    with session:
        return model(x), session


def same_bits(one, other):
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


@dataclass(frozen=True)
class RowNoise(ErrorModel):
    """Noise by the size of a whole row: an element's error depends on its neighbours."""

    rounding: str = "nearest"

    def error(self, y_RD, at):
        size = y_RD.square().mean(dim=1, keepdim=True).sqrt()
        return 0.1 * size * standard_normal(at, y_RD.shape[1]).to(y_RD.dtype)


MODELS = {
    "relative": RelativeGaussian(0.2),
    "relative, stochastic": RelativeGaussian(0.2, "stochastic"),
    "absolute": AbsoluteGaussian(0.1),
    "of rows": RowNoise(),
}


@pytest.mark.parametrize("restriction", RESTRICTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("error_model", MODELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_meant_elements_get_their_noise_and_the_others_nothing(
    dtype, error_model, layout, restriction
):
    function, axes = LAYOUTS[layout]
    model, x = OneOperator(function), example(dtype)
    only = {"sites": SITES[layout]} if layout in SITES else {}
    selected = RESTRICTIONS[restriction]
    clean = model(x)
    mask = is_meant(*channels_and_positions(axes, clean.shape), **selected)
    everywhere, _ = run(model, x, MODELS[error_model], **only)
    part, session = run(model, x, MODELS[error_model], **only, **selected)
    assert 0 < mask.sum() < mask.numel()
    assert same_bits(part, torch.where(mask, everywhere, clean))
    dose = session.dose()
    wide, change = clean[mask].double(), part[mask].double() - clean[mask].double()
    assert dose.elements == mask.sum()
    assert dose.relative_l2 == pytest.approx(float(change.norm() / wide.norm()), rel=1e-5)
    assert dose.share_changed == pytest.approx(float((change != 0).double().mean()))
    assert dose.asked_relative_l2 == pytest.approx(dose.relative_l2, rel=0.3)


@pytest.mark.parametrize("error_model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_noise_on_some_channels_and_on_the_others_is_noise_on_all(layout, error_model):
    function, _ = LAYOUTS[layout]
    model, x = OneOperator(function), example(torch.bfloat16)
    only = {"sites": SITES[layout]} if layout in SITES else {}
    clean = model(x)
    everywhere, _ = run(model, x, MODELS[error_model], **only)
    some, _ = run(model, x, MODELS[error_model], **only, channels=[1, 3])
    others, _ = run(model, x, MODELS[error_model], **only, without_channels=[1, 3])
    is_clean = some.view(torch.int16) == clean.view(torch.int16)
    assert same_bits(torch.where(is_clean, others, some), everywhere)
    assert not same_bits(some, others)


@pytest.mark.parametrize("error_model", MODELS)
def test_noise_of_all_channels_and_positions_is_unrestricted_noise(error_model):
    model, x = OneOperator(LAYOUTS["linear"][0]), example(torch.float32)
    everywhere, whole = run(model, x, MODELS[error_model])
    for selection in ({"channels": range(WIDTH)}, {"positions": range(T)}):
        part, session = run(model, x, MODELS[error_model], **selection)
        assert same_bits(part, everywhere)
        assert session.dose() == whole.dose()


def test_the_error_of_a_channel_is_the_number_at_its_address():
    model, x = OneOperator(LAYOUTS["matmul, context"][0]), example(torch.float64)
    part, _ = run(model, x, RelativeGaussian(0.2), sites="op:matmul:1", channels=2 * D + 5)
    clean = model(x)
    rows = [r for n in range(B) for r in named_rows(NAMES, T)[n * T : n * T + T]]
    noise = normals("op:matmul:1", rows, D, 2 * D).reshape(B, T, D)[..., 5]
    expected = clean.clone()
    expected[:, 2, :, 5] += 0.2 * clean[:, 2, :, 5].abs() * noise
    torch.testing.assert_close(part, expected, rtol=1e-6, atol=0)


def test_the_dose_of_a_channel_is_not_diluted():
    model = OneOperator(nn.Identity())
    model.op = nn.Linear(64, 64)
    x = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    session = inject(model, RelativeGaussian(0.05), channels=7)
    with torch.no_grad(), session:
        model(x)
    assert session.dose().elements == 400
    assert session.dose().asked_relative_l2 == pytest.approx(0.05, rel=0.2)
    assert session.dose().share_changed == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_that_are_no_numbers_are_left_and_counted_as_ever(dtype, value):
    x = example(dtype)
    x[0, 0, :4] = value
    model = OneOperator(F.relu if value != value else lambda x: F.linear(x, torch.eye(WIDTH).to(x)))
    clean = model(x)
    part, session = run(model, x, RelativeGaussian(0.2), channels=[2, 3, 9])
    whole, _ = run(model, x, RelativeGaussian(0.2))
    mask = torch.zeros(WIDTH, dtype=torch.bool)
    mask[[2, 3, 9]] = True
    torch.testing.assert_close(
        part, torch.where(mask, whole, clean), rtol=0, atol=0, equal_nan=True
    )
    assert session.dose().elements == 3 * B * T


@pytest.mark.parametrize("restriction", RESTRICTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_of_scale_0_leaves_all_to_the_last_bit(dtype, layout, restriction):
    model, x = OneOperator(LAYOUTS[layout][0]), example(dtype)
    selection = RESTRICTIONS[restriction]
    clean = model(x)
    noisy, session = run(model, x, RelativeGaussian(0.0), **selection)
    assert same_bits(noisy, clean)
    assert session.dose().share_changed == 0
    mask = is_meant(*channels_and_positions(LAYOUTS[layout][1], clean.shape), **selection)
    site = SITES.get(layout)
    assert (session.doses()[site] if site else session.dose()).elements == mask.sum()


@pytest.mark.parametrize("restriction", RESTRICTIONS)
def test_gradients_pass_a_restricted_error_unchanged(restriction):
    weight = nn.Parameter(SQUARE.clone())
    model, x = OneOperator(F.linear, weight=weight), example(torch.float32)
    leaves = []
    for selection in (None, RESTRICTIONS[restriction]):
        leaf = x.clone().requires_grad_()
        if selection is None:
            model(leaf).sum().backward()
        else:
            noisy, _ = run(model, leaf, RelativeGaussian(0.2), **selection)
            noisy.sum().backward()
        leaves.append(leaf.grad)
    assert torch.equal(*leaves)


def spread(scores, dim=-1):
    return torch.softmax(scores, dim=dim)


def noisy_probabilities(clean, error, mask, dim=-1):
    """The definition in float64: masked, clamped, divided by the sum; untouched rows stay."""
    kept = (clean + error.masked_fill(~mask, 0)).clamp_min(0).masked_fill(clean == 0, 0)
    total = kept.sum(dim, keepdim=True)
    return torch.where(mask.any(dim, keepdim=True) & (total > 0), kept / total, clean)


@pytest.mark.parametrize("restriction", RESTRICTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_of_attention_probabilities(dtype, restriction):
    model = OneOperator(lambda x: spread(heads_first(x) @ heads_first(x).transpose(2, 3)))
    x = example(dtype)
    selection = RESTRICTIONS[restriction]
    clean = model(x)
    mask = is_meant(*channels_and_positions("bhtk", clean.shape), **selection)
    everywhere, _ = run(model, x, RelativeGaussian(0.3), operators="softmax")
    part, session = run(model, x, RelativeGaussian(0.3), operators="softmax", **selection)
    # A query's keys are all meant or none: what is meant gets what it gets without a restriction.
    assert same_bits(part, torch.where(mask, everywhere, clean))
    assert session.dose().elements == mask.sum()


@pytest.mark.parametrize("dim", [-1, 1])
@pytest.mark.parametrize("restriction", RESTRICTIONS)
def test_channels_of_a_distribution_over_channels(restriction, dim):
    """A router's, say: what is added to some channels the others lose or win, by the division."""
    model, x = OneOperator(lambda x: spread(x, dim)), example(torch.float64)
    selection = RESTRICTIONS[restriction]
    clean = model(x)
    mask = is_meant(*channels_and_positions("btc", clean.shape), **selection)
    part, session = run(model, x, RelativeGaussian(0.3), **selection)
    noise = normals("op:softmax:0", named_rows(NAMES, T), WIDTH).reshape(clean.shape)
    expected = noisy_probabilities(clean, 0.3 * clean * noise, mask, dim)
    torch.testing.assert_close(part, expected, rtol=1e-6, atol=0)
    untouched = ~mask.any(dim, keepdim=True).expand_as(mask)
    assert torch.equal(part[untouched], clean[untouched])
    change = (expected - clean)[mask].norm() / clean[mask].norm()
    assert session.dose().elements == mask.sum()
    assert session.dose().relative_l2 == pytest.approx(float(change), rel=1e-6)
    assert session.dose().asked_relative_l2 == pytest.approx(float(change), rel=1e-6)


@pytest.mark.parametrize("operator", ["softmax", "matmul"])
@pytest.mark.parametrize("restriction", RESTRICTIONS)
def test_fused_attention_is_restricted_as_the_written_out_one(restriction, operator):
    def fused(x):
        query = heads_first(x)
        return F.scaled_dot_product_attention(query, query, query)

    def written_out(x):
        query = heads_first(x)
        return spread(query @ query.transpose(2, 3) / D**0.5) @ query

    selection = {"operators": operator, **RESTRICTIONS[restriction]}
    x = example(torch.float64)
    one, first = run(OneOperator(fused), x, RelativeGaussian(0.3), **selection)
    other, second = run(OneOperator(written_out), x, RelativeGaussian(0.3), **selection)
    torch.testing.assert_close(one, other)
    assert (one - OneOperator(fused)(x)).abs().max() > 1e-3
    assert {n: d.elements for n, d in first.doses().items()} == {
        n: d.elements for n, d in second.doses().items()
    }


def test_an_embedding_is_restricted_like_any_output():
    model = OneOperator(nn.Embedding(20, 6))
    ids = torch.arange(6).reshape(2, 3)
    clean = model(ids)
    everywhere, _ = run(model, ids, RelativeGaussian(0.2))
    part, _ = run(model, ids, RelativeGaussian(0.2), channels=4, positions=1)
    expected = clean.clone()
    expected[:, 1, 4] = everywhere[:, 1, 4]
    assert same_bits(part, expected)
