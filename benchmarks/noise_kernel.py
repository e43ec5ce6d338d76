"""Speed of the fused CPU noise kernel against the plain torch expression, in one run.

    python benchmarks/noise_kernel.py --threads 1

The two take turns, so that a busy machine slows both alike; what counts is the ratio of each turn.
The plain expression adds noise that no address brings back, rounds four times and tells no dose.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numba
import torch

from noisescope.noise import RelativeGaussian, flat_address

SHAPES = [(1, 1536), (32, 1536), (1024, 1536), (256, 8960), (4096, 64)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SCALE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=15, help="turns that each of the two takes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"{cpu_name()}, {arguments.threads} thread(s), Python {platform.python_version()}, "
        f"torch {torch.__version__}, numba {numba.__version__}; {arguments.turns} turns"
    )
    print(
        "torch = y + torch.randn_like(y) * y.abs() * s; ratio = torch / kernel: median [min, max]"
    )
    print(f"{'shape':>12} {'dtype':>9} {'kernel ns':>10} {'torch ns':>9} {'kernel us':>10}  ratio")
    for rows, channels in SHAPES:
        for name, dtype in DTYPES.items():
            kernel_s, plain_s = compare(rows, channels, dtype, arguments.turns)
            print_row(rows, channels, name, kernel_s, plain_s)


def compare(
    rows: int, channels: int, dtype: torch.dtype, turns: int
) -> tuple[list[float], list[float]]:
    """Returns seconds per call of the kernel and of the plain expression, one of each per turn."""
    y = torch.randn(rows, channels).to(dtype)
    at = flat_address(seed=0, draw=0, site=0, rows=rows)
    model = RelativeGaussian(SCALE)
    calls = max(1, 200_000 // y.numel())
    kernel = timer(lambda: model.perturb(y, at), calls)
    plain = timer(lambda: y + torch.randn_like(y) * y.abs() * SCALE, calls)
    kernel(), plain()  # the first call of the kernel compiles
    kernel_s, plain_s = zip(*((kernel(), plain()) for _ in range(turns)), strict=True)
    return list(kernel_s), list(plain_s)


def timer(function: Callable[[], object], calls: int) -> Callable[[], float]:
    """Returns a function that gives the seconds of one call, averaged over some calls."""

    def measure() -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - begin) / calls

    return measure


def print_row(
    rows: int, channels: int, dtype: str, kernel_s: list[float], plain_s: list[float]
) -> None:
    ratios = [p / k for p, k in zip(plain_s, kernel_s, strict=True)]
    kernel, plain = statistics.median(kernel_s), statistics.median(plain_s)
    ns = 1e9 / (rows * channels)
    spread = f"{statistics.median(ratios):.1f} [{min(ratios):.1f}, {max(ratios):.1f}]"
    print(
        f"{f'{rows} x {channels}':>12} {dtype:>9} {kernel * ns:10.2f} {plain * ns:9.2f}"
        f" {kernel * 1e6:10.1f}  {spread}"
    )


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} cores)" if names else platform.processor()


if __name__ == "__main__":
    main()
