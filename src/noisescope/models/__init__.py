"""Models: where their regions are, and how a directory of weights becomes one."""

from noisescope.models.families import (
    FAMILIES,
    Family,
    Region,
    Regions,
    find_regions,
    register_family,
    uncompiled,
)
from noisescope.models.fingerprint import fingerprint
from noisescope.models.in_memory import in_eval_mode, in_memory
from noisescope.models.loading import LoadedModel, load_model
from noisescope.models.options import ATTENTIONS, DTYPES

__all__ = [
    "ATTENTIONS",
    "DTYPES",
    "FAMILIES",
    "Family",
    "LoadedModel",
    "Region",
    "Regions",
    "find_regions",
    "fingerprint",
    "in_eval_mode",
    "in_memory",
    "load_model",
    "register_family",
    "uncompiled",
]
