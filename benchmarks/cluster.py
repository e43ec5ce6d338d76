"""Two workers of one thread each on Ray against one, and against this process without Ray.

    python benchmarks/cluster.py

The demo model and its questions: the units of `noisescope layers`, then the backward passes of its
prediction. The workers are started before anything is timed, for a study of hours starts them once;
what starting takes is told. The three take turns; each turn's figures must be equal to the bit.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is imported: of this process, and of workers

import torch
from noise_kernel import cpu_name

from noisescope import RelativeGaussian, diagnose_layers, load_model, load_task
from noisescope.cluster import RayExecutor
from noisescope.demo import demo_model_dir, demo_questions
from noisescope.extras import require
from noisescope.study import Diagnosis, Executor
from noisescope.versions import versions

WANTED = 1.6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=150)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--turns", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ray = require("ray", "ray", "benchmarks/cluster.py")
    # Three workers at once, of whom one or two work.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    told = ", ".join(f"{name} {version}" for name, version in versions().items())
    print(f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores; {told}, ray {ray.__version__}")
    one, two = RayExecutor(workers=1), RayExecutor(workers=2)
    ways: dict[str, Executor | None] = {"here": None, "1 worker": one, "2 workers": two}
    run = runner(arguments.samples, arguments.draws)
    starting = {name: timed(lambda e=executor: run(e))[0] for name, executor in ways.items()}
    print("first run, with starting: " + ", ".join(f"{n} {s:.1f} s" for n, s in starting.items()))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(arguments.turns):
        found = {}
        for name, executor in ways.items():
            took, found[name] = timed(lambda e=executor: run(e))
            seconds[name].append(took)
        same = all(text == found["here"] for text in found.values())
        print(f"turn {turn + 1}: " + ", ".join(f"{n} {s[-1]:.2f} s" for n, s in seconds.items()))
        if not same:
            raise SystemExit("the figures differ")
    ratio("1 worker / 2 workers", seconds["1 worker"], seconds["2 workers"], WANTED)
    ratio("here / 2 workers", seconds["here"], seconds["2 workers"])
    ratio("1 worker / here", seconds["1 worker"], seconds["here"])
    one.close()
    two.close()
    ray.shutdown()


def runner(samples: int, draws: int) -> Callable[[Executor | None], str]:
    """Returns what carries the study out in memory, and returns all of its records as text."""
    source = {
        "model": str(demo_model_dir()),
        "tokenizer": None,
        "dtype": "float32",
        "device": "cpu",
        "trust_remote_code": False,
        "data": str(demo_questions()),
        "samples": samples,
        "max_new_tokens": 512,
    }
    loaded = load_model(source["model"], dtype="float32", device="cpu")
    task = load_task(Path(source["data"]), samples)

    def run(executor: Executor | None) -> str:
        found: Diagnosis = diagnose_layers(
            loaded,
            task,
            RelativeGaussian(0.2),
            window=2,
            draws=draws,
            memory_gib=1.0,
            source=source,
            executor=executor,
        )
        return repr((found.records, found.told.profile))

    return run


def timed(work: Callable[[], str]) -> tuple[float, str]:
    begin = time.perf_counter()
    found = work()
    return time.perf_counter() - begin, found


def ratio(what: str, above: list[float], below: list[float], wanted: float | None = None) -> None:
    """Prints the ratio of two times, turn by turn."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    goal = "" if wanted is None else f" (wanted: at least {wanted})"
    middle = statistics.median(ratios)
    print(f"{what}: {middle:.2f} [{min(ratios):.2f}, {max(ratios):.2f}]{goal}")


if __name__ == "__main__":
    main()
