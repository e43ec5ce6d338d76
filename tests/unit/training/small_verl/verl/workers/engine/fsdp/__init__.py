"""The engine over FSDP."""

from .transformer_impl import FSDPEngine

__all__ = ["FSDPEngine"]
