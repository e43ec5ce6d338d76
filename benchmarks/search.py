"""The search against the full sweep: how often each names the worst, and at what cost.

    python benchmarks/search.py --studies 2000

Studies are drawn, questions with replacement, from the KL that was measured on the demo model and
on stories260K (tests/data), so gaps, variances and correlations are the measured ones. The harder
cases are 28 layers made of these, and gaps shrunk until the full sweep errs as well.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noisescope.analyse import Round, Winner, next_round

DATA = Path(__file__).parents[1] / "tests" / "data"


@dataclass(frozen=True)
class Case:
    """A population of questions: the loss of each condition at each, mean over draws."""

    name: str
    values_LN: NDArray[np.float64]

    @property
    def worst(self) -> int:
        """The condition whose true loss is largest."""
        return int(self.values_LN.mean(axis=1).argmax())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(
        "hits: how often each names the worst; loss: the true loss of what is named, of the worst's"
    )
    print(
        f"{'case':>30} {'L':>3} {'N':>4} {'full':>6} {'search':>7} {'differ':>7}"
        f" {'full loss':>10} {'search loss':>12} {'evaluations':>12}   in percent"
    )
    for case in [*measured_cases(), *hard_cases()]:
        for samples in (50, 100):
            found = rates(case, samples, arguments.studies, arguments.seed)
            print(f"{case.name:>30} {len(case.values_LN):3} {samples:4} {found}")


def measured_cases() -> list[Case]:
    return [Case(path.stem.removeprefix("kl_"), load(path)) for path in sorted(DATA.glob("kl_*"))]


def load(path: Path) -> NDArray[np.float64]:
    values: NDArray[np.float64] = np.array(json.loads(path.read_text())["kl_LKN"]).mean(axis=1)
    return values


def hard_cases() -> list[Case]:
    """Returns gaps shrunk on each model, and 28 layers of both models with gaps shrunk."""
    found = []
    for case in measured_cases():
        found.append(Case(f"{case.name}, gaps x 0.3", shrink(case.values_LN, 0.3)))
    for case in measured_cases():
        many = resample_layers(case.values_LN, 28)
        found.append(Case(f"{case.name}, 28 layers", many))
        found.append(Case(f"{case.name}, 28, gaps x 0.5", shrink(many, 0.5)))
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
    """What a full sweep and a search reach over the same studies; shares."""

    full_hits: float
    search_hits: float
    full_loss: float
    search_loss: float
    evaluations: float

    def __str__(self) -> str:
        difference = self.search_hits - self.full_hits
        return (
            f"{100 * self.full_hits:6.1f} {100 * self.search_hits:7.1f} {100 * difference:+7.1f}"
            f" {100 * self.full_loss:10.1f} {100 * self.search_loss:12.1f}"
            f" {100 * self.evaluations:12.1f}"
        )


def rates(case: Case, samples: int, studies: int, seed: int) -> Rates:
    """Simulates so many studies, and lets both name the worst in each."""
    rng = np.random.default_rng(seed)
    true = case.values_LN.mean(axis=1) / case.values_LN.mean(axis=1).max()
    found = []
    for _ in range(studies):
        values = case.values_LN[:, rng.integers(0, case.values_LN.shape[1], samples)]
        full = int(values.mean(axis=1).argmax())
        winner, cost = run_search(values)
        search = int(winner.name)
        hits = (full == case.worst, search == case.worst)
        found.append((*hits, true[full], true[search], cost / values.size))
    return Rates(*np.mean(found, axis=0).tolist())


def run_search(values_LN: NDArray[np.float64], share: float = 0.4) -> tuple[Winner, int]:
    """Returns whom the search names, and how many evaluations it asked for."""
    layers, samples = values_LN.shape
    names, questions = [str(i) for i in range(layers)], [str(i) for i in range(samples)]
    known: dict[str, dict[str, float]] = {name: {} for name in names}
    cost = 0
    while isinstance(step := next_round(names, known, questions, share), Round):
        cost += len(step.names) * len(step.samples)
        for name in step.names:
            known[name] |= {q: float(values_LN[int(name), int(q)]) for q in step.samples}
    return step, cost


if __name__ == "__main__":
    main()
