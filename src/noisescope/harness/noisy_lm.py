"""A model of lm-evaluation-harness that answers under noise.

The harness keeps its own scoring and decoding (its class `HFLM`); a session is open around each of
its requests. Samples are named by their own tokens, so the noise of a request does not depend on
what it is batched with. The harness's request cache knows no noise: it is taken only by condition.
"""

import copy
import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from noisescope.errors import InputError, near_names
from noisescope.extras import require
from noisescope.harness.surroundings import quiet
from noisescope.inject import CoverageRow, Dose, Selection, Session, Witness, make_selection
from noisescope.measure.memory import default_gib, rows_of_scoring
from noisescope.measure.steps import end_tokens
from noisescope.models import LoadedModel, load_model
from noisescope.models.fingerprint import configuration_fingerprint
from noisescope.noise import ErrorModel
from noisescope.versions import versions

_MOST_ROWS = 32
_LONGEST = 2048
_KEY_DIGITS = 16


class NoisyLM:
    """A model for `lm_eval.simple_evaluate` and `lm_eval.evaluate`, under noise or clean.

    It is a subclass of the harness's `HFLM`, which is imported when one is made: its options (such
    as ``max_length``, ``truncation``, ``add_bos_token``, ``chat_template_args``) may be given, too.

    Args:
        loaded: The model, from `load_model`, or its directory.
        error_model: What is added, or done to weights and activations; None: the clean model.
        layers: Layer numbers and region names; None: everywhere. This and the next four as in
            `inject`.
        operators: Names out of `OPERATORS`; None: all.
        modules: Patterns on dotted module names.
        sites: Names of single sites.
        without: Names of sites that are left out.
        selection: All of these as one object, in their place.
        seed: First key word of the random numbers.
        draw: Which realisation of the noise. Another draw is another `NoisyLM`.
        batch_size: Rows that run together, which changes no figure beyond rounding; None: by
            memory, at most 32.
        softmax_dtype: What logarithms of probabilities are computed in; the harness itself takes
            the model's dtype, in which bfloat16 rounds them to two digits.
        **options: Options of `HFLM`.

    Raises:
        InputError: lm-evaluation-harness is not installed (the line holds the command that installs
            it), the model has no tokenizer, or predicts no next token.
        SelectionError: The selection names nothing in this model; or, after requests, something
            that it names received no noise.
        DoseError: After requests: rounding erased all of the noise.
    """

    def __new__(cls, *given: Any, **options: Any) -> Self:
        """Joins the class with the harness's own."""
        hflm = require("lm_eval.models.huggingface", "eval", "NoisyLM").HFLM
        asked: Any = cls
        whole: Any = cls if issubclass(cls, hflm) else _joined(asked, hflm)
        made: Self = object.__new__(whole)
        return made

    def __init__(
        self,
        loaded: LoadedModel | str | Path,
        error_model: ErrorModel | None = None,
        *,
        layers: int | str | Iterable[int | str] | None = None,
        operators: str | Iterable[str] | None = None,
        modules: str | Iterable[str] | None = None,
        sites: str | Iterable[str] | None = None,
        without: str | Iterable[str] = (),
        selection: Selection | None = None,
        seed: int = 0,
        draw: int = 0,
        batch_size: int | None = None,
        softmax_dtype: str | None = "float32",
        **options: Any,
    ) -> None:
        loaded = load_model(loaded) if isinstance(loaded, (str, Path)) else loaded
        if batch_size is None:
            batch_size = rows_by_memory(loaded)
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise InputError(f"batch size {batch_size!r}: a whole number of at least 1 is needed")
        chosen = selection or make_selection(
            layers, operators, modules, sites=sites, without=without
        )
        self.loaded = loaded
        self.session = (
            None if error_model is None else Session(loaded.model, error_model, chosen, seed, draw)
        )
        hflm: Any = super()
        _check_options(options, hflm.__init__)
        told = {"softmax_dtype": softmax_dtype, **options}
        if loaded.context_length is not None:
            told.setdefault("max_length", loaded.context_length)
        self.fingerprint = _fingerprint(loaded, self.session, told)
        with quiet():
            hflm.__init__(
                pretrained=loaded.model,
                tokenizer=_tokenizer(loaded),
                batch_size=batch_size,
                **told,
            )

    # The noise.

    @property
    def witness(self) -> Witness:
        """What fired and what arrived so far; nothing, of the clean model."""
        return Witness((), False) if self.session is None else self.session.witness

    def dose(self) -> Dose:
        """Returns what arrived, over all sites together.

        Where every answer came out of a cache nothing ran, and it is of no elements.
        """
        return self.witness.dose()

    def coverage(self) -> list[CoverageRow]:
        """Returns, per operator, how many sites were seen, selected and perturbed."""
        return self.witness.coverage()

    @contextmanager
    def _noise(self, requests: Sequence[Any]) -> Iterator[None]:
        if self.session is None or not requests:
            yield
            return
        with self.session:
            yield

    # What the harness calls.

    def loglikelihood(self, requests: list[Any], **options: Any) -> list[tuple[float, bool]]:
        """Scores continuations under the noise."""
        hflm: Any = super()
        with self._noise(requests):
            found: list[tuple[float, bool]] = hflm.loglikelihood(requests, **options)
        return found

    def loglikelihood_rolling(self, requests: list[Any], **options: Any) -> list[float]:
        """Scores whole texts under the noise."""
        hflm: Any = super()
        with self._noise(requests):
            found: list[float] = hflm.loglikelihood_rolling(requests, **options)
        return found

    def generate_until(self, requests: list[Any], **options: Any) -> list[str]:
        """Answers under the noise."""
        hflm: Any = super()
        with self._noise(requests):
            found: list[str] = hflm.generate_until(requests, **options)
        return found

    # Its request cache.

    def cache_path(self, path: str | Path) -> str:
        """Returns what to give as ``use_cache``: the path, with the condition in its name.

        The harness looks answers up by the text of a request alone, so a cache that was filled
        without noise, or under other noise, would answer in the place of this model.

        Args:
            path: Where the cache lies, without an ending.
        """
        return f"{path}-{self.fingerprint[:_KEY_DIGITS]}"

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Takes a cache whose name holds the condition.

        Raises:
            InputError: It is any other one.
        """
        database = getattr(cache_hook, "dbdict", None)
        if database is not None:
            name = str(getattr(database, "filename", ""))
            if self.fingerprint[:_KEY_DIGITS] not in Path(name).name:
                database.close()
                raise InputError(
                    f"use_cache {name!r}: this cache of lm-evaluation-harness knows no noise and "
                    "would return the answers of another condition; give "
                    "use_cache=lm.cache_path('PATH'), or none"
                )
        hflm: Any = super()
        hflm.set_cache_hook(cache_hook)


# What this class is given is not given to the harness's own.
_OURS = ("layers", "operators", "modules", "sites", "without", "selection", "seed", "draw")
_TAKEN = ("self", "kwargs", "pretrained", "tokenizer", "batch_size", "softmax_dtype")


def _check_options(options: Iterable[str], made: Callable[..., None]) -> None:
    """Raises InputError for an option that neither this class nor the harness's knows.

    The harness takes whatever it is given: a misspelt selection would be noise everywhere.
    """
    known = set(inspect.signature(made).parameters) - set(_TAKEN)
    for name in options:
        if name not in known:
            raise InputError(
                f"NoisyLM has no option {name!r}{near_names(name, (*_OURS, *known)) or ';'} "
                f"accepted are {', '.join(_OURS)}, and those of the harness's HFLM"
            )


def rows_by_memory(loaded: LoadedModel) -> int:
    """Returns how many rows run together where nobody says so: by memory, at most 32."""
    tokens = min(loaded.context_length or _LONGEST, _LONGEST)
    gib = default_gib(loaded.model)
    return min(_MOST_ROWS, rows_of_scoring(loaded.model, tokens, gib, has_logits=True))


@lru_cache
def _joined(cls: Any, hflm: Any) -> Any:
    """Returns a class that is both; noise first, so that it stands around what the harness does."""

    class Joined(cls, hflm):  # type: ignore[misc]
        __doc__ = cls.__doc__

    Joined.__name__, Joined.__qualname__ = cls.__name__, cls.__qualname__
    Joined.__module__ = cls.__module__
    return Joined


def _tokenizer(loaded: LoadedModel) -> Any:
    """Returns a copy of the tokenizer with a padding token that the model knows.

    The harness would add a token of its own where there is none, beyond the model's vocabulary.

    Raises:
        InputError: There is no tokenizer, or the model predicts no next token.
    """
    if not loaded.model.can_generate():
        raise InputError(
            f"the model {type(loaded.model).__name__} predicts no next token: "
            "lm-evaluation-harness needs a causal language model"
        )
    if loaded.tokenizer is None:
        raise InputError(
            f"no tokenizer beside the model in {str(loaded.path)!r}: lm-evaluation-harness asks in "
            "texts; name one with --tokenizer DIR"
        )
    tokenizer = copy.deepcopy(loaded.tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _fingerprint(loaded: LoadedModel, session: Session | None, options: Any) -> str:
    """Returns the digest of all that an answer depends on beside its request."""
    ends = end_tokens(loaded.model) if loaded.model.can_generate() else ()
    told: dict[str, Any] = {
        "model": loaded.fingerprint,
        "configuration": configuration_fingerprint(loaded.model, ends),
        "tokenizer": tokenizer_fingerprint(loaded.tokenizer),
        "dtype": str(loaded.dtype),
        "options": {name: str(value) for name, value in options.items()},
        "versions": versions(),
        "noise": None,
    }
    if session is not None:
        error_model: Any = session.error_model
        told["noise"] = {
            "error_model": type(error_model).__qualname__,
            "parameters": asdict(error_model),
            "selection": asdict(session.selection),
            "seed": session.seed,
            "draw": session.draw,
        }
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Returns ``"sha256:<hex>"`` over how a tokenizer turns texts into tokens."""
    if tokenizer is None:
        return "none"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    told = [
        backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items()),
        getattr(tokenizer, "chat_template", None),
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
    ]
    return f"sha256:{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()}"
