"""Run a function in a process of its own, for a limited time: a hang, a crash or a broken GPU context costs that call alone."""
import contextlib
import multiprocessing
import signal
import time
from typing import Any, Callable, Optional

_END = "end"
_GONE = 20  # seconds to wait for a killed process: the driver can hold one whose GPU hangs


def run(function: Callable, *arguments: Any, seconds: float, report: Callable[[Any], None]) -> Optional[str]:
    """Call ``function(send, *arguments)`` in a new process → why it did not return, or None.

    Parameters
    ----------
    function : callable
        Of a module that the new process can import. Each object that it gives to ``send`` reaches ``report`` at once.
    seconds : float
        After these the process is killed.
    report : callable
        Called in this process with each object.
    """
    context = multiprocessing.get_context("spawn")  # CUDA and MXNet do not work in a forked process
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    end = time.monotonic() + seconds
    try:
        while ours.poll(max(0, end - time.monotonic())):
            kind, value = ours.recv()
            if kind == _END:
                return value
            report(value)
        return f"did not end within {seconds:.0f} s"
    except EOFError:
        process.join(_GONE)
        return f"its process ended with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join(_GONE)
        ours.close()


def _call(connection, function, arguments):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches this process too; its parent ends it
    try:
        function(lambda value: connection.send(("value", value)), *arguments)
        why_not = None
    except Exception as error:
        why_not = f"{type(error).__name__}: {' '.join(str(error).split())}"
    with contextlib.suppress(OSError):  # the parent is gone
        connection.send((_END, why_not))
