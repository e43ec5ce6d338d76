"""Fused attention taken apart, beside the fused function itself."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.injection import DRAW, SEED, OneOperator, fired, named_rows, normals

from noisescope.inject import inject
from noisescope.inject.attention import attend
from noisescope.noise import AbsoluteGaussian, RelativeGaussian

B, H, T, S, D = 2, 4, 5, 7, 8
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def plain(step, function, *inputs):
    return function(*inputs)


def inputs(dtype=torch.float64, heads=H, keys=S, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, H, T, D), (B, heads, keys, D), (B, heads, keys, D))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def bool_mask(keys=S, empty=False):
    mask = torch.rand(B, 1, T, keys, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[..., 0] = True
    if empty:
        mask[0, :, 2] = False
    return mask


MASKS = {
    "none": lambda dtype: {},
    "bool": lambda dtype: {"attn_mask": bool_mask()},
    "bool with an empty row": lambda dtype: {"attn_mask": bool_mask(empty=True)},
    "float": lambda dtype: {
        "attn_mask": torch.zeros(T, S, dtype=dtype).masked_fill(~bool_mask()[0, 0], -math.inf)
    },
    "float bias": lambda dtype: {"attn_mask": torch.linspace(-2, 2, S, dtype=dtype).expand(T, S)},
    "causal": lambda dtype: {"is_causal": True},
    "scale": lambda dtype: {"scale": 0.3},
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mask", MASKS)
def test_the_steps_equal_the_fused_function(mask, dtype):
    options = MASKS[mask](dtype)
    fused = F.scaled_dot_product_attention(*inputs(dtype), **options)
    steps = attend(*inputs(dtype), **options, run=plain)
    assert steps.dtype == fused.dtype
    torch.testing.assert_close(steps, fused, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_grouped_heads_equal_the_fused_function(heads):
    fused = F.scaled_dot_product_attention(*inputs(heads=heads), enable_gqa=True)
    steps = attend(*inputs(heads=heads), enable_gqa=True, run=plain)
    torch.testing.assert_close(steps, fused)


def test_gradients_equal_those_of_the_fused_function():
    def gradients(function, **options):
        leaves = [t.requires_grad_() for t in inputs()]
        function(*leaves, attn_mask=bool_mask(), **options).cos().sum().backward()
        return [t.grad for t in leaves]

    fused = gradients(F.scaled_dot_product_attention)
    torch.testing.assert_close(gradients(attend, run=plain), fused)


def test_dropout_drops_the_share_it_is_told_and_keeps_the_mean():
    query, key, _ = inputs()
    value = torch.ones(B, H, S, D, dtype=torch.float64)
    torch.manual_seed(0)
    results = torch.stack(
        [attend(query, key, value, dropout_p=0.25, run=plain) for _ in range(400)]
    )
    # Of probabilities that sum to 1 the mean stays 1; one draw's deviation is under 0.6.
    deviation = results[:, 0, 0, 0, 0].std()
    assert 0.05 < deviation < 0.6
    torch.testing.assert_close(
        results.mean(0), torch.ones_like(results[0]), atol=5 * 0.6 / 20, rtol=0
    )


def test_under_autocast_the_steps_take_the_dtype_of_the_fused_function():
    tensors = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = F.scaled_dot_product_attention(*tensors, is_causal=True)
        steps = attend(*tensors, is_causal=True, run=plain)
    assert steps.dtype == fused.dtype == torch.bfloat16
    wide = attend(*(t.bfloat16().float() for t in tensors), is_causal=True, run=plain)
    assert torch.equal(steps, wide.bfloat16())


class Attention(torch.nn.Module):
    """Self-attention with identity projections, fused or written out."""

    def __init__(self, is_fused=True):
        super().__init__()
        self.is_fused = is_fused

    def forward(self, x):
        query = x.reshape(B, T, H, D).transpose(1, 2)
        if self.is_fused:
            return F.scaled_dot_product_attention(query, query, query, is_causal=True)
        scores = torch.matmul(query, query.transpose(2, 3)) / math.sqrt(D)
        allowed = torch.ones(T, T, dtype=torch.bool).tril()
        return torch.matmul(scores.masked_fill(~allowed, -math.inf).softmax(-1), query)


def example():
    return torch.randn(B, T, H * D, generator=torch.Generator().manual_seed(2)).double()


def run(model, error_model, **selection):
    session = inject(model, error_model, seed=SEED, draw=DRAW, **selection)
    session.name_samples(["a", "b"])
    leaf = example().requires_grad_()
    with session:
        result = model(leaf)
        result.cos().sum().backward()
    return result.detach(), leaf.grad, session


def head_rows():
    """Samples, positions and channels of scores [B, H, T, S]: a channel per head and key."""
    named = named_rows(["a", "b"], T)
    rows = [named[b * T + t] for b in range(B) for _ in range(H) for t in range(T)]
    return rows, [h << 22 for _ in range(B) for h in range(H) for _ in range(T)]


def test_noise_of_the_scores_is_added_before_scale_and_mask():
    result, _, session = run(
        OneOperator(Attention()), RelativeGaussian(0.1), operators="matmul", modules="op"
    )
    assert fired(session) == {"op:matmul:0": 1, "op:matmul:1": 1}
    query = example().reshape(B, T, H, D).transpose(1, 2)
    rows, first = head_rows()
    scores = query @ query.transpose(2, 3)
    scores = scores * (
        1 + 0.1 * normals("op:matmul:0", rows, T, first).reshape(B, H, T, T) * scores.sign()
    )
    allowed = torch.ones(T, T, dtype=torch.bool).tril()
    weights = (scores / math.sqrt(D)).masked_fill(~allowed, -math.inf).softmax(-1)
    context = weights @ query
    first = [f // (1 << 22) * D for f in first]
    noise = normals("op:matmul:1", rows, D, first).reshape(B, H, T, D)
    expected = context + 0.1 * context.abs() * noise
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("error_model", [RelativeGaussian(0.3), AbsoluteGaussian(0.3)])
def test_noisy_probabilities_sum_to_one_and_show_nothing_that_is_masked(error_model):
    seen = []

    class Watched(Attention):
        def forward(self, x):
            # With the identity for values the context is the probabilities themselves.
            query = x.reshape(B, T, H, D).transpose(1, 2)
            identity = torch.eye(T, dtype=x.dtype).expand(B, H, T, T)
            result = F.scaled_dot_product_attention(query, query, identity, is_causal=True)
            seen.append(result.detach())
            return result

    model = OneOperator(Watched())
    clean = model(example())
    _, _, session = run(model, error_model, operators="softmax")
    above = ~torch.ones(T, T, dtype=torch.bool).tril()
    assert seen[1][..., above].eq(0).all()
    assert seen[1].min() >= 0
    torch.testing.assert_close(seen[1].sum(-1), torch.ones(B, H, T, dtype=torch.float64))
    dose = session.dose()
    change = (seen[1] - clean).norm() / clean.norm()
    assert dose.relative_l2 == pytest.approx(float(change), rel=1e-6)
    assert dose.asked_relative_l2 == pytest.approx(float(change), rel=1e-6)
    assert dose.elements == B * H * T * T


@pytest.mark.parametrize("operator", ["matmul", "softmax"])
@pytest.mark.parametrize("phases", ["forward", "backward"])
def test_fused_and_written_out_attention_meet_the_same_noise_both_ways(operator, phases):
    options = {"operators": operator, "phases": phases}
    fused, fused_grad, one = run(OneOperator(Attention()), RelativeGaussian(0.1), **options)
    eager, eager_grad, other = run(OneOperator(Attention(False)), RelativeGaussian(0.1), **options)
    torch.testing.assert_close(fused, eager)
    torch.testing.assert_close(fused_grad, eager_grad)
    assert one.counts == other.counts


def test_attention_without_a_selected_site_stays_fused_to_the_last_bit():
    model = OneOperator(Attention())
    clean = model(example())
    session = inject(model, RelativeGaussian(0.1), operators="linear")
    session.attest = False
    with session:
        assert torch.equal(model(example()), clean)
    assert [line.fused for line in session.coverage()] == [2, 1]


@pytest.mark.parametrize("phases", ["forward", "backward", ("forward", "backward")])
def test_scale_0_leaves_attention_fused_and_counts_as_if_it_were_not(phases):
    model = OneOperator(Attention())
    leaf = example().requires_grad_()
    clean = model(leaf)
    clean.cos().sum().backward()
    result, grad, session = run(model, RelativeGaussian(0.0), phases=phases)
    _, _, noisy = run(model, RelativeGaussian(0.1), phases=phases)
    assert torch.equal(result, clean)
    assert torch.equal(grad, leaf.grad)
    assert session.counts == noisy.counts
