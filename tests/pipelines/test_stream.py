from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from vitral.pipelines.stream import batched, overlapped


def test_order_is_kept_whatever_the_threads_do() -> None:
    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number * number

    for workers in (0, 1, 4):
        assert list(overlapped(range(40), work, ahead=7, workers=workers)) == [n * n for n in range(40)]


def test_work_goes_on_while_the_consumer_is_busy() -> None:
    done = []
    stream = overlapped(range(8), lambda number: done.append(number) or number, ahead=4, workers=2)
    assert next(stream) == 0
    deadline = time.monotonic() + 5
    while len(done) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert sorted(done[:4]) == [0, 1, 2, 3]
    stream.close()


def test_items_are_drawn_in_the_consumers_thread_and_never_too_far() -> None:
    drawn: list[int] = []
    threads = set()

    def items() -> Iterator[int]:
        for number in range(50):
            threads.add(threading.get_ident())
            drawn.append(number)
            yield number

    stream = overlapped(items(), lambda number: number, ahead=5, workers=3)
    for seen in range(1, 11):
        next(stream)
        assert len(drawn) <= seen + 5
    stream.close()
    assert threads == {threading.get_ident()}


def test_an_exception_arrives_at_its_place() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    stream = overlapped(range(10), work, ahead=4, workers=2)
    assert [next(stream), next(stream), next(stream)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(stream)


def test_no_thread_outlives_a_closed_stream() -> None:
    before = threading.active_count()
    stream = overlapped(iter(int, 1), lambda number: number, ahead=4, workers=3)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_batches() -> None:
    assert list(batched(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batched([], 3)) == []
