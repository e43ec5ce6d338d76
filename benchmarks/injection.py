"""What injection into a model costs, beside the tools that people would otherwise use, in one run.

    pip install --no-deps --target DIR -r benchmarks/requirements.txt
    python benchmarks/injection.py --threads 2 --others DIR
    python benchmarks/injection.py --device cuda

Every variant has modules of its own over the same weights, is set up before time is taken and stays
so. In a turn each runs once; who goes first rotates, and every second turn runs backwards. What
counts is the ratio to the clean pass of the same turn. That error arrives is shown beside it: the
output of each linear layer is compared with what its own input gives without error.
"""

import argparse
import copy
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import other_tools
import torch
import torch.nn.functional as F
import transformers
from noise_kernel import check, cpu_name
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from noisescope.inject import Session, make_selection
from noisescope.noise import RelativeGaussian

SCALE = 0.05
LEGEND = """\
ratio: to clean in the same turn; of some layers in a session, to the same ones without it
logits: relative L2 of their change
linear: linear layers whose output differs from what their own input gives without error
dose: relative L2 of that difference, the median layer's
no claim is made of --smoke"""


@dataclass(frozen=True)
class Workload:
    """A forward pass: of whole texts, or of one more token behind a cache."""

    rows: int
    tokens: int
    is_decode: bool = False

    def __str__(self) -> str:
        shape = f"{self.rows} x {self.tokens}"
        return f"one step of {shape} tokens in the cache" if self.is_decode else f"{shape} tokens"

    def start(self, model: PreTrainedModel) -> Callable[[], Tensor]:
        """Returns a function that runs the model once and gives logits; fills a cache for it."""
        device = model.device
        random = torch.Generator().manual_seed(1)
        size = (self.rows, self.tokens)
        ids = torch.randint(model.config.vocab_size, size, generator=random).to(device)
        if not self.is_decode:
            return lambda: model(input_ids=ids, use_cache=False).logits
        cache = DynamicCache(config=model.config)
        model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
        # Each call is a step further: as in generation, and as far for every variant.
        return lambda: model(input_ids=ids[:, :1], past_key_values=cache).logits


@dataclass(frozen=True)
class Setting:
    """A random Qwen2 and what it runs."""

    hidden: int
    intermediate: int
    heads: int
    layers: int
    vocabulary: int
    dtype: torch.dtype
    workloads: tuple[Workload, ...]

    def make_model(self, device: str) -> PreTrainedModel:
        """Returns the model; its head is the table of its embeddings."""
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
        return Qwen2ForCausalLM(config).to(device=device, dtype=self.dtype).eval()


SETTINGS = {
    # A small vocabulary, lest the head outweigh six layers.
    "cpu": Setting(896, 4864, 14, 6, 1000, torch.float32, (Workload(1, 64), Workload(1, 256))),
    # The shape of Qwen2.5-1.5B.
    "cuda": Setting(
        *(1536, 8960, 12, 28, 151_936),
        torch.bfloat16,
        (Workload(8, 512), Workload(64, 512, is_decode=True)),
    ),
    "smoke": Setting(
        *(64, 128, 4, 3, 100),
        torch.bfloat16,
        (Workload(2, 16), Workload(4, 16, is_decode=True)),
    ),
}


@dataclass
class Variant:
    """A way to run the model.

    Attributes:
        name: What the table calls it.
        model: The modules it runs, on shared weights.
        limit: What is claimed of the ratio.
        against: The variant whose time is 1.
        stamps: Where only a part of the pass counts, the times of its begin and end.
    """

    name: str
    model: PreTrainedModel
    limit: str = ""
    against: str = "clean"
    stamps: list[float] | None = None
    step: Callable[[], Tensor] = field(default=lambda: torch.empty(0))

    def time_s(self) -> float:
        """Runs once and returns the seconds that count."""
        if self.stamps is not None:
            self.stamps.clear()
            self.step()
            begin, end = self.stamps
            return end - begin
        begin = now(self.model.device)
        self.step()
        return now(self.model.device) - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=25, help="turns that each variant takes")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--others", metavar="DIR", help="where the other tools are installed")
    parser.add_argument("--smoke", action="store_true", help="tiny; of the shape of cuda's runs")
    arguments = parser.parse_args()
    check(parser, arguments)
    if arguments.others:
        if not Path(arguments.others).is_dir():
            parser.error(f"--others {arguments.others}: no such folder; see requirements.txt")
        sys.path.append(arguments.others)
    torch.set_num_threads(arguments.threads)
    setting = SETTINGS["smoke" if arguments.smoke else arguments.device]
    model = setting.make_model(arguments.device)
    print_head(arguments, model)
    print_tools()
    print(LEGEND)
    with torch.no_grad():
        for workload in setting.workloads:
            run(model, workload, arguments.turns)


def run(model: PreTrainedModel, workload: Workload, turns: int) -> None:
    """Measures one workload under every variant and prints its table."""
    with ExitStack() as stack:
        variants = make_variants(model, stack)
        for variant in variants:
            variant.step = workload.start(variant.model)
        effects = effects_of(variants)
        take_turns(variants, 2)
        times_s = take_turns(variants, turns)
    clean_ms = statistics.median(times_s["clean"]) * 1e3
    print(f"\n{workload}: clean {clean_ms:.1f} ms; load average {os.getloadavg()[0]:.1f}")
    print(f"{'ratio: median [quartiles]':>28}  {'claim':<8}{'logits':>7}{'linear':>9}{'dose':>7}")
    for variant, effect in zip(variants, effects, strict=True):
        print_row(variant, effect, times_s)


def make_variants(model: PreTrainedModel, stack: ExitStack) -> list[Variant]:
    """Returns every variant, set up; what must be undone is put on the stack."""
    twins = partial(twin, model)
    layers = f"layers 1 to {model.config.num_hidden_layers - 1}"
    variants = [
        Variant("clean", twins()),
        Variant("clean again: what the machine adds", twins(), "1.00"),
        Variant(
            "session on one region where nothing fires",
            in_session(twins(), stack, layers="norm", operators="linear"),
            "1.00",
        ),
        Variant(
            "session on all regions where nothing fires",
            in_session(twins(), stack, operators="linear", phases="backward"),
        ),
        Variant(f"{layers}, clean", twins(), stamps=[]),
        Variant(
            f"{layers}, session on layer 0",
            in_session(twins(), stack, layers=0),
            "<= 1.01",
            against=f"{layers}, clean",
            stamps=[],
        ),
        Variant(
            "noisescope, all linear", in_session(twins(), stack, operators="linear"), "<= 1.10"
        ),
        Variant("bare hooks, all linear", other_tools.with_hooks(twins(), SCALE)),
    ]
    for variant in variants:
        if variant.stamps is not None:
            put_stamps(variant)
    tools = other_tools.find_tools()
    return variants + [
        Variant(f"{name}, all linear", other_tools.TOOLS[name](twins(), SCALE)) for name in tools
    ]


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """Returns modules of their own over the same weights: hooks here are none there."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def in_session(model: PreTrainedModel, stack: ExitStack, **selected: object) -> PreTrainedModel:
    # Without attestation: some of these sessions are meant to do nothing.
    session = Session(model, RelativeGaussian(SCALE), make_selection(**selected), attest=False)
    stack.enter_context(session)
    return model


def put_stamps(variant: Variant) -> None:
    """Takes the time before layer 1 and behind the last layer, in passes of the whole model."""

    def stamp(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        variant.stamps.append(now(variant.model.device))

    body = variant.model.model
    body.layers[1].register_forward_pre_hook(stamp)
    body.norm.register_forward_pre_hook(stamp)


@dataclass(frozen=True)
class Effect:
    """What a variant's error did: relative L2 at the logits, and at linear layers that changed."""

    logits: float
    doses: tuple[float, ...]
    linears: int


def effects_of(variants: list[Variant]) -> list[Effect]:
    """Returns the effect of each variant; the first is clean."""
    clean = variants[0].step()
    moved = [0.0] + [relative_l2(variant.step(), clean) for variant in variants[1:]]
    doses = [doses_of(variant) for variant in variants]
    return [
        Effect(logits, tuple(d for d in found if d), len(found))
        for logits, found in zip(moved, doses, strict=True)
    ]


def doses_of(variant: Variant) -> list[float]:
    """Returns the relative L2 of the error on the output of each linear layer in one pass.

    The outputs are compared afterwards, outside every mode, with those of the same inputs.
    """
    seen: list[tuple[nn.Linear, Tensor, Tensor]] = []
    with ExitStack() as stack:
        for linear in other_tools.linears(variant.model).values():
            hook = linear.register_forward_hook(lambda m, args, y: seen.append((m, args[0], y)))
            stack.callback(hook.remove)
        variant.step()
    return [relative_l2(y, F.linear(x, m.weight, m.bias)) for m, x, y in seen]


def relative_l2(noisy: Tensor, clean: Tensor) -> float:
    return float((noisy.float() - clean.float()).norm() / clean.float().norm())


def take_turns(variants: list[Variant], turns: int) -> dict[str, list[float]]:
    """Returns seconds per variant, one of each per turn."""
    times_s: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for turn in range(turns):
        first = turn % len(variants)
        order = variants[first:] + variants[:first]
        for variant in order if turn % 2 else reversed(order):
            times_s[variant.name].append(variant.time_s())
    return times_s


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def print_head(arguments: argparse.Namespace, model: PreTrainedModel) -> None:
    device = torch.cuda.get_device_name() if model.device.type == "cuda" else cpu_name()
    config = model.config
    print(
        f"{device}, {arguments.threads} thread(s), Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}; {arguments.turns} turns\n"
        f"random Qwen2, {str(model.dtype).removeprefix('torch.')}: hidden {config.hidden_size}, "
        f"intermediate {config.intermediate_size}, {config.num_attention_heads} heads, "
        f"{config.num_key_value_heads} of keys, {config.num_hidden_layers} layers, vocabulary "
        f"{config.vocab_size:,}\n"
        f"all linear = outputs of {len(other_tools.linears(model))} layers, the head among them; "
        f"s = {SCALE}\n"
        "bare hooks: y + torch.randn_like(y) * y.abs() * s"
    )
    begin = now(model.device)
    with ExitStack() as stack:
        in_session(model, stack, operators="linear")
    print(f"opening and leaving a session: {(now(model.device) - begin) * 1e3:.1f} ms, once")


def print_tools() -> None:
    tools = other_tools.find_tools()
    for name, note in other_tools.NOTES.items():
        if name in tools:
            print(f"{name} {tools[name]}: {note}")
        else:
            print(f"{name} is absent and left out; benchmarks/requirements.txt says how to get it")


def print_row(variant: Variant, effect: Effect, times_s: dict[str, list[float]]) -> None:
    base = times_s[variant.against]
    ratios = [own / clean for own, clean in zip(times_s[variant.name], base, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    dose = f"{statistics.median(effect.doses):.3f}" if effect.doses else "0"
    print(
        f"{median:12.3f} [{low:.3f}, {high:.3f}]  {variant.limit:<8}{effect.logits:7.3f}"
        f"{len(effect.doses):>5}/{effect.linears}{dose:>7}  {variant.name}"
    )


if __name__ == "__main__":
    main()
