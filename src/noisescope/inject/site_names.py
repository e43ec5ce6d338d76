"""Names of sites in a selection: `module:operator`, all its calls, or `module:operator:index`.

Exact names only; patterns on modules are in selection.py.
"""

from collections.abc import Iterable, Sequence

from noisescope.errors import SelectionError, near_names
from noisescope.inject.operators import OPERATORS
from noisescope.models import Regions

_LIST_THEM = "List them with 'noisescope sites MODEL'."


def split_name(name: str) -> tuple[str, str, int | None]:
    """Returns module, operator and index of a site's name; without an index, None.

    Raises:
        SelectionError: It is no such name, or its operator is unknown.
    """
    if not isinstance(name, str) or ":" not in name:
        raise SelectionError(
            f"site {name!r}: accepted are 'module:operator' and 'module:operator:index', "
            f"as in 'model.layers.3.mlp.down_proj:linear:0'. {_LIST_THEM}"
        )
    holder, _, last = name.rpartition(":")
    index = int(last) if last.isascii() and last.isdigit() and ":" in holder else None
    if index is not None:
        holder, _, last = holder.rpartition(":")
    if last not in OPERATORS:
        raise SelectionError(
            f"site {name!r}: unknown operator {last!r}{near_names(last, OPERATORS) or '.'} "
            f"Accepted: {', '.join(OPERATORS)}."
        )
    return holder, last, index


def call_of(module: str, operator: str) -> str:
    """Returns the name of all calls of an operator in a module."""
    return f"{module}:{operator}"


def is_named(site_name: str, names: Iterable[str]) -> bool:
    """Tells whether a site, `module:operator:index`, is among names of either form."""
    return any(name in (site_name, site_name.rpartition(":")[0]) for name in names)


def check_names(sites: Sequence[str], without: Sequence[str]) -> None:
    """Raises SelectionError for what is no site's name, and for a site both named and left out."""
    for name in (*sites, *without):
        split_name(name)
    for name in sites:
        module, operator, _ = split_name(name)
        if name in without or call_of(module, operator) in without:
            raise SelectionError(
                f"site {name!r} is selected by sites and left out by without: "
                "leave it out of one of the two."
            )


def check_modules_exist(names: Sequence[str], modules: Sequence[str], where: str) -> None:
    """Raises SelectionError for a name whose module is not there.

    Args:
        names: Names of sites.
        modules: Names of the modules there are.
        where: What the modules are of, for the message.
    """
    known = frozenset(modules)
    for name in names:
        module, _, _ = split_name(name)
        if module in known:
            continue
        endings = [m for m in modules if m.endswith(f".{module}")]
        near = near_names(module, endings) or near_names(module, modules)
        raise SelectionError(f"no module {module!r} in {where}{near or '.'} {_LIST_THEM}")


def regions_that_hold(names: Sequence[str], regions: Regions) -> tuple[str, ...]:
    """Returns the regions in which the modules of named sites lie."""
    modules = [split_name(name)[0] for name in names]
    return tuple(
        region.name
        for region in regions.all
        if any(is_inside(m, holder) for m in modules for holder, _ in region.modules)
    )


def is_inside(module: str, holder: str) -> bool:
    """Tells whether a name is `holder` or lies inside it; the empty name holds everything."""
    return not holder or module == holder or module.startswith(holder + ".")
