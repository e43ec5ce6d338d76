"""A session on a compiled model, against the compiled model clean and the session uncompiled.

    python benchmarks/compiled.py --threads 2
    python benchmarks/compiled.py --device cuda

A random Qwen2, noise on all linear layers; whole texts, and one step of decoding with a cache of
fixed size, as the program decodes. Every variant has modules of its own over the same weights and
takes its turn, as in injection.py. On a GPU graphs compute the noise themselves, on a CPU an
operator of ours calls the kernel; `--in-graph` measures both. Compiled is with inductor, shapes
fixed; after the turns draw, seed and scale change, and no graph may be added.
"""

import argparse
import os
import platform
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
import transformers
from injection import SETTINGS, Setting, Workload, now, relative_l2, take_turns, twin
from noise_kernel import check, cpu_name
from torch import Tensor
from torch._dynamo.utils import calculate_time_spent, counters
from transformers import PreTrainedModel, StaticCache

from noisescope.inject import Session, make_selection
from noisescope.inject.compiled.state import STATE
from noisescope.noise import RelativeGaussian

SCALE = 0.05
LINEAR = make_selection(operators="linear")
CLEAN, SESSION = "clean", "in a session"
COMPILED = "compiled"
# Steps beside the turns: the first, two warm ones, one for each change.
SPARE_STEPS = 16
LEGEND = """\
ratio: in the same turn, median [quartiles]: to the compiled model clean; to the session uncompiled
graphs: made at the first call; added when the draw, then seed and scale, change; graph breaks
compiling: seconds that dynamo and its backend took, from their cache on disk where that has it
logits: relative L2 of their difference to the session uncompiled, which has the same noise"""


@dataclass
class Variant:
    """A way to run the model.

    Attributes:
        name: What the table calls it.
        model: Its modules, on shared weights.
        call: The model, or the compiled one.
        is_noisy: Whether it runs in a session.
        computes: Whether graphs compute the noise themselves; None: as the program has it.
        step: Runs it once and gives logits.
        session: The session that is open.
        first: What the first call compiled.
        added: Graphs that the changes added.
    """

    name: str
    model: PreTrainedModel
    call: Callable[..., object]
    is_noisy: bool = False
    computes: bool | None = None
    step: Callable[[], Tensor] = field(default=lambda: torch.empty(0))
    session: Session | None = None
    first: "Made | None" = None
    added: list[int] = field(default_factory=list)

    @property
    def is_compiled(self) -> bool:
        """Whether it runs a compiled model."""
        return self.call is not self.model

    def run(self) -> Tensor:
        """Runs it once."""
        STATE.computes = self.computes
        try:
            return self.step()
        finally:
            STATE.computes = None

    def time_s(self) -> float:
        """Runs it once and returns the seconds."""
        begin = now(self.model.device)
        self.run()
        return now(self.model.device) - begin

    def open(self, rows: int, scale: float = SCALE, seed: int = 0) -> None:
        """Opens a session on it."""
        self.session = Session(self.model, RelativeGaussian(scale), LINEAR, seed, attest=False)
        self.session.name_samples([f"s{n}" for n in range(rows)])
        self.session.__enter__()

    def close(self) -> None:
        """Closes it."""
        if self.session is not None:
            self.session.__exit__(None, None, None)
            self.session = None


@dataclass(frozen=True)
class Made:
    """What was compiled: seconds, graphs, graph breaks."""

    seconds: float
    graphs: int
    breaks: int

    @classmethod
    def so_far(cls) -> "Made":
        """Returns all of this process."""
        return cls(
            calculate_time_spent()["total_wall_time"],
            counters["stats"]["unique_graphs"],
            sum(counters["graph_break"].values()),
        )

    def __sub__(self, before: "Made") -> "Made":
        return Made(
            self.seconds - before.seconds,
            self.graphs - before.graphs,
            self.breaks - before.breaks,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=25, help="turns that each variant takes")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--in-graph", action="store_true", help="both ways to compute the noise")
    parser.add_argument("--smoke", action="store_true", help="tiny; of the shape of cuda's runs")
    arguments = parser.parse_args()
    check(parser, arguments)
    torch.set_num_threads(arguments.threads)
    setting = setting_of("smoke" if arguments.smoke else arguments.device)
    model = setting.make_model(arguments.device)
    print_head(arguments, model)
    is_claimed = arguments.device == "cuda" and not arguments.smoke
    with torch.no_grad():
        for workload in setting.workloads:
            run(model, workload, arguments.turns, arguments.in_graph, is_claimed)


def setting_of(name: str) -> Setting:
    """Returns the setting of injection.py; on a CPU with a step of decoding, too."""
    setting = SETTINGS[name]
    if name == "smoke":
        return replace(setting, layers=1)  # compiling is all that takes time
    if name == "cuda":
        return setting
    return replace(setting, workloads=(*setting.workloads, Workload(4, 256, is_decode=True)))


def run(
    model: PreTrainedModel, workload: Workload, turns: int, both_ways: bool, is_claimed: bool
) -> None:
    """Measures one workload under every variant and prints its table."""
    # Every twin is an entry more in the compiler's cache of the same code, which is short.
    torch.compiler.reset()
    variants = make_variants(model, both_ways)
    with ExitStack() as stack:
        for variant in variants:
            if variant.is_noisy:
                variant.open(workload.rows)
                stack.callback(variant.close)
            variant.step = start(workload, variant, turns)
        logits = first_calls(variants)
        take_turns(variants, 2)
        times_s = take_turns(variants, turns)
        for variant in variants:
            if variant.is_noisy and variant.is_compiled:
                variant.added = added_graphs(variant, workload.rows)
    print_table(workload, variants, times_s, logits, is_claimed)


def make_variants(model: PreTrainedModel, both_ways: bool) -> list[Variant]:
    ways: dict[str, bool | None] = {f"{COMPILED}, {SESSION}": None}
    if both_ways:
        ways = {
            f"{COMPILED}, {SESSION}, noise by an operator": False,
            f"{COMPILED}, {SESSION}, noise in the graph": True,
        }
    plain = {CLEAN: False, SESSION: True}
    made = [(name, is_noisy, False, None) for name, is_noisy in plain.items()]
    made += [(f"{COMPILED}, {CLEAN}", False, True, None)]
    made += [(name, True, True, computes) for name, computes in ways.items()]
    variants = []
    for name, is_noisy, is_compiled, computes in made:
        own = twin(model)
        call = torch.compile(own, dynamic=False) if is_compiled else own
        variants.append(Variant(name, own, call, is_noisy, computes))
    return variants


def start(workload: Workload, variant: Variant, turns: int) -> Callable[[], Tensor]:
    """Returns a function that runs a variant once and gives logits; fills a cache for it."""
    model, call = variant.model, variant.call
    random = torch.Generator().manual_seed(1)
    size = (workload.rows, workload.tokens)
    ids = torch.randint(model.config.vocab_size, size, generator=random).to(model.device)
    if not workload.is_decode:
        return lambda: call(input_ids=ids, use_cache=False).logits
    capacity = -(-(workload.tokens + turns + SPARE_STEPS) // 64) * 64
    cache = StaticCache(config=model.config, max_cache_len=capacity)
    model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
    mask = torch.ones(workload.rows, capacity, dtype=torch.int64, device=model.device)
    position = torch.full((workload.rows, 1), workload.tokens, device=model.device)

    def step() -> Tensor:
        nonlocal position
        # A step further, as in generation, and as far for every variant.
        output = call(
            input_ids=ids[:, :1],
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        position = position + 1
        return output.logits

    return step


def first_calls(variants: list[Variant]) -> dict[str, Tensor]:
    """Runs each variant for the first time, and returns its logits."""
    logits = {}
    for variant in variants:
        before = Made.so_far()
        logits[variant.name] = variant.run().clone()
        variant.first = Made.so_far() - before
    return logits


def added_graphs(variant: Variant, rows: int) -> list[int]:
    """Returns the graphs that another draw adds, and then another seed and scale."""
    added = []

    def count() -> None:
        before = Made.so_far()
        variant.run()
        added.append((Made.so_far() - before).graphs)

    variant.session.draw = 3
    count()
    variant.close()
    variant.open(rows, scale=4 * SCALE, seed=7)
    count()
    return added


# What is told of it.


def print_head(arguments: argparse.Namespace, model: PreTrainedModel) -> None:
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else cpu_name()
    config = model.config
    print(
        f"{device}, {arguments.threads} thread(s), Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}; {arguments.turns} turns\n"
        f"random Qwen2, {str(model.dtype).removeprefix('torch.')}: hidden {config.hidden_size}, "
        f"intermediate {config.intermediate_size}, {config.num_attention_heads} heads, "
        f"{config.num_key_value_heads} of keys, {config.num_hidden_layers} layers, vocabulary "
        f"{config.vocab_size:,}; all linear layers noisy, s = {SCALE}\n{LEGEND}"
    )
    if arguments.smoke:
        print("--smoke: the way is that of a GPU, the size is not: no claim is made of times")
    elif arguments.device == "cpu":
        print("on a CPU no claim is made of times")


def print_table(
    workload: Workload,
    variants: list[Variant],
    times_s: dict[str, list[float]],
    logits: dict[str, Tensor],
    is_claimed: bool,
) -> None:
    base = times_s[f"{COMPILED}, {CLEAN}"]
    limit = f" (claim: <= {1.15 if workload.is_decode else 1.10:.2f})" if is_claimed else ""
    print(f"\n{workload}; load average {os.getloadavg()[0]:.1f}")
    for variant in variants:
        own = times_s[variant.name]
        told = f"  {variant.name}: {1e3 * statistics.median(own):.2f} ms"
        if variant.name != f"{COMPILED}, {CLEAN}":
            told += f"; to {COMPILED} {CLEAN} {ratio(own, base)}"
        if variant.is_noisy and variant.is_compiled:
            distance = relative_l2(logits[variant.name], logits[SESSION])
            told += f"{limit}; to uncompiled {SESSION} {ratio(own, times_s[SESSION])}"
            told += f"; logits {distance:.1e}"
        print(told)
        if variant.is_compiled and variant.first is not None:
            print(f"    {graphs_of(variant)}", flush=True)
    moved = relative_l2(logits[SESSION], logits[CLEAN])
    print(f"  the noise itself moves the logits by {moved:.1e}")


def graphs_of(variant: Variant) -> str:
    first = variant.first
    told = f"compiling {first.seconds:.1f} s, {first.graphs} graph(s), {first.breaks} break(s)"
    if variant.added:
        draw, others = variant.added
        told += f"; added by another draw {draw}, by another seed and scale {others} (claim: 0)"
    return told


def ratio(own_s: list[float], base_s: list[float]) -> str:
    ratios = [own / base for own, base in zip(own_s, base_s, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return f"{median:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
