"""Ctrl-C while the command is still being imported ends in one line, as it does later on."""

import subprocess
import sys

INTERRUPTED_WHILE_IMPORTING = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "noisescope":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
from noisescope_start import main
main()
"""


def test_an_interrupt_while_importing_is_one_line():
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WHILE_IMPORTING],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "Interrupted: nothing was written.\n"
