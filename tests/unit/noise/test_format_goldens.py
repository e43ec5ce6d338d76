"""Formats give the bits they gave: goldens/make.py says how the files were made."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from noisescope.noise import PRESETS, flat_address, make_format, random_words

GOLDENS = sorted((Path(__file__).parent / "goldens").glob("*.json"))


def from_hex(text, rows, width):
    bits = np.frombuffer(bytes.fromhex(text), ">f4").astype("<f4")
    return torch.from_numpy(bits.reshape(rows, width).copy())


@pytest.mark.parametrize("path", GOLDENS, ids=lambda p: p.stem)
def test_the_bits_are_those_kept(path):
    kept = json.loads(path.read_text())
    rows, width = kept["rows"], kept["width"]
    x, chosen = from_hex(kept["input"], rows, width), make_format(kept["format"])
    words = random_words(flat_address(7, 0, 11, rows), width, stream=1)
    found = {
        "weight": chosen.round(x, is_weight=True),
        "activation": chosen.round(x, is_weight=False),
        "stochastic": chosen.round(x, is_weight=True, words=lambda: words),
    }
    for how, rounded in found.items():
        expected = from_hex(kept[how], rows, width)
        assert torch.equal(rounded.view(torch.int32), expected.view(torch.int32)), how


def test_every_preset_has_a_golden():
    assert set(PRESETS) <= {path.stem for path in GOLDENS}
    assert len(GOLDENS) >= len(PRESETS) + 20
