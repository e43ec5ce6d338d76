"""What every error model has from its base class, shown on one made here; and the tally."""

from dataclasses import dataclass

import pytest
import torch

from noisescope.noise import (
    TALLY_FIELDS,
    Address,
    ErrorModel,
    Rounding,
    flat_address,
    random_words,
    tally,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@dataclass(frozen=True)
class Uniform(ErrorModel):
    """A model that this package has not: one class and nothing else."""

    width: float
    rounding: Rounding = "nearest"

    def error(self, y_RD: torch.Tensor, at: Address) -> torch.Tensor:
        assert y_RD.dtype in (torch.float32, torch.float64)
        u = random_words(at, y_RD.shape[1]).to(y_RD.dtype) / 2**32
        return (u - 0.5) * self.width


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_new_model_needs_one_class_and_nothing_else(dtype, rounding):
    y = torch.full((64, 100), 2.0, dtype=dtype)
    at = flat_address(1, 2, 3, 64)
    noisy, told = Uniform(0.5, rounding).perturb(y, at)
    asked = random_words(at, 100).double() / 2**32 * 0.5 - 0.25
    gap = 2.0 * torch.finfo(dtype).eps + 1e-6
    assert noisy.dtype == dtype
    assert (noisy.double() - 2.0 - asked).abs().max() <= gap
    assert told[5] == pytest.approx(float(asked.square().sum()), rel=1e-5)
    assert torch.equal(y, torch.full_like(y, 2.0))


def test_the_error_is_added_before_rounding():
    """An error that is rounded first is erased: in bfloat16 1.001 is 1, and 256 + 1 goes to 256."""

    @dataclass(frozen=True)
    class AlmostOne(ErrorModel):
        rounding: Rounding = "nearest"

        def error(self, y_RD: torch.Tensor, at: Address) -> torch.Tensor:
            return torch.full_like(y_RD, 1.001)

    y = torch.full((1, 4), 256.0, dtype=torch.bfloat16)
    noisy, _ = AlmostOne().perturb(y, flat_address(0, 0, 0, 1))
    # The gap at 256 is 2: the float32 sum 257.001 is nearer to 258.
    assert (noisy == 258).all()


@pytest.mark.parametrize("shape", [(3,), (3, 4, 5), (4, 5)])
def test_a_tensor_that_does_not_fit_its_address_is_refused(shape):
    with pytest.raises(ValueError, match="with an address of 3 rows"):
        Uniform(0.1).perturb(torch.zeros(shape), flat_address(0, 0, 0, 3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tally_is_what_python_counts(dtype):
    clean = torch.tensor([[1.0, -2.0, 0.0], [4.0, 0.5, 8.0]], dtype=dtype)
    noisy = torch.tensor([[1.5, -2.0, 0.0], [3.0, 0.5, 8.0]], dtype=dtype)
    error = torch.tensor([[0.75, 0.0, 0.0], [-1.0, 0.125, 0.0]])
    told = tally(clean, noisy, error)
    assert told.dtype == torch.float64
    assert dict(zip(TALLY_FIELDS, told.tolist(), strict=True)) == {
        "elements": 6,
        "asked": 3,
        "changed": 2,
        "error_square": 0.25 + 1.0,
        "clean_square": 1 + 4 + 16 + 0.25 + 64,
        "asked_square": 0.75**2 + 1 + 0.125**2,
    }


def test_infinite_and_nan_elements_stay_out_of_the_sums():
    inf, nan = torch.inf, torch.nan
    clean = torch.tensor([1.0, inf, nan, 2.0, -inf, 3.0])
    noisy = torch.tensor([2.0, inf, nan, inf, nan, 3.0])
    # Only 1 -> 2 and 2 -> inf changed: the others had no finite value to lose.
    assert tally(clean, noisy, torch.ones(6)).tolist() == [6, 2, 2, 1, 1 + 9, 2]


def test_negative_zero_is_no_change():
    assert tally(torch.tensor([0.0]), torch.tensor([-0.0]), torch.zeros(1))[2] == 0


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_tensors(shape, dtype):
    noisy, told = Uniform(0.1, "stochastic").perturb(
        torch.zeros(shape, dtype=dtype), flat_address(0, 0, 0, shape[0])
    )
    assert noisy.shape == shape
    assert noisy.dtype == dtype
    assert told.tolist() == [0] * 6
