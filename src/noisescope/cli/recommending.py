"""`noisescope recommend`: which format each group of weights should have, for a model or a study.

Of a study it takes model and data; what it finds lies beside it and is shown in its report.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from noisescope.assignment import Assignment
from noisescope.cli import options as o
from noisescope.cli.commands import app, interrupts_told, load_from
from noisescope.cli.executing import UNITS_FAILED, ClusterOptions
from noisescope.cluster import check_device
from noisescope.diagnose.recommend import check_formats, recommend_formats
from noisescope.errors import InputError, near_names
from noisescope.export import EXPORTS, export_files
from noisescope.models import LoadedModel
from noisescope.report import PAGE, write_report
from noisescope.report.recommendation.output import (
    BESIDE,
    exports_of,
    kept_recommendation,
    write_recommendation,
)
from noisescope.report.recommendation.text import print_recommendation
from noisescope.report.terminal import progress_bar
from noisescope.study import (
    Diagnosis,
    Margins,
    is_study,
    make_diagnosis,
    read_study,
    read_told,
)
from noisescope.tasks import load_task

_SAMPLES, _MOST_TOKENS = 50, 512


@app.command()
def recommend(
    subject: Annotated[
        Path, typer.Argument(metavar="STUDY|MODEL", help="Directory of a study, or of a model.")
    ],
    formats: Annotated[
        str,
        typer.Option(
            help="Formats to choose from, joined by commas: nvfp4, mxfp4, mxfp6, mxfp8, fp8_e4m3, "
            "int8, int4_g32, bf16 and others."
        ),
    ] = "nvfp4,fp8_e4m3,bf16",
    bits: Annotated[
        float | None, typer.Option(help="The most bits per weight, scales counted.")
    ] = None,
    kl: Annotated[
        float | None, typer.Option(help="In place of --bits: the most loss, in nats per token.")
    ] = None,
    quantize: Annotated[
        str, typer.Option(help="both: weights and the activations that meet them; or weights.")
    ] = "both",
    keep: Annotated[
        str | None,
        typer.Option(help="Modules that stay as they are, joined by commas: names or globs."),
    ] = None,
    engines: Annotated[
        str | None,
        typer.Option(
            help=f"Engines to write files for, joined by commas: {', '.join(EXPORTS)}; all that "
            "can express it if unset."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Of a model: .parquet, GSM8K .jsonl, or a plain .txt.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Of a model: how many samples; 50 if unset.")
    ] = None,
    tokenizer: o.Tokenizer = None,
    dtype: o.Dtype = None,
    device: o.Device = None,
    batch_size: o.BatchSize = None,
    memory_gib: o.MemoryGib = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="The most tokens of an answer; 512 if unset.")
    ] = None,
    seed: o.Seed = 0,
    accuracy_margin: o.AccuracyMargin = 0.01,
    kl_margin: o.KlMargin = 0.01,
    trust_remote_code: o.RemoteCode = False,
    executor: o.Executor = None,
    ray_address: o.RayAddress = None,
    workers: o.Workers = None,
    gpus_per_worker: o.GpusPerWorker = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory to write; of a study, its directory recommend if unset."),
    ] = None,
) -> None:
    """Recommend a number format for every group of weights, and measure the recommendation."""
    names, kept = _listed(formats), _listed(keep or "")
    check_formats(names, bits, kl, quantize)
    wanted = _engines(engines)
    o.check_numbers(seed, batch_size=batch_size)
    o.check_memory(memory_gib)
    o.check_margins(accuracy_margin, kl_margin)
    cluster = ClusterOptions(executor, ray_address, workers, gpus_per_worker)
    if cluster.is_elsewhere:
        check_device(device)
    given = {
        "data": data,
        "samples": samples,
        "tokenizer": tokenizer,
        "dtype": dtype,
        "max_new_tokens": max_new_tokens,
    }
    source = _source(subject, given, device, trust_remote_code, has_out=out is not None)
    if source.study is not None and out is None:
        out = source.study / BESIDE
    is_beside = source.study is not None and out == source.study / BESIDE
    o.check_outputs(out, None)
    asked: dict[str, Any] = {
        "bits": bits,
        "kl_nats": kl,
        "operand": quantize,
        "keep": kept,
        "seed": seed,
        "batch_size": batch_size,
        "memory_gib": memory_gib,
        "margins": Margins(accuracy_margin, kl_margin),
        "out": out,
    }
    diagnosis = _carry_out(source, names, asked, wanted, cluster)
    if is_beside and source.study is not None:
        _renew(source.study)
    if diagnosis.failures:
        raise typer.Exit(UNITS_FAILED)


def _carry_out(
    source: "_Source",
    formats: list[str],
    asked: Mapping[str, Any],
    engines: list[str] | None,
    cluster: ClusterOptions,
) -> Diagnosis:
    """Loads, measures, prints and writes."""
    values, out = source.values, asked["out"]
    task = load_task(values["data"], values["samples"], max_new_tokens=values["max_new_tokens"])
    with interrupts_told(out, None), cluster.connected() as executor:
        loaded = load_from(
            values["model"],
            values["tokenizer"],
            values["dtype"],
            "cpu" if executor else values["device"],
            values["trust_remote_code"],
        )
        _check_engines(loaded, formats, asked["operand"], engines)
        with progress_bar(Console(stderr=True)) as tell:
            diagnosis = recommend_formats(
                loaded,
                task,
                formats,
                **asked,
                source=values,
                executor=executor,
                progress=tell,
            )
        print_recommendation(Console(), diagnosis)
        if diagnosis.recommendation is None:
            return diagnosis
        modules = [name for name, _ in loaded.model.named_modules()]
        exports = exports_of(diagnosis.recommendation, modules, engines)
        for engine, why in exports.left_out.items():
            typer.echo(f"No file for {why if why.startswith(engine) else f'{engine}: {why}'}")
        for name, notes in exports.notes.items():
            for note in notes:
                typer.echo(f"{name}: {note}")
        if out is None:
            typer.echo("Nothing was written: --out DIR keeps the study, report and engines' files.")
            return diagnosis
        written = write_recommendation(diagnosis, out, exports)
        files = ", ".join(name for name in written if name.startswith("exports/"))
        typer.echo(f"Written: {out / PAGE}; beside it result.json, figures, {files}.")
        return diagnosis


@dataclass(frozen=True)
class _Source:
    """Where model and data come from; the study that named them, if any."""

    values: Mapping[str, Any]
    study: Path | None


def _source(
    subject: Path,
    given: Mapping[str, Any],
    device: str | None,
    trust_remote_code: bool,
    has_out: bool,
) -> _Source:
    """Returns what is to be loaded.

    Raises:
        InputError: Neither a study nor a model, or an option that does not go with it.
    """
    if not is_study(subject):
        if not subject.is_dir():
            raise InputError(f"{subject}: no such directory; give that of a study, or of a model")
        if given["data"] is None:
            raise InputError(
                f"{subject} is no study: of a model, name the questions or texts with --data"
            )
        values: dict[str, Any] = {
            "samples": _SAMPLES,
            "max_new_tokens": _MOST_TOKENS,
            **{name: value for name, value in given.items() if value is not None},
            "model": subject,
            "device": device,
            "trust_remote_code": trust_remote_code,
        }
        for name in ("model", "data", "tokenizer"):
            path = values.get(name)
            values[name] = None if path is None else str(Path(path).absolute())
        return _Source({**given, **values}, None)
    refused = [name for name, value in given.items() if value is not None]
    if refused:
        option = f"--{refused[0].replace('_', '-')}"
        raise InputError(
            f"{option} does not go with a study: {subject} names model and data; leave it out, or "
            "give the directory of the model"
        )
    plan = read_study(subject).plan
    kept = dict(plan.about.get("source") or {})
    if not kept:
        raise InputError(
            f"{subject} was measured from Python and does not say where model and data lie: give "
            "the directory of the model, and --data"
        )
    if plan.kind == "recommend" and not has_out:
        raise InputError(
            f"{subject} holds a recommendation: name the directory of another one with --out"
        )
    if kept["trust_remote_code"] and not trust_remote_code:
        raise InputError(
            f"{subject} was measured with --trust-remote-code: give it again to run such code"
        )
    return _Source({**kept, "device": device or kept["device"]}, subject)


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _engines(text: str | None) -> list[str] | None:
    """Returns the engines that were asked for.

    Raises:
        InputError: One of them is not known.
    """
    if text is None:
        return None
    names = _listed(text)
    for name in names:
        if name not in EXPORTS:
            raise InputError(
                f"--engines {name}: {', '.join(EXPORTS)} are accepted{near_names(name, EXPORTS)}"
            )
    return names


def _check_engines(
    loaded: LoadedModel, formats: list[str], operand: str, engines: list[str] | None
) -> None:
    """Raises InputError for an engine that was asked for and cannot express one of the formats.

    Tried on one module, so that nobody waits for a recommendation that cannot be written.
    """
    modules = list(loaded.model.named_modules())
    linear = [name for name, m in modules if type(m).__name__ in ("Linear", "Conv1D")]
    for name in formats if engines and linear else ():
        trial = Assignment(
            {linear[0]: name},
            operand=operand,
            dtype=str(loaded.dtype).removeprefix("torch."),
            model_type=str(getattr(loaded.model.config, "model_type", "")),
        )
        export_files(trial, [name for name, _ in modules], engines)


def _renew(study: Path) -> None:
    """Writes a study's report anew, with the recommendation beside it."""
    state = read_study(study)
    made = make_diagnosis(
        state.plan, state.records, state.witnesses, state.notes, told=read_told(study)
    )
    write_report(made, study, kept_recommendation(study))
    typer.echo(f"Shown in the study's report, too: {study / PAGE}")
