"""Fair timing on a shared machine: contenders take turns, medians are compared, ratios are what counts."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

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
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = models[0] if models else processor
    packages = ("torch", "transformers", "timm", "torchvision", "pillow", "numpy")
    return {
        "date": datetime.date.today().isoformat(),
        "processor": f"{processor}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
