"""A study: what was asked, what was measured, and what it says."""

from noisescope.study.diagnosis import Diagnosis

__all__ = ["Diagnosis"]
