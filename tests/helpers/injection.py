"""What noise is expected at a site, computed from the definition and not by inject/.

A module of one operator, the addresses of its rows written down by hand, and the normal numbers
that the reference generator gives there.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from noisescope.inject import Session
from noisescope.noise import Address, site_word, standard_normal

WORD = 0xFFFFFFFF
SEED, DRAW = 11, 3


class OneOperator(nn.Module):
    """Runs one function, or one module, as its child `op`."""

    def __init__(self, run: Callable[..., Tensor] | nn.Module, **parameters: Tensor) -> None:
        super().__init__()
        self.op = run if isinstance(run, nn.Module) else _Function(run, parameters)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class _Function(nn.Module):
    def __init__(self, run: Callable[..., Tensor], parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self.run = run
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value.clone()))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, **dict(self.named_parameters()))


def mixed(value: int, position: int) -> int:
    """The hash of a token and a position, in Python's integers."""
    x = (value * 0x9E3779B1 + position * 0x85EBCA77 + 0x27D4EB2F) & WORD
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & WORD
    return x ^ (x >> 16)


def prefix_words(tokens: Sequence[int]) -> list[int]:
    """The sample's word at each position of an unnamed text."""
    total, words = 0, []
    for position, token in enumerate(tokens):
        total = (total + mixed(token, position)) & WORD
        words.append(total)
    return words


def named_rows(names: Sequence[str], length: int) -> list[tuple[int, int]]:
    """(sample, position) of every row of a [B, T, ..] tensor of named samples."""
    return [(site_word(f"sample:{n}"), t) for n in names for t in range(length)]


def lost_rows(names: Sequence[str], length: int, rows: int) -> list[tuple[int, int]]:
    """(sample, position) of rows that no token is known for."""
    word = sum(mixed(s, p) for s, p in named_rows(names, length)) & WORD
    return [(word, row) for row in range(rows)]


def normals(
    site: str,
    rows: Sequence[tuple[int, int]],
    channels: int,
    first: Sequence[int] | int = 0,
    draw: int = DRAW,
    seed: int = SEED,
) -> Tensor:
    """The normal numbers at a site: float64 [R, D]."""
    firsts = [first] * len(rows) if isinstance(first, int) else list(first)
    at = Address(
        seed=seed,
        draw=draw,
        site=site_word(site),
        sample_R=torch.tensor([s for s, _ in rows]),
        position_R=torch.tensor([p for _, p in rows]),
        channel_R=torch.tensor(firsts),
    )
    return standard_normal(at, channels).double()


def fired(session: Session, phase: str = "forward") -> dict[str, int]:
    """Injections of a phase by site, those that are not 0."""
    return {site: n[phase] for site, n in session.counts.items() if n[phase]}
