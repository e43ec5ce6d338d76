"""What people look at: pictures, verdict and result file; the terminal is `report.terminal`.

The terminal is not imported here: it needs rich, which draws random numbers when imported, and
importing noisescope is to change nothing.
"""

from noisescope.report.conclusion import sentences, verdict
from noisescope.report.output import (
    check_empty,
    check_output,
    check_writable,
    fresh_directory,
    write_profile_report,
    write_report,
)
from noisescope.report.page.page import Picture, Section, Table, page_bytes, picture_files
from noisescope.report.page.sections import PAGE, diagnosis_sections, report_files
from noisescope.report.pictures.dose import draw_doses
from noisescope.report.pictures.heatmap import draw_heatmap
from noisescope.report.pictures.profile_map import draw_profile
from noisescope.report.result import result_of, write_result

__all__ = [
    "PAGE",
    "Picture",
    "Section",
    "Table",
    "check_empty",
    "check_output",
    "check_writable",
    "diagnosis_sections",
    "draw_doses",
    "draw_heatmap",
    "draw_profile",
    "fresh_directory",
    "page_bytes",
    "picture_files",
    "report_files",
    "result_of",
    "sentences",
    "verdict",
    "write_profile_report",
    "write_report",
    "write_result",
]
