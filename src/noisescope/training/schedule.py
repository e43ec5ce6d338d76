"""The schedule of adaptive quantisation noise: a clean stage, then noise that decays by stages.

Numbers alone; what gets the noise is in weight_noise.
"""

import math
from dataclasses import dataclass
from numbers import Real

from noisescope.errors import InputError


@dataclass(frozen=True)
class AqnSchedule:
    """Noise that decays geometrically in K stages of equal length, of which the first is clean.

    Stage 0 has sigma 0, stage 1 + i has sigma_start (sigma_end / sigma_start)^(i / (K - 2)) for
    i = 0 .. K - 2: the first noisy stage has sigma_start, the last sigma_end. Two stages are a
    clean one and one at sigma_start, with no decay between; a single stage is the clean one, and
    there is no noise at all.

    Source: Huang et al. 2025, QeRL, arXiv 2510.11696, section 3.3 and algorithm 1. Their exponent
    is (k - 1) / (K - 1) for stage k, which ends above sigma_end; here sigma_end is reached.

    Attributes:
        sigma_start: Standard deviation in the first noisy stage, above 0, in the unit of a weight.
        sigma_end: In the last, above 0.
        stages: K, at least 1, the clean one counted.
        restarts_each_epoch: Whether every epoch runs through all stages, in place of the training.
    """

    sigma_start: float
    sigma_end: float
    stages: int
    restarts_each_epoch: bool = False

    def __post_init__(self) -> None:
        for name in ("sigma_start", "sigma_end"):
            value = getattr(self, name)
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value) or value <= 0:
                raise InputError(f"{name} {value!r}: a finite number above 0 is needed; try 1e-2")
        if isinstance(self.stages, bool) or not isinstance(self.stages, int) or self.stages < 1:
            raise InputError(
                f"stages {self.stages!r}: a whole number of at least 1 is needed; try 10"
            )

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The standard deviation of each stage, K numbers of which the first is 0."""
        last = self.stages - 2
        ratio = self.sigma_end / self.sigma_start
        noisy = (self.sigma_start * ratio ** (i / last if last else 0.0) for i in range(last + 1))
        return (0.0, *noisy)

    def stage(self, step: int, steps: int) -> int:
        """Returns the stage of a step, 0 to K - 1.

        Stages differ by at most one step in length; with fewer steps than stages some are left out.

        Args:
            step: From 0; one at or beyond the end is of the last stage.
            steps: How many the whole course has, or one epoch of it where epochs restart.

        Raises:
            InputError: A number that cannot be.
        """
        if steps < 1 or step < 0:
            raise InputError(
                f"step {step} of {steps}: a step of at least 0 and at least 1 step are needed"
            )
        if self.restarts_each_epoch:
            step %= steps
        return min(step * self.stages // steps, self.stages - 1)

    def sigma(self, step: int, steps: int) -> float:
        """Returns the standard deviation of a step; arguments as for `stage`."""
        return self.sigmas[self.stage(step, steps)]


# Source: arXiv 2510.11696v1, table 4 (noise from 1e-2 to 5e-4), section 3.3 (ten intervals in the
# some 600 steps on GSM8K).
QERL = AqnSchedule(sigma_start=1e-2, sigma_end=5e-4, stages=10)
