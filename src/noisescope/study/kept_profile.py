"""A profile in a study's directory: one safetensors file, sealed by the digest of what is in it.

A profile is a pure function of the model, the samples and the seed, so one that lacks, or is of
other samples, is made anew; one that was changed by hand is refused.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from noisescope.errors import InputError
from noisescope.profile import Array, Profile, SiteProfile
from noisescope.study.files import explained, read_bytes, replace_file, sha256, to_json
from noisescope.study.plan import StudyPlan
from noisescope.study.study import Study

PROFILE = "profile.safetensors"
_SCHEMA = 2
_SITE = ("region", "module", "operator", "index", "rows")
_WHOLE = ("without", "samples", "tokens", "error_models", "estimator", "label_draws", "seed")


def profile_bytes(profile: Profile, about: Mapping[str, Any]) -> bytes:
    """Returns a profile as a file; `about` is what it was made of, such as fingerprints."""
    tensors: dict[str, Array] = {}
    for number, site in enumerate((*profile.sites, *profile.residuals)):
        tensors[f"{number}.kl"] = np.ascontiguousarray(site.kl_EKN)
        tensors[f"{number}.channels"] = np.ascontiguousarray(site.channels_ECD)
        tensors[f"{number}.errors"] = np.ascontiguousarray(site.channel_errors_ED)
    header = {
        "schema": _SCHEMA,
        "about": about,
        "sites": [_names(site) for site in profile.sites],
        "residuals": [_names(site) for site in profile.residuals],
        **{name: getattr(profile, name) for name in _WHOLE},
    }
    return _sealed(tensors, header)


def profile_of(data: bytes, path: Path) -> tuple[Profile, dict[str, Any]]:
    """Returns the profile of a file, and what it was made of.

    Raises:
        InputError: It was changed since it was written, or another version wrote it.
    """
    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        header = json.loads(metadata["noisescope"])["header"]
        is_whole = _sealed(tensors, header) == data
    except (SafetensorError, ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole or header.get("schema") != _SCHEMA:
        raise InputError(
            f"{path} was changed since it was written, or is of another version: remove it, and "
            "it is made anew"
        )
    sites = tuple(
        SiteProfile(
            **dict(zip(_SITE, entry, strict=True)),
            kl_EKN=tensors[f"{number}.kl"],
            channels_ECD=tensors[f"{number}.channels"],
            channel_errors_ED=tensors[f"{number}.errors"],
        )
        for number, entry in enumerate((*header["sites"], *header["residuals"]))
    )
    count = len(header["sites"])
    values = {name: header[name] for name in _WHOLE}
    for name in ("without", "samples", "tokens", "error_models"):
        values[name] = tuple(values[name])
    return Profile(sites=sites[:count], residuals=sites[count:], **values), header["about"]


def _names(site: SiteProfile) -> list[Any]:
    return [getattr(site, name) for name in _SITE]


def _sealed(tensors: Mapping[str, Array], header: Mapping[str, Any]) -> bytes:
    """Returns the file, with the digest of everything else in it.

    All of it is one entry of the metadata: safetensors keeps several in no order.
    """
    digest = sha256(save(dict(tensors), {"noisescope": to_json(header).decode()}))
    text = to_json({"header": header, "sha256": digest}).decode()
    return bytes(save(dict(tensors), {"noisescope": text}))


def write_profile(directory: Path, profile: Profile, about: Mapping[str, Any]) -> None:
    """Puts a profile into a directory, in the place of the one that is there.

    Raises:
        OSError: It cannot be written.
    """
    replace_file(directory / PROFILE, profile_bytes(profile, about))


def read_profile(directory: Path, about: Mapping[str, Any] | None = None) -> Profile | None:
    """Returns the profile of a directory; None where there is none, or one of something else.

    Args:
        directory: A study's.
        about: What it must be made of; None: whatever it is made of.

    Raises:
        InputError: The file was changed.
    """
    data = read_bytes(directory / PROFILE)
    if data is None:
        return None
    profile, made_of = profile_of(data, directory / PROFILE)
    return profile if about is None or made_of == json.loads(to_json(about)) else None


def kept_or_made(study: Study, make: Callable[[], Profile], is_kept: bool = True) -> Profile:
    """Returns a study's profile as it comes from its file, made and written where it lacks.

    Args:
        study: The study.
        make: Makes it.
        is_kept: Whether it is written; one over some of the samples only is not.

    Raises:
        InputError: The file was changed, or `make` found something that cannot be used.
        NoisescopeError: It cannot be written.
    """
    about = made_of(study.plan)
    if study.directory is None:
        return profile_of(profile_bytes(make(), about), Path(PROFILE))[0]
    kept = read_profile(study.directory, about)
    if kept is None:
        made = make()
        if not is_kept:
            return profile_of(profile_bytes(made, about), Path(PROFILE))[0]
        with explained(study.directory / PROFILE):
            write_profile(study.directory, made, about)
        kept = read_profile(study.directory, about)
    if kept is None:
        raise InputError(f"cannot write {study.directory / PROFILE}: it is gone again")
    return kept


def made_of(plan: StudyPlan) -> dict[str, Any]:
    """Returns what a profile depends on, beside the error model, which it names itself."""
    samples = [[sample.name, sample.digest] for sample in plan.samples]
    return {
        "fingerprints": dict(plan.fingerprints),
        "versions": dict(plan.versions),
        "settings": dict(plan.settings),
        "seed": plan.seed,
        "samples": sha256(to_json(samples)),
    }
