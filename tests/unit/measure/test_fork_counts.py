"""What the fork saves is counted in rows, and no pass has more of them than it may."""

from contextlib import ExitStack

import pytest
from helpers.model_dirs import loaded_small
from helpers.one_by_one import condition, fork_scores, sequences_of, texts
from helpers.small_models import small_model

from noisescope.measure import Plan, Unit, Worker
from noisescope.measure.taken_apart import TakenApart
from noisescope.tasks import make_task


class Rows(ExitStack):
    """Counts the rows that go through each layer of a model."""

    def __init__(self, model):
        super().__init__()
        self.counts = [[] for _ in model.model.layers]
        for layer, mine in zip(model.model.layers, self.counts, strict=True):
            hook = layer.register_forward_hook(lambda m, a, out, mine=mine: mine.append(len(a[0])))
            self.callback(hook.remove)

    @property
    def total(self):
        return sum(map(sum, self.counts))

    @property
    def most(self):
        return max(max(mine) for mine in self.counts)


@pytest.mark.parametrize("layers", [3, 12, 28])
@pytest.mark.parametrize("samples", [1, 4])
def test_all_single_layers_cost_half_of_their_passes(layers, samples):
    model = small_model("llama", num_hidden_layers=layers)
    sequences = sequences_of((5,) * samples)
    conditions = [condition(f"L{n}", layers=n) for n in range(layers)]
    apart = TakenApart(model)
    assert apart.can_share and apart.sites and apart.entries
    with Rows(model) as rows:
        fork_scores(model, sequences, conditions, apart=apart)
    # In clean passes: (L + 1) / 2 for the conditions and 1 for the clean rows.
    assert rows.total / (layers * samples) == (layers + 1) / 2 + 1
    share = rows.total / (layers * samples * (layers + 1))
    assert share == pytest.approx({3: 0.75, 12: 0.577, 28: 0.534}[layers], abs=5e-4)


@pytest.mark.parametrize("conditions", [10, 100, 300, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_pass_has_no_more_rows_than_it_may_however_many_conditions(conditions):
    loaded = loaded_small(num_hidden_layers=2)
    loaded.model.generation_config.eos_token_id = None
    score = None if conditions > 100 else lambda *_: True  # else texts, which are only scored
    task = make_task([{"prompt_ids": t} for t in texts((3, 4))], score, max_new_tokens=1)
    plan = Plan((condition("L0", layers=0), condition("L1", layers=1)), batch_size=16)
    worker = Worker(loaded, task, plan)
    worker(Unit("trials", ("0",), ("L0",), (0,)))
    with Rows(loaded.model) as rows:
        result = worker(Unit("all", ("0", "1"), ("L0", "L1"), tuple(range(conditions // 2))))
    assert rows.most <= 16
    assert len(result.records) == 2 * (conditions + 1)


def test_a_condition_in_the_head_costs_no_pass():
    model, sequences = small_model("llama"), sequences_of((5, 4))
    apart = TakenApart(model)
    assert apart.can_share and apart.sites and apart.entries
    with Rows(model) as rows:
        fork_scores(model, sequences, [condition("head", layers="head")], 5, apart)
    assert rows.total == 2 * 3
