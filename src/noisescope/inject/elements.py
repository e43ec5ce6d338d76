"""Which elements of a site's output are meant: its channels, and the positions of its tokens.

The channel of an element is the one of its address, so it does not depend on the shape that an
operator happens to give its output. Over keys (scores, probabilities) the head is the channel.
Gradients are never restricted. Legend: R flat rows, D columns.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from noisescope.errors import SelectionError
from noisescope.inject.dose import SiteRecord
from noisescope.inject.rows import KEYS_PER_HEAD, Layout, Rows
from noisescope.noise import Address

# Far beyond any output's channels and any text's tokens; it bounds the tables below.
LARGEST_INDEX = (1 << 22) - 1
# Their outputs may hold heads, or channels, on another axis than the last: a known layout tells.
_WITH_HEADS = frozenset({"matmul", "bmm", "softmax"})


@dataclass(frozen=True)
class Elements:
    """Which elements get noise; at least one of the three restricts them.

    Attributes:
        channels: Those that get it; None: all.
        without_channels: Those that do not.
        positions: Tokens that get it, by their index within their sample; None: all.
    """

    channels: tuple[int, ...] | None = None
    without_channels: tuple[int, ...] = ()
    positions: tuple[int, ...] | None = None

    @property
    def restricts_channels(self) -> bool:
        """Whether some channels get none."""
        return self.channels is not None or bool(self.without_channels)


def as_indices(name: str, values: Any) -> tuple[int, ...] | None:
    """Returns channels or positions as a tuple of plain integers; None stays None.

    Raises:
        SelectionError: Something is no whole number.
    """
    if values is None:
        return None
    listed = values if isinstance(values, Iterable) else (values,)
    return tuple(dict.fromkeys(_as_index(name, value) for value in listed))


def check_indices(name: str, values: Sequence[int]) -> None:
    """Raises SelectionError for a channel or position that no output can have."""
    for value in values:
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or not (0 <= value <= LARGEST_INDEX)
        ):
            raise _no_index(name, value)


def find_mask(
    elements: Elements | None,
    record: SiteRecord,
    rows: Rows | None,
    value: Tensor,
    layout: Layout,
    at: Address,
) -> Tensor | None:
    """Returns which elements of an output are meant, and notes how many channels it has.

    Args:
        elements: What is selected; None: everything.
        record: Of the site.
        rows: The rows of the pass; None: outside every pass.
        value: The output that `rows` describe; `at` may be of some of its rows.
        layout: What its last axis holds.
        at: Where the rows lie that are to be perturbed.

    Returns:
        bool [R, D] or [R, 1] on the device of `at`; None: all.

    Raises:
        SelectionError: Channels or positions are selected, and cannot be told at this site.
    """
    if elements is None:
        return None
    _check_told(elements, record, rows, value, layout)
    columns = value.shape[-1] if value.dim() else 1
    is_keys = layout == "keys"
    # Left padding moves the first key below its head's first channel: half a head is added.
    first_R = (at.channel_R + KEYS_PER_HEAD // 2) // KEYS_PER_HEAD if is_keys else at.channel_R
    width = 1 if is_keys else columns
    if not record.channels and len(at):
        record.channels = int(first_R.max()) + width
    mask_R1 = torch.ones_like(first_R, dtype=torch.bool)[:, None]
    if elements.positions is not None:
        mask_R1 = _windows(elements.positions, True, 1, at.position_R.device)[
            at.position_R.clamp(max=max(elements.positions) + 1)
        ]
    if not elements.restricts_channels:
        return mask_R1
    listed = elements.without_channels if elements.channels is None else elements.channels
    windows = _windows(listed, elements.channels is not None, width, first_R.device)
    return mask_R1 & windows[first_R.clamp(max=max(listed) + 1)]


def _check_told(
    elements: Elements, record: SiteRecord, rows: Rows | None, value: Tensor, layout: Layout
) -> None:
    site = record.site
    if _knows_tokens(rows, value, site.operator, layout):
        return
    leave_out = f"or leave the site out with without=[{site.name!r}]."
    if elements.positions is not None:
        raise SelectionError(
            f"positions cannot be told at {site.name}: no token is known for its rows of "
            f"{list(value.shape)}, as in the experts of a mixture. Leave positions out, {leave_out}"
        )
    if site.operator in _WITH_HEADS and value.dim() > 2:
        raise SelectionError(
            f"channels cannot be told at {site.name}: an output of {list(value.shape)} is in no "
            f"known layout of heads and tokens. Leave channels out, {leave_out}"
        )


def _knows_tokens(rows: Rows | None, value: Tensor, operator: str, layout: Layout) -> bool:
    """Tells whether every row's token is known, in samples with a name or without."""
    if rows is None:
        return False
    return replace(rows, is_named=True).address(value, operator, layout, 0)[1] == "token"


@lru_cache(maxsize=64)
def _windows(listed: tuple[int, ...], is_meant: bool, width: int, device: torch.device) -> Tensor:
    """Returns which of `width` indices from n on are meant, for n to the one after the last listed.

    A view, bool [N, width]: beyond the last listed index all are alike.
    """
    with torch.inference_mode(False):
        table = torch.full((max(listed) + 1 + width,), not is_meant)
        table[list(listed)] = is_meant
        return table.to(device).unfold(0, width, 1)


def check_touched(elements: Elements, records: Sequence[SiteRecord], where: str) -> None:
    """Raises SelectionError where none of the elements of sites that ran is meant.

    Args:
        elements: What is selected.
        records: Of the sites, all of which ran. Those inside fused attention that was left whole
            have noted no channels, and are not looked at.
        where: What the sites are, for the message.
    """
    width = max((record.channels for record in records), default=0)
    if not width or any(map(_is_touched, records)):
        return
    if elements.channels is not None and min(elements.channels) >= width:
        raise SelectionError(_no_such_channel(min(elements.channels), width, where))
    if elements.channels is None and set(range(width)) <= set(elements.without_channels):
        raise SelectionError(
            f"without_channels leaves none of the {width} channels of {where}: leave out fewer."
        )
    raise SelectionError(
        f"no token at positions {list(elements.positions or ())} ran in {where}: "
        "name positions that the samples have; the first is 0."
    )


def check_channels_exist(elements: Elements, records: Sequence[SiteRecord]) -> None:
    """Raises SelectionError for a channel, selected or left out, that no site has."""
    width = max((record.channels for record in records), default=0)
    for channel in (*(elements.channels or ()), *elements.without_channels):
        if width and channel >= width:
            raise SelectionError(_no_such_channel(channel, width, "the selection"))


def _is_touched(record: SiteRecord) -> bool:
    return "forward" in record.tallies and float(record.tallies["forward"][0]) > 0


def _no_such_channel(channel: int, width: int, where: str) -> str:
    return (
        f"no channel {channel} in {where}: there are {width} channels, 0 to {width - 1}; "
        "name some of these."
    )


def _as_index(name: str, value: Any) -> int:
    try:
        index = operator.index(value)
    except TypeError:
        raise _no_index(name, value) from None
    if isinstance(value, bool):
        raise _no_index(name, value)
    return index


def _no_index(name: str, value: Any) -> SelectionError:
    return SelectionError(
        f"{name} {value!r}: whole numbers from 0 to {LARGEST_INDEX} are accepted; the first is 0."
    )
