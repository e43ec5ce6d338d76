"""What people look at: the heatmap and the result file; the terminal is `report.terminal`.

The terminal is not imported here: it needs rich, which draws random numbers when imported, and
importing noisescope is to change nothing.
"""

from noisescope.report.heatmap import draw_heatmap
from noisescope.report.output import check_output, check_writable, fresh_directory, write_report
from noisescope.report.result import result_of, write_result

__all__ = [
    "check_output",
    "check_writable",
    "draw_heatmap",
    "fresh_directory",
    "result_of",
    "write_report",
    "write_result",
]
