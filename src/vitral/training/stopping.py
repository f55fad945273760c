"""Being asked to stop: a training ends after the step it is in, with everything saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Stop", "listening"]


class Stop:
    """Whether, and by which signal, the program was asked to stop.

    Attributes:
        asked: the signal's name ("SIGTERM"), or None.
    """

    def __init__(self) -> None:
        self.asked: str | None = None


@contextmanager
def listening() -> Iterator[Stop]:
    """Note SIGTERM and SIGINT (Ctrl-C) instead of ending at once; a Ctrl-C after another signal ends at once.

    Only the main thread of a program is told of signals; in another one this listens to nothing.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def noted(number: int, _: FrameType | None) -> None:
        if stop.asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = signal.Signals(number).name

    before = {number: signal.signal(number, noted) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
