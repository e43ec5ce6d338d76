"""The steps by which a study goes on by itself, and how their conditions are named.

What a step asks is written into the names, so that a report can be made from a directory alone.
"""

from collections.abc import Sequence

SITES = "sites"  # single sites: the predicted worst, and random controls
PARTS = "parts"  # each region alone, all together, and all but one
SCALES = "scales"  # the same selections at other scales
UNTIL = "until"  # scales at which a chosen loss is looked for; one step each
CHANNELS = "channels"  # single channels of a site, and all others of it
FORMATS = "formats"  # assignments of formats: the recommended one, its neighbours, plain ones
BLAME = "blame"  # the blamed sites alone, and everything but them

EVERYTHING = "all"
ALL_LAYERS = "all layers"
BLAMED = "blamed"
_ANSWERED = " answered"
_ALL_BUT, _AT, _CHANNELS_OF = "all but ", " @ ", " of "
THESE, OTHERS = "top channels", "other channels"


def whole_name(regions: Sequence[str]) -> str:
    """Names the condition in which all that a study looks at is noisy, by its regions."""
    return ALL_LAYERS if all(region.isdigit() for region in regions) else EVERYTHING


def all_but(name: str) -> str:
    """Names the condition in which everything but a part is noisy."""
    return f"{_ALL_BUT}{name}"


def at_scale(name: str, scale: float, is_answered: bool = False) -> str:
    """Names a condition at another scale: ``L0-2 @ 0.1``, or ``all @ 0.1 answered``."""
    return f"{name}{_AT}{scale:.6g}{_ANSWERED if is_answered else ''}"


def base_of(name: str) -> str:
    """Returns what is noisy in a condition that `at_scale` named, or may have."""
    return name.partition(_AT)[0]


def scale_of_name(name: str) -> float | None:
    """Returns the scale that `at_scale` wrote into a name; None where there is none."""
    _, is_there, text = name.partition(_AT)
    return float(text.removesuffix(_ANSWERED)) if is_there else None


def channels_of(which: str, site: str) -> str:
    """Names a condition on some channels of a site: `THESE` or `OTHERS`."""
    return f"{which}{_CHANNELS_OF}{site}"


def until_step(number: int) -> str:
    """Names the n-th step of a search for a scale."""
    return f"{UNTIL}-{number}"
