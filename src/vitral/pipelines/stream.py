"""Streams: many pictures, bounded memory, reading while computing."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

__all__ = ["batched", "overlapped"]

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def overlapped(
    items: Iterable[_In], work: Callable[[_In], _Out], *, ahead: int, workers: int | None = None
) -> Iterator[_Out]:
    """`map(work, items)` in order, done by threads while the consumer is busy with earlier results.

    The items are drawn in the consumer's own thread, so a generator need not be safe for threads; at most `ahead` of them
    are in work or waiting. An exception, of the items or of the work, reaches the consumer at its place in the order.

    Args:
        items: drawn one by one, and never more than `ahead` before they are asked for.
        work: should release Python's lock to be of use, as decoding and resizing pictures do.
        ahead: how many results may wait.
        workers: threads; as many as there are processors, up to 8, unless told. 0 works in the consumer's thread.
    """
    if workers == 0:
        yield from map(work, items)
        return
    workers = workers or min(8, os.cpu_count() or 1)
    drawn = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="vitral-read") as pool:
        waiting: deque[Future[_Out]] = deque()
        try:
            waiting.extend(pool.submit(work, item) for item in islice(drawn, ahead))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(drawn, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def batched(items: Iterable[_In], size: int) -> Iterator[list[_In]]:
    """Lists of `size` items, the last one perhaps shorter."""
    drawn = iter(items)
    while batch := list(islice(drawn, size)):
        yield batch
