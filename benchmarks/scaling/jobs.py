"""Jobs whose workers wait for turns, so that several of them can be measured in interleaved rounds."""
import json
import multiprocessing.connection
import os
import socket
import subprocess
import sys
import tempfile

_JOIN, _ANSWER = 90, 90  # seconds that a worker has


class Job:
    """The processes of a job, for the time of a ``with`` block.

    Parameters
    ----------
    name : str
    workers, servers : int
        No worker: one process without a KVStore.
    threshold : float
        Of 2bit compression; by default nothing is compressed.
    namespaces : dict
        Of a `network.Relay`.
    """

    def __init__(self, name, workers=0, servers=1, threshold=None, namespaces=None):
        self.name, self.workers, self.servers, self.threshold = name, workers, servers, threshold
        self._namespaces, self._connections = namespaces, []

    def __enter__(self):
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
            address = os.path.join(folder, "turns")
            listening.bind(address)
            listening.listen()
            description = dict(address=address, workers=self.workers, servers=self.servers, threshold=self.threshold,
                               namespaces=self._namespaces)
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.worker", json.dumps(description)],
                stdin=subprocess.DEVNULL, env=dict(os.environ, RNN_OPS_STARTED_BY=str(os.getpid())))
            try:
                self._join(listening)
            except BaseException:
                self._end()
                raise
        return self

    def _join(self, listening):
        found = {}
        for _ in range(max(1, self.workers)):
            listening.settimeout(_JOIN)
            try:
                accepted, _ = listening.accept()
            except socket.timeout:
                raise RuntimeError(f"{self.name}: a worker has not joined within {_JOIN} s") from None
            connection = multiprocessing.connection.Connection(accepted.detach())
            self._connections.append(connection)
            found[self._received(connection)] = connection
        self._connections = [found[rank] for rank in sorted(found)]

    def turn(self, call, **arguments):
        """The answers of all workers to one turn, a call of `worker.Worker`, by rank."""
        for connection in self._connections:
            connection.send((call, arguments))
        return [self._received(connection) for connection in self._connections]

    def _received(self, connection):
        try:
            if connection.poll(_ANSWER):
                return connection.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError(f"{self.name}: a worker has ended") from None
        raise RuntimeError(f"{self.name}: a worker has not answered within {_ANSWER} s")

    def __exit__(self, *_):
        self._end()

    def _end(self):
        for connection in self._connections:
            connection.close()
        try:
            self._process.wait(20 if self._connections else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
