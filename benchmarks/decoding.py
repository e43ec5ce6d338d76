"""Answers of many conditions decoded together, against one question and condition at a time.

    python benchmarks/decoding.py --threads 2
    python benchmarks/decoding.py --threads 2 --compile

The demo model, 10 windows of layers x 50 questions, greedy, at most 512 tokens. Ours is the
program's decoder; the baseline is the plan's way: batch of one, `model.generate` inside a
`Session`. It runs on pairs of window and question spread evenly over all, in slices between our
runs, and is scaled to all pairs by their number; `--pairs all` runs every one. Answers are compared
token for token; where they differ, the steps at which the two best logits all but tied are told.
With `--compile` our decoder also runs in batches of fixed size through a compiled model, turn by
turn with the other; what the compiler took is told apart.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
import transformers
from noise_kernel import check, cpu_name

from noisescope.demo import demo_model_dir, demo_questions
from noisescope.inject import Session, make_selection
from noisescope.measure import Condition, layer_windows, window_name
from noisescope.measure.answers import Answer, Boarding, Limits, Prompt
from noisescope.measure.generate import decode
from noisescope.measure.memory import default_gib, rows_of_decoding
from noisescope.measure.sharing import Rider
from noisescope.measure.taken_apart import TakenApart
from noisescope.models import LoadedModel, load_model
from noisescope.noise import RelativeGaussian
from noisescope.tasks import Task, encode_task, load_task

QUESTIONS = 50
NOISE = RelativeGaussian(0.05)

Pair = tuple[str, str]  # names of a window and a question
Decoder = Callable[[], "dict[Pair, Answer]"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", default="50", help="pairs that the baseline runs, or 'all'")
    parser.add_argument("--turns", type=int, default=3, help="our runs, slices of the baseline")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="compiled steps, beside the others")
    arguments = parser.parse_args()
    check(parser, arguments)
    torch.set_num_threads(arguments.threads)
    print(
        f"{cpu_name()}, {arguments.threads} thread(s), Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}; {arguments.turns} turns"
    )
    loaded = load_model(demo_model_dir(), dtype="float32", device="cpu")
    task = load_task(demo_questions(), QUESTIONS)
    conditions = windows(loaded)
    every = [(c.name, s.name) for c in conditions for s in task.samples]
    count = len(every) if arguments.pairs == "all" else int(arguments.pairs)
    pairs = [every[n * len(every) // count] for n in range(count)]
    compare(loaded, task, conditions, pairs, arguments.turns, arguments.compile)


def windows(loaded: LoadedModel) -> tuple[Condition, ...]:
    """Returns the first ten windows: the single layers, then the pairs of neighbours."""
    layers = loaded.model.config.num_hidden_layers
    spans = {window_name(w): w for size in range(1, layers) for w in layer_windows(layers, size, 1)}
    chosen = list(spans.items())[:10]
    return tuple(Condition(name, NOISE, make_selection(layers=span)) for name, span in chosen)


def compare(
    loaded: LoadedModel,
    task: Task,
    conditions: tuple[Condition, ...],
    pairs: list[Pair],
    turns: int,
    compiles: bool,
) -> None:
    names = [sample.name for sample in task.samples]
    vocabulary = loaded.model.get_input_embeddings().num_embeddings
    ids = encode_task(task, loaded.tokenizer, loaded.context_length, vocabulary)
    by_name, prompt_of = {c.name: c for c in conditions}, dict(zip(names, ids, strict=True))
    riders = [
        Rider(c.name, Session(loaded.model, c.error_model, c.selection, attest=False))
        for c in conditions
    ]
    prompts = [Prompt(name, tuple(prompt_of[name])) for name in names]
    decode_together = decoder(loaded, riders, prompts, task)
    decode_together()  # the first run tries what the model lets be shared
    decode_compiled = decoder(loaded, riders, prompts, task, compiles=True)
    first_s = seconds(decode_compiled)[0] if compiles else 0.0
    jobs = [(by_name[c], prompt_of[s], s) for c, s in pairs]
    one_alone(loaded, task, *jobs[0])
    ours_s, compiled_s, alone_s, alone = [], [], [], []
    answers, compiled = {}, {}
    for turn in range(turns):
        took_s, answers = seconds(decode_together)
        ours_s.append(took_s)
        if compiles:
            took_s, compiled = seconds(decode_compiled)
            compiled_s.append(took_s)
        part = range(turn * len(pairs) // turns, (turn + 1) * len(pairs) // turns)
        begin = time.perf_counter()
        alone += [one_alone(loaded, task, *jobs[n]) for n in part]
        alone_s.append((time.perf_counter() - begin) / len(part))
    total = len(conditions) * len(names)
    ratios = [each * total / ours for each, ours in zip(alone_s, ours_s, strict=True)]
    tokens = sum(len(answer.ids) for answer in answers.values())
    print(
        f"{len(conditions)} windows x {len(names)} questions and the clean model's answers, "
        f"{tokens} tokens of {total} noisy answers; the baseline's share: {len(pairs)} of {total} "
        "pairs, without clean answers"
    )
    print(
        f"ours {statistics.median(ours_s):.2f} s, alone {statistics.median(alone_s) * total:.1f} s "
        f"({1e3 * statistics.median(alone_s):.0f} ms a pair): {statistics.median(ratios):.1f} times"
        f" as fast [{min(ratios):.1f}, {max(ratios):.1f}], at least 10"
    )
    differ = [
        pair for pair, answer in zip(pairs, alone, strict=True) if answers[pair].ids != answer
    ]
    close = [answers[pair].close_calls for pair in differ]
    print(f"answers that differ: {len(differ)} of {len(pairs)}; close calls in them: {close}")
    if compiles:
        tell_compiled(answers, compiled, ours_s, compiled_s, first_s)


def tell_compiled(
    answers: dict[Pair, Answer],
    compiled: dict[Pair, Answer],
    ours_s: list[float],
    compiled_s: list[float],
    first_s: float,
) -> None:
    for name, given, took_s in [("growing", answers, ours_s), ("compiled", compiled, compiled_s)]:
        tokens = sum(len(answer.ids) for answer in given.values())
        rates = sorted(tokens / s for s in took_s)
        print(
            f"{name} steps: {statistics.median(rates):.0f} noisy tokens/s "
            f"[{rates[0]:.0f}, {rates[-1]:.0f}]"
        )
    ratios = sorted(one / other for one, other in zip(ours_s, compiled_s, strict=True))
    differ = [pair for pair, answer in answers.items() if compiled[pair].ids != answer.ids]
    close = [answers[pair].close_calls for pair in differ]
    print(
        f"compiled: {statistics.median(ratios):.2f} times as fast [{ratios[0]:.2f}, "
        f"{ratios[-1]:.2f}], after a first run of {first_s:.1f} s that compiles; answers that "
        f"differ: {len(differ)} of {len(answers)}; close calls in them: {close}"
    )


def seconds(run: Decoder) -> tuple[float, dict[Pair, Answer]]:
    begin = time.perf_counter()
    found = run()
    return time.perf_counter() - begin, found


def decoder(
    loaded: LoadedModel,
    riders: list[Rider],
    prompts: list[Prompt],
    task: Task,
    compiles: bool = False,
) -> Decoder:
    """Returns a function that decodes the clean model's and all riders' answers together."""
    apart = TakenApart(loaded.model)
    boardings = [Boarding(r, apart.first_region(r.session)) for r in (Rider("", None), *riders)]
    longest = loaded.context_length or max(len(p.ids) for p in prompts) + task.max_new_tokens
    rows = rows_of_decoding(loaded.model, longest, default_gib(loaded.model))
    limits = Limits(task.max_new_tokens, loaded.context_length, rows)

    def run() -> dict[Pair, Answer]:
        found = decode(
            loaded.model,
            prompts,
            boardings,
            limits,
            apart.prompt_entries,
            compile_steps=compiles,
        )
        return {
            (rider.name, prompt.name): answer
            for rider, answers in zip(riders, found[1:], strict=True)
            for prompt, answer in zip(prompts, answers, strict=True)
        }

    return run


def one_alone(
    loaded: LoadedModel, task: Task, condition: Condition, prompt: list[int], name: str
) -> list[int]:
    """Returns the answer of a batch of one by the library's generation."""
    ids = torch.tensor([prompt])
    session = Session(loaded.model, condition.error_model, condition.selection, attest=False)
    session.name_samples([name])
    longest = loaded.context_length or len(prompt) + task.max_new_tokens
    with torch.no_grad(), session:
        whole = loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=min(task.max_new_tokens, longest - len(prompt)),
            do_sample=False,
        )
    return whole[0, len(prompt) :].tolist()


if __name__ == "__main__":
    main()
