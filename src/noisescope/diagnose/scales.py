"""Doses: the same selections at other scales of the noise, given or chosen by what is measured.

Chosen scales lie around the study's own, most of them below it: where errors compound already, the
line is met further down, and where they do not, what is above tells where they begin to.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from noisescope.diagnose.scene import Scene
from noisescope.measure import Condition
from noisescope.study.steps import at_scale

_FACTORS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 2.0, 4.0)
# A model that has lost this much, nats per token, is not asked what more noise does.
_BROKEN_NATS = 1.0
_BOUNDS = (1e-6, 10.0)
# What is smaller, as a share of each value, may be erased by rounding altogether.
_LEAST_ARRIVING = {"bfloat16": 2e-3, "float16": 3e-4}
_DIGITS = 2


def choose_scales(
    scene: Scene, bases: Sequence[Condition], scales: Sequence[float] | None
) -> list[Condition]:
    """Returns conditions at other scales than their own.

    Args:
        scene: What is known.
        bases: The conditions at the scale of the study.
        scales: The scales; None: a sixteenth to four times the study's own, and no more than its
            own where that breaks the model already.
    """
    own = scale_of(scene.error_model)
    if own is None or not own > 0:
        return []
    wanted = _around(scene, bases, own) if scales is None else tuple(scales)
    return [at(base, scale) for base in bases for scale in dict.fromkeys(wanted) if scale != own]


def at(base: Condition, scale: float, is_answered: bool = False) -> Condition:
    """Returns a condition at another scale of its noise."""
    error_model: Any = base.error_model
    name = at_scale(base.name, scale, is_answered)
    return Condition(name, replace(error_model, scale=scale), base.selection)


def scale_of(error_model: Any) -> float | None:
    """Returns the scale of an error model; None of one that cannot be made with another."""
    if "scale" not in {field.name for field in fields(error_model) if field.init}:
        return None
    scale = error_model.scale
    return float(scale) if isinstance(scale, (int, float)) else None


def _around(scene: Scene, bases: Sequence[Condition], own: float) -> list[float]:
    """Returns the same scales for all, so that their responses can be compared."""
    kls = [scene.kl(base.name) for base in bases]
    worst = max((kl.mean for kl in kls if kl is not None), default=0.0)
    low, high = least_scale(scene), _BOUNDS[1]
    wanted = (rounded(own * factor) for factor in _FACTORS if factor < 1 or worst < _BROKEN_NATS)
    return [scale for scale in wanted if low <= scale <= high]


def least_scale(scene: Scene) -> float:
    """Returns the smallest scale whose noise arrives for sure; stochastic rounding keeps any."""
    if getattr(scene.error_model, "rounding", "nearest") == "stochastic":
        return _BOUNDS[0]
    return _LEAST_ARRIVING.get(scene.dtype, _BOUNDS[0])


def rounded(scale: float) -> float:
    """Rounds a scale to two digits, so that it can be named and given again."""
    return float(f"{scale:.{_DIGITS}g}")
