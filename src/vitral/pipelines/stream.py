"""Streams: many pictures, bounded memory, reading while computing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from vitral.base.processors import default_workers
from vitral.errors import UsageError

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

    Raises:
        UsageError: `workers` is no number of threads.
    """
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 0):
        raise UsageError(f"The number of reading threads must be a whole number of at least 0; {workers!r} came.")
    return map(work, items) if workers == 0 else _overlapped(iter(items), work, ahead, workers)


def _overlapped(drawn: Iterator[_In], work: Callable[[_In], _Out], ahead: int, workers: int | None) -> Iterator[_Out]:
    with ThreadPoolExecutor(workers or default_workers(), thread_name_prefix="vitral-read") as pool:
        waiting: deque[Future[_Out]] = deque()

        def draw() -> None:
            try:
                waiting.append(pool.submit(work, next(drawn)))
            except StopIteration:
                pass
            except Exception as error:  # of the items; it waits for its turn like a result
                waiting.append(Future())
                waiting[-1].set_exception(error)

        try:
            for _ in range(ahead):
                draw()
            while waiting:
                result = waiting.popleft().result()
                draw()
                yield result
        finally:
            for future in waiting:
                future.cancel()


def batched(items: Iterable[_In], size: int) -> Iterator[list[_In]]:
    """Lists of `size` items, the last one perhaps shorter, as is the one before an exception of the items."""
    batch: list[_In] = []
    drawn = iter(items)
    try:
        for item in drawn:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except Exception:
        if batch:
            yield batch
        raise
    if batch:
        yield batch
