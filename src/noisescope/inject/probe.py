"""Lists the sites of a model by letting it run once under a session that changes nothing."""

from collections.abc import Sequence

import torch
from torch import nn

from noisescope.errors import SelectionError, near_names
from noisescope.inject.dose import SiteRecord
from noisescope.inject.operators import CORE_OPERATORS, OPERATORS, check_operators
from noisescope.inject.selection import Selection
from noisescope.inject.session import Session
from noisescope.noise import RelativeGaussian

PRESETS = ("core", "all")


def list_sites(model: nn.Module, token_ids: Sequence[int]) -> list[SiteRecord]:
    """Runs the model on one short text and returns the record of every site, in running order.

    Sites inside fused attention are listed too: they are taken apart when one is selected. Experts
    that this text does not reach are not listed.

    Args:
        model: A language model that takes `input_ids`.
        token_ids: The text.
    """
    device = next(model.parameters()).device
    ids_BT = torch.tensor([list(token_ids)], device=device)
    with (
        torch.no_grad(),
        Session(model, RelativeGaussian(0.0), Selection(), attest=False) as session,
    ):
        model(input_ids=ids_BT)
    return session.records


def resolve_operators(
    wanted: str | Sequence[str], records: Sequence[SiteRecord]
) -> tuple[str, ...]:
    """Turns a preset or names into operators that the model runs.

    Args:
        wanted: `core` (matmul, bmm, linear), `all`, or operator names, also joined by commas.
        records: The model's sites, from `list_sites`.

    Returns:
        Of a preset, those operators that the model runs.

    Raises:
        SelectionError: An unknown name, or a named operator that the model never runs.
    """
    names = tuple(wanted.split(",")) if isinstance(wanted, str) else tuple(wanted)
    names = tuple(name.strip() for name in names)
    running = tuple(dict.fromkeys(r.site.operator for r in records))
    if names in (("core",), ("all",)):
        preset = CORE_OPERATORS if names == ("core",) else OPERATORS
        found = tuple(name for name in preset if name in running)
        if not found:
            raise SelectionError(
                f"none of the {names[0]} operators runs here; this model runs {', '.join(running)}."
            )
        return found
    for name in names:
        if name in PRESETS:
            raise SelectionError(f"operators {','.join(names)!r}: {name!r} stands alone.")
    checked = check_operators(names) or ()
    for name in checked:
        if name not in running:
            raise SelectionError(
                f"this model never runs {name!r}{near_names(name, running) or '.'} "
                f"It runs {', '.join(running)}. List its sites with 'noisescope sites MODEL'."
            )
    return checked
