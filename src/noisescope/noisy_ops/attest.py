"""The witness: says what noise really did when it is switched off or its selection changes.

Warnings, not errors: scripts loop over operators and layers, some of which their model never runs.
"""

import warnings

from noisescope.errors import DoseWarning, NoisescopeWarning
from noisescope.inject.dose import Dose, SiteRecord, total_dose
from noisescope.noisy_ops.injector import CountingInjector
from noisescope.noisy_ops.state import STATE, Wish


def attest() -> None:
    """Warns where noise fell on none of the operators that ran, or where rounding erased it."""
    injector = STATE.injector
    if not isinstance(injector, CountingInjector):
        return
    records = list(injector.records.values())
    if any(r.forward or r.backward for r in records):
        _warn_of_lost_dose(records, injector.wish)
    elif _is_void(records, injector.wish):
        seen = ", ".join(dict.fromkeys(r.site.operator for r in records))
        warnings.warn(
            f"noise was on and fell on nothing: none of the operators that ran ({seen}) is in the "
            f"selection ({injector.wish}). These are results of the clean model.",
            NoisescopeWarning,
            stacklevel=4,
        )


def _is_void(records: list[SiteRecord], wish: Wish) -> bool:
    """Tells whether a run without any injection was meant to have some.

    Without a selection, a lone softmax outside every model (a user's own arithmetic) was not.
    """
    is_own = all(r.site.region == "unknown" for r in records)
    return bool(records) and not wish.is_for_none and not (wish.is_for_all and is_own)


def _warn_of_lost_dose(records: list[SiteRecord], wish: Wish) -> None:
    for phase in wish.phases:
        dose = total_dose(records, phase)
        if dose.is_half_lost:
            warnings.warn(
                f"under half of the {phase} noise arrived ({dose}): rounding erased it. "
                "Use a larger scale or float32.",
                DoseWarning,
                stacklevel=5,
            )


def refresh() -> None:
    """Lets a changed selection take effect: every site is asked again."""
    injector = STATE.injector
    if isinstance(injector, CountingInjector) and injector.wish != STATE.wish():
        try:
            attest()
        finally:
            injector.records.clear()
            injector.wish = STATE.wish()
            injector.phases = injector.wish.phases


def get_injection_dose(phase: str = "forward") -> Dose:
    """Returns what really arrived since noise was enabled or a selection last changed."""
    records = list(STATE.injector.records.values()) if STATE.injector else []
    return total_dose(records, phase)
