"""What the result file says beyond the conditions: prediction, blame, the avalanche, the verdict.

A key that was not looked at is null.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from noisescope.analyse import Response
from noisescope.analyse.predict import mean_and_error
from noisescope.profile import Profile, SiteProfile
from noisescope.report.conclusion import sentences, verdict
from noisescope.report.recommendation.result import recommendation_json
from noisescope.report.shares import position_shares, top_channels
from noisescope.study import Diagnosis

_TOP_CHANNELS = 10


def findings_of(diagnosis: Diagnosis) -> dict[str, Any]:
    """Returns what a study found beyond its table, as dictionaries."""
    found = diagnosis.findings
    blame = found.blame
    return {
        "prediction": _prediction(diagnosis),
        "avalanche_curve": {n: _response(r) for n, r in found.responses.items()} or None,
        "additivity": None if found.additivity is None else asdict(found.additivity),
        "amplification": None if found.amplification is None else asdict(found.amplification),
        "critical_scale": _critical(diagnosis),
        "channels": _channels(diagnosis),
        "blame": None if blame is None else asdict(blame),
        "remedy": None if found.remedy is None else asdict(found.remedy),
        "worst_operator": None if found.worst_operator is None else asdict(found.worst_operator),
        "recommendation": None
        if diagnosis.recommendation is None
        else recommendation_json(diagnosis.recommendation),
        "verdict": _verdict(diagnosis),
    }


def profile_json(profile: Profile) -> dict[str, Any]:
    """Returns what was predicted of every site, and how it was made.

    Per sample, draw and channel it is in the profile's own file.
    """
    return {
        "estimator": profile.estimator,
        "label_draws": profile.label_draws,
        "seed": profile.seed,
        "samples": len(profile.samples),
        "error_models": [dict(error_model) for error_model in profile.error_models],
        "sites_without_gradient": list(profile.without),
        "sites": {site.name: _site(site) for site in profile.sites},
    }


def _site(site: SiteProfile) -> dict[str, Any]:
    kl, error = mean_and_error([site])
    return {
        "region": site.region,
        "operator": site.operator,
        "rows": site.rows,
        "kl_nats_per_token": kl,
        "standard_error": error,
        "share_by_position": position_shares(site),
        "channels": site.channels_ECD.shape[-1],
        "top_channels": [
            {"channel": channel, "kl_nats_per_token": nats, "share": share}
            for channel, nats, share in top_channels(site, _TOP_CHANNELS)
        ],
    }


def _prediction(diagnosis: Diagnosis) -> dict[str, Any] | None:
    profile, found = diagnosis.told.profile, diagnosis.findings
    if profile is None:
        return None
    return {
        "conditions": {
            name: {
                "kl_nats_per_token": prediction.kl_nats,
                "standard_error": prediction.error_nats,
                "sites": prediction.sites,
                "sites_without_gradient": prediction.unreached,
            }
            for name, prediction in found.predictions.items()
        },
        "agreement": None if found.agreement is None else asdict(found.agreement),
        **profile_json(profile),
    }


def _response(response: Response) -> dict[str, Any]:
    return {
        "scales": [asdict(scale) for scale in response.scales],
        "exponents": [asdict(exponent) for exponent in response.exponents],
        "departure": None if response.departure is None else asdict(response.departure),
        "saturates_from": response.saturates_from,
        "tolerance": response.tolerance,
        "reason": response.reason,
    }


def _critical(diagnosis: Diagnosis) -> dict[str, Any] | None:
    target, critical = diagnosis.findings.target, diagnosis.findings.critical
    if target is None:
        return None
    found: Mapping[str, Any] = {} if critical is None else asdict(critical)
    return {"target": str(target), **found}


def _channels(diagnosis: Diagnosis) -> dict[str, Any] | None:
    modules, effects = diagnosis.told.modules, diagnosis.findings.channels
    if not modules and not effects:
        return None
    return {
        "modules": {m.module: asdict(m) for m in modules},
        "effects": [asdict(effect) for effect in effects],
    }


def _verdict(diagnosis: Diagnosis) -> dict[str, Any] | None:
    if diagnosis.kind != "diagnose":
        return None
    return {"paragraph": verdict(diagnosis), "sentences": list(sentences(diagnosis))}
