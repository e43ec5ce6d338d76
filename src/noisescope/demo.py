"""The demo model that the package carries: where it lies, and the test questions beside it."""

from importlib.resources import files
from pathlib import Path


def demo_model_dir() -> Path:
    """Returns the directory of the demo model, in the form `load_model` takes."""
    return Path(str(files("noisescope") / "demo_model"))


def demo_questions() -> Path:
    """Returns its 500 test questions, in the plan's parquet layout."""
    return demo_model_dir() / "test.parquet"
