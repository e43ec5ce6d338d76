"""What diagnosing a dense model of 70 and a mixture of 671 billion weights would take, on paper.

    python benchmarks/scaling.py --paper

Weights, sites and channels are counted on the library's own models, on the meta device; rows of a
batch are asked of the program's own `measure.memory`; times are arithmetic from data sheets, at the
shares of their peaks below. GPUs work one after the other, as `device_map="auto"` lets them.
Measured are two constants only, on the CPU at hand: `HASH_BYTES_PER_S` and `SITE_S`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaConfig, LlamaForCausalLM

from noisescope.measure.memory import (
    GIB,
    rows_of_decoding,
    rows_of_profiling,
    rows_of_scoring,
)

QUESTIONS, WINDOWS, PROMPT, ANSWER = 50, 10, 128, 512
PREDICTION_DRAWS = 4
# Of a GPU's peak: what dense products reach, and what reading weights reaches.
COMPUTE_SHARE, BANDWIDTH_SHARE = 0.4, 0.6
WEIGHTS_OF_GPU = 0.75  # the rest is for cache, activations and logits
# Of the machine at hand, one thread: SHA-256 of the weights, and a noisy site of a decoding step.
HASH_BYTES_PER_S, SITE_S = 0.6 * GIB, 50e-6


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
        """Layers."""
        return int(self.model.config.num_hidden_layers)

    @property
    def vocabulary(self) -> int:
        """Words."""
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
        """All weights."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def experts(self) -> int:
        """Those of routed experts."""
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
    """Prints the tables of both models."""
    print(f"{QUESTIONS} questions, {WINDOWS} windows, {PROMPT} + {ANSWER} tokens, bf16; of a GPU's")
    print(f"peak: {COMPUTE_SHARE:.0%} of operations, {BANDWIDTH_SHARE:.0%} of bandwidth")
    for shape in shapes():
        show_memory(shape)
        for gpu in GPUS:
            show_time(shape, gpu)


def show_memory(shape: Shape) -> None:
    config, tokens = shape.model.config, PROMPT + ANSWER
    sites, values = shape.outputs
    cached = 2 * shape.layers * shape.cached
    kept = 2 * shape.layers * (24 * config.hidden_size + 6 * config.intermediate_size)
    lines = {
        "weights": f"bf16 {2 * shape.weights / 1e9:,.0f} GB, fp8 {shape.weights / 1e9:,.0f} GB",
        f"GPUs, {WEIGHTS_OF_GPU:.0%} for weights": "; ".join(
            f"{name} " + " or ".join(f"{gpus(shape, gpu, item)} of {gpu.name}" for gpu in GPUS)
            for item, name in ((2, "bf16"), (1, "fp8"))
        ),
        "cache": f"{cached:,} bytes per token; {cached * tokens / 1e6:,.0f} MB per answer, "
        f"{cached * tokens * answers() / 1e9:,.1f} GB for {answers()} answers",
        "logits": f"{28 * shape.vocabulary / 1e6:.1f} MB per token in hand; all at once, float32: "
        f"{4 * shape.vocabulary * tokens * answers() / 1e9:,.0f} GB",
        "prediction": f"{kept / 1e6:.0f} MB per token and {kept * tokens / 1e9:.1f} GB per text as "
        f"measure.memory reckons; outputs of linear sites {2 * values / 1e6:.1f} MB per token",
        "noise": f"{sites} linear sites, {values:,.0f} values per token: {4 * values / 1e6:.0f} MB "
        f"read and written per token, {4 * values / sites / 1e3:.0f} KB per site",
        "fingerprint": f"{2 * shape.weights / HASH_BYTES_PER_S:,.0f} s in bf16, one thread",
    }
    print(f"\n{shape.name}: {shape.weights:,} weights, {shape.active:,.0f} multiplied per token")
    for name, told in lines.items():
        print(f"  {name:21} {told}")


def answers() -> int:
    """Returns how many answers are decoded: those of the windows, and the clean ones."""
    return QUESTIONS * (1 + WINDOWS)


def gpus(shape: Shape, gpu: Gpu, item: int = 2) -> int:
    return math.ceil(item * shape.weights / (WEIGHTS_OF_GPU * gpu.size))


def show_time(shape: Shape, gpu: Gpu) -> None:
    """Prints what the plan's diagnosis takes on as few GPUs as hold the model."""
    count, tokens, is_mixture = gpus(shape, gpu), PROMPT + ANSWER, shape.experts > 0
    free_gib = (gpu.size - 2 * shape.weights / count) / GIB
    gib = 2.0 ** math.floor(math.log2(0.5 * free_gib))  # as measure.memory.default_gib has it
    fit = rows_of_decoding(shape.model, tokens, gib)
    # Noise in experts depends on the batch: each condition decodes by itself.
    party = QUESTIONS if is_mixture else answers()
    each = 1 if is_mixture else 1 + WINDOWS  # a question's answers decode together
    default = min(party, each * max(1, fit // each))
    print(f"  {count} x {gpu.name}: {gib:g} GiB for work by default, room for {fit} rows")
    for name, rows in (("alone", 1), ("default", default), ("all", party)):
        steps = math.ceil(party / rows) * (answers() // party) * ANSWER
        windows = 1 if is_mixture or rows == 1 else WINDOWS
        step = step_s(shape, gpu, rows, windows)
        told = ", ".join(f"{part} {1e3 * s:.0f}" for part, s in step.items())
        taken = minutes(steps * longest(step))
        print(f"    decoding {name:8} {rows:3} rows: {steps:7,} steps of {told} ms: {taken}")
    # A fork begins at its window's first layer; what touches experts takes a pass of its own.
    passes = 1 + (WINDOWS if is_mixture else sum(1 - n / WINDOWS for n in range(WINDOWS)))
    rows = rows_of_scoring(shape.model, tokens, gib)
    scored = text_s(shape, gpu, passes, math.ceil(passes * QUESTIONS / rows))
    rows = 1 if is_mixture else rows_of_profiling(shape.model, tokens, gib)
    turns = 1 + PREDICTION_DRAWS
    predicted = text_s(shape, gpu, turns, turns * math.ceil(QUESTIONS / rows))
    print(
        f"    prompts {minutes(scored * PROMPT / tokens)}, scoring {minutes(scored)}, prediction "
        f"{minutes(predicted)} with {PREDICTION_DRAWS} draws, {rows} text(s) at a time"
    )


def step_s(shape: Shape, gpu: Gpu, rows: int, windows: int) -> dict[str, float]:
    """Returns seconds of a decoding step: reading weights, moving the cache, multiplying, Python.

    Args:
        shape: The model.
        gpu: Each of the GPUs.
        rows: Answers that decode together.
        windows: Windows among them; each has its share of the noisy sites.
    """
    bandwidth, seen = BANDWIDTH_SHARE * gpu.bandwidth, PROMPT + ANSWER / 2
    # Appended to by copying: read, written, and read by attention. What is expanded: the last two.
    moved = 2 * (3 * shape.cached + 2 * shape.expanded_values)
    products = shape.active + shape.layers * seen * (shape.attended + shape.expanded)
    return {
        "weights": 2 * shape.read(rows) / bandwidth,
        "cache": rows * seen * shape.layers * moved / bandwidth,
        "compute": 2 * rows * products / (COMPUTE_SHARE * gpu.operations),
        "host": shape.outputs[0] * windows / WINDOWS * SITE_S,
    }


def longest(step: Mapping[str, float]) -> float:
    """Returns what a step takes where memory, products and Python run beside each other."""
    return max(step["weights"] + step["cache"], step["compute"], step["host"])


def text_s(shape: Shape, gpu: Gpu, passes: float, reads: int) -> float:
    """Returns seconds of passes over every question and answer, which read all weights so often."""
    tokens = PROMPT + ANSWER
    products = shape.active + shape.layers * shape.attended * tokens / 2
    compute = 2 * passes * QUESTIONS * tokens * products / (COMPUTE_SHARE * gpu.operations)
    return max(compute, 2 * reads * shape.weights / (BANDWIDTH_SHARE * gpu.bandwidth))


def minutes(seconds: float) -> str:
    return f"{seconds / 60:,.1f} min"
