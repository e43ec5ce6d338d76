"""Peak memory of scoring, beside the model: a large vocabulary within 4 GiB, and more conditions.

    python benchmarks/memory.py

Each case runs in a process of its own. A thread reads the resident memory every 5 ms; what counts
is its peak, less what was resident when the model had been loaded and its trials had been made. The
first case is 64 texts of 512 tokens under 2 conditions with a vocabulary of 151,936, whose logits
would take 56 GiB in float32 all at once; the others are a small model under ever more conditions.
"""

import argparse
import json
import platform
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import torch
import transformers
from noise_kernel import cpu_name
from transformers import LlamaConfig, LlamaForCausalLM

from noisescope.inject import make_selection
from noisescope.measure import Condition, Plan, Unit, Worker
from noisescope.models import LoadedModel
from noisescope.noise import RelativeGaussian
from noisescope.tasks import make_task

GIB = 1 << 30
LARGE = {"hidden": 128, "vocabulary": 151_936, "samples": 64, "tokens": 512, "conditions": 2}
SMALL = {"hidden": 128, "vocabulary": 1000, "samples": 16, "tokens": 256, "memory_gib": 0.25}
CONDITIONS = (2, 8, 32, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory-gib", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(peak_gib(**json.loads(arguments.case)))
        return
    print(
        f"{cpu_name()}, {arguments.threads} thread(s), Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}"
    )
    large = LARGE | {"memory_gib": arguments.memory_gib, "threads": arguments.threads}
    print(
        f"{LARGE['samples']} x {LARGE['tokens']} tokens, vocabulary {LARGE['vocabulary']:,}, "
        f"{LARGE['conditions']} conditions, limit {arguments.memory_gib} GiB:"
    )
    print(f"  peak {in_a_process(large):.2f} GiB beside the model")
    print(f"16 x 256 tokens, vocabulary 1000, limit {SMALL['memory_gib']} GiB:")
    for count in CONDITIONS:
        peak = in_a_process(SMALL | {"conditions": count, "threads": arguments.threads})
        print(f"  {count:3} conditions: peak {peak:.3f} GiB beside the model", flush=True)


def in_a_process(case: dict[str, float]) -> float:
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_gib(
    hidden: int,
    vocabulary: int,
    samples: int,
    tokens: int,
    conditions: int,
    memory_gib: float,
    threads: int,
) -> float:
    """Returns the most memory that a unit's scoring took, in GiB beside the model."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    loaded = random_model(hidden, vocabulary)
    ids = torch.randint(3, vocabulary, (samples, tokens))
    task = make_task([{"prompt_ids": row} for row in ids.tolist()])
    # Layer by layer, again and again, each time with noise of another scale.
    every = tuple(
        Condition(f"c{n}", RelativeGaussian(0.01 * (1 + n)), make_selection(layers=n % 4))
        for n in range(conditions)
    )
    worker = Worker(loaded, task, Plan(every, memory_gib=memory_gib))
    names = tuple(sample.name for sample in task.samples)
    # The trials and the noise kernel, which are made once for a process.
    worker(Unit("trial", names[:1], tuple(c.name for c in every[:2]), (0,)))
    with Watch() as watch:
        worker(Unit("all", names, tuple(c.name for c in every), (0,)))
    return watch.peak / GIB


def random_model(hidden: int, vocabulary: int) -> LoadedModel:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    model = LlamaForCausalLM(config).float().eval()
    cpu = torch.device("cpu")
    return LoadedModel(model, None, Path("random"), torch.float32, cpu, "", 512, ())


class Watch:
    """Reads the resident memory of this process until it is left.

    Attributes:
        peak: The most bytes above those at the beginning.
    """

    def __enter__(self) -> "Watch":
        self._process = psutil.Process()
        self._begin = self._process.memory_info().rss
        self.peak = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._is_over.wait(0.005):
            self.peak = max(self.peak, self._process.memory_info().rss - self._begin)


if __name__ == "__main__":
    main()
