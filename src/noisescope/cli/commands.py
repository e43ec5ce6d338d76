"""The commands: arguments in, a study measured, its report printed and written."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from noisescope.cli import options as o
from noisescope.cli.executing import UNITS_FAILED
from noisescope.cli.given import RunOptions, StudyOptions, takes
from noisescope.cli.profiling import profile_of
from noisescope.demo import demo_model_dir, demo_questions
from noisescope.diagnose import (
    diagnose_channels,
    diagnose_layers,
    diagnose_model,
    diagnose_operators,
    diagnose_sites,
)
from noisescope.errors import InputError
from noisescope.inject.probe import list_sites
from noisescope.measure import ProfileOptions
from noisescope.models import LoadedModel, load_model
from noisescope.report import (
    PAGE,
    check_empty,
    fresh_directory,
    write_profile_report,
    write_report,
    write_result,
)
from noisescope.report.figures import counted
from noisescope.report.profile_text import print_profile
from noisescope.report.recommendation.output import kept_recommendation
from noisescope.report.recommendation.text import print_recommendation
from noisescope.report.terminal import print_diagnosis, print_sites, print_state, progress_bar
from noisescope.study import (
    Diagnosis,
    Margins,
    StudyInterrupted,
    is_study,
    make_diagnosis,
    read_study,
    read_told,
)
from noisescope.study.kept_profile import PROFILE, read_profile
from noisescope.trackers import log_diagnosis, parse_trackers
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
@takes(StudyOptions)
def diagnose(
    given: StudyOptions,
    window: o.Window = None,
    stride: o.Stride = None,
    operators: o.Operators = "all",
    scales: o.Scales = None,
    until: o.Until = None,
) -> None:
    """Walk operators, windows, sites, channels and scales, and say what is fragile and why."""
    o.check_numbers(given.seed, window=window, stride=stride)
    o.check_names(operators)
    chosen: dict[str, Any] = {
        "scales": o.parse_scales(scales, may_be_auto=True),
        "until": until,
        "operators": operators,
    }
    _diagnose(diagnose_model, given, window=window, stride=stride, **chosen)


@app.command()
@takes(StudyOptions)
def layers(
    given: StudyOptions,
    window: o.Window = None,
    stride: o.Stride = None,
    sites: Annotated[
        bool, typer.Option("--sites", help="One site at a time in place of windows.")
    ] = False,
    operators: o.Operators = "core",
    search: o.Search = False,
    scales: Annotated[
        str | None,
        typer.Option(help="Scales of a dose and response: 0.01,0.1, or auto to have them chosen."),
    ] = None,
    until: o.Until = None,
    no_predict: o.NoPredict = False,
) -> None:
    """Slide a window of noisy layers over a model and measure what each costs."""
    o.check_numbers(given.seed, window=window, stride=stride)
    o.check_names(operators)
    shared: dict[str, Any] = {"operators": operators, "search": search, "predict": not no_predict}
    doses: dict[str, Any] = {"scales": o.parse_scales(scales, may_be_auto=True), "until": until}
    asked = [f"--{name}" for name, value in doses.items() if value is not None]
    for option, is_given in (
        ("--search", search),
        ("--no-predict", no_predict),
        ("--sites", sites),
    ):
        if is_given and asked:
            raise InputError(
                f"{asked[0]} needs a prediction and every window measured: leave out {option}"
            )
    if not sites:
        _diagnose(diagnose_layers, given, window=window or 3, stride=stride, **shared, **doses)
    elif window is None and stride is None:
        _diagnose(diagnose_sites, given, **shared)
    else:
        raise InputError("--sites takes one site at a time: leave out --window and --stride")


@app.command()
@takes(StudyOptions)
def operators(
    given: StudyOptions,
    operators: o.Operators = "all",
    search: o.Search = False,
    no_predict: o.NoPredict = False,
) -> None:
    """Perturb one operator at a time everywhere; then the core operators, and all."""
    o.check_names(operators)
    shared: dict[str, Any] = {"operators": operators, "search": search, "predict": not no_predict}
    _diagnose(diagnose_operators, given, **shared)


@app.command()
@takes(StudyOptions)
def channels(given: StudyOptions) -> None:
    """List outlier channels and massive activations, and measure what noise there alone costs."""
    _diagnose(diagnose_channels, given)


@app.command()
@takes(RunOptions)
def profile(
    given: RunOptions,
    operators: o.Operators = "all",
    label_error: Annotated[
        float, typer.Option(help="Relative standard error of the middle site that is small enough.")
    ] = 0.05,
    label_draws: Annotated[
        int | None, typer.Option(help="Draws of labels; as many as the error needs if unset.")
    ] = None,
) -> None:
    """Predict what error costs at every site by backward passes alone; nothing is injected."""
    given.check()
    o.check_names(operators)
    error_model = given.error_model()
    far = ProfileOptions(label_error=label_error, label_draws=label_draws)
    if error_model.is_null:
        raise InputError("--noise-scale 0 predicts nothing: give a scale above 0, such as 0.05")
    if given.out is not None:
        check_empty("--out", given.out)
    task = given.task()
    with interrupts_told(None, None):
        loaded = _load(given)
        with progress_bar(Console(stderr=True), "batches") as tell:
            found, about = profile_of(loaded, task, error_model, given, operators, far, tell)
        if given.out is not None:
            write_profile_report(found, given.out, about)
        print_profile(Console(), found, Path(given.model).name)
        for note in about["notes"]:
            typer.echo(f"Note: {note}")
        where = "Nothing was written: --out DIR keeps the profile and its map."
        if given.out is not None:
            where = f"Written: {given.out / PROFILE}, profile.json and profile.png beside it."
        typer.echo(where)


@app.command()
def sites(
    model: Annotated[str, typer.Argument(help="Directory of a Hugging Face model.")],
    full: Annotated[bool, typer.Option("--full", help="One line per layer and module.")] = False,
    dtype: o.Dtype = None,
    device: o.Device = None,
    trust_remote_code: o.RemoteCode = False,
) -> None:
    """List what can be selected: layers, modules and operators of a model."""
    loaded = load_from(model, None, dtype, device, trust_remote_code)
    vocabulary = loaded.model.get_input_embeddings().num_embeddings
    length = min(8, loaded.context_length or 8)
    print_sites(Console(), list_sites(loaded.model, [i % vocabulary for i in range(length)]), full)


@app.command()
def show(
    directory: Annotated[Path, typer.Argument(help="Directory of a study, from --out.")],
    accuracy_margin: o.AccuracyMargin = 0.01,
    kl_margin: o.KlMargin = 0.01,
) -> None:
    """Print where a study stands and what it says so far, also while it runs; or a profile."""
    o.check_margins(accuracy_margin, kl_margin)
    if directory.is_file():
        raise InputError(f"{directory} is a file: name the directory of a study")
    if not is_study(directory) and (directory / PROFILE).is_file():
        found = read_profile(directory)
        if found is not None:
            print_profile(Console(), found, directory.name)
        return
    state = read_study(directory)
    console = Console()
    print_state(console, state)
    if not any(record.condition in state.plan.conditions for record in state.records):
        return
    margins = Margins(accuracy_margin, kl_margin)
    told = read_told(directory)
    made = make_diagnosis(state.plan, state.records, state.witnesses, state.notes, margins, told)
    if made.recommendation is not None:
        print_recommendation(console, made)
    else:
        print_diagnosis(console, made)


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Directory to write; noisescope-demo if unset.")
    ] = None,
    noise_scale: o.Scale = 0.2,
    samples: o.Samples = 50,
    seed: o.Seed = 0,
) -> None:
    """Diagnose the small model that comes with the package, in about a minute."""
    given = StudyOptions(
        model=str(demo_model_dir()),
        data=str(demo_questions()),
        noise_scale=noise_scale,
        samples=samples,
        seed=seed,
        dtype="float32",
        device="cpu",
        out=fresh_directory(Path("noisescope-demo")) if out is None else out,
    )
    _diagnose(diagnose_model, given, window=2, stride=2)


def _diagnose(
    diagnose: Callable[..., Diagnosis], given: StudyOptions, until: str | None = None, **asked: Any
) -> None:
    """Checks a command's arguments, carries the diagnosis out, prints and writes it."""
    given.check()
    error_model = given.error_model()
    task = given.task()
    o.check_until(until, task)
    if until is not None:
        asked["until"] = until
    with interrupts_told(given.out, given.result), given.cluster.connected() as executor:
        loaded = _load(replace(given, device="cpu") if executor else given)
        with progress_bar(Console(stderr=True)) as tell:
            diagnosis = diagnose(
                loaded,
                task,
                error_model,
                **asked,
                **given.measuring(),
                executor=executor,
                progress=tell,
            )
        # Neither a closed pipe nor a full disk may lose what an hour has measured.
        try:
            written = _write(diagnosis, given.out, given.result)
        finally:
            print_diagnosis(Console(), diagnosis)
        for line in written:
            typer.echo(line)
        for line in _log(diagnosis, given):
            typer.echo(line)
        if diagnosis.failures:
            raise typer.Exit(UNITS_FAILED)


def _load(given: RunOptions) -> LoadedModel:
    return load_from(
        given.model, given.tokenizer, given.dtype, given.device, given.trust_remote_code
    )


def load_from(
    model: str, tokenizer: str | None, dtype: str | None, device: str | None, remote_code: bool
) -> LoadedModel:
    """Loads a model, telling that it does."""
    with Console(stderr=True).status("loading the model"):
        return load_model(
            model, dtype=dtype, device=device, tokenizer=tokenizer, trust_remote_code=remote_code
        )


@contextmanager
def interrupts_told(out: Path | None, result: Path | None) -> Iterator[None]:
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


def _log(diagnosis: Diagnosis, given: StudyOptions) -> Iterator[str]:
    """Logs to the trackers that were named, and yields lines that say so.

    A report has drawn the figures already, where there is one.
    """
    figures = None
    if given.out is not None:
        paths = sorted((given.out / "figures").glob("*.png"))
        figures = {path.stem: path.read_bytes() for path in paths}
    for tracker in parse_trackers(given.log):
        yield f"Logged: {log_diagnosis(diagnosis, tracker, figures=figures)}"


def _write(diagnosis: Diagnosis, out: Path | None, result: Path | None) -> list[str]:
    """Writes what was asked for and returns lines that say so."""
    written = []
    if out is not None:
        names = write_report(diagnosis, out, kept_recommendation(out))
        figures = sum(name.endswith(".png") for name in names)
        written.append(
            f"Written: {out / PAGE}; beside it result.json, records.parquet and "
            f"{counted(figures, 'figure')} in figures."
        )
    if result is not None:
        write_result(diagnosis, result)
        written.append(f"Written: {result}")
    return written or ["Nothing was written: --out DIR keeps the study, its report and result."]
