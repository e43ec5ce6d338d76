"""Traps 12 and 13: what fifty questions can tell, and the same weights under two names."""

import numpy as np
import pytest
from helpers.small_models import small_model

from noisescope.analyse import Table, mcnemar_p, worst_by_accuracy
from noisescope.models import load_model
from noisescope.records import CLEAN, Record


def records(condition, right):
    return [Record(condition, 0, str(i), 5, 0.1, 0.1, 0.9, bool(r)) for i, r in enumerate(right)]


def test_trap_12_78_against_64_percent_of_fifty_questions_is_no_finding():
    """39 against 32 right; with 17 lost and 10 won, a published pair of runs has p = .25."""
    clean = np.arange(50) < 39
    noisy = clean.copy()
    noisy[:17] = False
    noisy[39:49] = True
    assert (clean.mean(), noisy.mean()) == (0.78, 0.64)
    p = mcnemar_p(clean.tolist(), noisy.tolist())
    assert p == pytest.approx(0.2478, abs=1e-3)
    worst = worst_by_accuracy(Table(records(CLEAN, clean) + records("L0", noisy)))
    assert (worst.condition, worst.is_conclusive, worst.rivals) == ("L0", False, (CLEAN,))
    assert "cannot be told from the clean model" in worst.reason


def test_trap_13_the_same_weights_under_two_names_have_one_fingerprint(tmp_path):
    model = small_model("llama")
    for name in ("before", "after"):
        model.save_pretrained(tmp_path / name)
    first, second = load_model(tmp_path / "before"), load_model(tmp_path / "after")
    assert first.fingerprint == second.fingerprint
    trained = small_model("llama", seed=1)
    trained.save_pretrained(tmp_path / "trained")
    assert load_model(tmp_path / "trained").fingerprint != first.fingerprint
