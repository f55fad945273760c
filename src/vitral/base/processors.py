"""How many processors there are to share."""

from __future__ import annotations

import os

__all__ = ["default_workers", "processors"]


def processors() -> int:
    """The processors this program may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(*, processes: int = 1, computing: int = 0) -> int:
    """How many should read where nobody said: the processors this program may use, up to 8.

    Args:
        processes: programs on this machine that share them.
        computing: processors of each that something else needs.
    """
    return min(8, max(0, processors() // processes - computing))
