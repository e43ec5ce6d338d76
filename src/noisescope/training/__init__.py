"""Noise inside training: within a step, in the rollouts of reinforcement learning, on weights.

`noisescope.training.verl` is not imported here: verl loads it by name.
"""

from noisescope.training.aqn_callback import AqnCallback
from noisescope.training.callback import NoiseCallback
from noisescope.training.multipliers import layer_multipliers
from noisescope.training.schedule import QERL, AqnSchedule
from noisescope.training.weight_noise import weight_noise

__all__ = [
    "QERL",
    "AqnCallback",
    "AqnSchedule",
    "NoiseCallback",
    "layer_multipliers",
    "weight_noise",
]
