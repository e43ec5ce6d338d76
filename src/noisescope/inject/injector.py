"""Runs an operator at its site: perturbs the output, wraps the inputs, keeps the record.

It does not know how the place was found: a session's tracker tells it, or the global state of
`noisy_ops`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from noisescope.inject import attention
from noisescope.inject.calls import (
    Arguments,
    Function,
    Layouts,
    layouts_of,
    may_share_memory,
    out_of_place,
    softmax_dim,
    write,
)
from noisescope.inject.dose import SiteRecord
from noisescope.inject.elements import Elements, find_mask
from noisescope.inject.operands import (
    Disturbance,
    Input,
    disturb,
    disturb_one,
    falls_on_inputs,
    find_inputs,
    no_address,
)
from noisescope.inject.operators import Spelling
from noisescope.inject.perturb import (
    TensorMap,
    add_error,
    perturb_probabilities,
    perturb_rows,
    with_noisy_gradient,
)
from noisescope.inject.rows import Layout, Rows, known_batch
from noisescope.inject.sites import Site, SiteKey
from noisescope.inject.tracker import Place, is_recomputing
from noisescope.inject.weights import DisturbedWeights
from noisescope.noise import TALLY_FIELDS, Address, ErrorModel


class Injector:
    """Applies one error model at the sites that `includes` accepts.

    Args:
        error_model: What is added.
        phases: `forward`, `backward` or both.
        includes: Tells whether a site is selected; asked once per site.
        seed: Key word for tensors of which no rows are known.
        draw: The same.
        elements: Channels and positions that forward noise is restricted to; None: all.
    """

    def __init__(
        self,
        error_model: ErrorModel,
        phases: tuple[str, ...],
        includes: Callable[[Site], bool],
        seed: int = 0,
        draw: int = 0,
        elements: Elements | None = None,
    ) -> None:
        self.error_model = error_model
        self.phases = phases
        self.includes = includes
        self.seed = seed
        self.draw = draw
        self.elements = elements
        self.weights = DisturbedWeights()
        self.records: dict[SiteKey, SiteRecord] = {}

    # Seeing.

    def see(self, place: Place, operator: str, is_fused: bool = False) -> SiteRecord:
        """Notes that an operator runs at a place, and returns the record of its site."""
        key = (place.region, place.module, operator, place.next_index(operator))
        return self.see_at(key, is_fused)

    def see_at(self, key: SiteKey, is_fused: bool = False) -> SiteRecord:
        """The same for a site whose call was counted already."""
        record = self._record(key, is_fused)
        record.pending = 0
        if not is_recomputing():
            record.seen += 1
        return record

    def _record(self, key: SiteKey, is_fused: bool = False) -> SiteRecord:
        record = self.records.get(key)
        if record is None:
            site = Site(*key)
            record = self.records[key] = SiteRecord(site, self.includes(site), is_fused=is_fused)
        return record

    # Running.

    def run(
        self, place: Place, spelling: Spelling, function: Function, args: Any, kwargs: Any
    ) -> Any:
        """Runs a call of an operator; returns what the call would, perturbed where selected."""
        record = self.see(place, spelling.operator)
        if not record.is_selected:
            return function(*args, **kwargs)
        function, args, kwargs, target = out_of_place(spelling, function, args, dict(kwargs))
        layouts = layouts_of(
            record.site.operator, record.site.index, args, kwargs, known_batch(place.rows)
        )
        if falls_on_inputs(self.error_model):
            args, kwargs = self.disturb_inputs(
                record, place.rows, function, (args, kwargs), layouts
            )
            result = function(*args, **kwargs)
        else:
            args, kwargs = self.wrap_inputs(record, place.rows, (args, kwargs), layouts)
            result = function(*args, **kwargs)
            # A product of one factor, such as an einsum, may give back a part of it.
            is_fresh = spelling.operator != "matmul" or not may_share_memory(result, (args, kwargs))
            dim = softmax_dim(args, kwargs)
            result = self.perturb_output(record, place.rows, result, layouts, dim, is_fresh)
        return result if target is None else write(target, result)

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
            if falls_on_inputs(self.error_model):
                inputs, _ = self.disturb_inputs(record, rows, compute, (inputs, {}), layouts[step])
                return compute(*inputs)  # type: ignore[no-any-return]
            inputs, _ = self.wrap_inputs(record, rows, (inputs, {}), layouts[step])
            perturbed: Tensor = self.perturb_output(
                record, rows, compute(*inputs), layouts[step], -1, is_fresh=True
            )
            return perturbed

        return attention.attend(*args, **kwargs, run=run)

    def _note_whole(self, records: list[SiteRecord], output: Tensor) -> Tensor:
        """Notes fused attention that was left whole; sites that are selected had error of scale 0.

        Their injections are counted as if it had been taken apart, on both ways.
        """
        for record in records:
            record.is_fused = True
            if record.is_selected:
                record.pending = 1 if record.site.operator == "softmax" else 2
                if "forward" in self.phases:
                    self.note(record, "forward", _no_tally(output))
        return self._count_on_the_way_back(records, output)

    def _count_on_the_way_back(self, records: list[SiteRecord], output: Tensor) -> Tensor:
        """Counts the gradients of pending inputs when the output's gradient arrives.

        Error of scale 0 is not put on the inputs themselves: one more node there would add up
        gradients in another order, and they would not be the clean ones to the last bit.
        """
        counted = [(r, r.pending) for r in records if r.pending]
        if not counted or "backward" not in self.phases or not output.requires_grad:
            return output

        def pass_on(gradient: Tensor) -> Tensor:
            for record, inputs in counted:
                for _ in range(inputs):
                    self.note(record, "backward", _no_tally(gradient))
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
        if self.error_model.is_null:
            record.pending += 1
            return value
        is_parameter = isinstance(value, nn.Parameter)
        perturb = self._gradient_perturber(record, rows, n, layout, is_parameter)
        return with_noisy_gradient(value, perturb)

    def _gradient_perturber(
        self, record: SiteRecord, rows: Rows | None, n: int, layout: Layout, is_parameter: bool
    ) -> TensorMap:
        word = record.site.gradient_word(n)

        def address(gradient: Tensor) -> Address:
            if is_parameter and rows is not None:
                return rows.parameter_address(gradient, word)
            return self._address(record, rows, gradient, word, layout, "backward")

        perturb = self._gradient_map(record, address)
        if layout != "transposed":
            return perturb
        return lambda gradient: perturb(gradient.transpose(-2, -1)).transpose(-2, -1)

    def wrap_parameters(self, place: Place, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Gives the weights of a norm that is written out by hand their noise on the way back."""
        record = place.record
        if record is None or not record.is_selected or "backward" not in self.phases:
            return args
        if not torch.is_grad_enabled():
            return args
        return tuple(
            self._wrap_parameter(place, record, a)
            if isinstance(a, nn.Parameter) and a.requires_grad
            else a
            for a in args
        )

    def _wrap_parameter(self, place: Place, record: SiteRecord, parameter: nn.Parameter) -> Tensor:
        known = len(place.parameters)
        number = place.parameter_index(parameter)
        if self.error_model.is_null and len(place.parameters) == known:
            return parameter  # counted already: `weight.float()` may give back the weight itself
        return self.wrap_input(record, place.rows, parameter, number)

    def perturb_output(
        self,
        record: SiteRecord,
        rows: Rows | None,
        output: Any,
        layouts: Layouts,
        dim: int,
        is_fresh: bool = False,
    ) -> Any:
        """Adds the error to an output; of several outputs, to the first.

        What is fresh nobody else holds: it is written into, where autograd does not need it.
        """
        if isinstance(output, tuple) and output:
            first = self.perturb_output(record, rows, output[0], layouts, dim, is_fresh)
            return (first, *output[1:])
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        if "forward" not in self.phases:
            return self._count_on_the_way_back([record], output)

        layout = layouts.get("output", "channels")
        if record.site.region == "embed" and not self.error_model.is_null:
            output = for_every_sample(output, rows)
        if not (torch.is_grad_enabled() and output.requires_grad):
            return self._perturbed(record, rows, output, layout, dim, is_fresh)
        noisy = add_error(
            output, lambda value: self._perturbed(record, rows, value.detach(), layout, dim)
        )
        return self._count_on_the_way_back([record], noisy)

    def _perturbed(
        self,
        record: SiteRecord,
        rows: Rows | None,
        value: Tensor,
        layout: Layout,
        dim: int,
        in_place: bool = False,
    ) -> Tensor:
        """Returns an output with error on it, and notes the dose."""
        error_model = self.error_model.at_module(record.site.module)
        at = self._address(record, rows, value, record.site.word, layout, "forward")
        mask = None
        if self.elements is not None:
            mask = find_mask(self.elements, record, rows, value, layout, at)
        if record.site.operator == "softmax" and not error_model.is_null:
            noisy, counted = perturb_probabilities(error_model, value, at, dim, mask)
        else:
            noisy, counted = perturb_rows(error_model, value, at, mask, in_place)
        self.note(record, "forward", counted)
        return noisy

    def disturb_inputs(
        self,
        record: SiteRecord,
        rows: Rows | None,
        function: Function,
        arguments: Arguments,
        layouts: Layouts,
    ) -> Arguments:
        """Returns the arguments of a call with error on its weights or activations."""
        tallies: list[Tensor] = []
        inputs = find_inputs(function, record.site.operator, *arguments, layouts)
        by = self._disturbance(record, rows, tallies.append)
        disturbed = disturb(inputs, record.site, arguments, by)
        if tallies:
            self.note(record, "forward", torch.stack(tallies).sum(dim=0))
        return disturbed

    def _disturbance(
        self, record: SiteRecord, rows: Rows | None, note: Callable[[Tensor], None]
    ) -> Disturbance:
        own = self.error_model.at_module(record.site.module)

        def address(value: Tensor, layout: Layout, word: int) -> Address:
            if not own.is_random and layout != "keys":
                return no_address(value)
            return self._address(record, rows, value, word, layout, "forward")

        def weight(value: Tensor, axis: int, by: ErrorModel, word: int) -> tuple[Tensor, Tensor]:
            draw = self.draw if rows is None else rows.draw
            return self.weights.get(value, axis, by, self.seed, draw, word)

        return Disturbance(own, address, weight, note)

    # In a compiled model.

    def note_from_graph(self, key: SiteKey, times: int, tally: Tensor, is_named: bool) -> None:
        """Notes what arrived at a site in some passes, in a graph that computed the noise."""
        record = self._record(key)
        record.seen += times
        record.forward += times
        record.rows = record.rows if is_named else "row"
        record.add("forward", tally)

    def perturb_at(
        self, key: SiteKey, rows: Rows | None, value: Tensor, layout: Layout, dim: int
    ) -> Tensor:
        """Returns the perturbed output of a site, a new tensor."""
        record = self.see_at(key)
        noisy: Tensor = self.perturb_output(record, rows, value, {"output": layout}, dim)
        return noisy

    def perturb_gradient_at(
        self,
        key: SiteKey,
        rows: Rows | None,
        gradient: Tensor,
        argument: int,
        layout: Layout,
        is_parameter: bool,
    ) -> Tensor:
        """Returns the perturbed gradient of a site's input, a new tensor."""
        perturb = self._gradient_perturber(self._record(key), rows, argument, layout, is_parameter)
        return perturb(gradient)

    def disturb_input_at(
        self, key: SiteKey, rows: Rows | None, value: Tensor, number: int, one: Input, is_last: bool
    ) -> Tensor:
        """Returns a disturbed weight or activation, a new tensor; the last one ends the call."""
        record = self.see_at(key) if is_last else self._record(key)
        by = self._disturbance(record, rows, lambda tally: record.add("forward", tally))
        noisy = disturb_one(value, number, one, record.site, by).clone()
        if is_last:
            record.forward += 1
        return noisy

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

    def _gradient_map(self, record: SiteRecord, address: Callable[[Tensor], Address]) -> TensorMap:
        """Returns what perturbs a gradient; it runs when the gradient arrives."""
        error_model = self.error_model.at_module(record.site.module)

        def perturb(gradient: Tensor) -> Tensor:
            if gradient.is_sparse:
                return gradient  # the gradient of a sparse embedding has no rows to address
            gradient = gradient.detach()
            noisy, counted = perturb_rows(error_model, gradient, address(gradient))
            self.note(record, "backward", counted)
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


def for_every_sample(output: Tensor, rows: Rows | None) -> Tensor:
    """Repeats [1, T, D], a table of positions read once for the batch, as [B, T, D].

    What is added to the embeddings of every sample then has an error for every sample, as it has
    where samples run alone.
    """
    if rows is None or output.dim() != 3 or output.shape[0] != 1:
        return output
    B, T = rows.sample_BT.shape
    return output.expand(B, -1, -1) if output.shape[1] == T else output


def _no_tally(like: Tensor) -> Tensor:
    return torch.zeros(len(TALLY_FIELDS), dtype=torch.float64, device=like.device)
