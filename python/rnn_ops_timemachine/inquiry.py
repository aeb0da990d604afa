"""How a job is, as its scheduler answers the other roles: it waits for some of them, it runs, or why it ends.

ps-lite has no message for this. So roles ask by UDP, at the number of the scheduler's TCP port. Where UDP does not pass, nobody
gets an answer, and the roles have only the heartbeats.
"""
import contextlib
import socket
from typing import Any, Dict, NamedTuple, Optional

WAITS, RUNS, ENDS = "waits", "runs", "ends"
_LONGEST = 1000  # bytes of a datagram


class Answer(NamedTuple):
    """``state``: one of the three above. ``reason``: why the job ends."""
    state: str
    reason: str


class Answers:
    """The scheduler's side."""

    def __init__(self, host: str, port: int):
        self._socket = _open(host, port, socket.socket.bind)

    def give(self, state: str, reason: str = "") -> Dict[Any, str]:
        """Answer all questions that have come → the names of the roles that asked, by their addresses."""
        asked = {}
        with contextlib.suppress(OSError):
            while self._socket:
                name, address = self._socket.recvfrom(_LONGEST)
                asked[address] = name.decode("utf-8", "replace")
                self._socket.sendto(f"{state} {reason}".encode()[:_LONGEST], address)
        return asked


class Questions:
    """The side of a worker or a server."""

    def __init__(self, host: str, port: int):
        self._socket = _open(host, port, socket.socket.connect)

    def ask(self, name: str) -> Optional[Answer]:
        """Ask, by the role's name → the newest answer that has come to the questions so far, if any."""
        newest = None
        with contextlib.suppress(OSError):
            while self._socket:
                newest = self._socket.recv(_LONGEST)
        with contextlib.suppress(OSError):
            if self._socket:
                self._socket.send(name.encode())
        if newest is None:
            return None
        state, _, reason = newest.decode("utf-8", "replace").partition(" ")
        return Answer(state, reason)


def _open(host, port, bind_or_connect):
    """A socket that never blocks; None where it cannot be had."""
    with contextlib.suppress(OSError):
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setblocking(False)
            bind_or_connect(made, address)
            return made
        except OSError:
            made.close()
