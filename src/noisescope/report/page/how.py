"""How a study was run: what was asked, of what, with which versions, and the command for it."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from noisescope.report.page.page import Section, Table, plain
from noisescope.study import Diagnosis, Margins

_ERROR_TYPES = {
    "RelativeGaussian": "relative_gaussian",
    "AbsoluteGaussian": "absolute_gaussian",
    "BitFlips": "bit_flips",
    "StuckChannels": "stuck_channels",
    "DeadZone": "dead_zone",
    "Saturation": "saturation",
    "Bias": "bias",
}
_COMMANDS = {
    "diagnose": "diagnose",
    "layers": "layers",
    "sites": "layers",
    "operators": "operators",
    "channels": "channels",
    "recommend": "recommend",
}
# Settings of a recommendation that are options of its command.
_OF_FORMATS = ("--formats", "--quantize", "--bits", "--kl", "--keep")


def how_section(diagnosis: Diagnosis) -> Section:
    """Returns the section that says how it was run, and the command that runs it again."""
    plan, config = diagnosis.plan, diagnosis.config
    hidden = _SAID if diagnosis.kind != "recommend" else (*_SAID, *_OF_ONE_ERROR)
    asked = {
        "model": config["model"],
        "data": config["data"],
        "samples": len(plan.samples),
        "draws": plan.draws,
        "seed": plan.seed,
        **{key.replace("_", " "): value for key, value in config.items() if key not in hidden},
        "margin of accuracy": diagnosis.margins.accuracy,
        "margin of KL, nats per token": diagnosis.margins.kl_nats,
    }
    tables = [
        Table("What was asked", ("what", "value"), _rows(asked)),
        Table("Fingerprints", ("of", "digest"), _rows(dict(plan.fingerprints))),
        Table("Versions", ("package", "version"), _rows(dict(plan.versions))),
    ]
    command = command_of(diagnosis)
    said = [f"Note: {note}" for note in diagnosis.notes]
    said.append(_told(diagnosis) if command else "It was run from Python: no command runs it.")
    return Section("how", "How it was run", tuple(said), (), tuple(tables), command)


# Said elsewhere: what a recommendation chooses from fills tables of its own.
_SAID = ("model", "data", "recommendation")
_OF_ONE_ERROR = ("noise_scale", "error_model", "error_parameters")


def _told(diagnosis: Diagnosis) -> str:
    told = "The command below runs it again; a study in the directory of --out goes on."
    if not _source(diagnosis).get("data"):
        told += f" {diagnosis.config['data']} stands for the file of the data."
    return told


def _source(diagnosis: Diagnosis) -> Mapping[str, Any]:
    """Returns where model and data came from; empty for what was given as objects."""
    found: Mapping[str, Any] = diagnosis.plan.about.get("source") or {}
    return found


def command_of(diagnosis: Diagnosis) -> str:
    """Returns the command that runs a study again, as a shell reads it; empty where none does.

    Every word is quoted as one, whatever a name holds; a name that no terminal can show is shown
    with `?`, and has to be put in by hand.
    """
    error = _error(diagnosis)
    if diagnosis.kind not in _COMMANDS or error is None or diagnosis.config["model"] == "None":
        return ""
    words = ["noisescope", _COMMANDS[diagnosis.kind]]
    asked = list(_asked(diagnosis))
    if diagnosis.kind == "recommend":
        words[1] += f" {_word(asked.pop(0)[1])}"  # the model is an argument there
        error = [(o, diagnosis.plan.settings.get(o)) for o in _OF_FORMATS]
        error = [(option, value) for option, value in error if value not in (None, "")]
    for option, value in (*asked, *error, *_options(diagnosis)):
        words.append(option)
        words += [] if value is True else [_word(value)]
    lines = [" ".join(words[:2])]
    for word in words[2:]:  # no value begins so: `_word` sees to it
        if word.startswith("--"):
            lines.append(f"    {word}")
        else:
            lines[-1] += f" {word}"
    return " \\\n".join(lines)


def _word(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    quoted = shlex.quote(plain(text).replace("\n", "?"))
    # What begins like an option would be taken for one; a path can begin otherwise.
    return f"./{quoted}" if quoted.startswith("-") else quoted


def _asked(diagnosis: Diagnosis) -> Iterator[tuple[str, Any]]:
    """Yields the options that say of what model and data."""
    source = _source(diagnosis)
    yield "--model", source.get("model") or diagnosis.config["model"]
    if source.get("tokenizer"):
        yield "--tokenizer", source["tokenizer"]
    yield "--data", source.get("data") or diagnosis.config["data"]
    if source.get("trust_remote_code"):
        yield "--trust-remote-code", True


def _error(diagnosis: Diagnosis) -> list[tuple[str, Any]] | None:
    """Returns the options that say what the error is; None for one that no option names."""
    name, given = diagnosis.config["error_model"], dict(diagnosis.config["error_parameters"])
    rounding = given.pop("rounding", "nearest")
    own = [("--rounding", rounding)] if rounding != "nearest" else []
    if name == "RoundTo":
        operand = [("--operand", given["operand"])] if given["operand"] != "both" else []
        return [("--format", given["format"]), *operand, *own]
    if name not in _ERROR_TYPES or not given:
        return None
    first, *others = given.items()
    if any(value or (key == "bit" and value is not None) for key, value in others):
        return None  # what a fault has beyond its one number, no option gives
    kind = [("--error-type", _ERROR_TYPES[name])] if name != "RelativeGaussian" else []
    return [("--noise-scale", first[1]), *kind, *own]


def _options(diagnosis: Diagnosis) -> Iterator[tuple[str, Any]]:
    """Yields the other options and their values; True for one without a value."""
    plan = diagnosis.plan
    yield "--samples", len(plan.samples)
    if diagnosis.kind != "recommend":
        yield "--draws", plan.draws
    yield "--seed", plan.seed
    for option in ("--dtype", "--device", "--max-new-tokens", "--operators"):
        is_taken = option != "--operators" or diagnosis.kind not in ("channels", "recommend")
        if is_taken and plan.settings[option] is not None:
            yield option, plan.settings[option]
    yield from _own_options(diagnosis)
    usual = Margins()
    if diagnosis.margins.accuracy != usual.accuracy:
        yield "--accuracy-margin", diagnosis.margins.accuracy
    if diagnosis.margins.kl_nats != usual.kl_nats:
        yield "--kl-margin", diagnosis.margins.kl_nats
    yield "--out", "study"


def _own_options(diagnosis: Diagnosis) -> Iterator[tuple[str, Any]]:
    """Yields the options of one command alone."""
    plan = diagnosis.plan
    if diagnosis.kind == "sites":
        yield "--sites", True
    for option in ("--window", "--stride"):
        if diagnosis.kind in ("diagnose", "layers") and plan.scope.get(option) is not None:
            yield option, plan.scope[option]
    if plan.is_adaptive:
        yield "--search", True
    elif diagnosis.kind in ("layers", "sites", "operators") and not plan.has_steps:
        yield "--no-predict", True
    scales = plan.settings.get("--scales")
    if scales is not None:
        yield "--scales", scales if isinstance(scales, str) else ",".join(f"{s:g}" for s in scales)
    if plan.settings.get("--until") is not None:
        yield "--until", plan.settings["--until"]


def _rows(entries: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    return tuple((key, _value(value)) for key, value in entries.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(v)}" for key, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value))
    if isinstance(value, Path):
        return str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
