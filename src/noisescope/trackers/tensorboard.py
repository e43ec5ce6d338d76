"""An entry as a run of TensorBoard: event files in a directory of its own.

Texts are shown there as Markdown, so every sign that could be markup is escaped.
"""

import json
import re
import struct
import time
from pathlib import Path
from typing import Any

from noisescope.errors import InputError
from noisescope.extras import require
from noisescope.trackers.entry import Entry, file_name, shown

WHAT = "--log tensorboard"
_MARKS = re.compile(r"([\\`*_{}\[\]()#+\-.!])")
_SIGNS = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "=": "&#61;", "~": "&#126;"}
_RGBA = 4


def check_tensorboard() -> None:
    """Raises InputError where the package is not installed."""
    require("tensorboard", "tensorboard", WHAT)


def write_tensorboard(entry: Entry, directory: Path) -> Path:
    """Writes an entry as a new run below a directory.

    Args:
        entry: What is logged.
        directory: What `tensorboard --logdir` is given.

    Returns:
        The directory of the run.

    Raises:
        InputError: The package is not installed, or nothing can be written.
    """
    module = "tensorboard.summary.writer.event_file_writer"
    writer_class = require(module, "tensorboard", WHAT).EventFileWriter
    try:
        place = _fresh(directory, file_name(entry.name))
        writer: Any = writer_class(str(place))
        try:
            for number, step in _summaries(entry):
                writer.add_event(_event(number, step))
        finally:
            writer.close()
    except OSError as error:
        raise InputError(f"{WHAT}: cannot write {directory}: {error.strerror}") from error
    return place


def _fresh(directory: Path, name: str) -> Path:
    """Makes a directory that was not there, so that no run is mixed with another."""
    directory.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        place = directory / (name if number == 1 else f"{name}-{number}")
        try:
            place.mkdir()
        except FileExistsError:
            number += 1
        else:
            return place


def _event(value: Any, step: int) -> Any:
    event_pb2 = require("tensorboard.compat.proto.event_pb2", "tensorboard", WHAT)
    summary_pb2 = require("tensorboard.compat.proto.summary_pb2", "tensorboard", WHAT)
    summary = summary_pb2.Summary(value=[value])
    return event_pb2.Event(wall_time=time.time(), step=step, summary=summary)


def _summaries(entry: Entry) -> list[tuple[Any, int]]:
    pb2 = require("tensorboard.compat.proto.summary_pb2", "tensorboard", WHAT)
    config = "\n".join(f"{name}: {_as_text(value)}" for name, value in entry.config.items())
    texts = {"config": config, **entry.texts}
    found = [(_text(pb2, shown(name), text), 0) for name, text in texts.items()]
    for scalar in entry.scalars:
        found.append((pb2.Summary.Value(tag=scalar.tag, simple_value=scalar.value), scalar.step))
    for name, data in entry.figures.items():
        found.append((_image(pb2, shown(name), data), 0))
    return found


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _text(pb2: Any, tag: str, text: str) -> Any:
    tensor_pb2 = require("tensorboard.compat.proto.tensor_pb2", "tensorboard", WHAT)
    shape_pb2 = require("tensorboard.compat.proto.tensor_shape_pb2", "tensorboard", WHAT)
    plugin = pb2.SummaryMetadata.PluginData(plugin_name="text")
    shape = shape_pb2.TensorShapeProto(dim=[shape_pb2.TensorShapeProto.Dim(size=1)])
    tensor = tensor_pb2.TensorProto(
        dtype="DT_STRING", string_val=[as_markdown(text).encode()], tensor_shape=shape
    )
    metadata = pb2.SummaryMetadata(plugin_data=plugin)
    return pb2.Summary.Value(tag=f"{tag}/text_summary", metadata=metadata, tensor=tensor)


def _image(pb2: Any, tag: str, png: bytes) -> Any:
    width, height = struct.unpack(">II", png[16:24])  # of the header that every PNG begins with
    image = pb2.Summary.Image(
        width=width, height=height, colorspace=_RGBA, encoded_image_string=png
    )
    return pb2.Summary.Value(tag=f"figures/{tag}", image=image)


def as_markdown(text: str) -> str:
    """Returns Markdown that shows a text as it is, line by line."""
    lines = []
    for line in text.splitlines():
        plain = "".join(c if c.isprintable() else "?" for c in line)
        escaped = _MARKS.sub(r"\\\1", plain.strip())
        lines.append("".join(_SIGNS.get(c, c) for c in escaped))
    return "  \n".join(lines)
