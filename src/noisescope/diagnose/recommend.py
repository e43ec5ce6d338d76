"""A recommendation as a study: formats are profiled, the best assignment is solved for, measured.

The profile takes the rounding errors of the model's own weights and activations. What the solver
chooses is measured with the real rounding, beside its neighbours and what is done without it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from noisescope.diagnose.carry_out import Options, carry_out
from noisescope.diagnose.kinds import probe
from noisescope.diagnose.question import Question, Step
from noisescope.diagnose.scene import Scene
from noisescope.errors import InputError, NoisescopeError
from noisescope.inject import SiteRecord, make_selection
from noisescope.inject.operands import disturb_weight
from noisescope.measure import Condition, ProfileOptions
from noisescope.models import LoadedModel
from noisescope.models.weight_groups import (
    WeightGroup,
    find_weight_groups,
    is_named_by,
    weights_of,
)
from noisescope.noise import RoundTo, make_format
from noisescope.study import Diagnosis
from noisescope.study.format_options import FormatOptions
from noisescope.study.recommended import candidates
from noisescope.study.steps import FORMATS
from noisescope.tasks import Task

OPERANDS = ("both", "weights")
# A choice between formats that differ by factors needs no sharper figures.
_PROFILE = ProfileOptions(label_error=0.2, most_draws=16, operators=("linear",))


def recommend_formats(
    loaded: LoadedModel,
    task: Task,
    formats: Sequence[str],
    *,
    bits: float | None = None,
    kl_nats: float | None = None,
    operand: str = "both",
    keep: Sequence[str] = (),
    **options: Any,
) -> Diagnosis:
    """Recommends a format for every group of weights, and measures the recommendation.

    Args:
        loaded: The model.
        task: The samples.
        formats: Names, such as ``["nvfp4", "fp8_e4m3", "bf16"]``; see `make_format`.
        bits: The most bits per weight, scales counted; experts by the share that a token reads.
        kl_nats: In place of bits: the most predicted loss, in nats per token.
        operand: `weights`, or `both`: the activations that meet them too.
        keep: Patterns of modules that stay as they are: a name, its ending, or a glob.
        options: See `Options`; draws is 1, for rounding to nearest is no random error.

    Returns:
        The diagnosis; its `recommendation` tells what is recommended.

    Raises:
        InputError: An unknown format or operand; neither or both of bits and loss; nothing within
            them; a pattern that matches nothing.
        StudyInterrupted: Ctrl-C was pressed; what is measured is kept.
    """
    check_formats(formats, bits, kl_nats, operand)
    chosen = Options(**{**options, "predict": True, "draws": 1})
    chosen.plan()
    names = tuple(dict.fromkeys(formats))
    records = probe(loaded, task)
    offered = _options(loaded, records, names, bits, kl_nats, operand, keep)
    offered.check_bits()
    question = Question(
        kind="recommend",
        conditions=(),
        error_model=RoundTo(names[0], operand),  # type: ignore[arg-type]
        operators=("linear",),
        config={"recommendation": asdict(offered)},
        scope={},
        layers={},
        sites=tuple(r.site for r in records if r.site.operator == "linear"),
        steps=(Step(FORMATS, lambda scene: _choose(scene, offered), generates=None),),
        is_predicted=True,
        profile_options=_PROFILE,
        profiled=tuple(RoundTo(name, operand) for name in names),  # type: ignore[arg-type]
        settings={
            "--formats": ",".join(names),
            "--quantize": operand,
            "--bits": bits,
            "--kl": kl_nats,
            "--keep": ",".join(keep),
        },
    )
    return carry_out(question, loaded, task, chosen)


def check_formats(
    formats: Sequence[str], bits: float | None, kl_nats: float | None, operand: str
) -> None:
    """Raises InputError for what cannot be asked for, before anything is loaded."""
    if not formats:
        raise InputError("no formats: give some, such as nvfp4,fp8_e4m3,bf16")
    for name in formats:
        make_format(name)
    if operand not in OPERANDS:
        raise InputError(f"operand {operand!r}: {' or '.join(OPERANDS)} is needed")
    if (bits is None) == (kl_nats is None):
        raise InputError(
            "one goal is needed: bits per weight (--bits 4.8) or a loss in nats per token "
            "(--kl 0.02), and not both"
        )
    for name, value in (("bits", bits), ("kl", kl_nats)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"--{name} {value:g}: a number above 0 is needed")


def _options(
    loaded: LoadedModel,
    records: Sequence[SiteRecord],
    formats: tuple[str, ...],
    bits: float | None,
    kl_nats: float | None,
    operand: str,
    keep: Sequence[str],
) -> FormatOptions:
    model = loaded.model
    running = [r.site.module for r in records if r.site.operator == "linear"]
    found = find_weight_groups(model, running, keep)
    for pattern in keep:
        if not any(is_named_by(pattern, name) for name in running):
            raise InputError(
                f"--keep {pattern}: no linear module of this model matches; "
                "list them with 'noisescope sites MODEL --full'"
            )
    if not found.groups:
        raise InputError("no linear module may take a format: all are kept; keep fewer")
    modules = dict(model.named_modules())
    errors = tuple(
        tuple(_weight_error(group, modules, name) for name in formats) for group in found.groups
    )
    chosen = sum(group.weights for group in found.groups)
    return FormatOptions(
        formats=formats,
        operand=operand,
        groups=found.groups,
        kept=found.kept,
        weight_errors=errors,
        bits=bits,
        kl_nats=kl_nats,
        other_parameters=sum(p.numel() for p in model.parameters()) - chosen,
        model_type=str(getattr(model.config, "model_type", "")),
    )


@torch.no_grad()
def _weight_error(group: WeightGroup, modules: Mapping[str, Any], name: str) -> float:
    """Returns the sum of the squared errors of a group's weights in a format."""
    error = 0.0
    for module in group.modules:
        for weight, axis in weights_of(modules[module]):
            noisy, _ = disturb_weight(weight, axis, RoundTo(name, "weights"), 0, 0, 0)
            error += float((noisy.double() - weight.double()).square().sum())
    return error


def _choose(scene: Scene, offered: FormatOptions) -> list[Condition]:
    """Returns the assignments that are measured."""
    if scene.profile is None:
        raise NoisescopeError("nothing was predicted, so nothing can be recommended")
    choices = offered.choices(scene.profile)
    everywhere = make_selection(operators="linear")
    return [
        Condition(name, offered.error_model(chosen), everywhere)
        for name, chosen in candidates(offered, choices).items()
    ]
