"""The command line: `noisescope demo | sites | layers | operators`.

Commands translate arguments and write files; everything else happens below. A user's mistake is
one line on standard error and exit status 2; nothing is written before a diagnosis is complete.
"""

import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from noisescope.demo import demo_model_dir, demo_questions
from noisescope.diagnose import Diagnosis, diagnose_layers, diagnose_operators
from noisescope.errors import InputError, NoisescopeError, NoisescopeWarning
from noisescope.inject.probe import list_sites
from noisescope.models import LoadedModel, load_model
from noisescope.noise import make_error_model
from noisescope.report import (
    draw_heatmap,
    print_diagnosis,
    print_sites,
    progress_bar,
    result_of,
    write_records,
    write_result,
)
from noisescope.tasks import load_task

# The parser's base class of wrong usage has no public name of its own.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find where numeric error breaks a language model.",
)

Model = Annotated[str, typer.Option(help="Directory of a Hugging Face model (safetensors).")]
Data = Annotated[str, typer.Option(help="Questions: .parquet, GSM8K .jsonl, or a plain .txt.")]
Tokenizer = Annotated[str | None, typer.Option(help="Directory of the tokenizer, if elsewhere.")]
Scale = Annotated[float, typer.Option(help="Standard deviation of the error.")]
ErrorType = Annotated[str, typer.Option(help="relative_gaussian or absolute_gaussian.")]
Rounding = Annotated[str, typer.Option(help="nearest or stochastic.")]
Operators = Annotated[str, typer.Option(help="core, all, or names joined by commas.")]
Samples = Annotated[int, typer.Option(help="How many samples, from the first on.")]
Draws = Annotated[int, typer.Option(help="Realisations of the noise per condition.")]
Seed = Annotated[int, typer.Option(help="Seed of the noise.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; as saved if unset.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, auto; a GPU if there is one.")]
BatchSize = Annotated[int | None, typer.Option(help="Samples per batch; by memory if unset.")]
MaxNewTokens = Annotated[int, typer.Option(help="The most tokens of an answer.")]
RemoteCode = Annotated[bool, typer.Option(help="Run code that lies in the model's directory.")]
Out = Annotated[Path | None, typer.Option(help="Directory for result, records and heatmap.")]


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
) -> None:
    """Slide a window of noisy layers over a model and measure what each costs."""
    check_absent(out)
    error_model = make_error_model(error_type, noise_scale, rounding)  # type: ignore[arg-type]
    task = load_task(data, samples, max_new_tokens=max_new_tokens)
    loaded = load(model, tokenizer, dtype, device, trust_remote_code)

    def diagnose(tell: Any) -> Diagnosis:
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

    run_and_report(diagnose, out)


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
) -> None:
    """Perturb one operator at a time everywhere; then the core operators, and all."""
    check_absent(out)
    error_model = make_error_model(error_type, noise_scale, rounding)  # type: ignore[arg-type]
    task = load_task(data, samples, max_new_tokens=max_new_tokens)
    loaded = load(model, tokenizer, dtype, device, trust_remote_code)

    def diagnose(tell: Any) -> Diagnosis:
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

    run_and_report(diagnose, out)


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
    noise_scale: Scale = 0.1,
    samples: Samples = 100,
    seed: Seed = 0,
) -> None:
    """Diagnose the small model that comes with the package, in about a minute."""
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


def run_and_report(diagnose: Callable[[Any], Diagnosis], out: Path | None) -> Diagnosis:
    """Runs a diagnosis under a progress bar, prints it and writes its directory."""
    with progress_bar(Console(stderr=True)) as tell:
        diagnosis = diagnose(tell)
    print_diagnosis(Console(), diagnosis)
    if out is not None:
        write_directory(diagnosis, out)
        typer.echo(f"Written: {out / 'result.json'}, records.jsonl and heatmap.png beside it.")
    return diagnosis


def check_absent(path: Path | None) -> None:
    """Raises InputError where an output exists already or its parent cannot hold it."""
    if path is not None and (path.exists() or path.is_symlink()):
        raise InputError(f"--out {path} exists already: name one that does not")
    parent = path.absolute().parent if path is not None else Path()
    if not parent.is_dir():
        raise InputError(f"--out {path}: there is no directory {parent}; make it first")


def fresh_directory(base: Path) -> Path:
    """Returns `base`, or the first of base-2, base-3 ... that does not exist."""
    number, path = 1, base
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


def write_directory(diagnosis: Diagnosis, out: Path) -> None:
    """Writes result, records and heatmap; the directory appears whole or not at all."""
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.absolute().parent))
    except OSError as error:
        raise InputError(f"cannot write --out {out}: {error.strerror}; name another") from error
    try:
        write_result(result_of(diagnosis), made / "result.json")
        write_records(diagnosis.measurement.records, made / "records.jsonl")
        draw_heatmap(diagnosis, made / "heatmap.png")
        made.chmod(0o755)
        made.rename(out)
    except OSError as error:
        raise InputError(f"cannot write --out {out}: {error.strerror}; name another") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def main() -> None:
    """Runs the command line; leaves with 0, 2 for a user's mistake, 130 when interrupted."""
    sys.exit(run())


def run(arguments: list[str] | None = None) -> int:
    """Runs the command line on these arguments and returns the exit status."""
    stderr = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    with warnings.catch_warnings():
        warnings.simplefilter("default", NoisescopeWarning)
        warnings.showwarning = _show_warning(warnings.showwarning, stderr)
        try:
            result = app(arguments, prog_name="noisescope", standalone_mode=False)
            return result if isinstance(result, int) else 0
        except NoisescopeError as error:
            stderr.print(f"Error: {error}")
            return 2
        except _USAGE_ERROR as error:
            command = getattr(error.ctx, "command_path", "noisescope")
            said = " ".join(error.format_message().split()).rstrip(".")
            if said:  # without a command the help has been printed already
                stderr.print(f"Error: {said}. Try '{command} --help'.")
            return 2
        except (KeyboardInterrupt, typer.Abort):
            stderr.print("Interrupted: nothing was written.")
            return 130


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
