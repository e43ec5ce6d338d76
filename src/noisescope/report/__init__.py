"""What people look at: pictures, verdict and result file; the terminal is `report.terminal`.

The terminal is not imported here: it needs rich, which draws random numbers when imported, and
importing noisescope is to change nothing.
"""

from noisescope.report.conclusion import sentences, verdict
from noisescope.report.dose import draw_doses
from noisescope.report.heatmap import draw_heatmap
from noisescope.report.output import (
    check_empty,
    check_output,
    check_writable,
    fresh_directory,
    write_profile_report,
    write_report,
)
from noisescope.report.profile_map import draw_profile
from noisescope.report.result import result_of, write_result

__all__ = [
    "check_empty",
    "check_output",
    "check_writable",
    "draw_doses",
    "draw_heatmap",
    "draw_profile",
    "fresh_directory",
    "result_of",
    "sentences",
    "verdict",
    "write_profile_report",
    "write_report",
    "write_result",
]
