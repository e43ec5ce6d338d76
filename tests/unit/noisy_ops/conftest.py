"""Every test here begins and ends with the state of a fresh import."""

import pytest
from helpers.noisy_state import fresh_state


@pytest.fixture(autouse=True)
def state():
    with fresh_state() as fresh:
        yield fresh
