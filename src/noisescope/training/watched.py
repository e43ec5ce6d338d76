"""Noise on a model that is trained: opened for one piece of work, its dose kept and attested.

The session is open only while a piece of work runs, so an error anywhere finds the model restored.
Who calls, and when, is not known here.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from noisescope.errors import DoseError, InputError
from noisescope.inject import Session, Site, Witness, inject, merge_witnesses
from noisescope.noise import ErrorModel

_WORDS = 2**32


class WatchedNoise:
    """The noise of one kind of work on one model.

    Args:
        model: The model, in no wrapper that is not a module.
        error_model: What is added.
        work: What the noise is for, as errors name it: ``"update"``.
        seed: First key word.
        draw: Draw of step 0; a later step's is added to it.
        **selection: Arguments of `inject` from ``layers`` to ``positions``, and ``phases``.
    """

    def __init__(
        self,
        model: nn.Module,
        error_model: ErrorModel,
        work: str,
        seed: int = 0,
        draw: int = 0,
        **selection: Any,
    ) -> None:
        self.work = work
        self.first_draw = draw
        self.session: Session = inject(model, error_model, seed=seed, draw=draw, **selection)
        # Attested once a step is whole: a witness is read from its device then, not at every pass.
        self.session.attest = False
        self.is_open = False
        self._kept = Witness()

    @contextmanager
    def at(self, step: int) -> Iterator[None]:
        """Adds the noise of a step inside the block; what the model was before, it is after."""
        self.session.draw = (self.first_draw + step) % _WORDS
        with self.session:
            self.is_open = True
            try:
                yield
            finally:
                self.is_open = False

    @property
    def witness(self) -> Witness:
        """All that has arrived since the beginning."""
        return merge_witnesses([self._kept, self.session.witness])

    def take(self) -> Witness:
        """Returns what arrived since it was last taken."""
        taken = self.session.witness
        self._kept = merge_witnesses([self._kept, taken])
        self.session.forget()
        return taken

    @property
    def is_head_silent(self) -> bool:
        """Whether the head is selected, and nothing ran in it while elsewhere noise arrived.

        A trainer may compute with the weights of the head and never call it.
        """
        session = self.session
        if "head" not in session.region_names:
            return False
        heads = session.regions.named("head").modules
        if not any(session.includes(Site("head", name, "linear", 0)) for name, _ in heads):
            return False
        fired = {r.site.region for r in session.records if r.forward or r.backward}
        return bool(fired) and "head" not in fired

    @property
    def _is_head_alone(self) -> bool:
        return set(self.session.region_names) == {"head"}

    def attest(self, is_named: bool = True) -> None:
        """Raises where the noise that was asked for did not arrive; warns where half was lost.

        Args:
            is_named: Whether everything that the selection names must have fired. Else it is enough
                that something did: for lists of operators of which a model has only some.

        Raises:
            DoseError: The model never ran in this work, or rounding erased the noise.
            SelectionError: Something that is named received no noise.
        """
        records = self.session.records
        if not records and self._is_head_alone:
            raise DoseError(
                f"no noise arrived in the {self.work}: only the head is selected, and it was never "
                "called. A trainer may compute with its weights, as TRL's do for their losses: "
                "select layers, too."
            )
        if not records:
            raise DoseError(
                f"no noise arrived in the {self.work}: the model never ran in it. The noise is on "
                f"{type(self.session.model).__name__}; put it on the model that is trained."
            )
        if is_named or self.session.error_model.is_null:
            self.session.check()
            return
        for phase in self.session.phases:
            if not any(getattr(record, phase) for record in records):
                seen = ", ".join(dict.fromkeys(r.site.operator for r in records))
                raise DoseError(
                    f"no {phase} noise arrived in the {self.work}: none of the operators that ran "
                    f"({seen}) is in {list(self.session.selection.operators or ())}."
                )
            dose = self.session.dose(phase)
            if dose.is_all_lost:
                raise DoseError(
                    f"no {phase} noise arrived in the {self.work}: rounding erased all of it "
                    f'({dose}). Use a larger scale, float32, or rounding="stochastic".'
                )


def dose_figures(prefix: str, witness: Witness, phases: tuple[str, ...]) -> dict[str, float]:
    """Returns the doses of a witness as flat figures for a log.

    Returns:
        ``{prefix}/{phase}_share_changed``, 0 to 1, and ``{prefix}/{phase}_relative_l2``, for each
        phase that anything arrived in. Where all values were zero, as gradients are without an
        advantage, noise relative to them is none, and nothing is told.
    """
    figures: dict[str, float] = {}
    for phase in phases:
        dose = witness.dose(phase)
        if dose.elements and not math.isnan(dose.relative_l2):
            figures[f"{prefix}/{phase}_share_changed"] = dose.share_changed
            figures[f"{prefix}/{phase}_relative_l2"] = dose.relative_l2
    return figures


def check_error_model(error_model: object) -> None:
    """Raises InputError for what is no error model, or adds nothing."""
    if not isinstance(error_model, ErrorModel):
        raise InputError(
            f"error model {error_model!r}: an ErrorModel is needed; try RelativeGaussian(0.05)"
        )
