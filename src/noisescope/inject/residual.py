"""The residual stream at the boundaries of layers, watched like a site though nothing computes it.

Error there is no noise of the machine's: it tells how layers pass on what went wrong before them.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from noisescope.models import Regions

RESIDUAL = "residual"
ENTRY, EXIT = 0, 1

See = Callable[[tuple[str, str, str, int], Tensor], None]


def watch_residuals(regions: Regions, see: See, stack: ExitStack) -> None:
    """Shows the stream where it enters the first layer, and where it leaves each.

    Args:
        regions: Of the model.
        see: Given the key of a boundary, and the stream there.
        stack: Removes the hooks.
    """
    layers = [(r.name, *r.modules[0]) for r in regions.all if r.name.isdigit()]
    for number, (region, name, layer) in enumerate(layers):
        if number == 0:
            before = _before((region, name, RESIDUAL, ENTRY), see)
            stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
        after = _after((region, name, RESIDUAL, EXIT), see)
        stack.callback(layer.register_forward_hook(after).remove)


def _before(key: tuple[str, str, str, int], see: See) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        stream = next(_streams((args, kwargs)), None)
        if stream is not None:
            see(key, stream)

    return hook


def _after(key: tuple[str, str, str, int], see: See) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        stream = next(_streams(output), None)
        if stream is not None:
            see(key, stream)

    return hook


def _streams(value: Any) -> Iterator[Tensor]:
    """Yields the tensors [B, T, D] in a value that gradients pass through, in their order."""
    if isinstance(value, Tensor):
        if value.dim() == 3 and value.is_floating_point() and value.requires_grad:
            yield value
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from _streams(inner)
    elif isinstance(value, dict):
        yield from _streams(list(value.values()))
