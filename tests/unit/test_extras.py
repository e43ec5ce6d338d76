"""Packages that only some commands need."""

import json

import pytest

from noisescope.errors import InputError
from noisescope.extras import require


def test_a_package_that_is_there_is_returned():
    assert require("json", "ray", "--executor ray") is json


def test_one_that_lacks_is_an_error_with_the_command_that_installs_it():
    with pytest.raises(InputError) as told:
        require("no_such_package.inner", "ray", "--executor ray")
    assert str(told.value) == (
        "--executor ray needs the package 'no_such_package', which is not installed: "
        "pip install 'noisescope[ray]'"
    )


def test_what_lacks_inside_an_installed_package_is_its_own_defect(tmp_path, monkeypatch):
    (tmp_path / "half_there.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        require("half_there", "ray", "--executor ray")
