"""The options that say how a model is loaded: dtype, device, attention.

Each is checked before any file is read, and a wrong one is answered with what is accepted here.
"""

from collections.abc import Mapping

import torch

from noisescope.errors import InputError

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Returns the dtype that is meant; None for ``None`` and ``"auto"``: as saved."""
    if dtype is None or dtype == "auto":
        return None
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    raise InputError(f"dtype {str(dtype)!r}: accepted are {', '.join(DTYPES)} and auto (as saved)")


def parse_device(device: str | None) -> str:
    """Returns a device of this machine, or ``"auto"``; None is the first GPU, or else the CPU."""
    here = _devices_here()
    if device is None:
        return "cuda:0" if "cuda:0" in here else "cpu"
    if device not in (*here, "auto"):
        raise InputError(
            f"device {device!r}: not available; accepted here: {', '.join((*here, 'auto'))}"
        )
    return device


def _devices_here() -> list[str]:
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    # Not "mps": noise and metrics are computed in float64, which it lacks.
    return ["cpu", *(["cuda"] if gpus else []), *gpus]


def check_attention(name: str | None) -> None:
    """Raises an InputError unless the name is one of ``ATTENTIONS`` or None."""
    # Any other name would make the library fetch a kernel of that name from the hub.
    if name is not None and name not in ATTENTIONS:
        raise InputError(f"attention {name!r}: accepted are {', '.join(ATTENTIONS)}")
