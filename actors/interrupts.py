"""SIGINT and SIGTERM during a run: Ctrl-C, a scheduler, a spot machine that is taken away."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""The exit code of an interrupted run."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """The first one ends the run after the step in progress, or at once while nothing can be saved; the second ends the
    process as `kill -9` would: every file that a run writes survives that."""

    def __init__(self) -> None:
        self._finish: Callable[[], bool] | None = None
        self._seen = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Until the end of the block."""
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        self.take()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def take(self) -> None:
        """Handle the signals; again after Ray's start, which sets its own handler of SIGTERM."""
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    def finish_with(self, finish: Callable[[], bool]) -> None:
        """From now on the first signal calls this; it returns False where there is nothing to finish yet."""
        self._finish = finish

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._seen += 1
        if self._seen > 1:
            _say("interrupt: stopped at once; the newest checkpoint is whole")
            os._exit(INTERRUPTED)
        if self._finish is None or not self._finish():
            _say("interrupt: stopped while starting, nothing is lost: the same command starts again")
            # every task that this cuts off would print a traceback of its own
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            raise KeyboardInterrupt
        _say("interrupt: finishing and saving the step in progress; press again to stop at once")


def _say(line: str) -> None:
    # a handler runs between any two instructions, also in the middle of a print
    os.write(2, f"{line}\n".encode())
