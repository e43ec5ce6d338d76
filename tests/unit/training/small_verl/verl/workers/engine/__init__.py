"""As in verl, importing the package imports its engines."""

from .base import BaseEngine
from .fsdp import FSDPEngine

__all__ = ["BaseEngine", "FSDPEngine"]
