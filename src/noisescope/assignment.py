"""An assignment of number formats to the linear modules of a model, as data.

What recommend chooses and what export writes. Names of formats are text here: what a format does is
noise's matter, and which engine takes it is export's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from noisescope.errors import InputError, near_names

OPERANDS = ("weights", "both")
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Assignment:
    """Which format each linear module of a model gets.

    Args:
        formats: Name of the format (``"nvfp4"``, ``"int4_g32_asym"``, ``"bf16"`` ...) by dotted
            name of the module, in running order.
        operand: ``"weights"``: weights alone are rounded; ``"both"``: weights, and activations as
            they come, per token or block.
        kept: Other linear modules, which stay in the model's own dtype.
        dtype: The model's own dtype: ``"bfloat16"``, ``"float16"`` or ``"float32"``.
        bound: Modules that engines run as one and that therefore share a format: q, k and v; gate
            and up.
        model_type: ``config.model_type`` of the model.

    Raises:
        InputError: A name is no dotted name, is given twice, or is both assigned and kept; bound
            modules differ or are not named; the operand or the dtype is unknown.
    """

    formats: Mapping[str, str]
    operand: str = "weights"
    kept: tuple[str, ...] = ()
    dtype: str = "bfloat16"
    bound: tuple[tuple[str, ...], ...] = ()
    model_type: str = ""

    def __post_init__(self) -> None:
        # Copies: what was checked must not change in the caller's hands.
        object.__setattr__(self, "formats", dict(self.formats))
        object.__setattr__(self, "kept", tuple(self.kept))
        object.__setattr__(self, "bound", tuple(tuple(group) for group in self.bound))
        self.check()

    def check(self) -> None:
        """Raises InputError unless the assignment can be carried out; see the class."""
        _check_choice("operand", self.operand, OPERANDS)
        _check_choice("dtype", self.dtype, DTYPES)
        for name in (*self.formats, *self.kept):
            _check_name(name)
        for name, given in self.formats.items():
            if not isinstance(given, str) or not given:
                raise InputError(
                    f"format {given!r} of module {name!r}: give the name of a format, "
                    "such as 'nvfp4'"
                )
        twice = _repeated((*self.formats, *self.kept))
        if twice:
            how = "assigned and kept" if twice in self.formats else "kept twice"
            raise InputError(f"module {twice!r} is {how}: name it once")
        self._check_bound()

    def _check_bound(self) -> None:
        """Raises InputError where a bound group is not in one format."""
        kept = set(self.kept)
        for group in self.bound:
            for name in group:
                if name not in self.formats and name not in kept:
                    near = near_names(name, (*self.formats, *self.kept))
                    raise InputError(f"bound module {name!r} is neither assigned nor kept{near}")
            given = {name: self.formats.get(name, f"kept in {self.dtype}") for name in group}
            if len(set(given.values())) > 1:
                told = ", ".join(f"{name} {what}" for name, what in given.items())
                raise InputError(
                    f"bound modules differ: {told}; engines run them as one, give them one format"
                )

    def as_json(self) -> dict[str, Any]:
        """Returns a dictionary for JSON."""
        return {
            "formats": dict(self.formats),
            "operand": self.operand,
            "kept": list(self.kept),
            "dtype": self.dtype,
            "bound": [list(group) for group in self.bound],
            "model_type": self.model_type,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Returns the assignment of a dictionary that `as_json` made.

        Raises:
            InputError: An entry is missing or of another kind, or the assignment cannot be.
        """
        kinds = {"formats": dict, "operand": str, "kept": list, "dtype": str, "bound": list}
        for field, kind in {**kinds, "model_type": str}.items():
            if not isinstance(entry.get(field), kind):
                raise InputError(
                    f"assignment with {field} {entry.get(field)!r}: a {kind.__name__} is needed; "
                    "write it with Assignment.as_json"
                )
        if not all(isinstance(group, list) for group in entry["bound"]):
            raise InputError(f"assignment with bound {entry['bound']!r}: a list of lists is needed")
        return cls(
            formats=entry["formats"],
            operand=entry["operand"],
            kept=tuple(entry["kept"]),
            dtype=entry["dtype"],
            bound=tuple(tuple(group) for group in entry["bound"]),
            model_type=entry["model_type"],
        )


def _check_choice(field: str, given: str, accepted: tuple[str, ...]) -> None:
    if given not in accepted:
        raise InputError(f"{field} {given!r}: give {', '.join(map(repr, accepted))}")


def _check_name(name: str) -> None:
    # A line end in a name would end a line of a file, and `$` matches before one.
    if not isinstance(name, str) or not all(name.split(".")) or not name.isprintable():
        raise InputError(
            f"module name {name!r}: give a dotted name of printable characters without empty "
            "parts, such as 'model.layers.0.mlp.down_proj'"
        )


def _repeated(names: Iterable[str]) -> str:
    """Returns the first name that comes twice, or an empty string."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), "")  # type: ignore[func-returns-value]
