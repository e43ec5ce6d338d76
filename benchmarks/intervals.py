"""How often 95 % intervals hold the truth, over simulated studies whose truth is known.

    python benchmarks/intervals.py --studies 4000

Draws x questions of four kinds of data: normal; skewed, as an exponential is; lognormal, as KL is;
and differences of right answers, each 1, 0 or -1. The draws differ not at all, a little, or more
than anything else. `plain` is the t interval of two-way random effects with Satterthwaite's degrees
of freedom, `ours` what the program reports; a star marks what lies outside 93 to 97 %.
"""

import argparse
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from noisescope.analyse.intervals import has_few_draws, is_skewed
from noisescope.analyse.moments import moments_of
from noisescope.analyse.shares import share_interval

KINDS = ("normal", "skewed", "lognormal", "answers", "few answers")
SPREADS = {"zero": 0, "small": 1, "dominant": 2}
DRAWS = (1, 2, 3, 5, 10, 20)
QUESTIONS = (20, 50, 100, 200, 500)
# Standard deviation of draws: on the scale of one question's, or of its logarithm.
_DRAW_SD = {"normal": (0, 0.2, 2.0), "skewed": (0, 0.2, 2.0), "lognormal": (0, 0.1, 0.6)}
_DRAW_SD |= {"answers": (0, 0.2, 1.0), "few answers": (0, 0.2, 1.0)}
_LOG_SD = (0.8, 0.5)  # of questions, and of what is left
_RATES = {"answers": (0.3, 0.1), "few answers": (0.05, 0.02)}  # lost and won
_CELLS = 4_000_000  # at a time


@dataclass(frozen=True)
class Coverage:
    """Shares of studies: whose interval holds the truth, plain and ours, and that were warned."""

    plain: float
    ours: float
    cautioned: float
    width: float  # ours to plain, medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("percent of 95 % intervals that hold the truth: plain/ours, * outside 93 to 97 (ours);")
    print("then the percent of studies in which the program warns, and ours to plain in width")
    print(
        f"{'data':>12} {'draws vary':>10} {'K':>3} " + "".join(f"{f'N={n}':>24}" for n in QUESTIONS)
    )
    for kind in KINDS:
        for spread in SPREADS:
            for K in DRAWS if spread == "zero" else DRAWS[1:]:
                cells = [
                    cell(coverage(kind, spread, K, N, arguments.studies, arguments.seed))
                    for N in QUESTIONS
                ]
                print(f"{kind:>12} {spread:>10} {K:3} " + "".join(cells), flush=True)


def cell(found: Coverage) -> str:
    star = " " if 0.93 <= found.ours <= 0.97 else "*"
    told = f"{100 * found.plain:.1f}/{100 * found.ours:.1f}{star}"
    return f"{told:>13} {100 * found.cautioned:4.0f} {found.width:4.1f} "


def coverage(kind: str, spread: str, K: int, N: int, studies: int, seed: int = 0) -> Coverage:
    """Simulates so many studies of one kind, and counts."""
    rng = np.random.default_rng([seed, KINDS.index(kind), SPREADS[spread], K, N])
    parts, done = [], 0
    while done < studies:
        count = min(studies - done, max(1, _CELLS // (K * N)))
        values, truth = simulate(kind, spread, (count, K, N), rng)
        parts.append(judge(kind, values, truth))
        done += count
    plain, ours, cautioned, widths, ours_widths = np.concatenate(parts, axis=1)
    width = float(np.median(ours_widths) / np.median(widths)) if np.median(widths) else np.nan
    return Coverage(float(plain.mean()), float(ours.mean()), float(cautioned.mean()), width)


def simulate(
    kind: str, spread: str, shape: tuple[int, int, int], rng: np.random.Generator
) -> tuple[NDArray[np.float64], float]:
    """Returns studies x draws x questions, and their true mean."""
    R, K, N = shape
    draw_sd = _DRAW_SD[kind][SPREADS[spread]]
    draws = draw_sd * rng.standard_normal((R, K, 1))
    if kind == "skewed":
        return draws + rng.exponential(1, (R, 1, N)) + rng.exponential(1, shape), 2.0
    questions, rest = rng.standard_normal((R, 1, N)), rng.standard_normal(shape)
    if kind == "normal":
        return draws + questions + rest, 0.0
    if kind == "lognormal":
        variance = draw_sd**2 + _LOG_SD[0] ** 2 + _LOG_SD[1] ** 2
        return np.exp(draws + _LOG_SD[0] * questions + _LOG_SD[1] * rest - variance / 2), 1.0
    lost, won = _RATES[kind]
    latent = (draws + np.sqrt(0.7) * questions + np.sqrt(0.3) * rest) / np.sqrt(1 + draw_sd**2)
    values = 1.0 * (latent > stats.norm.isf(lost)) - (latent < stats.norm.ppf(won))
    return values, lost - won


def judge(kind: str, values: NDArray[np.float64], truth: float) -> NDArray[np.float64]:
    """Returns per study: does plain hold, does ours, is there a caution, and both widths."""
    moments = moments_of(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        half = -special.stdtrit(moments.degrees, 0.025) * np.sqrt(moments.variance)
    plain = np.abs(moments.mean - truth) <= half
    if kind in _RATES:
        found = [share_interval(study) for study in values]
        low, high = (np.array([getattr(i, side) for i in found]) for side in ("low", "high"))
        cautioned = np.array([bool(i.caution) for i in found])
    else:
        low, high = moments.bounds(0.025)
        cautioned = has_few_draws(moments) | is_skewed(moments)
    ours = (low <= truth) & (truth <= high)
    return np.array([plain, ours, cautioned, 2 * np.nan_to_num(half), high - low], dtype=float)


if __name__ == "__main__":
    main()
