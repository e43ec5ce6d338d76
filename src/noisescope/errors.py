"""The errors a user can cause, each one line: what failed, the value, what is accepted, what to do.

The command line prints the line and leaves with status 2; a traceback means a defect of ours.
"""

import difflib
from collections.abc import Iterable


class NoisescopeError(Exception):
    """Base of every error that the user can cause and mend."""


class InputError(NoisescopeError, ValueError):
    """A file, directory, option or number that cannot be used as it is."""


class MemoryShortError(InputError):
    """Memory ran out even with one row at a time."""


class SelectionError(NoisescopeError, ValueError):
    """A selection of layers, operators or modules that names nothing, or whose sites never ran."""


class DoseError(NoisescopeError, ValueError):
    """Nothing of the error that was asked for arrived: the result would be the clean model's."""


class NoisescopeWarning(UserWarning):
    """Base of every warning of this package."""


class DoseWarning(NoisescopeWarning):
    """Less than half of the error that was asked for arrived in the tensors."""


def near_names(name: str, accepted: Iterable[str], count: int = 3) -> str:
    """Returns ``"; did you mean 'silu' or 'gelu'?"``, or an empty string when nothing is near."""
    near = difflib.get_close_matches(name, list(accepted), n=count, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
