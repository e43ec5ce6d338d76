"""What is held around a run: no network, no chatter, global generators as they were."""

import logging
import os
import random

import huggingface_hub.constants
import numpy as np
import pytest
import torch

from noisescope.harness.surroundings import bars_told, offline, quiet, seeded


def test_libraries_are_offline_for_a_while_only(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(KeyError), offline():
        assert huggingface_hub.constants.is_offline_mode()
        assert os.environ["HF_DATASETS_OFFLINE"] == os.environ["HF_HUB_OFFLINE"] == "1"
        raise KeyError
    assert not huggingface_hub.constants.is_offline_mode()
    assert os.environ["HF_HUB_OFFLINE"] == "0" and "HF_DATASETS_OFFLINE" not in os.environ


def test_what_the_harness_says_is_kept_and_not_written(capsys):
    logger = logging.getLogger("lm_eval.models.huggingface")
    with quiet() as heard:
        logger.info("Running 5 requests")
        logger.warning("Left truncation applied at 12 tokens")
        logger.warning("Left truncation applied at 13 tokens")
        logger.warning("`pretrained` model kwarg is not of type `str`.")
    assert heard.lines == ["Left truncation applied at 12 tokens"]
    assert capsys.readouterr() == ("", "")
    assert logging.getLogger("lm_eval").handlers != [heard]


def test_bars_are_told_and_not_drawn(capsys):
    from lm_eval.models import huggingface

    told: list[float] = []
    before = huggingface.tqdm
    with bars_told(told.append):
        bar = huggingface.tqdm(total=4, desc="requests", disable=False)
        bar.update(1)
        bar.update(3)
        bar.close()
        assert list(huggingface.tqdm([1, 2])) == [1, 2]
    assert told == [0.25, 1.0] and huggingface.tqdm is before
    assert capsys.readouterr() == ("", "")


def test_global_generators_are_seeded_and_given_back():
    def drawn():
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    expected = [drawn(), drawn()]
    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    found = [drawn()]
    with seeded():
        first = drawn()
    with seeded():
        assert drawn() == first
    assert [*found, drawn()] == expected
