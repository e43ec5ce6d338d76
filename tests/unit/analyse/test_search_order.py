"""A search of a diagnosis: the clean model first, then the samples in the order of its NLL."""

import math

import pytest
from helpers.model_dirs import loaded_small

from noisescope.diagnose import diagnose_layers
from noisescope.measure import CLEAN
from noisescope.noise import RelativeGaussian
from noisescope.study import InProcess
from noisescope.tasks import make_task, token_task


class Watched(InProcess):
    """Carries units out here and keeps them."""

    def __init__(self):
        self.units = []

    def run(self, worker, units):
        units = list(units)
        self.units += units
        return super().run(worker, units)


def searched(is_generative, **options):
    loaded = loaded_small(num_hidden_layers=4)
    prompts = [[5 + i, 9, 4 + i % 3, 7 + i % 5] for i in range(25)]
    task = make_task([{"prompt_ids": ids} for ids in prompts], name="texts")
    if is_generative:
        task = token_task(prompts, [[1, 2, 3]] * len(prompts))
    executor = Watched()
    found = diagnose_layers(
        loaded,
        task,
        RelativeGaussian(0.3),
        window=1,
        search=True,
        memory_gib=1,
        executor=executor,
        **options,
    )
    return found, executor.units


@pytest.mark.parametrize("is_generative", [False, True], ids=["texts", "answers"])
@pytest.mark.parametrize("draws", [1, 2])
def test_the_samples_are_met_in_the_order_of_the_clean_models_nll(is_generative, draws):
    found, units = searched(is_generative, draws=draws)
    is_clean = [unit.with_clean for unit in units]
    count = is_clean.index(False)
    assert is_clean == [True] * count + [False] * (len(units) - count)
    assert not any(unit.conditions or unit.generates for unit in units[:count])
    samples = [s.name for s in found.plan.samples]
    assert [s for unit in units[:count] for s in unit.samples] == samples
    nll = {r.sample: r.nll_nats for r in found.records if r.condition == CLEAN}
    assert len(nll) == 25 and all(map(math.isfinite, nll.values()))
    met = list(dict.fromkeys(s for unit in units[count:] for s in unit.samples))
    reserve = samples[4::5]
    order = sorted((s for s in samples if s not in reserve), key=lambda s: -nll[s])
    assert order != [s for s in samples if s not in reserve]
    assert tuple(met) == (*order[: len(met) - 5], *reserve)
    assert found.winner.samples == tuple(order[: len(met) - 5])
    assert found.winner.reserve == tuple(reserve)
    noisy = sum(r.condition != CLEAN for r in found.records)
    assert noisy <= 0.4 * 4 * 25 * draws


@pytest.mark.parametrize("size", [1, 7])
def test_smaller_units_change_neither_the_order_nor_the_winner(size):
    whole, _ = searched(False)
    found, units = searched(False, batch_size=size)
    assert found.winner.name == whole.winner.name
    assert found.winner.samples == whole.winner.samples
    assert found.winner.loss == pytest.approx(whole.winner.loss, rel=1e-5)
    assert units[0].with_clean and not units[-1].with_clean
