"""How much memory a network needs to answer: its peak in a fresh process, where nothing else has taken any.

A process's greatest size never falls, so each network gets a process of its own, and batches are tried from the smallest
up. What counts is what comes on top of the size that the process had before the network was built: weights, what passes
through the layers, and what the kernels ask for besides.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from vitral.checkpoints.load import load_model
from vitral.errors import CheckpointError, UsageError, VitralError
from vitral.models.catalogue import CATALOGUE, create_model
from vitral.models.network import Network

__all__ = ["network_of", "peak_memory", "peaks_here"]

_CHILD = (
    "import json, sys; from vitral.training.footprint import peaks_here; print(json.dumps(peaks_here(json.load(sys.stdin))))"
)


def network_of(model: str, fields: Mapping[str, Any], size: tuple[int, int]) -> Network:
    """A network made for pictures of a size, in evaluation mode.

    Args:
        model: a name of the catalogue, whose weights are random, or a checkpoint, whose positions are carried over.
        fields: what differs from the published configuration; for networks of the catalogue.
        size: (height, width) in pixels.

    Raises:
        UsageError: the network cannot be made for that size, or has no such fields.
        CheckpointError: the checkpoint cannot be read, or holds no network for pictures.
    """
    if model in CATALOGUE:
        return create_model(model, **{**fields, "image_size": size}).eval()
    found = load_model(model)
    if not isinstance(found, Network):
        raise CheckpointError(f"{model} holds a {type(found).__name__}, which is no network for pictures.")
    return found if tuple(found.config.image_size) == size else found.resized(size).eval()


def peak_memory(
    model: str,
    fields: Mapping[str, Any],
    size: tuple[int, int],
    batches: Sequence[int],
    *,
    device: str = "cpu",
    threads: int = 1,
) -> dict[int, int]:
    """Bytes that a network needs at most to answer batches of random pictures, each after the smaller ones.

    Args:
        model: see `network_of`.
        fields: likewise.
        size: (height, width) of the pictures in pixels.
        batches: numbers of pictures.
        device: where to compute; on a GPU, the memory of tensors there counts.
        threads: processor cores to compute on.

    Returns:
        Batch → bytes; empty on systems that do not tell.

    Raises:
        UsageError: the network cannot do that, or memory does not suffice.
    """
    told = {
        "model": model,
        "fields": dict(fields),
        "size": size,
        "batches": sorted(batches),
        "device": device,
        "threads": threads,
    }
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ran = subprocess.run(
        [sys.executable, "-c", _CHILD], input=json.dumps(told), capture_output=True, text=True, env=environment, check=False
    )
    if ran.returncode < 0:
        ended = signal.Signals(-ran.returncode).name
        raise UsageError(f"The process that measured memory was ended by {ended}; most likely there was not enough of it.")
    if ran.returncode:
        raise UsageError(f"Memory could not be measured: {(ran.stderr.strip().splitlines() or ['no reason was given'])[-1]}")
    answer = json.loads(ran.stdout.strip().splitlines()[-1])
    if "error" in answer:
        raise UsageError(answer["error"])
    return {int(batch): int(count) for batch, count in answer["peaks"].items()}


def peaks_here(told: Mapping[str, Any]) -> dict[str, Any]:
    """What `peak_memory` asks a fresh process to do.

    Args:
        told: its arguments, as JSON has them.

    Returns:
        {"peaks": {batch: bytes}}, or {"error": a sentence}.
    """
    torch.set_num_threads(told["threads"])
    device, (height, width) = torch.device(told["device"]), told["size"]
    _awaken(device)
    before, peaks = _greatest(device), {}
    if before is None:
        return {"peaks": {}}
    try:
        network = network_of(told["model"], told["fields"], (height, width)).to(device)
        for batch in told["batches"]:
            with torch.inference_mode():
                network(torch.zeros(batch, network.config.channels, height, width, device=device))
            peaks[batch] = (_greatest(device) or before) - before
    except (VitralError, RuntimeError, MemoryError) as error:
        return {"error": str(error).strip() or type(error).__name__}
    return {"peaks": peaks}


def _awaken(device: torch.device) -> None:
    """Have every library load what it needs for its first product, which is no network's."""
    with torch.inference_mode():
        tokens = torch.zeros(1, 1, 8, 8, device=device)
        F.conv2d(tokens, torch.zeros(8, 1, 3, 3, device=device))
        F.scaled_dot_product_attention(F.linear(tokens, tokens[0, 0]), tokens, tokens)


def _greatest(device: torch.device) -> int | None:
    """Bytes that this process had at most so far, in main memory or in a GPU's; None where the system does not tell.

    Linux hands the greatest size of whoever starts a process on to `getrusage`; its status has the process's own. Pages of
    files are left out there: they are the libraries' code, of which each kernel brings some on its first call.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        told = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        if "VmHWM" not in told:
            return None
        greatest, *files = (int(told.get(name, "0 kB").split()[0]) for name in ("VmHWM", "RssFile", "RssShmem"))
        return 1024 * (greatest - sum(files))
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None
