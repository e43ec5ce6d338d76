"""Where the shared models and data lie: beside the repository, on machines that have them."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def shared_path(name: str) -> Path:
    """Returns ``../shared/<name>``; where it is absent, the test is skipped and says so."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs {path}, which is not on this machine")
    return path
