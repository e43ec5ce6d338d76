"""Time and memory against rows, tokens, layers, conditions and hidden size, each doubled alone.

    python benchmarks/scaling.py --threads 2 --figure docs/scaling.png
    python benchmarks/scaling.py --paper

Random Llamas score, predict, run a noisy forward pass and decode. All points take turns, so that a
busy machine slows all alike; of a point the median counts, and through the points of an axis a line
is laid in logarithms: its slope is the exponent. Expected of time are the slopes of two counts
through the same points: of multiply-adds (`products_of`), and of values that meet noise or are
watched (`values_of`). Memory is what torch's allocator held at most, beside the model: on the CPU
told by its profiler, in a run of its own; expected is what grows with an axis, attention aside.

`--paper` measures nothing: it works out what large models would take (scaling_paper.py).
"""

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from noise_kernel import check, cpu_name
from scaling_paper import show_paper
from scipy.stats import linregress
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler
from transformers import LlamaConfig, LlamaForCausalLM

from noisescope.inject import Session, make_selection
from noisescope.inject.probe import list_sites
from noisescope.measure import Condition, Plan, Unit, Worker
from noisescope.measure.answers import Boarding, Limits, Prompt
from noisescope.measure.generate import decode
from noisescope.measure.profiling import ProfileOptions, Texts, make_profile
from noisescope.measure.sharing import Rider
from noisescope.measure.taken_apart import TakenApart
from noisescope.models import LoadedModel
from noisescope.noise import RelativeGaussian
from noisescope.report.pictures.paint import (
    EDGE,
    FAINT,
    GRID,
    INK,
    PREDICTED,
    WORST,
    logarithmic,
    new_figure,
    settle,
)
from noisescope.tasks import make_task

NOISE = RelativeGaussian(0.05)
VOCABULARY, HEADS, KEY_HEADS = 1000, 4, 2
DRAWS = 2  # of a prediction
MIB = 1 << 20


@dataclass(frozen=True)
class Size:
    """A point: a model's shape, and what is done with it."""

    rows: int
    tokens: int
    layers: int
    conditions: int
    hidden: int


BASES = {"cpu": Size(8, 32, 4, 4, 128), "cuda": Size(16, 128, 8, 8, 1024)}
SMOKE = Size(2, 8, 2, 2, 64)
AXES = tuple(field.name for field in fields(Size))
DOUBLINGS = {"rows": 4, "tokens": 4, "layers": 3, "conditions": 4, "hidden": 3}
TITLES = {
    "scoring": "scoring, one layer noisy",
    "prediction": "prediction of all sites",
    "injected": "noisy forward pass",
    "clean": "clean forward pass",
    "decoding": "decoding",
}
DRAWN = ("scoring", "prediction", "injected", "decoding")
# Who bounds the rows of a pass needs no more memory for more rows or conditions; layers add to what
# is held only where all of them keep something, a graph or a cache.
MEMORY = {
    "scoring": {"rows": 0, "tokens": 1, "layers": 0, "conditions": 0, "hidden": 1},
    "prediction": {"rows": 0, "tokens": 1, "layers": 1, "hidden": 1},
    "injected": {"rows": 1, "tokens": 1, "layers": 0, "hidden": 1},
    "clean": {"rows": 1, "tokens": 1, "layers": 0, "hidden": 1},
    "decoding": {"rows": 1, "tokens": 1, "layers": 1, "conditions": 1, "hidden": 1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--figure", type=Path, help="where to draw the figure, .svg or .png")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, one turn, in seconds")
    parser.add_argument("--paper", action="store_true", help="arithmetic on large models instead")
    arguments = parser.parse_args()
    check(parser, arguments)
    if arguments.figure and not arguments.figure.absolute().parent.is_dir():
        parser.error(f"--figure {arguments.figure}: no such folder; make it first")
    if arguments.paper:
        show_paper()
        return
    torch.set_num_threads(arguments.threads)
    base = SMOKE if arguments.smoke else BASES[torch.device(arguments.device).type]
    turns = 1 if arguments.smoke else arguments.turns
    lines = {
        (work, axis): points(work, axis, base, 1 if arguments.smoke else DOUBLINGS[axis])
        for work in TITLES
        for axis in MEMORY[work]
    }
    bench = Bench(base, arguments.device)
    print(
        f"{machine(arguments.device)}, {arguments.threads} thread(s), Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {str(bench.dtype).removeprefix('torch.')}; {turns} turns"
    )
    cases = dict.fromkeys((work, size) for (work, _), line in lines.items() for size in line)
    seconds, mib = bench.measure(list(cases), turns)
    show(base, lines, seconds, mib)
    show_fixed_cost(bench, turns)
    if arguments.figure:
        draw(arguments.figure, lines, seconds, mib)


def points(work: str, axis: str, base: Size, doublings: int) -> tuple[Size, ...]:
    """Returns the sizes along an axis; scoring has one condition per layer where layers grow."""
    sizes = [replace(base, **{axis: 2**n * getattr(base, axis)}) for n in range(1 + doublings)]
    if (work, axis) == ("scoring", "layers"):
        sizes = [replace(size, conditions=size.layers) for size in sizes]
    return tuple(sizes)


def machine(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_name()


# What is measured.


@dataclass(frozen=True)
class Bench:
    """Where the models run; the base's rows bound a pass of scoring and of prediction."""

    base: Size
    device: str

    @property
    def dtype(self) -> torch.dtype:
        """As models run there."""
        return torch.bfloat16 if self.device.startswith("cuda") else torch.float32

    def measure(
        self, cases: Sequence[tuple[str, Size]], turns: int
    ) -> tuple[dict[tuple[str, Size], list[float]], dict[tuple[str, Size], float]]:
        """Returns the seconds of each turn, and the MiB beside the model."""
        runs = {case: self.prepare(*case) for case in cases}
        for run in runs.values():
            run()  # trials, kernels and sessions, which are made once
        seconds: dict[tuple[str, Size], list[float]] = {case: [] for case in cases}
        for _ in range(turns):
            for case, run in runs.items():
                seconds[case].append(self.timed(run))
        return seconds, {case: self.peak_bytes(run) / MIB for case, run in runs.items()}

    def prepare(self, work: str, size: Size) -> Callable[[], object]:
        """Returns a function that does the work once."""
        loaded = random_model(size.layers, size.hidden, self.device, self.dtype)
        generator = torch.Generator().manual_seed(1)
        ids_BT = torch.randint(3, VOCABULARY, (size.rows, size.tokens), generator=generator)
        if work == "scoring":
            return self.scoring(loaded, size, ids_BT)
        if work == "prediction":
            return self.prediction(loaded, ids_BT)
        if work == "decoding":
            return decoding(loaded, size, ids_BT)
        return forward(loaded, ids_BT, is_noisy=work == "injected")

    def scoring(
        self, loaded: LoadedModel, size: Size, ids_BT: torch.Tensor
    ) -> Callable[[], object]:
        """Returns what scores a unit of all conditions."""
        task = make_task([{"prompt_ids": row} for row in ids_BT.tolist()])
        rows = self.base.rows * (1 + self.base.conditions)
        worker = Worker(loaded, task, Plan(conditions_of(size), batch_size=rows))
        samples = tuple(sample.name for sample in task.samples)
        unit = Unit("all", samples, tuple(c.name for c in conditions_of(size)), (0,))
        return lambda: worker(unit)

    def prediction(self, loaded: LoadedModel, ids_BT: torch.Tensor) -> Callable[[], object]:
        """Returns what predicts every site."""
        names = tuple(f"s{n}" for n in range(len(ids_BT)))
        ids = ids_BT.tolist()
        texts = Texts(names, tuple(i[:1] for i in ids), tuple(i[1:] for i in ids))
        apart, options = TakenApart(loaded.model), ProfileOptions(label_draws=DRAWS)
        most = self.base.rows
        return lambda: make_profile(apart, texts, [NOISE], options=options, most_rows=most)

    def timed(self, run: Callable[[], object]) -> float:
        """Returns the seconds that a run takes."""
        self.wait()
        begin = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - begin

    def wait(self) -> None:
        """Waits for a GPU."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """Returns the most bytes that torch's allocator held above those at the beginning."""
        if self.device.startswith("cuda"):
            begin = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            run()
            return torch.cuda.max_memory_allocated(self.device) - begin
        with profiler(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            run()
        held = peak = 0
        for event in watched.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
        return peak


@cache
def random_model(layers: int, hidden: int, device: str, dtype: torch.dtype) -> LoadedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=inner_of(hidden),
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=1 << 14,
        eos_token_id=None,  # answers are as long as they may be
    )
    model = LlamaForCausalLM(config).to(device, dtype).eval()
    return LoadedModel(model, None, Path("random"), dtype, model.device, "", 1 << 14, ())


def inner_of(hidden: int) -> int:
    return 2 * hidden + hidden * 3 // 4


def conditions_of(size: Size) -> tuple[Condition, ...]:
    """Returns conditions layer by layer, again and again, each time with noise of another scale."""
    return tuple(
        Condition(
            f"c{n}",
            RelativeGaussian(NOISE.scale / (1 + n // size.layers)),
            make_selection(layers=n % size.layers),
        )
        for n in range(size.conditions)
    )


def forward(loaded: LoadedModel, ids_BT: torch.Tensor, is_noisy: bool) -> Callable[[], object]:
    """Returns a forward pass, with noise in every linear layer or without."""
    ids_BT = ids_BT.to(loaded.device)
    session = Session(loaded.model, NOISE, make_selection(operators=("linear",)), attest=False)

    def clean() -> None:
        with torch.no_grad():
            loaded.model(input_ids=ids_BT, use_cache=False)

    def noisy() -> None:
        with session:
            clean()

    return noisy if is_noisy else clean


def decoding(loaded: LoadedModel, size: Size, ids_BT: torch.Tensor) -> Callable[[], object]:
    """Returns what decodes all conditions' and clean answers; half of a text is prompt."""
    apart = TakenApart(loaded.model)
    riders = [
        Rider(c.name, Session(loaded.model, c.error_model, c.selection, attest=False))
        for c in conditions_of(size)
    ]
    boardings = [Boarding(r, apart.first_region(r.session)) for r in (Rider("", None), *riders)]
    asked = size.tokens // 2
    prompts = [Prompt(f"s{n}", tuple(row[:asked])) for n, row in enumerate(ids_BT.tolist())]
    limits, entries = Limits(size.tokens - asked), apart.prompt_entries
    return lambda: decode(loaded.model, prompts, boardings, limits, entries)


def products_of(work: str, size: Size) -> float:
    """Returns the multiply-adds of layers, attention and head; noise is not among them."""
    hidden, rows, tokens, layers = size.hidden, size.rows, size.tokens, size.layers
    projections = hidden * hidden * (2 + 2 * KEY_HEADS / HEADS) + 3 * hidden * inner_of(hidden)
    layer = projections + tokens * hidden  # two products with the half of the text that is seen
    head = hidden * VOCABULARY
    everyone = 1 + size.conditions
    # Layers that the clean rows go through, and the copies that branch off at each condition.
    forks = layers + sum(layers - n % layers for n in range(size.conditions))
    if work == "scoring":
        return rows * tokens * (forks * layer + everyone * head)
    if work == "decoding":
        answered = everyone * (layers * (layer + tokens * hidden / 2) + head)
        return rows * tokens / 2 * (forks * projections + answered)
    # Gradients of activations cost what the pass did.
    return rows * tokens * (layers * layer + head) * (1 + DRAWS if work == "prediction" else 1)


def values_of(work: str, size: Size) -> float:
    """Returns how many values meet noise, or are watched by a prediction."""
    if work == "clean":
        return math.nan
    hidden, inner = size.hidden, inner_of(size.hidden)
    linear = hidden * (3 + 2 * KEY_HEADS / HEADS) + 2 * inner
    if work == "injected":
        return size.rows * size.tokens * (size.layers * linear + VOCABULARY)
    # Scores and probabilities of all heads; of a text that grows, five eighths of it on average.
    seen = size.tokens * (5 / 8 if work == "decoding" else 1)
    layer = linear + 2 * HEADS * seen + inner + 3 * hidden
    noisy = DRAWS * size.layers if work == "prediction" else size.conditions
    return size.rows * size.tokens * noisy * layer


# What is told of it.


@dataclass(frozen=True)
class Slope:
    """An exponent, its standard error about the line, and those that are expected."""

    value: float
    error: float
    expected: tuple[float, ...]

    def __str__(self) -> str:
        expected = ", ".join(f"{value:.2f}" for value in self.expected)
        return f"{self.value:5.2f} ±{self.error:4.2f} ({expected})"


def slope(x: Sequence[float], y: Iterable[float], expected: Iterable[float] = ()) -> Slope:
    """Returns the slope of a line through logarithms."""
    log_x, log_y = ([math.log(v) for v in some] for some in (x, y))
    if len(log_x) < 3:
        value = (log_y[-1] - log_y[0]) / (log_x[-1] - log_x[0])
        return Slope(value, math.nan, tuple(expected))
    fit = linregress(log_x, log_y)
    return Slope(float(fit.slope), float(fit.stderr), tuple(expected))


def multiples(axis: str, line: Sequence[Size]) -> list[float]:
    return [getattr(size, axis) / getattr(line[0], axis) for size in line]


def slopes(
    work: str, axis: str, line: Sequence[Size], seconds: Iterable[float], mib: Iterable[float]
) -> tuple[Slope, Slope]:
    """Returns the slopes of time and of memory."""
    x = multiples(axis, line)
    counts = (products_of,) if work == "clean" else (products_of, values_of)
    expected = [slope(x, [count(work, size) for size in line]).value for count in counts]
    return slope(x, seconds, expected), slope(x, mib, [MEMORY[work][axis]])


def show(
    base: Size,
    lines: Mapping[tuple[str, str], Sequence[Size]],
    seconds: Mapping[tuple[str, Size], Sequence[float]],
    mib: Mapping[tuple[str, Size], float],
) -> None:
    told = ", ".join(f"{value} {name}" for name, value in asdict(base).items())
    print(f"base: {told}; each varied alone (scoring: one condition per layer where layers grow)")
    print("exponent ± standard error about the line (expected of time: by multiply-adds, by values")
    print("that meet noise; of memory: by what is held)")
    print(f"{'':11}{'axis':>11}  {'seconds':32} {'MiB beside the model':32} {'time':27}memory")
    for (work, axis), line in lines.items():
        s = [statistics.median(seconds[work, size]) for size in line]
        m = [mib[work, size] for size in line]
        time_slope, memory_slope = slopes(work, axis, line, s, m)
        print(
            f"{work:11}{axis:>11}  {' '.join(f'{v:.3g}' for v in s):32} "
            f"{' '.join(f'{v:.3g}' for v in m):32} {time_slope!s:27}{memory_slope}"
        )
    print("noisy forward pass / clean one, ratio of each turn: median [min, max]")
    for axis in MEMORY["injected"]:
        print(f"{axis:>11}  {ratios(lines['injected', axis], seconds)}")
    kept = lines["prediction", "layers"]
    bytes_of_layer = (mib["prediction", kept[-1]] - mib["prediction", kept[0]]) * MIB
    bytes_of_layer /= (kept[-1].layers - kept[0].layers) * base.rows * base.tokens
    estimate = 4 * (24 * base.hidden + 6 * inner_of(base.hidden))
    print(
        f"a prediction keeps {bytes_of_layer:,.0f} bytes per token and layer of width {base.hidden}"
        f"; measure.memory reckons with {estimate:,}"
    )


def show_fixed_cost(bench: Bench, turns: int) -> None:
    """Tells what a noisy site costs in a decoding step however small it is."""
    few, many = (Size(1, 32, 4, conditions, 64) for conditions in (4, 16))
    runs = [bench.prepare("decoding", size) for size in (few, many)]
    for run in runs:
        run()
    model = random_model(few.layers, few.hidden, bench.device, bench.dtype).model
    sites = sum(record.site.region == "0" for record in list_sites(model, [1, 2, 3]))
    calls = (many.conditions - few.conditions) * sites * few.tokens // 2
    each = []
    for _ in range(3 * turns):
        one, other = (bench.timed(run) for run in runs)
        each.append(1e6 * (other - one) / calls)
    print(
        f"fixed cost of a noisy site, decoding one row: {statistics.median(each):.0f} us "
        f"[{min(each):.0f}, {max(each):.0f}]; a layer has {sites}"
    )


def ratios(line: Sequence[Size], seconds: Mapping[tuple[str, Size], Sequence[float]]) -> str:
    told = []
    for size in line:
        pairs = zip(seconds["injected", size], seconds["clean", size], strict=True)
        each = [noisy / clean for noisy, clean in pairs]
        told.append(f"{statistics.median(each):.2f} [{min(each):.2f}, {max(each):.2f}]")
    return "  ".join(told)


def draw(
    path: Path,
    lines: Mapping[tuple[str, str], Sequence[Size]],
    seconds: Mapping[tuple[str, Size], Sequence[float]],
    mib: Mapping[tuple[str, Size], float],
) -> None:
    """Draws time and memory as multiples of the base's, one small panel for each line."""
    figure = new_figure(8.6, 7.4)
    grid: Any = figure.subplots(len(DRAWN), len(AXES), sharex=True, sharey=True)
    for row, work in enumerate(DRAWN):
        for column, axis in enumerate(AXES):
            axes = grid[row][column]
            if (work, axis) not in lines:
                axes.set_axis_off()
                continue
            line = lines[work, axis]
            s = [statistics.median(seconds[work, size]) for size in line]
            draw_line(axes, work, axis, line, s, [mib[work, size] for size in line])
            if column == 0:
                axes.set_ylabel("times the base", fontsize=8, color=FAINT)
                axes.set_title(TITLES[work], fontsize=9, color=INK, loc="left", fontweight="bold")
    settle(figure)
    figure.savefig(path)


def draw_line(
    axes: Any,
    work: str,
    axis: str,
    line: Sequence[Size],
    seconds: Sequence[float],
    mib: Sequence[float],
) -> None:
    x = multiples(axis, line)
    by_count = [
        [count(work, size) / count(work, line[0]) for size in line]
        for count in (products_of, values_of)
    ]
    axes.fill_between(x, *by_count, color=PREDICTED, alpha=0.18, linewidth=0)
    for count in by_count:
        axes.plot(x, count, color=PREDICTED, linewidth=0.6)
    axes.plot(x, [step ** MEMORY[work][axis] for step in x], color=WORST, linewidth=0.6)
    for values, colour, marker in ((seconds, PREDICTED, "o"), (mib, WORST, "s")):
        axes.plot(x, [v / values[0] for v in values], marker, color=colour, markersize=3.5)
    found = slopes(work, axis, line, seconds, mib)
    for n, (name, one, colour) in enumerate(
        zip(("time", "memory"), found, (PREDICTED, WORST), strict=True)
    ):
        axes.text(
            0.04,
            0.96 - 0.13 * n,
            f"{name} {one.value:.2f}",
            transform=axes.transAxes,
            fontsize=7.5,
            color=colour,
            va="top",
        )
    logarithmic(axes.xaxis)
    logarithmic(axes.yaxis)
    axes.set_xticks([1, 2, 4, 8, 16])
    axes.tick_params(labelsize=7, length=0, labelcolor=FAINT)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"{axis}, times {getattr(line[0], axis)}", fontsize=8, color=INK)
    for spine in axes.spines.values():
        spine.set_color(EDGE)
        spine.set_visible(False)


if __name__ == "__main__":
    main()
