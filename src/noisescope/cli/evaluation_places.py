"""Where the noise of an evaluation falls, and how answers are generated, as options say it.

Windows of layers one at a time, some layers and regions, or everywhere.
"""

import json
from typing import Any, Protocol

from noisescope.diagnose.kinds import resolve
from noisescope.errors import InputError
from noisescope.inject import Selection, SiteRecord, make_selection
from noisescope.inject.probe import list_sites
from noisescope.measure import Condition, layer_windows, window_name
from noisescope.models import LoadedModel, find_regions
from noisescope.noise import ErrorModel

_PROBE_TOKENS = 16
_EVERYWHERE = "all"


class EvalNoise(Protocol):
    """What was asked of the noise's place."""

    @property
    def layers(self) -> str | None:
        """Layers and regions, such as ``0-3,7,head``."""

    @property
    def window(self) -> int | None:
        """Layers per window."""

    @property
    def stride(self) -> int | None:
        """Layers per step."""

    @property
    def operators(self) -> str:
        """A preset, or names."""


def conditions_of(
    given: EvalNoise, loaded: LoadedModel, error_model: ErrorModel
) -> list[Condition]:
    """Returns the conditions that are asked for: windows of layers, some layers, or everywhere.

    Raises:
        InputError: Window or layers that the model does not have.
        SelectionError: An operator that never runs there.
    """
    regions = find_regions(loaded.model)
    vocabulary = loaded.model.get_input_embeddings().num_embeddings
    length = min(_PROBE_TOKENS, loaded.context_length or _PROBE_TOKENS)
    sites = list_sites(loaded.model, [i % vocabulary for i in range(length)])
    if given.window is not None:
        windows = layer_windows(regions.n_layers, given.window, given.stride or given.window)
        places = {window_name(w): [str(n) for n in w] for w in windows}
    elif given.layers is not None:
        names = parse_layers(given.layers, [region.name for region in regions.all])
        places = {given.layers.replace(" ", ""): names}
    else:
        places = {_EVERYWHERE: [region.name for region in regions.all]}
    return [
        Condition(name, error_model, _selection(given, error_model, sites, place))
        for name, place in places.items()
    ]


def _selection(
    given: EvalNoise, error_model: ErrorModel, sites: list[SiteRecord], place: list[str]
) -> Selection:
    inside = [record for record in sites if record.site.region in place]
    operators = resolve(given.operators, inside, error_model)
    is_everywhere = given.window is None and given.layers is None
    return make_selection(layers=None if is_everywhere else place, operators=operators)


def parse_layers(text: str, known: list[str]) -> list[str]:
    """Returns the regions of an option such as ``0-3,7,head``.

    Raises:
        InputError: One of them is not in the model.
    """
    found: list[str] = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = word.partition("-")
        is_range = dash and first.isdigit() and last.isdigit() and int(first) <= int(last)
        names = [str(n) for n in range(int(first), int(last) + 1)] if is_range else [word]
        for name in names:
            if name not in known:
                layers = [region for region in known if region.isdigit()]
                others = [region for region in known if not region.isdigit()]
                raise InputError(
                    f"--layers {text}: no layer {name!r}; this model has layers 0 to "
                    f"{len(layers) - 1}{' and ' + ', '.join(others) if others else ''}"
                )
        found += names
    if not found:
        raise InputError(f"--layers {text!r} names nothing: give layers such as 0-3,7,head")
    return list(dict.fromkeys(found))


def parse_gen_kwargs(text: str | None) -> dict[str, Any]:
    """Returns the options of generation: ``name=value`` joined by commas, or a JSON object.

    Raises:
        InputError: They cannot be read.
    """
    if text is None:
        return {}
    try:
        if text.lstrip().startswith("{"):
            found = json.loads(text)
            return dict(found)
        pairs = [part.partition("=") for part in text.split(",")]
        if not all(name.strip() and equals for name, equals, _ in pairs):
            raise ValueError("a name without a value")
    except ValueError as error:
        raise InputError(
            f"--gen-kwargs {text!r} cannot be read ({error}): give max_gen_toks=64,temperature=0, "
            "or a JSON object"
        ) from None
    return {name.strip(): _value(value.strip()) for name, _, value in pairs}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)
