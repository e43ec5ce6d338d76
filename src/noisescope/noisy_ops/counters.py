"""Counting: injections by label and by layer, as scripts read them."""

from typing import Any

from noisescope.errors import InputError
from noisescope.noisy_ops.state import PHASE_LABELS, STATE, zero_counts


def set_phase(phase: str) -> None:
    """Sets the label under which injections are counted.

    Args:
        phase: ``"rollout"``, ``"actor_forward"``, ``"actor_backward"`` or ``"unknown"``. Both
            `actor` labels count as `actor_forward` or `actor_backward` by what really runs.

    Raises:
        InputError: Another label.
    """
    if phase not in PHASE_LABELS:
        raise InputError(f"phase {phase!r}: accepted are {', '.join(PHASE_LABELS)}.")
    STATE.label = phase


def get_phase() -> str:
    """Returns the label."""
    return STATE.label


def get_injection_stats() -> dict[str, Any]:
    """Returns the settings and the counts since noise was enabled."""
    totals = total_counts()
    return {
        "enabled": STATE.injector is not None,
        "error_scale": STATE.settings.error_scale,
        "error_type": STATE.settings.error_type,
        "current_phase": STATE.label,
        "forward_enabled": STATE.forward,
        "backward_enabled": STATE.backward,
        "counts": dict(STATE.counts),
        "total_forward": totals["forward"],
        "total_backward": totals["backward"],
    }


def get_layer_injection_stats() -> dict[int | str, dict[str, int]]:
    """Returns ``{layer or "unknown": {"forward": n, "backward": n}}`` since the last reset.

    Everything outside the layers (embedding, final norm, head) is "unknown", never the last layer.
    """
    return {layer: dict(counts) for layer, counts in STATE.layer_counts.items()}


def reset_injection_stats() -> None:
    """Sets the counts to zero."""
    STATE.counts = zero_counts()


def reset_layer_injection_stats() -> None:
    """Sets the counts per layer to zero."""
    STATE.layer_counts = {}


def print_injection_summary() -> None:
    """Prints the counts by label and by layer."""
    stats = get_injection_stats()
    print(f"noise: {stats['error_type']} {stats['error_scale']:g}, enabled: {stats['enabled']}")
    counted = {key: n for key, n in stats["counts"].items() if n}
    if not counted:
        print("  no injections recorded yet")
    for key, n in counted.items():
        print(f"  {key:>18}: {n:,}")
    for layer, counts in sorted(STATE.layer_counts.items(), key=lambda item: _order(item[0])):
        print(
            f"  {f'layer {layer}':>18}: forward {counts['forward']:,}, "
            f"backward {counts['backward']:,}"
        )


def total_counts() -> dict[str, int]:
    """Returns the counts of both phases over all labels."""
    return {
        phase: sum(n for key, n in STATE.counts.items() if key.endswith(f"_{phase}"))
        for phase in ("forward", "backward")
    }


def _order(layer: int | str) -> tuple[bool, int]:
    return (False, layer) if isinstance(layer, int) else (True, 0)
