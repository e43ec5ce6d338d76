"""Recommended formats against what is done without a measurement, at equal bits, all measured.

On the demo model along its answers and on stories260K along texts that it has drawn itself: the
recommended assignment against the uniform one of as many bits, the last layers high, and the same
exact choice by the error of the weights alone. KL is paired text by text; predicted stands beside
measured. Nothing is timed. The baselines stand in the same study as what they are held against.

    python benchmarks/recommend.py
"""

import argparse
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from noise_kernel import cpu_name

from noisescope import LoadedModel, Task, load_model, load_task
from noisescope.demo import demo_model_dir, demo_questions
from noisescope.diagnose.recommend import recommend_formats
from noisescope.report.figures import estimate_text, number_text
from noisescope.report.recommendation.section import span_text
from noisescope.versions import versions

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Setting:
    """What is asked: formats, bits per weight, and what is rounded."""

    formats: tuple[str, ...]
    bits: float
    operand: str


SAMPLES = {"stories260K": 64, "demo": 200}
SETTINGS = {
    "stories260K": (
        Setting(("int3_g16", "int4_g16", "int5_g16", "int6_g16"), 6.04, "weights"),
        Setting(("mxfp4", "mxfp6", "mxfp8"), 5.5, "both"),
    ),
    "demo": (Setting(("int3_g32", "int4_g32", "int6_g32", "int8_g32"), 5.0, "both"),),
}


def main() -> None:
    """Measures every setting and prints the assignments of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, help="of each model; 64 texts, 200 questions")
    parser.add_argument("--only", choices=list(SETTINGS))
    given = parser.parse_args()
    print(
        f"{cpu_name()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, noisescope {versions()['noisescope']}"
    )
    for name, settings in SETTINGS.items():
        if given.only not in (None, name):
            continue
        loaded, task = subject(name, given.samples or SAMPLES[name])
        for setting in settings:
            for line in lines(name, loaded, task, setting):
                print(line, flush=True)


def subject(name: str, samples: int) -> tuple[LoadedModel, Task]:
    """Returns a model and what it is measured on."""
    if name == "demo":
        loaded = load_model(str(demo_model_dir()), dtype="float32")
        return loaded, load_task(str(demo_questions()), samples)
    loaded = load_model(str(ROOT / "shared" / "models" / "stories260K"), dtype="float32")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "stories.txt"
        path.write_text("\n\n".join(drawn_texts(loaded, samples)) + "\n")
        return loaded, load_task(str(path), samples)


def drawn_texts(loaded: LoadedModel, count: int, length: int = 128) -> Iterator[str]:
    """Yields texts that the model itself has drawn, by a seed of their own."""
    model, generator = loaded.model, torch.Generator().manual_seed(0)
    ids = torch.full((count, 1), model.config.bos_token_id)
    with torch.no_grad():
        for _ in range(length - 1):
            p = model(input_ids=ids).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator)], dim=1)
    for row in ids.tolist():
        yield " ".join(loaded.tokenizer.decode(row, skip_special_tokens=True).split())


def lines(name: str, loaded: LoadedModel, task: Task, setting: Setting) -> Iterator[str]:
    """Yields what one setting came to."""
    diagnosis = recommend_formats(
        loaded, task, setting.formats, bits=setting.bits, operand=setting.operand
    )
    found = diagnosis.recommendation
    if found is None:
        raise RuntimeError("nothing was recommended")
    what = "weights and activations" if setting.operand == "both" else "weights"
    yield (
        f"\n{name}, {', '.join(setting.formats)} for {what}, at most {setting.bits:g} bits; "
        f"{len(task.samples)} samples, {diagnosis.told.profile.label_draws} draws of signs"
    )
    yield f"{'assignment':36}{'bits':>6}{'predicted':>11}  {'measured KL':26}loses more by"
    for one in found.assigned:
        names = " and ".join([one.name, *one.also])
        worse = "" if one.worse_by is None else span_text(one.worse_by)
        yield (
            f"{names:36}{one.bits:6.3f}{number_text(one.predicted.kl_nats):>11}  "
            f"{estimate_text(one.summary.kl_nats):26}{worse}"
        )


if __name__ == "__main__":
    main()
