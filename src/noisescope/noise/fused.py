"""Gaussian error on the CPU in one pass over the tensor, shared among threads.

This half speaks torch: formats, addresses, threads. The loops are in kernel_cpu, which knows arrays
only. Other error models and other devices take the generic path of error_model.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noisescope.noise.address import Address
from noisescope.noise.error_model import TALLY_FIELDS
from noisescope.noise.kernel_cpu import (
    AS_BFLOAT16,
    AS_FLOAT16,
    AS_FLOAT32,
    Recipe,
    fill_words,
    perturb_tasks,
)
from noisescope.noise.rounding import Rounding

# The kernel's name of each format, and the integers that show its bits in torch and in numpy.
FORMATS = {
    torch.float32: (AS_FLOAT32, torch.int32, np.uint32),
    torch.bfloat16: (AS_BFLOAT16, torch.int16, np.uint16),
    torch.float16: (AS_FLOAT16, torch.int16, np.uint16),
}
# Tasks are cut by shape alone: the order of the tally's sums is then free of the number of threads.
ELEMENTS_PER_TASK = 2**14
ELEMENTS_TO_SPLIT = 2**15


def has_kernel(y: torch.Tensor) -> bool:
    """Whether `perturb_gaussian` takes this tensor."""
    return y.device.type == "cpu" and y.dtype in FORMATS


def perturb_gaussian(
    y_RD: torch.Tensor, at: Address, scale: float, is_relative: bool, rounding: Rounding
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds N(0, 1) * scale, times abs(y) where relative: `ErrorModel.perturb` in one pass.

    Args:
        y_RD: float32, bfloat16 or float16 tensor [R, D] on the CPU; it is left as it is.
        at: Where the elements lie.
        scale: Standard deviation of the error.
        is_relative: Whether the scale is a share of each value.
        rounding: 'nearest' or 'stochastic'.

    Returns:
        The noisy values, a new tensor, and the tally, float64 [6]. The same bits however many
        threads share the work.
    """
    # The kernel does a row of one token in 2 us: what stands here is most of its time.
    rows, channels = y_RD.shape
    elements = rows * channels
    number_format = FORMATS[y_RD.dtype][0]
    noisy_RD = torch.empty_like(y_RD, memory_format=torch.contiguous_format)
    rows_per_task = max(1, ELEMENTS_PER_TASK // max(1, channels))
    task_count = -(-rows // rows_per_task)
    tallies = np.zeros((task_count, len(TALLY_FIELDS)))
    if elements == 0:
        return noisy_RD, torch.from_numpy(tallies.sum(axis=0))
    tallies[0, 0] = elements
    arguments = (
        _bits(noisy_RD),
        _bits((y_RD.detach() if y_RD.requires_grad else y_RD).contiguous()),
        at.sample_R.contiguous().numpy(),
        at.position_R.contiguous().numpy(),
        at.channel_R.contiguous().numpy(),
        Recipe(
            at.site,
            at.seed,
            at.draw,
            number_format,
            np.float32(scale),
            is_relative,
            rounding == "stochastic",
        ),
        rows_per_task,
    )

    def work(begin: int, end: int) -> None:
        perturb_tasks(*arguments, begin, end, tallies)

    if elements < ELEMENTS_TO_SPLIT:
        work(0, task_count)
    else:
        _share(work, task_count)
    return noisy_RD, torch.from_numpy(tallies[0] if task_count == 1 else tallies.sum(axis=0))


def _bits(x: torch.Tensor) -> NDArray[Any]:
    """Returns the flat bits of a contiguous tensor, without copying it."""
    _, signed, unsigned = FORMATS[x.dtype]
    # numpy has no bfloat16; for what it has, one view is cheaper than two.
    shown = x.view(signed) if x.dtype == torch.bfloat16 else x
    return shown.numpy().reshape(-1).view(unsigned)


def words_cpu(at: Address, channels: int) -> NDArray[Any]:
    """Returns `random_words` of whole rows as the kernel makes them: uint32 [R, D].

    For holding the kernel against its reference; channel_R and channels are multiples of 4.
    """
    words_R4K = np.empty((len(at), 4, channels // 4), np.uint32)
    for r, row in enumerate(zip(at.channel_R, at.position_R, at.sample_R, strict=True)):
        channel, position, sample = (int(word) & 0xFFFFFFFF for word in row)
        counter = (channel // 4, position, sample, at.site)
        fill_words(
            words_R4K[r], channels // 4, *(np.uint64(w) for w in (*counter, at.seed, at.draw))
        )
    return words_R4K.swapaxes(1, 2).reshape(len(at), channels)


def _share(work: Callable[[int, int], None], task_count: int) -> None:
    """Does all tasks on as many threads as torch would use, the caller's own among them."""
    threads = min(torch.get_num_threads(), task_count)
    cuts = [task_count * i // threads for i in range(threads + 1)]
    if threads == 1:
        return work(0, task_count)
    pool = _pool(threads - 1, os.getpid())
    others = [pool.submit(work, *cut) for cut in pairwise(cuts[1:])]
    work(cuts[0], cuts[1])
    for other in others:
        other.result()


@cache
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """Returns the threads of a process: a forked child has its parent's object, but no threads."""
    return ThreadPoolExecutor(workers, thread_name_prefix=f"noisescope-{process}")
