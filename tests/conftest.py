"""What tests anywhere may ask for."""

import importlib
import sys
from pathlib import Path

import pytest

ENGINES = Path(sys.prefix) / "engines"


@pytest.fixture(scope="module")
def engines():
    """Makes inference engines importable for one file of tests.

    They lie apart from everything else: where transformers finds torchao it imports it, which takes
    seconds and prints lines.
    """
    if not ENGINES.is_dir():
        pytest.skip(f"{ENGINES} is not there: 'make setup' puts inference engines into it")
    sys.path.append(str(ENGINES))
    importlib.invalidate_caches()
    yield ENGINES
    sys.path.remove(str(ENGINES))
    importlib.invalidate_caches()
