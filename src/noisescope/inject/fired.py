"""Whether everything that a selection names received noise: without it the results are void."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from noisescope.errors import SelectionError
from noisescope.inject.dose import SiteRecord
from noisescope.inject.elements import check_channels_exist, check_touched
from noisescope.inject.selection import Selection, matches
from noisescope.inject.site_names import is_named, split_name

# For each field of a selection: a part that it names, and the complaint that nothing fired there.
_TEXTS = {
    "operators": ("operator {name!r}", "operator {name!r} never {ran} in the selection"),
    "layers": ("layer {name}", "no selected operator {ran} in layer {name}"),
    "modules": ("the modules {name!r}", "no selected operator {ran} in the modules {name!r}"),
    "sites": ("site {name!r}", "site {name!r} never {ran} in the selection"),
}


@dataclass(frozen=True)
class _Part:
    """Something that a field of a selection names."""

    field: str
    name: str

    def __str__(self) -> str:
        return _TEXTS[self.field][0].format(name=self.name)

    def complaint(self, ran: str) -> str:
        return _TEXTS[self.field][1].format(name=self.name, ran=ran)

    def of(self, records: Sequence[SiteRecord]) -> list[SiteRecord]:
        return [record for record in records if self._holds(record)]

    def _holds(self, record: SiteRecord) -> bool:
        site = record.site
        if self.field == "operators":
            return site.operator == self.name
        if self.field == "layers":
            return site.region == self.name
        if self.field == "modules":
            return matches(self.name, site.module)
        return is_named(site.name, (self.name,))


def check_fired(
    selection: Selection, region_names: Iterable[str], records: Sequence[SiteRecord]
) -> None:
    """Raises SelectionError for everything the user named that received no noise.

    Args:
        selection: What was selected.
        region_names: The regions that it selects.
        records: Of every site that ran there.
    """
    seen = ", ".join(dict.fromkeys(r.site.operator for r in records)) or "none"
    advice = f"Operators that ran there: {seen}. List them with 'noisescope sites MODEL'."
    parts = _named_parts(selection, region_names)
    for phase in selection.phases:
        fired = [r for r in records if getattr(r, phase)]
        if not fired and phase == "backward" and any(r.is_selected for r in records):
            raise SelectionError(
                "backward noise was asked for, but no backward pass reached a selected site: "
                "call backward() inside the session, or leave 'backward' out of phases."
            )
        ran = "ran" if phase == "forward" else "got a gradient"
        for part in parts:
            if not part.of(fired):
                raise SelectionError(f"{part.complaint(ran)}. {advice}")
        if not fired:
            raise SelectionError(f"the selection matched no site that ran. {advice}")
    _check_left_out(selection, records)
    _check_elements(selection, parts, [r for r in records if r.forward])


def _named_parts(selection: Selection, region_names: Iterable[str]) -> list[_Part]:
    named: dict[str, Iterable[str]] = {
        "operators": selection.operators or (),
        "layers": region_names if selection.layers is not None else (),
        "modules": selection.modules or (),
        "sites": selection.sites or (),
    }
    return [_Part(field, name) for field, names in named.items() for name in names]


def _check_left_out(selection: Selection, records: Sequence[SiteRecord]) -> None:
    """Raises SelectionError for a site that is left out of a module that runs, but not that site.

    Its author meant another one, which got noise. A module that did not run got none.
    """
    for name in selection.without:
        module, _, _ = split_name(name)
        there = [r.site.name for r in records if r.site.module == module]
        if there and not any(is_named(site, (name,)) for site in there):
            raise SelectionError(
                f"site {name!r} is left out and never ran: in that module ran {', '.join(there)}. "
                "Name one of these in without."
            )


def _check_elements(
    selection: Selection, parts: Sequence[_Part], fired: Sequence[SiteRecord]
) -> None:
    """Raises SelectionError where the selected channels or positions met no element."""
    if selection.elements is None:
        return
    check_channels_exist(selection.elements, fired)
    check_touched(selection.elements, fired, "the selection")
    for part in parts:
        check_touched(selection.elements, part.of(fired), str(part))
