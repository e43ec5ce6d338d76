"""`ActivationCapture`: watches chosen modules of a model and tells what their channels look like.

Statistics are streamed, so any number of batches costs the same memory; the activations themselves
are kept on request only. Nothing the model computes is changed, and every hook is gone after the
`with`. What counts as an outlier is in outliers.py.
"""

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, get_args

import torch
from torch import Tensor, nn

from noisescope.capture.outliers import MassiveActivation, Outliers, find_massive, find_outliers
from noisescope.capture.places import DEFAULT_PATTERNS, find_places
from noisescope.capture.rows import Tokens
from noisescope.capture.statistics import ChannelStatistics, statistics_of_nothing
from noisescope.capture.stream import Stream
from noisescope.capture.watch import Watch, Where, first_floating
from noisescope.errors import InputError

_T = TypeVar("_T")


class ActivationCapture:
    """Captures the activations of chosen modules while it is attached.

    Use it as a context manager, or call `attach` and `remove`; attaching again goes on counting::

        with ActivationCapture(model, layer_patterns=None) as capture:
            model(**batch)
        capture.detect_outliers()

    Channels are the last axis. Padding is left out as the call's `attention_mask` tells it; without
    a mask every token counts. A second run of gradient checkpointing is not counted.

    Args:
        model: Any module.
        layer_patterns: Which modules: names, endings of names or globs; a whole layer
            (``"model.layers.3"``) is its residual stream. None: the output projections of attention
            and MLP of every layer, in any family (see `output_projections`). The default names are
            those of Llama and its relatives.
        where: Whether outputs or inputs are captured; of several tensors the first of floating
            point.
        keep: Whether to keep the activations for `activations`; memory then grows with every batch.

    Raises:
        SelectionError: A pattern matches no module; the near names are listed.
        InputError: `model` is no module or runs in threads, or `where` is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        layer_patterns: str | Iterable[str] | None = DEFAULT_PATTERNS,
        *,
        where: Where = "output",
        keep: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(
                f"model {type(model).__name__}: a torch.nn.Module is needed; of a LoadedModel, "
                "give its .model"
            )
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise InputError(
                "DataParallel runs copies of the model in threads, which cannot be captured: give "
                "its .module, or use DistributedDataParallel."
            )
        if where not in get_args(Where):
            raise InputError(f"where={where!r}: accepted are 'output' and 'input'")
        self.model = model
        self.where: Where = where
        self.keep = keep
        self._places = find_places(model, layer_patterns)
        self._watch = Watch(model, self._places, where, self._take)
        self.reset()

    @property
    def modules(self) -> tuple[str, ...]:
        """The dotted names of the captured modules, in the model's order."""
        return tuple(self._places)

    def attach(self) -> Self:
        """Registers the hooks; where one fails, those before it are taken away again.

        Raises:
            InputError: It is attached already.
        """
        self._watch.attach()
        return self

    def remove(self) -> None:
        """Takes every hook away; what was captured stays. Without hooks it does nothing."""
        self._watch.remove()

    def reset(self) -> None:
        """Forgets what was captured so far."""
        self._watch.calls = 0
        self._streams: dict[str, Stream] = {}
        self._kept: dict[str, list[Tensor]] = {}

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def _take(self, name: str, value: Any, tokens: Tokens) -> None:
        found = first_floating(value)
        if found is None or found.dim() == 0:
            raise InputError(
                f"{name} has no floating-point tensor as its {self.where}: capture another module"
            )
        x_NC = found.detach().reshape(-1, found.shape[-1])
        stream = self._streams.get(name)
        if stream is None:
            stream = self._streams[name] = Stream(x_NC.shape[1], x_NC.device)
        if stream.channels != x_NC.shape[1]:
            raise InputError(
                f"{name}: the last axis of its {self.where} was {stream.channels} wide and is now "
                f"{x_NC.shape[1]}, so it holds no channels: capture another module"
            )
        labels = tokens.labels(found.shape, found.device, name)
        stream.update(x_NC, labels)
        if self.keep:
            self._kept.setdefault(name, []).append(x_NC[labels.is_present_N])

    # Results.

    @property
    def statistics(self) -> dict[str, ChannelStatistics]:
        """Statistics of every captured module; of one that never ran, with no channels.

        Raises:
            InputError: The model has not run since the capture was made.
        """
        self._check_ran()
        return {
            name: self._streams[name].statistics()
            if name in self._streams
            else statistics_of_nothing()
            for name in self._places
        }

    @property
    def activations(self) -> dict[str, Tensor]:
        """The kept activations [tokens, channels] of every module that ran, without padding.

        They have the model's dtype and device; the tokens of a batch follow row by row.

        Raises:
            InputError: The capture was made without ``keep=True``, or the model has not run.
        """
        if not self.keep:
            raise InputError(
                "activations were not kept, only statistics: make the capture with keep=True, "
                "or ask for .statistics"
            )
        self._check_ran()
        return {n: torch.cat(self._kept[n]) for n in self._places if n in self._kept}

    def detect_outliers(self, threshold: float = 10.0) -> dict[str, Outliers]:
        """Returns the outlier channels of every captured module; see `find_outliers`.

        Raises:
            InputError: The threshold is no finite number above 0, or the model has not run.
        """
        return self._of_each(lambda s: find_outliers(s.mean_abs, threshold))

    def massive_activations(
        self, threshold: float = 1000.0
    ) -> dict[str, tuple[MassiveActivation, ...]]:
        """Returns the massive activations of every captured module; see `find_massive`.

        Raises:
            InputError: The threshold is no finite number above 0, or the model has not run.
        """
        return self._of_each(lambda s: find_massive(s, threshold))

    def _of_each(self, judge: Callable[[ChannelStatistics], _T]) -> dict[str, _T]:
        return {name: judge(found) for name, found in self.statistics.items()}

    def _check_ran(self) -> None:
        if not self._streams:
            raise InputError(
                "nothing was captured: run the model inside 'with capture:', or between "
                "capture.attach() and capture.remove()"
            )
