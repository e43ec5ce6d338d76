"""The values of a task's metrics, clean and noisy on the same samples; what they say is in paired.

Right or wrong answers are shares; log-likelihoods become nats lost per word, byte or sample, and
of multiple choice there is the KL between the choices. Metrics of a whole corpus have no pairs.
What a metric is, all runs of its task decide together: one condition cannot leave a bound that way.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from noisescope.analyse.change import Sides
from noisescope.analyse.verdict import Losses
from noisescope.errors import InputError
from noisescope.harness.answers import Answer, Number, Run

SHARE, NATS, NUMBER, CORPUS = "share", "nats", "number", "corpus"
CHOICE_KL = "choice_kl"
# What the harness makes of a log-likelihood; of pairs, it is divided by the second number.
OF_LIKELIHOODS = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
# Of this metric the harness asks for the choices without their question besides, behind the others.
_UNCONDITIONAL = "acc_mutual_info"

Values = NDArray[np.float64]
_Found = dict[str, dict[tuple[int, str], Answer]]


@dataclass(frozen=True)
class Pairs:
    """Values of one metric: of the clean model and of every draw, on the same samples.

    Under noise, what is no number is NaN; `asked` counts the samples that lack the metric, too.
    """

    kind: str
    clean_N: Values
    noisy_KN: Values
    sources: tuple[str, ...]
    is_higher_better: bool | None
    asked: int

    @property
    def lost(self) -> int:
        """Samples on which the clean model has a number and some draw has none that is finite."""
        known = np.isfinite(self.clean_N)
        return int((known & ~np.isfinite(self.noisy_KN).all(axis=0)).sum())

    def at_best(self) -> "Pairs":
        """Returns the shares with the better answer in the place of every one that is lost.

        What harms even so, harms whatever the lost ones would have been.
        """
        best = 1.0 if self.is_higher_better else 0.0
        return replace(self, noisy_KN=np.where(np.isfinite(self.noisy_KN), self.noisy_KN, best))

    @property
    def differences_KN(self) -> Values:
        """Noisy less clean."""
        found: Values = self.noisy_KN - self.clean_N
        return found

    @property
    def sides(self) -> Sides:
        """The values as two models' would be compared."""
        first = np.broadcast_to(self.clean_N, self.noisy_KN.shape)
        names = tuple(map(str, range(len(self.clean_N))))
        return Sides(first, self.noisy_KN, self.sources, self.sources, names)

    @property
    def losses(self) -> Losses:
        """What is lost; samples on which the clean model has no number are left out."""
        known = np.isfinite(self.clean_N)
        sign = -1.0 if self.is_higher_better else 1.0
        sources = [s for s, is_known in zip(self.sources, known, strict=True) if is_known]
        return Losses(sign * self.differences_KN[:, known], sources)


@dataclass(frozen=True)
class Figures:
    """What the harness tells of a whole corpus: of the clean model, and the mean over draws."""

    clean: float
    noisy: float
    draws: int


def kinds_of(runs: Sequence[Run]) -> dict[tuple[str, str], str]:
    """Returns what each metric of a task is, by metric and filter, in the order they come.

    Args:
        runs: All of the task: the clean one, and those of every condition and draw. What is not
            finite decides nothing.
    """
    seen: dict[tuple[str, str], str] = {}
    for answer in (answer for run in runs for answer in run.answers):
        for metric, cell in answer.metrics.items():
            key = metric, answer.filter
            before = seen.setdefault(key, CORPUS)
            value = _value(cell, metric in OF_LIKELIHOODS)
            if value is None or before in (NATS, NUMBER):
                continue
            if metric in OF_LIKELIHOODS:
                seen[key] = NATS
            elif math.isfinite(value):
                seen[key] = SHARE if value in (0.0, 1.0) else NUMBER
    return seen


def pairs_of(
    clean: Run, noisy: Sequence[Run], kinds: Mapping[tuple[str, str], str]
) -> dict[tuple[str, str], Pairs | Figures]:
    """Returns, by metric and filter, the paired values; of a corpus metric, both figures.

    Args:
        clean: The clean run.
        noisy: The runs of one condition.
        kinds: What each metric is, from `kinds_of`.

    Raises:
        InputError: A noisy run did not ask what the clean one asked.
    """
    asked = clean.by_filter()
    answered = [run.by_filter() for run in noisy]
    found: dict[tuple[str, str], Pairs | Figures] = {}
    for name, answers in asked.items():
        for other in answered:
            _check_same(clean.task, answers, other.get(name, {}))
        for metric, kind in ((m, kind) for (m, where), kind in kinds.items() if where == name):
            pairs = _paired(clean, metric, kind, answers, [other[name] for other in answered])
            found[metric, name] = pairs or _figures(clean, noisy, f"{metric},{name}")
        choices = _choices(clean, name, answers, answered)
        if choices is not None:
            found[CHOICE_KL, name] = choices
    return found


def _figures(clean: Run, noisy: Sequence[Run], key: str) -> Figures:
    each = [run.aggregates.get(key, math.nan) for run in noisy]
    return Figures(clean.aggregates.get(key, math.nan), float(np.mean(each)), len(noisy))


def _check_same(
    task: str, clean: Mapping[tuple[int, str], Answer], noisy: Mapping[tuple[int, str], Answer]
) -> None:
    asked = {key: answer.prompt_hash for key, answer in clean.items()}
    if asked != {key: answer.prompt_hash for key, answer in noisy.items()}:
        raise InputError(
            f"task {task!r} did not ask the noisy model what it asked the clean one: its data or "
            "its prompts changed in between; name a new directory with --out"
        )


def _paired(
    clean: Run,
    metric: str,
    kind: str,
    answers: Mapping[tuple[int, str], Answer],
    noisy: Sequence[Mapping[tuple[int, str], Answer]],
) -> Pairs | None:
    """Returns the pairs of a metric, on the samples where the clean model has it.

    None where none of its values is a number.
    """
    is_nats = metric in OF_LIKELIHOODS

    def value(row: Mapping[tuple[int, str], Answer], key: tuple[int, str]) -> float | None:
        return _value(row[key].metrics.get(metric), is_nats)

    keys = [key for key in answers if value(answers, key) is not None]
    if kind == CORPUS or not keys:
        return None
    rows = [[value(row, key) for key in keys] for row in (answers, *noisy)]
    values = np.array(rows, dtype=np.float64)  # None becomes NaN
    is_better = False if is_nats else clean.higher_is_better.get(metric)
    sources = tuple(key[1] for key in keys)
    return Pairs(kind, values[0], values[1:], sources, is_better, len(answers))


def _value(cell: Number, is_nats: bool) -> float | None:
    """Returns the number of a sample; of log-likelihoods the nats lost per word, byte or sample."""
    if not is_nats:
        return cell if isinstance(cell, float) else None
    if isinstance(cell, tuple):
        return -cell[0] / cell[1] if cell[1] else math.nan
    return None if cell is None else -cell


def _choices(
    clean: Run, name: str, answers: Mapping[tuple[int, str], Answer], noisy: list[_Found]
) -> Pairs | None:
    """Returns the KL between the choices of the clean and the noisy model, question by question."""
    if clean.output_type != "multiple_choice":
        return None
    has_more = _UNCONDITIONAL in clean.higher_is_better

    def choices(answer: Answer) -> object:
        response = answer.response
        has_twice = isinstance(response, list) and len(response) % 2 == 0
        if has_twice and (has_more or _UNCONDITIONAL in answer.metrics):
            return response[: len(response) // 2]
        return response

    found = []
    for row in noisy:
        pairs = [(choices(answers[key]), choices(row[name][key])) for key in answers]
        found.append([choice_kl(a, b) for a, b in pairs])
    values = np.array(found)
    if np.isnan(values).all():
        return None
    zero = np.where(np.isnan(values).any(axis=0), np.nan, 0.0)
    return Pairs(NATS, zero, values, tuple(key[1] for key in answers), False, len(answers))


def choice_kl(clean: object, noisy: object) -> float:
    """Returns KL(clean || noisy) in nats between the probabilities of a question's choices.

    The probabilities are the softmax of the log-likelihoods, as the harness chooses by them: lower
    is better, 0 for identical values; NaN where they are no log-likelihoods, or of the clean model
    not finite, infinite where they are not finite under noise.

    Args:
        clean: A log-likelihood, with whether it was greedy, per choice.
        noisy: The same under noise.

    Source: sum p (log p - log q).
    """
    sides = []
    for side in (clean, noisy):
        if not isinstance(side, (list, tuple)) or not all(
            isinstance(c, (list, tuple)) and len(c) == 2 and isinstance(c[0], float) for c in side
        ):
            return math.nan
        sides.append(np.array([c[0] for c in side], dtype=np.float64))
    p, q = sides
    if p.shape != q.shape or not len(p) or not np.isfinite(p).all():
        return math.nan
    if not np.isfinite(q).all():
        return math.inf
    p, q = p - np.logaddexp.reduce(p), q - np.logaddexp.reduce(q)
    return max(0.0, float((np.exp(p) * (p - q)).sum()))
