"""A site: one operator at one place, and its name, by which noise finds it again in any process."""

from dataclasses import dataclass
from functools import cached_property

from noisescope.noise import site_word

# Region, module, operator and index: what a Site is made of.
SiteKey = tuple[str, str, str, int]
# The gradients of a hand-written norm's weights are numbered after those of its inputs.
FIRST_PARAMETER = 16


@dataclass(frozen=True)
class Site:
    """One operator at one place in the model.

    Attributes:
        region: `embed`, a layer's number as text, `norm`, `head`, or `model` without layers.
        module: Dotted name of the module that computes, from the model that was given.
        operator: One of `OPERATORS`.
        index: Which call of this operator in this module within one pass of the region, from 0.
    """

    region: str
    module: str
    operator: str
    index: int

    @property
    def name(self) -> str:
        """The name, e.g. ``model.layers.3.mlp.down_proj:linear:0``."""
        return f"{self.module}:{self.operator}:{self.index}"

    @cached_property
    def word(self) -> int:
        """The 32-bit word that stands for this site's forward noise in the counter."""
        return site_word(self.name)

    def gradient_word(self, argument: int) -> int:
        """Returns the word for the backward noise on the gradient of the operator's n-th tensor."""
        return site_word(f"{self.name}:grad{argument}")
