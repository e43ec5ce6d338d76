"""Patterns match exactly the names they were made of."""

import random
import re

import pytest
from helpers.assigned import all_names, linear_names

from noisescope.export.patterns import check_targets, exact_patterns

HOSTILE = (
    "a+b.c(1)",
    "aab.c1",
    "a|b.[0-9]",
    "a.5",
    "x.*",
    "x.y",
    "^x$",
    "re:.*",
    "back\\slash.d",
    "{2}",
    "sp ace.0",
    "ünïcode.0",
    "Linear",
)


def matched(patterns, names):
    return [(n, [p for p in patterns if re.match(p, n)]) for n in names]


def test_layers_of_one_kind_are_one_pattern():
    names = [f"model.layers.{i}.mlp.down_proj" for i in (7, 0, 3)]
    assert exact_patterns(names) == (r"^model\.layers\.(0|3|7)\.mlp\.down_proj$",)


def test_kinds_of_the_same_layers_are_one_pattern():
    assert exact_patterns(linear_names(2)) == (
        r"^model\.layers\.(0|1)\.self_attn\.(k_proj|o_proj|q_proj|v_proj)$",
        r"^model\.layers\.(0|1)\.mlp\.(down_proj|gate_proj|up_proj)$",
        r"^lm_head$",
    )


def test_numbers_are_merged_before_words():
    names = ["l.0.q", "l.0.k", "l.1.q"]
    assert exact_patterns(names) == (r"^l\.(0|1)\.q$", r"^l\.0\.k$")


def test_no_names_are_no_patterns():
    assert exact_patterns([]) == ()


@pytest.mark.parametrize("seed", range(30))
def test_any_subset_is_matched_exactly_and_each_once(seed):
    """The oracle is exhaustive: every name of the universe against every pattern."""
    draw = random.Random(seed)
    parts = ["0", "1", "10", "01", "q", "k", "a+b", "(1)", "[x]"]
    universe = {".".join(draw.choices(parts, k=draw.randint(1, 4))) for _ in range(300)}
    universe = sorted(universe | set(HOSTILE) | set(all_names()))
    chosen = {n for n in universe if n and draw.random() < 0.4}
    for name, hits in matched(exact_patterns(sorted(chosen)), universe):
        assert len(hits) == (name in chosen), name


def test_names_with_metacharacters_stay_literal():
    for name in HOSTILE:
        (pattern,) = exact_patterns([name])
        assert [n for n in HOSTILE if re.match(pattern, n)] == [name]


def test_many_experts_stay_few_patterns():
    names = [
        f"model.layers.{i}.mlp.experts.{e}.{p}_proj"
        for i in range(8)
        for e in range(64)
        for p in ("gate", "up", "down")
    ]
    assert len(exact_patterns(names)) == 1


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ({"a": ["^x$", "^x"], "b": ["^y$"]}, r"\['a', 'a'\] match 'x'"),
        ({"a": ["^x$"], "b": ["^[xy]$"]}, r"\['a', 'b'\] match 'x'"),
        ({"a": ["^x$"], "b": ["^(y|z)$"]}, r"\['b'\] match 'z', which belongs to no group"),
        ({"a": ["^x$"], "b": []}, "no group match 'y'"),
    ],
)
def test_a_target_that_overlaps_or_misses_is_found(targets, told):
    groups = {"x": "a", "y": "b"}
    check_targets({"a": ["^x$"], "b": ["^y$"]}, groups, ["x", "y", "z"])
    with pytest.raises(RuntimeError, match=told):
        check_targets(targets, groups, ["x", "y", "z"])
