"""The character model: recurrence, output layer, cross-entropy.

The recurrence is an argument of `loss`: ``rnn_ops.rnn_sequence`` and ``rnn_ops.reference.rnn_sequence`` compute the same
function, and either can be passed.

Shapes: T steps, B batch rows, H hidden units, V vocabulary.
"""
from typing import Callable, Dict, NamedTuple, Optional

import numpy as np

from rnn_ops._mxnet import mx
from rnn_ops_timemachine.parameters import finite

nd = mx.nd


class Parameters(NamedTuple):
    """Wxh (V, H), Whh (H, H), bh (H,), Why (H, V), by (V,), all of one floating dtype. (In `Loss`, Symbols of them.)"""
    Wxh: mx.nd.NDArray
    Whh: mx.nd.NDArray
    bh: mx.nd.NDArray
    Why: mx.nd.NDArray
    by: mx.nd.NDArray


def trainable(arrays: Dict[str, np.ndarray], context: Optional[mx.Context] = None) -> Parameters:
    """NumPy arrays by name → `Parameters` on a context, with gradients attached."""
    parameters = Parameters(**{name: nd.array(array, context, array.dtype) for name, array in arrays.items()})
    for parameter in parameters:
        parameter.attach_grad()
    return parameters


def arrays(parameters: Parameters) -> Dict[str, np.ndarray]:
    """`Parameters` → NumPy arrays by name. A FloatingPointError if one holds NaN or infinity."""
    return finite({name: array.asnumpy() for name, array in parameters._asdict().items()})


def loss(tokens, labels, state, parameters: Parameters, rnn_sequence: Callable, vocabulary_size: Optional[int] = None):
    """The loss of one batch: one product for the logits of all T·B predictions, no one-hot labels.

    Parameters
    ----------
    tokens, labels : NDArray or Symbol, int32 (T, B)
    state : NDArray or Symbol (B, H)
        The hidden state before the first step.
    parameters : Parameters
    rnn_sequence : callable
        ``rnn_ops.rnn_sequence``, or for NDArrays ``rnn_ops.reference.rnn_sequence``.
    vocabulary_size : int
        V; needed with Symbols, which do not know it.

    Returns
    -------
    loss : NDArray or Symbol (1,)
        Mean cross-entropy over the T·B predictions, in nats.
    state : NDArray or Symbol (B, H)
        The hidden state after the last step.
    """
    F = mx.nd if isinstance(state, mx.nd.NDArray) else mx.sym
    Wxh, Whh, bh, Why, by = parameters
    outputs, state = rnn_sequence(tokens, state, Wxh, Whh, bh)
    logits = F.FullyConnected(outputs, F.transpose(Why), by, num_hidden=vocabulary_size or len(by), flatten=False)
    return -F.mean(F.pick(F.log_softmax(logits), labels)), state


class Loss(mx.gluon.HybridBlock):
    """`loss` as one operation: (tokens, labels, state, *parameters) → (loss, state).

    MXNet then keeps the memory between the operations from batch to batch and runs them without Python. Otherwise these two
    take a fifth of a batch's time.
    """

    def __init__(self, vocabulary_size: int, rnn_sequence: Callable):
        super().__init__()
        self._vocabulary_size, self._rnn_sequence = vocabulary_size, rnn_sequence
        self.hybridize(static_alloc=True, static_shape=True)

    def hybrid_forward(self, F, tokens, labels, state, *parameters):
        return loss(tokens, labels, state, Parameters(*parameters), self._rnn_sequence, self._vocabulary_size)
