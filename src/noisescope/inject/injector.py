"""Runs an operator at its site: perturbs the output, wraps the inputs, keeps the record.

It does not know how the place was found: a session's tracker tells it, or the global state of
`noisy_ops`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from noisescope.inject import attention
from noisescope.inject.dose import SiteRecord
from noisescope.inject.operators import Spelling
from noisescope.inject.perturb import (
    TensorMap,
    add_error,
    perturb_probabilities,
    perturb_rows,
    with_noisy_gradient,
)
from noisescope.inject.rows import Layout, Rows
from noisescope.inject.sites import Site
from noisescope.inject.tracker import Place, is_recomputing
from noisescope.noise import TALLY_FIELDS, Address, ErrorModel

Function = Callable[..., Any]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
# Of the output ("output") and of the inputs by number, where the last axis does not hold channels.
Layouts = Mapping[Any, Layout]


class Injector:
    """Applies one error model at the sites that `includes` accepts.

    Args:
        error_model: What is added.
        phases: `forward`, `backward` or both.
        includes: Tells whether a site is selected; asked once per site.
        seed: Key word for tensors of which no rows are known.
        draw: The same.
    """

    def __init__(
        self,
        error_model: ErrorModel,
        phases: tuple[str, ...],
        includes: Callable[[Site], bool],
        seed: int = 0,
        draw: int = 0,
    ) -> None:
        self.error_model = error_model
        self.phases = phases
        self.includes = includes
        self.seed = seed
        self.draw = draw
        self.records: dict[tuple[str, str, str, int], SiteRecord] = {}

    # Seeing.

    def see(self, place: Place, operator: str, is_fused: bool = False) -> SiteRecord:
        """Notes that an operator runs at a place, and returns the record of its site."""
        key = (place.region, place.module, operator, place.next_index(operator))
        record = self.records.get(key)
        if record is None:
            site = Site(*key)
            record = self.records[key] = SiteRecord(site, self.includes(site), is_fused=is_fused)
        if not is_recomputing():
            record.seen += 1
        return record

    # Running.

    def run(
        self, place: Place, spelling: Spelling, function: Function, args: Any, kwargs: Any
    ) -> Any:
        """Runs a call of an operator; returns what the call would, perturbed where selected."""
        record = self.see(place, spelling.operator)
        if not record.is_selected:
            return function(*args, **kwargs)
        function, args, kwargs, target = _out_of_place(spelling, function, args, dict(kwargs))
        layouts = _layouts(record.site, args, kwargs, place.rows)
        args, kwargs = self.wrap_inputs(record, place.rows, (args, kwargs), layouts)
        result = self.perturb_output(
            record, place.rows, function(*args, **kwargs), layouts, _dim(args, kwargs)
        )
        return result if target is None else _write(target, result)

    def run_attention(
        self, place: Place, function: Function, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Runs fused attention: whole where no site of it is selected, else in three steps."""
        records = [self.see(place, operator) for operator in attention.SITE_OPERATORS]
        if self.error_model.is_null or not any(r.is_selected for r in records):
            return self._note_whole(records, function(*args, **kwargs))
        rows = place.rows
        layouts: list[Layouts] = [
            {"output": "keys", 1: "transposed"},
            {"output": "keys", 0: "keys"},
            {0: "keys"},
        ]

        def run(step: int, compute: Function, *inputs: Any) -> Tensor:
            record = records[step]
            if not record.is_selected:
                result: Tensor = compute(*inputs)
                return result
            inputs, _ = self.wrap_inputs(record, rows, (inputs, {}), layouts[step])
            perturbed: Tensor = self.perturb_output(
                record, rows, compute(*inputs), layouts[step], -1
            )
            return perturbed

        return attention.attend(*args, **kwargs, run=run)

    def _note_whole(self, records: list[SiteRecord], output: Tensor) -> Tensor:
        """Notes fused attention that was left whole; sites that are selected had error of scale 0.

        Their injections are counted as if it had been taken apart, on both ways.
        """
        none = torch.zeros(len(TALLY_FIELDS), dtype=torch.float64, device=output.device)
        chosen = [r for r in records if r.is_selected]
        for record in records:
            record.is_fused = True
        if "forward" in self.phases:
            for record in chosen:
                self.note(record, "forward", none)
        if not chosen or "backward" not in self.phases or not output.requires_grad:
            return output

        def pass_on(gradient: Tensor) -> Tensor:
            for record in chosen:
                for _ in range(1 if record.site.operator == "softmax" else 2):
                    self.note(record, "backward", none)
            return gradient

        return with_noisy_gradient(output, pass_on)

    def wrap_inputs(
        self, record: SiteRecord, rows: Rows | None, arguments: Arguments, layouts: Layouts
    ) -> Arguments:
        """Puts an identity with a noisy way back on every input that wants a gradient."""
        if "backward" not in self.phases or not torch.is_grad_enabled():
            return arguments
        counter = iter(range(1 << 30))

        def wrap(value: Any) -> Any:
            if isinstance(value, (tuple, list)):
                return type(value)(wrap(v) for v in value)
            if isinstance(value, dict):
                return {k: wrap(v) for k, v in value.items()}
            if not isinstance(value, Tensor):
                return value
            n = next(counter)
            if not value.requires_grad:
                return value
            return self.wrap_input(record, rows, value, n, layouts.get(n, "channels"))

        args, kwargs = wrap(arguments)
        return args, kwargs

    def wrap_input(
        self,
        record: SiteRecord,
        rows: Rows | None,
        value: Tensor,
        n: int,
        layout: Layout = "channels",
    ) -> Tensor:
        """Puts the identity on one input, the operator's n-th tensor."""
        word = record.site.gradient_word(n)
        is_parameter = isinstance(value, nn.Parameter)

        def address(gradient: Tensor) -> Address:
            if is_parameter and rows is not None:
                return rows.parameter_address(gradient, word)
            return self._address(record, rows, gradient, word, layout, "backward")

        perturb = self._perturber(record, "backward", address)
        if layout != "transposed":
            return with_noisy_gradient(value, perturb)
        return with_noisy_gradient(
            value, lambda gradient: perturb(gradient.transpose(-2, -1)).transpose(-2, -1)
        )

    def perturb_output(
        self, record: SiteRecord, rows: Rows | None, output: Any, layouts: Layouts, dim: int
    ) -> Any:
        """Adds the error to an output; of several outputs, to the first."""
        if isinstance(output, tuple) and output:
            first = self.perturb_output(record, rows, output[0], layouts, dim)
            return (first, *output[1:])
        if "forward" not in self.phases or not isinstance(output, Tensor):
            return output
        if not output.is_floating_point():
            return output

        def address(value: Tensor) -> Address:
            layout = layouts.get("output", "channels")
            return self._address(record, rows, value, record.site.word, layout, "forward")

        softmax_dim = dim if record.site.operator == "softmax" else None
        return add_error(output, self._perturber(record, "forward", address, softmax_dim))

    # Perturbing.

    def _address(
        self,
        record: SiteRecord,
        rows: Rows | None,
        value: Tensor,
        word: int,
        layout: Layout,
        phase: str,
    ) -> Address:
        if rows is None:
            rows = Rows.of_nothing(self.seed, self.draw, value.device)
        at, kind = rows.address(value, record.site.operator, layout, word)
        if kind != "token" and record.rows != "row" and phase == self.phases[0]:
            record.rows = kind
        return at

    def _perturber(
        self,
        record: SiteRecord,
        phase: str,
        address: Callable[[Tensor], Address],
        softmax_dim: int | None = None,
    ) -> TensorMap:
        error_model = self.error_model

        def perturb(value: Tensor) -> Tensor:
            if value.is_sparse:
                return value  # the gradient of a sparse embedding has no rows to address
            value = value.detach()
            if softmax_dim is not None and not error_model.is_null:
                noisy, counted = perturb_probabilities(
                    error_model, value, address(value), softmax_dim
                )
            else:
                noisy, counted = perturb_rows(error_model, value, address(value))
            self.note(record, phase, counted)
            return noisy

        return perturb

    def note(self, record: SiteRecord, phase: str, counted: Tensor) -> None:
        """Writes an injection into the record of its site."""
        # Counters are bumped, and sums kept on the device: nothing here waits for it.
        if phase == "backward":
            record.backward += 1
        elif is_recomputing():
            return
        else:
            record.forward += 1
        record.add(phase, counted)


# The shape of a call.


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in _tensors(v)] if isinstance(value, (tuple, list)) else []


def _layouts(site: Site, args: Any, kwargs: dict[str, Any], rows: Rows | None) -> Layouts:
    """Tells where the last axis of a call's output and inputs runs over keys.

    Scores and probabilities do. Of the products in an attention module every first one makes scores
    [.., T, D] x [.., D, S], and every second one context [.., T, S] x [.., S, D]: the order of the
    calls tells, as the shapes do not where T, D and S are equal.
    """
    shapes = [t.shape for t in _tensors((args, kwargs))]
    if rows is None or rows.is_mixed or not shapes:
        return {}
    if site.operator == "softmax":
        is_attention = len(shapes[0]) >= 4 or (
            len(shapes[0]) == 3 and shapes[0][0] != rows.sample_BT.shape[0]
        )
        return {"output": "keys", 0: "keys"} if is_attention else {}
    if site.operator not in ("matmul", "bmm") or len(shapes) < 2:
        return {}
    if min(len(shapes[-2]), len(shapes[-1])) < 3:
        return {}
    left, right = len(shapes) - 2, len(shapes) - 1
    if site.index % 2:
        return {left: "keys"}
    is_einsum = bool(args) and isinstance(args[0], str)  # its keys need no transposing
    return {"output": "keys"} if is_einsum else {"output": "keys", right: "transposed"}


def _dim(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Returns the axis that a softmax runs over."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
    return dim if isinstance(dim, int) else -1


def _out_of_place(
    spelling: Spelling, function: Function, args: Any, kwargs: dict[str, Any]
) -> tuple[Function, Any, dict[str, Any], Tensor | None]:
    """Turns a call that writes into a tensor into one that does not, and names that tensor.

    The clean result would otherwise overwrite what the backward pass has saved.
    """
    if spelling.functional is not None:
        return spelling.functional, args, kwargs, _first(args, kwargs)
    if kwargs.get("inplace") is True:
        return function, args, kwargs | {"inplace": False}, _first(args, kwargs)
    if spelling.operator in ("relu", "silu") and len(args) > 1 and args[1] is True:
        return function, (args[0], False), kwargs, args[0]
    target = kwargs.pop("out", None)
    return function, args, kwargs, target


def _first(args: Any, kwargs: dict[str, Any]) -> Tensor:
    return _tensors((args, kwargs))[0]


def _write(target: Tensor, result: Tensor) -> Tensor:
    if target.shape != result.shape:
        target.resize_(result.shape)
    return target.copy_(result)
