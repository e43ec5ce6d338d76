"""What differs between two sets of records, A and B, condition by condition.

Samples that both have are paired by name, under draws of the same number; where none are the same,
two means are compared. What a difference is worth is in `change`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from noisescope.analyse.change import MEASURES, Change, Measure, Sides, adjusted, make_change
from noisescope.analyse.table import Block, Table
from noisescope.analyse.verdict import LEAST_SAMPLES
from noisescope.records import CLEAN, Record


def contrast_records(
    first: Sequence[Record],
    second: Sequence[Record],
    conditions: Sequence[str],
    same_samples: Sequence[str],
    *,
    same_questions: Mapping[str, bool] | None = None,
    asked: Sequence[str] | None = None,
) -> tuple[Change, ...]:
    """Compares the records of two studies.

    Draws are matched by their number. Where the noise is not the same in both, draws of one number
    have nothing in common, and the interval is as wide as that makes it.

    Args:
        first: Records of A, complete or not.
        second: Records of B.
        conditions: Names of the noisy conditions to be compared.
        same_samples: Names of the samples that are the same in both.
        same_questions: Whether a condition, or `clean`, asks the same of the same weights in both.
        asked: The conditions that the user asked for; None: all.

    Returns:
        Per condition KL, accuracy and NLL, as far as both have them; the clean models first. NLL
        of texts alone: along answers of their own, two models tell nothing of each other.
    """
    tables = Table(first), Table(second)
    paired = paired_samples(first, second, same_samples)
    are_texts = not any(r.is_right is not None or r.answer_ids for r in (*first, *second))
    same_questions = same_questions or {}
    measured = {r.condition for r in first} & {r.condition for r in second}
    found: list[Change] = []
    for name in (name for name in (CLEAN, *conditions) if name in measured):
        for measure in MEASURES:
            if (measure == "kl" and name == CLEAN) or (measure == "nll" and not are_texts):
                continue
            sides = _sides(tables, name, measure, paired)
            if sides is None or not _has_any(sides):
                continue
            change = make_change(name, measure, sides, is_same=same_questions.get(name, False))
            is_asked = name == CLEAN or asked is None or name in asked
            found.append(replace(change, is_asked=is_asked))
    return adjusted(found)


def paired_samples(
    first: Sequence[Record], second: Sequence[Record], same: Sequence[str]
) -> tuple[str, ...]:
    """Returns the samples to pair; none where they are too few of those there are."""
    measured = [{r.sample for r in records} for records in (first, second)]
    found = tuple(name for name in same if name in measured[0] & measured[1])
    is_enough = len(found) >= LEAST_SAMPLES or len(found) == min(map(len, measured))
    return found if is_enough else ()


def _sides(
    tables: tuple[Table, Table], name: str, measure: Measure, paired: Sequence[str]
) -> Sides | None:
    """Returns the values of a condition; None where the two have no draw in common."""
    field = {"kl": "kl_nats", "accuracy": "is_right", "nll": "nll_nats"}[measure]
    blocks = [table.block(name) for table in tables]
    common = blocks[0].common(blocks[1])
    if paired:
        kept = frozenset(paired)
        blocks = [replace(common, samples=tuple(s for s in common.samples if s in kept))] * 2
    else:
        blocks = [replace(block, draws=common.draws) for block in blocks]
    if measure == "kl":
        scored = [_scored(t, block) for t, block in zip(tables, blocks, strict=True)]
        scored = [scored[0] & scored[1]] * 2 if paired else scored
        blocks = [
            replace(block, samples=tuple(s for s in block.samples if s in kept))
            for block, kept in zip(blocks, scored, strict=True)
        ]
    if not all(map(len, blocks)):
        return None
    samples = blocks[0].samples if paired else ()
    a, b = (t.values(name, field, block) for t, block in zip(tables, blocks, strict=True))
    groups = [t.groups(block.samples) for t, block in zip(tables, blocks, strict=True)]
    return Sides(a, b, groups[0], groups[0] if paired else groups[1], samples)


def _scored(table: Table, block: Block) -> frozenset[str]:
    """Returns the samples that the clean model itself can be scored on; else there is no KL."""
    finite = np.isfinite(table.clean_values("kl_nats", block.samples))
    return frozenset(s for s, is_finite in zip(block.samples, finite, strict=True) if is_finite)


def _has_any(sides: Sides) -> bool:
    return bool(np.isfinite(sides.first_KN).any() and np.isfinite(sides.second_KN).any())
