"""The character model as a Gluon network: the same function and the same training, as a user of Gluon writes them.

Its parameters are those of model.py under Gluon's names, and its runs save and load the same checkpoints.
"""
from typing import Dict

import numpy as np

from rnn_ops import gluon
from rnn_ops._mxnet import mx
from rnn_ops_timemachine import parameters, training
from rnn_ops_timemachine.exchange import Contexts


class Network(mx.gluon.HybridBlock):
    """tokens (T, B), state (1, B, H) → logits (T, B, V), state (1, B, H)."""

    def __init__(self, vocabulary_size: int, hidden_size: int, dtype: str = "float32"):
        super().__init__()
        with self.name_scope():
            self.rnn = gluon.TokenRNN(hidden_size, activation="tanh", input_size=vocabulary_size, dtype=dtype)
            self.output = mx.gluon.nn.Dense(vocabulary_size, flatten=False, in_units=hidden_size, dtype=dtype)

    def hybrid_forward(self, F, tokens, state):
        outputs, states = self.rnn(tokens, [state])
        return self.output(outputs), states[0]


class Loss(mx.gluon.HybridBlock):
    """A `Network` and its loss as one operation: tokens, labels (T, B), state (1, B, H) → mean loss (1,) in nats, state.

    MXNet keeps the memory of a static block from batch to batch.
    """

    def __init__(self, network: Network):
        super().__init__()
        with self.name_scope():
            self.network = network
            self.cross_entropy = mx.gluon.loss.SoftmaxCrossEntropyLoss()
        self.hybridize(static_alloc=True, static_shape=True)

    def hybrid_forward(self, F, tokens, labels, state):
        logits, state = self.network(tokens, state)
        return F.mean(self.cross_entropy(logits, labels)), state


class Learner(training.Replicas):
    """A `learners.Learner`: trains a `Network`.

    Parameters
    ----------
    arrays : dict
        The first parameters, NumPy arrays by the names of `parameters.NAMES`.
    exchange : exchange.Contexts or exchange.Workers
        By default one context, ``mx.cpu()``.

    Attributes
    ----------
    network : Network
        Of the first replica.
    """

    def __init__(self, arrays: Dict[str, np.ndarray], exchange=None):
        exchange = exchange or Contexts()
        super().__init__([_Replica(arrays, context) for context in exchange.contexts], exchange)
        self.network = self._replicas[0].network


class _Replica:
    """A `training.Replica` of a Gluon network."""

    def __init__(self, arrays, context):
        V, H = arrays["Wxh"].shape
        self.context, self._dtype = context, arrays["Wxh"].dtype
        self.network = Network(V, H, self._dtype.name)
        self.network.initialize(ctx=context)
        for parameter, value in zip(self._parameters(), (arrays[name].T for name in parameters.NAMES)):
            parameter.set_data(mx.nd.array(value, dtype=self._dtype))
        # The layer adds two biases. The model has one, and two would learn twice as fast.
        self.network.rnn.l0_h2h_bias.set_data(mx.nd.zeros(H, dtype=self._dtype))
        self.network.rnn.l0_h2h_bias.grad_req = "null"
        self.gradients = [parameter.grad() for parameter in self._parameters()]
        self.loss = Loss(self.network)
        self._trainer = mx.gluon.Trainer(self.network.collect_params(), "sgd", kvstore=None)

    def no_state(self, rows):
        return mx.nd.zeros((1, rows, self.network.rnn.l0_h2h_bias.shape[0]), self.context, self._dtype)

    def update(self, learning_rate):
        self._trainer.set_learning_rate(learning_rate)
        self._trainer.step(1)

    def arrays(self):
        return parameters.finite({name: parameter.data().asnumpy().T.copy()
                                  for name, parameter in zip(parameters.NAMES, self._parameters())})

    def _parameters(self):
        rnn, output = self.network.rnn, self.network.output
        return rnn.l0_i2h_weight, rnn.l0_h2h_weight, rnn.l0_i2h_bias, output.weight, output.bias
