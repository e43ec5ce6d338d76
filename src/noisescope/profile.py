"""What backward passes have told of a model: the predicted KL of error at every site, as data.

Made in measure/, read in analyse/, kept in study/. Legend: E error models, K label draws, N
samples, C classes of positions, D channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Classes of positions: the first token, the rest of the prompt, the scored tokens; `unknown` where
# rows have lost their token (experts of a mixture).
POSITION_CLASSES = ("first", "prompt", "answer", "unknown")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SiteProfile:
    """The predicted effect of error at one site, and at nothing else.

    Attributes:
        region: `embed`, a layer's number as text, `norm`, `head`, or `model`.
        module: Dotted name.
        operator: Name of the operator.
        index: Which call of the operator in the module.
        rows: How rows found their token: `token`, `sample` or `row`.
        kl_EKN: KL per error model, label draw and sample, in nats per scored token.
        channels_ECD: Of it, what error in each channel does at each class of positions: mean over
            label draws and samples. A channel is a head where the last axis runs over keys.
        channel_errors_ED: Standard errors of its sum over the classes; NaN from one pass alone.
    """

    region: str
    module: str
    operator: str
    index: int
    rows: str
    kl_EKN: Array
    channels_ECD: Array
    channel_errors_ED: Array

    @property
    def name(self) -> str:
        """The name, e.g. ``model.layers.3.mlp.down_proj:linear:0``."""
        return f"{self.module}:{self.operator}:{self.index}"

    @property
    def place(self) -> str:
        """The operator of the module, whichever call: ``model.layers.3.mlp.down_proj:linear``."""
        return f"{self.module}:{self.operator}"


@dataclass(frozen=True)
class Profile:
    """What backward passes over a task's samples have told.

    Attributes:
        sites: In the order they first ran.
        without: Names of sites that no gradient reaches: of them nothing is predicted.
        samples: Names of the samples.
        tokens: Scored tokens of each sample.
        error_models: Each one's type and parameters; those at which the KL is predicted.
        estimator: How gradients were drawn, `signs` or `labels`.
        label_draws: K.
        seed: First key word of the random numbers.
        residuals: Of error of the residual stream itself, where it enters the first layer and where
            it leaves each.
    """

    sites: tuple[SiteProfile, ...]
    without: tuple[str, ...]
    samples: tuple[str, ...]
    tokens: tuple[int, ...]
    error_models: tuple[Mapping[str, Any], ...]
    estimator: str
    label_draws: int
    seed: int
    residuals: tuple[SiteProfile, ...] = ()
