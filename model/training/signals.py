"""Ctrl-C and SIGTERM stop a run after the step in hand."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def collect_signals() -> Iterator[list[int]]:
    """A list that gets the first Ctrl-C and SIGTERM; the second ends the process."""
    received: list[int] = []
    main = threading.current_thread() is threading.main_thread()  # other threads get no signals
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if main}

    def note(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, usual[signal.Signals(number)])

    for number in usual:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
