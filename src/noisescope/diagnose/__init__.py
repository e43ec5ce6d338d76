"""The diagnosis: which operators, layers, sites and channels a model can least afford error in."""

from noisescope.diagnose.carry_out import Options
from noisescope.diagnose.integrated import IntegratedDiagnostic
from noisescope.diagnose.kinds import (
    diagnose_layers,
    diagnose_operators,
    diagnose_sites,
    probe,
)
from noisescope.diagnose.recommend import recommend_formats
from noisescope.diagnose.whole import diagnose_channels, diagnose_model

__all__ = [
    "IntegratedDiagnostic",
    "Options",
    "diagnose_channels",
    "diagnose_layers",
    "diagnose_model",
    "diagnose_operators",
    "diagnose_sites",
    "probe",
    "recommend_formats",
]
