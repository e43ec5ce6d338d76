"""A study: what was asked, what was measured, and what it says."""

from noisescope.study.diagnosis import Diagnosis, Margins, make_diagnosis
from noisescope.study.discard import discard
from noisescope.study.executor import Executor, InProcess, Place, UnitFailure, Worker
from noisescope.study.identity import fingerprints_of, scoring_of
from noisescope.study.interrupt import ENDING, StudyInterrupted
from noisescope.study.opening import check_directory, is_study, open_study
from noisescope.study.plan import (
    Layout,
    SampleKey,
    StudyPlan,
    conditions_json,
    sample_keys,
)
from noisescope.study.searched import next_step
from noisescope.study.specs import make_worker, worker_spec
from noisescope.study.state import StudyState, read_study
from noisescope.study.study import Study
from noisescope.study.told import Told, read_told
from noisescope.study.units import make_units

__all__ = [
    "ENDING",
    "Diagnosis",
    "Executor",
    "InProcess",
    "Layout",
    "Margins",
    "Place",
    "SampleKey",
    "Study",
    "StudyInterrupted",
    "StudyPlan",
    "StudyState",
    "Told",
    "UnitFailure",
    "Worker",
    "check_directory",
    "conditions_json",
    "discard",
    "fingerprints_of",
    "is_study",
    "make_diagnosis",
    "make_units",
    "make_worker",
    "next_step",
    "open_study",
    "read_study",
    "read_told",
    "sample_keys",
    "scoring_of",
    "worker_spec",
]
