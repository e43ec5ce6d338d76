"""What a model directory holds, checked before anything is loaded from it.

The libraries answer a wrong directory with a page of text, a download or a model of random numbers;
here each gets one line. Only headers are read: the weights themselves are not.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from noisescope.errors import InputError

CONFIG_NAME = "config.json"
_GENERATION_NAME = "generation_config.json"
_WEIGHTS_NAME = "model.safetensors"
_INDEX_NAME = "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_TOKENIZER_NAMES = (
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)


def check_directory(path: Path, what: str) -> None:
    """Raises an InputError unless the path is a directory.

    Args:
        path: The path.
        what: What it stands for in the message: ``"model"`` or ``"tokenizer"``.
    """
    try:
        is_directory, is_there = path.is_dir(), path.exists()
    except OSError as error:
        raise InputError(
            f"cannot read {what} directory {str(path)!r}: {error.strerror}; give a local Hugging "
            "Face directory"
        ) from error
    if is_directory:
        return
    if is_there:
        raise InputError(f"{what} {str(path)!r} is a file: give the directory that holds it")
    raise InputError(
        f"no such {what} directory: {str(path)!r}; a local Hugging Face directory is accepted, so "
        f"download a hub model first: hf download NAME --local-dir DIR"
    )


def read_config(path: Path) -> dict[str, Any]:
    """Returns the directory's config.json.

    Raises:
        InputError: It is missing, not a JSON object, or its model_type is not a text.
    """
    file = path / CONFIG_NAME
    if not _is_file(file):
        raise InputError(
            f"no {CONFIG_NAME} in {str(path)!r}: give a Hugging Face model directory "
            f"({CONFIG_NAME} and safetensors files)"
        )
    content = _read_json(file)
    model_type = content.get("model_type")
    if model_type is not None and not isinstance(model_type, str):
        raise InputError(
            f"model_type {model_type!r} in {str(file)!r}: a text such as 'llama' is accepted; "
            "download it again"
        )
    return content


def check_generation_config(path: Path) -> None:
    """Raises an InputError if generation_config.json has end tokens that are no token ids."""
    file = path / _GENERATION_NAME
    if not _is_file(file):
        return
    value = _read_json(file).get("eos_token_id")
    for token in value if isinstance(value, list) else [] if value is None else [value]:
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            raise InputError(
                f"eos_token_id {value!r} in {str(file)!r}: a whole number from 0 up, or a list of "
                "them, is accepted; correct it there"
            )


def check_weights(path: Path) -> None:
    """Checks that the directory's safetensors files are all there and whole.

    Raises:
        InputError: There are none, a shard is missing, or a file is damaged.
    """
    if _is_file(path / _WEIGHTS_NAME):
        names: Iterable[str] = [_WEIGHTS_NAME]
    elif _is_file(path / _INDEX_NAME):
        names = _shard_names(path / _INDEX_NAME)
    else:
        raise InputError(_no_weights(path))
    for name in names:
        _check_safetensors(path / name)


def has_tokenizer(path: Path) -> bool:
    """Says whether a tokenizer's vocabulary lies in the directory."""
    return any(_is_file(path / name) for name in _TOKENIZER_NAMES)


def _no_weights(path: Path) -> str:
    pickled = sorted(p.name for p in path.iterdir() if p.suffix in _PICKLED)
    if pickled:
        return (
            f"no safetensors file in {str(path)!r}, only {pickled[0]}: such files can run code "
            "when loaded; convert the model with save_pretrained(DIR) and give that directory"
        )
    return (
        f"no safetensors file in {str(path)!r}: {_WEIGHTS_NAME}, or shards with {_INDEX_NAME}, "
        "are accepted"
    )


def _shard_names(index: Path) -> list[str]:
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise InputError(f"{str(index)!r} has no 'weight_map': download the model again")
    names = sorted({str(name) for name in shards.values()})
    missing = [name for name in names if not _is_file(index.parent / name)]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(names)} shards missing in {str(index.parent)!r}, first "
            f"{missing[0]}: download the model again"
        )
    return names


def _check_safetensors(file: Path) -> None:
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"cannot read {str(file)!r} ({one_line(error)}): the file is damaged or cut short; "
            "download it again"
        ) from error


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError as error:
        raise InputError(
            f"cannot read {str(file)!r}: {error.strerror}; give a directory whose files can be read"
        ) from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{str(file)!r} is not JSON ({one_line(error)}): download it again"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{str(file)!r} is not a JSON object: download it again")
    return content


def one_line(error: BaseException, limit: int = 200) -> str:
    """Returns an exception's text as one line of at most ``limit`` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
