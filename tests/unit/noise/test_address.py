"""The address of elements: what it accepts, and the word of a site's name."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from noisescope.errors import InputError
from noisescope.noise import Address, flat_address, site_word


@pytest.mark.parametrize("field", ["seed", "draw", "site"])
@pytest.mark.parametrize("value", [-1, 2**32, 1.0, True, "1"])
def test_words_out_of_range_are_refused(field, value):
    words = {"seed": 0, "draw": 0, "site": 0} | {field: value}
    with pytest.raises(
        InputError, match=rf"^{field} .*: an integer from 0 to 4294967295 is needed"
    ):
        flat_address(**words, rows=2)


@pytest.mark.parametrize(
    "bad", [torch.zeros(3, dtype=torch.int64), torch.zeros(2), torch.zeros(2, 1, dtype=torch.int64)]
)
def test_rows_of_another_length_dtype_or_rank_are_refused(bad):
    good = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="one common length"):
        Address(0, 0, 0, good, bad, good)


def test_rows_are_those_asked_for():
    part = flat_address(1, 2, 3, rows=10).rows(4, 7)
    assert part.position_R.tolist() == [4, 5, 6]
    assert (part.seed, part.draw, part.site, len(part)) == (1, 2, 3, 3)


@pytest.mark.parametrize("name", ["seed", "draw"])
@pytest.mark.parametrize(
    "bad", [torch.zeros(3, dtype=torch.int64), torch.zeros(2), torch.zeros(2, 1, dtype=torch.int64)]
)
def test_words_by_row_of_another_length_dtype_or_rank_are_refused(name, bad):
    with pytest.raises(ValueError, match="one common length"):
        replace(flat_address(1, 2, 3, rows=2), **{name: bad})


def test_the_site_is_common_to_all_rows():
    with pytest.raises(InputError, match=r"^site tensor"):
        replace(flat_address(1, 2, 3, rows=2), site=torch.zeros(2, dtype=torch.int64))


def test_rows_take_their_own_words_along():
    at = replace(flat_address(1, 2, 3, rows=10), seed=torch.arange(10))
    part = at.rows(4, 7)
    assert part.seed.tolist() == [4, 5, 6]
    assert part.draw == 2
    other = at.rows(4, 7, seed=9, draw=torch.tensor([7, 8, 9]))
    assert (other.seed, other.draw.tolist()) == (9, [7, 8, 9])


NAME = "model.layers.3.mlp.down_proj:linear:0"


def test_site_word_is_the_digest_of_the_name():
    """By hashlib, whose digest is the same in every process; Python's own hash is not."""
    expected = int.from_bytes(hashlib.blake2s(NAME.encode(), digest_size=4).digest(), "little")
    assert site_word(NAME) == expected


@pytest.mark.slow
def test_site_word_is_the_same_in_another_process():
    code = f"import noisescope.noise as n; print(n.site_word({NAME!r}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert site_word(NAME) == int(other.stdout)


def test_site_words_of_a_large_model_differ():
    words = {site_word(f"model.layers.{i}.mlp.{p}:linear:0") for i in range(100) for p in "abcdefg"}
    assert len(words) == 700
