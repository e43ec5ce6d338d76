"""The mode that stands for a session on the stack while its compiled model runs."""

import threading
from collections.abc import Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from noisescope.errors import InputError
from noisescope.inject.compiled.ops import begin_pass, end_pass
from noisescope.inject.compiled.state import STATE, Compilable, Running
from noisescope.inject.compiled.tables import Tables
from noisescope.inject.compiled.trace import run
from noisescope.inject.frames import run_as_is
from noisescope.inject.mode import remove_mode
from noisescope.inject.rows import Rows
from noisescope.inject.sites import SiteKey


class CompiledMode(TorchFunctionMode):
    """Stands for one session on the stack while a compiled model runs.

    Its class, made for one model and shape of session, is what the compiler guards on.

    Attributes:
        keys: The sites that a graph perturbs, by number.
        seen: The others that it holds; whether inside fused attention that was left whole.
        frames: The function of the model's in whose graph each region is.
        tables: By device, where graphs compute the noise themselves.
        depth: How many such modes lie below.
    """

    keys: list[SiteKey]
    seen: dict[SiteKey, bool]
    frames: dict[str, str]
    tables: dict[torch.device, Tables]

    def __init__(self, depth: int) -> None:
        super().__init__()
        run_as_is(CompiledMode.__torch_function__)
        self.depth = depth

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.compiler.is_compiling():
            return func(*args, **kwargs)
        return run(self.depth, func, args, kwargs)


_classes: "WeakKeyDictionary[nn.Module, dict[Hashable, type[CompiledMode]]]" = WeakKeyDictionary()


def begin(session: Compilable, hooks: int, model: nn.Module, rows: Rows | None) -> None:
    """Called by the hook on the whole model, when what follows is compiled."""
    if STATE.running and STATE.thread != threading.get_ident():
        raise InputError(
            "another thread runs a compiled model in a session: run one at a time, or without "
            "torch.compile."
        )
    STATE.thread = threading.get_ident()
    shapes = _classes.setdefault(model, {})
    computes, depth = _computes(session, rows), len(STATE.running)
    shape = (session.shape, torch.is_grad_enabled(), computes, depth)
    if shape not in shapes:
        fresh: dict[str, Any] = {"keys": [], "seen": {}, "tables": {}, "frames": {}}
        shapes[shape] = type("CompiledMode", (CompiledMode,), fresh)
    mode_class = shapes[shape]
    mode = mode_class(depth)
    # Plain tensors, also where the model runs in inference mode: a graph takes them as inputs.
    with torch.inference_mode(False):
        tables = _tables(session, mode_class, rows) if computes else None
        none_BT = torch.zeros(0, 0, dtype=torch.int64, device="cpu")
        sample_BT = none_BT if rows is None else rows.sample_BT.clone()
        position_BT = none_BT if rows is None else rows.position_BT.clone()
    of = begin_pass(session.perturber, rows, mode_class.keys)
    made = Running(session, hooks, mode, of, mode_class.keys, mode_class.seen, mode_class.frames)
    STATE.running.append(made)
    STATE.handles.append(of.handle)
    STATE.samples.append(sample_BT)
    STATE.positions.append(position_BT)
    STATE.tables.append(tables)
    mode.__enter__()  # type: ignore[no-untyped-call]


def _computes(session: Compilable, rows: Rows | None) -> bool:
    """Tells whether a graph may compute the noise itself."""
    if rows is None or rows.kept is not None or not session.conditions:
        return False
    if STATE.computes is not None:
        return STATE.computes
    return rows.sample_BT.device.type != "cpu"


def _tables(session: Compilable, mode_class: type[CompiledMode], rows: Rows | None) -> Tables:
    conditions = session.conditions
    device = torch.device("cpu") if rows is None else rows.sample_BT.device
    if device not in mode_class.tables:
        mode_class.tables[device] = Tables(device, mode_class.keys, len(conditions))
    tables = mode_class.tables[device]
    spans = session.rows_of_conditions
    is_alike = all(of.end is None for of in spans)
    batch = 1 if is_alike or rows is None else len(rows.sample_BT)
    tables.set(conditions, spans, batch, rows is None or rows.is_named)
    return tables


def end(session: Compilable, is_whole: bool) -> None:
    """Called by the hook behind the model, or when a pass was broken off.

    Args:
        session: The session that began the pass.
        is_whole: Whether the pass came to its end.
    """
    at = next(n for n, r in enumerate(STATE.running) if r.session is session)
    running = STATE.running.pop(at)
    del STATE.handles[at], STATE.samples[at], STATE.positions[at], STATE.tables[at]
    remove_mode(running.mode)
    if is_whole:
        for key, is_fused in running.seen.items():
            session.note_seen(key, is_fused)
    may_come_back = "backward" in session.phases and torch.is_grad_enabled()
    end_pass(running.of, is_whole and may_come_back)
