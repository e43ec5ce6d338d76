"""Where an element lies: the address that its random number is a function of.

A number is asked for by address, never drawn from a stream, so batching, padding, order, caching
and device cannot change it. Which site, sample or position a row has is not decided here.
"""

import hashlib
from dataclasses import dataclass, replace

import torch

from noisescope.errors import InputError

WORD_COUNT = 2**32


@dataclass(frozen=True)
class Address:
    """Where the elements of a [R, D] tensor lie. Row r, column c has channel ``channel_R[r] + c``.

    Everything is taken modulo 2**32, so a negative channel is a channel near 2**32.

    Attributes:
        seed: The first key word, 0 <= seed < 2**32, of all rows; or int64 [R], by row.
        draw: The second key word, 0 <= draw < 2**32, one realisation of the noise, of all rows; or
            int64 [R], by row.
        site: The site's word, 0 <= site < 2**32; see `site_word`.
        sample_R: int64 [R], the sample of each row, on the tensor's device.
        position_R: int64 [R], the position of each row.
        channel_R: int64 [R], the channel of the first element of each row; any integer.
    """

    seed: int | torch.Tensor
    draw: int | torch.Tensor
    site: int
    sample_R: torch.Tensor
    position_R: torch.Tensor
    channel_R: torch.Tensor

    def __post_init__(self) -> None:
        words = {"seed": self.seed, "draw": self.draw, "site": self.site}
        by_row = [self.sample_R, self.position_R, self.channel_R]
        for name, word in words.items():
            if isinstance(word, torch.Tensor) and name != "site":
                by_row.append(word)
            else:
                _check_word(name, word)
        for rows in by_row:
            if rows.dtype != torch.int64 or rows.dim() != 1 or len(rows) != len(self.sample_R):
                raise ValueError(
                    f"rows of an address: {rows.dtype} {list(rows.shape)}; "
                    f"torch.int64 of one common length is needed"
                )

    def __len__(self) -> int:
        return len(self.sample_R)

    def at_site(self, site: int) -> "Address":
        """Returns the address of the same rows at another site."""
        # Nothing is checked again: an address is made for every call of an operator.
        other = object.__new__(Address)
        other.__dict__.update(self.__dict__, site=site)
        return other

    def rows(
        self,
        begin: int,
        end: int,
        seed: int | torch.Tensor | None = None,
        draw: int | torch.Tensor | None = None,
    ) -> "Address":
        """Returns the address of rows begin..end-1, under another seed and draw where given.

        Args:
            begin: The first row.
            end: The row after the last.
            seed: Of all these rows, or int64 [end - begin].
            draw: Of all these rows, or int64 [end - begin].
        """
        return replace(
            self,
            seed=_part(self.seed, begin, end) if seed is None else seed,
            draw=_part(self.draw, begin, end) if draw is None else draw,
            sample_R=self.sample_R[begin:end],
            position_R=self.position_R[begin:end],
            channel_R=self.channel_R[begin:end],
        )


def site_word(name: str) -> int:
    """Returns the 32-bit word of a site's name: the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2s(name.encode(), digest_size=4).digest(), "little")


def flat_address(
    seed: int, draw: int, site: int, rows: int, device: torch.device | str = "cpu"
) -> Address:
    """Returns the address of a tensor without samples: row r is position r of sample 0."""
    zero_R = torch.zeros(rows, dtype=torch.int64, device=device)
    position_R = torch.arange(rows, dtype=torch.int64, device=device)
    return Address(seed, draw, site, sample_R=zero_R, position_R=position_R, channel_R=zero_R)


def _part(word: int | torch.Tensor, begin: int, end: int) -> int | torch.Tensor:
    return word[begin:end] if isinstance(word, torch.Tensor) else word


def _check_word(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < WORD_COUNT:
        raise InputError(
            f"{name} {value!r}: an integer from 0 to {WORD_COUNT - 1} is needed; try 0"
        )
