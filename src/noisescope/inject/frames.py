"""Functions of ours that `torch.compile` leaves alone where it meets them by themselves.

Inside the graph of a model they are traced like any other.
"""

from collections.abc import Callable
from typing import Any

import torch

_DYNAMO: Any = torch._C._dynamo.eval_frame
_NEEDED = ("_FrameAction", "_FrameExecStrategy", "set_code_exec_strategy", "set_eval_frame")
# Private parts of torch: where one is gone, everything works but sessions on compiled models.
CAN_COMPILE = all(hasattr(_DYNAMO, name) for name in _NEEDED)

# Sets what compiles the functions that are called from now on, and returns what did so far. None:
# nothing does; False: what is compiled runs, and nothing new is compiled. No function of Python's,
# which would itself be compiled.
set_compiler: Callable[[Any], Any] = (
    _DYNAMO.set_eval_frame if CAN_COMPILE else lambda compiler: None
)


def run_as_is(*functions: Callable[..., Any], with_calls: bool = True) -> None:
    """Lets functions run as they are, not compiled; with them all that they call, unless told."""
    if not CAN_COMPILE:
        return
    skip, default = _DYNAMO._FrameAction.SKIP, _DYNAMO._FrameAction.DEFAULT
    strategy = _DYNAMO._FrameExecStrategy(skip, skip if with_calls else default)
    for function in functions:
        _DYNAMO.set_code_exec_strategy(function.__code__, strategy)
