"""What activations look like: statistics per channel, outlier channels and massive activations."""

from noisescope.capture.capture import ActivationCapture
from noisescope.capture.outliers import MassiveActivation, Outliers, find_massive, find_outliers
from noisescope.capture.places import DEFAULT_PATTERNS, output_projections
from noisescope.capture.statistics import ChannelStatistics

__all__ = [
    "DEFAULT_PATTERNS",
    "ActivationCapture",
    "ChannelStatistics",
    "MassiveActivation",
    "Outliers",
    "find_massive",
    "find_outliers",
    "output_projections",
]
