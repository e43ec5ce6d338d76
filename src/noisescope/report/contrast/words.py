"""What a comparison says in sentences: what changed beyond chance, and what a gate makes of it.

The terminal and the page say the same, so both take it from here.
"""

import math
from collections.abc import Sequence

from noisescope.analyse import Interval
from noisescope.analyse.change import FELL, OPEN, ROSE, SAME, Change
from noisescope.analyse.gate import EXCLUDED, INCONCLUSIVE, SHOWN, Ruling, exit_status
from noisescope.records import CLEAN
from noisescope.report.figures import counted, number_text, percent
from noisescope.study.contrast import MODELS, Contrast

WORDS = {ROSE: "up", FELL: "down", SAME: "=", OPEN: "?"}
NAMES = {"kl": "KL", "accuracy": "accuracy", "nll": "NLL"}
BETWEEN = "KL(A || B)"
_MOST_NAMED = 3
_LEAST_P = 1e-12
_STATUS_WORDS = {SHOWN: "shown", EXCLUDED: "excluded", INCONCLUSIVE: "inconclusive"}


def signed_text(interval: Interval) -> str:
    """Writes a difference with its 95 % interval, e.g. `+0.022 [-0.0053, 0.038]`."""
    mean = f"{interval.mean:+.2g}" if interval.mean else "0"
    if not math.isfinite(interval.mean):
        return "n/a"
    if not interval.is_known:
        return mean if interval.mean == 0 else f"{mean} [too few data]"
    return f"{mean} [{interval.low:.2g}, {interval.high:.2g}]"


def signed_points(interval: Interval) -> str:
    """Writes a difference of shares in points, e.g. `-2.0 [-5.1, 1.0]`."""
    if not math.isfinite(interval.mean):
        return "n/a"
    mean = f"{100 * interval.mean:+.1f}" if interval.mean else "0.0"
    if not interval.is_known:
        return f"{mean} [too few data]"
    return f"{mean} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def difference_text(change: Change) -> str:
    """Writes B minus A in the measure's unit."""
    if change.is_same:
        return "0"
    if change.measure == "accuracy":
        return signed_points(change.difference)
    return signed_text(change.difference)


def level_text(change: Change, value: float) -> str:
    """Writes a mean of one side in the measure's unit."""
    return percent(value) if change.measure == "accuracy" else number_text(value)


def with_unit(change: Change) -> str:
    """Writes B minus A with its unit."""
    unit = "points" if change.measure == "accuracy" else "nats per token"
    return f"{difference_text(change)} {unit}"


def headline(contrast: Contrast) -> str:
    """Says what is compared with what."""
    a, b = (_party(contrast, letter) for letter in "AB")
    return f"A {a}\nB {b}"


def _party(contrast: Contrast, letter: str) -> str:
    party = contrast.first if letter == "A" else contrast.second
    about = party.about
    where = ", ".join(str(about[k]) for k in ("dtype", "device") if about.get(k))
    where = f" ({where})" if where else ""
    if contrast.kind == MODELS:
        return f"{party.path}{where}; {counted(about['samples'], 'sample')} of {about['data']}"
    noise = ""
    if about.get("error model"):
        scale = about.get("noise scale")
        noise = f", {about['error model']}" + (f" {scale:g}" if scale is not None else "")
    return (
        f"{party.path}: {about['study']} of {about['model']}{where}{noise}; "
        f"{counted(about['samples'], 'sample')}, {counted(about['draws'], 'draw')}, seed "
        f"{about['seed']}"
    )


def statements(contrast: Contrast) -> list[str]:
    """Returns what changed from A to B, beyond chance or not, one statement each."""
    told = []
    if contrast.kind == MODELS:
        told += [_model_line(contrast, change) for change in contrast.changes]
        told += _flips(contrast)
    else:
        told += [_clean_line(c) for c in contrast.changes if c.condition == CLEAN]
        for measure in ("kl", "accuracy", "nll"):
            noisy = [c for c in contrast.of(measure) if c.condition != CLEAN]
            told += _family_lines(NAMES[measure], noisy)
    return told


def _model_line(contrast: Contrast, change: Change) -> str:
    if change.is_same:
        same = {
            "kl": f"{BETWEEN} is 0",
            "accuracy": f"accuracy is {percent(change.first)} in both",
            "nll": f"NLL is {number_text(change.first)} in both",
        }[change.measure]
        return f"{same[0].upper()}{same[1:]}: the weights are identical, and nothing was to be run."
    if change.measure == "kl":
        top = contrast.agreement.get("top1", math.nan)
        agree = f"; the most likely token is the same in {percent(top)}" if top == top else ""
        what = f"{BETWEEN} is {with_unit(change).removeprefix('+')}{_overflowed(change)}{agree}."
        return what
    return (
        f"{NAMES[change.measure][0].upper()}{NAMES[change.measure][1:]} is "
        f"{level_text(change, change.first)} in A and {level_text(change, change.second)} in B: "
        f"{with_unit(change)}, {_beyond(change)}."
    )


def _overflowed(change: Change) -> str:
    lost = change.overflows
    return f" over what is finite, and not finite in {counted(lost, 'sample')}" if lost else ""


def _beyond(change: Change) -> str:
    if change.difference.mean == 0:
        return "no difference is seen"
    if change.outcome == OPEN:
        return "which chance may explain" if change.p == change.p else "of too few data to tell"
    return f"beyond chance ({p_text(change.p)})"


def _flips(contrast: Contrast) -> list[str]:
    found = []
    for change in contrast.of("accuracy"):
        if change.flips is None or change.is_same:
            continue
        samples = change.samples[0]
        lost, won = (round(share * samples) for share in change.flips)
        same = contrast.agreement.get("answers", math.nan)
        text = f"; the texts of {percent(same)} of the answers are the same" if same == same else ""
        found.append(
            f"Of {counted(samples, 'answer')} {lost} {_be(lost)} wrong in B alone, and {won} "
            f"{_be(won)} right in B alone{text}."
        )
    return found


def _be(count: int) -> str:
    return "is" if count == 1 else "are"


def _clean_line(change: Change) -> str:
    what = f"Without noise {NAMES[change.measure]} is"
    if change.is_same:
        return f"{what} {level_text(change, change.first)} in both: the model is the same."
    return (
        f"{what} {level_text(change, change.first)} in A and {level_text(change, change.second)} "
        f"in B: {with_unit(change)}, {_beyond(change)}."
    )


def _family_lines(name: str, changes: Sequence[Change]) -> list[str]:
    """Says in how many conditions a measure rose and fell, and where most."""
    if not changes:
        return []
    by = {word: [c for c in changes if c.outcome == word] for word in (ROSE, FELL, SAME, OPEN)}
    parts = []
    for word, verb in ((ROSE, "rises"), (FELL, "falls")):
        if by[word]:
            most = max(by[word], key=lambda c: (c.overflows, abs(c.difference.mean)))
            parts.append(
                f"{verb} beyond chance in {_some(by[word], len(changes))}, most in "
                f"{most.condition}: {with_unit(most)}{_overflowed(most)}"
            )
    if by[SAME]:
        parts.append(f"is the same in {_some(by[SAME], len(changes))}")
    if by[OPEN]:
        parts.append(f"is open in {_some(by[OPEN], len(changes))}")
    return [f"Under noise {name} {'; it '.join(parts)}."]


def _some(changes: Sequence[Change], total: int) -> str:
    names = [change.condition for change in changes]
    if len(names) == total:
        return names[0] if total == 1 else f"all {total} conditions"
    return f"{len(names)} of {total} conditions" if len(names) > _MOST_NAMED else ", ".join(names)


def ruling_text(ruling: Ruling, kind: str) -> str:
    """Says what the data say of a gate, with what would settle it.

    Args:
        ruling: The ruling.
        kind: `models` or `studies`.
    """
    outcome = _STATUS_WORDS[ruling.outcome]
    told = f"Gate {ruling.gate.text} is {outcome} (exit {exit_status([ruling])})"
    change = ruling.change
    if change is None:
        return f"{told}."
    where = _where(ruling)
    what = BETWEEN if change.measure == "kl" and kind == MODELS else NAMES[change.measure]
    bound = _bound_text(ruling)
    if change.is_same:
        noise = " under the same noise" if change.condition not in ("", CLEAN) else ""
        return f"{told}: the weights are identical, so {what}{noise} is the same."
    verb = "is" if what == BETWEEN else "changes by"
    moved = with_unit(change)
    moved = moved.removeprefix("+") if what == BETWEEN else moved
    samples = counted(min(change.samples), "sample")
    if change.overflows:
        moved = f"not finite in {change.overflows} of {samples}"
        verb = "is"
    if ruling.outcome == SHOWN:
        by_chance = f"{p_text(ruling.p)}, {samples}" if ruling.p else samples
        return f"{told}: {what}{where} {verb} {moved}, beyond {bound} ({by_chance})."
    if ruling.outcome == EXCLUDED:
        return (
            f"{told}: {what}{where} {verb} {moved}, within {bound} ({p_text(ruling.p)}, {samples})."
        )
    return f"{told}: {what}{where} {verb} {moved}, {_open_text(ruling, bound)}."


def advice(rulings: Sequence[Ruling]) -> str:
    """Says what follows from the gates."""
    if not rulings:
        return "No bound was given: --fail-if 'kl>0.02' judges B by one."
    by = {word: [r for r in rulings if r.outcome == word] for word in _STATUS_WORDS}
    if by[SHOWN]:
        return f"Do not take B as it is: {', '.join(r.gate.text for r in by[SHOWN])} is shown."
    if not by[INCONCLUSIVE]:
        return "B may be taken, as far as these bounds go: each of them is excluded."
    needed = [r.needed_samples for r in by[INCONCLUSIVE] if r.needed_samples]
    enough = f": about {max(needed):,} samples would settle it" if needed else ""
    return f"Measure more before B is taken{enough}."


def p_text(p: float) -> str:
    """Writes a p value, e.g. `p = 0.012`; what is smaller than any that can be told, as such."""
    return f"p = {p:.2g}" if p >= _LEAST_P else f"p < {_LEAST_P:g}"


def _where(ruling: Ruling) -> str:
    """Says in which condition, and in how many others."""
    if not ruling.condition:
        return ""
    where = " without noise" if ruling.condition == CLEAN else f" in {ruling.condition}"
    others = len(ruling.conditions) - 1
    if not others:
        return where
    if ruling.outcome == EXCLUDED:
        return f"{where}, the nearest of {others + 1} conditions,"
    return f"{where} (and {others} more)"


def _bound_text(ruling: Ruling) -> str:
    bound = ruling.gate.bound
    if ruling.gate.measure == "accuracy":
        return f"-{100 * bound:g} point{'' if bound == 0.01 else 's'}"
    return f"{bound:g}"


def _open_text(ruling: Ruling, bound: str) -> str:
    """Says why a gate is open and what would settle it."""
    if ruling.reason:
        return f"but {ruling.reason}"
    told = f"not to be told from {bound}"
    if ruling.needed_samples is not None:
        return f"{told}; about {ruling.needed_samples:,} samples would settle it if that holds"
    if ruling.needed_draws is not None:
        return f"{told}; about {ruling.needed_draws:,} draws would settle it if that holds"
    return f"{told}; no number of samples in sight would settle it"


def verdict_line(rulings: Sequence[Ruling], kind: str) -> str:
    """Says what all gates together say: the last line of the command."""
    if len(rulings) == 1:
        return ruling_text(rulings[0], kind)
    counts = {word: [r.gate.text for r in rulings if r.outcome == word] for word in _STATUS_WORDS}
    parts = [f"{', '.join(texts)} {word}" for word, texts in counts.items() if texts]
    settle = [r.needed_samples for r in rulings if r.outcome == INCONCLUSIVE and r.needed_samples]
    more = f"; about {max(settle):,} samples would settle what is open" if settle else ""
    return f"Gates: {'; '.join(parts)} (exit {exit_status(rulings)}){more}."
