"""What a diagnosis claims, claim by claim: sentences with their numbers, of a diagnosis alone.

Each function says one thing, and says nothing (an empty list) where it was not looked at. What is
open is said as such; what to do about it all is in conclusion.py.
"""

import math
from collections.abc import Mapping, Sequence

from noisescope.analyse import (
    LARGEST,
    SPREAD,
    STANDS_OUT,
    Departure,
    Interval,
    Response,
    Summary,
    Worst,
    candidates,
)
from noisescope.analyse.predict import TOLERANCE, departs
from noisescope.report.figures import (
    counted,
    estimate_text,
    points_text,
    ratio_text,
    share_text,
    times_text,
)
from noisescope.study import Diagnosis
from noisescope.study.effects import ChannelEffect, Remedy
from noisescope.study.findings import whole_of
from noisescope.study.steps import BLAMED, SITES, base_of

_MOST_NAMED = 3
_RANKS = 0.8


def cost(diagnosis: Diagnosis) -> list[str]:
    """Says what noise everywhere costs."""
    summary = whole_summary(diagnosis)
    if summary is None:
        return ["What noise everywhere costs is not measured yet."]
    told = (
        f"{_noise(diagnosis)} everywhere costs {estimate_text(summary.kl_nats)} nats per token"
        if math.isfinite(summary.kl_nats.mean)
        else f"Under {_noise(diagnosis)} everywhere no KL is finite: the logits overflow, of the "
        "clean model or under the noise"
    )
    if math.isfinite(summary.accuracy_drop.mean):
        told += (
            f" and {points_text(summary.accuracy_drop)} of accuracy, of "
            f"{100 * diagnosis.baseline_accuracy:.1f}"
        )
    elif math.isnan(diagnosis.baseline_accuracy):
        told += "; nothing was generated, so no accuracy is known"
    one = " One draw was measured: this realisation of the noise."
    return [f"{told}.{one if summary.draws == 1 and diagnosis.is_random else ''}"]


def _noise(diagnosis: Diagnosis) -> str:
    """Names the noise, by its scale or, where it has none, by its other parameters."""
    config = diagnosis.config
    if config["noise_scale"] is not None:
        return f"Noise of scale {config['noise_scale']:g} ({config['error_model']})"
    given = {k: v for k, v in config["error_parameters"].items() if k != "rounding"}
    told = ", ".join(f"{k} {v}" for k, v in given.items() if v is not None)
    what = "Rounding" if config["error_model"] == "RoundTo" else "Noise"
    return f"{what} ({config['error_model']}{f', {told}' if told else ''})"


def blamed(diagnosis: Diagnosis) -> list[str]:
    """Says which sites are to blame, or that none is."""
    found = diagnosis.findings.blame
    if found is None:
        return ["Nobody is blamed: nothing was predicted, so single sites were not chosen."]
    doubt = []
    if found.unconfirmed:
        one = len(found.unconfirmed) == 1
        doubt = [
            f"{some(found.unconfirmed)} {'was' if one else 'were'} predicted to stand out, which "
            "measurement did not confirm."
        ]
    if found.kind == STANDS_OUT:
        return [*(_stands_out(diagnosis, site) for site in found.sites), *doubt]
    alone = "No site stands out from its peers in other layers"
    if not found.has_peers:
        alone = "No site has peers in other layers to be compared with"
    if found.kind not in (LARGEST, SPREAD):
        return ["Who is to blame is unknown: no KL of any single site is.", *doubt]
    if found.kind == LARGEST and found.share == 1.0 and len(found.sites) > 1:
        return [f"{alone}; in {some(found.sites)} noise makes the logits overflow.", *doubt]
    how = "each noisy by itself" if diagnosis.chosen.get(SITES) else "as predicted"
    share = f"{100 * found.share:.2g} % of the KL of all single sites, {how}"
    if found.kind == LARGEST:
        costs = "costs most and carries" if len(found.sites) == 1 else "cost most and carry"
        told = f"{alone}; {some(found.sites)} {costs}"
        return [f"{told} {share}.", *doubt]
    told = f"The loss is spread: {alone[0].lower()}{alone[1:]}, and it takes many to make up half"
    return [f"{told} of it.", *doubt]


def _stands_out(diagnosis: Diagnosis, site: str) -> str:
    found, profile = diagnosis.findings.blame, diagnosis.told.profile
    ratio = found.ratios[site] if found is not None else math.nan
    told = (
        f"{site} stands out: noise there makes the logits overflow"
        if math.isinf(ratio)
        else f"{site} stands out: it costs at least {times_text(ratio)} times its peers in other "
        "layers"
    )
    if profile is not None:
        out = candidates(profile, tuple(diagnosis.plan.about.get("operators", ())))
        ratios = {s.site.name: s.ratio for s in out}
        if site in ratios:
            told += f", as measured, and was predicted to cost {times_text(ratios[site])} times"
    return f"{told}."


def needed(diagnosis: Diagnosis) -> list[str]:
    """Says whether the blamed sites are needed for the loss, and whether they are enough."""
    found = diagnosis.findings.remedy
    if found is None:
        return []
    sites, now = remedied_sites(diagnosis), diagnosis.findings.blame
    them = "it" if len(sites) == 1 else "them"
    told = []
    if now is None or set(sites) != set(now.sites):  # it was chosen by fewer data
        told.append(f"Cleaned were, by what was known when they were chosen: {some(sites)}.")
    if math.isfinite(found.without.mean):
        told.append(
            f"With {them} clean, noise everywhere else costs {estimate_text(found.without)} nats "
            f"per token instead of {estimate_text(found.everything)}: that brings back "
            f"{share_text(found.brought_back)} of the loss{_answers_back(found)}; "
            f"{_necessity(found.brought_back)}."
        )
    lost = ""
    if math.isfinite(found.answers_lost_alone.mean):
        lost = f" and {points_text(found.answers_lost_alone)} of accuracy"
    told.append(
        f"Noise in {them} alone costs {estimate_text(found.alone)} nats per token{lost}, "
        f"{share_text(found.carried)} of what noise everywhere costs."
    )
    return told


def _answers_back(found: Remedy) -> str:
    if not math.isfinite(found.answers_brought_back.mean):
        return ""
    lost = f"{100 * found.answers_lost.mean:.1f}"
    return f", and {points_text(found.answers_brought_back)} of the {lost} of accuracy"


def _necessity(back: Interval) -> str:
    if not back.is_known:
        return "too few data tell whether it helps"
    if back.low > 0:
        return "it helps, beyond chance"
    if back.high < 0:
        return "it makes things worse, beyond chance"
    return "inconclusive: that cannot be told from nothing"


def worst(diagnosis: Diagnosis) -> list[str]:
    """Says which operator and which window cost most by KL, and how sure that is."""
    told = []
    operator = diagnosis.findings.worst_operator
    if operator is not None:
        told.append(_worst("operators", operator))
    if diagnosis.layers:
        told.append(_worst("windows", diagnosis.worst_kl))
        if math.isfinite(diagnosis.baseline_accuracy):
            told.append(_worst("windows", diagnosis.worst_accuracy, "accuracy"))
    return told


def _worst(what: str, found: Worst, measure: str = "KL") -> str:
    told = f"Most fragile among {what}, by {measure}: {found.reason}"
    if not (found.is_conclusive and math.isfinite(found.held_out.mean)):
        return f"{told}."
    loss = points_text(found.held_out)
    if measure == "KL":
        loss = f"{estimate_text(found.held_out)} nats per token"
    return f"{told}; on data that did not choose it, it loses {loss}."


def channels(diagnosis: Diagnosis) -> list[str]:
    """Says which channels are outliers, and what noise in them alone costs."""
    effects = diagnosis.findings.channels
    of_outliers = [effect for effect in effects if effect.is_outlier]
    told = [_effect(effect) for effect in of_outliers or effects[:1]]
    return [*outliers(diagnosis), *told]


def outliers(diagnosis: Diagnosis) -> list[str]:
    """Says which channels are outliers, and where activations are massive."""
    modules = diagnosis.told.modules
    if not modules:
        return []
    told = []
    loud = [m for m in modules if m.outliers]
    if loud:
        largest = max(loud, key=lambda m: m.max_ratio)
        told.append(
            f"Outlier channels are in {counted(len(loud), 'module')} of {len(modules)}, the "
            f"largest channel {largest.outliers[0]} of {largest.module}, "
            f"{times_text(largest.max_ratio)} times the middle channel."
        )
    else:
        ratios = [m.max_ratio for m in modules if math.isfinite(m.max_ratio)]
        top = f" (the largest is {times_text(max(ratios))} times the middle one)" if ratios else ""
        told.append(f"No channel of {counted(len(modules), 'module')} is an outlier{top}.")
    peaks = [(m.module, peak) for m in modules for peak in m.massive]
    if peaks:
        module, peak = max(peaks, key=lambda pair: pair[1].ratio)
        where = "" if peak.position is None else f" at position {peak.position}"
        told.append(
            f"Activations are massive in {counted(len({m for m, _ in peaks}), 'module')}, the "
            f"largest {times_text(peak.ratio)} times the middle, in channel {peak.channel} of "
            f"{module}{where}."
        )
    return told


def _effect(effect: ChannelEffect) -> str:
    count = counted(len(effect.channels), "channel")
    which = f"{count} predicted to cost most"
    if effect.is_outlier:
        which = count.replace(" ", " outlier ")
    return (
        f"In {effect.site} noise in the {which} alone costs {estimate_text(effect.these)} nats per "
        f"token, in all others alone {estimate_text(effect.others)}: "
        f"{share_text(effect.share)} of both."
    )


def avalanche(diagnosis: Diagnosis) -> list[str]:
    """Says from which scale errors compound, whether they add, and where they are amplified."""
    found, told = diagnosis.findings, []
    response = whole_response(diagnosis)
    if response is not None:
        told.append(f"Dose and response with noise everywhere: {response.reason}.")
    first = first_departure(diagnosis)
    if first is not None:
        name, departure = first
        told.append(
            f"Of single windows, {name} is the first to leave the line, at {departure.first_off:g}."
        )
    if found.additivity is not None:
        told.append(f"Regions together: {found.additivity.reason}.")
    if found.amplification is not None:
        told.append(f"Depth: {found.amplification.reason}.")
    if found.critical is not None:
        told.append(f"Critical scale: {found.critical.reason}.")
    elif found.target is not None:
        told.append(f"Critical scale: {found.target} is open, since nothing measured tells of it.")
    return told


def held(diagnosis: Diagnosis) -> list[str]:
    """Says whether the prediction held, and plainly where it did not."""
    return [*_held(diagnosis), *_held_together(diagnosis)]


def _held_together(diagnosis: Diagnosis) -> list[str]:
    """Says by how much everything together is off; the line counts single conditions."""
    summary = whole_summary(diagnosis)
    if summary is None or diagnosis.told.profile is None:
        return []
    prediction = diagnosis.findings.predictions.get(summary.condition)
    if prediction is None or not departs(prediction, summary.kl_nats):
        return []
    ratio = times_text(summary.kl_nats.mean / prediction.kl_nats)
    return [
        f"Everything together measures {ratio} times what is predicted of it, "
        f"{estimate_text(summary.kl_nats)} against {prediction.kl_nats:.2g} nats per token."
    ]


def _held(diagnosis: Diagnosis) -> list[str]:
    found = diagnosis.findings.agreement
    if diagnosis.told.profile is None or found is None:
        return ["Nothing was predicted, so nothing confirms or contradicts what was measured."]
    middle = f"{times_text(found.ratio)} times the predicted KL"
    over = f"in the middle of {counted(found.conditions, 'condition')}"
    count = len(found.departing)
    are = "is" if count == 1 else "are"
    off = f"{count} of them {are} off the line beyond chance and a factor {TOLERANCE:g}"
    is_level = 1 / TOLERANCE <= found.ratio <= TOLERANCE
    if is_level and not found.departing:
        told = f"The prediction held: measured is {middle} {over}, none of them off the line"
        return [f"{told}{_rank(found.rank)}."]
    if is_level:
        named = departing_text(found.departing)
        return [
            f"The prediction held for most: measured is {middle} {over}; {off}, farthest "
            f"{named}{_rank(found.rank)}."
        ]
    if not found.departing:
        return [
            f"Whether the prediction held is inconclusive: measured is {middle} {over}, but none "
            f"can be told from the line{_rank(found.rank)}."
        ]
    return [
        f"At this scale the prediction is off: measured is {middle} {over}, and {off}, farthest "
        f"{departing_text(found.departing)}{_rank(found.rank)}.{_holds_below(diagnosis)}"
    ]


def _rank(rank: float) -> str:
    if not math.isfinite(rank):
        return ""
    says = "it ranks them well" if rank >= _RANKS else "it does not rank them well"
    return f"; {says} (rank correlation {rank:.2f})"


def _holds_below(diagnosis: Diagnosis) -> str:
    response = whole_response(diagnosis)
    if response is None:
        return " At which scale it holds was not looked at: --scales tells."
    on = [s.scale for s in response.scales if s.place == "on"]
    if on:
        return f" With noise everywhere it holds at {max(on):g}."
    least = response.scales[0]
    if least.place == "unknown" and least.ratio.is_known:
        return (
            f" At the smallest scale, {least.scale:g}, measured is {ratio_text(least.ratio)} times "
            "predicted with noise everywhere, which too few data tell from the line or not."
        )
    return f" No scale was found at which it holds, down to {least.scale:g}."


# What several claims go by.


def whole_summary(diagnosis: Diagnosis) -> Summary | None:
    """Returns the condition in which everything is noisy; None where it is not measured."""
    name = whole_of(diagnosis.plan)
    return next((s for s in diagnosis.analysis.summaries if s.condition == name), None)


def whole_by_scale(diagnosis: Diagnosis) -> dict[float, Summary]:
    """Returns what noise everywhere did, by its scale."""
    whole, conditions = whole_of(diagnosis.plan), diagnosis.plan.conditions
    found: dict[float, Summary] = {}
    for summary in diagnosis.analysis.summaries:
        scale = conditions.get(summary.condition, {}).get("error_model", {}).get("scale")
        if base_of(summary.condition) == whole and isinstance(scale, (int, float)):
            found.setdefault(float(scale), summary)
    return found


def whole_response(diagnosis: Diagnosis) -> Response | None:
    """Returns its dose and response."""
    return diagnosis.findings.responses.get(whole_of(diagnosis.plan))


def first_departure(diagnosis: Diagnosis) -> tuple[str, Departure] | None:
    """Returns the window whose errors compound at the smallest scale, and where."""
    whole = whole_of(diagnosis.plan)
    found = {
        name: response.departure
        for name, response in diagnosis.findings.responses.items()
        if name != whole and response.departure is not None and response.departure.way == "above"
    }
    if not found:
        return None
    return min(found.items(), key=lambda pair: (pair[1].first_off, pair[1].last_on))


def departing_text(departing: Mapping[str, float]) -> str:
    """Names the conditions that are off the line most, with their ratios."""
    order = sorted(departing, key=lambda n: -abs(math.log(max(departing[n], 1e-300))))
    named = [f"{name} ({times_text(departing[name])} times)" for name in order[:_MOST_NAMED]]
    more = len(order) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def some(names: Sequence[str]) -> str:
    """Writes names, or the first of them and how many more there are."""
    named = ", ".join(names[:_MOST_NAMED])
    more = len(names) - _MOST_NAMED
    return f"{named} and {more} more" if more > 0 else named


def remedied_sites(diagnosis: Diagnosis) -> tuple[str, ...]:
    """Returns the sites that were cleaned, and noisy alone; none where none were."""
    entry = diagnosis.plan.conditions.get(BLAMED)
    return tuple((entry or {}).get("selection", {}).get("sites") or ())
