"""What people look at: the terminal, the heatmap and the result file."""

from noisescope.report.heatmap import draw_heatmap
from noisescope.report.result import result_of, versions, write_records, write_result
from noisescope.report.terminal import (
    print_coverage,
    print_diagnosis,
    print_sites,
    progress_bar,
)

__all__ = [
    "draw_heatmap",
    "print_coverage",
    "print_diagnosis",
    "print_sites",
    "progress_bar",
    "result_of",
    "versions",
    "write_records",
    "write_result",
]
