"""Fair timing on a shared machine: contenders take turns, medians are compared, ratios are what counts."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from vitral.training import compare

__all__ = ["interleaved", "machine", "whole_process"]


def interleaved(contenders: dict[str, Callable[[], object]], rounds: int, warmups: int = 1) -> dict[str, float]:
    """Median seconds of each contender over rounds in which all of them run, in turning order."""
    for _ in range(warmups):
        for run in contenders.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def whole_process(commands: dict[str, list[str]], rounds: int, cwd: Path | None = None) -> dict[str, float]:
    """Median wall seconds of whole processes, interleaved; a command that fails stops the benchmark."""

    def runner(command: list[str]) -> Callable[[], object]:
        return lambda: subprocess.run(command, check=True, capture_output=True, cwd=cwd)

    return interleaved({name: runner(command) for name, command in commands.items()}, rounds)


def machine() -> dict[str, str]:
    """Where and with what a measurement was made."""
    here = compare.machine()
    packages = ("torch", "transformers", "timm", "torchvision", "pillow", "numpy")
    return {
        "date": here["date"],
        "processor": f"{here['processor']}, {here['cores']} cores",
        "python": here["python"],
        **{package: version(package) for package in packages},
    }
