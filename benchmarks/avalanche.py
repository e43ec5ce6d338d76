"""Where the measured KL leaves the predicted line, on real models, and what scale costs how much.

For each model: all layers and every window over scales around one at which it begins to suffer, the
line of the prediction beside; whether errors of the layers add, compound or cancel; the scale at
which KL reaches 0.1 nats per token, bracketed; and the layer from which on errors are amplified.

    python benchmarks/avalanche.py --shared ../shared
"""

import argparse
import time
import warnings
from pathlib import Path

import torch

from noisescope import (
    LoadedModel,
    RelativeGaussian,
    diagnose_layers,
    load_model,
    load_task,
    make_task,
    token_task,
)
from noisescope.demo import demo_model_dir, demo_questions
from noisescope.tasks import Task
from noisescope.versions import versions

DRAWS = 4


def sorting_task(samples: int) -> Task:
    """Returns lists of six digits to be sorted."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, 3, (samples, 6), generator=generator).tolist()
    return token_task(prompts, [sorted(prompt) for prompt in prompts])


@torch.no_grad()
def story_task(loaded: LoadedModel, samples: int, tokens: int = 96) -> Task:
    """Returns texts that the model itself has drawn."""
    model, generator = loaded.model, torch.Generator().manual_seed(0)
    ids = torch.full((samples, 1), model.config.bos_token_id)
    for _ in range(tokens):
        p = model(input_ids=ids).logits[:, -1].softmax(dim=-1)
        ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator)], dim=1)
    return make_task([{"prompt_ids": row} for row in ids.tolist()], name="drawn stories")


def show(name: str, loaded: LoadedModel, task: Task, scale: float, window: int) -> None:
    """Measures one model and prints what was found."""
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = diagnose_layers(
            loaded,
            task,
            RelativeGaussian(scale),
            window=window,
            draws=DRAWS,
            scales="auto",
            until="kl=0.1",
        )
    told = found.findings
    print(f"\n{name}: {len(task.samples)} samples, {DRAWS} draws, around scale {scale}")
    print("  measured KL, nats per token, and its ratio to the line [95 %]")
    for base, response in told.responses.items():
        for point in response.scales:
            print(
                f"  {base:>10} {point.scale:8.4g} {point.measured.mean:10.3g} "
                f"{point.ratio.mean:9.3g} [{point.ratio.low:.3g}, {point.ratio.high:.3g}] "
                f"{point.place}"
            )
        print(f"  {base}: {response.reason}")
    if told.additivity is not None:
        print(f"  regions together: {told.additivity.reason}")
    if told.amplification is not None:
        print(f"  depth: {told.amplification.reason}")
    if told.critical is not None:
        print(f"  {told.critical.reason}")
    if told.agreement is not None:
        print(
            f"  prediction over {told.agreement.conditions} conditions at {scale}: rank "
            f"{told.agreement.rank:.3f}, slope {told.agreement.slope.mean:.2f}, R2 "
            f"{told.agreement.r2:.3f}, measured/predicted {told.agreement.ratio:.3g}"
        )
    print(f"  {time.perf_counter() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--samples", type=int, default=32)
    arguments = parser.parse_args()
    options = {"dtype": "float32", "device": "cpu"}
    print("versions:", ", ".join(f"{k} {v}" for k, v in versions().items()))
    nano = load_model(arguments.shared / "models" / "gpt-nano-sort", **options)
    show("gpt-nano-sort", nano, sorting_task(3 * arguments.samples), 0.2, 1)
    stories = load_model(arguments.shared / "models" / "stories260K", **options)
    show("stories260K", stories, story_task(stories, arguments.samples), 0.1, 1)
    demo = load_model(demo_model_dir(), **options)
    show("the demo model", demo, load_task(demo_questions(), arguments.samples), 0.1, 2)


if __name__ == "__main__":
    main()
