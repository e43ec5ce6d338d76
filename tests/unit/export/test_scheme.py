"""Names of formats are taken apart as they are meant."""

import pytest

from noisescope.errors import InputError
from noisescope.export.scheme import read_scheme


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("bf16", ("bf16", "cast", 0, True, False, 16)),
        ("fp16", ("fp16", "cast", 0, True, False, 16)),
        ("fp8_e4m3", ("fp8_e4m3", "channel", 0, True, False, 8)),
        ("fp8_e5m2_tensor", ("fp8_e5m2", "tensor", 0, True, False, 8)),
        ("fp6_e3m2", ("fp6_e3m2", "channel", 0, True, False, 6)),
        ("fp4_e2m1_g16", ("fp4_e2m1", "group", 16, True, False, 4)),
        ("int8", ("int8", "channel", 0, True, False, 8)),
        ("int8_asym", ("int8", "channel", 0, False, False, 8)),
        ("int4", ("int4", "group", 128, True, False, 4)),
        ("int4_asym", ("int4", "group", 128, False, False, 4)),
        ("int4_g32_asym", ("int4", "group", 32, False, False, 4)),
        ("int3", ("int3", "group", 128, True, False, 3)),
        ("int2_tensor", ("int2", "tensor", 0, True, False, 2)),
        ("mxfp8", ("fp8_e4m3", "mx", 32, True, False, 8)),
        ("mxfp8_e5m2", ("fp8_e5m2", "mx", 32, True, False, 8)),
        ("mxfp6", ("fp6_e2m3", "mx", 32, True, False, 6)),
        ("mxfp6_e3m2_ceil", ("fp6_e3m2", "mx", 32, True, True, 6)),
        ("mxfp4_ceil", ("fp4_e2m1", "mx", 32, True, True, 4)),
        ("nvfp4", ("fp4_e2m1", "nvfp4", 16, True, False, 4)),
    ],
)
def test_parts_of_a_name(name, parts):
    scheme = read_scheme(name)
    found = (scheme.element, scheme.scale, scheme.group, scheme.is_symmetric, scheme.is_ceil)
    assert (*found, scheme.bits) == parts
    assert scheme.is_integer == name.startswith("int")


@pytest.mark.parametrize("name", ["int9", "int4_g0", "mxfp3", "nvfp4_ceil", "fp8_e4m3_asym", ""])
def test_no_such_format(name):
    with pytest.raises(InputError, match=f"format {name!r}"):
        read_scheme(name)
