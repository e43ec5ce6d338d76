"""A stand-in for verl 0.9.1: modules, classes and order of calls, as far as noise needs them."""

import importlib
import os

__version__ = "0.9.1"

for name in os.getenv("VERL_USE_EXTERNAL_MODULES", "").split(","):
    if name:
        importlib.import_module(name)
