"""What error is: numbers that are functions of an address, and the error models made of them.

Pure functions of tensors; nothing here knows of models, sites' names or autograd.
"""

from noisescope.noise.address import Address, flat_address, site_word
from noisescope.noise.bit_flips import BitFlips
from noisescope.noise.elements import ELEMENTS, Element, FloatElement, IntElement
from noisescope.noise.error_model import TALLY_FIELDS, ErrorModel, Replacing, tally
from noisescope.noise.error_types import make_error_model
from noisescope.noise.faults import Bias, DeadZone, Saturation, StuckChannels
from noisescope.noise.formats import PRESETS, Format, make_format
from noisescope.noise.gaussian import AbsoluteGaussian, RelativeGaussian
from noisescope.noise.philox import philox4x32, random_words, standard_normal
from noisescope.noise.rounded import NoError, Operand, RoundModules, RoundTo
from noisescope.noise.rounding import Rounding

__all__ = [
    "ELEMENTS",
    "PRESETS",
    "TALLY_FIELDS",
    "AbsoluteGaussian",
    "Address",
    "Bias",
    "BitFlips",
    "DeadZone",
    "Element",
    "ErrorModel",
    "FloatElement",
    "Format",
    "IntElement",
    "NoError",
    "Operand",
    "RelativeGaussian",
    "Replacing",
    "RoundModules",
    "RoundTo",
    "Rounding",
    "Saturation",
    "StuckChannels",
    "flat_address",
    "make_error_model",
    "make_format",
    "philox4x32",
    "random_words",
    "site_word",
    "standard_normal",
    "tally",
]
