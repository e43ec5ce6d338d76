"""Whole diagnoses of real models, against what is known of them."""

import itertools
import json

import pytest
import torch
from helpers.model_dirs import save_model
from helpers.shared import shared_path
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from noisescope import (
    RelativeGaussian,
    diagnose_layers,
    diagnose_operators,
    load_model,
    make_task,
    token_task,
)
from noisescope.cli import run
from noisescope.demo import demo_model_dir
from noisescope.inject import make_selection
from noisescope.measure import CLEAN, Condition, Plan, greedy_answers, measure

BEGINNING = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
    "park. One day, she saw a big, red ball."
)
STORIES = [
    BEGINNING,
    "Tom had a dog. The dog was big and happy. They ran to the park and played all day.",
    "One day, a little bird saw a tree. It wanted to sit on the tree and sing a song.",
    "Lily and her mom went to the store. They saw many toys and a big red ball.",
]
STORIES_OPERATORS = ["linear", "matmul", "softmax", "silu", "rms_norm", "embedding"]


@pytest.fixture(scope="module")
def stories():
    return load_model(shared_path("models/stories260K"), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def sorter():
    return load_model(shared_path("models/gpt-nano-sort"), dtype="float32", device="cpu")


def test_stories_begin_as_they_are_known_to(stories):
    bos = stories.model.config.bos_token_id
    answer = greedy_answers(stories.model, [[bos]], 80, stories.context_length)[0]
    assert stories.tokenizer.decode(answer, skip_special_tokens=True).strip().startswith(BEGINNING)


def test_every_layer_of_stories_has_a_kl_and_an_attested_dose(stories):
    found = diagnose_layers(stories, make_task(STORIES), RelativeGaussian(0.05), window=1, draws=2)
    assert [s.condition for s in found.summaries] == ["L0", "L1", "L2", "L3", "L4"]
    for summary in found.summaries:
        assert 1e-4 < summary.kl_nats.mean < 1
        witness = found.witnesses[summary.condition]
        dose = witness.dose()
        assert dose.relative_l2 == pytest.approx(0.05, rel=0.1)
        assert dose.share_changed > 0.99
        assert {r.site.region for r in witness.records if r.forward} == {summary.condition[1:]}
    # The clean loss of a model trained on such texts, far below ln 512 = 6.24.
    assert 0.5 < found.clean_nll_nats < 2.5


def test_every_operator_that_stories_runs_is_covered(stories):
    found = diagnose_operators(stories, make_task(STORIES), RelativeGaussian(0.05))
    assert [s.condition for s in found.summaries] == [*STORIES_OPERATORS, "core", "all"]
    kl = {s.condition: s.kl_nats.mean for s in found.summaries}
    assert all(0 < value < 1 for value in kl.values())
    assert kl["all"] > max(kl[name] for name in STORIES_OPERATORS)
    assert all(witness.dose().share_changed > 0.2 for witness in found.witnesses.values())
    coverage = {row.operator: row for row in found.witnesses["all"].coverage()}
    assert list(coverage) == STORIES_OPERATORS
    # 5 layers of 7 projections and the head; scores and context; two norms a layer and the last.
    sites = {"linear": 36, "matmul": 10, "softmax": 5, "silu": 5, "rms_norm": 11, "embedding": 1}
    assert {name: row.perturbed for name, row in coverage.items()} == sites
    assert {name: row.seen for name, row in coverage.items()} == sites


def sorting_task():
    inputs = list(itertools.product(range(3), repeat=6))
    return token_task(inputs, [sorted(letters) for letters in inputs], name="sort")


SCALES = (0.05, 0.1, 0.5, 1.0, 2.0)


def test_the_sorter_is_right_729_times_and_falls_as_the_scale_rises(sorter):
    conditions = tuple(
        Condition(f"{s:g}", RelativeGaussian(s), make_selection(operators="linear")) for s in SCALES
    )
    records = measure(sorter, sorting_task(), Plan(conditions, batch_size=243)).records
    right = {
        name: sum(bool(r.is_right) for r in records if r.condition == name)
        for name in (CLEAN, *(c.name for c in conditions))
    }
    assert len(records) == 729 * (1 + len(SCALES))
    assert right[CLEAN] == 729
    assert right["0.05"] == 729
    falling = list(right.values())
    assert all(worse <= better for better, worse in itertools.pairwise(falling))
    assert right["2"] < 0.2 * 729
    kl = [sum(r.kl_nats for r in records if r.condition == c.name) / 729 for c in conditions]
    assert kl == sorted(kl) and kl[0] > 0


@pytest.fixture
def random_qwen(tmp_path):
    """A random model of Qwen2.5's shape in small, with the demo model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model_dir())
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=700,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config)
    return save_model(tmp_path / "qwen", model, tokenizer)


def test_gsm8k_through_a_random_qwen_is_null_and_says_why(random_qwen, tmp_path, capsys):
    data = shared_path("data/gsm8k/test.parquet")
    words = ["layers", f"--model={random_qwen}", f"--data={data}", "--samples=4", "--window=2"]
    assert run([*words, "--max-new-tokens=6", "--device=cpu", f"--out={tmp_path / 'study'}"]) == 0
    result = json.loads((tmp_path / "study" / "result.json").read_text())
    assert result["config"]["n_samples"] == 4
    assert result["baseline_accuracy"] == 0
    assert result["avalanche_point"] is None
    assert list(result["layer_sensitivity"]) == ["L0-1", "L2-3"]
    for entry in result["layer_sensitivity"].values():
        assert entry["degradation"] is None
        assert "answers no question right" in entry["degradation_note"]
        assert entry["kl_nats_per_token"]["mean"] > 0
        dose = entry["dose"]
        assert dose["relative_l2"] == pytest.approx(0.05, rel=0.2)
        assert dose["share_changed"] == pytest.approx(dose["asked_share"], rel=0.01)
    shown = " ".join(capsys.readouterr().out.split())
    assert "by accuracy: none, since the clean model answers no question right" in shown
