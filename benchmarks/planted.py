"""Does a blind diagnosis name what was planted, and keep silent where nothing was?

Small random models, half of them with one site made fragile without changing what the model
computes: a large vector added to every key, which the softmax does not see; an offset on all
channels that later LayerNorms remove; a value added behind one projection and taken away by the
next. Each is diagnosed whole, as a user would, and what the diagnosis blames is compared with what
was planted. Nothing is told to it but the model and random texts.

    python benchmarks/planted.py                     # 40 planted, 40 untouched
    python benchmarks/planted.py --models 4 --jobs 1
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from scipy import stats
from torch import nn

from noisescope import LoadedModel, RelativeGaussian, diagnose_model, fingerprint, make_task
from noisescope.analyse import STANDS_OUT
from noisescope.versions import versions

LAYERS, WIDTH, HEADS, VOCABULARY, CONTEXT = 8, 48, 4, 96, 32
SAMPLES, TOKENS, DRAWS, SCALE = 16, 24, 2, 0.05
KINDS = ("key vector", "offset", "added and taken away", "none")


@dataclass(frozen=True)
class Case:
    """One model: family, seed of its weights, and what is planted where, how large."""

    number: int
    family: str
    kind: str
    layer: int
    strength: float


@dataclass(frozen=True)
class Outcome:
    """What the diagnosis of a case said."""

    case: Case
    is_alarm: bool
    is_named: bool
    blamed: tuple[str, ...]
    change_nats: float  # of what the clean model computes, by the planting
    seconds: float


def make_case(number: int, is_planted: bool, strength: float) -> Case:
    """Returns a case, drawn by its number."""
    generator = np.random.default_rng([number, int(is_planted)])
    family = ("gpt2", "opt")[int(generator.integers(2))]
    kind = KINDS[int(generator.integers(3))] if is_planted else "none"
    return Case(number, family, kind, int(generator.integers(LAYERS)), strength)


def make_model(case: Case) -> Any:
    """Returns the random model of a case before anything is planted."""
    shared = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if case.family == "gpt2":
        config: Any = transformers.GPT2Config(
            n_positions=CONTEXT,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            initializer_range=0.15,
            **shared,
        )
        kind: Any = transformers.GPT2LMHeadModel
    else:
        config = transformers.OPTConfig(
            hidden_size=WIDTH,
            word_embed_proj_dim=WIDTH,
            ffn_dim=4 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=CONTEXT,
            init_std=0.15,
            **shared,
        )
        kind = transformers.OPTForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 + case.number)
        return kind(config).float().eval()


@torch.no_grad()
def plant(model: Any, case: Case) -> frozenset[str]:
    """Makes one site of a model fragile; returns the operators whose outputs became large."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.number)
        direction = torch.randn(WIDTH)
        picks = torch.rand(2)
    if case.kind == "offset":
        for_attention = bool(picks[0] < 0.5)
        _writer(model, case, for_attention).bias += case.strength
        return frozenset({"linear"})
    if case.kind == "key vector":
        _bias_of(model, case, 1).add_(case.strength * direction)
        return frozenset({"linear", "matmul"})
    _bias_of(model, case, 2).add_(case.strength * direction)
    writer = _writer(model, case, for_attention=True)
    weight = writer.weight if isinstance(writer, nn.Linear) else writer.weight.T
    writer.bias -= case.strength * weight @ direction
    return frozenset({"linear", "matmul"})


def _layer(model: Any, case: Case) -> Any:
    layers = model.transformer.h if case.family == "gpt2" else model.model.decoder.layers
    return layers[case.layer]


def _writer(model: Any, case: Case, for_attention: bool) -> Any:
    """Returns the projection that writes the attention's or the MLP's result."""
    layer = _layer(model, case)
    if case.family == "gpt2":
        return layer.attn.c_proj if for_attention else layer.mlp.c_proj
    return layer.self_attn.out_proj if for_attention else layer.fc2


def _bias_of(model: Any, case: Case, part: int) -> torch.Tensor:
    """Returns the bias of the keys (1) or values (2)."""
    layer = _layer(model, case)
    if case.family == "gpt2":
        return layer.attn.c_attn.bias[part * WIDTH : (part + 1) * WIDTH]
    attention = layer.self_attn
    projection = (attention.q_proj, attention.k_proj, attention.v_proj)[part]
    return projection.bias


def run_case(case: Case) -> Outcome:
    """Diagnoses a model blind and compares."""
    torch.set_num_threads(1)
    model = make_model(case)
    texts = _texts(case)
    before = _log_probabilities(model, texts)
    operators = plant(model, case) if case.kind != "none" else frozenset()
    after = _log_probabilities(model, texts)
    change = float((before.exp() * (before - after)).sum(dim=-1).mean())
    loaded = LoadedModel(
        model, None, Path("planted"), torch.float32, model.device, fingerprint(model), CONTEXT, ()
    )
    task = make_task([{"prompt_ids": ids} for ids in texts.tolist()], name="random texts")
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = diagnose_model(loaded, task, RelativeGaussian(SCALE), draws=DRAWS)
    blame = found.findings.blame
    is_alarm = blame is not None and blame.kind == STANDS_OUT
    blamed = blame.sites if blame is not None and is_alarm else ()
    sites = {site.name: site for site in found.told.profile.sites}
    first = sites[blamed[0]] if blamed else None
    is_named = first is not None and first.region == str(case.layer) and first.operator in operators
    return Outcome(case, is_alarm, is_named, blamed, change, time.perf_counter() - began)


def _texts(case: Case) -> torch.Tensor:
    generator = torch.Generator().manual_seed(77 + case.number)
    return torch.randint(3, VOCABULARY, (SAMPLES, TOKENS), generator=generator)


@torch.no_grad()
def _log_probabilities(model: Any, texts: torch.Tensor) -> torch.Tensor:
    return model(input_ids=texts).logits.double().log_softmax(dim=-1)


def show(title: str, outcomes: list[Outcome], is_good: Callable[[Outcome], bool]) -> None:
    """Prints how many were right, with the exact 95 % interval, and the others by name."""
    right = sum(map(is_good, outcomes))
    interval = stats.binomtest(right, len(outcomes)).proportion_ci()
    print(
        f"{title}: {right} of {len(outcomes)}, {right / len(outcomes):.1%} "
        f"[{interval.low:.1%}, {interval.high:.1%}]"
    )
    for outcome in outcomes:
        if not is_good(outcome):
            case = outcome.case
            print(
                f"  not so: {case.family} {case.number}, {case.kind} in layer {case.layer}; "
                f"blamed: {', '.join(outcome.blamed) or 'nobody'}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=40, help="of each half")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--strength", type=float, default=60.0, help="what is added, where outputs are of size 1"
    )
    arguments = parser.parse_args()
    cases = [
        make_case(number, is_planted, arguments.strength)
        for is_planted in (True, False)
        for number in range(arguments.models)
    ]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        outcomes = []
        for outcome in pool.map(run_case, cases):
            outcomes.append(outcome)
            print(f"\r{len(outcomes)} of {len(cases)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    planted = [o for o in outcomes if o.case.kind != "none"]
    untouched = [o for o in outcomes if o.case.kind == "none"]
    print(f"planted with strength {arguments.strength:g}")
    print(f"noise {SCALE} on everything, {SAMPLES} texts of {TOKENS} tokens, {DRAWS} draws")
    print(f"what the planting changed: at most {max(o.change_nats for o in planted):.1e} nats")
    show("planted layer and operator named", planted, lambda o: o.is_named)
    for kind in KINDS[:-1]:
        some = [o for o in planted if o.case.kind == kind]
        if some:
            show(f"  of them {kind}", some, lambda o: o.is_named)
    show("untouched and no alarm", untouched, lambda o: not o.is_alarm)
    print(f"a diagnosis takes {np.median([o.seconds for o in outcomes]):.1f} s (middle of all)")
    print("versions:", ", ".join(f"{k} {v}" for k, v in versions().items()))


if __name__ == "__main__":
    main()
