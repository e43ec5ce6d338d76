"""Noise on weights for a while: added inside a block, taken away to the last bit.

The clean values are kept and put back: subtracting what was added would leave rounding behind.
Every weight's number is a function of its name, seed and draw.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from noisescope.errors import DoseError, DoseWarning, InputError, SelectionError, near_names
from noisescope.inject.dose import Dose, make_dose
from noisescope.inject.operators import module_operator
from noisescope.inject.selection import matches
from noisescope.models import find_regions, uncompiled
from noisescope.noise import AbsoluteGaussian, Address, Rounding, site_word

_NORMS = ("layer_norm", "rms_norm")
_SHARDING = ("FullyShardedDataParallel", "FSDPModule")
# Of the parameters that carry noise now, by identity: a tensor has no hash by value.
_noisy: set[int] = set()


@contextmanager
def weight_noise(
    model: nn.Module,
    sigma: float,
    *,
    modules: str | Iterable[str] | None = None,
    multipliers: Mapping[str, float] | None = None,
    seed: int = 0,
    draw: int = 0,
    rounding: Rounding = "nearest",
) -> Iterator[Dose]:
    """Adds N(0, (sigma m)^2) to weights inside the block, m being the multiplier of their layer.

    Biases get none.

    Afterwards every weight is what it was, bit for bit, in any dtype, after an exception too. The
    weights themselves are written, so what copies them inside the block (a rollout engine) gets the
    noise as well.

    Args:
        model: Any module whose weights are whole: no shards of FSDP, no DTensor.
        sigma: Standard deviation of the noise, at least 0, in the unit of a weight.
        modules: Patterns on dotted module names, as for `inject`, whose own weights get noise;
            None: every norm (layer_norm and rms_norm).
        multipliers: Of sigma, by region (`embed`, a layer's number, `norm`, `head`); 1 for regions
            that are not named. See `layer_multipliers`.
        seed: First key word of the random numbers.
        draw: Second key word, such as the step.
        rounding: 'nearest' or 'stochastic', to the dtype of the weights.

    Yields:
        The dose: the share of weights that changed, and the relative L2 of the change.

    Raises:
        SelectionError: No module is meant.
        InputError: Weights in shards, noise on these weights already, an optimizer that steps
            inside the block or weights that were written there; they are put back all the same.
        DoseError: Rounding erased all of the noise.
    """
    if not 0 <= sigma < math.inf:
        raise InputError(f"sigma {sigma!r}: a number of at least 0 is needed; try 0.01")
    model = uncompiled(model)
    _check_unsharded(model)
    chosen = _chosen(model, modules)
    factors = _factors(model, multipliers or {})
    _check_whole(chosen)
    with ExitStack() as stack:
        tallies = [
            _add(name, p, sigma * factors(name), seed, draw, rounding, stack)
            for name, p in chosen.items()
        ]
        dose = make_dose(torch.stack([t.cpu() for t in tallies]).sum(dim=0))
        _attest(dose, sigma, rounding)
        identities = {id(p) for p in chosen.values()}
        hook = register_optimizer_step_pre_hook(lambda *given: _refuse_step(given[0], identities))
        stack.callback(hook.remove)
        versions = {name: p._version for name, p in chosen.items()}
        yield dose
        for name, parameter in chosen.items():
            if parameter._version != versions[name]:
                raise InputError(
                    f"weight {name} was written while it carried noise; it has its clean values of "
                    "before again. Load or change weights outside the block"
                )


def _add(
    name: str,
    parameter: nn.Parameter,
    sigma: float,
    seed: int,
    draw: int,
    rounding: Rounding,
    stack: ExitStack,
) -> Tensor:
    """Writes noise over a parameter, to be taken back by the stack; returns the tally."""
    clean = parameter.data.clone()
    flat_RD = clean.reshape(-1, clean.shape[-1]) if clean.dim() else clean.reshape(1, 1)
    rows = torch.arange(flat_RD.shape[0], device=clean.device)
    zero_R = torch.zeros_like(rows)
    at = Address(seed, draw, site_word(f"weight:{name}"), zero_R, rows, zero_R)
    noisy_RD, counted = AbsoluteGaussian(sigma, rounding).perturb(flat_RD, at)
    _noisy.add(id(parameter))
    stack.callback(_noisy.discard, id(parameter))
    stack.callback(parameter.data.copy_, clean)
    # By .data: a graph that was made before goes on to hold, for the values come back to the bit.
    parameter.data.copy_(noisy_RD.reshape(clean.shape))
    return counted


def _chosen(model: nn.Module, modules: str | Iterable[str] | None) -> dict[str, nn.Parameter]:
    """Returns the parameters that are meant, each once."""
    patterns = (modules,) if isinstance(modules, str) else modules and tuple(modules)
    named = dict(model.named_modules())
    if patterns is None:
        holders = [n for n, m in named.items() if _is_norm(m)]
    else:
        holders = [n for n in named if n and any(matches(p, n) for p in patterns)]
        for pattern in patterns:
            if not any(matches(pattern, n) for n in holders):
                raise SelectionError(
                    f"no module matches {pattern!r}{near_names(pattern, named)}. "
                    "List them with 'noisescope sites MODEL'."
                )
    found: dict[str, nn.Parameter] = {}
    for holder in holders:
        for own, parameter in named[holder].named_parameters(recurse=False):
            if (
                own != "bias"
                and parameter.is_floating_point()
                and not any(p is parameter for p in found.values())
            ):
                found[f"{holder}.{own}".lstrip(".")] = parameter
    if not found:
        raise SelectionError(
            f"{'no norm with weights' if patterns is None else 'no weights in the named modules'} "
            f"in {type(model).__name__}: name other modules, such as modules='mlp.down_proj'"
        )
    return found


def _is_norm(module: nn.Module) -> bool:
    """Tells whether a module is a norm: written out by hand, or of torch."""
    return module_operator(module) in _NORMS or isinstance(module, (nn.LayerNorm, nn.RMSNorm))


def _factors(model: nn.Module, multipliers: Mapping[str, float]) -> Callable[[str], float]:
    """Returns the multiplier of a parameter, by its name."""
    regions = find_regions(model)
    names = [region.name for region in regions.all]
    for name, factor in multipliers.items():
        if str(name) not in names:
            raise SelectionError(
                f"multiplier of {name!r}: this model has the regions {', '.join(names)}"
            )
        if not factor >= 0:
            raise InputError(f"multiplier {factor!r} of {name!r}: a number of at least 0 is needed")
    wanted = {str(name): float(factor) for name, factor in multipliers.items()}
    holders = [
        (holder, wanted.get(region.name, 1.0))
        for region in regions.all
        for holder, _ in region.modules
    ]

    def factor_of(name: str) -> float:
        return next((f for holder, f in holders if name.startswith(f"{holder}.")), 1.0)

    return factor_of


def _check_unsharded(model: nn.Module) -> None:
    # With use_orig_params a shard of FSDP looks like any weight; so the wrappers are looked for.
    for name, module in model.named_modules():
        if {kind.__name__ for kind in type(module).__mro__} & set(_SHARDING):
            raise InputError(
                f"{f'module {name}' if name else 'the model'} is sharded by FSDP: noise on weights "
                "needs them whole; use DistributedDataParallel, or add the noise to the weights "
                "that the rollout loads"
            )


def _check_whole(chosen: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in chosen.items():
        kind = type(parameter.data).__name__
        if kind == "DTensor":
            raise InputError(
                f"weight {name} lies in shards ({kind}): noise on weights needs them whole; use "
                "DistributedDataParallel, or add the noise to the weights that the rollout loads"
            )
        if parameter.is_meta:
            raise InputError(f"weight {name} is on the device meta, without values: load it first")
        if id(parameter) in _noisy:
            raise InputError(
                f"weight {name} carries noise already: noise on weights does not nest; leave the "
                "block around this one, or name other modules"
            )


def _refuse_step(optimizer: torch.optim.Optimizer, identities: set[int]) -> None:
    groups: list[dict[str, Any]] = optimizer.param_groups
    if any(id(p) in identities for group in groups for p in group["params"]):
        raise InputError(
            f"{type(optimizer).__name__} stepped while its weights carried noise, which would be "
            "taken away with the step: step outside the block"
        )


def _attest(dose: Dose, sigma: float, rounding: Rounding) -> None:
    if dose.is_all_lost:
        raise DoseError(
            f"no noise arrived in the weights: rounding erased all of sigma {sigma:g} ({dose}). "
            'Use a larger sigma, or rounding="stochastic".'
        )
    if dose.is_norm_half_lost if rounding == "stochastic" else dose.is_half_lost:
        warnings.warn(
            f"under half of the noise arrived in the weights: rounding erased it at sigma "
            f'{sigma:g} ({dose}). Use a larger sigma, or rounding="stochastic".',
            DoseWarning,
            stacklevel=4,
        )
