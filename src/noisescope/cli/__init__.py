"""The command line: `noisescope demo | sites | layers | operators | show`."""

from noisescope.cli.main import main, run

__all__ = ["main", "run"]
