"""Speed of the fused CPU noise kernel against the plain torch expression, in one run.

    python benchmarks/noise_kernel.py --threads 2

They take turns, so that a busy machine slows all alike; what counts is the ratio of each turn.
The plain expression adds noise that no address brings back, rounds four times and tells no dose.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numba
import torch

from noisescope.noise import RelativeGaussian, flat_address
from noisescope.noise.fused import perturb_gaussian

SHAPES = [
    (1, 1536),
    (32, 1536),
    (1024, 1536),
    (4096, 1536),
    (1024, 4864),
    (256, 8960),
    (4096, 64),
]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SCALE = 0.05

FIRST_CALL = """
import time, torch
from noisescope.noise import RelativeGaussian, flat_address
y, at = torch.randn(1, 1536), flat_address(seed=0, draw=0, site=0, rows=1)
begin = time.perf_counter()
RelativeGaussian(0.05).perturb(y, at)
print(time.perf_counter() - begin)
"""


class Times(NamedTuple):
    """Seconds per call, one number for each turn."""

    kernel_s: list[float]
    in_place_s: list[float]
    plain_s: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=15, help="turns that each of the three takes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"{cpu_name()}, {arguments.threads} thread(s), Python {platform.python_version()}, "
        f"torch {torch.__version__}, numba {numba.__version__}; {arguments.turns} turns"
    )
    print("kernel: into a new tensor; in place: into y itself; ns per element, medians")
    print(
        "torch = y + torch.randn_like(y) * y.abs() * s; ratio = torch / kernel: median [min, max]"
    )
    print(
        f"{'shape':>12} {'dtype':>9} {'kernel ns':>10} {'in place':>9} {'torch ns':>9} "
        f"{'kernel us':>10}  {'ratio':<17} ratio in place"
    )
    for rows, channels in SHAPES:
        for name, dtype in DTYPES.items():
            print_row(rows, channels, name, compare(rows, channels, dtype, arguments.turns))
    print_decode_row(arguments.turns)
    print_first_call(min(arguments.turns, 5))


def compare(rows: int, channels: int, dtype: torch.dtype, turns: int) -> Times:
    """Returns the times of the three, which take turns."""
    y = torch.randn(rows, channels).to(dtype)
    at = flat_address(seed=0, draw=0, site=0, rows=rows)
    model = RelativeGaussian(SCALE)
    changing = y.clone()
    calls = max(1, 200_000 // y.numel())
    kernel = timer(lambda: model.perturb(y, at), calls)
    in_place = timer(
        lambda: perturb_gaussian(changing, at, SCALE, True, "nearest", changing),
        calls,
        # The same noise over and over would end at infinity.
        prepare=lambda: changing.copy_(y),
    )
    plain = timer(lambda: y + torch.randn_like(y) * y.abs() * SCALE, calls)
    kernel(), in_place(), plain()  # the first call of the kernel compiles
    rounds = [(kernel(), in_place(), plain()) for _ in range(turns)]
    return Times(*(list(times) for times in zip(*rounds, strict=True)))


def timer(
    function: Callable[[], object], calls: int, prepare: Callable[[], object] | None = None
) -> Callable[[], float]:
    """Returns a function that gives the seconds of one call, averaged over some calls."""

    def measure() -> float:
        if prepare:
            prepare()
        begin = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - begin) / calls

    return measure


def print_row(rows: int, channels: int, dtype: str, times: Times) -> None:
    ns = 1e9 / (rows * channels)
    kernel, in_place, plain = (statistics.median(seconds) for seconds in times)
    print(
        f"{f'{rows} x {channels}':>12} {dtype:>9} {kernel * ns:10.2f} {in_place * ns:9.2f} "
        f"{plain * ns:9.2f} {kernel * 1e6:10.1f}  {ratio(times.plain_s, times.kernel_s):<17} "
        f"{ratio(times.plain_s, times.in_place_s)}"
    )


def ratio(slow_s: list[float], fast_s: list[float]) -> str:
    ratios = [slow / fast for slow, fast in zip(slow_s, fast_s, strict=True)]
    return f"{statistics.median(ratios):.1f} [{min(ratios):.1f}, {max(ratios):.1f}]"


def print_decode_row(turns: int) -> None:
    """One row of one token, of which most is Python; nothing else takes turns with it."""
    y, at = torch.randn(1, 1536), flat_address(seed=0, draw=0, site=0, rows=1)
    model = RelativeGaussian(SCALE)
    measure = timer(lambda: model.perturb(y, at), calls=1000)
    times_us = [measure() * 1e6 for _ in range(turns)]
    print(f"perturb() of 1 x 1536 float32: {spread(times_us)} us a call")


def print_first_call(turns: int) -> None:
    """The first call of new processes: the machine code is on disk since this one's first call."""
    command = [sys.executable, "-c", FIRST_CALL]
    times_s = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(turns)
    ]
    print(f"first call in a new process, imports done: {spread(times_s)} s")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} cores)" if names else platform.processor()


if __name__ == "__main__":
    main()
