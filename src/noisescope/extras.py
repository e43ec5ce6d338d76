"""Packages that only some commands need: imported when they are used, named when they lack."""

import importlib
from types import ModuleType

from noisescope.errors import InputError


def require(module: str, extra: str, what: str) -> ModuleType:
    """Imports and returns a module of an optional package.

    Args:
        module: Its dotted name, such as ``"ray"``.
        extra: The extra of this package that brings it: ``pip install 'noisescope[ray]'``.
        what: What needs it, as the user named it, such as ``"--executor ray"``.

    Raises:
        InputError: The package is not installed; the line holds the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Something that lacks inside an installed package is that package's defect.
        if error.name is None or not module.startswith(error.name):
            raise
        raise InputError(
            f"{what} needs the package {module.split('.')[0]!r}, which is not installed: "
            f"pip install 'noisescope[{extra}]'"
        ) from None
