"""The diagnosis: which layers, operators or sites a model can least afford error in."""

from noisescope.diagnose.carry_out import Options
from noisescope.diagnose.kinds import (
    diagnose_layers,
    diagnose_operators,
    diagnose_sites,
    probe,
)

__all__ = ["Options", "diagnose_layers", "diagnose_operators", "diagnose_sites", "probe"]
