"""What is logged of a result, as plain data that no tracker's types are in.

Names come from models, tasks and paths. A tracker shows them as text: what would be markup in one
of them is escaped where it is written, and what cannot be shown is a question mark here.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_MOST_CHARACTERS = 200


@dataclass(frozen=True)
class Scalar:
    """A number under a name.

    Attributes:
        tag: Parts joined by slashes; the first groups the curves.
        value: Finite.
        step: Where it stands on its curve: a layer, or 0.
    """

    tag: str
    value: float
    step: int = 0


@dataclass(frozen=True)
class Entry:
    """One run of a tracker.

    Attributes:
        name: What it is called.
        config: What was asked: settings, fingerprints, versions.
        scalars: Numbers; unknown ones are left out.
        texts: Texts by name.
        figures: PNG files by name.
    """

    name: str
    config: Mapping[str, Any]
    scalars: tuple[Scalar, ...]
    texts: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, bytes] = field(default_factory=dict)


def scalars(found: Iterable[tuple[str, float, int]]) -> tuple[Scalar, ...]:
    """Returns the numbers that are known, under names that can be shown."""
    return tuple(
        Scalar(shown(tag), float(value), step) for tag, value, step in found if math.isfinite(value)
    )


def part(text: str) -> str:
    """Returns a name as one part of a tag: a slash in it would begin another part."""
    return shown(text).replace("/", "_")


def shown(text: str) -> str:
    """Returns a text with `?` for what cannot be shown, cut where it is very long."""
    plain = "".join(c if c.isprintable() else "?" for c in text)
    return plain if len(plain) <= _MOST_CHARACTERS else f"{plain[:_MOST_CHARACTERS]}..."


def file_name(text: str) -> str:
    """Returns a text as the name of a file: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._")[:_MOST_CHARACTERS] or "run"


def without_nan(value: Any) -> Any:
    """Returns a configuration as JSON holds it; what is no number becomes None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): without_nan(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(inner) for inner in value]
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
