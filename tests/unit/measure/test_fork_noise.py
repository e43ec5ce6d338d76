"""Riders meet the noise of their own session to the last bit, and their doses say so."""

from dataclasses import dataclass, field

import pytest
import torch
from helpers.one_by_one import CPU, SEED, condition, fork_scores, plain_logits, sequences_of, texts
from helpers.small_models import small_model

from noisescope.inject import Session
from noisescope.measure import make_sequences
from noisescope.noise import AbsoluteGaussian, ErrorModel, RelativeGaussian, standard_normal

FAMILIES = ("llama", "gpt2", "gemma3_text", "mixtral")


@dataclass(frozen=True)
class Recording(ErrorModel):
    """Absolute noise that keeps what it added under (site, draw, sample, position, channel)."""

    scale: float = 0.1
    rounding: str = "nearest"
    added: dict = field(default_factory=dict, compare=False)

    def error(self, y_RD, at):
        error_RD = self.scale * standard_normal(at, y_RD.shape[1]).to(y_RD.dtype)
        rows = (at.sample_R.tolist(), at.position_R.tolist(), at.channel_R.tolist())
        for row, place in enumerate(zip(*rows, strict=True)):
            key = (at.site, at.seed, at.draw, *place, y_RD.shape[1])
            known = self.added.setdefault(key, error_RD[row])
            assert torch.equal(known, error_RD[row])
        return error_RD


SELECTIONS = [
    {"layers": 1},
    {"layers": ["embed", 2]},
    {"layers": [0, 1]},
    {"layers": "head"},
    {"operators": ["matmul", "softmax"]},
    {},
]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_noise_of_a_fork_is_that_of_a_plain_session_to_the_last_bit(family):
    model, sequences = small_model(family), sequences_of((9, 3, 5))
    if family == "mixtral":  # rows of experts are known by the pass alone
        selections = [{"layers": 1, "modules": "self_attn"}, {"layers": ["embed", 2, "head"]}]
    else:
        selections = SELECTIONS
    mine = [condition(str(n), Recording(), **s) for n, s in enumerate(selections)]
    theirs = [condition(str(n), Recording(), **s) for n, s in enumerate(selections)]
    fork_scores(model, sequences, mine, draws=2)
    for one, other in zip(mine, theirs, strict=True):
        for draw in range(2):
            plain_logits(model, sequences, other, draw)
        found, expected = one.error_model.added, other.error_model.added
        assert found and found.keys() <= expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)
        # The head of a fork computes the scored tokens alone.
        only_here = {key[-1] for key in expected.keys() - found.keys()}
        assert only_here <= {model.config.vocab_size}
        assert {key[2] for key in found} == {0, 1} and {key[1] for key in found} == {SEED}


CONDITIONS = (
    condition("L0", layers=0),
    condition("L1-2", AbsoluteGaussian(0.1), layers=[1, 2]),
    condition("embed", layers="embed"),
    condition("softmax", operators="softmax"),
    condition("all", RelativeGaussian(0.05)),
    condition("nothing", RelativeGaussian(0.0), layers=1),
)


@pytest.mark.parametrize("rows", [1, 9, 1 << 20])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_arrived_is_what_arrives_in_plain_sessions(family, rows):
    model, sequences = small_model(family).double(), sequences_of((9, 3, 5))
    _, sessions = fork_scores(model, sequences, CONDITIONS, draws=2, rows=rows)
    for given in CONDITIONS:
        plain = [plain_logits(model, sequences, given, draw)[1].witness for draw in range(2)]
        expected = {r.site.name: r for r in plain[0].records}
        others = {r.site.name: r for r in plain[1].records}
        found = {r.site.name: r for r in sessions[given.name].records}
        # Before its first selected site a condition is the clean model, which is not looked at.
        selected = {name for name, r in expected.items() if r.is_selected}
        assert selected <= found.keys() <= expected.keys()
        for name, record in found.items():
            one, other = expected[name], others[name]
            assert record.is_selected == one.is_selected and record.rows == one.rows
            if record.site.region == "head":
                continue
            assert record.seen == one.seen + other.seen
            assert record.forward == one.forward + other.forward
            assert record.tallies.keys() == one.tallies.keys()
            for phase, tally in record.tallies.items():
                whole = one.tallies[phase] + other.tallies[phase]
                assert torch.equal(tally[:3], whole[:3])  # counts
                torch.testing.assert_close(tally, whole, rtol=1e-9, atol=0)


def test_the_heads_dose_is_that_of_the_scored_tokens():
    model, sequences = small_model("llama").double(), sequences_of((9, 4, 6))
    given = condition("head", layers="head")
    _, sessions = fork_scores(model, sequences, [given], draws=3)
    (record,) = sessions["head"].records
    assert record.tallies["forward"][0] == 3 * len(sequences.label_N) * 64
    texts_ = texts((9, 4, 6))
    tallies = torch.zeros(6, dtype=torch.float64)
    for draw in range(3):
        for row, ids in enumerate(texts_):  # one row's scored tokens at a time
            session = Session(model, given.error_model, given.selection, SEED, draw, attest=False)
            session.name_samples([f"s{row}"])
            with torch.no_grad(), session:
                model(input_ids=torch.tensor([ids]), logits_to_keep=torch.arange(1, len(ids) - 1))
            tallies += session.records[0].tallies["forward"]
    torch.testing.assert_close(record.tallies["forward"], tallies, rtol=1e-9, atol=0)


def test_noise_in_the_head_follows_its_token_whatever_the_chunks():
    model, sequences = small_model("llama"), sequences_of((9, 4, 6))
    scores = []
    for logits_bytes in (1, 28 * 64 * 50, 1 << 28):
        given = condition("head", Recording(), layers="head")
        found, _ = fork_scores(model, sequences, [given], logits_bytes=logits_bytes)
        scores.append(found[1])
        recorded = given.error_model.added
        assert len(recorded) == len(sequences.label_N)
    for one, other in ((scores[0], scores[1]), (scores[0], scores[2])):
        for a, b in zip(one, other, strict=True):
            assert a.kl_nats == pytest.approx(b.kl_nats, rel=1e-6) != 0


def test_one_sample_named_twice_meets_one_noise():
    model = small_model("llama")
    ids = texts((8,))[0]
    sequences = make_sequences(["a", "a", "b"], [ids[:2]] * 3, [ids[2:]] * 3, CPU)
    found, _ = fork_scores(model, sequences, [condition("L1", layers=1)])
    one, twin, other = (row.kl_nats for row in found[1])
    assert one == pytest.approx(twin, rel=1e-6) != pytest.approx(other, rel=1e-3)
