"""The hooks of a capture: hands over what chosen modules take or return, with the call's tokens.

Modules above a captured one are hooked too, since users call the model, its backbone or a layer:
the tokens are read wherever a call begins. What is done with a tensor is not known here.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from noisescope.capture.places import holders
from noisescope.capture.rows import Tokens, read_tokens
from noisescope.errors import InputError
from noisescope.inject.tracker import is_recomputing

Where = Literal["output", "input"]


class Watch:
    """Hooks on the chosen modules and on those that hold them, while attached.

    Args:
        model: The model.
        places: The modules to watch under their dotted names.
        where: Whether their outputs or inputs are handed over.
        take: Called with a module's name, the output (or the pair of positional and keyword
            arguments) and the tokens of the call.

    Attributes:
        calls: How many calls of the model began.
    """

    def __init__(
        self,
        model: nn.Module,
        places: Mapping[str, nn.Module],
        where: Where,
        take: Callable[[str, Any, Tokens], None],
    ) -> None:
        self.model = model
        self.places = places
        self.where = where
        self.take = take
        self.calls = 0
        self._hooks = ExitStack()
        self._is_attached = False
        self._outermost: nn.Module | None = None
        self._tokens: Tokens | None = None

    def attach(self) -> None:
        """Registers the hooks; where one fails, those before it are taken away again.

        Raises:
            InputError: They are registered already.
        """
        if self._is_attached:
            raise InputError(
                "this capture is attached already: leave its 'with' or call remove() first"
            )

        # Functions and not methods: copying a hooked model would copy what its hooks are bound to.
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._enter(module, args, kwargs)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._leave(module)

        modules = dict(self.model.named_modules())
        roots = {h: modules[h] for name in self.places for h in (*holders(name), name)}
        with ExitStack() as stack:
            # Hooks run in this order: a watched module may itself be where a call begins and ends.
            for root in roots.values():
                _keep(root.register_forward_pre_hook(enter, with_kwargs=True), stack)
            for name, module in self.places.items():
                self._hook_place(name, module, stack)
            for root in roots.values():
                # Always called, or an error would leave a broken call's tokens for the next.
                _keep(root.register_forward_hook(leave, always_call=True), stack)
            self._hooks = stack.pop_all()
        self._outermost = self._tokens = None
        self._is_attached = True

    def remove(self) -> None:
        """Takes every hook away."""
        # A copy of the model made meanwhile keeps the hooks: they must then do nothing.
        self._is_attached = False
        self._outermost = self._tokens = None
        self._hooks.close()

    def _hook_place(self, name: str, module: nn.Module, stack: ExitStack) -> None:
        def hand_over(value: Any) -> None:
            if self._is_attached and not is_recomputing():
                with _Apart():
                    self.take(name, value, self._tokens or Tokens.of_nothing(self.calls))

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            hand_over((args, kwargs))

        def after(module: nn.Module, args: Any, output: Any) -> None:
            hand_over(output)

        if self.where == "input":
            _keep(module.register_forward_pre_hook(before, with_kwargs=True), stack)
        else:
            _keep(module.register_forward_hook(after), stack)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._is_attached or is_recomputing():
            return
        # A root that is met again was left by an interrupt that no hook saw.
        if self._outermost is None or self._outermost is module:
            self._outermost = module
            with _Apart():
                self._tokens = read_tokens(module, args, kwargs, self.calls)
            self.calls += 1

    def _leave(self, module: nn.Module) -> None:
        if self._outermost is module:
            self._outermost = self._tokens = None


class _Apart(ExitStack):
    """Work that is no part of the model: unseen by function modes, and never in inference mode."""

    def __enter__(self) -> "_Apart":
        self.enter_context(torch._C.DisableTorchFunction())
        # Sums made in inference mode could not be added to outside it.
        self.enter_context(torch.inference_mode(False))
        return self


def _keep(handle: Any, stack: ExitStack) -> None:
    stack.callback(handle.remove)


def first_floating(value: Any) -> Tensor | None:
    """Returns the first floating-point tensor in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    inside: Iterable[Any] = ()
    if isinstance(value, Mapping):
        inside = value.values()
    elif isinstance(value, (tuple, list)):
        inside = value
    return next((t for t in map(first_floating, inside) if t is not None), None)
