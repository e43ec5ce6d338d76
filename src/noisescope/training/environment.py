"""What `VERL_NOISY_OPS_*` ask of a training process, as data.

The names and defaults are those of `noisescope.noisy_ops`, which reads them by itself when it is
imported and switches noise on for all operators of the process: here they are read apart from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from noisescope.errors import InputError, NoisescopeError, near_names
from noisescope.inject import CORE_OPERATORS, make_selection
from noisescope.noise import ErrorModel, flat_address, make_error_model

PREFIX = "VERL_NOISY_OPS_"
ROLES = ("actor", "critic", "ref")
_TRUE = ("1", "true", "yes", "on")
_ALL_OPERATORS = ("softmax", "silu", "gelu", "layer_norm", "rms_norm")
_KNOWN = (
    *("ENABLED", "SCALE", "TYPE", "ALL_OPS", "FORWARD_ONLY", "BACKWARD_ONLY", "TRAINING_ONLY"),
    *("OPERATORS", "LAYERS", "SEED", "ROUNDING", "ROLES"),
)


@dataclass(frozen=True)
class Wanted:
    """The noise that a process was told to have.

    Attributes:
        error_model: What is added.
        selection: Arguments of `inject`: phases, operators, layers.
        is_named: Whether the user named operators or layers, all of which must then fire.
        seed: First key word.
        training_only: Whether nothing but the update gets noise.
        roles: Whose models: `actor`, `critic`, `ref`.
    """

    error_model: ErrorModel
    selection: Mapping[str, Any] = field(default_factory=dict)
    is_named: bool = False
    seed: int = 0
    training_only: bool = False
    roles: tuple[str, ...] = ("actor",)

    @property
    def phases(self) -> tuple[str, ...]:
        """`forward`, `backward` or both."""
        phases: tuple[str, ...] = self.selection["phases"]
        return phases


def read_environment(environment: Mapping[str, str]) -> Wanted | None:
    """Returns what the variables ask for, or None where `_ENABLED` is not set.

    Args:
        environment: Such as ``os.environ``.

    Raises:
        InputError: A variable that is not known, or a value that cannot be used.
    """
    given = {n.removeprefix(PREFIX): v.strip() for n, v in environment.items() if _is_ours(n)}
    for name in given:
        if name not in _KNOWN:
            raise InputError(
                f"{PREFIX}{name} is not known: {', '.join(_KNOWN)} are{near_names(name, _KNOWN)}"
            )
    if not _is_set(given, "ENABLED"):
        return None
    operators, layers = _words(given, "OPERATORS"), _words(given, "LAYERS")
    selection: dict[str, Any] = {
        "phases": _phases(given),
        "operators": operators or _default_operators(given),
        "layers": _layers(layers) or None,
    }
    _explained(given, ("OPERATORS", "LAYERS"), lambda: make_selection(**selection))
    return Wanted(
        error_model=_error_model(given),
        selection=selection,
        is_named=bool(operators or layers),
        seed=_seed(given),
        training_only=_is_set(given, "TRAINING_ONLY"),
        roles=_roles(given),
    )


def _is_ours(name: str) -> bool:
    return name.startswith(PREFIX)


def _is_set(given: Mapping[str, str], name: str) -> bool:
    return given.get(name, "").lower() in _TRUE


def _words(given: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in given.get(name, "").split(",") if word.strip())


def _phases(given: Mapping[str, str]) -> tuple[str, ...]:
    forward, backward = _is_set(given, "FORWARD_ONLY"), _is_set(given, "BACKWARD_ONLY")
    if forward == backward:
        return ("forward", "backward")
    return ("forward",) if forward else ("backward",)


def _default_operators(given: Mapping[str, str]) -> tuple[str, ...]:
    return (*CORE_OPERATORS, *(_ALL_OPERATORS if _is_set(given, "ALL_OPS") else ()))


def _layers(words: tuple[str, ...]) -> tuple[int | str, ...]:
    """Reads ``0,5`` and ``0-3``; other words are names of regions."""
    found: list[int | str] = []
    for word in words:
        first, dash, last = word.partition("-")
        if first.isdigit() and (not dash or last.isdigit()):
            found.extend(range(int(first), int(last or first) + 1))
        else:
            found.append(word)
    return tuple(found)


def _error_model(given: Mapping[str, str]) -> ErrorModel:
    text = given.get("SCALE") or "1e-4"
    try:
        scale = float(text)
    except ValueError:
        raise InputError(f"{PREFIX}SCALE={text!r}: a number is needed, such as 1e-4.") from None
    kind, rounding = given.get("TYPE") or "relative_gaussian", given.get("ROUNDING") or "nearest"
    error_model: ErrorModel = _explained(
        given,
        ("SCALE", "TYPE", "ROUNDING"),
        lambda: make_error_model(kind, scale, rounding),  # type: ignore[arg-type]
    )
    return error_model


def _seed(given: Mapping[str, str]) -> int:
    text = given.get("SEED") or "0"
    if not text.isdigit():
        raise InputError(f"{PREFIX}SEED={text!r}: a whole number is needed, such as 0.")
    _explained(given, ("SEED",), lambda: flat_address(int(text), 0, site=0, rows=0))
    return int(text)


def _roles(given: Mapping[str, str]) -> tuple[str, ...]:
    roles = _words(given, "ROLES") or ("actor",)
    for role in roles:
        if role not in ROLES:
            raise InputError(
                f"{PREFIX}ROLES={given['ROLES']!r}: {', '.join(ROLES)} are accepted, joined by "
                f"commas{near_names(role, ROLES)}"
            )
    return roles


def _explained(given: Mapping[str, str], names: tuple[str, ...], make: Any) -> Any:
    """Runs a check, and names the variables in its error."""
    try:
        return make()
    except NoisescopeError as error:
        said = ", ".join(f"{PREFIX}{name}={given[name]!r}" for name in names if name in given)
        raise InputError(f"{said}: {error}") from None
