"""Which processor computes, by the names users type."""

from __future__ import annotations

import torch

from vitral.errors import UnknownNameError, UsageError

__all__ = ["resolve_device", "resolve_dtype"]


def resolve_device(device: str | int | torch.device | None = None) -> torch.device:
    """A device that is there.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps"; a number for that GPU, −1 for the CPU (as transformers counts); None or
            "auto" for a GPU where there is one.

    Raises:
        UsageError: no such device on this machine.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device("cpu" if device == -1 else f"cuda:{device}" if isinstance(device, int) else device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"{device!r} is not the name of a device; expected cpu, cuda, cuda:1 or mps.") from error
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (chosen.index or 0) >= present.get(chosen.type, 0):
        there = ", ".join(f"{count} {name}" for name, count in present.items() if count)
        raise UsageError(f"This machine has no {chosen}; it has {there}.")
    return chosen


def resolve_dtype(dtype: str | torch.dtype | None = None) -> torch.dtype:
    """A precision to compute in.

    Args:
        dtype: "float32", "bfloat16" or "float16", or PyTorch's own; None and "auto" are single precision.

    Raises:
        UnknownNameError: no such precision.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": torch.float32}
    if dtype is None:
        return torch.float32
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    if str(dtype) not in known:
        raise UnknownNameError("dtype", dtype, known)
    return known[str(dtype)]
