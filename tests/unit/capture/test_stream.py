"""Streamed statistics against numpy and scipy on all the values at once."""

import numpy as np
import pytest
import torch
from scipy import stats

from noisescope.capture.histogram import BINS, RELATIVE_ERROR, bin_edges
from noisescope.capture.rows import Labels
from noisescope.capture.stream import Stream
from noisescope.errors import InputError

CPU = torch.device("cpu")


def labels_of(count):
    return Labels(torch.ones(count, dtype=torch.bool), torch.zeros(count, 4, dtype=torch.int64))


def streamed(x, parts=1):
    stream = Stream(x.shape[1], CPU)
    for part in torch.tensor_split(x, parts):
        stream.update(part, labels_of(len(part)))
    return stream.statistics()


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def lower_quantile(x, q):
    return np.quantile(np.abs(x), q, axis=0, method="inverted_cdf")


@pytest.mark.parametrize("parts", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_statistics_are_those_of_all_values_at_once(dtype, parts):
    x = (normal(200, 6) ** 3 * torch.logspace(-2, 2, 6) + 1).to(dtype)
    found, exact = streamed(x, parts), x.double().numpy()
    assert found.tokens == 200
    assert found.count.tolist() == [200] * 6
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.rms, np.sqrt((exact**2).mean(0)), rtol=1e-12)
    np.testing.assert_allclose(found.mean_abs, np.abs(exact).mean(0), rtol=1e-12)
    np.testing.assert_array_equal(found.max_abs, np.abs(exact).max(0))
    np.testing.assert_allclose(found.kurtosis, stats.kurtosis(exact, fisher=False), rtol=1e-10)


def test_a_large_mean_does_not_drown_a_small_spread():
    x = 1e6 + normal(5000, 3)
    expected = stats.kurtosis(x.numpy(), fisher=False)
    np.testing.assert_allclose(streamed(x, parts=50).kurtosis, expected, rtol=1e-6)


def test_a_call_of_many_parts_is_one_call(monkeypatch):
    x = normal(100, 5)
    whole = streamed(x)
    monkeypatch.setattr("noisescope.capture.stream._PART_CPU", 35)
    apart = streamed(x)
    np.testing.assert_allclose(apart.kurtosis, whole.kurtosis, rtol=1e-12)
    np.testing.assert_array_equal(apart.magnitudes, whole.magnitudes)
    np.testing.assert_array_equal(apart.peaks.value_PC, whole.peaks.value_PC)


@pytest.mark.parametrize("q", [0.0, 0.01, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e5])
def test_quantiles_keep_their_documented_error(scale, q):
    x = normal(3000, 4) * scale
    np.testing.assert_allclose(
        streamed(x, 7).quantile(q), lower_quantile(x.numpy(), q), rtol=RELATIVE_ERROR + 1e-9
    )


def test_a_quantile_is_the_least_value_whose_rank_reaches_the_share():
    found = streamed(torch.tensor([[1.0], [-2.0], [4.0], [8.0]]))
    exact = [1, 1, 2, 4, 8, 8]
    near = [found.quantile(q)[0] for q in (0, 0.25, 0.5, 0.6, 0.76, 1)]
    assert near == pytest.approx(exact, rel=RELATIVE_ERROR)


def test_quantiles_beyond_the_bins_are_zero_and_the_largest():
    x = torch.tensor([[0.0, 1e-9, 3e8], [0.0, 2e-9, 5e8], [0.0, 1e-9, 4e8]])
    assert streamed(x).quantile(0.5).tolist() == [0.0, 0.0, 5e8]


def test_bins_hold_what_their_ends_say():
    edges = torch.tensor(bin_edges()[1:])
    stream = Stream(1, CPU)
    stream.update(edges[:, None], labels_of(len(edges)))
    assert stream.magnitudes_CK[0].tolist() == [0] + [1] * (BINS - 1)
    ratios = bin_edges()[2:] / bin_edges()[1:-1]
    assert ratios.max() == pytest.approx((1 + RELATIVE_ERROR) ** 2, rel=1e-12)


@pytest.mark.parametrize("q", [-0.1, 1.5, float("nan"), "median", True])
def test_a_quantile_that_is_none_is_refused(q):
    with pytest.raises(InputError, match=r"give one number from 0 to 1"):
        streamed(normal(3, 2)).quantile(q)


@pytest.mark.parametrize("parts", [1, 5])
def test_nan_and_infinity_are_counted_and_spoil_nothing(parts):
    x = normal(50, 3)
    spoiled = x.clone()
    spoiled[3, 0], spoiled[17, 0], spoiled[20, 2] = torch.nan, torch.inf, -torch.inf
    found = streamed(spoiled, parts)
    rest = np.delete(x[:, 0].numpy(), [3, 17])
    assert found.nonfinite.tolist() == [2, 0, 1]
    assert found.count.tolist() == [48, 50, 49]
    assert found.mean[0] == pytest.approx(rest.mean())
    assert found.max_abs[0] == np.abs(rest).max()
    assert found.kurtosis[0] == pytest.approx(stats.kurtosis(rest, fisher=False))
    assert found.quantile(1.0)[0] == pytest.approx(np.abs(rest).max(), rel=RELATIVE_ERROR)


def test_a_channel_without_a_finite_value_is_nan_and_the_others_are_not():
    x = normal(8, 2)
    x[:, 1] = torch.nan
    found = streamed(x)
    for name in ("mean", "rms", "mean_abs", "max_abs", "kurtosis"):
        assert np.isnan(getattr(found, name)).tolist() == [False, True], name
    assert np.isnan(found.quantile(0.5)).tolist() == [False, True]
    assert np.isfinite(found.typical_magnitude())


def test_one_value_has_a_mean_and_no_kurtosis():
    found = streamed(torch.tensor([[2.0, -3.0]]))
    assert found.mean.tolist() == [2.0, -3.0]
    assert np.isnan(found.kurtosis).all()


def test_a_constant_has_no_kurtosis_though_its_mean_is_rounded():
    assert np.isnan(streamed(torch.full((77, 2), 0.1, dtype=torch.float64), parts=9).kurtosis).all()


def test_typical_magnitude_is_of_all_channels_and_passes_over_zeros():
    x = normal(500, 8)
    expected = lower_quantile(x.numpy().reshape(-1, 1), 0.5)[0]
    assert streamed(x).typical_magnitude() == pytest.approx(expected, rel=RELATIVE_ERROR)
    x[:, :6] = 0  # as behind a ReLU
    expected = lower_quantile(x[:, 6:].numpy().reshape(-1, 1), 0.5)[0]
    assert streamed(x).typical_magnitude() == pytest.approx(expected, rel=RELATIVE_ERROR)
    assert np.isnan(streamed(torch.zeros(4, 2)).typical_magnitude())


def tensors_in(thing):
    if isinstance(thing, torch.Tensor):
        return [thing]
    inner = vars(thing).values() if hasattr(thing, "__dict__") else ()
    return [t for value in inner for t in tensors_in(value)]


@pytest.mark.parametrize(("least", "count"), [(0.5, 4), (2.1, 3), (2.2, 2), (9, 0), (np.inf, 0)])
def test_values_that_reach_a_magnitude_are_counted_to_the_width_of_a_bin(least, count):
    assert streamed(torch.tensor([[1.0], [-2.0], [4.0], [8.0]])).count_above(least, 0) == count


def test_memory_does_not_grow_with_batches():
    stream, sizes = Stream(16, CPU), []
    for batch in range(50):
        stream.update(normal(20, 16, seed=batch), labels_of(20))
        sizes.append([t.untyped_storage().nbytes() for t in tensors_in(stream)])
    assert len(sizes[0]) == 12
    assert sizes[0] == sizes[-1]


def test_statistics_asked_for_stay_as_they_were():
    stream = Stream(2, CPU)
    stream.update(normal(5, 2), labels_of(5))
    early = stream.statistics()
    before = early.magnitudes.sum(), early.nonfinite.sum(), early.max_abs.copy()
    stream.update(normal(5, 2, seed=1) * 100, labels_of(5))
    assert (early.magnitudes.sum(), early.nonfinite.sum()) == before[:2]
    np.testing.assert_array_equal(early.max_abs, before[2])
