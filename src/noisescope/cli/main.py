"""The command line: `noisescope demo | sites | layers | operators`.

Commands translate arguments and write files; everything else happens below. A user's mistake is
one line on standard error and exit status 2; nothing is written before a diagnosis is complete.
"""

import io
import itertools
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from noisescope.demo import demo_model_dir, demo_questions
from noisescope.diagnose import diagnose_layers, diagnose_operators
from noisescope.errors import DoseWarning, InputError, NoisescopeError, NoisescopeWarning
from noisescope.inject import OPERATORS, check_operators
from noisescope.inject.probe import PRESETS, list_sites
from noisescope.measure import LARGEST_SEED, Progress
from noisescope.models import LoadedModel, load_model
from noisescope.noise import make_error_model
from noisescope.report import (
    check_output,
    fresh_directory,
    result_of,
    versions,
    write_directory,
    write_result,
)
from noisescope.report.terminal import print_diagnosis, print_sites, progress_bar
from noisescope.study import Diagnosis
from noisescope.tasks import load_task

# The parser's base class of wrong usage has no public name of its own.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
_INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find where numeric error breaks a language model.",
)

Model = Annotated[str, typer.Option(help="Directory of a Hugging Face model (safetensors).")]
Data = Annotated[str, typer.Option(help="Questions: .parquet, GSM8K .jsonl, or a plain .txt.")]
Tokenizer = Annotated[str | None, typer.Option(help="Directory of the tokenizer, if elsewhere.")]
Scale = Annotated[
    float, typer.Option(help="Standard deviation of the error, relative to each value by default.")
]
ErrorType = Annotated[str, typer.Option(help="relative_gaussian or absolute_gaussian.")]
Rounding = Annotated[str, typer.Option(help="nearest or stochastic.")]
Operators = Annotated[
    str, typer.Option(help=f"core, all, or names joined by commas: {', '.join(OPERATORS)}.")
]
Samples = Annotated[int, typer.Option(help="How many samples, from the first on.")]
Draws = Annotated[int, typer.Option(help="Realisations of the noise per condition.")]
Seed = Annotated[int, typer.Option(help="Seed of the noise.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; as saved if unset.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, auto; a GPU if there is one.")]
BatchSize = Annotated[int | None, typer.Option(help="Samples per batch; by memory if unset.")]
MaxNewTokens = Annotated[int, typer.Option(help="The most tokens of an answer.")]
RemoteCode = Annotated[bool, typer.Option(help="Run code that lies in the model's directory.")]
Out = Annotated[Path | None, typer.Option(help="Directory for result, records and heatmap.")]
Result = Annotated[Path | None, typer.Option(help="File for the result (JSON) alone.")]


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.")
    ] = False,
) -> None:
    """Find where numeric error breaks a language model."""
    if version:
        typer.echo(f"noisescope {versions()['noisescope']}")
        raise typer.Exit


@app.command()
def layers(
    model: Model,
    data: Data,
    tokenizer: Tokenizer = None,
    noise_scale: Scale = 0.05,
    error_type: ErrorType = "relative_gaussian",
    rounding: Rounding = "nearest",
    window: Annotated[int, typer.Option(help="Layers per window.")] = 3,
    stride: Annotated[
        int | None, typer.Option(help="Layers per step; the window if unset.")
    ] = None,
    operators: Operators = "core",
    samples: Samples = 50,
    draws: Draws = 1,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
    batch_size: BatchSize = None,
    max_new_tokens: MaxNewTokens = 512,
    trust_remote_code: RemoteCode = False,
    out: Out = None,
    result: Result = None,
) -> None:
    """Slide a window of noisy layers over a model and measure what each costs."""
    check_outputs(out, result)
    check_numbers(seed, window=window, stride=stride, draws=draws, batch_size=batch_size)
    error_model = make_error_model(error_type, noise_scale, rounding)  # type: ignore[arg-type]
    check_names(operators)
    task = load_task(data, samples, max_new_tokens=max_new_tokens)
    loaded = load(model, tokenizer, dtype, device, trust_remote_code)

    def diagnose(tell: Progress) -> Diagnosis:
        return diagnose_layers(
            loaded,
            task,
            error_model,
            window=window,
            stride=stride,
            operators=operators,
            draws=draws,
            seed=seed,
            batch_size=batch_size,
            progress=tell,
        )

    run_and_report(diagnose, out, result)


@app.command()
def operators(
    model: Model,
    data: Data,
    tokenizer: Tokenizer = None,
    noise_scale: Scale = 0.05,
    error_type: ErrorType = "relative_gaussian",
    rounding: Rounding = "nearest",
    operators: Operators = "all",
    samples: Samples = 50,
    draws: Draws = 1,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
    batch_size: BatchSize = None,
    max_new_tokens: MaxNewTokens = 512,
    trust_remote_code: RemoteCode = False,
    out: Out = None,
    result: Result = None,
) -> None:
    """Perturb one operator at a time everywhere; then the core operators, and all."""
    check_outputs(out, result)
    check_numbers(seed, draws=draws, batch_size=batch_size)
    error_model = make_error_model(error_type, noise_scale, rounding)  # type: ignore[arg-type]
    check_names(operators)
    task = load_task(data, samples, max_new_tokens=max_new_tokens)
    loaded = load(model, tokenizer, dtype, device, trust_remote_code)

    def diagnose(tell: Progress) -> Diagnosis:
        return diagnose_operators(
            loaded,
            task,
            error_model,
            operators=operators,
            draws=draws,
            seed=seed,
            batch_size=batch_size,
            progress=tell,
        )

    run_and_report(diagnose, out, result)


@app.command()
def sites(
    model: Annotated[str, typer.Argument(help="Directory of a Hugging Face model.")],
    full: Annotated[bool, typer.Option("--full", help="One line per layer and module.")] = False,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """List what can be selected: layers, modules and operators of a model."""
    loaded = load(model, None, dtype, device, trust_remote_code)
    vocabulary = loaded.model.get_input_embeddings().num_embeddings
    length = min(8, loaded.context_length or 8)
    print_sites(Console(), list_sites(loaded.model, [i % vocabulary for i in range(length)]), full)


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Directory to write; noisescope-demo if unset.")
    ] = None,
    noise_scale: Scale = 0.2,
    samples: Samples = 100,
    seed: Seed = 0,
) -> None:
    """Diagnose the small model that comes with the package, within a minute."""
    target = fresh_directory(Path("noisescope-demo")) if out is None else out
    layers(
        model=str(demo_model_dir()),
        data=str(demo_questions()),
        noise_scale=noise_scale,
        window=2,
        stride=1,
        operators="all",
        samples=samples,
        seed=seed,
        dtype="float32",
        device="cpu",
        out=target,
    )


def load(
    model: str, tokenizer: str | None, dtype: str | None, device: str | None, remote_code: bool
) -> LoadedModel:
    """Loads a model, telling that it does."""
    with Console(stderr=True).status("loading the model"):
        return load_model(
            model, dtype=dtype, device=device, tokenizer=tokenizer, trust_remote_code=remote_code
        )


def run_and_report(
    diagnose: Callable[[Progress], Diagnosis], out: Path | None, result: Path | None
) -> None:
    """Runs a diagnosis under a progress bar, prints it and writes what was asked for."""
    with progress_bar(Console(stderr=True)) as tell:
        diagnosis = diagnose(tell)
    # Neither a closed pipe nor a full disk may lose what an hour has measured.
    try:
        written = write_outputs(diagnosis, out, result)
    finally:
        print_diagnosis(Console(), diagnosis)
    for line in written:
        typer.echo(line)


def write_outputs(diagnosis: Diagnosis, out: Path | None, result: Path | None) -> list[str]:
    """Writes what was asked for and returns lines that say so."""
    written = []
    if out is not None:
        write_directory(diagnosis, out)
        written.append(f"Written: {out / 'result.json'}, records.jsonl and heatmap.png beside it.")
    if result is not None:
        write_result(result_of(diagnosis), result)
        written.append(f"Written: {result}")
    return written or ["Nothing was written: --out DIR keeps result, records and heatmap."]


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


def check_outputs(out: Path | None, result: Path | None) -> None:
    """Raises InputError unless what is to be written is absent and its directory takes files."""
    if out is not None and result is not None and result.absolute().is_relative_to(out.absolute()):
        raise InputError(f"--result {result} lies in --out {out}: name a file outside of it")
    for option, path in (("--out", out), ("--result", result)):
        if path is not None:
            check_output(option, path)


def main() -> None:
    """Runs the command line; leaves with 0, 2 for a user's mistake, 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal of ASCII shows '?' for a bar
    sys.exit(run())


def run(arguments: list[str] | None = None) -> int:
    """Runs the command line on these arguments and returns the exit status."""
    stderr = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
    with warnings.catch_warnings():
        warnings.simplefilter("default", NoisescopeWarning)
        warnings.simplefilter("ignore", DoseWarning)  # said among the diagnosis's notes
        warnings.showwarning = _show_warning(warnings.showwarning, stderr)
        try:
            status = app(arguments, prog_name="noisescope", standalone_mode=False) or 0
        except (NoisescopeError, torch.OutOfMemoryError, _USAGE_ERROR) as error:
            line = _error_line(error, sys.argv[1:] if arguments is None else arguments)
            if line:  # without a command the help has been printed already
                stderr.print(f"Error: {line}")
            return 2
        except (KeyboardInterrupt, typer.Abort):
            status = _INTERRUPTED
        if status == _INTERRUPTED:  # the parser turns Ctrl-C inside a command into this status
            stderr.print("Interrupted: nothing was written.")
        return int(status)


def _error_line(error: Exception, words: Sequence[str]) -> str:
    """Returns what to tell the user, on one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the device's memory is full: give a smaller --batch-size, or --dtype bfloat16"
    if not isinstance(error, _USAGE_ERROR):
        return " ".join(str(error).splitlines())
    said = " ".join(error.format_message().split()).removesuffix(".")
    if not said:
        return ""
    value = _given_value(getattr(error, "param", None), words)
    command = getattr(error.ctx, "command_path", "noisescope")
    return (
        f"{said}{'' if value is None else f' (given: {value!r})'}"
        f"{'' if said.endswith('?') else '.'} Try '{command} --help'."
    )


def _given_value(parameter: Any, words: Sequence[str]) -> str | None:
    """Returns the value of an option on the command line; the parser's message leaves it out."""
    for option in getattr(parameter, "opts", ()):
        for word, following in itertools.pairwise([*words, ""]):
            if word == option:
                return following
            if word.startswith(f"{option}="):
                return word.removeprefix(f"{option}=")
    return None


def _show_warning(otherwise: Callable[..., Any], console: Console) -> Callable[..., None]:
    """Returns a `warnings.showwarning` that prints our own warnings as one line."""

    def show(message: Any, category: type[Warning], *rest: Any, **options: Any) -> None:
        if issubclass(category, NoisescopeWarning):
            console.print(f"Warning: {message}")
        else:
            otherwise(message, category, *rest, **options)

    return show


if __name__ == "__main__":
    main()
