"""What error is: numbers that are functions of an address, and the error models made of them.

Pure functions of tensors; nothing here knows of models, sites' names or autograd.
"""

from noisescope.noise.address import Address, flat_address, site_word
from noisescope.noise.error_model import TALLY_FIELDS, ErrorModel, tally
from noisescope.noise.gaussian import AbsoluteGaussian, RelativeGaussian, make_error_model
from noisescope.noise.philox import philox4x32, random_words, standard_normal
from noisescope.noise.rounding import Rounding

__all__ = [
    "TALLY_FIELDS",
    "AbsoluteGaussian",
    "Address",
    "ErrorModel",
    "RelativeGaussian",
    "Rounding",
    "flat_address",
    "make_error_model",
    "philox4x32",
    "random_words",
    "site_word",
    "standard_normal",
    "tally",
]
