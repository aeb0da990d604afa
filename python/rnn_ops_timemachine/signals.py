"""SIGINT (Ctrl-C), SIGTERM and SIGHUP, held back until Python may be left.

MXNet calls a custom operator's Python from within its own code. An exception there does not reach the caller: the process
crashes or waits for ever. And an import that is interrupted can lose the exception, or print it and go on.
"""
import contextlib
import signal
import threading
from typing import Callable, Iterator

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_came = None  # numbers of the signals that came while they are held back; None while they are not


class Interrupted(KeyboardInterrupt):
    """``number`` is the signal's."""

    def __init__(self, number):
        super().__init__("interrupted" if number == signal.SIGINT else f"interrupted by {signal.Signals(number).name}")
        self.number = number


@contextlib.contextmanager
def held_back() -> Iterator[Callable[[], None]]:
    """Keep the signals from ending the process, or raising wherever Python is, until the function that this yields is
    called: it raises `Interrupted` if one has come.

    A signal that is ignored, as SIGHUP under nohup, stays ignored, and another handler stays in place.
    """
    global _came
    if _came is not None or threading.current_thread() is not threading.main_thread():
        yield _raise
        return
    before = {number: signal.getsignal(number) for number in NUMBERS}
    before = {number: handler for number, handler in before.items()
              if handler in (signal.SIG_DFL, signal.default_int_handler)}
    _came = []
    for number in before:
        signal.signal(number, lambda came, _: _came.append(came))
    try:
        yield _raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _came = None


def _raise():
    if _came:
        raise Interrupted(_came[0])
