"""A simulated network on one machine: two network namespaces, and a relay between them that limits bandwidth and adds latency.

Each namespace has a TUN device, whose packets the relay reads and writes into the other one. The kernel's own limits would do
better, but netem, which adds latency, is missing in many kernels. The namespaces have no names: they end with the relay, and the
relay with its starter, even if that is killed.

Run as a module, this is the relay. It prints its process's number, and takes lines with bytes a second and seconds of latency.
"""
import collections
import ctypes
import fcntl
import os
import select
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time

from rnn_ops_timemachine import roles

from .model import Network

SERVERS, WORKERS = "10.77.0.1", "10.77.0.2"  # the addresses: scheduler and servers are at the first, workers at the second
_SIDES = SERVERS, WORKERS
_TUN = "/dev/net/tun"
# A packet is a system call or two of the relay: with the packets of a real network it would be the bottleneck.
_PACKET = 65000
_CLONE_NEWNET, _TUNSETIFF, _IFF_TUN, _IFF_NO_PI, _PR_SET_TIMERSLACK = 0x40000000, 0x400454CA, 1, 0x1000, 29
_libc = ctypes.CDLL(None, use_errno=True)


def why_not():
    """Why this machine cannot simulate a network, as a sentence, or None."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if not os.path.exists(_TUN):
        return f"{_TUN} is missing"
    try:
        with Relay():
            return None
    except (OSError, RuntimeError) as error:
        return f"network namespaces cannot be made here: {error}"


class Relay:
    """The network, for the time of a ``with`` block. Without limits at first."""

    def __enter__(self):
        self._process = subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.PIPE, universal_newlines=True)
        number = self._process.stdout.readline()
        if not number:
            raise RuntimeError(self._process.communicate()[1].strip().splitlines()[-1])
        # Files that stand for the namespaces, by address.
        self.namespaces = dict(zip(_SIDES, (f"/proc/{number.strip()}/fd/{fd}" for fd in self._process.stdout.readline().split())))
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.communicate()

    def limit(self, network: Network):
        """Have this bandwidth and this latency from now on."""
        print(network.bandwidth, network.latency, file=self._process.stdin, flush=True)
        self._process.stdout.readline()  # it has done so

    def probe(self, size=1 << 18, times=12):
        """The network as TCP sees it: a `model.Network`. Latency is half the time of one byte there and back; bandwidth is what
        ``size`` bytes take longer."""
        found, ready = {}, threading.Event()

        def answer():
            _enter(self.namespaces[SERVERS])
            with socket.socket() as listening:
                listening.bind((SERVERS, 0))
                listening.listen()
                found["port"] = listening.getsockname()[1]
                ready.set()
                connection, _ = listening.accept()
                with connection:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    for expected in [1, size] * times:
                        _receive(connection, expected)
                        connection.sendall(b"0")

        def ask():
            _enter(self.namespaces[WORKERS])
            ready.wait()
            seconds = {1: [], size: []}
            with socket.create_connection((SERVERS, found["port"]), timeout=30) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for sent in [1, size] * times:
                    began = time.perf_counter()
                    connection.sendall(bytes(sent))
                    _receive(connection, 1)
                    seconds[sent].append(time.perf_counter() - began)
            there_and_back, long = (statistics.median(seconds[sent][times // 3:]) for sent in (1, size))
            found["network"] = Network((size - 1) / max(1e-9, long - there_and_back), there_and_back / 2)

        threads = [threading.Thread(target=side, daemon=True) for side in (answer, ask)]  # a thread can enter a namespace alone
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return found["network"]


def enter_by_role(namespaces):
    """Put this process, a role of a job, where it belongs in the network. Before it has other threads."""
    role = os.environ["DMLC_ROLE"]
    address = WORKERS if role == roles.WORKER else SERVERS
    _enter(namespaces[address])
    os.environ.update(DMLC_PS_ROOT_URI=SERVERS, DMLC_NODE_HOST=address)


def _enter(namespace):
    with open(namespace) as file:
        _check(_libc.setns(file.fileno(), _CLONE_NEWNET))


def _receive(connection, count):
    while count:
        found = len(connection.recv(min(count, 1 << 20)))
        if not found:
            raise ConnectionError("the other side is gone")
        count -= found


def _check(status):
    if status < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _side(address):
    """A new namespace with a TUN device → file descriptors of the namespace and of the device. This process is in it then."""
    _check(_libc.unshare(_CLONE_NEWNET))
    device = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
    name = "rnn-ops"
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    for words in (f"link set {name} mtu {_PACKET} txqueuelen 10000", f"address add {address}/24 dev {name}",
                  f"link set {name} up", "link set lo up"):
        subprocess.run(["ip", *words.split()], check=True)
    return os.open("/proc/self/ns/net", os.O_RDONLY), device


class Wire:
    """One direction: packets leave it one after the other at a bandwidth, and arrive a latency later. It never drops one."""

    def __init__(self):
        self.network, self._free, self._packets = Network(float("inf"), 0.0), 0.0, collections.deque()

    def put(self, packet, now):
        self._free = max(now, self._free) + len(packet) / self.network.bandwidth
        self._packets.append((self._free + self.network.latency, packet))

    def due(self):
        """When the next packet arrives, or None."""
        return self._packets[0][0] if self._packets else None

    def take(self, now):
        """The packets that have arrived."""
        while self._packets and self._packets[0][0] <= now:
            yield self._packets.popleft()[1]


def _relay():
    namespaces, devices = zip(*map(_side, _SIDES))
    _libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)  # else the kernel ends a wait up to 50 µs late
    print(os.getpid())
    print(*namespaces, flush=True)
    wires = {devices[0]: (devices[1], Wire()), devices[1]: (devices[0], Wire())}
    while True:
        due = [wire.due() for _, wire in wires.values() if wire.due()]
        wait = max(0.0, min(due) - time.perf_counter()) if due else None
        ready, _, _ = select.select([*devices, sys.stdin], [], [], wait)
        if sys.stdin in ready:
            asked = sys.stdin.readline()
            if not asked:
                return
            for _, wire in wires.values():
                wire.network = Network(*map(float, asked.split()))
            print("limited", flush=True)
        for device in devices:
            to, wire = wires[device]
            if device in ready:
                wire.put(os.read(device, _PACKET), time.perf_counter())
            for packet in wire.take(time.perf_counter()):
                os.write(to, packet)


if __name__ == "__main__":
    _relay()
