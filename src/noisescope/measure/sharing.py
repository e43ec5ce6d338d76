"""What conditions share: clean rows go up through the layers once, and each condition branches off.

A condition computes what the clean model does until its first noisy region. So a pass begins with
clean rows alone; at each region's entry a copy of them is appended for every condition that begins
there. Which arguments of a region hold the batch is measured, not guessed: the model is called with
two batch sizes, and what changes with them is the batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from noisescope.inject import Ride, RideError, Session, SiteRecord, Span
from noisescope.inject.rows import Rows
from noisescope.inject.tracker import entry_modules
from noisescope.models import Regions

# An argument's place: the names and indices that lead to it.
Path = tuple[int | str, ...]

_PROBE_TOKENS = 6
_PROBE_BATCHES = (2, 3)


@dataclass(frozen=True)
class Rider:
    """A condition under one draw; without a session, the clean model."""

    name: str
    session: Session | None
    draw: int = 0


@dataclass(frozen=True)
class Entries:
    """Where the regions of a model begin, and which of their arguments hold the batch.

    Attributes:
        order: Region names in the order they run.
        modules: Each module that a pass enters a region by, with its region.
        batched: For each region and argument: rows per row of the batch; absent: not batched.
    """

    order: tuple[str, ...]
    modules: tuple[tuple[str, nn.Module], ...]
    batched: Mapping[str, Mapping[Path, int]]

    def first_region(self, session: Session, sites: Sequence[SiteRecord]) -> int:
        """Returns the number of the first region where a session has a selected site.

        Args:
            session: The session.
            sites: What the model runs, as a probe has seen it.
        """
        regions = {
            record.site.region
            for record in sites
            if record.site.region in session.region_names
            and session.selection.includes(record.site)
        }
        known = [n for n, name in enumerate(self.order) if name in regions]
        return min(known, default=0)


def probe_batch(rows: int, vocabulary: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns ids and mask [rows, T] of made-up texts; all but the first are padded on the right.

    Without padding some models drop the mask, and what is dropped cannot be measured.
    """
    ids_BT = torch.arange(rows * _PROBE_TOKENS, device=device).reshape(rows, -1) % vocabulary
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1:, -2:] = 0
    return ids_BT, mask_BT


def find_entries(
    model: nn.Module, regions: Regions, call: Callable[[Tensor, Tensor], object]
) -> Entries:
    """Runs the model on two small batches and reads off which arguments hold the batch.

    Args:
        model: The model.
        regions: Its regions.
        call: Runs the model on ids and mask, both [B, T], the way it will be run.
    """
    modules = [
        (region.name, entry)
        for region in regions.all
        for _, module in region.modules
        for entry in entry_modules(module)
    ]
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    device = next(model.parameters()).device
    small, large = _PROBE_BATCHES
    batches = [probe_batch(n, embedding.num_embeddings, device) for n in _PROBE_BATCHES]
    first, second = (_argument_shapes(modules, call, *batch) for batch in batches)
    batched: dict[str, dict[Path, int]] = {name: {} for name, _ in first}
    for (name, path), length in first.items():
        if length % small == 0 and length // small * large == second.get((name, path)):
            batched[name][path] = length // small
    order = tuple(region.name for region in regions.all)
    return Entries(order, tuple(m for m in modules if m[0] in batched), batched)


def _argument_shapes(
    modules: Sequence[tuple[str, nn.Module]],
    call: Callable[[Tensor, Tensor], object],
    ids_BT: Tensor,
    mask_BT: Tensor,
) -> dict[tuple[str, Path], int]:
    """Returns the length of axis 0 of every tensor that enters a region."""
    found: dict[tuple[str, Path], int] = {}

    def watch(region: str) -> Callable[..., None]:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            for path, tensor in _tensors_in((args, kwargs)):
                if tensor.dim() > 1:
                    found.setdefault((region, path), tensor.shape[0])

        return before

    with ExitStack() as stack, torch.no_grad():
        for region, module in modules:
            hook = module.register_forward_pre_hook(watch(region), with_kwargs=True)
            stack.callback(hook.remove)
        call(ids_BT, mask_BT)
    return found


def _tensors_in(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, (tuple, list)):
        for n, inner in enumerate(value):
            yield from _tensors_in(inner, (*path, n))
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _tensors_in(inner, (*path, name))


def _mapped(value: Any, change: Callable[[Path, Tensor], Tensor], path: Path = ()) -> Any:
    if isinstance(value, Tensor):
        return change(path, value)
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(_mapped(inner, change, (*path, n)) for n, inner in enumerate(value))
    if type(value) is dict:
        return {name: _mapped(inner, change, (*path, name)) for name, inner in value.items()}
    return value


@contextmanager
def disturbed(entries: Entries, number: int, rows: slice) -> Iterator[None]:
    """Changes the states of some rows of the batch where a region begins, as noise would."""
    region = entries.order[number]

    def change(path: Path, tensor: Tensor) -> Tensor:
        if path not in entries.batched[region] or tensor.dim() != 3:
            return tensor
        if not tensor.is_floating_point():
            return tensor
        wave_D = 1 + 0.1 * torch.cos(torch.arange(tensor.shape[-1], device=tensor.device))
        changed = tensor.clone()
        changed[rows] *= wave_D.to(tensor.dtype)
        return changed

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return _mapped((args, kwargs), change)

    with ExitStack() as stack:
        for name, module in entries.modules:
            if name == region:
                hook = module.register_forward_pre_hook(before, with_kwargs=True)
                stack.callback(hook.remove)
        yield


@dataclass
class Growth:
    """One pass that grows: clean rows, and a copy of them per rider from its first region on.

    Attributes:
        entries: Where the model's regions begin.
        ride: Perturbs each rider's rows.
        base: Rows of the clean batch.
        waiting: Riders in the order they come aboard, each with the number of its first region.
        aboard: Riders that have rows, in the rows' order; the clean rows come first.
        present: Rows of the batch in each region, as far as the pass has come.
        first: Rows that the pass begins with.
    """

    entries: Entries
    ride: Ride
    base: int
    waiting: list[tuple[int, Rider]]
    aboard: list[Rider] = field(default_factory=list)
    present: dict[str, int] = field(default_factory=dict)
    first: int = 0
    _clean: Rows | None = None
    _widened: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._seat_those_before(0)
        self.first = self.rows

    @property
    def rows(self) -> int:
        """Rows of the batch now."""
        return self.base * (1 + len(self.aboard))

    @property
    def copies(self) -> int:
        """Copies of the clean batch that the pass must begin with."""
        return self.first // self.base

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Watches the entries; to be opened before the ride, whose hooks must run after."""
        with ExitStack() as stack:
            for region, module in self.entries.modules:
                hook = module.register_forward_pre_hook(self._before(region), with_kwargs=True)
                stack.callback(hook.remove)
            yield

    def _before(self, region: str) -> Callable[..., Any]:
        number = self.entries.order.index(region)
        batched = self.entries.batched[region]

        def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if number == 0 or self.base == 0:
                self._seat()
                return None
            held = self.rows
            self._seat_those_before(number)
            self.present[region] = self.rows
            if self.rows == self.first:
                self._seat()
                return None
            self._seat()
            if self.rows != held:
                self._widened.clear()

            def widen(path: Path, tensor: Tensor) -> Tensor:
                return self._widen(tensor, batched.get(path), held)

            return _mapped((args, kwargs), widen)

        return before

    def _seat_those_before(self, number: int) -> None:
        while self.waiting and self.waiting[0][0] <= number:
            self.aboard.append(self.waiting.pop(0)[1])

    def _seat(self) -> None:
        """Tells the ride whose the rows are."""
        if len(self.ride.spans) == 1 + len(self.aboard) and self._clean is not None:
            return
        if self._clean is None:
            rows = self.ride.rows
            if rows is None:
                raise RideError("the pass has no rows")
            self._clean = rows.part(0, self.base)
        everyone = [Rider("", None), *self.aboard]
        self.ride.spans = [
            Span(rider.session, rider.draw, n * self.base, (n + 1) * self.base, self._clean)
            for n, rider in enumerate(everyone)
        ]

    def _widen(self, tensor: Tensor, per_row: int | None, held: int) -> Tensor:
        """Returns a tensor of the batch with rows for everyone; what is not batched as it is.

        States have the rows of the region before; what the pass was given at its beginning, such as
        masks and rotations, has those of its first rows.
        """
        if per_row is None:
            return tensor
        length = tensor.shape[0]
        known = self._widened.get((id(tensor), length))
        if known is not None and known[0] is tensor:
            return known[1]
        if length == per_row * self.rows:
            return tensor
        if length not in (per_row * held, per_row * self.first):
            raise RideError(f"{list(tensor.shape)} is not of a batch of {held} rows")
        missing = self.rows - length // per_row
        wide = torch.cat([tensor] + [tensor[: per_row * self.base]] * (missing // self.base))
        if length == per_row * self.first:
            self._widened[id(tensor), length] = (tensor, wide)
        return wide
