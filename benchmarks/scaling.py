"""Time and memory against rows, tokens, layers, conditions and hidden size, each doubled alone.

    python benchmarks/scaling.py --threads 2 --figure docs/scaling.svg
    python benchmarks/scaling.py --paper

Random Llamas score, predict, run a noisy forward pass and decode. All points take turns, so that a
busy machine slows all alike; of a point the median counts, and through the points of an axis a line
is laid in logarithms: its slope is the exponent. What is expected of time is the slope of the
multiply-adds, `work_of`, through the same points. Memory is what torch's allocator held at most,
beside the model: on the CPU told by its profiler, in a run of its own.

`--paper` measures nothing: it works out what models of 70 and 671 billion weights would take.
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
from noise_kernel import cpu_name
from scipy.stats import linregress
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaConfig, LlamaForCausalLM

from noisescope.inject import Session, make_selection
from noisescope.measure import Condition, Plan, Unit, Worker
from noisescope.measure.generate import Boarding, Limits, Prompt, decode
from noisescope.measure.memory import (
    GIB,
    rows_of_decoding,
    rows_of_profiling,
    rows_of_scoring,
)
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
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--figure", type=Path, help="where to draw the figure, .svg or .png")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, one turn, in seconds")
    parser.add_argument("--paper", action="store_true", help="arithmetic on large models instead")
    arguments = parser.parse_args()
    if arguments.paper:
        show_paper()
        return
    torch.set_num_threads(arguments.threads)
    base = SMOKE if arguments.smoke else BASES[torch.device(arguments.device).type]
    turns = 1 if arguments.smoke else arguments.turns
    lines = {
        (work, axis): points(work, axis, base, 1 if arguments.smoke else 4)
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
    if arguments.figure:
        draw(arguments.figure, lines, seconds, mib)


def points(work: str, axis: str, base: Size, doublings: int) -> tuple[Size, ...]:
    """Returns the sizes along an axis; scoring has one condition per layer where layers grow."""
    steps = [2**n for n in range(1 + (min(3, doublings) if axis == "hidden" else doublings))]
    sizes = [replace(base, **{axis: step * getattr(base, axis)}) for step in steps]
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
        task = make_task([{"prompt_ids": row} for row in ids_BT.tolist()])
        rows = self.base.rows * (1 + self.base.conditions)
        worker = Worker(loaded, task, Plan(conditions_of(size), batch_size=rows))
        samples = tuple(sample.name for sample in task.samples)
        unit = Unit("all", samples, tuple(c.name for c in conditions_of(size)), (0,))
        return lambda: worker(unit)

    def prediction(self, loaded: LoadedModel, ids_BT: torch.Tensor) -> Callable[[], object]:
        names = tuple(f"s{n}" for n in range(len(ids_BT)))
        ids = ids_BT.tolist()
        texts = Texts(names, tuple(i[:1] for i in ids), tuple(i[1:] for i in ids))
        apart, options = TakenApart(loaded.model), ProfileOptions(label_draws=DRAWS)
        most = self.base.rows
        return lambda: make_profile(apart, texts, [NOISE], options=options, most_rows=most)

    def timed(self, run: Callable[[], object]) -> float:
        self.wait()
        begin = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - begin

    def wait(self) -> None:
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
    """Returns a decoder of all conditions' and the clean model's answers; half of a text is prompt."""
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


def work_of(work: str, size: Size) -> float:
    """Returns the multiply-adds that a work takes: of layers, attention and head, not of noise."""
    hidden, rows, tokens, layers = size.hidden, size.rows, size.tokens, size.layers
    projections = hidden * hidden * (2 + 2 * KEY_HEADS / HEADS) + 3 * hidden * inner_of(hidden)
    layer = projections + tokens * hidden  # two products with the half of the text that is seen
    head = hidden * VOCABULARY
    firsts = [n % layers for n in range(size.conditions)]
    forks = layers + sum(
        layers - first for first in firsts
    )  # layers that a row's copies go through
    if work == "scoring":
        return rows * tokens * (forks * layer + (1 + len(firsts)) * head)
    if work == "decoding":
        answered = (1 + len(firsts)) * (layers * (layer + tokens * hidden / 2) + head)
        return rows * tokens / 2 * (forks * projections + answered)
    # Gradients of activations cost what the pass did.
    return rows * tokens * (layers * layer + head) * (1 + DRAWS if work == "prediction" else 1)


# What is told of it.


@dataclass(frozen=True)
class Slope:
    """An exponent, its standard error about the line, and that which is expected."""

    value: float
    error: float
    expected: float

    def __str__(self) -> str:
        return f"{self.value:5.2f} ±{self.error:4.2f} ({self.expected:4.2f})"


def slope(axis: str, line: Sequence[Size], values: Iterable[float], expected: float) -> Slope:
    """Returns the slope of a line through logarithms."""
    x, y = ([math.log(v) for v in some] for some in (multiples(axis, line), values))
    if len(x) < 3:
        return Slope((y[-1] - y[0]) / (x[-1] - x[0]), math.nan, expected)
    fit = linregress(x, y)
    return Slope(float(fit.slope), float(fit.stderr), expected)


def multiples(axis: str, line: Sequence[Size]) -> list[float]:
    return [getattr(size, axis) / getattr(line[0], axis) for size in line]


def slopes(
    work: str, axis: str, line: Sequence[Size], seconds: Iterable[float], mib: Iterable[float]
) -> tuple[Slope, Slope]:
    """Returns the slopes of time and of memory."""
    expected = slope(axis, line, [work_of(work, size) for size in line], math.nan).value
    return slope(axis, line, seconds, expected), slope(axis, line, mib, MEMORY[work][axis])


def show(
    base: Size,
    lines: Mapping[tuple[str, str], Sequence[Size]],
    seconds: Mapping[tuple[str, Size], Sequence[float]],
    mib: Mapping[tuple[str, Size], float],
) -> None:
    told = ", ".join(f"{value} {name}" for name, value in asdict(base).items())
    print(f"base: {told}; each varied alone (scoring: one condition per layer where layers grow)")
    print(
        "exponent ± standard error about the line (expected: of the multiply-adds, of memory held)"
    )
    print(f"{'':11}{'axis':>11}  {'seconds':32}{'MiB beside the model':32}{'time':18}  memory")
    for (work, axis), line in lines.items():
        s = [statistics.median(seconds[work, size]) for size in line]
        m = [mib[work, size] for size in line]
        time_slope, memory_slope = slopes(work, axis, line, s, m)
        print(
            f"{work:11}{axis:>11}  {' '.join(f'{v:.3g}' for v in s):32}"
            f"{' '.join(f'{v:.3g}' for v in m):32}{time_slope}  {memory_slope}"
        )
    print("noisy forward pass / clean one, ratio of each turn: median [min, max]")
    for axis in MEMORY["injected"]:
        print(f"{axis:>11}  {ratios(lines['injected', axis], seconds)}")
    kept = lines["prediction", "layers"]
    bytes_of_layer = (mib["prediction", kept[-1]] - mib["prediction", kept[0]]) * MIB
    bytes_of_layer /= (kept[-1].layers - kept[0].layers) * base.rows * base.tokens
    estimate = 4 * (24 * base.hidden + 6 * inner_of(base.hidden))
    print(
        f"a prediction keeps {bytes_of_layer:,.0f} bytes per token and layer of width {base.hidden}; "
        f"measure.memory reckons with {estimate:,}"
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
    expected = [work_of(work, size) / work_of(work, line[0]) for size in line]
    held = [step ** MEMORY[work][axis] for step in x]
    for values, told, colour, style in (
        (seconds, expected, PREDICTED, "o"),
        (mib, held, WORST, "s"),
    ):
        axes.plot(x, told, color=colour, linewidth=0.7, alpha=0.6)
        axes.plot(x, [v / values[0] for v in values], style, color=colour, markersize=3.5)
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
    axes.set_xlabel(f"times {getattr(line[0], axis)} {axis}", fontsize=8, color=INK)
    for spine in axes.spines.values():
        spine.set_color(EDGE)
        spine.set_visible(False)


# On paper.

QUESTIONS, WINDOWS, PROMPT, ANSWER = 50, 10, 128, 512
PREDICTION_DRAWS = 4
# Of a GPU's peak: what dense products reach, and what reading weights reaches.
COMPUTE_SHARE, BANDWIDTH_SHARE = 0.4, 0.6
WEIGHTS_OF_GPU = 0.75  # the rest is for cache, activations and logits
HASH_BYTES_PER_S = 0.6 * GIB  # SHA-256 of the weights, one thread of the machine this ran on


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet: bytes, bytes per second, bfloat16 operations per second."""

    name: str
    size: float
    bandwidth: float
    operations: float


GPUS = (Gpu("80 GB", 80e9, 3.35e12, 989e12), Gpu("141 GB", 141e9, 4.8e12, 989e12))


@dataclass(frozen=True)
class Shape:
    """A model without weights, counted from the library's own modules.

    Attributes:
        name: Its name.
        model: The model on the meta device, bfloat16.
        cached: Values in the cache per token and layer.
        attended: Multiply-adds per token, earlier token and layer.
        expanded: Multiply-adds that an earlier token's cache takes at each step, per layer.
        expanded_values: Keys and values that come of it.
    """

    name: str
    model: Any
    cached: int
    attended: int
    expanded: int = 0
    expanded_values: int = 0

    @property
    def layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @property
    def vocabulary(self) -> int:
        return int(self.model.config.vocab_size)

    @property
    def chosen(self) -> float:
        """Share of the experts that a token goes through."""
        config = self.model.config
        return float(
            getattr(config, "num_experts_per_tok", 0) / getattr(config, "n_routed_experts", 1)
        )

    @property
    def weights(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def experts(self) -> int:
        return sum(p.numel() for name, p in self.model.named_parameters() if ".experts." in name)

    @property
    def active(self) -> float:
        """Weights that a token is multiplied with; its embedding is looked up."""
        embedding = self.model.get_input_embeddings().weight.numel()
        return self.weights - embedding - self.experts * (1 - self.chosen)

    @property
    def outputs(self) -> tuple[int, float]:
        """Linear sites of the model, and values that all of them give for a token."""
        plain = [m.out_features for m in self.model.modules() if isinstance(m, torch.nn.Linear)]
        routed = [
            p.shape[1] * p.shape[0] * self.chosen if p.dim() == 3 else p.shape[0]
            for name, p in self.model.named_parameters()
            if ".experts." in name or name.endswith(".gate.weight")
        ]
        return len(plain) + len(routed), sum(plain) + sum(routed)

    def read(self, rows: float) -> float:
        """Returns the weights that a pass of so many tokens reads, if tokens choose alike often."""
        return self.weights - self.experts * (1 - self.chosen) ** rows


@cache
def shapes() -> tuple[Shape, Shape]:
    dense = LlamaConfig(
        vocab_size=128_256,
        hidden_size=8192,
        intermediate_size=28_672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    )
    mixture = DeepseekV3Config()
    heads, rank = mixture.num_attention_heads, mixture.kv_lora_rank
    nope, rope, value = mixture.qk_nope_head_dim, mixture.qk_rope_head_dim, mixture.v_head_dim
    with torch.device("meta"):
        models = LlamaForCausalLM(dense).bfloat16(), DeepseekV3ForCausalLM(mixture).bfloat16()
    return (
        Shape("Llama-3.1-70B", models[0], cached=2 * 8 * 128, attended=64 * (128 + 128)),
        Shape(
            "DeepSeek-V3",
            models[1],
            cached=rank + rope,
            attended=heads * (nope + rope + value),
            expanded=rank * heads * (nope + value),
            expanded_values=heads * (nope + rope + value),
        ),
    )


def show_paper() -> None:
    for shape in shapes():
        show_memory(shape)
        for gpu in GPUS:
            show_time(shape, gpu)


def show_memory(shape: Shape) -> None:
    config, tokens = shape.model.config, PROMPT + ANSWER
    sites, values = shape.outputs
    of_cache = 2 * shape.layers * shape.cached
    kept = 2 * shape.layers * (24 * config.hidden_size + 6 * config.intermediate_size)
    print(f"{shape.name}: {shape.weights:,} weights, {shape.active:,.0f} per token")
    print(f"  weights: bf16 {2 * shape.weights / 1e9:,.0f} GB, fp8 {shape.weights / 1e9:,.0f} GB")
    for item, name in ((2, "bf16"), (1, "fp8")):
        counts = ", ".join(f"{gpus(shape, gpu, item)} of {gpu.name}" for gpu in GPUS)
        print(f"  GPUs whose {WEIGHTS_OF_GPU:.0%} hold them in {name}: {counts}")
    print(f"  cache: {of_cache:,} bytes per token; {of_cache * tokens / 1e6:,.0f} MB per answer of")
    print(
        f"    {tokens} tokens; {of_cache * tokens * answers() / 1e9:,.1f} GB for {answers()} answers"
    )
    print(
        f"  logits: {28 * shape.vocabulary / 1e6:.1f} MB per token compared; all at once they were"
    )
    print(f"    {4 * shape.vocabulary * tokens * answers() / 1e9:,.0f} GB in float32")
    print(f"  a prediction keeps {kept / 1e6:.0f} MB per token as measure.memory reckons, ")
    print(f"    {kept * tokens / 1e9:.1f} GB per text; outputs of linear sites alone ", end="")
    print(f"{2 * values / 1e6:.1f} MB per token")
    print(
        f"  noise: {sites} linear sites, {values:,.0f} values per token, {4 * values / 1e6:.0f} MB"
    )
    print(f"    read and written per token, {4 * values / sites / 1e3:.0f} KB per site")
    print(f"  fingerprint, one thread: {2 * shape.weights / HASH_BYTES_PER_S:,.0f} s in bf16")


def answers() -> int:
    """Returns how many answers are decoded: those of the windows, and the clean ones."""
    return QUESTIONS * (1 + WINDOWS)


def gpus(shape: Shape, gpu: Gpu, item: int = 2) -> int:
    return math.ceil(item * shape.weights / (WEIGHTS_OF_GPU * gpu.size))


def show_time(shape: Shape, gpu: Gpu) -> None:
    """Prints what the plan's diagnosis takes; one GPU works at a time, as `device_map` has it."""
    count, tokens, has_experts = gpus(shape, gpu), PROMPT + ANSWER, shape.experts > 0
    free_gib = (gpu.size - 2 * shape.weights / count) / GIB
    gib = 2.0 ** math.floor(math.log2(0.5 * free_gib))  # as measure.memory.default_gib has it
    fit = rows_of_decoding(shape.model, tokens, gib)
    # Noise in experts depends on the batch: each condition decodes by itself.
    party = QUESTIONS if has_experts else answers()
    print(f"  {count} GPUs of {gpu.name} in bf16, {gib:g} GiB for work: {fit} rows decode together")
    for name, rows in (
        ("one answer at a time", 1),
        ("by default", min(fit, party)),
        ("all", party),
    ):
        steps = math.ceil(party / rows) * (answers() // party) * ANSWER
        step = step_s(shape, gpu, rows)
        told = ", ".join(f"{part} {1e3 * s:.0f}" for part, s in step.items())
        print(f"    decoding, {name}: {rows} rows, {told} ms; {steps:,} steps, ", end="")
        print(f"{minutes(steps * max(step['compute'], step['weights'] + step['cache']))}")
    # A fork from each window's first layer; what touches experts takes a pass of its own.
    shared = 1 + sum(1 - n / WINDOWS for n in range(WINDOWS))
    passes = 1 + WINDOWS if has_experts else shared
    rows = 1 if has_experts else rows_of_scoring(shape.model, tokens, gib)
    many = (passes, math.ceil(passes * QUESTIONS / rows_of_scoring(shape.model, tokens, gib)))
    scored = text_s(shape, gpu, *many)
    prompts = scored * PROMPT / tokens
    rows = 1 if has_experts else rows_of_profiling(shape.model, tokens, gib)
    turns = 1 + PREDICTION_DRAWS
    predicted = text_s(shape, gpu, turns, math.ceil(turns * QUESTIONS / rows))
    print(f"    prompts {minutes(prompts)}, scoring {minutes(scored)}, ", end="")
    print(f"prediction {minutes(predicted)}, {rows} rows at a time")


def step_s(shape: Shape, gpu: Gpu, rows: int) -> dict[str, float]:
    """Returns seconds of a decoding step: reading weights, moving the cache, multiplying."""
    bandwidth, seen = BANDWIDTH_SHARE * gpu.bandwidth, PROMPT + ANSWER / 2
    # Appended to by copying: read, written, and read by attention. What is expanded: the last two.
    moved = 2 * (3 * shape.cached + 2 * shape.expanded_values)
    products = shape.active + shape.layers * seen * (shape.attended + shape.expanded)
    return {
        "weights": 2 * shape.read(rows) / bandwidth,
        "cache": rows * seen * shape.layers * moved / bandwidth,
        "compute": 2 * rows * products / (COMPUTE_SHARE * gpu.operations),
    }


def text_s(shape: Shape, gpu: Gpu, passes: float, reads: int) -> float:
    """Returns seconds of passes of every question and answer, which read all weights so often."""
    tokens = PROMPT + ANSWER
    products = shape.active + shape.layers * shape.attended * tokens / 2
    compute = 2 * passes * QUESTIONS * tokens * products / (COMPUTE_SHARE * gpu.operations)
    return max(compute, 2 * reads * shape.weights / (BANDWIDTH_SHARE * gpu.bandwidth))


def minutes(seconds: float) -> str:
    return f"{seconds / 60:,.1f} min"


if __name__ == "__main__":
    main()
