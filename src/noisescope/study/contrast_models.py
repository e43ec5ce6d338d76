"""Holds two models against each other on the same samples: KL(A || B), answers, and loss.

Nothing is kept between runs: a comparison takes a few passes over each model.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from noisescope.analyse.change import Change, Measure, Sides, adjusted, make_change
from noisescope.measure import Progress, Record
from noisescope.measure.pair import Pair, measure_pair
from noisescope.measure.steps import end_tokens
from noisescope.models import LoadedModel
from noisescope.study.contrast import (
    MODELS,
    Contrast,
    Party,
    differences,
    same_model,
    weights_notes,
)
from noisescope.study.identity import fingerprints_of
from noisescope.tasks import PLAIN_PROMPT_NOTE, Task, uses_plain_prompt
from noisescope.versions import versions


def contrast_models(
    first: LoadedModel,
    second: LoadedModel,
    task: Task,
    *,
    batch_size: int | None = None,
    memory_gib: float | None = None,
    progress: Progress | None = None,
) -> Contrast:
    """Measures two models and compares them, sample by sample.

    Args:
        first: A, along whose answers KL and NLL are told.
        second: B, with A's vocabulary.
        task: The samples and their scoring.
        batch_size: The most rows that run together; None: by memory.
        memory_gib: Memory to take beside the models; None: half of what is free.
        progress: Told what runs.

    Raises:
        InputError: The two have no common vocabulary or encode a prompt differently, or one of them
            cannot be measured.
    """
    fingerprints = [fingerprints_of(x, task) for x in (first, second)]
    is_same = same_model(*fingerprints)
    pair = measure_pair(
        first,
        second,
        task,
        is_same=is_same,
        batch_size=batch_size,
        memory_gib=memory_gib,
        progress=progress,
    )
    about = [_about(x, task) for x in (first, second)]
    parties = [
        Party(str(x.path), entry, prints, versions())
        for x, entry, prints in zip((first, second), about, fingerprints, strict=True)
    ]
    return Contrast(
        kind=MODELS,
        first=parties[0],
        second=parties[1],
        changes=changes_of(pair, is_same),
        differing=tuple(
            differences(*({k: v for k, v in x.items() if k != "model"} for x in about))
        ),
        notes=tuple(dict.fromkeys(_notes(first, second, task, pair, fingerprints))),
        agreement=_agreement(pair),
    )


def changes_of(pair: Pair, is_same: bool = False) -> tuple[Change, ...]:
    """Returns what changed from A to B by each measure; KL is that of A to B, and A's own is 0.

    Args:
        pair: The records of both, in the same order.
        is_same: Whether weights and configuration are the same.
    """
    found = []
    fields: tuple[tuple[Measure, str], ...] = (
        ("kl", "kl_nats"),
        ("accuracy", "is_right"),
        ("nll", "nll_nats"),
    )
    for measure, field in fields:
        kept = [
            (a, b) for a, b in zip(pair.first, pair.second, strict=True) if _is_known(a, measure)
        ]
        if not kept:
            continue
        a_N, b_N = (_values([records[n] for records in kept], field) for n in (0, 1))
        first_1N = np.zeros_like(b_N)[None] if measure == "kl" else a_N[None]
        groups = [a.group if a.group is not None else (a.sample,) for a, _ in kept]
        sides = Sides(first_1N, b_N[None], groups, groups, tuple(a.sample for a, _ in kept))
        found.append(make_change("", measure, sides, is_same=is_same))
    return adjusted(found)


def _is_known(record: Record, measure: Measure) -> bool:
    """Tells whether A can be held against anything on a sample."""
    if measure == "accuracy":
        return record.is_right is not None
    return record.tokens > 0 and math.isfinite(record.nll_nats)


def _values(records: Sequence[Record], field: str) -> NDArray[np.float64]:
    values = np.array([getattr(r, field) for r in records], dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _agreement(pair: Pair) -> dict[str, float]:
    same = [b.top1_agreement for b in pair.second if math.isfinite(b.top1_agreement)]
    found = {"top1": sum(same) / len(same) if same else math.nan}
    answered = [
        (a, b) for a, b in zip(pair.first, pair.second, strict=True) if a.answer is not None
    ]
    if answered:
        found["answers"] = sum(a.answer == b.answer for a, b in answered) / len(answered)
    return found


def _about(loaded: LoadedModel, task: Task) -> dict[str, object]:
    return {
        "model": str(loaded.path),
        "data": task.name,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "samples": len(task.samples),
        "max new tokens": task.max_new_tokens if task.is_generative else None,
        "end tokens": sorted(end_tokens(loaded.model)),
    }


def _notes(
    first: LoadedModel,
    second: LoadedModel,
    task: Task,
    pair: Pair,
    fingerprints: Sequence[dict[str, str]],
) -> Iterator[str]:
    yield from weights_notes(*fingerprints)
    for letter, loaded in zip("AB", (first, second), strict=True):
        yield from (f"{letter}: {note}" for note in loaded.notes)
    yield from task.notes
    if uses_plain_prompt(task, first.tokenizer):
        yield PLAIN_PROMPT_NOTE
    if end_tokens(first.model) != end_tokens(second.model):
        yield "the end tokens differ, so answers may end elsewhere for that alone"
    lost = sum(b.tokens > 0 and not math.isfinite(b.kl_nats) for b in pair.second)
    if lost:
        yield (
            f"the KL of {lost} of {len(pair.second)} samples is not finite: logits overflow, or B "
            "rules out what A expects"
        )
    yield from pair.notes
