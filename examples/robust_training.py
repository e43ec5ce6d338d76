"""Does training under noise make a model more robust? The demo model, trained on with and without.

Both go on from the same weights with the same problems in the same order, by the Trainer of
transformers; one of them meets noise at every operator of every step. Then both are diagnosed under
noise that neither has met, on problems that neither was trained on, and `noisescope compare` says
with intervals which one bears it better.

    python examples/robust_training.py --out build/robust

Run again with the same options it goes on where it stopped.
"""

import argparse
import contextlib
import io
import json
import shutil
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import torch
import transformers
from train_demo_model import Problem, draw_problems, make_batch
from transformers import Trainer, TrainerCallback, TrainingArguments

from noisescope import InputError, NoisescopeError, RelativeGaussian, load_model
from noisescope.cli.main import run
from noisescope.demo import demo_model_dir, demo_questions
from noisescope.training import NoiseCallback

ARMS = ("clean", "noisy")
# The training noise is drawn with another seed than the diagnosis: nothing is learnt by heart.
TRAINING_SEED = 1_000_003


@dataclass(frozen=True)
class Settings:
    """What the result depends on; a directory is of one of them."""

    steps: int
    seed: int
    batch: int
    peak: float
    train_noise: float
    noise_scale: float
    samples: int
    draws: int


class Progress(TrainerCallback):
    """Prints a line every so often."""

    def __init__(self, arm: str) -> None:
        self.arm, self.started = arm, time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Says loss and dose."""
        if "loss" not in logs:
            return
        dose = logs.get("noise/update/forward_relative_l2")
        share = logs.get("noise/update/forward_share_changed", 0.0)
        told = "no noise" if dose is None else f"dose {dose:.2g} on {share:.0%}"
        say(
            f"{self.arm}: step {state.global_step} of {state.max_steps}, loss {logs['loss']:.4f}, "
            f"{told}, {time.monotonic() - self.started:.0f} s"
        )


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the description, and tells the defaults."""


def say(text: str) -> None:
    """Prints a line at once."""
    print(text, flush=True)


def read_options(words: list[str] | None) -> tuple[Path, Settings]:
    """Returns where to write, and what to do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Help)
    parser.add_argument("--out", type=Path, required=True, help="directory; goes on where it was")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each training")
    parser.add_argument("--seed", type=int, default=0, help="of problems, order and noise")
    parser.add_argument("--batch", type=int, default=32, help="problems in a step")
    parser.add_argument("--peak", type=float, default=5e-4, help="peak learning rate")
    parser.add_argument("--train-noise", type=float, default=0.1, help="scale in the noisy arm")
    parser.add_argument("--noise-scale", type=float, default=0.2, help="scale of the diagnosis")
    parser.add_argument("--samples", type=int, default=40, help="questions of the diagnosis")
    parser.add_argument("--draws", type=int, default=4, help="draws of the diagnosis")
    options = vars(parser.parse_args(words))
    out = options.pop("out")
    for name in ("steps", "batch", "samples", "draws"):
        if options[name] < 1:
            raise InputError(f"--{name} {options[name]}: a whole number of at least 1 is needed")
    for name in ("peak", "train_noise", "noise_scale"):
        if not options[name] > 0:
            word = name.replace("_", "-")
            raise InputError(f"--{word} {options[name]}: a number above 0 is needed")
    return out, Settings(**options)


def claim(out: Path, settings: Settings) -> None:
    """Makes the directory one of these settings, or finds that it is."""
    path = out / "settings.json"
    wanted = vars(settings)
    if path.is_file():
        try:
            held = json.loads(path.read_text())
        except ValueError:
            raise InputError(f"{path} is not JSON any more: name another --out") from None
        differing = [f"{n} {held.get(n)!r}" for n in wanted if held.get(n) != wanted[n]]
        if differing:
            raise InputError(
                f"--out {out} was begun with other options ({', '.join(differing)}): give those "
                "again, or name another directory"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} is not empty and not of this example: name another")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=1) + "\n")


def train(arm: str, out: Path, settings: Settings) -> None:
    """Trains one arm from the demo model's weights, or goes on with it."""
    if (out / arm / "trained.json").is_file():
        say(f"{arm}: trained already")
        return
    loaded = load_model(demo_model_dir(), dtype="float32", device="cpu")
    tokenizer = loaded.tokenizer
    problems = draw_problems(settings.seed + 101, settings.steps * settings.batch, held_out=False)

    def collate(rows: list[dict[str, Problem]]) -> dict[str, torch.Tensor]:
        ids_BT, labels_BT = make_batch(tokenizer, [row["problem"] for row in rows])
        return {"input_ids": ids_BT, "labels": labels_BT}

    checkpoints = out / arm / "checkpoints"
    callbacks: list[TrainerCallback] = []
    if arm == "noisy":
        noise = RelativeGaussian(settings.train_noise)
        callbacks.append(NoiseCallback(noise, seed=TRAINING_SEED + settings.seed))
    trainer = Trainer(
        model=loaded.model,
        args=arguments_of(checkpoints, settings),
        train_dataset=[{"problem": problem} for problem in problems],
        data_collator=collate,
        callbacks=[*callbacks, Progress(arm)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    has_checkpoint = any(checkpoints.glob("checkpoint-*/trainer_state.json"))
    trainer.train(resume_from_checkpoint=has_checkpoint)
    loaded.model.eval().save_pretrained(out / arm / "model")
    tokenizer.save_pretrained(out / arm / "model")
    (out / arm / "trained.json").write_text(json.dumps(trainer.state.log_history, indent=1) + "\n")
    shutil.rmtree(checkpoints, ignore_errors=True)


def arguments_of(checkpoints: Path, settings: Settings) -> TrainingArguments:
    """Returns the same arguments for both arms."""
    often = max(1, settings.steps // 10)
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        learning_rate=settings.peak,
        warmup_steps=max(1, settings.steps // 10),
        lr_scheduler_type="cosine",
        weight_decay=0.05,
        adam_beta2=0.98,
        seed=settings.seed,
        data_seed=settings.seed,
        logging_steps=often,
        save_steps=often,
        save_total_limit=1,
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def diagnose(arm: str, out: Path, settings: Settings) -> None:
    """Diagnoses one arm into a study; one that was stopped goes on."""
    words = ["diagnose", f"--model={out / arm / 'model'}", f"--data={demo_questions()}"]
    words += [f"--noise-scale={settings.noise_scale}", f"--samples={settings.samples}"]
    words += [
        f"--draws={settings.draws}",
        f"--seed={settings.seed}",
        f"--out={out / arm / 'study'}",
    ]
    words += ["--max-new-tokens=96", "--device=cpu", "--dtype=float32"]
    say(f"{arm}: noisescope {' '.join(words)}")
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        status = run(words)
    if status == 130:
        raise KeyboardInterrupt
    if status:
        raise InputError(f"the diagnosis of {arm} ended with status {status}")
    (out / arm / "diagnosis.txt").write_text(told.getvalue())


def compare(out: Path) -> int:
    """Prints which one bears noise better, and keeps the page; returns the status."""
    target = out / "comparison"
    shutil.rmtree(target, ignore_errors=True)  # made anew of the two studies each time
    studies = [str(out / arm / "study") for arm in ARMS]
    return run(["compare", *studies, f"--out={target}"])


def main(words: list[str] | None = None) -> int:
    """Trains, diagnoses, compares; 0 when done, 2 for a mistake, 130 when interrupted."""
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    started = time.monotonic()
    try:
        out, settings = read_options(words)
        claim(out, settings)
        for arm in ARMS:
            train(arm, out, settings)
        for arm in ARMS:
            diagnose(arm, out, settings)
        status = compare(out)
    except (NoisescopeError, OSError) as error:
        print(f"Error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on from here.", file=sys.stderr)
        return 130
    say(f"all of it took {time.monotonic() - started:.0f} s; see {out / 'comparison'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
