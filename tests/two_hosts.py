"""Two hosts on one machine: two network namespaces, each with a loopback and one end of a cable between them."""
import contextlib
import os
import re
import shutil
import subprocess

PREFIX = "rnnops"  # of the names of namespaces, then the process that made them, then a or b


class TwoHosts:
    """`names` are those of the two namespaces."""

    addresses = "10.77.0.1", "10.77.0.2"  # nobody else has them: the hosts see each other only

    def __init__(self):
        self.names = [f"{PREFIX}{os.getpid()}{letter}" for letter in "ab"]

    def command(self, host: int, *words: str) -> list:
        """The words that run a command on a host."""
        return ["ip", "netns", "exec", self.names[host], *words]

    def processes(self) -> set:
        """The numbers of all processes on the hosts."""
        return {int(number) for name in self.names for number in _ip("netns", "pids", name).split()}

    def cut(self) -> None:
        """Unplug the cable."""
        _ip("-n", self.names[0], "link", "set", "cable", "down")

    def connect(self) -> None:
        """Make the hosts and plug the cable in."""
        for name in self.names:
            _ip("netns", "add", name)
        _ip("link", "add", "cable", "netns", self.names[0], "type", "veth", "peer", "name", "cable", "netns", self.names[1])
        for name, address in zip(self.names, self.addresses):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in "lo", "cable":
                _ip("-n", name, "link", "set", device, "up")


@contextlib.contextmanager
def two_hosts():
    """Two hosts for the time of the block; then their processes are killed and they are removed, with those of test runs that
    were killed. A `RuntimeError` says why this machine cannot make them."""
    if os.geteuid() != 0:
        raise RuntimeError("network namespaces need root")
    if shutil.which("ip") is None:
        raise RuntimeError("network namespaces need the program ip (iproute2)")
    remove_left()
    hosts = TwoHosts()
    try:
        try:
            hosts.connect()
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"network namespaces cannot be made here: {error.stderr.strip()}") from error
        yield hosts
    finally:
        for name in hosts.names:
            _remove(name)


def namespaces() -> list:
    """The names of the hosts of all processes that made some."""
    return re.findall(rf"^{PREFIX}\d+[ab]", _ip("netns", "list"), re.M)


def remove_left() -> None:
    """Remove the hosts of processes that have ended without."""
    for name in namespaces():
        if not os.path.exists(f"/proc/{name[len(PREFIX):-1]}"):
            _remove(name)


def _ip(*words):
    return subprocess.run(["ip", *words], check=True, capture_output=True, encoding="utf-8").stdout


def _remove(name):
    with contextlib.suppress(subprocess.CalledProcessError):  # one that was not made
        for process in _ip("netns", "pids", name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), 9)
        _ip("netns", "delete", name)  # and the cable with it
