"""Functions of ours that `torch.compile` leaves alone where it meets them by themselves.

Inside the graph of a model they are traced like any other.
"""

from collections.abc import Callable
from typing import Any

import torch

_DYNAMO = torch._C._dynamo.eval_frame
# Sets what compiles the functions that are called from now on, and returns what did so far. None:
# nothing does; False: what is compiled runs, and nothing new is compiled.
set_compiler = _DYNAMO.set_eval_frame
_SKIP, _DEFAULT = _DYNAMO._FrameAction.SKIP, _DYNAMO._FrameAction.DEFAULT


def run_as_is(*functions: Callable[..., Any], with_calls: bool = True) -> None:
    """Lets functions run as they are, not compiled; with them all that they call, unless told."""
    strategy = _DYNAMO._FrameExecStrategy(_SKIP, _SKIP if with_calls else _DEFAULT)
    for function in functions:
        _DYNAMO.set_code_exec_strategy(function.__code__, strategy)
