"""Ctrl-C and SIGTERM stop a run after the step in hand."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def collect_signals() -> Iterator[list[int]]:
    """A list to which the first Ctrl-C and the first SIGTERM are added. The second one ends the process as usual.

    In another thread than the main one, Python delivers no signals, and the list stays empty.
    """
    received: list[int] = []

    def note(number: int, _) -> None:
        received.append(number)
        signal.signal(number, usual[signal.Signals(number)])

    usual = {}
    if threading.current_thread() is threading.main_thread():
        usual = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
