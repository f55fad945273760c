"""A command in several processes of this machine, which find each other as those of `torch.distributed` do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from vitral.base.processors import processors

__all__ = ["among_several", "in_processes"]

_LOOK = 0.1  # seconds between two looks at whether one has ended
_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
_GRACE = 10.0  # seconds that the others then have to end by themselves
# Of a 1 × 1 convolution the strides of weights and gradients may differ in name only, of which PyTorch warns.
_QUIET = "ignore:Grad strides do not match"


def among_several() -> bool:
    """Whether this process is one of several already."""
    return "WORLD_SIZE" in os.environ


def in_processes(count: int, words: Sequence[str]) -> int:
    """Run `vitral` with these words in so many processes, each on its share of the processors, and wait for all of them.

    Ctrl-C reaches every one of them, and SIGTERM is passed on. When one fails, the others are ended.

    Returns:
        The exit code of the first that failed, 128 and its number where a signal ended it; 0 where none did.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "PYTHONWARNINGS": ",".join(filter(None, (_QUIET, os.environ.get("PYTHONWARNINGS")))),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, processors() // count))),
    }
    command = [sys.executable, "-m", "vitral", *words]
    started = [
        subprocess.Popen(command, env={**os.environ, **told, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]

    def pass_on(number: int, frame: FrameType | None) -> None:
        _tell(started, number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the terminal sends to all of them; they stop by themselves
    signal.signal(signal.SIGTERM, pass_on)
    while any(one.poll() is None for one in started) and not _failed(started):
        time.sleep(_LOOK)
    failed = _failed(started)
    if failed not in _STOPPED:  # then all were asked to stop, and the first one may take its time to save
        _end(started)
    for one in started:
        one.wait()
    return failed or _failed(started)


def _failed(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """The exit code of the first that did not end well; 0 where there is none."""
    code = next((one.returncode for one in processes if one.returncode), 0)
    return code if code >= 0 else 128 - code


def _tell(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    """Send a signal to those that are alive."""
    for one in processes:
        if one.poll() is None:
            one.send_signal(number)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for those that are left, and end them where that takes long: they may wait for one that is no more."""
    _tell(processes, signal.SIGTERM)
    until = time.monotonic() + _GRACE
    while any(one.poll() is None for one in processes) and time.monotonic() < until:
        time.sleep(_LOOK)
    _tell(processes, signal.SIGKILL)
