"""`noisescope compare A B`: two studies, or two models over the same data, and a gate for a CI job.

What is compared is seen from the directories; what an option is not for is refused, not ignored.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from noisescope.analyse.gate import Gate, Ruling, exit_status, judge, parse_gate
from noisescope.cli import options as o
from noisescope.cli.commands import app
from noisescope.errors import InputError
from noisescope.models import LoadedModel, load_model
from noisescope.models.checkpoint import CONFIG_NAME
from noisescope.report import check_empty
from noisescope.report.contrast.output import write_contrast
from noisescope.report.contrast.text import print_contrast, print_rulings
from noisescope.report.terminal import progress_bar
from noisescope.study import is_study, read_study
from noisescope.study.contrast import MODELS, STUDIES, Contrast
from noisescope.study.contrast_models import contrast_models
from noisescope.study.contrast_studies import contrast_studies
from noisescope.tasks import Task, load_task

_SAMPLES, _MOST_TOKENS = 50, 512
_SHARED_TOKENIZER = "no tokenizer beside the model"

_SIDE = "Directory of a study, or of a Hugging Face model."


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help=_SIDE)],
    b: Annotated[Path, typer.Argument(metavar="B", help=_SIDE)],
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            help="A bound not to be passed: 'kl>0.02', 'accuracy<-1%', 'nll>0.02', or of one "
            "condition 'kl[L0-2]>0.02'. Exit status 1 where it is shown, 0 where it is excluded, 3 "
            "where that is open. May be given several times."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Of two models: .parquet, GSM8K .jsonl, or a plain .txt.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Of two models: how many samples; 50 if unset.")
    ] = None,
    tokenizer: o.Tokenizer = None,
    dtype: o.Dtype = None,
    device: o.Device = None,
    batch_size: o.BatchSize = None,
    memory_gib: o.MemoryGib = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="The most tokens of an answer; 512 if unset.")
    ] = None,
    trust_remote_code: o.RemoteCode = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory to write compare.json and report.html into; new or empty."),
    ] = None,
) -> None:
    """Compare two studies, or two models over the same data; optionally as a gate."""
    given = {
        "data": data,
        "samples": samples,
        "tokenizer": tokenizer,
        "dtype": dtype,
        "device": device,
        "batch_size": batch_size,
        "memory_gib": memory_gib,
        "max_new_tokens": max_new_tokens,
        "trust_remote_code": trust_remote_code or None,
    }
    gates = _gates(fail_if or [])
    kind = _kind_of(a, b)
    if out is not None:
        check_empty("--out", out)
    if kind == STUDIES:
        _refuse(given)
        contrast = contrast_studies(read_study(a), read_study(b))
    else:
        contrast = _compare_models(a, b, given, gates)
    rulings = [judge(gate, contrast.changes) for gate in gates]
    _tell(contrast, rulings, out, _command(a, b, given, fail_if or []))
    raise typer.Exit(exit_status(rulings))


def _gates(texts: Sequence[str]) -> list[Gate]:
    """Reads the gates, before anything is looked at."""
    try:
        return [parse_gate(text) for text in texts]
    except InputError as error:
        raise InputError(f"--fail-if: {error}") from None


def _kind_of(a: Path, b: Path) -> str:
    """Returns what both directories hold.

    Raises:
        InputError: One of them holds nothing that can be compared, or they hold different things.
    """
    kinds = [_kind(path) for path in (a, b)]
    if kinds[0] != kinds[1]:
        study, model = (a, b) if kinds[0] == STUDIES else (b, a)
        raise InputError(
            f"{study} is a study and {model} is a model: give two studies, or two models"
        )
    return kinds[0]


def _kind(path: Path) -> str:
    try:
        if is_study(path):
            return STUDIES
        is_model, is_directory, is_there = (
            (path / CONFIG_NAME).is_file(),
            path.is_dir(),
            path.exists(),
        )
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; name another") from error
    if is_model:
        return MODELS
    if is_directory:
        raise InputError(
            f"{path} holds neither a study (manifest.json) nor a model ({CONFIG_NAME}): name a "
            "directory that does"
        )
    if is_there:
        raise InputError(f"{path} is a file: name the directory of a study or of a model")
    raise InputError(f"there is no directory {path}: name that of a study or of a model")


def _refuse(given: Mapping[str, object]) -> None:
    """Raises InputError for an option that two studies leave nothing to do for."""
    for name, value in given.items():
        if value is not None:
            raise InputError(
                f"--{name.replace('_', '-')} is for two models: two studies are compared as they "
                "were measured; leave it out"
            )


def _compare_models(a: Path, b: Path, given: Mapping[str, Any], gates: Sequence[Gate]) -> Contrast:
    if given["data"] is None:
        raise InputError("two models need --data: questions (.parquet, .jsonl) or a plain .txt")
    samples = _SAMPLES if given["samples"] is None else given["samples"]
    most = _MOST_TOKENS if given["max_new_tokens"] is None else given["max_new_tokens"]
    o.check_numbers(0, batch_size=given["batch_size"])
    o.check_memory(given["memory_gib"])
    task = load_task(given["data"], samples, max_new_tokens=most)
    for gate in gates:
        _check_gate(gate, task)
    with Console(stderr=True).status("loading the models"):
        first, second = _with_tokenizers(*(_load(path, given) for path in (a, b)))
    with progress_bar(Console(stderr=True)) as tell:
        return contrast_models(
            first,
            second,
            task,
            batch_size=given["batch_size"],
            memory_gib=given["memory_gib"],
            progress=tell,
        )


def _check_gate(gate: Gate, task: Task) -> None:
    """Raises InputError for a gate that two models on these data cannot answer."""
    if gate.condition is not None:
        raise InputError(
            f"--fail-if {gate.text}: two models have no condition {gate.condition!r}; leave the "
            "brackets out"
        )
    if gate.measure == "accuracy" and not task.is_generative:
        raise InputError(
            f"--fail-if {gate.text}: nothing is generated from {task.name}, so there is no "
            "accuracy; give kl>0.02 or nll>0.02, or questions with answers"
        )


def _load(path: Path, given: Mapping[str, Any]) -> LoadedModel:
    return load_model(
        path,
        dtype=given["dtype"],
        device=given["device"],
        tokenizer=given["tokenizer"],
        trust_remote_code=given["trust_remote_code"] or False,
    )


def _with_tokenizers(first: LoadedModel, second: LoadedModel) -> tuple[LoadedModel, LoadedModel]:
    """Gives a model that has no tokenizer that of the other."""
    if (first.tokenizer is None) == (second.tokenizer is None):
        return first, second
    if first.tokenizer is None:
        return _with_tokenizer(first, second, "B"), second
    return first, _with_tokenizer(second, first, "A")


def _with_tokenizer(loaded: LoadedModel, other: LoadedModel, letter: str) -> LoadedModel:
    kept = [note for note in loaded.notes if not note.startswith(_SHARED_TOKENIZER)]
    notes = (*kept, f"it has no tokenizer: that of {letter} is used")
    return replace(loaded, tokenizer=other.tokenizer, notes=notes)


def _tell(contrast: Contrast, rulings: Sequence[Ruling], out: Path | None, command: str) -> None:
    """Writes what was asked for, prints it all, and says last what the gates come to."""
    where = "Nothing was written: --out DIR keeps the comparison and its report."
    try:
        if out is not None:
            names = write_contrast(contrast, rulings, out, command)
            where = f"Written: {out / names[0]}; beside it {', '.join(names[1:])}."
    finally:
        print_contrast(Console(), contrast)
    typer.echo(where)
    print_rulings(Console(), rulings, contrast.kind)


def _command(a: Path, b: Path, given: Mapping[str, Any], gates: Sequence[str]) -> str:
    """Returns the command that compares again, as a shell takes it."""
    words = ["noisescope", "compare", str(a), str(b)]
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if value is not None:
            words += [option] if value is True else [option, str(value)]
    for gate in gates:
        words += ["--fail-if", gate]
    return " ".join(map(shlex.quote, words))
