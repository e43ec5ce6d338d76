"""The versions of Python and of the packages that numbers depend on: every result names them."""

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("noisescope", "torch", "transformers", "numpy", "numba", "tokenizers")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
