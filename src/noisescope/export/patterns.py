r"""Regular expressions that match a set of names exactly: no more, none less, none twice.

Names are points of a grid, one axis per part; points that differ in one part are merged into boxes,
so ``^model\.layers\.(0|3)\.mlp\.(gate_proj|up_proj)$`` is the product of what it lists.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

# One box: the alternatives of each part of a dotted name.
_Box = tuple[tuple[str, ...], ...]


def exact_patterns(names: Iterable[str]) -> tuple[str, ...]:
    """Returns anchored regular expressions that match these names and no others, each once.

    Numbers are merged before words, so a pattern reads as layers of one kind of module.

    Args:
        names: Dotted names of printable characters. Anything in them is literal.
    """
    boxes: list[_Box] = [
        tuple((part,) for part in name.split(".")) for name in dict.fromkeys(names)
    ]
    depth = max(map(len, boxes), default=0)
    for are_numbers in (True, False):
        for place in range(depth):
            boxes = _merge(boxes, place, are_numbers)
    return tuple("^" + r"\.".join(_alternatives(part) for part in box) + "$" for box in boxes)


def _merge(boxes: Sequence[_Box], place: int, are_numbers: bool) -> list[_Box]:
    """Merges boxes that differ at one place only: their union is a box again, and exactly it."""
    merged: dict[tuple[_Box, ...], _Box] = {}
    for box in boxes:
        fits = place < len(box) and all(p.isdecimal() for p in box[place]) == are_numbers
        key = (box[:place], box[place + 1 :]) if fits else (box,)
        if key in merged:
            both = sorted({*merged[key][place], *box[place]}, key=_order)
            box = (*box[:place], tuple(both), *box[place + 1 :])
        merged[key] = box
    return list(merged.values())


def _order(part: str) -> tuple[int, str]:
    return (int(part), part) if part.isdecimal() else (-1, part)


def _alternatives(parts: tuple[str, ...]) -> str:
    escaped = [re.escape(part) for part in parts]
    return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"


def check_targets(
    targets: Mapping[str, Sequence[str]], groups: Mapping[str, str], names: Iterable[str]
) -> None:
    """Tries every pattern on every name of the model.

    Args:
        targets: Regular expressions by group.
        groups: Group of each name that belongs to one.
        names: All names; those without a group must not be matched.

    Raises:
        RuntimeError: A name is matched by patterns of another group, by two, or by none.
    """
    compiled = [(group, re.compile(p)) for group, given in targets.items() for p in given]
    for name in dict.fromkeys((*names, *groups)):
        hits = [group for group, pattern in compiled if pattern.match(name)]
        wanted = [groups[name]] if name in groups else []
        if hits != wanted:
            raise RuntimeError(
                f"patterns of {hits or 'no group'} match {name!r}, which belongs to "
                f"{wanted or 'no group'}: targets overlap or miss"
            )
