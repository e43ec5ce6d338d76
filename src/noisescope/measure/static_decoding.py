"""Decoding steps of which no shape ever changes, so that a compiled model runs them.

A cache that grows gives every step shapes of its own, and a GPU waits for Python between small
kernels. Here rows and columns are fixed: the mask is the same in every step, spare columns lie
behind the newest token, where no token looks, and rows that are done go on beside the others. Few
sizes are ever compiled: rows are halved, columns rounded up. Who is in the batch is decided in
generate.py.

Legend: R rows, V vocabulary, S columns that are filled, C columns of the cache.
"""

import inspect
import warnings
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from noisescope.errors import NoisescopeWarning
from noisescope.inject.tracker import is_experts

Call = Callable[..., Any]

_ROWS, _COLUMNS = 8, 64
# Beyond as many graphs of one model dynamo compiles no more, and says so at every decoding.
_MOST_GRAPHS = 8
_graphs: "WeakKeyDictionary[nn.Module, set[Hashable]]" = WeakKeyDictionary()
_failed: "WeakSet[nn.Module]" = WeakSet()  # could not be compiled


def compiled_step(model: nn.Module, backend: str | Call = "inductor") -> Call:
    """Returns the compiled model; graphs that the process has made of it already are used again."""
    compiled: Call = torch.compile(model, dynamic=False, backend=backend)
    return compiled


def takes_static_caches(model: nn.Module) -> bool:
    """Tells whether a model decodes with a cache of fixed size, whoever is in the batch.

    Positions must be given, for the mask does not tell them. In the experts of a mixture rows lose
    their sample: there noise depends on who else is in the batch, so none may stay for the shape.
    """
    accepted = inspect.signature(model.forward).parameters
    return (
        getattr(model, "_can_compile_fullgraph", False)
        and {"position_ids", "attention_mask"} <= accepted.keys()
        and not any(is_experts(name, module) for name, module in model.named_modules())
    )


def may_compile(model: nn.Module, shape: Hashable) -> bool:
    """Tells whether steps of a shape are compiled, or will be: the first few of a model are."""
    known = _graphs.setdefault(model, set())
    if shape not in known and len(known) < _MOST_GRAPHS:
        known.add(shape)
    return shape in known and model not in _failed


def capacity_of(columns: int, steps: int) -> int:
    """Returns the columns of a cache that takes so many steps more."""
    return _rounded_up(columns + steps, _COLUMNS)


def largest_bucket(rows: int, most: int) -> int:
    """Returns the size of the first batch, of so many rows of at most so many."""
    return min(_rounded_up(rows, _ROWS), max(rows, most))


def bucket_of(rows: int, largest: int) -> int:
    """Returns the smallest batch that so many rows fit in: the largest, its half, its quarter."""
    half = _rounded_up((largest + 1) // 2, _ROWS)
    return largest if half >= largest or half < rows else bucket_of(rows, half)


def _rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


class StaticSteps:
    """The steps of one batch of fixed size.

    Args:
        model: The model.
        compiled: The same, compiled.
        cache: A static cache of R rows and C columns.
        mask_RS: The tokens in it: 0 for padding, which is on the left.
        capacity: C.
        context_length: The most positions the model takes: rows that are done stay at the last one.
    """

    def __init__(
        self,
        model: Any,
        compiled: Call,
        cache: Any,
        mask_RS: Tensor,
        capacity: int,
        context_length: int | None,
    ) -> None:
        self.cache = cache
        self.columns = mask_RS.shape[1]
        self._model, self._call = model, compiled
        # The columns to come are open: the cache hides those behind the newest token by itself.
        self._mask_RC = F.pad(mask_RS, (0, capacity - self.columns), value=1)
        self._position_R1 = mask_RS.sum(dim=1, keepdim=True)
        self._last = None if context_length is None else context_length - 1
        is_cut = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._options = {"logits_to_keep": 1} if is_cut else {}

    @property
    def mask_RS(self) -> Tensor:
        """Which columns that are filled hold tokens."""
        return self._mask_RC[:, : self.columns]

    def __call__(self, token_R: Tensor) -> Tensor:
        """Returns the logits [R, V] behind the newest token of every row."""
        try:
            output = self._run(token_R)
        except TorchDynamoException as error:
            if self._call is self._model:
                raise
            what = " ".join(str(error).split("\n")[:2])
            warnings.warn(
                f"the model could not be compiled, so decoding is slower: {what}",
                NoisescopeWarning,
                stacklevel=2,
            )
            _failed.add(self._model)
            self._call = self._model
            for layer in self.cache.layers:  # some may have taken the token in
                layer.cumulative_length.fill_(self.columns)
            output = self._run(token_R)
        self.columns += 1
        self._position_R1 = self._position_R1 + 1
        if self._last is not None:
            self._position_R1.clamp_(max=self._last)
        logits_RV: Tensor = output.logits[:, -1]
        return logits_RV

    def _run(self, token_R: Tensor) -> Any:
        with torch.no_grad():
            return self._call(
                input_ids=token_R[:, None],
                attention_mask=self._mask_RC,
                position_ids=self._position_R1,
                past_key_values=self.cache,
                use_cache=True,
                **self._options,
            )
