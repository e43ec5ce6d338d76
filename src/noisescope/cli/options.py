"""The options that commands share, and what is checked of them before a model is loaded."""

from pathlib import Path
from typing import Annotated

import typer

from noisescope.analyse import parse_target
from noisescope.diagnose.avalanche import check_scales
from noisescope.errors import InputError
from noisescope.inject import OPERATORS, check_operators
from noisescope.inject.probe import PRESETS
from noisescope.measure import LARGEST_SEED
from noisescope.report import check_output, check_writable
from noisescope.study import check_directory
from noisescope.tasks import Task

Model = Annotated[str, typer.Option(help="Directory of a Hugging Face model (safetensors).")]
Data = Annotated[str, typer.Option(help="Questions: .parquet, GSM8K .jsonl, or a plain .txt.")]
Tokenizer = Annotated[str | None, typer.Option(help="Directory of the tokenizer, if elsewhere.")]
Scale = Annotated[
    float | None,
    typer.Option(
        help="Standard deviation of the error, relative to each value by default; 0.05 if unset. "
        "Of a fault its rate, share, threshold, limit or offset."
    ),
]
ErrorType = Annotated[
    str | None,
    typer.Option(
        help="relative_gaussian (if unset), absolute_gaussian, or a fault: bit_flips, "
        "stuck_channels, dead_zone, saturation, bias."
    ),
]
Format = Annotated[
    str | None,
    typer.Option(help="In place of noise, rounding to a format: mxfp4, nvfp4, fp8_e4m3, int4_g32."),
]
Operand = Annotated[
    str | None,
    typer.Option(
        help="What --format rounds: weights, activations, both (if unset), or output: what "
        "operators give."
    ),
]
Rounding = Annotated[str, typer.Option(help="nearest or stochastic.")]
Operators = Annotated[
    str, typer.Option(help=f"core, all, or names joined by commas: {', '.join(OPERATORS)}.")
]
Samples = Annotated[int, typer.Option(help="How many samples, from the first on.")]
Draws = Annotated[int, typer.Option(help="Realisations of the noise per condition.")]
Seed = Annotated[int, typer.Option(help="Seed of the noise.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; as saved if unset.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, auto; a GPU if there is one.")]
BatchSize = Annotated[int | None, typer.Option(help="Rows that run together; by memory if unset.")]
MemoryGib = Annotated[
    float | None,
    typer.Option(help="Memory to take beside the model, in GiB; half of what is free if unset."),
]
CompileSteps = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Decode answers by a compiled model and a cache of fixed size: for a GPU, where the "
        "study is long enough to pay for a minute or two of compiling.",
    ),
]
AccuracyMargin = Annotated[
    float, typer.Option(help="Loss of accuracy that is still no harm; 0.01 is one point.")
]
KlMargin = Annotated[float, typer.Option(help="KL that is still no harm, in nats per token.")]
Search = Annotated[
    bool,
    typer.Option(
        "--search", help="Find the worst by KL alone, at 40 % of the evaluations or less."
    ),
]
Executor = Annotated[
    str | None,
    typer.Option(help="ray: measure on a cluster of GPUs and machines; in this process if unset."),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        help="The cluster's host:port, ray://host:port, or auto for one on this machine; one is "
        "started if unset."
    ),
]
Workers = Annotated[int | None, typer.Option(help="Workers on the cluster; all that fit if unset.")]
GpusPerWorker = Annotated[
    int | None,
    typer.Option(help="GPUs that one model is spread over; one if unset, where there are any."),
]
Extend = Annotated[
    bool, typer.Option("--extend", help="Add samples, draws or conditions to the study in --out.")
]
NoPredict = Annotated[
    bool, typer.Option("--no-predict", help="Measure only what was asked for; predict nothing.")
]
Scales = Annotated[
    str | None,
    typer.Option(help="Scales for the dose and response, joined by commas: 0.01,0.1."),
]
Until = Annotated[
    str | None,
    typer.Option(help="Look for the scale of this loss: accuracy=-5%, kl=0.1 or nll=0.1."),
]
Window = Annotated[int | None, typer.Option(help="Layers per window; 3 if unset.")]
Stride = Annotated[int | None, typer.Option(help="Layers per step; the window if unset.")]
MaxNewTokens = Annotated[int, typer.Option(help="The most tokens of an answer.")]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that lies in the model's directory.")
]
Out = Annotated[
    Path | None,
    typer.Option(help="Directory to write; a study there goes on where it was."),
]
Log = Annotated[
    list[str] | None,
    typer.Option(
        help="Log what was measured: tensorboard, tensorboard:DIR, wandb or wandb:PROJECT (offline "
        "unless WANDB_MODE says otherwise). May be given several times."
    ),
]
Result = Annotated[Path | None, typer.Option(help="File for the result (JSON) alone.")]


def check_names(operators: str) -> None:
    """Raises SelectionError for a name that is no operator, before anything is loaded."""
    names = [name.strip() for name in operators.split(",")]
    check_operators([name for name in names if name not in PRESETS])


def check_numbers(seed: int, **counts: int | None) -> None:
    """Raises InputError for a seed or a count out of range, before anything is loaded."""
    for name, count in counts.items():
        if count is not None and count < 1:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} {count}: a whole number of at least 1 is needed")
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"--seed {seed}: a whole number from 0 to {LARGEST_SEED} is needed")


def check_outputs(out: Path | None, result: Path | None, extend: bool = False) -> None:
    """Raises InputError unless what is to be written can be, before anything is loaded."""
    if extend and out is None:
        raise InputError("--extend: name the study that is to grow with --out DIR")
    if out is not None and result is not None and result.absolute().is_relative_to(out.absolute()):
        raise InputError(f"--result {result} lies in --out {out}: name a file outside of it")
    if out is not None:
        check_directory(out)
        check_writable("--out", out, out if out.is_dir() else out.absolute().parent)
    if result is not None:
        check_output("--result", result)


def parse_scales(text: str | None, may_be_auto: bool = False) -> list[float] | str | None:
    """Returns the scales of an option; None where they are not given.

    Raises:
        InputError: One of them is no number, or not above 0.
    """
    if text is None or (may_be_auto and text == "auto"):
        return text
    also = ", or auto" if may_be_auto else ""
    scales = []
    for word in text.split(","):
        try:
            scales.append(float(word))
        except ValueError:
            raise InputError(
                f"--scales {text!r}: {word!r} is no number; give scales such as 0.01,0.1{also}"
            ) from None
    check_scales(scales)
    return scales


def check_until(text: str | None, task: Task) -> None:
    """Raises InputError for a loss that cannot be read, or that the data cannot show."""
    if text is None:
        return
    try:
        target = parse_target(text)
    except InputError as error:
        raise InputError(f"--until: {error}") from None
    if target.measure == "accuracy" and not task.is_generative:
        raise InputError(
            f"--until {text}: nothing is generated from {task.name}, so there is no accuracy; give "
            "kl=0.1 or nll=0.1, or questions with answers"
        )


def check_memory(gib: float | None) -> None:
    """Raises InputError for a memory out of range, before anything is loaded."""
    if gib is not None and not 0 < gib < float("inf"):
        raise InputError(f"--memory-gib {gib}: a number of GiB above 0 is needed; try 4")


def check_margins(accuracy: float, kl: float) -> None:
    """Raises InputError for a margin out of range, before anything is loaded."""
    if not 0 < accuracy < 1:
        raise InputError(f"--accuracy-margin {accuracy}: a share between 0 and 1; 0.01 is a point")
    if not 0 < kl < float("inf"):
        raise InputError(f"--kl-margin {kl}: a number of nats above 0 is needed; try 0.01")
