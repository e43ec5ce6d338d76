"""What every export needs: the parts of a format's name, what is written, and the refusal.

Of a format no more is here than what a file must spell; the rounding itself is in noise.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from noisescope.assignment import Assignment
from noisescope.errors import InputError, near_names
from noisescope.noise.formats import make_format

_SCALES = {"none": "cast", "e8m0_floor": "mx", "e8m0_ceil": "mx", "e4m3_tensor": "nvfp4"}
_SIXTEEN = {"bf16": "bfloat16", "fp16": "float16"}


class NotExpressible(InputError):
    """An engine's file cannot say what an assignment asks for."""


@dataclass(frozen=True)
class Export:
    """One engine's file.

    Attributes:
        name: File name.
        text: Contents.
        notes: What a user must know of it, one line each: how it is loaded, and where the engine's
            arithmetic is not the format's own.
    """

    name: str
    text: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scheme:
    """The parts of a format's name.

    Attributes:
        name: The name itself.
        element: ``"int4"``, ``"fp8_e4m3"``, ``"bf16"`` ...
        scale: Who shares a scale: ``"cast"`` (no scale), ``"tensor"``, ``"channel"``, ``"group"``,
            ``"mx"`` (blocks of 32, powers of two) or ``"nvfp4"`` (blocks of 16, E4M3).
        bits: Bits of an element, its share of a scale not counted.
        group: Elements per scale along the reduction axis, of groups and blocks.
        is_symmetric: Whether zero is the middle code.
        is_ceil: Whether a power-of-two scale is rounded up, so that nothing saturates.
    """

    name: str
    element: str
    scale: str
    bits: int
    group: int = 0
    is_symmetric: bool = True
    is_ceil: bool = False

    @property
    def is_integer(self) -> bool:
        """Whether the element is an integer."""
        return self.element.startswith("int")


def read_scheme(name: str) -> Scheme:
    """Returns the parts of a format's name.

    Raises:
        InputError: There is no such format.
    """
    form = make_format(name)
    scale: str = _SCALES.get(form.scale, form.scale)
    if scale == "float32":
        scale = "tensor" if form.is_per_tensor else "group" if form.block else "channel"
    return Scheme(
        name,
        form.element.name,
        scale,
        form.element.bits,
        form.block or 0,
        not form.is_asymmetric,
        is_ceil=form.scale == "e8m0_ceil",
    )


def check_names(assignment: Assignment, names: Iterable[str]) -> None:
    """Raises InputError where a module of the assignment is none of the model's."""
    known = set(names)
    for name in (*assignment.formats, *assignment.kept):
        if name not in known:
            raise InputError(
                f"module {name!r}: the model has none of that name{near_names(name, known)}"
            )


def is_unrounded(scheme: Scheme, dtype: str, engine: str) -> bool:
    """Returns whether a module of this format is one that the engine must leave alone.

    Sixteen bits are what engines leave a module in; in a float32 model that is finer than asked.

    Raises:
        NotExpressible: Sixteen bits of another kind than the model's own.
    """
    if scheme.element not in _SIXTEEN or scheme.scale != "cast":
        return False
    if dtype not in ("float32", _SIXTEEN[scheme.element]):
        raise NotExpressible(
            f"{engine}: format {scheme.name!r} in a model of {dtype}: unrounded modules stay in "
            f"the model's own dtype; load it in {_SIXTEEN[scheme.element]}"
        )
    return True


def notes_on_left(assignment: Assignment) -> tuple[str, ...]:
    """Returns the note on modules that sixteen bits leave in float32, if there are any."""
    given = [name for name in _SIXTEEN if name in assignment.formats.values()]
    if assignment.dtype != "float32" or not given:
        return ()
    return (f"modules in {' and '.join(given)} stay in float32, the model's own dtype",)


def refuse(engine: str, scheme: Scheme, operand: str, accepted: str) -> NotExpressible:
    """Returns the refusal of a format that an engine does not have."""
    return NotExpressible(
        f"{engine}: no format {scheme.name!r} for {_OPERANDS[operand]}; it takes {accepted}"
    )


_OPERANDS = {"weights": "weights alone", "both": "weights and activations"}
_CONV1D_TYPES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
_CONV1D = ("c_attn", "q_attn", "c_proj", "c_fc")


def check_linear(assignment: Assignment, engine: str, has_conv1d: bool = False) -> None:
    """Raises NotExpressible where an assigned module is not one that engines see as a linear map.

    Args:
        assignment: The assignment.
        engine: Name of the engine, for the message.
        has_conv1d: Whether the engine knows GPT-2's `Conv1D`, whose weight is transposed.
    """
    for name in assignment.formats:
        last = name.rpartition(".")[2]
        if last == "experts":
            raise NotExpressible(
                f"{engine}: module {name!r} holds all experts in one tensor, which its file "
                "cannot name; keep it, or take the experts apart into linear modules"
            )
        if not has_conv1d and last in _CONV1D and assignment.model_type in _CONV1D_TYPES:
            raise NotExpressible(
                f"{engine}: module {name!r} is a Conv1D, whose weight is transposed: it would be "
                "passed over, or rounded along the wrong axis; keep it"
            )
