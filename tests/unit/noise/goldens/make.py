"""Writes the goldens of number formats: one JSON per format, float32 bits in and out as hex.

Run from the repository's root: ``python tests/unit/noise/goldens/make.py``. Do so only when a
format is meant to give other bits, and say why in the commit. The test reads the files only.
"""

import json
from pathlib import Path

import numpy as np
import torch

from noisescope.noise import PRESETS, flat_address, make_format, random_words

HERE = Path(__file__).parent
NAMES = (
    *PRESETS,
    *("bf16", "fp16", "fp8_e4m3", "fp8_e4m3_cast", "fp8_e4m3_tensor", "fp8_e5m2_cast", "fp8_e5m2"),
    *("fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "fp4_e2m1_g16"),
    *("int8", "int8_tensor", "int8_asym", "int8_g32", "int4", "int4_g32", "int4_g32_asym"),
    *("int4_channel", "int4_tensor_asym", "int3", "int2_g16"),
)
MADE_BY = (
    "tests/unit/noise/goldens/make.py: Format.round of input, [rows, width] float32 as hex of its "
    "bits; 'weight' and 'activation' to nearest, 'stochastic' as weight with the words of "
    "random_words(flat_address(7, 0, 11, rows), width, stream=1)"
)


def make_input() -> torch.Tensor:
    """Returns 2 rows of 80: normals over six decades, outliers, ties, zeros, one infinity."""
    rng = np.random.default_rng(20250501)
    x = rng.standard_normal((2, 80)) * 10.0 ** rng.uniform(-3, 3, (2, 80))
    x[0, 16:32] = 0.0
    x[0, 32:48] = np.arange(16) / 4 - 2  # ties of fp4 and of integers
    x[1, 64:] *= 1e-6
    x[1, 3] = -np.inf
    return torch.from_numpy(x.astype(np.float32))


def to_hex(x: torch.Tensor) -> str:
    """Returns the bits of float32 values, eight digits each, most significant first."""
    return x.numpy().astype(">f4").tobytes().hex()


def make(name: str) -> dict[str, object]:
    """Returns the golden of one format."""
    x = make_input()
    rows, width = x.shape
    chosen = make_format(name)
    words = random_words(flat_address(7, 0, 11, rows), width, stream=1)
    return {
        "made_by": MADE_BY,
        "format": name,
        "rows": rows,
        "width": width,
        "input": to_hex(x),
        "weight": to_hex(chosen.round(x, is_weight=True)),
        "activation": to_hex(chosen.round(x, is_weight=False)),
        "stochastic": to_hex(chosen.round(x, is_weight=True, words=lambda: words)),
    }


if __name__ == "__main__":
    for name in NAMES:
        (HERE / f"{name}.json").write_text(json.dumps(make(name), indent=1) + "\n")
