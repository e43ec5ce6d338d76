"""A model prepared for measuring: cut in two, its layers shared, as far as that gives its answers.

What can be done with a model is tried on it and not looked up: a model that fails a trial is run in
a plainer way, one condition after the other, and the user hears of it.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from noisescope.inject import OPERATORS, Ride, RideError, Session
from noisescope.inject.probe import list_sites
from noisescope.inject.tracker import is_experts
from noisescope.measure.sharing import (
    Entries,
    Growth,
    Rider,
    disturbed,
    find_entries,
    probe_batch,
)
from noisescope.measure.steps import call_arguments
from noisescope.measure.streaming import find_halves, is_close
from noisescope.models import find_regions

# What runs inside the experts of a mixture.
_EXPERT_OPERATORS = frozenset(OPERATORS) - {"softmax", "layer_norm", "rms_norm", "embedding"}
_LENGTH_ROPES = ("dynamic", "longrope")
_TRIAL_ERRORS = (
    RideError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    KeyError,
)


class TakenApart:
    """A causal language model, and what conditions can share of it.

    Args:
        model: The model; it is left as it is.

    Attributes:
        halves: The model cut at its last hidden state; None where that does not work.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.regions = find_regions(model)
        self.vocabulary: int = model.get_input_embeddings().num_embeddings
        self.device: torch.device = model.device
        self._probe = probe_batch(3, self.vocabulary, self.device)
        # Without known layers the model is one region, and its first half would run past the hooks.
        self.halves = find_halves(model, *self._probe) if self.regions.n_layers else None
        self._alone: dict[Session, bool] = {}
        self._first: dict[Session, int] = {}

    def run(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Returns what the first half makes of a batch: states, or logits where it is not cut."""
        if self.halves is not None:
            return self.halves.states(ids_BT, mask_BT)
        with torch.no_grad():
            output = self.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
        logits: Tensor = output.logits
        return logits

    @cached_property
    def entries(self) -> Entries:
        """Where regions begin when answers are scored."""
        return find_entries(self.model, self.regions, self.run)

    @cached_property
    def prompt_entries(self) -> Entries | None:
        """Where regions begin when answers are generated; None: prompts cannot be shared."""
        accepted = inspect.signature(self.model.forward).parameters

        def call(ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
            # Prompts are padded on the left.
            arguments = call_arguments(accepted, ids_BT.flip(1), mask_BT.flip(1))
            logits: Tensor = self.model(**arguments).logits
            return logits

        if not self.can_share:
            return None
        return self._entries_if_shared(call)

    @cached_property
    def can_share(self) -> bool:
        """Whether rows that branch off between the layers get what rows of their own batch get."""
        return self._entries_if_shared(self.run) is not None

    @cached_property
    def sites(self) -> list[Any]:
        """What the model runs, as a short text has shown."""
        return list_sites(self.model, self._probe[0][0].tolist())

    @property
    def minds_length(self) -> bool:
        """Whether a row's values depend on the longest row of its batch.

        Rotary embeddings that change with the length take it from the batch.
        """
        config = self.model.config
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
        return any(kind in _LENGTH_ROPES for kind in _rope_kinds(rope))

    @cached_property
    def has_experts(self) -> bool:
        """Whether rows lose their sample somewhere, in the experts of a mixture."""
        return any(is_experts(name, module) for name, module in self.model.named_modules())

    def is_shared(self, session: Session | None) -> bool:
        """Tells whether a condition can ride with others."""
        if session is None:
            return True
        if session not in self._alone:
            self._alone[session] = not self.can_share or _touches_experts(session)
        return not self._alone[session]

    def must_ride_alone(self, session: Session | None) -> bool:
        """Tells whether a condition's noise depends on who is in the batch."""
        return session is not None and _touches_experts(session)

    def first_region(self, session: Session | None) -> int:
        """Returns the number of the region where a condition leaves the clean rows."""
        if session is None:
            return 0
        if session not in self._first:
            self._first[session] = self.entries.first_region(session, self.sites)
        return self._first[session]

    def _entries_if_shared(self, call: Any) -> Entries | None:
        """Lets copies of the clean rows branch off at every region, and one that is disturbed.

        The copies must stay clean, and the disturbed one must get what it gets by itself: rows that
        only copies of each other were mixed with would not show it.
        """
        ids_BT, mask_BT = self._probe
        B = len(ids_BT)
        try:
            entries = find_entries(self.model, self.regions, call)
            ride = Ride(self.model, [])
            ride.reader.names = tuple(range(B))
            entered = [n for n, name in enumerate(entries.order) if n and name in entries.batched]
            waiting = [(n, Rider(str(n), None)) for n in (*entered[:1], *entered)]
            growth = Growth(entries, ride, B, waiting)
            with torch.no_grad():
                clean = call(ids_BT, mask_BT)
                with disturbed(entries, entered[0], slice(None)):
                    alone = call(ids_BT, mask_BT)
                with growth.attached(), ride, disturbed(entries, entered[0], slice(B, 2 * B)):
                    grown = call(ids_BT, mask_BT)
        except _TRIAL_ERRORS:
            return None
        if grown.shape[1:] != clean.shape[1:]:
            return None
        mask = _scored(mask_BT, clean)
        blocks = [block[mask] for block in grown.split(B)]
        expected = [clean[mask], alone[mask]] + [clean[mask]] * (len(growth.aboard) - 1)
        is_same = len(blocks) == len(expected) and all(map(is_close, blocks, expected))
        return entries if is_same else None


def _rope_kinds(rope: Any) -> Iterator[str]:
    """Yields the kinds of rotary embeddings in a configuration, one for all layers or per type."""
    if isinstance(rope, Mapping):
        yield str(rope.get("rope_type", rope.get("type", "")))
        for inner in rope.values():
            yield from _rope_kinds(inner)


def _scored(mask_BT: Tensor, output: Tensor) -> Tensor:
    """Returns which tokens of an output are looked at: all but padding, or all of the last."""
    if output.shape[1] == mask_BT.shape[1]:
        return mask_BT.bool().to(output.device)
    return torch.ones(output.shape[:2], dtype=torch.bool, device=output.device)


def _touches_experts(session: Session) -> bool:
    """Tells whether a session selects a site inside the experts of a mixture.

    Rows lose their sample there, so the noise depends on the batch.
    """
    for name in session.region_names:
        for holder, module in session.regions.named(name).modules:
            if any(_is_selected(session, inside) for inside in _experts_in(holder, module)):
                return True
    return False


def _experts_in(holder: str, module: Any) -> Sequence[str]:
    """Returns the names of the modules that are experts, or are inside them."""
    named = [(".".join(p for p in (holder, name) if p), m) for name, m in module.named_modules()]
    roots = [name for name, m in named if is_experts(name, m)]
    return [name for name, _ in named if any(f"{name}.".startswith(f"{r}.") for r in roots)]


def _is_selected(session: Session, module: str) -> bool:
    return any(session.selection.touches(module, operator) for operator in _EXPERT_OPERATORS)
