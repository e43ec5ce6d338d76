"""The verdict of a whole diagnosis: a paragraph that a person can act on.

Claims come first, each with its number and its doubt; then what to do, which goes by what was
measured and never by the prediction alone.
"""

import math

from noisescope.analyse import Interval
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
    if summary is None or not diagnosis.config["noise_scale"]:
        return []
    if summary.kl_verdict is not None and summary.kl_verdict.outcome == "harmless":
        margin = f"{diagnosis.margins.kl_nats:g} nats per token"
        return [
            f"What to do: nothing; the loss lies within the margin of {margin}.",
            *_open(diagnosis),
        ]
    return [_protect(diagnosis), *_lower(diagnosis), *_open(diagnosis)]


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


def _lower(diagnosis: Diagnosis) -> list[str]:
    """Says how far the noise must be lowered, by scales that were measured."""
    told, response = [], claims.whole_response(diagnosis)
    critical, target = diagnosis.findings.critical, diagnosis.findings.target
    if critical is not None and target is not None and critical.low > 0:
        told.append(f"Stay at or below {critical.low:g} to stay below {target}.")
    if response is None:
        return told
    margin = diagnosis.margins.kl_nats
    harmless = [s for s in response.scales if s.measured.is_known and s.measured.high <= margin]
    if harmless:
        best = max(harmless, key=lambda s: s.scale)
        told.append(
            f"Lowering the noise to {best.scale:g} everywhere brings the loss within the margin of "
            f"{margin:g}: {estimate_text(best.measured)} nats per token as measured."
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
    if draws == 1:
        told.append(
            f"One draw speaks of this realisation alone: --draws {_FEW_DRAWS} of noise in general."
        )
    elif draws < _FEW_DRAWS:
        told.append(f"{draws} draws hardly tell how draws differ: --draws {_ENOUGH_DRAWS} does.")
    return told
