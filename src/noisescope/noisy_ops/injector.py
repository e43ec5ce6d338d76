"""The injector of this interface: it keeps the counters, and knows where the model is.

Where a graph goes back after noise was switched off, its gradients stay clean: the switch counts at
the moment of the injection, the settings are those under which the graph was made.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from noisescope.errors import SelectionError
from noisescope.inject.dose import SiteRecord
from noisescope.inject.injector import Injector
from noisescope.inject.perturb import TensorMap
from noisescope.inject.rows import Rows
from noisescope.inject.sites import Site
from noisescope.inject.tracker import Place, is_recomputing
from noisescope.noise import ErrorModel
from noisescope.noisy_ops.state import STATE, layer_of

_CALLS_PER_DRAW = 1024


@dataclass
class _Anywhere(Place):
    """The place of operators outside every registered model: each call is a site of its own.

    The index wraps, so that a long run keeps a bounded number of records; each wrap is another
    draw.
    """

    injector: Injector | None = None

    def next_index(self, operator: str) -> int:
        index = super().next_index(operator)
        if index and index % _CALLS_PER_DRAW == 0 and self.injector is not None:
            self.injector.draw = (self.injector.draw + 1) % 2**32
        return index % _CALLS_PER_DRAW


class CountingInjector(Injector):
    """An injector that also keeps the counters of this interface."""

    def __init__(self, error_model: ErrorModel) -> None:
        self.wish = STATE.wish()
        super().__init__(error_model, self.wish.phases, self._includes, STATE.seed, STATE.draw)
        self._anywhere = _Anywhere("unknown", "", None, injector=self)

    def place(self) -> Place | None:
        """Returns where the running model is; None while another injector, or none, is on."""
        if STATE.injector is not self:
            return None
        tracked = STATE.active[-1].place if STATE.active else None
        if tracked is not None:
            return tracked
        layer = STATE.current_layer
        self._anywhere.region = "unknown" if layer is None else str(layer)
        return self._anywhere

    def note(self, record: SiteRecord, phase: str, counted: Tensor) -> None:
        """Counts an injection by site, by label and by layer."""
        super().note(record, phase, counted)
        if STATE.injector is None or (phase == "forward" and is_recomputing()):
            return
        key = f"{STATE.label.removesuffix('_forward').removesuffix('_backward')}_{phase}"
        STATE.counts[key] += 1
        layer = layer_of(record.site.region)
        per_layer = STATE.layer_counts.setdefault(
            "unknown" if layer is None else layer, {"forward": 0, "backward": 0}
        )
        per_layer[phase] += 1

    def _includes(self, site: Site) -> bool:
        try:
            return STATE.includes(site)
        except SelectionError:
            self.records.clear()  # a run that was refused has nothing to attest
            raise

    def _perturbed(
        self, record: SiteRecord, rows: Rows | None, value: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        if not _is_on("forward"):
            return value
        return super()._perturbed(record, rows, value, *args, **kwargs)

    def _gradient_map(self, *args: Any) -> TensorMap:
        perturb = super()._gradient_map(*args)
        return lambda gradient: perturb(gradient) if _is_on("backward") else gradient


def _is_on(phase: str) -> bool:
    return STATE.injector is not None and phase in STATE.wish().phases
