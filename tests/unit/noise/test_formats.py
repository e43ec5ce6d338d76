"""Formats: names, scales by an independent computation, reference figures, and two libraries."""

import math
import warnings

import ml_dtypes
import numpy as np
import pytest
import torch
from scipy import integrate, stats

from noisescope.errors import InputError
from noisescope.noise import (
    ELEMENTS,
    PRESETS,
    Format,
    flat_address,
    formats,
    make_format,
    random_words,
)

EVERY = [
    *PRESETS,
    *("bf16", "fp16", "fp8_e4m3", "fp8_e4m3_cast", "fp8_e5m2_tensor", "fp6_e2m3", "fp4_e2m1_g16"),
    *("int8", "int8_tensor", "int8_asym", "int4", "int4_g32_asym", "int4_tensor_asym", "int2_g16"),
]
SCALED = [name for name in EVERY if make_format(name).scale != "none"]
NO_TENSOR_SCALE = Format("nvfp4 without its tensor scale", ELEMENTS["fp4_e2m1"], "e4m3", 16)


def normals(rows, width, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def heavy(rows, width, seed=0):
    """Returns values over many binades."""
    return normals(rows, width, seed) * torch.exp(2 * normals(rows, width, seed + 1))


def relative_mse(rounded, x):
    return float((rounded - x).double().square().sum() / x.double().square().sum())


# Names.


@pytest.mark.parametrize(
    ("name", "element", "scale", "block", "is_per_tensor", "is_asymmetric"),
    [
        ("bf16", "bf16", "none", None, False, False),
        ("fp16_cast", "fp16", "none", None, False, False),
        ("fp8_e4m3", "fp8_e4m3", "float32", None, False, False),
        ("fp8_e5m2_cast", "fp8_e5m2", "none", None, False, False),
        ("fp8_e4m3_tensor", "fp8_e4m3", "float32", None, True, False),
        ("fp6_e3m2", "fp6_e3m2", "float32", None, False, False),
        ("int8", "int8", "float32", None, False, False),
        ("int8_asym", "int8", "float32", None, False, True),
        ("int4", "int4", "float32", 128, False, False),
        ("int4_g32_asym", "int4", "float32", 32, False, True),
        ("int2", "int2", "float32", 128, False, False),
        ("mxfp8", "fp8_e4m3", "e8m0_floor", 32, False, False),
        ("mxfp6", "fp6_e2m3", "e8m0_floor", 32, False, False),
        ("mxfp6_e3m2_ceil", "fp6_e3m2", "e8m0_ceil", 32, False, False),
        ("mxfp4", "fp4_e2m1", "e8m0_floor", 32, False, False),
        ("nvfp4", "fp4_e2m1", "e4m3_tensor", 16, False, False),
    ],
)
def test_names(name, element, scale, block, is_per_tensor, is_asymmetric):
    expected = Format(name, ELEMENTS[element], scale, block, is_per_tensor, is_asymmetric)
    assert make_format(name) == expected
    assert make_format(name).name == name


def test_two_names_of_one_format_are_equal():
    assert make_format("mxfp8") == make_format("mxfp8_e4m3")
    assert make_format("int4") == make_format("int4_g128")
    assert make_format("int4") != make_format("int4_g64")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nvfp", "needed; did you mean 'nvfp4'"),
        ("NVFP4", "needed; did you mean 'nvfp4'"),
        ("fp8", "needed; did you mean 'fp8_e5m2' or 'fp8_e4m3'"),
        ("int9", "ELEMENT.* or int2 to int8; or nvfp4; .* did you mean 'int"),
        ("int4_g0", "is needed"),
        ("int4_asym_g32", "is needed"),
        ("", "is needed"),
        (None, "^format None: "),
        (["nvfp4"], "is needed"),
        ("int4_cast", "^format 'int4_cast': integers need a scale; try int4_channel or int4_g128$"),
        ("bf16_g32", "^format 'bf16_g32': bf16 has no scale; try bf16$"),
        ("fp4_e2m1_asym", "only integers have zero points; leave _asym out$"),
        ("nvfp4\n", "is needed"),
    ],
)
def test_other_names_are_refused_in_one_line(name, message):
    with pytest.raises(InputError, match=message) as caught:
        make_format(name)
    assert "\n" not in str(caught.value)


# Bits.


@pytest.mark.parametrize(
    ("name", "out", "in_", "expected"),
    [
        ("bf16", 64, 64, 16),
        ("mxfp4", 4096, 4096, 4.25),
        ("mxfp6", 4096, 4096, 6.25),
        ("mxfp8_e5m2", 4096, 4096, 8.25),
        ("nvfp4", 4096, 4096, 4.5 + 32 / 4096**2),
        ("nvfp4", 3, 20, (3 * 20 * 4 + 3 * 2 * 8 + 32) / 60),
        ("mxfp4", 3, 33, (3 * 33 * 4 + 3 * 2 * 8) / 99),
        ("int4", 4096, 4096, 4 + 32 / 128),
        ("int4_asym", 4096, 4096, 4 + (32 + 4) / 128),
        ("int8", 10, 64, 8 + 32 / 64),
        ("int8_asym", 10, 64, 8 + 40 / 64),
        ("fp8_e4m3_tensor", 10, 64, 8 + 32 / 640),
        ("fp8_e4m3_cast", 10, 64, 8),
    ],
)
def test_bits_count_the_scales(name, out, in_, expected):
    assert make_format(name).bits(out, in_) == pytest.approx(expected, rel=1e-12)


# Scales, by an independent computation: numpy, its dtypes, and a loop.


def in_numpy(name, block):
    """Returns what a format makes of one block of a row, or of one row, by numpy."""
    float4, e4m3 = ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn
    absmax = np.abs(block).max()
    if name == "int4_asym":
        low, high = min(block.min(), 0), max(block.max(), 0)
        scale = np.float32(high - low) / np.float32(15)
        zero = np.rint(-low / scale)
        code = np.clip(np.rint(block / scale) + zero, 0, 15)
        return (code - zero) * scale
    if name == "int8":
        scale = absmax / np.float32(127)
        return np.clip(np.rint(block / scale), -127, 127) * scale
    if name == "fp8_e4m3":
        scale = absmax / np.float32(448)
        return np.clip(block / scale, -448, 448).astype(e4m3).astype(np.float32) * scale
    exponent = math.floor(math.log2(absmax)) - 2
    if name == "mxfp4_ceil":
        exponent = math.ceil(math.log2(float(absmax) / 6))
    scale = np.float32(2.0**exponent)
    return np.clip(block / scale, -6, 6).astype(float4).astype(np.float32) * scale


@pytest.mark.parametrize(
    ("name", "block"),
    [("mxfp4", 32), ("mxfp4_ceil", 32), ("int4_asym", 128), ("int8", 300), ("fp8_e4m3", 300)],
)
def test_blocks_are_those_of_an_independent_computation(name, block):
    x = heavy(20, 300)
    x[3] = x[3].abs()
    found = make_format(name).round(x, is_weight=True)
    for row, rounded in zip(x.numpy(), found, strict=True):
        parts = [in_numpy(name, row[b : b + block]) for b in range(0, 300, block)]
        assert np.array_equal(np.concatenate(parts), rounded.numpy())


@pytest.mark.parametrize("is_weight", [True, False])
def test_nvfp4_is_that_of_an_independent_computation(is_weight):
    x = heavy(20, 40).numpy()
    whole = np.abs(x).max(axis=None if is_weight else 1)
    tensor_R = np.broadcast_to(whole / np.float32(448 * 6), 20)
    expected = np.empty_like(x)
    for r, row in enumerate(x):
        for block in (slice(0, 16), slice(16, 32), slice(32, 40)):
            stored = (np.abs(row[block]).max() / np.float32(6) / tensor_R[r]).astype(
                ml_dtypes.float8_e4m3fn
            )
            scale = np.float32(stored) * tensor_R[r]
            steps = np.clip(row[block] / (scale or np.float32(1)), -6, 6)
            expected[r, block] = steps.astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * scale
    found = make_format("nvfp4").round(torch.from_numpy(x), is_weight=is_weight)
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("exponent", [-140, -127, -120, 100, 126])
@pytest.mark.parametrize("name", ["mxfp4", "mxfp4_ceil", "mxfp8", "nvfp4", "fp8_e4m3", "int8"])
def test_the_ends_of_float32_stay_finite(name, exponent):
    x = (normals(4, 64).clamp(-1, 1).double() * 2.0**exponent).float()
    rounded = make_format(name).round(x, is_weight=True)
    assert rounded.isfinite().all()
    assert relative_mse(rounded, x) < (0.03 if exponent > -120 else 1.1)


@pytest.mark.parametrize("name", ["mxfp4", "mxfp6", "mxfp6_e3m2", "mxfp8", "mxfp8_e5m2"])
def test_a_ceil_scale_saturates_nothing_and_a_floor_scale_does(name):
    x = normals(4000, 32)
    element = make_format(name).element
    absmax = x.abs().amax(dim=1)
    half_step = 2.0 ** (element.top_exponent - element.mantissa_bits - 1)
    lost = {}
    for suffix, scale in (
        ("_ceil", torch.exp2((absmax / element.largest).log2().ceil())),
        ("", torch.exp2(absmax.log2().floor() - element.top_exponent)),
    ):
        top = make_format(name + suffix).round(x, is_weight=True).abs().amax(dim=1)
        lost[suffix] = ((absmax - top) / scale).max()
    assert lost["_ceil"] <= half_step
    beyond = 2.0 ** (element.top_exponent + 1) - element.largest
    assert 0.8 * beyond < lost[""] < beyond
    assert beyond > half_step


@pytest.mark.parametrize("name", ["mxfp4", "mxfp6", "mxfp6_e3m2", "mxfp8", "mxfp8_e5m2"])
@pytest.mark.parametrize("exponent", [-127, -126, 0, 5, 112])
def test_values_at_an_exact_scale_stay(name, exponent):
    """Whose largest is just the element's largest, down to the smallest scale there is."""
    element = make_format(name).element
    values = element.decode(torch.arange(2**element.bits)).double()
    values = values[values.isfinite()]
    held = (values * 2.0**exponent).float().double() == values * 2.0**exponent
    x = torch.zeros(int(held.sum()), 32)
    x[:, 0] = element.largest * 2.0**exponent
    x[:, 1] = (values[held] * 2.0**exponent).float()
    assert len(x) > 10
    for suffix in ("", "_ceil"):
        assert torch.equal(make_format(name + suffix).round(x, is_weight=True), x)


# The figures of the reference.


def cast_error_of_a_normal(element):
    """Returns E (round(z) - z)^2 of z ~ N(0, 1), exactly: a sum of integrals between midpoints."""
    values = ELEMENTS[element].decode(torch.arange(2 ** ELEMENTS[element].bits)).double()
    values = (values[values.isfinite() & (values.abs() < 40)] + 0.0).unique().numpy()
    edges = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
    # Moments 0, 1, 2 of N(0, 1) between edges, from the tail that keeps their digits.
    sign = np.where(values > 0, -1.0, 1.0)
    low, high = (
        np.where(values > 0, -edges[1:], edges[:-1]),
        np.where(values > 0, -edges[:-1], edges[1:]),
    )
    mass = stats.norm.cdf(high) - stats.norm.cdf(low)
    first = stats.norm.pdf(low) - stats.norm.pdf(high)
    ends = [np.where(np.isfinite(e), e, 0.0) * stats.norm.pdf(e) for e in (low, high)]
    second = mass + ends[0] - ends[1]
    return float((second - 2 * sign * values * first + values**2 * mass).sum())


@pytest.mark.parametrize(("name", "expected"), [("fp8_e4m3", 7.045e-4), ("fp8_e5m2", 2.791e-3)])
def test_casts_of_normals_have_the_errors_of_the_reference_by_moments(name, expected):
    assert cast_error_of_a_normal(name) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fp16", 4.314e-8),
        ("bf16", 2.761e-6),
        ("fp8_e4m3_cast", 7.045e-4),
        ("fp8_e5m2_cast", 2.791e-3),
    ],
)
def test_casts_of_normals_have_the_errors_of_the_reference(name, expected):
    """By quadrature: the error at a dense grid of values, weighted by their density."""
    z = torch.linspace(-8, 8, 2**20 + 1, dtype=torch.float64).float()
    error = (make_format(name).round(z[None], is_weight=True)[0].double() - z.double()).square()
    found = integrate.trapezoid(error.numpy() * stats.norm.pdf(z.double().numpy()), z.double())
    assert found == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("int8_g32", 4096, 2.86e-5),
        ("int8_g128", 4096, 4.18e-5),
        ("int8_g1024", 4096, 6.19e-5),
        ("int8_g4096", 4096, 7.55e-5),
        ("int8_channel", 4096, 7.55e-5),
        ("int4_g16", 4096, 7.26e-3),
        ("int4_g32", 4096, 9.41e-3),
        ("int4_g128", 4096, 1.38e-2),
        ("mxfp4", 4096, 1.322e-2),
        ("nvfp4", 4096, 9.05e-3),
        ("mxfp8", 4096, 8.62e-4),
    ],
)
def test_formats_of_normals_have_the_errors_of_the_reference(name, width, expected):
    x = normals(2**22 // width, width)
    rounded = make_format(name).round(x, is_weight=True)
    assert relative_mse(rounded, x) == pytest.approx(expected, rel=0.01)


def test_mxfp4_with_ceil_scale_and_stochastic_rounding_has_the_error_of_the_reference():
    x = normals(2**9, 4096)
    words = random_words(flat_address(0, 0, 0, len(x)), 4096, stream=1)
    rounded = make_format("mxfp4_ceil").round(x, is_weight=True, words=lambda: words)
    assert relative_mse(rounded, x) == pytest.approx(2.711e-2, rel=0.01)
    known = make_format("mxfp4_ceil").mean_square(x, is_weight=True, is_stochastic=True)
    assert float(known.double().mean() / x.double().square().mean()) == pytest.approx(
        2.711e-2, rel=0.01
    )


def test_nvfp4_without_its_tensor_scale_zeroes_small_weights():
    """No scale lies below 2**-6, so what lies below a quarter of it is lost: P(|z| < 0.195)."""
    x = 0.02 * normals(2**10, 2**10)
    zeroed = float((NO_TENSOR_SCALE.round(x, is_weight=True) == 0).double().mean())
    assert zeroed == pytest.approx(0.155, rel=0.01)
    assert zeroed == pytest.approx(2 * stats.norm.cdf(2.0**-8 / 0.02) - 1, rel=0.01)
    kept = float((make_format("nvfp4").round(x, is_weight=True) == 0).double().mean())
    assert kept < 0.08


# What shares a scale, and what does not.


@pytest.mark.parametrize("name", SCALED)
def test_zeros_stay_zeros(name):
    x = normals(4, 160)
    x[1] = 0
    x[2, 32:64] = 0
    x[3, ::3] = -0.0
    rounded = make_format(name).round(x, is_weight=True)
    assert (rounded[x == 0] == 0).all()
    assert rounded.isfinite().all()
    assert make_format(name).round(torch.zeros(2, 40), is_weight=True).eq(0).all()


@pytest.mark.parametrize("name", [n for n in SCALED if make_format(n).block])
def test_a_block_changes_no_other(name):
    chosen = make_format(name)
    block = chosen.block
    x = normals(3, 3 * block + 5)
    x[2, -1] = 30.0  # sets the scale of the tensor, where there is one
    y = x.clone()
    y[1, block : 2 * block] *= 7
    changed = chosen.round(x, is_weight=True) != chosen.round(y, is_weight=True)
    assert changed[1, block : 2 * block].any()
    changed[1, block : 2 * block] = False
    assert not changed.any()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_an_infinity_or_nan_spoils_no_other_element(name, value):
    chosen = make_format(name)
    x = normals(4, 70)
    x[1, 5] = 0  # what stands for it has no say in the scales
    expected = chosen.round(x, is_weight=True)
    x[1, 5] = value
    rounded = chosen.round(x, is_weight=True)
    if math.isnan(value):
        assert rounded[1, 5].isnan()
    elif name in ("bf16", "fp16"):
        assert rounded[1, 5] == value
    else:
        assert rounded[1, 5].isfinite()
        if chosen.scale != "none" and not chosen.is_asymmetric:
            assert rounded[1, 5].sign() == math.copysign(1, value)
    rounded[1, 5] = expected[1, 5]
    assert torch.equal(rounded, expected)


@pytest.mark.parametrize("name", EVERY)
def test_a_short_last_block_is_a_block_of_its_own(name):
    chosen, x = make_format(name), heavy(4, 261)
    block = chosen.block or 261
    words = random_words(flat_address(0, 0, 0, 4), 261)
    for given in (None, lambda: words):
        whole = chosen.round(x, is_weight=False, words=given)
        assert whole.shape == x.shape
        if chosen.scale == "e4m3_tensor":
            continue
        for b in range(0, 261, block):
            part_words = None if given is None else lambda b=b: words[:, b : b + block]
            part = chosen.round(x[:, b : b + block], is_weight=False, words=part_words)
            assert torch.equal(part, whole[:, b : b + block])


@pytest.mark.parametrize("name", EVERY)
def test_activations_do_not_depend_on_their_company(name):
    x = heavy(8, 96)
    together = make_format(name).round(x, is_weight=False)
    alone = torch.cat([make_format(name).round(row[None], is_weight=False) for row in x])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("name", EVERY)
def test_weights_share_a_scale_only_in_formats_with_one_for_the_tensor(name):
    chosen, x = make_format(name), normals(8, 96)
    x[7] *= 100
    alone = torch.cat([chosen.round(row[None], is_weight=True) for row in x])
    is_shared = chosen.is_per_tensor or chosen.scale == "e4m3_tensor"
    assert torch.equal(chosen.round(x, is_weight=True), alone) != is_shared
    assert torch.equal(chosen.round(x, is_weight=False), alone)


@pytest.mark.parametrize("name", ["nvfp4", "int8_tensor", "int4_tensor_asym", "mxfp4", "int8"])
def test_pieces_give_the_bits_of_the_whole(name, monkeypatch):
    chosen, x = make_format(name), heavy(50, 70)
    words = random_words(flat_address(0, 0, 0, 50), 70)
    for is_weight in (True, False):
        for given in (None, lambda: words):
            whole = chosen.round(x, is_weight=is_weight, words=given)
            monkeypatch.setattr(formats, "_ELEMENTS_AT_ONCE", 200)
            assert torch.equal(chosen.round(x, is_weight=is_weight, words=given), whole)
            monkeypatch.undo()


@pytest.mark.parametrize("name", EVERY)
def test_rounding_leaves_its_input_and_empty_tensors_alone(name):
    x = normals(3, 40)
    kept = x.clone()
    make_format(name).round(x, is_weight=True)
    make_format(name).mean_square(x, is_weight=True, is_stochastic=True)
    assert torch.equal(x, kept)
    for shape in ((0, 5), (5, 0), (0, 0)):
        assert make_format(name).round(torch.zeros(shape), is_weight=True).shape == shape


@pytest.mark.parametrize("name", EVERY)
def test_rounding_twice_is_rounding_once(name):
    """To the last bit of float32: the largest value of a block may move its scale by one."""
    chosen = make_format(name)
    once = chosen.round(normals(16, 256), is_weight=True)
    if chosen.is_asymmetric:  # its range shrinks to whole steps, and the scale with it
        once = chosen.round(once, is_weight=True)
    twice = chosen.round(once, is_weight=True)
    if name == "nvfp4" or chosen.scale == "e8m0_ceil" or chosen.is_asymmetric:
        assert relative_mse(twice, once) < 1e-2
    else:
        torch.testing.assert_close(twice, once, rtol=3e-7, atol=0)


# Stochastic rounding.


@pytest.mark.parametrize(
    "name", ["nvfp4", "mxfp4_ceil", "int4_g32", "int4_g32_asym", "int8", "fp8_e4m3"]
)
def test_stochastic_rounding_has_the_mean_and_the_spread_it_says(name):
    chosen, x = make_format(name), normals(4, 64)
    repeats = 4000
    words = random_words(flat_address(0, 0, 0, 4 * repeats), 64, stream=1)
    many = x.repeat(repeats, 1)
    # As activations: every row has a scale of its own, so the copies are alike.
    rounded = chosen.round(many, is_weight=False, words=lambda: words).double()
    errors = (rounded - many).reshape(repeats, 4, 64)
    known = chosen.mean_square(x, is_weight=False, is_stochastic=True).double()
    largest = chosen.round(x, is_weight=False).abs().amax()
    # A rounded scale, or a rounded zero point, lets the ends of a block saturate.
    blocks = x.reshape(4, -1, chosen.block or 64)
    low, high = (0.8 * end(dim=2, keepdim=True) for end in (blocks.amin, blocks.amax))
    is_inside = ((low < blocks) & (blocks < high)).reshape(4, 64)
    assert is_inside.double().mean() > 0.6
    standard_error = (known / repeats).sqrt()
    bias = errors.mean(dim=0).abs() - 5 * standard_error - 1e-6 * largest
    assert (bias[is_inside] <= 0).all()
    ratio = errors.square().mean(dim=0).sum() / known.sum()
    assert ratio == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("name", EVERY)
def test_the_mean_square_to_nearest_is_the_error_itself(name):
    x = heavy(5, 100)
    chosen = make_format(name)
    error = chosen.round(x, is_weight=True) - x
    found = chosen.mean_square(x, is_weight=True, is_stochastic=False)
    assert torch.equal(found, error.square())


# Kept libraries.


@pytest.fixture(scope="module")
def torchao_mx(engines):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torchao.prototype.mx_formats.mx_tensor", reason="no torchao")


@pytest.fixture(scope="module")
def torchao_nvfp4(engines):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor", reason="no torchao")


@pytest.fixture(scope="module")
def compressed_tensors(engines):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("compressed_tensors.quantization", reason="not installed")


@pytest.mark.parametrize("mode", ["FLOOR", "RCEIL"])
@pytest.mark.parametrize(
    ("name", "element"),
    [
        ("mxfp8", torch.float8_e4m3fn),
        ("mxfp8_e5m2", torch.float8_e5m2),
        ("mxfp6", "DTYPE_FP6_E2M3"),
        ("mxfp6_e3m2", "DTYPE_FP6_E3M2"),
        ("mxfp4", torch.float4_e2m1fn_x2),
    ],
)
def test_mx_formats_are_torchaos_to_the_last_bit(torchao_mx, name, element, mode):
    x = heavy(256, 512)
    element = getattr(torchao_mx, element) if isinstance(element, str) else element
    scaling_mode = getattr(torchao_mx.ScaleCalculationMode, mode)
    theirs = torchao_mx.MXTensor.to_mx(x, element, 32, scaling_mode=scaling_mode)
    ours = make_format(name if mode == "FLOOR" else f"{name}_ceil").round(x, is_weight=True)
    assert torch.equal(ours, theirs.dequantize(torch.float32))


def test_nvfp4_is_torchaos_to_the_last_bit(torchao_nvfp4):
    x = heavy(256, 512)
    scale = torchao_nvfp4.per_tensor_amax_to_scale(x.abs().max())
    theirs = torchao_nvfp4.NVFP4Tensor.to_nvfp4(x, 16, per_tensor_scale=scale)
    ours = make_format("nvfp4").round(x, is_weight=True)
    assert torch.equal(ours, theirs.dequantize(torch.float32))
    x *= 0.02 / x.square().mean().sqrt()
    theirs = torchao_nvfp4.NVFP4Tensor.to_nvfp4(x, 16)
    assert torch.equal(NO_TENSOR_SCALE.round(x, is_weight=True), theirs.dequantize(torch.float32))


def test_nvfp4_keeps_blocks_that_torchao_does_not(torchao_nvfp4):
    """A block far below the tensor's largest value: E4M3 has subnormal scales for it."""
    x = normals(2, 32)
    x[1] *= 4e-6
    scale = torchao_nvfp4.per_tensor_amax_to_scale(x.abs().max())
    theirs = torchao_nvfp4.NVFP4Tensor.to_nvfp4(x, 16, per_tensor_scale=scale)
    theirs = theirs.dequantize(torch.float32)
    ours = make_format("nvfp4").round(x, is_weight=True)
    assert torch.equal(ours[0], theirs[0])
    assert relative_mse(ours[1], x[1]) < 0.1 < relative_mse(theirs[1], x[1])


def fake_quantized(library, x, group, scale=None, **arguments):
    """Returns what compressed-tensors makes of a matrix, with its scales or a given one."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    args = library.QuantizationArgs(**arguments)
    blocks = x.reshape(len(x), -1, group)
    own, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args)
    return fake_quantize(x, own if scale is None else scale, zero, args)


def test_fp8_per_channel_is_compressed_tensors_to_the_last_bit(compressed_tensors):
    x = heavy(64, 256)
    theirs = fake_quantized(
        compressed_tensors, x, 256, num_bits=8, type="float", strategy="channel"
    )
    assert torch.equal(make_format("fp8_e4m3").round(x, is_weight=True), theirs)


def test_asymmetric_int4_is_compressed_tensors_to_the_last_bit(compressed_tensors):
    x = normals(64, 256)
    theirs = fake_quantized(
        compressed_tensors,
        x,
        128,
        num_bits=4,
        strategy="group",
        group_size=128,
        symmetric=False,
    )
    assert torch.equal(make_format("int4_asym").round(x, is_weight=True), theirs)


@pytest.mark.parametrize(("name", "bits", "group"), [("int4", 4, 128), ("int8_g64", 8, 64)])
def test_symmetric_integers_are_compressed_tensors_but_for_the_scale(
    compressed_tensors, name, bits, group
):
    """Their range is lopsided (-8 to 7) and its half, 7.5, divides; ours is -7 to 7."""
    x = normals(64, 256)
    arguments = {"num_bits": bits, "strategy": "group", "group_size": group}
    scale = x.reshape(64, -1, group).abs().amax(-1) / (2 ** (bits - 1) - 1)
    ours = make_format(name).round(x, is_weight=True)
    same_scale = fake_quantized(compressed_tensors, x, group, scale, **arguments)
    assert torch.equal(ours, same_scale)
    assert not torch.equal(ours, fake_quantized(compressed_tensors, x, group, **arguments))
