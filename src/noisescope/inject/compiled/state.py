"""The sessions whose compiled models run now, and what is being traced of them."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from noisescope.inject.compiled.ops import Pass, Perturber
from noisescope.inject.compiled.tables import Condition, Tables
from noisescope.inject.rows import RowsOf
from noisescope.inject.sites import Site, SiteKey


class Compilable(Protocol):
    """A session whose model may be compiled."""

    perturber: Perturber

    @property
    def shape(self) -> Hashable:
        """All that a graph depends on: what is perturbed and where, no seed, draw or scale."""

    @property
    def phases(self) -> tuple[str, ...]:
        """`forward`, `backward` or both."""

    def treatment(self, site: Site) -> str:
        """Returns what error falls on at a site: ``output``, ``inputs``, or nothing."""

    @property
    def operands(self) -> frozenset[str]:
        """What the error falls on; see `ErrorModel.operands`."""

    @property
    def has_rows_apart(self) -> bool:
        """Whether some rows of a batch get error where others get none."""

    @property
    def leaves_attention_whole(self) -> bool:
        """Whether fused attention is not taken apart, whatever is selected."""

    def note_seen(self, key: SiteKey, is_fused: bool) -> None:
        """Notes that a site ran which got no error."""

    @property
    def conditions(self) -> Sequence[Condition]:
        """The sessions whose noise a graph may compute itself; none where it cannot."""

    @property
    def rows_of_conditions(self) -> Sequence[RowsOf]:
        """Whose the rows of the batch are."""


@dataclass
class Module:
    """A module that is being traced."""

    region: str
    name: str
    calls: dict[tuple[str, str], int]
    operator: str
    is_mixed: bool
    site: int = -1  # of the operator that the module is as a whole
    parameters: int = 0


@dataclass
class Running:
    """A session whose model runs now, and what is being traced of it.

    Attributes:
        session: The session.
        hooks: The number that its hooks know.
        mode: Its mode on the stack.
        of: The pass.
        keys: The sites that graphs of this shape of session perturb, by number.
        seen: The others that they hold; whether inside fused attention that was left whole.
        frames: The function of the model's in whose graph each region is.
        stack: The modules that are being traced.
        calls: Of each region, how often each operator was called.
        context: What the compiler traces now.
    """

    session: Compilable
    hooks: int
    mode: Any
    of: Pass
    keys: list[SiteKey]
    seen: dict[SiteKey, bool]
    frames: dict[str, str]
    stack: list[Module] = field(default_factory=list)
    calls: dict[str, dict[tuple[str, str], int]] = field(default_factory=dict)
    context: Any = None

    def number_of(self, key: SiteKey) -> int:
        """Returns the number of a site that a graph perturbs."""
        if key not in self.keys:
            self.keys.append(key)
        return self.keys.index(key)


class State:
    """The sessions that run, outermost first, and what graphs take of them as inputs."""

    def __init__(self) -> None:
        self.running: list[Running] = []
        self.thread = 0  # that they run in
        self.handles: list[Tensor] = []
        self.samples: list[Tensor] = []  # [B, T] of each pass; [0, 0] where no rows are known
        self.positions: list[Tensor] = []  # the same
        self.tables: list[Tables | None] = []
        # Whether graphs compute noise themselves; None: not on the CPU, where a kernel is faster.
        self.computes: bool | None = None


STATE = State()
