"""Gaussian error in one pass over the tensor; on the CPU it is shared among threads.

This half speaks torch: formats, addresses, threads. The loops are in kernel_cpu, which knows memory
addresses only, and on a GPU in kernel_triton. Other error models and other devices take the generic
path of error_model.
"""

import ctypes
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
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
    C_KERNEL,
    fill_words,
    kernel,
    pack_job,
)
from noisescope.noise.rounding import Rounding

# The kernel's name of each format.
FORMATS = {
    torch.float32: AS_FLOAT32,
    torch.bfloat16: AS_BFLOAT16,
    torch.float16: AS_FLOAT16,
}
_PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)
# Tasks are cut by shape alone: the order of the tally's sums is then free of the number of threads.
ELEMENTS_PER_TASK = 2**14
# A forked child has none of its parent's OpenMP threads, and waits for them for ever.
_PROCESS = os.getpid()


def has_kernel(y: torch.Tensor) -> bool:
    """Whether `perturb_gaussian` takes this tensor."""
    return (
        y.dtype in FORMATS
        and (y.is_cpu or (y.is_cuda and _has_triton()))
        # What else there is may have no address, or other values than those that lie there.
        and type(y) in _PLAIN_TYPES
        and y.layout is torch.strided
        and not y.is_neg()
        and not y._is_zerotensor()
        and not torch._C._functorch.is_functorch_wrapped_tensor(y)
    )


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def perturb_gaussian(
    y_RD: torch.Tensor,
    at: Address,
    scale: float | torch.Tensor,
    is_relative: bool,
    rounding: Rounding,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds N(0, 1) * scale, times abs(y) where relative: `ErrorModel.perturb` in one pass.

    A row whose scale is 0 is taken as it is, bit by bit.

    Args:
        y_RD: float32, bfloat16 or float16 tensor [R, D] that `has_kernel` takes.
        at: Where the elements lie, on y's device.
        scale: Standard deviation of the error, at least 0: of all rows, or float32 [R] by row.
        is_relative: Whether the scale is a share of each value.
        rounding: 'nearest' or 'stochastic'.
        out: Where the noisy values are written: contiguous, of y's shape and dtype; y itself, or
            memory apart from it. None makes a new tensor.

    Returns:
        The noisy values, and the tally: float64 [6], or [R, 6] where scale is by row. The same bits
        however many threads share the work, and whether in place or not.

    Raises:
        ValueError: at, scale or out has another shape, dtype, layout or device, or out overlaps y.
    """
    # The kernel does a row of one token in 2 us: what stands here is most of its time.
    rows, channels = y_RD.shape
    _check_address(at, rows, y_RD.device)
    common_scale, scale_R = _checked_scale(scale, rows, y_RD.device)
    if out is not None:
        _check_output(y_RD, out)
        # A gradient that needs the values from before then fails instead of being wrong.
        torch.autograd.graph.increment_version(out)
    if y_RD.is_cuda:
        from noisescope.noise.kernel_triton import perturb_gaussian_triton

        return perturb_gaussian_triton(y_RD, at, scale, is_relative, rounding, out)
    noisy_RD = out
    if noisy_RD is None:
        noisy_RD = torch.empty_like(y_RD, memory_format=torch.contiguous_format)
    rows_per_task = max(1, ELEMENTS_PER_TASK // max(1, channels))
    task_count = -(-rows // rows_per_task)
    is_by_row = scale_R is not None
    is_one_tally = task_count == 1 and not is_by_row
    size = () if is_one_tally else (rows if is_by_row else task_count,)
    tallies = torch.zeros(*size, len(TALLY_FIELDS), dtype=torch.float64, device="cpu")
    # Named, as the kernel gets their addresses: they must outlive it.
    y_RD, claims = y_RD.contiguous(), ctypes.c_int64(0)
    sample_R, position_R = at.sample_R.contiguous(), at.position_R.contiguous()
    channel_R = at.channel_R.contiguous()
    seed, seed_R = _common_or_by_row(at.seed)
    draw, draw_R = _common_or_by_row(at.draw)
    job = pack_job(
        noisy_RD.data_ptr(),
        y_RD.data_ptr(),
        rows,
        channels,
        FORMATS[y_RD.dtype],
        sample_R.data_ptr(),
        position_R.data_ptr(),
        channel_R.data_ptr(),
        at.site,
        seed,
        _address(seed_R),
        draw,
        _address(draw_R),
        common_scale,
        _address(scale_R),
        is_relative,
        rounding == "stochastic",
        rows_per_task,
        1 if is_by_row else rows_per_task,
        tallies.data_ptr(),
        ctypes.addressof(claims),
    )
    _run(job, task_count)
    return noisy_RD, tallies if is_by_row or is_one_tally else tallies.sum(dim=0)


def _check_address(at: Address, rows: int, device: torch.device) -> None:
    if (
        at.sample_R.shape[0] == rows
        and at.sample_R.device == at.position_R.device == at.channel_R.device == device
        and (not isinstance(at.seed, torch.Tensor) or at.seed.device == device)
        and (not isinstance(at.draw, torch.Tensor) or at.draw.device == device)
    ):
        return
    words = (at.sample_R, at.position_R, at.channel_R, at.seed, at.draw)
    devices = {str(word.device) for word in words if isinstance(word, torch.Tensor)}
    raise ValueError(
        f"address of {len(at)} rows on {', '.join(sorted(devices))}; "
        f"{rows} rows, all on {device}, are needed"
    )


def _check_output(y_RD: torch.Tensor, out: torch.Tensor) -> None:
    if out is y_RD and out.is_contiguous():
        return
    is_alike = (out.shape, out.dtype, out.device) == (y_RD.shape, y_RD.dtype, y_RD.device)
    if not is_alike or not out.is_contiguous():
        raise ValueError(
            f"out: {out.dtype} {list(out.shape)} of strides {out.stride()} on {out.device}; "
            f"contiguous {y_RD.dtype} {list(y_RD.shape)} on {y_RD.device} is needed"
        )
    is_y = out.data_ptr() == y_RD.data_ptr() and y_RD.is_contiguous()
    if not is_y and out.data_ptr() < _end(y_RD) and y_RD.data_ptr() < _end(out):
        raise ValueError("out overlaps y; y itself, or memory apart from it, is needed")


def _end(x: torch.Tensor) -> int:
    """Returns the address after a tensor's last element."""
    if not x.numel():
        return x.data_ptr()
    last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr() + (last + 1) * x.element_size()


def _checked_scale(
    scale: float | torch.Tensor, rows: int, device: torch.device
) -> tuple[float, torch.Tensor | None]:
    """Returns the common scale, and the scales by row where they are given so."""
    if not isinstance(scale, torch.Tensor):
        return float(scale), None
    if scale.dtype != torch.float32 or scale.shape != (rows,) or scale.device != device:
        raise ValueError(
            f"scale: {scale.dtype} {list(scale.shape)} on {scale.device}; a number, or "
            f"torch.float32 [{rows}] on {device}, is needed"
        )
    return 0.0, scale.contiguous()


def _common_or_by_row(word: int | torch.Tensor) -> tuple[int, torch.Tensor | None]:
    """Returns the common word, and the words by row where they are given so."""
    return (0, word.contiguous()) if isinstance(word, torch.Tensor) else (word, None)


def _address(x: torch.Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def words_cpu(at: Address, channels: int) -> NDArray[Any]:
    """Returns `random_words` of whole rows as the kernel makes them: uint32 [R, D].

    For holding the kernel against its reference; channel_R are multiples of 4, channels of 128, and
    seed and draw are common to the rows.
    """
    words_R4K = np.empty((len(at), 4, channels // 4), np.uint32)
    for r, row in enumerate(zip(at.channel_R, at.position_R, at.sample_R, strict=True)):
        channel, position, sample = (int(word) & 0xFFFFFFFF for word in row)
        counter = (channel // 4, position, sample, at.site)
        fill_words(
            words_R4K[r], channels // 4, *(np.uint64(w) for w in (*counter, at.seed, at.draw))
        )
    return words_R4K.swapaxes(1, 2).reshape(len(at), channels)


def _run(job: bytes, task_count: int) -> None:
    """Does a job's tasks on as many threads as torch would use, the caller's own among them."""
    threads = min(torch.get_num_threads(), task_count)
    if threads <= 1:
        kernel()(job)
    elif os.getpid() == _PROCESS and (run_on_team := _openmp()):
        run_on_team(kernel(), job, threads, 0)
    else:
        _run_on_pool(job, threads)


@cache
def _openmp() -> Any:
    """Returns OpenMP's call of a C function on several threads, or None where torch has none.

    After each operator torch's threads wait for the next, busily for a while: who brings threads of
    his own then finds the cores taken.
    """
    if sys.platform != "linux" or not torch.backends.openmp.is_available():
        return None
    run_on_team = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    if run_on_team is not None:
        run_on_team.restype = None
        run_on_team.argtypes = (C_KERNEL, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint)
    return run_on_team


def _run_on_pool(job: bytes, threads: int) -> None:
    others = [_pool(threads - 1, os.getpid()).submit(kernel(), job) for _ in range(threads - 1)]
    kernel()(job)
    for other in others:
        # What has not begun by now would find nothing to do.
        if not other.cancel():
            other.result()


@cache
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """Returns the threads of a process: a forked child has its parent's object, but no threads."""
    return ThreadPoolExecutor(workers, thread_name_prefix=f"noisescope-{process}")
