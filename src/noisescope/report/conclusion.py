"""The verdict of a whole diagnosis: a paragraph that a person can act on.

Claims come first, each with its number and its doubt; then what to do, which goes by what was
measured and never by the prediction alone.
"""

import math

from noisescope.analyse import Interval, Summary, Verdict
from noisescope.report import claims
from noisescope.report.figures import estimate_text, share_text
from noisescope.study import Diagnosis

_WORTH = 0.1  # share of the loss that keeping sites exact must bring back to be advised
_FEW_DRAWS, _ENOUGH_DRAWS = 4, 10
_CLAIMS = (
    claims.cost,
    claims.blamed,
    claims.needed,
    claims.worst,
    claims.channels,
    claims.avalanche,
    claims.held,
)


def verdict(diagnosis: Diagnosis) -> str:
    """Returns the paragraph."""
    return " ".join(sentences(diagnosis))


def topics(diagnosis: Diagnosis) -> list[str]:
    """Returns the same, the sentences on one thing together."""
    told = [" ".join(claim(diagnosis)) for claim in (*_CLAIMS, advice)]
    return [topic for topic in told if topic]


def sentences(diagnosis: Diagnosis) -> tuple[str, ...]:
    """Returns what the diagnosis says, claim by claim, and what to do about it."""
    told = [sentence for claim in _CLAIMS for sentence in claim(diagnosis)]
    return (*told, *advice(diagnosis))


def advice(diagnosis: Diagnosis) -> list[str]:
    """Returns what to do: what to keep exact, how far to lower the noise, what is still open."""
    summary = claims.whole_summary(diagnosis)
    if summary is None or diagnosis.config["noise_scale"] == 0:
        return []
    if not math.isfinite(summary.kl_nats.mean):
        return ["What to do: use --dtype float32 or bfloat16, or less noise; nothing is known."]
    by_kl, by_accuracy = summary.kl_verdict, summary.accuracy_verdict
    if by_kl is not None and by_kl.outcome == "harmless" and not _is(by_accuracy, "harmful"):
        told = f"the loss lies within the margin of {diagnosis.margins.kl_nats:g} nats per token"
        if _has_accuracy(summary) and _is(by_accuracy, "harmless"):
            told += f" and of {100 * diagnosis.margins.accuracy:g} points of accuracy"
        elif _has_accuracy(summary):
            told += ", and whether accuracy falls is open"
        return [f"What to do: nothing; {told}.", *_open(diagnosis)]
    doubt = []
    if not _is(by_kl, "harmful") and not _is(by_accuracy, "harmful"):
        doubt = ["Whether noise everywhere harms at all is open: settle that first."]
    return [
        _protect(diagnosis),
        *_lower(diagnosis),
        *_formats(diagnosis),
        *doubt,
        *_open(diagnosis),
    ]


def _is(verdict: Verdict | None, outcome: str) -> bool:
    return verdict is not None and verdict.outcome == outcome


def _has_accuracy(summary: Summary) -> bool:
    return math.isfinite(summary.accuracy_drop.mean)


def _protect(diagnosis: Diagnosis) -> str:
    found, remedy = diagnosis.findings.blame, diagnosis.findings.remedy
    named = claims.remedied_sites(diagnosis) or (found.sites if found is not None else ())
    if not named:
        return "What to do: there is no single site to protect."
    sites = claims.some(named)
    if remedy is None or not math.isfinite(remedy.without.mean):
        return f"What to do: measure what keeping {sites} exact brings back; it was not measured."
    back = remedy.brought_back
    if is_worth(back):
        return f"What to do: keep {sites} exact, which brings back {share_text(back)} of the loss."
    if back.is_known and back.high < _WORTH:
        return (
            f"What to do: there is no single site to protect; keeping {sites} exact brings back no "
            f"more than {share_text(back)} of the loss."
        )
    return (
        f"What to do: whether keeping {sites} exact helps is open ({share_text(back)} of the loss "
        "comes back); use more samples or draws."
    )


def is_worth(back: Interval) -> bool:
    """Tells whether sites are worth keeping exact: beyond chance, and by a tenth of the loss."""
    return back.is_known and back.low > 0 and back.mean >= _WORTH


def _formats(diagnosis: Diagnosis) -> list[str]:
    """Says how to find which weights need a finer format, where a format is what was measured."""
    if diagnosis.config["error_model"] != "RoundTo":
        return []
    return ["Which weights need a finer format, noisescope recommend tells of this study."]


def _lower(diagnosis: Diagnosis) -> list[str]:
    """Says how far the noise must be lowered, by scales that were measured."""
    told, response = [], claims.whole_response(diagnosis)
    critical, target = diagnosis.findings.critical, diagnosis.findings.target
    if critical is not None and target is not None and critical.low > 0:
        told.append(f"Stay at or below {critical.low:g} to stay below {target}.")
    if response is None:
        return told
    margin, own = diagnosis.margins.kl_nats, diagnosis.config["noise_scale"]
    harmless = {
        scale: summary
        for scale, summary in claims.whole_by_scale(diagnosis).items()
        if summary.kl_verdict is not None and summary.kl_verdict.outcome == "harmless"
    }
    lower = [scale for scale in harmless if own is not None and scale < own]
    if lower:
        best = max(lower)
        told.append(
            f"Lowering the noise to {best:g} everywhere brings the loss within the margin of "
            f"{margin:g}: {estimate_text(harmless[best].kl_nats)} nats per token as measured."
        )
    else:
        told.append(
            f"No scale that was measured, down to {response.scales[0].scale:g}, brings the loss "
            f"within the margin of {margin:g} nats per token beyond doubt."
        )
    return told


def _open(diagnosis: Diagnosis) -> list[str]:
    """Says what would settle what is open."""
    told, draws = [], diagnosis.plan.draws
    open_ = [
        (s.condition, s.kl_verdict)
        for s in diagnosis.summaries
        if s.kl_verdict is not None and s.kl_verdict.outcome == "inconclusive"
    ]
    samples = [v.needed_samples for _, v in open_ if v.needed_samples]
    needs_draws = [v.needed_draws for _, v in open_ if v.needed_draws]
    if open_:
        names = claims.some([name for name, _ in open_])
        ways = [f"{max(samples):,} samples"] if samples else []
        ways += [f"{max(needs_draws):,} draws"] if needs_draws else []
        settle = f"; about {' and '.join(ways)} would settle it" if ways else ""
        told.append(f"Open by KL: whether {names} harm{'s' if len(open_) == 1 else ''}{settle}.")
    if not diagnosis.is_random:
        return told
    if draws == 1:
        told.append(
            f"One draw speaks of this realisation of the noise alone: give --draws {_FEW_DRAWS} "
            "or more."
        )
    elif draws < _FEW_DRAWS:
        told.append(f"{draws} draws hardly tell how draws differ: give {_ENOUGH_DRAWS}.")
    return told
