"""Philox against published answers and plain integers; a word is a function of its address."""

from dataclasses import replace

import pytest
import torch

from noisescope.noise import Address, flat_address, philox, philox4x32, random_words

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([ONES] * 4, [ONES] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers(counter, key, expected):
    # Source: kat_vectors of Random123, the authors' own library.
    expected = [int(word, 16) for word in expected.split()]
    assert philox4x32(torch.tensor(counter), torch.tensor(key)).tolist() == expected
    assert philox4x32(torch.tensor([counter]), (key[0], key[1])).tolist() == [expected]


def words_by_hand(seed, draw, site, sample, position, channel):
    """Philox in Python's unbounded integers, one element at a time."""
    c = [(channel % 2**32) // 4, position % 2**32, sample % 2**32, site]
    k = [seed, draw]
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(q >> 32) ^ c[1] ^ k[0], q & ONES, (p >> 32) ^ c[3] ^ k[1], p & ONES]
        k = [(k[0] + 0x9E3779B9) & ONES, (k[1] + 0xBB67AE85) & ONES]
    return c[channel % 4]


@pytest.mark.parametrize("channel", [0, 1, 6, 8, -1, -5, 2**32 - 3, 2**31 + 2, -(2**40) - 3])
def test_words_have_the_counter_and_key_that_the_design_says(channel):
    at = Address(
        7,
        8,
        9,
        sample_R=torch.tensor([3, 2**32 - 1]),
        position_R=torch.tensor([5, 2**31]),
        channel_R=torch.tensor([channel, channel + 2]),
    )
    expected = [
        [words_by_hand(7, 8, 9, sample, position, first + c) for c in range(9)]
        for sample, position, first in [(3, 5, channel), (2**32 - 1, 2**31, channel + 2)]
    ]
    assert random_words(at, 9).tolist() == expected


@pytest.mark.parametrize("stream", [0, 1])
def test_words_by_row_are_those_of_each_row_alone(stream, monkeypatch):
    monkeypatch.setattr(philox, "_ELEMENTS_AT_ONCE", 100)
    seed_R = torch.tensor([0, 2**32 - 1, 5, 5, 2**31])
    draw_R = torch.tensor([1, 2, 2**32 - 1, 3, 2**31])
    at = replace(flat_address(1, 2, 3, rows=5), seed=seed_R, draw=draw_R)
    words = random_words(at, 33, stream)
    for r in range(5):
        alone = at.rows(r, r + 1, int(seed_R[r]), int(draw_R[r]))
        assert torch.equal(words[r : r + 1], random_words(alone, 33, stream))


def test_a_part_of_a_tensor_has_the_words_of_the_part():
    at = flat_address(1, 2, 3, rows=8)
    whole = random_words(at, 40)
    part = replace(at.rows(2, 5), channel_R=torch.full((3,), 13))
    assert torch.equal(random_words(part, 21), whole[2:5, 13:34])


def test_permuted_rows_have_permuted_words():
    at = flat_address(1, 2, 3, rows=16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    permuted = replace(at, position_R=at.position_R[order])
    assert torch.equal(random_words(permuted, 12), random_words(at, 12)[order])


def test_rows_taken_some_at_a_time_are_the_same(monkeypatch):
    at = flat_address(1, 2, 3, rows=10)
    whole = random_words(at, 33)
    monkeypatch.setattr(philox, "_ELEMENTS_AT_ONCE", 100)
    assert torch.equal(random_words(at, 33), whole)


@pytest.mark.parametrize(("rows", "channels"), [(0, 5), (3, 0), (0, 0)])
def test_empty_tensors_have_empty_words(rows, channels):
    assert random_words(flat_address(0, 0, 0, rows), channels).shape == (rows, channels)


def test_the_streams_differ_everywhere_they_should():
    at = flat_address(1, 2, 3, rows=64)
    same = (random_words(at, 64, stream=0) == random_words(at, 64, stream=1)).sum()
    assert same == 0
