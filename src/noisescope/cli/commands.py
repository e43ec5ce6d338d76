"""The commands: arguments in, a study measured, its report printed and written."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from noisescope.cli import options as o
from noisescope.demo import demo_model_dir, demo_questions
from noisescope.diagnose import diagnose_layers, diagnose_operators, diagnose_sites
from noisescope.errors import InputError
from noisescope.inject.probe import list_sites
from noisescope.models import LoadedModel, load_model
from noisescope.noise import make_error_model
from noisescope.report import fresh_directory, write_report, write_result
from noisescope.report.terminal import print_diagnosis, print_sites, print_state, progress_bar
from noisescope.study import (
    Diagnosis,
    Margins,
    StudyInterrupted,
    is_study,
    make_diagnosis,
    read_study,
)
from noisescope.tasks import load_task
from noisescope.versions import versions


class Interrupted(Exception):
    """Ctrl-C ended a command; the text says what is kept."""


app = typer.Typer(
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find where numeric error breaks a language model.",
)


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
    model: o.Model,
    data: o.Data,
    tokenizer: o.Tokenizer = None,
    noise_scale: o.Scale = 0.05,
    error_type: o.ErrorType = "relative_gaussian",
    rounding: o.Rounding = "nearest",
    window: Annotated[int | None, typer.Option(help="Layers per window; 3 if unset.")] = None,
    stride: Annotated[
        int | None, typer.Option(help="Layers per step; the window if unset.")
    ] = None,
    sites: Annotated[
        bool, typer.Option("--sites", help="One site at a time in place of windows.")
    ] = False,
    operators: o.Operators = "core",
    samples: o.Samples = 50,
    draws: o.Draws = 1,
    seed: o.Seed = 0,
    search: o.Search = False,
    accuracy_margin: o.AccuracyMargin = 0.01,
    kl_margin: o.KlMargin = 0.01,
    dtype: o.Dtype = None,
    device: o.Device = None,
    batch_size: o.BatchSize = None,
    memory_gib: o.MemoryGib = None,
    max_new_tokens: o.MaxNewTokens = 512,
    trust_remote_code: o.RemoteCode = False,
    out: o.Out = None,
    extend: o.Extend = False,
    result: o.Result = None,
) -> None:
    """Slide a window of noisy layers over a model and measure what each costs."""
    given = dict(locals())
    o.check_numbers(seed, window=window, stride=stride)
    if not sites:
        _diagnose(diagnose_layers, given, {"window": window or 3, "stride": stride})
    elif window is None and stride is None:
        _diagnose(diagnose_sites, given, {})
    else:
        raise InputError("--sites takes one site at a time: leave out --window and --stride")


@app.command()
def operators(
    model: o.Model,
    data: o.Data,
    tokenizer: o.Tokenizer = None,
    noise_scale: o.Scale = 0.05,
    error_type: o.ErrorType = "relative_gaussian",
    rounding: o.Rounding = "nearest",
    operators: o.Operators = "all",
    samples: o.Samples = 50,
    draws: o.Draws = 1,
    seed: o.Seed = 0,
    search: o.Search = False,
    accuracy_margin: o.AccuracyMargin = 0.01,
    kl_margin: o.KlMargin = 0.01,
    dtype: o.Dtype = None,
    device: o.Device = None,
    batch_size: o.BatchSize = None,
    memory_gib: o.MemoryGib = None,
    max_new_tokens: o.MaxNewTokens = 512,
    trust_remote_code: o.RemoteCode = False,
    out: o.Out = None,
    extend: o.Extend = False,
    result: o.Result = None,
) -> None:
    """Perturb one operator at a time everywhere; then the core operators, and all."""
    _diagnose(diagnose_operators, dict(locals()), {})


@app.command()
def sites(
    model: Annotated[str, typer.Argument(help="Directory of a Hugging Face model.")],
    full: Annotated[bool, typer.Option("--full", help="One line per layer and module.")] = False,
    dtype: o.Dtype = None,
    device: o.Device = None,
    trust_remote_code: o.RemoteCode = False,
) -> None:
    """List what can be selected: layers, modules and operators of a model."""
    loaded = _load(model, None, dtype, device, trust_remote_code)
    vocabulary = loaded.model.get_input_embeddings().num_embeddings
    length = min(8, loaded.context_length or 8)
    print_sites(Console(), list_sites(loaded.model, [i % vocabulary for i in range(length)]), full)


@app.command()
def show(
    directory: Annotated[Path, typer.Argument(help="Directory of a study, from --out.")],
    accuracy_margin: o.AccuracyMargin = 0.01,
    kl_margin: o.KlMargin = 0.01,
) -> None:
    """Print where a study stands and what it says so far; also while it runs."""
    o.check_margins(accuracy_margin, kl_margin)
    if directory.is_file():
        raise InputError(f"{directory} is a file: name the directory of a study")
    state = read_study(directory)
    console = Console()
    print_state(console, state)
    if any(record.condition in state.plan.conditions for record in state.records):
        margins = Margins(accuracy_margin, kl_margin)
        print_diagnosis(
            console,
            make_diagnosis(state.plan, state.records, state.witnesses, state.notes, margins),
        )


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Directory to write; noisescope-demo if unset.")
    ] = None,
    noise_scale: o.Scale = 0.2,
    samples: o.Samples = 100,
    seed: o.Seed = 0,
) -> None:
    """Diagnose the small model that comes with the package, within a minute."""
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
        out=fresh_directory(Path("noisescope-demo")) if out is None else out,
    )


# Names under which another process finds the same model and data.
_SOURCE = (
    "model",
    "tokenizer",
    "dtype",
    "device",
    "trust_remote_code",
    "data",
    "samples",
    "max_new_tokens",
)


def _diagnose(diagnose: Callable[..., Diagnosis], given: dict[str, Any], shape: Any) -> None:
    """Checks a command's arguments, carries the diagnosis out, prints and writes it."""
    out, result = given["out"], given["result"]
    o.check_outputs(out, result, given["extend"])
    o.check_numbers(given["seed"], draws=given["draws"], batch_size=given["batch_size"])
    o.check_memory(given["memory_gib"])
    o.check_margins(given["accuracy_margin"], given["kl_margin"])
    error_model = make_error_model(given["error_type"], given["noise_scale"], given["rounding"])
    o.check_names(given["operators"])
    task = load_task(given["data"], given["samples"], max_new_tokens=given["max_new_tokens"])
    chosen = {
        name: given[name]
        for name in ("operators", "draws", "seed", "batch_size", "memory_gib", "extend", "search")
    }
    margins = Margins(given["accuracy_margin"], given["kl_margin"])
    source = {name: given[name] for name in _SOURCE}
    for name in ("model", "tokenizer", "data"):  # another process has another working directory
        source[name] = given[name] and str(Path(given[name]).absolute())
    with _interrupts_told(out, result):
        loaded = _load(*(given[name] for name in _SOURCE[:5]))
        with progress_bar(Console(stderr=True)) as tell:
            diagnosis = diagnose(
                loaded,
                task,
                error_model,
                **shape,
                **chosen,
                margins=margins,
                out=out,
                source=source,
                progress=tell,
            )
        # Neither a closed pipe nor a full disk may lose what an hour has measured.
        try:
            written = _write(diagnosis, out, result)
        finally:
            print_diagnosis(Console(), diagnosis)
        for line in written:
            typer.echo(line)


def _load(
    model: str, tokenizer: str | None, dtype: str | None, device: str | None, remote_code: bool
) -> LoadedModel:
    """Loads a model, telling that it does."""
    with Console(stderr=True).status("loading the model"):
        return load_model(
            model, dtype=dtype, device=device, tokenizer=tokenizer, trust_remote_code=remote_code
        )


@contextmanager
def _interrupts_told(out: Path | None, result: Path | None) -> Iterator[None]:
    """Turns Ctrl-C into what the user should know: what is kept, and how to go on."""
    try:
        yield
    except StudyInterrupted as end:
        raise Interrupted(f"Interrupted: {end}.") from None
    except KeyboardInterrupt:
        kept = []
        if result is not None and result.exists():  # it was not there before
            kept.append(f"{result} is written")
        if out is not None and is_study(out):
            kept.append(f"what was finished is kept in {out}: run the same command again to go on")
        raise Interrupted(f"Interrupted: {'; '.join(kept) or 'nothing was written'}.") from None


def _write(diagnosis: Diagnosis, out: Path | None, result: Path | None) -> list[str]:
    """Writes what was asked for and returns lines that say so."""
    written = []
    if out is not None:
        write_report(diagnosis, out)
        written.append(
            f"Written: {out / 'result.json'}, records.parquet and heatmap.png beside it."
        )
    if result is not None:
        write_result(diagnosis, result)
        written.append(f"Written: {result}")
    return written or ["Nothing was written: --out DIR keeps the study, its result and heatmap."]
