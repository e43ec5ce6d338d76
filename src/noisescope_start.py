"""Starts the command line; beside the package, for what lies inside it is imported after it.

Importing takes seconds, and Ctrl-C in them should end as quietly as it does later on.
"""

import sys


def main() -> None:
    """Runs the command line; leaves with 130 when interrupted while it is still being imported."""
    try:
        from noisescope.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted: nothing was written.\n")
        sys.exit(130)
    run()
