"""`inject`: opens a session in which a model runs with error at chosen sites.

The session is also the witness. On leaving it raises where nothing fired and warns where rounding
erased the dose, because results of such a run would be the clean model's under another name.
"""

import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from noisescope.errors import DoseError, DoseWarning, InputError, NoisescopeWarning
from noisescope.inject.coverage import CoverageRow
from noisescope.inject.dose import Dose, SiteRecord
from noisescope.inject.fired import check_fired
from noisescope.inject.injector import Injector
from noisescope.inject.mode import OperatorMode, remove_mode
from noisescope.inject.operands import check_operands, falls_on_inputs, reaches
from noisescope.inject.rows import RowsOf
from noisescope.inject.selection import (
    Selection,
    check_attention,
    check_modules,
    check_sites,
    make_selection,
    selected_regions,
)
from noisescope.inject.sites import Site, SiteKey
from noisescope.inject.tokens import TokenReader, check_names
from noisescope.inject.tracker import Place, Tracker
from noisescope.inject.weights import DisturbedWeights
from noisescope.inject.witness import Witness
from noisescope.models import find_regions, uncompiled
from noisescope.noise import AbsoluteGaussian, ErrorModel, RelativeGaussian, flat_address


class Session:
    """An open or closed injection into one model; made by `inject`."""

    def __init__(
        self,
        model: nn.Module,
        error_model: ErrorModel,
        selection: Selection,
        seed: int = 0,
        draw: int = 0,
        attest: bool = True,
    ) -> None:
        flat_address(seed, draw, site=0, rows=0)  # checks both words
        if not isinstance(error_model, ErrorModel):
            raise InputError(
                f"error model {error_model!r}: an ErrorModel is needed; try RelativeGaussian(0.05)"
            )
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise InputError(
                "DataParallel runs copies of the model in threads, where samples cannot be told "
                "apart: give its .module, or use DistributedDataParallel."
            )
        self.model = model = uncompiled(model)
        check_operands(error_model, selection, model)
        self.selection = selection
        self.attest = attest
        self.regions = find_regions(model)
        check_sites(selection, model, self.regions)
        self.region_names = selected_regions(selection, self.regions)
        holders = [n for r in self.region_names for n, _ in self.regions.named(r).modules]
        check_modules(selection, model, holders)
        if not error_model.is_null:
            check_attention(selection, model, holders)
        self._injector = Injector(
            error_model, selection.phases, self.includes, seed, draw, selection.elements
        )
        self._has_own_weights = True
        self._reader = TokenReader(seed, draw)
        self._tracker = Tracker(self, self._reader)
        self._mode = OperatorMode(self._injector, lambda: self._tracker.place)
        self._unread: dict[Callable[[], None], None] = {}
        self._hooks = ExitStack()
        self._is_open = False

    # The noise.

    @property
    def error_model(self) -> ErrorModel:
        """What is added."""
        return self._injector.error_model

    @property
    def seed(self) -> int:
        """Key word of the random numbers."""
        return self._reader.seed

    @property
    def draw(self) -> int:
        """Number of the realisation; may be set between forward passes."""
        return self._reader.draw

    @draw.setter
    def draw(self, draw: int) -> None:
        flat_address(self.seed, draw, site=0, rows=0)
        self._reader.draw = self._injector.draw = draw

    @property
    def weights(self) -> DisturbedWeights:
        """Copies of weights that the error falls on; sessions on one model may share them."""
        return self._injector.weights

    @weights.setter
    def weights(self, weights: DisturbedWeights) -> None:
        self._injector.weights = weights
        self._has_own_weights = False

    def includes(self, site: Site) -> bool:
        """Tells whether a site of a selected region is meant, and the error can fall on it."""
        return self.selection.includes(site) and reaches(self.error_model, site)

    def name_samples(self, names: Sequence[str | int] | None) -> None:
        """Names the sample of each row of the coming forward passes; None: by their own tokens.

        Under beam search name them, the same name for every beam of a sample: their own tokens
        cannot be followed where beams are reordered inside the cache, and coverage says `row`.
        """
        self._reader.names = check_names(names)

    # The witness.

    @property
    def records(self) -> list[SiteRecord]:
        """The record of every site seen in the selected regions, in the order they first ran."""
        for read in self._unread:
            read()
        return list(self._injector.records.values())

    @property
    def witness(self) -> Witness:
        """The records so far, apart from the session; later passes go on adding to them."""
        return Witness(tuple(self.records), self.error_model.rounding == "stochastic")

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Injections per site: ``{site name: {"forward": n, "backward": n}}``."""
        return self.witness.counts

    def dose(self, phase: str = "forward") -> Dose:
        """Returns what arrived, over all sites together."""
        return self.witness.dose(phase)

    def doses(self, phase: str = "forward") -> dict[str, Dose]:
        """Returns what arrived at each site that fired."""
        return self.witness.doses(phase)

    def coverage(self) -> list[CoverageRow]:
        """Returns, per operator, how many sites were seen, selected and perturbed."""
        return self.witness.coverage()

    def is_dose_weak(self, phase: str = "forward") -> bool:
        """Tells whether rounding erased over half of what was asked."""
        return self.witness.is_dose_weak(phase)

    # The context.

    def __enter__(self) -> Self:
        if self._is_open:
            raise InputError("this session is open already: open another one with inject(...).")
        with ExitStack() as stack:
            self._tracker.attach(self.model, self.regions, self.region_names, stack)
            self._hooks = stack.pop_all()
        self._is_open = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_open = False
        if self._has_own_weights:
            self.weights.forget()
        self._hooks.close()
        remove_mode(self._mode)
        self._tracker.reset()
        if kind is None and self.attest:
            self.check()

    def check(self) -> None:
        """Raises where the selection never fired; warns where under half of the dose arrived.

        Raises:
            SelectionError: Something that is named, from layers to channels, received no noise.
            DoseError: Rounding erased all of the noise of a phase.
        """
        if not self._tracker.passes:
            warnings.warn(
                "noise was set up but the model never ran in the session: nothing was perturbed. "
                "Call the model inside the 'with' block; what torch.compile, torch.export or "
                "torch.jit made of it before does not count (torch.compiler.reset() drops the "
                "first).",
                NoisescopeWarning,
                stacklevel=3,
            )
            return
        check_fired(self.selection, self.region_names, self.records)
        for phase in self.selection.phases:
            dose = self.dose(phase)
            if dose.is_all_lost:
                raise DoseError(
                    f"no {phase} noise arrived: rounding erased all of it ({dose}). "
                    'Use a larger scale, float32, or rounding="stochastic".'
                )
            if self.is_dose_weak(phase):
                warnings.warn(
                    f"under half of the {phase} noise arrived ({dose}): rounding erased it. "
                    'Use a larger scale, float32, or rounding="stochastic".',
                    DoseWarning,
                    stacklevel=3,
                )

    def see_at(self, key: SiteKey) -> SiteRecord:
        """Notes that a site runs, as seen by a ride, and returns its record."""
        return self._injector.see_at(key)

    def forget(self) -> None:
        """Begins the records anew."""
        for read in self._unread:
            read()
        self._injector.records.clear()

    # What a compiled model is told of; see inject.compiled.

    @property
    def compilable(self) -> Self:
        """The session itself."""
        return self

    @property
    def perturber(self) -> Injector:
        """What perturbs at a site."""
        return self._injector

    @property
    def shape(self) -> Hashable:
        """All that a graph depends on: what is perturbed and where, no seed, draw or scale."""
        error_model: object = self.error_model
        if isinstance(error_model, (RelativeGaussian, AbsoluteGaussian)):
            error_model = (type(error_model), error_model.is_null, error_model.rounding)
        return self.selection, error_model

    @property
    def phases(self) -> tuple[str, ...]:
        """`forward`, `backward` or both."""
        return self.selection.phases

    @property
    def operands(self) -> frozenset[str]:
        """What of a site the error falls on."""
        return self.error_model.operands

    @property
    def has_rows_apart(self) -> bool:
        """No: what is perturbed, is in all rows."""
        return False

    @property
    def leaves_attention_whole(self) -> bool:
        """Whether fused attention is not taken apart."""
        return self.error_model.is_null

    @property
    def conditions(self) -> tuple[Self, ...]:
        """The session, where a graph may compute its noise: Gaussian error on whole outputs."""
        model, is_whole = self.error_model, self.selection.elements is None
        is_plain = isinstance(model, (RelativeGaussian, AbsoluteGaussian)) and not model.is_null
        return (self,) if is_plain and is_whole and self.phases == ("forward",) else ()

    @property
    def rows_of_conditions(self) -> tuple[RowsOf, ...]:
        """All rows are the session's."""
        return (RowsOf(0, self.draw),)

    def read_later(self, read: Callable[[], None]) -> None:
        """Keeps what is to be called before records are read."""
        self._unread[read] = None

    def note_from_graph(self, key: SiteKey, times: int, tally: Tensor, is_named: bool) -> None:
        """Notes what arrived at a site in some passes."""
        self._injector.note_from_graph(key, times, tally, is_named)

    def treatment(self, site: Site) -> str:
        """Returns what error falls on at a site: ``output``, ``inputs``, or nothing."""
        if site.region not in self.region_names or not self.includes(site):
            return ""
        return "inputs" if falls_on_inputs(self.error_model) else "output"

    def note_seen(self, key: SiteKey, is_fused: bool) -> None:
        """Notes that a site ran which got no error."""
        record = self._injector.see_at(key, is_fused)
        record.is_fused = record.is_fused or is_fused

    # What the tracker calls.

    def enter_region(self) -> None:
        """Turns the mode on for a selected region."""
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    def leave_region(self) -> None:
        """Turns it off."""
        self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def before_module(self, place: Place, module: nn.Module, args: Any) -> Any:
        """Notes a module that is an operator, and wraps its inputs for the way back."""
        place.record = self._injector.see(place, str(place.operator))
        if not place.record.is_selected:
            return None
        wrapped, _ = self._injector.wrap_inputs(place.record, place.rows, (args, {}), {})
        return wrapped

    def after_module(self, place: Place, module: nn.Module, output: Any) -> Any:
        """Adds the error to its output."""
        if place.record is None or not place.record.is_selected:
            return None
        return self._injector.perturb_output(place.record, place.rows, output, {}, -1)


def inject(
    model: nn.Module,
    error_model: ErrorModel,
    layers: int | str | Iterable[int | str] | None = None,
    operators: str | Iterable[str] | None = None,
    modules: str | Iterable[str] | None = None,
    phases: str | Iterable[str] = ("forward",),
    seed: int = 0,
    draw: int = 0,
    *,
    sites: str | Iterable[str] | None = None,
    without: str | Iterable[str] = (),
    channels: int | Iterable[int] | None = None,
    without_channels: int | Iterable[int] = (),
    positions: int | Iterable[int] | None = None,
) -> Session:
    """Opens a session: inside the `with` block the model runs with error at the selected sites.

    Outside the selection the model computes what it always did, to the last bit, and after the
    block its hooks and weights are as before. Sessions nest: each adds its own error; give each its
    own seed or draw, or the same numbers are added twice. With gradient checkpointing run the
    backward pass inside the block too, as layers then run again.

    Args:
        model: Any module; a Hugging Face language model has layers to select.
        error_model: What is added, e.g. ``RelativeGaussian(0.05)``; or what is done to weights and
            activations, e.g. ``RoundTo("mxfp4", "weights")``: they are rounded before they meet,
            at operators that are products, and the weights themselves are never written.
        layers: Layer numbers and region names (`embed`, `norm`, `head`); None: everywhere.
        operators: Names out of `OPERATORS`; None: all.
        modules: Patterns on dotted module names: ``"mlp.down_proj"``, ``"*.q_proj"``; None: all.
        phases: `forward` noise falls on outputs, `backward` on the gradient of every input.
        seed: First key word of the random numbers, 0 to 2**32 - 1.
        draw: Second key word: which realisation of the noise.
        sites: Names of single sites: ``"model.layers.3.mlp.down_proj:linear"`` for every call of
            the operator in that module, with ``":0"`` behind it for one call; None: all.
        without: Names of sites that are left out.
        channels: Channels of an output that get noise, from 0; None: all. A tensor of heads has
            those of its heads one after the other; of scores and probabilities the head is the
            channel. The other elements keep their clean value to the last bit, these get what they
            would get without the restriction. Forward noise only.
        without_channels: Channels that get none.
        positions: Tokens that get noise, by their index within their sample, from 0, padding not
            counted (padding itself has an index of the tokens beside it); of scores and
            probabilities, those of the query. Forward noise only.

    Returns:
        The session: counts, dose and coverage per site.

    Raises:
        SelectionError: The selection names nothing in this model; or, when the block ends, a named
            operator, layer, phase, site or channel received no noise; or, while the model runs,
            positions are selected at a site whose rows belong to no known token.
        InputError: Seed or draw out of range, or something else than an error model.
    """
    selection = make_selection(
        layers,
        operators,
        modules,
        phases,
        sites=sites,
        without=without,
        channels=channels,
        without_channels=without_channels,
        positions=positions,
    )
    return Session(model, error_model, selection, seed, draw)
