import dataclasses

import numpy as np
import pytest
from helpers.profiles import layered, profile_of_sites, site_profile

from noisescope.errors import InputError
from noisescope.study.kept_profile import (
    PROFILE,
    profile_bytes,
    profile_of,
    read_profile,
    write_profile,
)

ABOUT = {"seed": 0, "fingerprints": {"model": "sha256:1"}}


def profile():
    sites = [
        site_profile("head:linear:0", [[1.0, np.nan]]),
        site_profile("a.1:silu:0", [[2.0, 3.0]]),
    ]
    made = profile_of_sites(sites)
    return dataclasses.replace(made, residuals=(site_profile("layer:residual:0", [[0.5, 0.25]]),))


def is_same(one, other):
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name in ("sites", "residuals"):
            assert len(a) == len(b)
            for x, y in zip(a, b, strict=True):
                for inner in dataclasses.fields(x):
                    np.testing.assert_array_equal(getattr(x, inner.name), getattr(y, inner.name))
        else:
            assert a == b


def test_a_profile_comes_back_as_it_was(tmp_path):
    write_profile(tmp_path, profile(), ABOUT)
    is_same(read_profile(tmp_path), profile())
    is_same(read_profile(tmp_path, ABOUT), profile())


def test_the_same_profile_is_the_same_bytes():
    assert profile_bytes(profile(), ABOUT) == profile_bytes(profile(), ABOUT)


def test_a_profile_of_something_else_is_none(tmp_path):
    assert read_profile(tmp_path) is None
    write_profile(tmp_path, profile(), ABOUT)
    assert read_profile(tmp_path, {**ABOUT, "seed": 1}) is None


@pytest.mark.parametrize("place", [0, 40, -1, -30])
def test_a_changed_byte_is_found(tmp_path, place):
    data = bytearray(profile_bytes(profile(), ABOUT))
    data[place] ^= 1
    with pytest.raises(InputError, match=r"was changed since it was written.*remove it"):
        profile_of(bytes(data), tmp_path / PROFILE)


def test_a_foreign_or_cut_file_is_refused(tmp_path):
    from safetensors.numpy import save

    for data in (b"", b"x" * 50, save({"a": np.zeros(2)}), profile_bytes(profile(), ABOUT)[:-8]):
        with pytest.raises(InputError, match="remove it"):
            profile_of(data, tmp_path / PROFILE)


def test_many_sites_keep_their_order():
    made = profile_of_sites(layered([float(n) for n in range(12)]))
    back, _ = profile_of(profile_bytes(made, ABOUT), PROFILE)
    assert [site.name for site in back.sites] == [site.name for site in made.sites]
