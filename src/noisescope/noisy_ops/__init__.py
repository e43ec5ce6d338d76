"""The `noisy_ops` interface, a thin face on inject/: its scripts run when their import changes.

It is global by nature: one state, switched on and off. Where the original's behaviour was a defect
ours is right, and the docstring says so. Importing it reads the `VERL_NOISY_OPS_*` environment
variables.
"""

from noisescope.noisy_ops.attest import get_injection_dose
from noisescope.noisy_ops.counters import (
    get_injection_stats,
    get_layer_injection_stats,
    get_phase,
    print_injection_summary,
    reset_injection_stats,
    reset_layer_injection_stats,
    set_phase,
)
from noisescope.noisy_ops.environment import enable_from_environment
from noisescope.noisy_ops.layers import (
    get_current_layer,
    register_layer_hooks,
    remove_layer_hooks,
    set_current_layer,
)
from noisescope.noisy_ops.selection import (
    get_noise_phases,
    get_selective_layers,
    get_selective_operators,
    set_layer_window,
    set_noise_phases,
    set_selective_layers,
    set_selective_operators,
    should_inject_for_layer,
    should_inject_for_operator,
)
from noisescope.noisy_ops.switch import (
    disable_noisy_ops,
    enable_noisy_ops,
    noisy_ops_context,
    set_noise_seed,
)

__all__ = [
    "disable_noisy_ops",
    "enable_noisy_ops",
    "get_current_layer",
    "get_injection_dose",
    "get_injection_stats",
    "get_layer_injection_stats",
    "get_noise_phases",
    "get_phase",
    "get_selective_layers",
    "get_selective_operators",
    "noisy_ops_context",
    "print_injection_summary",
    "register_layer_hooks",
    "remove_layer_hooks",
    "reset_injection_stats",
    "reset_layer_injection_stats",
    "set_current_layer",
    "set_layer_window",
    "set_noise_phases",
    "set_noise_seed",
    "set_phase",
    "set_selective_layers",
    "set_selective_operators",
    "should_inject_for_layer",
    "should_inject_for_operator",
]

enable_from_environment()
