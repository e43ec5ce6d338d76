"""The plan's name for the command line: `python scripts/diagnose_model.py layers --model ...`."""

from noisescope.cli import main

if __name__ == "__main__":
    main()
