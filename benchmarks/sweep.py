"""The plan's whole layer sweep in one run, in its parts, and the prediction of the full map.

    python benchmarks/sweep.py --device cuda

A model of the shape of Qwen2.5-1.5B with random weights; windows of 3 layers, stride 3, are 10
conditions; 50 questions of random tokens, and every answer of 512 tokens, for a random model does
not stop. The program's own `Worker` measures it in units, as a study does: answers, scores and
records; then it predicts every site along the clean answers, as `noisescope profile` does. All of
it again: the first turn compiles, the second does not. The plan reckoned with 2 hours on an A100.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from noise_kernel import check, cpu_name
from torch._dynamo.utils import calculate_time_spent, counters
from transformers import Qwen2Config, Qwen2ForCausalLM

from noisescope.inject import make_selection
from noisescope.inject.probe import list_sites, resolve_operators
from noisescope.measure import (
    CLEAN,
    Condition,
    Plan,
    ProfileOptions,
    Unit,
    UnitResult,
    Worker,
    layer_windows,
    make_units,
    window_name,
)
from noisescope.models import LoadedModel, load_model
from noisescope.noise import RelativeGaussian
from noisescope.profile import Profile
from noisescope.tasks import Task, make_task

NOISE = RelativeGaussian(0.05)
GIB = 1 << 30
MOST_SWEEP_S, MOST_PREDICTION_S = 60, 10
# A step that takes so many times the median waited for prompts or for the compiler.
LONG_STEP = 5


@dataclass(frozen=True)
class Setting:
    """A random Qwen2 and what it is asked; questions are of so many tokens at least and at most."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    questions: int
    question_tokens: tuple[int, int]
    new_tokens: int
    samples_per_unit: int | None = None  # as a study has them

    def config(self) -> Qwen2Config:
        """Returns the model's configuration: no token ends an answer."""
        return Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            tie_word_embeddings=True,
            eos_token_id=None,
        )

    def task(self) -> Task:
        """Returns the questions. No answer is right: it takes a model that has learnt something."""
        random = torch.Generator().manual_seed(1)
        least, most = self.question_tokens
        lengths = torch.randint(least, most + 1, (self.questions,), generator=random).tolist()
        ids = [torch.randint(self.vocabulary, (n,), generator=random).tolist() for n in lengths]
        return make_task(
            [{"prompt_ids": row} for row in ids],
            score=lambda answer, sample: False,
            max_new_tokens=self.new_tokens,
        )


SETTINGS = {
    "full": Setting(1536, 8960, 28, 12, 2, 151_936, 50, (100, 150), 512),
    "smoke": Setting(64, 128, 4, 4, 2, 100, 5, (10, 15), 12, samples_per_unit=3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=2, help="with --compile the first compiles")
    parser.add_argument("--operators", default="core", help="as of noisescope layers")
    parser.add_argument("--samples-per-unit", type=int, help="as a study has them, if not given")
    parser.add_argument("--compile", action="store_true", help="compile the steps of decoding")
    parser.add_argument("--smoke", action="store_true", help="tiny, for the way of it")
    arguments = parser.parse_args()
    check(parser, arguments)
    torch.set_num_threads(arguments.threads)
    setting = SETTINGS["smoke" if arguments.smoke else "full"]
    clock = Clock(arguments.device)
    print_head(arguments, setting)
    loaded = load(setting, clock)
    for turn in range(1, arguments.turns + 1):
        run_turn(turn, loaded, setting, arguments, clock)


def run_turn(
    turn: int,
    loaded: LoadedModel,
    setting: Setting,
    arguments: argparse.Namespace,
    clock: "Clock",
) -> None:
    """Sweeps and predicts with a new worker, which knows nothing of the turn before."""
    task = setting.task()
    conditions = windows(loaded, arguments.operators)
    plan = Plan(conditions, compile_steps=arguments.compile)
    units = units_of(plan, task, arguments.samples_per_unit or setting.samples_per_unit)
    if turn == 1:
        sizes = " + ".join(str(len(unit.samples)) for unit in units)
        print(
            f"{len(conditions)} windows, {conditions[0].name} to {conditions[-1].name}, operators "
            f"{', '.join(conditions[0].selection.operators or ('all',))}, s = {NOISE.scale}; "
            f"{setting.questions} questions in units of {sizes}"
        )
    ticks = Ticks()
    before = compiled_so_far()
    clock.start()
    worker = Worker(loaded, task, plan, tell=ticks)
    results = [ticks.of_unit(lambda unit=unit: worker(unit)) for unit in units]
    sweep_s, sweep_gib = clock.stop()
    is_claimed = not arguments.smoke and arguments.device == "cuda"
    print(f"\nturn {turn}\nsweep: {sweep_s:.2f} s{claim(MOST_SWEEP_S, is_claimed)}; {sweep_gib}")
    compiled = [now - then for now, then in zip(compiled_so_far(), before, strict=True)]
    print_parts(ticks, sweep_s, compiled)
    print_answers(results, ticks, setting)
    ticks.is_muted = True
    clock.start()
    profile = worker.profile([NOISE], ProfileOptions())
    prediction_s, prediction_gib = clock.stop()
    print(
        f"prediction: {prediction_s:.2f} s{claim(MOST_PREDICTION_S, is_claimed)}"
        f"; {prediction_gib}; {told_of(profile)}",
        flush=True,
    )


# What is measured.


@dataclass
class Clock:
    """Seconds, when the GPU has done all that it was given; and the most memory it held."""

    device: str
    begin: float = 0.0

    def start(self) -> None:
        """Begins a part."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self.begin = time.perf_counter()

    def stop(self) -> tuple[float, str]:
        """Returns the seconds and the memory of the part."""
        if self.device != "cuda":
            return time.perf_counter() - self.begin, "memory is told on a GPU alone"
        torch.cuda.synchronize()
        taken_s = time.perf_counter() - self.begin
        return taken_s, f"at most {torch.cuda.max_memory_allocated() / GIB:.1f} GiB"


@dataclass
class Ticks:
    """When the worker told what: a step is told of when its tokens have come from the GPU.

    Attributes:
        first_s: Of each unit, until its first step is done: prompts, compiling and that step.
        steps_s: Of every later step.
        scoring_s: Of each unit, from the first batch that is scored to the last record.
    """

    first_s: list[float] = field(default_factory=list)
    steps_s: list[float] = field(default_factory=list)
    scoring_s: list[float] = field(default_factory=list)
    is_muted: bool = False
    _last: float = 0.0
    _scoring: float | None = None
    _is_first: bool = True

    def __call__(self, what: str, share: float) -> None:
        """Notes the time; this is what a worker calls."""
        if self.is_muted:
            return
        now = time.perf_counter()
        if what.startswith("answering"):
            (self.first_s if self._is_first else self.steps_s).append(now - self._last)
            self._last, self._is_first = now, False
        elif self._scoring is None:
            self._scoring = now

    def of_unit(self, run: Callable[[], UnitResult]) -> UnitResult:
        """Runs a unit."""
        self._last, self._scoring, self._is_first = time.perf_counter(), None, True
        result = run()
        if self._scoring is not None:
            self.scoring_s.append(time.perf_counter() - self._scoring)
        return result

    @property
    def step_s(self) -> float:
        """The median step."""
        return statistics.median(self.steps_s)

    @property
    def decoding_s(self) -> float:
        """All steps; what waited for prompts or the compiler counts as a median one."""
        short = [s for s in self.steps_s if s <= LONG_STEP * self.step_s]
        return sum(short) + self.step_s * (self.steps - len(short))

    @property
    def steps(self) -> int:
        """How many there were."""
        return len(self.first_s) + len(self.steps_s)

    @property
    def prompts_s(self) -> float:
        """Everything of the answers but the steps."""
        return sum(self.first_s) + sum(self.steps_s) - self.decoding_s


def load(setting: Setting, clock: Clock) -> LoadedModel:
    """Writes a random model, which is not counted, and loads it as the program does."""
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as directory:
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(setting.config()).to(torch.bfloat16)
        model.save_pretrained(directory)
        size_gib = sum(p.numel() * p.element_size() for p in model.parameters()) / GIB
        del model
        clock.start()
        loaded = load_model(Path(directory), dtype="bfloat16", device=clock.device)
        loading_s, _ = clock.stop()
    print(
        f"loading {size_gib:.2f} GiB: {loading_s:.2f} s, with its fingerprint, the file in the "
        "page cache; once, not among the parts"
    )
    return loaded


def windows(loaded: LoadedModel, operators: str) -> tuple[Condition, ...]:
    """Returns windows of 3 layers, stride 3, as `noisescope layers` makes them."""
    layers = loaded.model.config.num_hidden_layers
    wanted = resolve_operators(operators, list_sites(loaded.model, [1, 2, 3]))
    return tuple(
        Condition(window_name(w), NOISE, make_selection(layers=w, operators=wanted))
        for w in layer_windows(layers, 3, 3)
    )


def units_of(plan: Plan, task: Task, samples_per_unit: int | None) -> list[Unit]:
    """Returns the units of a study, or those of so many samples."""
    names = [sample.name for sample in task.samples]
    if samples_per_unit is None:
        return make_units(plan, names)
    conditions, draws = tuple(c.name for c in plan.conditions), tuple(range(plan.draws))
    return [
        Unit(f"from {n}", tuple(names[n : n + samples_per_unit]), conditions, draws)
        for n in range(0, len(names), samples_per_unit)
    ]


def compiled_so_far() -> tuple[float, ...]:
    """Returns what this process has compiled: seconds, graphs, those found on disk, breaks."""
    return (
        calculate_time_spent()["total_wall_time"],
        counters["stats"]["unique_graphs"],
        counters["inductor"]["fxgraph_cache_hit"],
        sum(counters["graph_break"].values()),
    )


# What is told of it.


def print_head(arguments: argparse.Namespace, setting: Setting) -> None:
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else cpu_name()
    least, most = setting.question_tokens
    print(
        f"{device}, {arguments.threads} thread(s), Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}; {arguments.turns} turns; "
        f"load average {os.getloadavg()[0]:.1f}\n"
        f"random Qwen2, bfloat16: hidden {setting.hidden}, intermediate {setting.intermediate}, "
        f"{setting.heads} heads, {setting.key_heads} of keys, {setting.layers} layers, vocabulary "
        f"{setting.vocabulary:,}, tied; questions of {least} to {most} tokens, answers of "
        f"{setting.new_tokens}"
    )
    if arguments.smoke:
        print(
            "--smoke: no claim is made of it. Steps are compiled as on a GPU; on a CPU an operator "
            "of ours\nadds the noise, where a GPU's graphs compute it themselves"
        )
    elif arguments.device == "cpu":
        print("on a CPU: no claim is made of it, and it takes hours")


def print_parts(ticks: Ticks, sweep_s: float, compiled: Sequence[float]) -> None:
    seconds, graphs, from_disk, breaks = compiled
    scoring_s = sum(ticks.scoring_s)
    rest_s = sweep_s - ticks.prompts_s - ticks.decoding_s - scoring_s
    print(
        f"  prompts' passes and compiling {ticks.prompts_s:.2f} s, of it compiling {seconds:.2f} s "
        f"({graphs:.0f} graphs, {from_disk:.0f} of them found in the compiler's cache on disk, "
        f"{breaks:.0f} breaks)\n"
        f"  decoding {ticks.decoding_s:.2f} s: {ticks.steps} steps, median {1e3 * ticks.step_s:.1f}"
        f" ms\n"
        f"  scoring and records {scoring_s:.2f} s\n"
        f"  the rest (sessions, trials) {rest_s:.2f} s"
    )


def print_answers(results: Sequence[UnitResult], ticks: Ticks, setting: Setting) -> None:
    """Tells what came of the sweep: so many tokens, and that noise arrived."""
    lengths = [len(r.answer.split()) for result in results for r in result.records]
    noisy = [r for result in results for r in result.records if r.condition != CLEAN]
    doses = [w.dose().relative_l2 for result in results for w in result.witnesses.values()]
    whole = sum(length == setting.new_tokens for length in lengths)
    # The first token of an answer comes of its prompt's pass.
    rate = (sum(lengths) - len(lengths)) / ticks.decoding_s
    print(
        f"  {len(lengths)} rows, clean ones among them, {whole} of them {setting.new_tokens} tokens"
        f" long; {sum(lengths):,} tokens, {rate:,.0f} a second of decoding\n"
        f"  noise arrived: relative L2 {min(doses):.3f} to {max(doses):.3f} by condition; KL of "
        f"{len(noisy)} noisy rows, median {statistics.median(r.kl_nats for r in noisy):.2e} nats"
    )
    for note in dict.fromkeys(note for result in results for note in result.notes):
        print(f"  note: {note}")


def told_of(profile: Profile) -> str:
    return (
        f"{len(profile.sites)} sites, {len(profile.samples)} texts, {sum(profile.tokens):,} scored "
        f"tokens, {profile.label_draws} draws of signs"
    )


def claim(most_s: float, is_claimed: bool) -> str:
    return f" (claim: < {most_s} s)" if is_claimed else " (no claim)"


if __name__ == "__main__":
    main()
