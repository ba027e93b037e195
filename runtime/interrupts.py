"""Being told to stop: SIGTERM and a closed terminal as Ctrl-C, so that one way of cleaning up serves for all."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """While it lasts, SIGTERM and a closed terminal end the work as Ctrl-C does: by a `KeyboardInterrupt`.

    Signals that the program ignores (nohup) or handles itself stay as they are.
    """

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [number for number in _numbers() if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def kept_handlers() -> Iterator[None]:
    """Put the handlers of those signals back at its end, whatever a library has made of them meanwhile."""
    kept = {number: signal.getsignal(number) for number in _numbers()}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in kept.items():
                # None is a handler that Python did not set, and cannot.
                if handler is not None:
                    signal.signal(number, handler)


def _numbers() -> list[signal.Signals]:
    return [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
