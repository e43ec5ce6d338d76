"""Two studies, or two models, held against each other: what a report of it needs.

How plans of one study are compared is in `compare`; this is of what was measured.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from noisescope.analyse.change import Change
from noisescope.inject import Dose

STUDIES, MODELS = "studies", "models"
_DIGEST_SHOWN = 19  # characters


@dataclass(frozen=True)
class Party:
    """One of the two.

    Attributes:
        path: Its directory, as it was given.
        about: What a report says of it, such as `model`, `dtype` or `seed`.
        fingerprints: Of its `model` and `configuration`, and of the `data`.
        versions: Of Python and of the packages that its numbers depend on.
    """

    path: str
    about: Mapping[str, Any]
    fingerprints: Mapping[str, str]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Contrast:
    """What differs between A and B.

    Attributes:
        kind: `studies` or `models`.
        first: A.
        second: B.
        changes: What changed, by condition and measure.
        differing: What else differs between the two, e.g. `seed: 0 in A, 1 in B`.
        notes: What the user should hear, one line each.
        doses: What arrived under each condition, in A and in B.
        only: Conditions that A alone has, and that B alone has.
        agreement: Of two models: the share of tokens whose most likely token is the same, and the
            share of samples whose answers are; None of an answer that nobody gave.
    """

    kind: str
    first: Party
    second: Party
    changes: tuple[Change, ...]
    differing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    doses: Mapping[str, tuple[Dose, Dose]] = field(default_factory=dict)
    only: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    agreement: Mapping[str, float] = field(default_factory=dict)

    @property
    def has_same_weights(self) -> bool:
        """Whether the weights of the two models are the same."""
        return same_weights(self.first.fingerprints, self.second.fingerprints)

    def of(self, measure: str) -> tuple[Change, ...]:
        """Returns the changes by one measure."""
        return tuple(change for change in self.changes if change.measure == measure)


def same_weights(first: Mapping[str, str], second: Mapping[str, str]) -> bool:
    """Tells whether the fingerprints of two models are the same, and known."""
    return "model" in first and first["model"] == second.get("model")


def same_model(first: Mapping[str, str], second: Mapping[str, str]) -> bool:
    """Tells the same of the weights and of what is computed with them."""
    names = ("model", "configuration")
    return all(name in first and first[name] == second.get(name) for name in names)


def weights_notes(first: Mapping[str, str], second: Mapping[str, str]) -> Iterator[str]:
    """Says that the weights of A and B are the same, where they are."""
    if not same_weights(first, second):
        return
    short = first["model"][:_DIGEST_SHOWN]
    if same_model(first, second):
        yield f"the weights are identical ({short}): A and B hold the same model"
    else:
        yield (
            f"the weights are identical ({short}), the configuration, end tokens or attention is "
            "not"
        )


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    """Yields what differs between two mappings, e.g. `seed: 0 in A, 1 in B`."""
    for name in [*first, *(name for name in second if name not in first)]:
        a, b = first.get(name), second.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            parts = ({f"{name} {key}": v for key, v in whole.items()} for whole in (a, b))
            yield from differences(*parts)
        elif a != b:
            yield f"{name}: {_shown(a)} in A, {_shown(b)} in B"


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    text = str(value)
    most = _DIGEST_SHOWN if text.startswith("sha256:") else 60
    return text if len(text) <= most else text[:most] + "..."
