"""The search against the full sweep: how often each names the worst, and at what cost.

    python benchmarks/search.py --studies 2000

Studies are drawn, questions with replacement, from the KL that was measured on the demo model and
on stories260K (tests/data), so gaps, variances and correlations are the measured ones. The harder
cases are 28 layers made of these, and gaps shrunk until the full sweep errs as well. The search
meets the questions by the clean model's NLL, as the program does, and in their own order.
"""

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noisescope.analyse import Round, Winner, next_round

DATA = Path(__file__).parents[1] / "tests" / "data"


@dataclass(frozen=True)
class Case:
    """A population of questions: the loss of each condition at each, mean over draws.

    Attributes:
        name: As it is printed.
        values_LN: The losses.
        clean_nll_N: The clean model's NLL of its own answers, or of the text.
    """

    name: str
    values_LN: NDArray[np.float64]
    clean_nll_N: NDArray[np.float64]

    @property
    def worst(self) -> int:
        """The condition whose true loss is largest."""
        return int(self.values_LN.mean(axis=1).argmax())


def main() -> None:
    from noise_kernel import cpu_name  # found beside this file where it is run, not in the tests

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(
        f"{cpu_name()}, Python {platform.python_version()}, numpy {np.__version__}; "
        f"{arguments.studies} studies, seed {arguments.seed}"
    )
    print(
        "how often each names the worst (hits), and the true loss of what it names, of the worst's"
    )
    print(f"{'':42} {'hits':^34} {'loss':^20}")
    print(
        f"{'case':>33} {'L':>3} {'N':>4} {'full':>6} {'own order':>13} {'by NLL':>13}"
        f" {'full':>6} {'own':>6} {'NLL':>6} {'evaluations':>12}   in percent"
    )
    for case in [*measured_cases(), *hard_cases()]:
        for samples in (50, 100):
            found = rates(case, samples, arguments.studies, arguments.seed)
            print(f"{case.name:>33} {len(case.values_LN):3} {samples:4} {found}", flush=True)


def measured_cases() -> list[Case]:
    return [load(path) for path in sorted(DATA.glob("kl_*"))]


def load(path: Path) -> Case:
    data = json.loads(path.read_text())
    values_LN = np.array(data["kl_LKN"]).mean(axis=1)
    return Case(path.stem.removeprefix("kl_"), values_LN, np.array(data["clean_nll_N"]))


def hard_cases() -> list[Case]:
    """Returns gaps shrunk on each model, and 28 layers of both models with gaps shrunk."""
    found = []
    for case in measured_cases():
        shrunk = shrink(case.values_LN, 0.3)
        found.append(replace(case, name=f"{case.name}, gaps x 0.3", values_LN=shrunk))
    for case in measured_cases():
        many = resample_layers(case.values_LN, 28)
        found.append(replace(case, name=f"{case.name}, 28 layers", values_LN=many))
        shrunk = shrink(many, 0.5)
        found.append(replace(case, name=f"{case.name}, 28, gaps x 0.5", values_LN=shrunk))
    return found


def shrink(values_LN: NDArray[np.float64], by: float) -> NDArray[np.float64]:
    """Returns losses whose means lie closer together by a factor, each spread as it was."""
    means = values_LN.mean(axis=1, keepdims=True)
    shrunk: NDArray[np.float64] = values_LN + (by - 1) * (means - means.max())
    return shrunk


def resample_layers(values_LN: NDArray[np.float64], layers: int) -> NDArray[np.float64]:
    """Returns so many layers: those there are, and copies scaled down, questions permuted."""
    rng = np.random.default_rng(5)
    rows = list(values_LN)
    while len(rows) < layers:
        row = values_LN[len(rows) % len(values_LN)]
        half = len(row) // 2  # half of its questions stay in place: layers share hard questions
        mixed = np.concatenate([row[:half], rng.permutation(row[half:])])
        rows.append(mixed * rng.uniform(0.5, 0.95))
    return np.array(rows)


@dataclass(frozen=True)
class Rates:
    """What a full sweep and the searches reach over the same studies; shares.

    Attributes:
        full_hits: How often the full sweep names the worst.
        own_hits: The search, with the questions in their own order.
        nll_hits: The search, by the clean model's NLL.
        full_loss: The true loss of what the full sweep names, of the worst's.
        own_loss: The search, likewise.
        nll_loss: Likewise.
        evaluations: Of the search, of the full sweep's.
    """

    full_hits: float
    own_hits: float
    nll_hits: float
    full_loss: float
    own_loss: float
    nll_loss: float
    evaluations: float

    def __str__(self) -> str:
        searches = (
            f"{100 * hits:6.1f} {100 * (hits - self.full_hits):+6.1f}"
            for hits in (self.own_hits, self.nll_hits)
        )
        return (
            f"{100 * self.full_hits:6.1f} {' '.join(searches)} {100 * self.full_loss:6.1f}"
            f" {100 * self.own_loss:6.1f} {100 * self.nll_loss:6.1f} {100 * self.evaluations:12.1f}"
        )


def rates(case: Case, samples: int, studies: int, seed: int) -> Rates:
    """Simulates so many studies, and lets all name the worst in each."""
    rng = np.random.default_rng(seed)
    true = case.values_LN.mean(axis=1) / case.values_LN.mean(axis=1).max()
    found = []
    for _ in range(studies):
        drawn = rng.integers(0, case.values_LN.shape[1], samples)
        values = case.values_LN[:, drawn]
        own, _ = run_search(values)
        by_nll, cost = run_search(values, priority_N=case.clean_nll_N[drawn])
        named = [int(values.mean(axis=1).argmax()), int(own.name), int(by_nll.name)]
        found.append([*(n == case.worst for n in named), *true[named], cost / values.size])
    return Rates(*np.mean(found, axis=0).tolist())


def run_search(
    values_LN: NDArray[np.float64],
    share: float = 0.4,
    priority_N: Sequence[float] | NDArray[np.float64] | None = None,
) -> tuple[Winner, int]:
    """Returns whom the search names, and how many evaluations it asked for."""
    layers, samples = values_LN.shape
    names, questions = [str(i) for i in range(layers)], [str(i) for i in range(samples)]
    known: dict[str, dict[str, float]] = {name: {} for name in names}
    priority = None
    if priority_N is not None:
        priority = dict(zip(questions, map(float, priority_N), strict=True))
    cost = 0
    while isinstance(step := next_round(names, known, questions, share, priority), Round):
        cost += len(step.names) * len(step.samples)
        for name in step.names:
            known[name] |= {q: float(values_LN[int(name), int(q)]) for q in step.samples}
    return step, cost


if __name__ == "__main__":
    main()
