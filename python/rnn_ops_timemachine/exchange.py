"""Sums over all contexts of all workers, by MXNet's KVStore.

`Contexts` are those of one process. `Workers` are the processes of a distributed job (``dist_sync``), each with its contexts.
The server sums the workers' arrays in the order in which they arrive, and float64 is not safe there: `multi_precision_` of
MXNet's server is never set at first, and where that memory is not zero it sums in float32. So all that is sent is float32. Two
summands give the same sum in either order. More, and float64, are sent as two or three integers for each number: multiples of
2⁻¹⁷, then of finer units. Sums of integers up to 2²⁴ are exact in float32, so the order does not matter while all sums stay
below 2⁷. A gradient of a mean loss beyond that belongs to a training that has diverged; its sums are rounded as float32 rounds.
Compressed gradients are sums of small integers.

`Workers` has one kind of sum once training has begun, the round, and every worker takes part in every round. So a worker that
cannot go on takes part in one more, which says so, and none waits for it. `close` begins with the last round.
"""
import contextlib
import ctypes
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from rnn_ops._mxnet import mx
from rnn_ops_timemachine.contexts import parsed
from rnn_ops_timemachine.roles import Left

nd = mx.nd

NOTE = 8  # bytes that a round carries for each worker
_COARSE = 2.0 ** 17  # a number's first integer counts units of 1 / _COARSE
_MESSAGE = 4096  # bytes that `Workers.gather` carries for each worker
_GATHER, _BROADCAST, _ROUND, _REASON = range(4)  # the KVStore's keys


def contexts(names: str) -> List[mx.Context]:
    """Contexts by their names in MXNet, as in "cpu(0),cpu(1)" and "gpu(0),gpu(1)". A ValueError if one is wrong or missing."""
    found = parsed(names)
    for context in found:
        if context.kind == "gpu" and context.number >= _gpus():
            raise ValueError(f"ctx: got {context}, but MXNet finds {_gpus()} GPUs")
    if len({context.kind for context in found}) > 1:
        raise ValueError(f"ctx: got {names!r}, needs either CPUs or GPUs")
    return [mx.Context(*context) for context in found]


def _gpus():
    with contextlib.suppress(mx.MXNetError):  # the driver is missing
        return mx.context.num_gpus()
    return 0


class Contexts:
    """The contexts of a single process. ``kvstore`` is MXNet's "local" or "device".

    Attributes
    ----------
    rank, workers : int
        Which worker this process is, of how many.
    contexts : list of mx.Context
    told : bool
        Whether all workers have heard why the job ends early.
    wrong : ValueError or None
        Why this worker cannot begin: an option or a setting.
    alone : bool
        Whether gradients stay as they are, so that a training step needs no round.
    steps : tuple of str
        The steps that it works for.
    """
    rank, workers, told, wrong = 0, 1, True, None
    steps = ("native", "custom", "gluon", "reference")

    def __init__(self, contexts: Sequence[mx.Context] = (), kvstore: str = "device"):
        self.contexts = list(contexts) or [mx.cpu()]
        self.alone = len(self.contexts) == 1
        self._store = None if self.alone else mx.kv.create(kvstore)

    def about(self) -> Dict[str, Any]:
        """Facts for the record of a run."""
        return dict(workers=self.workers, kvstore=self._store and self._store.type, ctx=",".join(map(str, self.contexts)))

    def check(self, batch_size: int) -> None:
        """Raise a ValueError where a batch has fewer rows than there are contexts."""
        parts = self.workers * len(self.contexts)
        if batch_size < parts:
            raise ValueError(f"batch_size: got {batch_size}, needs at least {parts}, a row for each context of each worker")

    def rows(self, batch_size: int):
        """The rows of a batch for each of this worker's contexts: (begin, end)."""
        parts, first = self.workers * len(self.contexts), self.rank * len(self.contexts)
        return [(batch_size * part // parts, batch_size * (part + 1) // parts)
                for part in range(first, first + len(self.contexts))]

    def begin(self, gradients: Sequence[mx.nd.NDArray]) -> None:
        """Prepare `round` for gradients such as these of one context."""
        if self._store:
            self._store.init(list(range(len(gradients))), list(gradients))

    def round(self, gradients: Optional[List[List[mx.nd.NDArray]]], note: bytes) -> List[bytes]:
        """Make every gradient, of the list of each context, the sum of all; None stands for zeros → the notes of all workers,
        by rank."""
        if gradients is not None:
            by_key = list(map(list, zip(*gradients)))
            self._store.pushpull(list(range(len(by_key))), by_key, out=by_key)
        return [note]

    def leave(self, reason: str, signal: int = 0) -> None:
        """Tell the other workers that this one cannot go on. If it was a signal, they end as by that."""

    def close(self) -> None:
        """End the job, when every worker calls this."""


class Workers(Contexts):
    """The workers of a job, as one of them sees them.

    Parameters
    ----------
    store, watch
        From `roles.join`.
    contexts : list of mx.Context
        By default ``mx.cpu()``.
    threshold : float
        Of MXNet's 2bit gradient compression: of each number a worker sends -threshold, 0 or threshold, and adds the rest to the
        number of the next step. By default nothing is compressed.
    """

    def __init__(self, store, contexts: Sequence[mx.Context] = (), threshold: Optional[float] = None, watch=None):
        self.contexts, self._store, self._watch = list(contexts) or [mx.cpu()], store, watch
        self.rank, self.workers = store.rank, store.num_workers
        self.told, self.alone = False, self.workers * len(self.contexts) == 1 and not threshold
        self._threshold, self._compressed = threshold, False
        self._reason, self._size = b"", None
        self._store.init(_GATHER, nd.zeros(self.workers * _MESSAGE * 8))

    def about(self):
        """As `Contexts.about`."""
        return dict(super().about(), gradient_compression=self._threshold and f"2bit:{self._threshold:g}")

    def gather(self, message: bytes) -> List[bytes]:
        """Every worker's message of at most 4,096 bytes, by rank; it is cut there."""
        return self._gather(_GATHER, message)

    def broadcast(self, content: Optional[bytes], size: int) -> bytes:
        """The content that worker 0 gives, which has so many bytes. It can be called once."""
        # A KVStore takes floating-point numbers only.
        array = nd.array(np.frombuffer(content, np.uint8) if content else np.zeros(size, np.uint8), dtype="float32")
        self._store.broadcast(_BROADCAST, array, out=array)
        return array.asnumpy().astype(np.uint8).tobytes()

    def begin(self, gradients):
        """As `Contexts.begin`."""
        dtype = np.dtype(gradients[0].dtype)
        if self._threshold:
            if dtype != np.float32:
                raise ValueError(f"gradient_compression: got parameters of {dtype}, needs float32")
            # MXNet sends a threshold with six decimals. So it is 1 here, and the gradients are divided by the true one.
            self._store.set_gradient_compression({"type": "2bit", "threshold": 1})
            self._store._barrier()  # worker 0 tells the servers, which must know it before the first round
            self._compressed = True
            self._store.init(_REASON, nd.zeros(self.workers * _MESSAGE * 8))  # with a compression servers have other parts
        as_it_is = self._compressed or dtype == np.float32 and self.workers <= 2
        self._integers = 0 if as_it_is else 2 if dtype == np.float32 else 3
        # The finer integers are at most 2²⁴ / summands.
        self._finer = 2.0 ** (25 - (self.workers * len(self.contexts) - 1).bit_length())
        self._size = max(1, self._integers) * sum(gradient.size for gradient in gradients)
        self._sent = [nd.zeros(self._size + self.workers * (1 + NOTE) * 8, context) for context in self.contexts]
        self._store.init(_ROUND, self._sent[0])

    def round(self, gradients, note):
        """As `Contexts.round`. A `Left` if a worker cannot go on."""
        control = self._bits(bytes([bool(self._reason)]) + note, 1 + NOTE)
        for number, sent in enumerate(self._sent):
            bits = nd.array(control if number == 0 else np.zeros_like(control), sent.context)
            if gradients is None:
                sent[:self._size] = 0
                sent[self._size:] = bits
            else:
                self._put(gradients[number], bits, sent)
        self._sum(_ROUND, self._sent)
        notes = self._messages(self._sent[0][self._size:].asnumpy(), 1 + NOTE)
        if any(note[0] for note in notes):
            reasons = self._gather(_REASON if self._compressed else _GATHER, self._reason)
            self.told = True
            for rank, reason in enumerate(reasons):
                if reason:
                    raise Left(rank, reason[1:].decode("utf-8", "replace"), reason[0] - 1)
        for of_context, sent in zip(gradients or [], self._sent):
            self._take(sent, of_context)
        return [note[1:] for note in notes]

    def leave(self, reason, signal=0):
        """As `Contexts.leave`."""
        if self._size is None:  # no rounds yet, and none to come
            self.abandon()
            return
        self._reason = bytes([signal + 1]) + reason.encode()[:_MESSAGE - 1]
        with contextlib.suppress(Left):
            self.round(None, bytes(NOTE))

    def close(self):
        """As `Contexts.close`. A `Left` if a worker has failed after its last batch."""
        if self._size is not None and not self.told:
            self.round(None, bytes(NOTE))
        nd.waitall()
        self._store._barrier()
        with self._watch.leaving() if self._watch else contextlib.nullcontext():
            self._store = None  # MXNet takes its leave of the servers and the scheduler

    def abandon(self) -> None:
        """Let this process end without the others. They notice that by its missing heartbeat."""
        if self._watch:
            self._watch.stop()
        mx.base.check_call(mx.base._LIB.MXKVStoreSetBarrierBeforeExit(self._store.handle, ctypes.c_int(0)))

    def _gather(self, key, message):
        sent = nd.array(self._bits(message[:_MESSAGE], _MESSAGE))
        self._sum(key, [sent])
        return [message.rstrip(b"\0") for message in self._messages(sent.asnumpy(), _MESSAGE)]

    def _put(self, gradients, bits, sent):
        """Fill an array that is sent."""
        for gradient, parts in self._parts(gradients, sent):
            if self._compressed:
                numbers = [gradient / self._threshold]
            else:
                numbers = self._split(gradient) if self._integers else [gradient]
            for number, part in zip(numbers, parts):
                number.copyto(part)
        bits.copyto(sent[self._size:])

    def _take(self, sent, gradients):
        """Make the gradients those of an array that has come back."""
        for gradient, parts in self._parts(gradients, sent):
            if self._compressed:
                gradient[:] = parts[0] * self._threshold
            elif self._integers:
                gradient[:] = self._joined([part.astype(gradient.dtype, copy=False) for part in parts])
            else:
                parts[0].copyto(gradient)

    def _parts(self, gradients, sent):
        """Each gradient as a vector, with the views of its numbers in an array that is sent, the coarse ones first. (Views:
        nd.concat takes four times as long.)"""
        rows, begin = max(1, self._integers), 0
        for gradient in gradients:
            begins = [begin + row * (self._size // rows) for row in range(rows)]
            yield gradient.reshape(-1), [sent[one:one + gradient.size] for one in begins]
            begin += gradient.size

    def _split(self, numbers):
        """Numbers → arrays of integers, the coarse ones first, as float32."""
        integers, rest = [], numbers * _COARSE
        while True:
            integers.append(nd.rint(rest).astype("float32", copy=False))
            if len(integers) == self._integers:
                return integers
            rest = (rest - integers[-1].astype(rest.dtype, copy=False)) * self._finer

    def _joined(self, integers):
        """The numbers of sums of integers, of the dtype that these have."""
        *coarser, numbers = integers
        for one in reversed(coarser):
            numbers = one + numbers / self._finer
        return numbers / _COARSE

    def _sum(self, key, arrays):
        """Make each array the sum of all."""
        if self._compressed:
            self._store.push(key, arrays)
            self._store.pull(key, out=arrays)
        else:
            self._store.pushpull(key, arrays, out=arrays)

    def _bits(self, message, length):
        """An array with a number, 0 or 1, for each bit that each worker may send, those of this worker filled in. So a message
        comes through a compression, and through any sum."""
        bits = np.zeros((self.workers, length * 8), np.float32)
        padded = message + bytes(length - len(message))
        bits[self.rank] = np.unpackbits(np.frombuffer(padded, np.uint8))
        return bits.ravel()

    def _messages(self, bits, length):
        """The messages of all workers from the sum of their `_bits`."""
        return [row.tobytes() for row in np.packbits((bits > 0.5).reshape(self.workers, length * 8), axis=1)]
