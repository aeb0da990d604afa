"""The time of a training step of several workers, by arithmetic from what one machine measures.

A round is a sum over all workers. In it each worker sends its message to the servers and receives the sum. The servers' network
links are what all of it goes through: of each message a server receives and sends its part, for every worker.
"""
import math
from typing import NamedTuple

import numpy as np

# Of a worker in a round's vector: a flag and exchange.NOTE, in bytes, each bit a number. (That module would import MXNet.)
NOTE = 1 + 8


class Network(NamedTuple):
    """bandwidth: bytes a second in each direction; latency: seconds one way."""
    bandwidth: float
    latency: float


class Message(NamedTuple):
    """What a worker sends and receives in a round, in bytes, and how often something crosses the network one after the other."""
    up: int
    down: int
    crossings: int


class Cost(NamedTuple):
    """Seconds of a round of the KVStore without a network: ``latency`` and so much for every byte of the vector."""
    latency: float
    per_byte: float

    def at(self, size):
        return self.latency + self.per_byte * size


def parameters(hidden, symbols):
    """How many numbers the model has."""
    return symbols * hidden + hidden * hidden + hidden + hidden * symbols + symbols


def numbers(parameters, workers):
    """How many numbers a round's vector has: the gradient, a flag and a note of each worker, a number for each bit."""
    return parameters + workers * NOTE * 8


def message(parameters, workers, compressed=False):
    """float32 for two workers and with 2bit compression, float64 for more. Compressed, 16 numbers go up as 4 bytes, and the pull
    begins when the push is done."""
    count = numbers(parameters, workers)
    if compressed:
        return Message(4 * math.ceil(count / 16), 4 * count, crossings=4)
    size = count * (4 if workers <= 2 else 8)
    return Message(size, size, crossings=2)


def on_the_network(message, workers, servers, network):
    """Seconds that a round takes longer than without a network. A message goes up before the sum comes down."""
    on_a_link = max(1, workers / servers)  # a worker's own link carries one message
    return message.crossings * network.latency + on_a_link * (message.up + message.down) / network.bandwidth


def fit(sizes, seconds):
    """The `Cost` with the least relative errors, in squares, that has no negative latency."""
    sizes, seconds = np.asarray(sizes, float), np.asarray(seconds, float)
    found, *_ = np.linalg.lstsq(np.stack([1 / seconds, sizes / seconds], axis=1), np.ones(len(sizes)), rcond=None)
    if found[0] < 0:
        found = 0.0, np.sum(sizes / seconds) / np.sum((sizes / seconds) ** 2)
    return Cost(*map(float, found))


def step(computing, hidden, symbols, workers, servers, network, flattening, kvstore):
    """Seconds of a training step. Nobody waits for a slower worker in it.

    Parameters
    ----------
    computing : float
        Seconds that one process needs for a worker's rows.
    flattening : float
        Seconds for a number: gradients into the message and back.
    kvstore : Cost
        Of the KVStore without a network.
    """
    if workers == 1:
        return computing
    count = parameters(hidden, symbols)
    sent = message(count, workers)
    return (computing + flattening * numbers(count, workers) + kvstore.at(sent.up)
            + on_the_network(sent, workers, servers, network))
