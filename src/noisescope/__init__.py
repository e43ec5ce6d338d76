"""noisescope finds where numeric error breaks a language model.

These are the public names. Importing the package changes nothing: no patch, no seed, no log.
"""

from noisescope.assignment import Assignment
from noisescope.capture import ActivationCapture
from noisescope.diagnose import (
    IntegratedDiagnostic,
    diagnose_channels,
    diagnose_layers,
    diagnose_model,
    diagnose_operators,
    diagnose_sites,
    recommend_formats,
)
from noisescope.errors import (
    DoseError,
    DoseWarning,
    InputError,
    NoisescopeError,
    NoisescopeWarning,
    SelectionError,
)
from noisescope.export import export_files
from noisescope.harness import NoisyLM, TaskOptions, evaluate_tasks
from noisescope.inject import CORE_OPERATORS, OPERATORS, Dose, Session, Site, inject
from noisescope.models import LoadedModel, fingerprint, load_model, register_family
from noisescope.noise import (
    AbsoluteGaussian,
    Bias,
    BitFlips,
    DeadZone,
    ErrorModel,
    Format,
    RelativeGaussian,
    RoundModules,
    RoundTo,
    Saturation,
    StuckChannels,
    make_format,
)
from noisescope.profile import Profile
from noisescope.report import result_of, write_report
from noisescope.study import Diagnosis, Margins
from noisescope.tasks import Sample, Task, load_task, make_task, token_task
from noisescope.trackers import log_diagnosis, log_evaluation
from noisescope.training import (
    QERL,
    AqnCallback,
    AqnSchedule,
    NoiseCallback,
    layer_multipliers,
    weight_noise,
)

__all__ = [
    "CORE_OPERATORS",
    "OPERATORS",
    "QERL",
    "AbsoluteGaussian",
    "ActivationCapture",
    "AqnCallback",
    "AqnSchedule",
    "Assignment",
    "Bias",
    "BitFlips",
    "DeadZone",
    "Diagnosis",
    "Dose",
    "DoseError",
    "DoseWarning",
    "ErrorModel",
    "Format",
    "InputError",
    "IntegratedDiagnostic",
    "LoadedModel",
    "Margins",
    "NoiseCallback",
    "NoisescopeError",
    "NoisescopeWarning",
    "NoisyLM",
    "Profile",
    "RelativeGaussian",
    "RoundModules",
    "RoundTo",
    "Sample",
    "Saturation",
    "SelectionError",
    "Session",
    "Site",
    "StuckChannels",
    "Task",
    "TaskOptions",
    "diagnose_channels",
    "diagnose_layers",
    "diagnose_model",
    "diagnose_operators",
    "diagnose_sites",
    "evaluate_tasks",
    "export_files",
    "fingerprint",
    "inject",
    "layer_multipliers",
    "load_model",
    "load_task",
    "log_diagnosis",
    "log_evaluation",
    "make_format",
    "make_task",
    "recommend_formats",
    "register_family",
    "result_of",
    "token_task",
    "weight_noise",
    "write_report",
]
