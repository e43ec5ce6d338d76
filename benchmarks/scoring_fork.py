"""Single-layer conditions on every layer in one pass, against one pass per condition, in one run.

    python benchmarks/scoring_fork.py --layers 12 28 --threads 1

A random Llama of width 512 scores a few texts, clean and with noise in each layer. The plain loop
calls the model in a `Session` per condition and computes the same metrics from whole logits. The
two take turns, so that a busy machine slows both alike; what counts is the ratio of each turn.
Passes are counted by hooks: rows that went through a layer, over those of a clean pass.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
import transformers
from noise_kernel import cpu_name
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from noisescope.inject import Session, make_selection
from noisescope.measure import Condition, Plan, Unit, Worker, token_metrics
from noisescope.models import LoadedModel
from noisescope.noise import RelativeGaussian
from noisescope.tasks import Task, make_task

NOISE = RelativeGaussian(0.05)
LIMITS = {12: 0.60, 28: 0.56}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 28])
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--turns", type=int, default=5, help="turns that each of the two takes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, help="the most rows of a pass; default: the program's")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"{cpu_name()}, {arguments.threads} thread(s), Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}; {arguments.turns} turns; "
        f"{arguments.samples} texts of {arguments.tokens} tokens, float32"
    )
    print("ratio = fork / plain: median [min, max]; passes: of clean ones, fork / plain")
    for layers in arguments.layers:
        compare(layers, arguments)


def compare(layers: int, arguments: argparse.Namespace) -> None:
    loaded = random_model(layers)
    task = random_texts(arguments.samples, arguments.tokens)
    conditions = tuple(Condition(f"L{n}", NOISE, make_selection(layers=n)) for n in range(layers))
    worker = Worker(loaded, task, Plan(conditions, batch_size=arguments.rows))
    unit = Unit("all", tuple(s.name for s in task.samples), tuple(c.name for c in conditions), (0,))

    def fork() -> list[float]:
        return [record.kl_nats for record in worker(unit).records[len(task.samples) :]]

    def plain() -> list[float]:
        return plain_loop(loaded.model, task, conditions)

    passes = [count_passes(loaded.model, f, layers * len(task.samples)) for f in (fork, plain)]
    differ = max(abs(a - b) / b for a, b in zip(fork(), plain(), strict=True))
    turns = [(timed(fork), timed(plain)) for _ in range(arguments.turns)]
    limit = f", at most {LIMITS[layers]:.2f}" if layers in LIMITS else ""
    print(
        f"{layers} layers: passes {passes[0]:.1f} / {passes[1]:.1f} = {passes[0] / passes[1]:.3f}; "
        f"largest relative difference of a KL {differ:.1e}"
    )
    for n, clock in enumerate(("process time", "wall time")):
        ratios = [one[n] / other[n] for one, other in turns]
        plain_s = statistics.median(other[n] for _, other in turns)
        print(
            f"  {clock}: plain {plain_s:.2f} s, ratio {statistics.median(ratios):.3f} "
            f"[{min(ratios):.3f}, {max(ratios):.3f}]{limit}"
        )


def random_model(layers: int) -> LoadedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    model = LlamaForCausalLM(config).float().eval()
    return LoadedModel(
        model=model,
        tokenizer=None,
        path=Path("random"),
        dtype=torch.float32,
        device=torch.device("cpu"),
        fingerprint="",
        context_length=512,
        notes=(),
    )


def random_texts(samples: int, tokens: int) -> Task:
    ids = torch.randint(3, 256, (samples, tokens), generator=torch.Generator().manual_seed(1))
    return make_task([{"prompt_ids": row} for row in ids.tolist()])


def plain_loop(
    model: PreTrainedModel, task: Task, conditions: tuple[Condition, ...]
) -> list[float]:
    """Returns the KL of every condition and sample, one pass per condition."""
    ids = torch.tensor([sample.prompt_ids for sample in task.samples])
    names = [sample.name for sample in task.samples]
    labels = ids[:, 1:].reshape(-1)
    with torch.no_grad():
        clean = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        found = []
        for condition in conditions:
            session = Session(model, condition.error_model, condition.selection)
            session.name_samples(names)
            with session:
                noisy = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
            kl = token_metrics(clean, noisy, labels).kl_nats
            found += kl.reshape(len(names), -1).mean(dim=1).tolist()
    return found


def count_passes(
    model: PreTrainedModel, function: Callable[[], object], rows_of_a_pass: int
) -> float:
    """Returns the rows that went through layers, in clean passes."""
    function()  # trials, which are made once for a model, are not counted
    rows: list[int] = []
    with ExitStack() as stack:
        for layer in model.model.layers:
            hook = layer.register_forward_hook(lambda m, a, output: rows.append(len(a[0])))
            stack.callback(hook.remove)
        function()
    return sum(rows) / rows_of_a_pass


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Returns process and wall time of a call."""
    process, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - process, time.perf_counter() - wall


if __name__ == "__main__":
    main()
