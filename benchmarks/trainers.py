"""Who computes the whole training step: the tutorial's own loop, ours, and the same model of MXNet's and PyTorch's
layers.

Trainers are providers (see providers.py) with one mode, "training step". Every call goes on from the last one's
parameters; the first one is verified.
"""
import numpy as np

from .problems import LEARNING_RATE
from . import numpy_loop, providers

MODE = "training step"


class _OwnParameters:
    """What the tutorial's loop and ours share: five NDArrays with gradients."""

    def __init__(self, problem):
        from rnn_ops._mxnet import mx
        from timemachine import model
        self.mx = mx
        self.about = f"mxnet {mx.__version__}"
        self.parameters = model.trainable(problem.parameters)
        self.tokens, self.labels = (mx.nd.array(a, dtype="int32") for a in (problem.tokens, problem.labels))
        self.calls = {MODE: self._step}

    def _step(self):
        """Set self.loss, a number."""
        raise NotImplementedError

    def results(self, mode):
        results = {"loss": np.array([self.loss])}
        for name, parameter in self.parameters._asdict().items():
            results[name] = parameter.asnumpy()
            results["d" + name] = parameter.grad.asnumpy()
        return results


class Ours(_OwnParameters):
    """``rnn-ops train``: its loop over one batch, with the operator in it."""
    name = providers.IMPERATIVE
    process = providers.CustomOp.process

    def __init__(self, problem):
        super().__init__(problem)
        import rnn_ops
        from timemachine import training
        self.train_epoch, self.sequence = training.train_epoch, rnn_ops.rnn_sequence
        self.tokens, self.labels = self.tokens.expand_dims(0), self.labels.expand_dims(0)

    def _step(self):
        self.loss, = self.train_epoch(self.parameters, self.tokens, self.labels, LEARNING_RATE, self.sequence)
        self.mx.nd.waitall()


class Tutorial(_OwnParameters):
    """The tutorial's loop as it stands: every operation once a step, one-hot inputs and labels made beforehand."""
    name = providers.NDArrayLoop.name
    process = providers.NDArrayLoop.process

    def __init__(self, problem):
        super().__init__(problem)
        from rnn_ops import reference
        self.reference = reference
        V = problem.shape.I
        self.tokens, self.labels = self.mx.nd.one_hot(self.tokens, V), self.mx.nd.one_hot(self.labels, V)
        self.state = self.mx.nd.array(problem.state)

    def _step(self):
        with self.mx.autograd.record():
            loss, state = self.reference.language_model_loss(self.tokens, self.labels, self.state, *self.parameters)
        loss.backward()
        self.reference.sgd(self.parameters, LEARNING_RATE)
        self.state = state.detach()
        self.loss = loss.asscalar()
        self.mx.nd.waitall()


class Gluon:
    """mx.gluon.rnn.RNN and a dense layer in one hybridized block, Gluon's own loss and trainer, one-hot input."""
    name = providers.GluonRNN.name
    process = providers.GluonRNN.process

    def __init__(self, problem):
        from rnn_ops._mxnet import mx
        self.mx = mx
        self.about = f"mxnet {mx.__version__}"
        p = problem.parameters
        shape = problem.shape

        class Model(mx.gluon.HybridBlock):
            def __init__(self):
                super().__init__()
                with self.name_scope():
                    self.rnn = providers.gluon_rnn(mx, shape.I, shape.H, p["Wxh"], p["Whh"], p["bh"])
                    self.output = mx.gluon.nn.Dense(shape.I, flatten=False, in_units=shape.H)

            def hybrid_forward(self, F, inputs, state):
                outputs, (state,) = self.rnn(inputs, [state])
                return self.output(outputs), state

        self.model = Model()
        self.model.output.initialize()
        self.model.output.weight.set_data(mx.nd.array(p["Why"].T))
        self.model.output.bias.set_data(mx.nd.array(p["by"]))
        self.model.hybridize(static_alloc=True, static_shape=True)
        self.cross_entropy = mx.gluon.loss.SoftmaxCrossEntropyLoss()
        self.cross_entropy.hybridize(static_alloc=True, static_shape=True)
        self.trainer = mx.gluon.Trainer(self.model.collect_params(), "sgd", {"learning_rate": LEARNING_RATE})
        self.inputs = mx.nd.array(numpy_loop.one_hot(problem.tokens, shape.I))
        self.labels = mx.nd.array(problem.labels)
        self.state = mx.nd.array(problem.state).expand_dims(0)
        self.calls = {MODE: self._step}

    def _step(self):
        with self.mx.autograd.record():
            logits, state = self.model(self.inputs, self.state)
            loss = self.cross_entropy(logits, self.labels).mean()
        loss.backward()
        self.trainer.step(1)
        self.state = state.detach()
        self.loss = loss.asscalar()
        self.mx.nd.waitall()

    def results(self, mode):
        rnn, output = self.model.rnn, self.model.output
        return dict(
            providers.gluon_rnn_gradients(rnn),
            loss=np.array([self.loss]),
            Wxh=rnn.l0_i2h_weight.data().asnumpy().T, Whh=rnn.l0_h2h_weight.data().asnumpy().T,
            bh=rnn.l0_i2h_bias.data().asnumpy(),
            Why=output.weight.data().asnumpy().T, by=output.bias.data().asnumpy(),
            dWhy=output.weight.grad().asnumpy().T, dby=output.bias.grad().asnumpy())


class Torch:
    """torch.nn.RNN and torch.nn.Linear, PyTorch's own loss and optimizer, one-hot input."""
    name = providers.TorchRNN.name
    process = providers.TorchRNN.process

    def __init__(self, problem):
        import torch
        self.torch = torch
        self.about = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
        p = problem.parameters
        shape = problem.shape
        self.rnn = providers.torch_rnn(torch, shape.I, shape.H, p["Wxh"], p["Whh"], p["bh"])
        self.output = torch.nn.Linear(shape.H, shape.I)
        with torch.no_grad():
            self.output.weight.copy_(torch.tensor(p["Why"].T))
            self.output.bias.copy_(torch.tensor(p["by"]))
        self.optimizer = torch.optim.SGD([*self.rnn.parameters(), *self.output.parameters()], lr=LEARNING_RATE)
        self.inputs = torch.tensor(numpy_loop.one_hot(problem.tokens, shape.I))
        self.labels = torch.tensor(problem.labels, dtype=torch.int64).flatten()
        self.state = torch.tensor(problem.state[np.newaxis])
        self.calls = {MODE: self._step}

    def _step(self):
        self.optimizer.zero_grad()
        outputs, state = self.rnn(self.inputs, self.state)
        loss = self.torch.nn.functional.cross_entropy(self.output(outputs).flatten(0, 1), self.labels)
        loss.backward()
        self.optimizer.step()
        self.state = state.detach()
        self.loss = loss.item()

    def results(self, mode):
        rnn, output = self.rnn, self.output
        results = dict(
            Wxh=rnn.weight_ih_l0.T, Whh=rnn.weight_hh_l0.T, bh=rnn.bias_ih_l0, Why=output.weight.T, by=output.bias,
            dWhy=output.weight.grad.T, dby=output.bias.grad)
        results = {name: tensor.detach().numpy() for name, tensor in results.items()}
        return dict(results, **providers.torch_rnn_gradients(rnn), loss=np.array([self.loss]))


TRAINERS = (Ours, Gluon, Torch, Tutorial)
