"""`python -m noisescope` is the command line."""

from noisescope.cli import main

main()
