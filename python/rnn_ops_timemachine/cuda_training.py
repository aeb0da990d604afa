"""The character model trained on a GPU by the CUDA kernels alone: MXNet is not needed.

The recurrence is the launcher's, the products of the output layer are cuBLAS's, and all else is operations of an array
namespace (CuPy, in tests NumPy) with preallocated results. The launches of an epoch are always the same, on the same memory:
so they are recorded once as a CUDA graph, and an epoch is one launch. A longer text takes several launches, one for each
part of it. The same parameters give the same bits.

Shapes: T steps, B batch rows, N = T·B predictions a batch, H hidden units, V symbols.
"""
import math
from typing import Dict, Iterator, Optional

import numpy as np

from rnn_ops.backends.cuda.variants import Variant
from rnn_ops_timemachine import descent, parameters

_ALIGNED = 64  # elements: every parameter begins at a multiple, as an array of its own would
_MOST_STEPS = 2 ** 14  # time steps of a part, at most: of stepwise kernels each is several launches of the graph
_PATIENCE, _PATIENCE_PER_BATCH = 20, 1  # seconds; a part that takes longer has a kernel that hangs


class Learner:
    """A `learners.Learner` on a GPU.

    Parameters
    ----------
    arrays : dict
        The first parameters as NumPy arrays by name, all float32 or all float64.
    gpu : cupy_gpu.Gpu
        Or a stand-in; by default the first GPU.
    variant : variants.Variant
        Of the recurrence; by default the launcher chooses.
    record : bool
        Whether an epoch is recorded as a CUDA graph or launched kernel by kernel.
    """

    def __init__(self, arrays: Dict[str, np.ndarray], gpu=None, variant: Optional[Variant] = None, record: bool = True):
        self._gpu = first_gpu() if gpu is None else gpu
        self._variant, self._record = variant, record
        self._size = self._held = self._recorded = None
        with self._gpu.current():
            self._layout, size = _side_by_side(arrays)
            dtype = arrays["Wxh"].dtype
            self._all_parameters, self._all_gradients = (self._gpu.xp.zeros(size, dtype) for _ in range(2))
            self._parameters, self._gradients = self._views(self._all_parameters), self._views(self._all_gradients)
            self.start(arrays)

    def start(self, arrays: Dict[str, np.ndarray]) -> None:
        """Take these parameters."""
        for name, view in self._parameters.items():
            view[...] = self._gpu.to_device(arrays[name])

    def arrays(self) -> Dict[str, np.ndarray]:
        """The parameters as NumPy arrays by name; a FloatingPointError if one is not finite."""
        with self._gpu.current():
            return parameters.finite(self._views(self._gpu.to_host(self._all_parameters)))

    def train_epoch(self, inputs: np.ndarray, labels: np.ndarray, learning_rate: float) -> Iterator[float]:
        """As `learners.Learner.train_epoch`. The losses of a part of the epoch come when the GPU has done all of it."""
        count, T, B = inputs.shape
        parts = -(-count // max(1, _MOST_STEPS // T))
        with self._gpu.current():
            self._allocate(T, B, -(-count // parts))
            # The gradients are those of the sum of a batch's losses; their mean's 1/N is in the rate.
            self._rate.fill(learning_rate / (T * B))
        for number, loss in enumerate(self._losses_of(inputs, labels, self._train), start=1):
            yield descent.checked(loss, f"of batch {number}")

    def loss(self, inputs: np.ndarray, labels: np.ndarray) -> float:
        """As `learners.Learner.loss`."""
        count, T, B = inputs.shape
        if self._size is None or self._size[:2] != (T, B):
            with self._gpu.current():
                self._allocate(T, B, min(count, max(1, _MOST_STEPS // T)))
        return descent.mean(self._losses_of(inputs, labels, lambda count: self._each(self._evaluate, count)))

    # --- a part of the batches after the other

    def _allocate(self, T, B, batches):
        """Memory for parts of so many batches."""
        if self._size == (T, B, batches):
            return
        xp, dtype = self._gpu.xp, self._all_parameters.dtype
        V, H = self._parameters["Wxh"].shape
        N = T * B
        self._size, self._held, self._recorded = (T, B, batches), None, None
        self._tokens, self._labels = xp.zeros((batches, T, B), np.int32), xp.zeros((batches, N, 1), np.int32)
        self._rows = V * xp.arange(N, dtype=np.int64)  # where each row of the logits begins
        self._places = xp.zeros((batches, N), np.int64)  # of each label's logit among the N·V of a batch
        self._symbols = xp.arange(V, dtype=np.int32)
        self._states = xp.empty((2, T, B, H), dtype)  # of this batch and of the last one, in turn
        self._state = xp.zeros((B, H), dtype)  # before the part's first batch
        self._dstates = xp.empty((T, B, H), dtype)
        self._logits, self._hits = xp.empty((N, V), dtype), xp.empty((N, V), bool)
        self._column, self._picked = xp.empty((N, 1), dtype), xp.empty(N, dtype)
        self._rate = xp.zeros(1, dtype)
        self._losses = xp.zeros(batches, dtype)

    def _losses_of(self, inputs, labels, launch):
        """``launch(count)`` for each part of the batches → the losses, part after part."""
        for start in range(0, len(inputs), self._size[2]):
            with self._gpu.current():
                if start == 0:
                    self._state.fill(0)
                count = self._load(inputs, labels, start)
                self._gpu.patience = _PATIENCE + _PATIENCE_PER_BATCH * count
                launch(count)
                self._state[...] = self._states[(count - 1) % 2, -1]
                losses = self._gpu.to_host(self._losses[:count])
            yield from losses

    def _load(self, inputs, labels, start):
        """Copy a part's tokens to the GPU, if they are not there → how many batches it has."""
        T, B, most = self._size
        tokens, targets = (array[start:start + most] for array in (inputs, labels))
        count = len(tokens)
        if self._held is None or self._held[0] is not inputs or self._held[1] != start:
            targets = targets.reshape(count, T * B, 1)
            for memory, array in ((self._tokens, tokens), (self._labels, targets)):
                memory[:count] = self._gpu.to_device(np.ascontiguousarray(array, np.int32))
            self._gpu.xp.add(self._rows, self._labels[:count, :, 0], out=self._places[:count])
            self._held = inputs, start
        return count

    def _train(self, count):
        """Train on the part's batches. A whole part is recorded when it is first trained on."""
        if not self._record or count < self._size[2]:
            self._each(self._batch, count)
        elif self._recorded is None:
            self._recorded = self._gpu.recorded(lambda: self._each(self._batch, count))
        else:
            self._recorded()

    def _each(self, do, count):
        for number in range(count):
            do(number)

    # --- a batch: nothing here waits

    def _batch(self, number):
        """One training step."""
        xp, weights, gradients, multiply = self._gpu.xp, self._parameters, self._gradients, self._gpu.runtime.multiply
        tokens, state, states = self._evaluate(number)
        dlogits = self._cross_entropy_gradient(number)
        rows, drows = (array.reshape(len(self._picked), -1) for array in (states, self._dstates))
        xp.sum(dlogits, axis=0, out=gradients["by"])
        multiply(rows, dlogits, gradients["Why"], transpose_a=True)
        multiply(dlogits, weights["Why"], drows, transpose_b=True)
        self._gpu.launcher.backward(
            tokens, state, weights["Wxh"], weights["Whh"], states, self._dstates, None,
            **{"d" + name: gradients[name] for name in ("Wxh", "Whh", "bh")}, variant=self._variant)
        xp.multiply(self._all_gradients, self._rate, out=self._all_gradients)
        xp.subtract(self._all_parameters, self._all_gradients, out=self._all_parameters)

    def _evaluate(self, number):
        """The loss of a batch, from its tokens and the state before it → (tokens, that state, all states)."""
        xp, weights, logits, column, picked = self._gpu.xp, self._parameters, self._logits, self._column, self._picked
        tokens, states = self._tokens[number], self._states[number % 2]
        state = self._states[(number - 1) % 2, -1] if number else self._state
        self._gpu.launcher.forward(tokens, state, weights["Wxh"], weights["Whh"], weights["bh"], states, variant=self._variant)
        self._gpu.runtime.multiply(states.reshape(len(picked), -1), weights["Why"], logits)
        xp.add(logits, weights["by"], out=logits)
        xp.amax(logits, axis=1, keepdims=True, out=column)
        xp.subtract(logits, column, out=logits)
        xp.take(logits, self._places[number], out=picked)
        xp.exp(logits, out=logits)
        xp.sum(logits, axis=1, keepdims=True, out=column)
        xp.divide(logits, column, out=logits)
        xp.log(column, out=column)
        xp.subtract(column[:, 0], picked, out=picked)
        xp.mean(picked, keepdims=True, out=self._losses[number:number + 1])
        return tokens, state, states

    def _cross_entropy_gradient(self, number):
        """The gradient of the sum of a batch's losses by its logits. It overwrites the probabilities."""
        self._gpu.xp.equal(self._labels[number], self._symbols, out=self._hits)
        self._gpu.xp.subtract(self._logits, self._hits, out=self._logits)
        return self._logits

    def _views(self, memory):
        return {name: memory[begin:begin + math.prod(shape)].reshape(shape)
                for name, (begin, shape) in self._layout.items()}


def first_gpu():
    """The first GPU, as CuPy gives it."""
    from rnn_ops.backends.cuda.cupy_gpu import Gpu
    return Gpu()


def _side_by_side(arrays):
    """Where each parameter begins in one array of all, with its shape, by name → (that, elements of all)."""
    layout, size = {}, 0
    for name, array in arrays.items():
        layout[name] = size, array.shape
        size += -(-array.size // _ALIGNED) * _ALIGNED
    return layout, size
