"""Speed of the fused CPU noise kernel against the plain torch expression, in one run.

    python benchmarks/noise_kernel.py --threads 2
    python benchmarks/noise_kernel.py --device cuda

They take turns, so that a busy machine slows all alike; what counts is the ratio of each turn.
The plain expression adds noise that no address brings back, rounds four times and tells no dose.
On a GPU the Triton kernel takes turns with a copy: both read and write the same bytes once, so the
copy is what memory allows. Events on the GPU take the time, of calls that all wait in its queue, so
that Python's part is not in it; that is told beside it.
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
# Of a tensor, in MiB; channels of its rows: the hidden and the inner width of a model of 1.5B.
GPU_MIB = (64, 256, 1024)
GPU_CHANNELS = (1536, 8960)
GPU_CALLS = 10
LEAST_SHARE_OF_COPY = 0.8

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
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--smoke", action="store_true", help="cuda's table, tiny, on any machine")
    arguments = parser.parse_args()
    check(parser, arguments)
    torch.set_num_threads(arguments.threads)
    if arguments.smoke or arguments.device == "cuda":
        show_bandwidth(arguments)
        return
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


def show_bandwidth(arguments: argparse.Namespace) -> None:
    """Prints the kernel's share of a copy's bandwidth."""
    is_gpu = arguments.device == "cuda"
    print(
        f"{torch.cuda.get_device_name() if is_gpu else cpu_name()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, {compiler_of(is_gpu)}, bfloat16; "
        f"{arguments.turns} turns of {GPU_CALLS} calls"
    )
    print("share: time of y.copy_(x) / time of RelativeGaussian.perturb: median [quartiles]")
    told = f"claim: >= {LEAST_SHARE_OF_COPY:.0%} of the copy's bandwidth"
    print("--smoke: no claim is made of it" if arguments.smoke else told)
    print(
        f"{'MiB':>6} {'channels':>9} {'copy GB/s':>10}  {'share: a new tensor':<24} "
        f"{'share: in place':<24} us: copy, new, in place; Python's, a call"
    )
    for mib in (1, 2) if arguments.smoke else GPU_MIB:
        for channels in GPU_CHANNELS:
            print_bandwidth(mib, channels, arguments.device, arguments.turns)


def compiler_of(is_gpu: bool) -> str:
    """Returns what compiles the kernel there."""
    if not is_gpu:
        return f"numba {numba.__version__}"
    import triton  # comes with torch where there is a GPU

    return f"triton {triton.__version__}, CUDA {torch.version.cuda}"


def print_bandwidth(mib: int, channels: int, device: str, turns: int) -> None:
    rows = mib * 2**20 // (2 * channels)
    x = torch.randn(rows, channels, device=device, dtype=torch.bfloat16)
    changing = x.clone()
    at = flat_address(seed=0, draw=0, site=0, rows=rows, device=device)
    model = RelativeGaussian(SCALE)

    def refill() -> None:
        changing.copy_(x)

    runs: list[Callable[[], object]] = [
        refill,
        lambda: model.perturb(x, at),
        lambda: model.perturb(changing, at, in_place=True),
    ]
    for run in runs:
        run()  # the first call of the kernel compiles
    rounds = []
    for turn in range(turns):
        taken = {n: queued_times(runs[n], refill, device) for n in turned(len(runs), turn)}
        rounds.append([taken[n] for n in range(len(runs))])
    copy_s, new_s, in_place_s = ([r[n][0] for r in rounds] for n in range(len(runs)))
    medians_us = [1e6 * statistics.median(times) for times in (copy_s, new_s, in_place_s)]
    python_us = [1e6 * statistics.median(r[n][1] for r in rounds) for n in (1, 2)]
    moved_gb = 2 * x.numel() * x.element_size() / 1e9
    print(
        f"{mib:>6} {channels:>9} {1e6 * moved_gb / medians_us[0]:10.0f}  "
        f"{share(copy_s, new_s):<24} {share(copy_s, in_place_s):<24} "
        f"{', '.join(f'{us:.0f}' for us in medians_us)}; "
        f"{', '.join(f'{us:.0f}' for us in python_us)}",
        flush=True,
    )


def turned(count: int, turn: int) -> list[int]:
    """Returns the order of a turn: who goes first rotates, every second one runs backwards."""
    order = [(turn + n) % count for n in range(count)]
    return order if turn % 2 else order[::-1]


def queued_times(
    run: Callable[[], object], refill: Callable[[], None], device: str
) -> tuple[float, float]:
    """Returns the seconds of one call, averaged over some: the GPU's, and Python's to ask for it.

    On a CPU, where asking is doing, they are the same.
    """
    refill()  # the same noise over and over would end at infinity
    if device != "cuda":
        begin = time.perf_counter()
        for _ in range(GPU_CALLS):
            run()
        taken_s = (time.perf_counter() - begin) / GPU_CALLS
        return taken_s, taken_s
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    # Longer than Python needs to put all the calls into the queue.
    torch.cuda._sleep(50_000_000)
    first.record()
    begin = time.perf_counter()
    for _ in range(GPU_CALLS):
        run()
    python_s = time.perf_counter() - begin
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3 / GPU_CALLS, python_s / GPU_CALLS


def share(copy_s: list[float], own_s: list[float]) -> str:
    shares = [copy / own for copy, own in zip(copy_s, own_s, strict=True)]
    low, median, high = statistics.quantiles(shares, n=4)
    return f"{median:.1%} [{low:.1%}, {high:.1%}]"


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends with one line and exit status 2 where an option cannot be met."""
    for name in ("threads", "turns", "pairs", "samples"):
        value = getattr(arguments, name, None)
        if value is not None and value < 1:
            parser.error(f"--{name} {value}: at least 1 is needed")
    if getattr(arguments, "device", "cpu") == "cuda" and not torch.cuda.is_available():
        parser.error(
            "--device cuda: torch sees no GPU here; leave the option out, or run it on one"
        )


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} cores)" if names else platform.processor()


if __name__ == "__main__":
    main()
