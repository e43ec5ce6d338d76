"""Predicting every site from backward passes, against injecting at each, in one run; and memory.

    python benchmarks/prediction.py --shared ../shared --turns 3
    python benchmarks/prediction.py --memory

Injection is this package's own: sites ride together and share the layers below them, four draws of
noise each. Both take turns, so that a busy machine slows both alike; what counts is the ratio of
each turn. Linear sites are one comparison (attention stays fused in both), all sites another.
Memory: resident memory of a pass with one draw, and of a plain forward and backward pass with the
gradients of all weights (they are there before, and not counted), each in a process of its own.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from memory import GIB, Watch
from noise_kernel import cpu_name
from transformers import LlamaConfig, LlamaForCausalLM

from noisescope import RelativeGaussian, load_model, load_task
from noisescope.demo import demo_model_dir, demo_questions
from noisescope.inject import Session, make_selection
from noisescope.measure.memory import rows_at_hand
from noisescope.measure.profiling import ProfileOptions, Texts, make_profile
from noisescope.measure.score import make_sequences, score_riders
from noisescope.measure.sharing import Rider
from noisescope.measure.taken_apart import TakenApart
from noisescope.tasks import encode_task

NOISE = RelativeGaussian(0.02)
INJECTED_DRAWS = 4
RULE = f"until {100 * ProfileOptions().label_error:g} %"  # of the program itself
CASES = ("stories260K", "demo", "random")
LARGE = {"hidden": 256, "vocabulary": 32_000, "rows": 4, "tokens": 512}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--peak", choices=("profile", "plain"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        print(peak_gib(arguments.peak))
        return
    print(
        f"{cpu_name()}, 1 thread, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, float32"
    )
    if arguments.memory:
        show_memory()
        return
    print(
        f"{arguments.turns} turns; ratio = {INJECTED_DRAWS} draws at each site / profile, process "
        "time: median [min, max]"
    )
    for case in arguments.cases:
        model, texts = make_case(case, arguments.shared, arguments.samples)
        for operators in (("linear",), None):
            compare(case, model, texts, operators, arguments.turns)


def compare(
    case: str, model: Any, texts: Texts, operators: tuple[str, ...] | None, turns: int
) -> None:
    apart = TakenApart(model)
    draws: dict[str, int | None] = {"2 draws": 2, "4 draws": 4, RULE: None}
    runs = {
        name: ProfileOptions(label_draws=count, operators=operators)
        for name, count in draws.items()
    }
    profile = make_profile(apart, texts, [NOISE], options=runs["2 draws"])  # and its trials
    sites = [site.name for site in profile.sites]
    inject_at(apart, texts, sites[:1])
    taken: dict[str, list[float]] = {name: [] for name in runs}
    injected: list[float] = []
    used = 0
    for _ in range(turns):
        begin = time.process_time()
        inject_at(apart, texts, sites)
        injected.append(time.process_time() - begin)
        for name, options in runs.items():
            begin = time.process_time()
            used = make_profile(apart, texts, [NOISE], options=options).label_draws
            taken[name].append(time.process_time() - begin)
    print(
        f"{case}, {len(texts.names)} texts, {len(sites)} "
        f"{'linear ' if operators else ''}sites: injection {statistics.median(injected):.2f} s"
    )
    for name, seconds in taken.items():
        ratios = [one / other for one, other in zip(injected, seconds, strict=True)]
        told = f"{name} ({used} draws)" if name == RULE else name
        print(
            f"  {told}: {statistics.median(seconds):.2f} s, ratio {statistics.median(ratios):.1f} "
            f"[{min(ratios):.1f}, {max(ratios):.1f}]",
            flush=True,
        )


def inject_at(apart: TakenApart, texts: Texts, sites: Sequence[str]) -> None:
    """Scores four draws of noise at each site."""
    sequences = make_sequences(texts.names, texts.prompts, texts.answers, torch.device("cpu"))
    riders = []
    for name in sites:
        session = Session(apart.model, NOISE, make_selection(sites=(name,)), attest=False)
        riders += [Rider(name, session, draw) for draw in range(INJECTED_DRAWS)]
    rows = max(2 * len(texts.names), rows_at_hand(apart.model, sequences.ids_BT.shape[1]))
    score_riders(apart, sequences, riders, rows=rows)


def make_case(case: str, shared: Path, samples: int) -> tuple[Any, Texts]:
    if case == "random":
        ids = torch.randint(3, 512, (samples, 64), generator=torch.Generator().manual_seed(1))
        return random_model(256, 512), texts_of(ids.tolist())
    if case == "stories260K":
        loaded = load_model(shared / "models" / case, dtype="float32", device="cpu")
        ids = torch.randint(3, 512, (samples, 128), generator=torch.Generator().manual_seed(1))
        return loaded.model, texts_of(ids.tolist())
    loaded = load_model(demo_model_dir(), dtype="float32", device="cpu")
    task = load_task(demo_questions(), samples)
    return loaded.model, texts_of(encode_task(task, loaded.tokenizer, loaded.context_length))


def texts_of(ids: Sequence[Sequence[int]]) -> Texts:
    names = tuple(f"s{n}" for n in range(len(ids)))
    return Texts(names, tuple(row[:1] for row in ids), tuple(row[1:] for row in ids))


def random_model(hidden: int, vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden + hidden * 3 // 4,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
    )
    return LlamaForCausalLM(config).float().eval()


def show_memory() -> None:
    print(f"12 layers of width {LARGE['hidden']}, {LARGE['rows']} x {LARGE['tokens']} tokens,")
    print(f"vocabulary {LARGE['vocabulary']:,}: peak beside the model")
    profile, plain = (
        float(
            subprocess.run(
                [sys.executable, __file__, "--peak", kind],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for kind in ("profile", "plain")
    )
    print(f"  profile {profile:.2f} GiB, plain {plain:.2f} GiB, ratio {profile / plain:.2f}")


def peak_gib(kind: str) -> float:
    """Returns the most memory that a pass took, in GiB beside the model."""
    model = random_model(LARGE["hidden"], LARGE["vocabulary"])
    generator = torch.Generator().manual_seed(1)
    shape = (LARGE["rows"], LARGE["tokens"])
    ids = torch.randint(3, LARGE["vocabulary"], shape, generator=generator)
    if kind == "plain":
        small = model(input_ids=ids[:1, :16]).logits.float().log_softmax(-1).sum()
        small.backward()  # first use of the kernels, and the gradients of all weights
        with Watch() as watch:
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
            torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).backward()
        return watch.peak / GIB
    apart, options = TakenApart(model), ProfileOptions(label_draws=1)
    make_profile(apart, texts_of(ids[:1, :16].tolist()), [NOISE], options=options)
    with Watch() as watch:
        make_profile(apart, texts_of(ids.tolist()), [NOISE], options=options, gib=8.0)
    return watch.peak / GIB


if __name__ == "__main__":
    main()
